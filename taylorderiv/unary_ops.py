"""The table of unary elementwise ops: a line per op.

An op is its value and its slope. ``slope(x, y, *params)`` is the derivative ``φ'(x)``, where ``y = φ(x)``,
written with arithmetic, torch functions of this table and ``torch.where``; ``x`` and ``y`` are
:class:`reference.Series`. It must call its own op on nothing but ``y``, so that the work grows as a power of
the order. The kernels of the same names are in ``csrc/unary_ops.h``; ops without a kernel use the reference
path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946
_GELU_TANH = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class UnaryOp:
    """A unary elementwise op.

    Attributes:
        name: its name, also that of its kernel.
        function: ``function(x, *params)``, the op on a tensor.
        slope: ``slope(x, y, *params)``, its derivative (see the module's docstring).
        params: turns the further arguments of the torch functions in ``keys`` into a tuple of floats.
        keys: the torch functions that mean this op, or their canonical names (see ``registry.canonical``).
    """

    name: str
    function: Callable[..., Any]
    slope: Callable[..., Any]
    params: Callable[..., tuple[float, ...]] = lambda: ()
    keys: tuple[Callable[..., Any] | str, ...] = ()


def _sech2(x: Any) -> Any:
    """``1 / cosh(x)**2`` without overflow or cancellation, with correct derivatives at 0."""
    return 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)


def _tanh_slope(x: Any, y: Any) -> Any:
    return (1 - y * y).with_primal(_sech2(x.primal))


def _sigmoid_slope(x: Any, y: Any) -> Any:
    return (y - y * y).with_primal(torch.sigmoid(x.primal) * torch.sigmoid(-x.primal))


def _gelu_slope(x: Any, y: Any) -> Any:
    return 0.5 * torch.erfc(x * -math.sqrt(0.5)) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(x: Any, y: Any) -> Any:
    inner = 2 * _GELU_TANH * (x + 0.044715 * x * x * x)
    inner_slope = 2 * _GELU_TANH * (1 + 3 * 0.044715 * x * x)
    gate = torch.sigmoid(inner)
    return gate + x * gate * torch.sigmoid(-inner) * inner_slope


def _silu_slope(x: Any, y: Any) -> Any:
    gate = torch.sigmoid(x)
    return gate * (1 + x * torch.sigmoid(-x))


def _mish_slope(x: Any, y: Any) -> Any:
    inner = F.softplus(x)
    return torch.tanh(inner) + x * _sech2(inner) * torch.sigmoid(x)


def _softplus_slope(x: Any, y: Any, beta: float, threshold: float) -> Any:
    return torch.where(beta * x.primal > threshold, 1.0, torch.sigmoid(beta * x))


def _sinc_slope(x: Any, y: Any) -> Any:
    # (cos πx - sinc x) / x away from 0; near 0 its power series, long enough for any practical order.
    near = x.primal.abs() < 1
    small = x.with_primal(torch.where(near, x.primal, 0.0))
    square = small * small
    terms = 30 + x.order // 2
    series = 0.0
    for n in range(terms, 0, -1):
        sign = -1.0 if n % 2 else 1.0
        series = series * square + sign * 2 * n * math.exp(2 * n * math.log(math.pi) - math.lgamma(2 * n + 2))
    large = x.with_primal(torch.where(near, 1.0, x.primal))
    return torch.where(near, series * small, (torch.cos(math.pi * large) - y) / large)


def _leaky_relu_params(negative_slope: float = 0.01) -> tuple[float, ...]:
    return (float(negative_slope),)


def _hardtanh_params(min_val: float = -1.0, max_val: float = 1.0) -> tuple[float, ...]:
    return (float(min_val), float(max_val))


def _softplus_params(beta: float = 1.0, threshold: float = 20.0) -> tuple[float, ...]:
    return (float(beta), float(threshold))


def _alpha_params(alpha: float = 1.0) -> tuple[float, ...]:
    return (float(alpha),)


def _zero(x: Any, y: Any) -> Any:
    return torch.zeros_like(x.primal)


def _step(x: Any, condition: Any, inside: float, outside: float) -> Any:
    """A slope with two values, in the dtype of ``x``."""
    return torch.where(condition, torch.full_like(x.primal, inside), outside)


_ROWS = (
    UnaryOp("neg", torch.neg, lambda x, y: -1.0, keys=("neg", "negative")),
    UnaryOp("square", torch.square, lambda x, y: 2 * x),
    UnaryOp("exp", torch.exp, lambda x, y: y),
    UnaryOp("exp2", torch.exp2, lambda x, y: math.log(2) * y, keys=("exp2", "special_exp2")),
    UnaryOp("expm1", torch.expm1, lambda x, y: torch.exp(x), keys=("expm1", "special_expm1")),
    UnaryOp("log", torch.log, lambda x, y: 1 / x),
    UnaryOp("log2", torch.log2, lambda x, y: 1 / (x * math.log(2))),
    UnaryOp("log10", torch.log10, lambda x, y: 1 / (x * math.log(10))),
    UnaryOp("log1p", torch.log1p, lambda x, y: 1 / (1 + x), keys=("log1p", "special_log1p")),
    UnaryOp("sqrt", torch.sqrt, lambda x, y: 0.5 / y),
    UnaryOp("rsqrt", torch.rsqrt, lambda x, y: -0.5 * y / x),
    UnaryOp("reciprocal", torch.reciprocal, lambda x, y: -(y * y)),
    # The rule of torch.pow handles integer exponents, and calls this one for the others.
    UnaryOp("pow", torch.pow, lambda x, y, p: p * torch.pow(x, p - 1), keys=("_pow",)),
    UnaryOp("sin", torch.sin, lambda x, y: torch.cos(x)),
    UnaryOp("cos", torch.cos, lambda x, y: -torch.sin(x)),
    UnaryOp("tan", torch.tan, lambda x, y: 1 + y * y),
    UnaryOp("asin", torch.asin, lambda x, y: torch.rsqrt((1 - x) * (1 + x)), keys=("asin", "arcsin")),
    UnaryOp("acos", torch.acos, lambda x, y: -torch.rsqrt((1 - x) * (1 + x)), keys=("acos", "arccos")),
    UnaryOp("atan", torch.atan, lambda x, y: 1 / (1 + x * x), keys=("atan", "arctan")),
    UnaryOp("sinh", torch.sinh, lambda x, y: torch.cosh(x)),
    UnaryOp("cosh", torch.cosh, lambda x, y: torch.sinh(x)),
    UnaryOp("tanh", torch.tanh, _tanh_slope, keys=("tanh", F.tanh)),
    UnaryOp("asinh", torch.asinh, lambda x, y: torch.rsqrt(1 + x * x), keys=("asinh", "arcsinh")),
    UnaryOp(
        "acosh",
        torch.acosh,
        lambda x, y: torch.rsqrt(x - 1) * torch.rsqrt(x + 1),
        keys=("acosh", "arccosh"),
    ),
    UnaryOp("atanh", torch.atanh, lambda x, y: 1 / ((1 - x) * (1 + x)), keys=("atanh", "arctanh")),
    UnaryOp("sigmoid", torch.sigmoid, _sigmoid_slope, keys=("sigmoid", "special_expit", F.sigmoid)),
    UnaryOp("logsigmoid", F.logsigmoid, lambda x, y: torch.sigmoid(-x), keys=("log_sigmoid",)),
    UnaryOp("softplus", F.softplus, _softplus_slope, _softplus_params),
    UnaryOp("silu", F.silu, _silu_slope, keys=("silu", F.silu)),
    # The rule of F.gelu chooses between these two.
    UnaryOp("gelu", F.gelu, _gelu_slope, keys=("_gelu",)),
    UnaryOp("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), _gelu_tanh_slope, keys=("_gelu_tanh",)),
    UnaryOp("mish", F.mish, _mish_slope, keys=("mish", F.mish)),
    UnaryOp(
        "elu",
        F.elu,
        lambda x, y, alpha: torch.where(x.primal > 0, 1.0, alpha * torch.exp(x)),
        _alpha_params,
        keys=("_elu", F.elu),
    ),
    UnaryOp(
        "selu",
        torch.selu,
        lambda x, y: torch.where(x.primal > 0, _SELU_SCALE, _SELU_SCALE * _SELU_ALPHA * torch.exp(x)),
        keys=("selu", F.selu),
    ),
    UnaryOp(
        "celu",
        torch.celu,
        lambda x, y, alpha: torch.where(x.primal > 0, 1.0, torch.exp(x / alpha)),
        _alpha_params,
        keys=("celu", F.celu),
    ),
    UnaryOp("erf", torch.erf, lambda x, y: 2 / math.sqrt(math.pi) * torch.exp(-x * x), keys=("erf", "special_erf")),
    UnaryOp(
        "erfc",
        torch.erfc,
        lambda x, y: -2 / math.sqrt(math.pi) * torch.exp(-x * x),
        keys=("erfc", "special_erfc"),
    ),
    UnaryOp("sinc", torch.sinc, _sinc_slope, keys=("sinc", "special_sinc")),
    UnaryOp("relu", torch.relu, lambda x, y: _step(x, x.primal > 0, 1.0, 0.0), keys=("relu", F.relu)),
    UnaryOp(
        "relu6",
        F.relu6,
        lambda x, y: _step(x, (x.primal > 0) & (x.primal < 6), 1.0, 0.0),
        keys=("relu6", F.relu6),
    ),
    UnaryOp(
        "leaky_relu",
        F.leaky_relu,
        lambda x, y, negative_slope: _step(x, x.primal > 0, 1.0, negative_slope),
        _leaky_relu_params,
        keys=("leaky_relu", F.leaky_relu),
    ),
    UnaryOp(
        "hardtanh",
        F.hardtanh,
        lambda x, y, low, high: _step(x, (x.primal > low) & (x.primal < high), 1.0, 0.0),
        _hardtanh_params,
        keys=("hardtanh", F.hardtanh),
    ),
    # The rule of torch.abs calls this one for real numbers.
    UnaryOp("abs", torch.abs, lambda x, y: torch.sign(x.primal), keys=("_abs",)),
    UnaryOp("sign", torch.sign, _zero),
    UnaryOp("floor", torch.floor, _zero),
    # No kernel: seldom used.
    UnaryOp("ceil", torch.ceil, _zero),
    UnaryOp("trunc", torch.trunc, _zero, keys=("trunc", "fix")),
    UnaryOp("round", torch.round, _zero, keys=("_round",)),
    UnaryOp("frac", torch.frac, lambda x, y: 1.0),
)

UNARY_OPS: dict[str, UnaryOp] = {op.name: op for op in _ROWS}
"""The table, by name. Rules registered from a slope are added to it."""
