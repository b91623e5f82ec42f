"""What the tests know about each unary op: the torch function, the exact function, and where to try it.

Every op of ``taylorderiv.unary_ops`` has a record here, or several with different parameters; the tests of
unary ops are generated from them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mp_series as exact
import torch
import torch.nn.functional as F
from mp_series import Number, Series
from mpmath import mp, mpf

DIGITS = 50
"""Decimal digits of exact numbers."""


@dataclass(frozen=True)
class Record:
    """A unary op with its parameters.

    Attributes:
        op: its name in the table of unary ops.
        function: the torch function, with these parameters.
        exact: the same function of a series in mpmath.
        smooth: an interval on which it is smooth and of moderate size.
        points: where accuracy is at risk: saturated ends, next to zeros, to kinks, to singularities.
        kinks: where it isn't smooth, so that PyTorch's own convention rules.
        params: as the kernel takes them.
        kernel: whether a kernel is promised.
    """

    op: str
    function: Callable[[Any], Any]
    exact: Callable[[Series], Series]
    smooth: tuple[float, float]
    points: tuple[float, ...] = ()
    kinks: tuple[float, ...] = ()
    params: tuple[float, ...] = ()
    kernel: bool = True

    @property
    def id(self) -> str:
        return "-".join([self.op, *(f"{p:.3g}" for p in self.params)])

    def random(self, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Random numbers from ``smooth``."""
        low, high = self.smooth
        return low + (high - low) * torch.rand(shape, dtype=dtype)

    def samples(self, count: int) -> list[float]:
        """``count`` evenly spaced numbers of ``smooth``, and ``points``; all fit into float32."""
        spaced = torch.linspace(*self.smooth, count, dtype=torch.float64).tolist()
        return torch.tensor(sorted({*spaced, *self.points}), dtype=torch.float32).tolist()

    @functools.cache  # noqa: B019 - records live as long as the process
    def taylor(self, x: float, order: int) -> list[Number]:
        """The exact Taylor coefficients at ``x``, of orders ``0 … order``."""
        with mp.workdps(DIGITS):
            return self.exact(Series.variable(x, order)).c


_SELU_SCALE, _SELU_ALPHA = mpf("1.05070098735548049342"), mpf("1.67326324235437728482")


def _silu(x: Series) -> Series:
    return x * exact.sigmoid(x)


def _gelu(x: Series) -> Series:
    return x * exact.erfc(x / -mp.sqrt(2)) / 2


def _gelu_tanh(x: Series) -> Series:
    return x * exact.sigmoid(2 * mp.sqrt(2 / mp.pi) * (x + mpf(0.044715) * x * x * x))


def _mish(x: Series) -> Series:
    return x * exact.tanh(exact.softplus(x))


def _piecewise(*pieces: tuple[float, Callable[[Series], Series]]) -> Callable[[Series], Series]:
    """``f`` of the last piece ``(start, f)`` whose start lies below the primal."""
    return lambda x: [f for start, f in pieces if start < x.c[0]][-1](x)


def _exponential_linear(scale: Number, alpha: Number, rate: Number) -> Callable[[Series], Series]:
    return _piecewise((-mp.inf, lambda x: scale * alpha * exact.expm1(rate * x)), (0, lambda x: scale * x))


def _locally_constant(function: Callable[[Number], Number]) -> Callable[[Series], Series]:
    return lambda x: x.like(function(x.c[0]))


def _truncated(x: Number) -> Number:
    return mp.sign(x) * mp.floor(abs(x))


_RELU = _piecewise((-mp.inf, lambda x: x.like(0)), (0, lambda x: x))
_FLOOR, _CEIL, _TRUNC, _ROUND = map(_locally_constant, (mp.floor, mp.ceil, _truncated, mp.nint))

_ZERO = (-1e-9, 0.0, 1e-9)
_ENDS = (-30.0, -20.0, -9.0, 9.0, 20.0, 30.0)
_POSITIVE = (1e-6, 1e-3, 0.999, 1.0, 1.001, 30.0, 1e3)
_UNIT = (-0.999, -0.99, *_ZERO, 0.99, 0.999)
_KINK = (-2.0, -1e-9, 1e-9, 2.0)


def _pow(exponent: float) -> Record:
    return Record(
        op="pow",
        function=lambda x: x**exponent,
        exact=lambda x: exact.power(x, mpf(exponent)),
        smooth=(0.3, 3),
        points=_POSITIVE,
        params=(exponent,),
    )


def _softplus(beta: float, threshold: float) -> Record:
    return Record(
        op="softplus",
        function=lambda x: F.softplus(x, beta=beta, threshold=threshold),
        exact=_piecewise((-mp.inf, lambda x: exact.softplus(beta * x) / beta), (threshold / beta, lambda x: x)),
        smooth=(-4, min(4, 0.9 * threshold / beta)),
        points=(
            *_ZERO,
            *(x for x in _ENDS if x * beta != threshold),  # there it is a kink
            0.99999 * threshold / beta,
            1.00001 * threshold / beta,
        ),
        kinks=(threshold / beta,),
        params=(beta, threshold),
    )


def _elu(alpha: float) -> Record:
    return Record(
        op="elu",
        function=lambda x: F.elu(x, alpha=alpha),
        exact=_exponential_linear(1, alpha, 1),
        smooth=(-3, -0.1),
        points=(*_ENDS, *_KINK),
        kinks=(0.0,),
        params=(alpha,),
    )


RECORDS: tuple[Record, ...] = (
    Record("neg", torch.neg, lambda x: -x, (-3, 3), _ZERO),
    Record("square", torch.square, lambda x: x * x, (-3, 3), (*_ZERO, 1e6)),
    Record("exp", torch.exp, exact.exp, (-3, 3), (*_ZERO, *_ENDS)),
    Record("exp2", torch.exp2, lambda x: exact.exp(mp.log(2) * x), (-3, 3), (*_ZERO, *_ENDS)),
    Record("expm1", torch.expm1, exact.expm1, (-3, 3), (*_ZERO, *_ENDS)),
    Record("log", torch.log, exact.log, (0.3, 3), _POSITIVE),
    Record("log2", torch.log2, lambda x: exact.log(x) / mp.log(2), (0.3, 3), _POSITIVE),
    Record("log10", torch.log10, lambda x: exact.log(x) / mp.log(10), (0.3, 3), _POSITIVE),
    Record("log1p", torch.log1p, exact.log1p, (-0.7, 3), (-0.999, -0.9, *_ZERO, 30.0, 1e3)),
    Record("sqrt", torch.sqrt, lambda x: exact.power(x, mpf(0.5)), (0.3, 3), _POSITIVE),
    Record("rsqrt", torch.rsqrt, lambda x: exact.power(x, mpf(-0.5)), (0.3, 3), _POSITIVE),
    Record("reciprocal", torch.reciprocal, lambda x: 1 / x, (0.3, 3), (-30.0, -1.0, -1e-3, *_POSITIVE)),
    _pow(2.5),
    _pow(-1.3),
    _pow(1 / 3),
    Record("sin", torch.sin, exact.sin, (-3, 3), (*_ZERO, 1.5707964, 3.1415927, 100.0, -1e4)),
    Record("cos", torch.cos, exact.cos, (-3, 3), (*_ZERO, 1.5707964, 3.1415927, 100.0, -1e4)),
    Record("tan", torch.tan, exact.tan, (-1.2, 1.2), (*_ZERO, -1.5, 1.5, 1.57, 3.1415927, 100.0)),
    Record("asin", torch.asin, exact.asin, (-0.8, 0.8), _UNIT),
    Record("acos", torch.acos, exact.acos, (-0.8, 0.8), _UNIT),
    Record("atan", torch.atan, exact.atan, (-3, 3), (*_ZERO, *_ENDS, 3.401702, 1e3)),
    Record("sinh", torch.sinh, exact.sinh, (-3, 3), (*_ZERO, *_ENDS)),
    Record("cosh", torch.cosh, exact.cosh, (-3, 3), (*_ZERO, *_ENDS)),
    Record("tanh", torch.tanh, exact.tanh, (-3, 3), (*_ZERO, *_ENDS)),
    Record("asinh", torch.asinh, exact.asinh, (-3, 3), (*_ZERO, *_ENDS, -3.882353, 4.296148, 1e3)),
    Record("acosh", torch.acosh, exact.acosh, (1.2, 4), (1.001, 1.01, 9.0, 50.0, 1e3)),
    Record("atanh", torch.atanh, exact.atanh, (-0.8, 0.8), _UNIT),
    Record("sigmoid", torch.sigmoid, exact.sigmoid, (-4, 4), (*_ZERO, *_ENDS)),
    Record("logsigmoid", F.logsigmoid, lambda x: -exact.softplus(-x), (-4, 4), (*_ZERO, *_ENDS)),
    _softplus(1.0, 20.0),
    _softplus(2.0, 20.0),
    _softplus(0.5, 1.5),
    Record("silu", F.silu, _silu, (-4, 4), (*_ZERO, *_ENDS, 40.41)),
    Record("gelu", F.gelu, _gelu, (-4, 4), (*_ZERO, -9.0, -5.0, 5.0, 9.0, 20.0)),
    Record(
        "gelu_tanh",
        lambda x: F.gelu(x, approximate="tanh"),
        _gelu_tanh,
        (-3, 3),
        (*_ZERO, -0.0730487, -6.0, -4.0, 4.0, 6.0),
    ),
    Record("mish", F.mish, _mish, (-4, 4), (*_ZERO, *_ENDS, -0.00035284, 0.0020033)),
    _elu(1.0),
    _elu(1.5),
    Record(
        op="selu",
        function=F.selu,
        exact=_exponential_linear(_SELU_SCALE, _SELU_ALPHA, 1),
        smooth=(-3, -0.1),
        points=(*_ENDS, *_KINK),
        kinks=(0.0,),
    ),
    Record(
        op="celu",
        function=lambda x: F.celu(x, alpha=1.5),
        exact=_exponential_linear(1, 1.5, mpf(1) / 1.5),
        smooth=(-3, -0.1),
        points=(*_ENDS, *_KINK),
        kinks=(0.0,),
        params=(1.5,),
    ),
    Record("erf", torch.erf, exact.erf, (-3, 3), (*_ZERO, -5.0, -4.0, 4.0, 5.0)),
    Record("erfc", torch.erfc, exact.erfc, (-3, 3), (*_ZERO, -5.0, -4.0, 4.0, 5.0, 8.0)),
    Record("sinc", torch.sinc, exact.sinc, (-3, 3), (*_ZERO, -1.0, 0.2, 0.5, 2.0, 7.3, 30.0)),
    Record("relu", torch.relu, _RELU, (0.1, 3), _KINK, (0.0,)),
    Record(
        op="relu6",
        function=F.relu6,
        exact=_piecewise((-mp.inf, lambda x: x.like(0)), (0, lambda x: x), (6, lambda x: x.like(6))),
        smooth=(0.1, 5.9),
        points=(*_KINK, 7.0),
        kinks=(0.0, 6.0),
    ),
    Record(
        op="leaky_relu",
        function=lambda x: F.leaky_relu(x, negative_slope=0.1),
        exact=_piecewise((-mp.inf, lambda x: 0.1 * x), (0, lambda x: x)),
        smooth=(-3, -0.1),
        points=_KINK,
        kinks=(0.0,),
        params=(0.1,),
    ),
    Record(
        op="hardtanh",
        function=lambda x: F.hardtanh(x, -0.5, 2.0),
        exact=_piecewise((-mp.inf, lambda x: x.like(-0.5)), (-0.5, lambda x: x), (2, lambda x: x.like(2))),
        smooth=(-0.4, 1.9),
        points=(-3.0, 5.0),
        kinks=(-0.5, 2.0),
        params=(-0.5, 2.0),
    ),
    Record("abs", torch.abs, _piecewise((-mp.inf, lambda x: -x), (0, lambda x: x)), (-3, -0.1), _KINK, (0.0,)),
    Record("sign", torch.sign, _locally_constant(mp.sign), (-3, -0.1), _KINK, (0.0,)),
    Record("floor", torch.floor, _FLOOR, (0.1, 0.9), (-1.5, *_KINK[1:3], 2.5), (0.0, 1.0)),
    # Without a kernel.
    Record("ceil", torch.ceil, _CEIL, (0.1, 0.9), (-1.5, 2.5), (0.0, 1.0), kernel=False),
    Record("trunc", torch.trunc, _TRUNC, (0.1, 0.9), (-1.5, 2.5), (0.0, 1.0), kernel=False),
    Record("round", torch.round, _ROUND, (0.1, 0.4), (-1.3, 2.2), (0.5, 1.5), kernel=False),
    Record("frac", torch.frac, lambda x: x - _truncated(x.c[0]), (0.1, 0.9), (-1.5, 2.5), (1.0,), kernel=False),
)
