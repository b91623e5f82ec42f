"""The recurrences in plain torch functions: the oracle of the kernels, and the path for what these lack.

Right, not fast. Only torch functions are applied to coefficients, so these may be tensors of any dtype,
complex ones included, or jets themselves; autograd differentiates through.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from taylorderiv.layout import Layout
from taylorderiv.unary_ops import UNARY_OPS, UnaryOp


class Series:
    """A truncated power series in one variable: coefficients of orders ``0 … order``, of one shape.

    Supports ``+ - * /`` with series of the same order and with constants, the functions of the table of unary
    ops, and ``torch.where`` with a plain condition. The coefficients may be given as a function that is
    called when they are first needed.
    """

    def __init__(self, coefficients: Sequence[Any] | Callable[[], Sequence[Any]]):
        self._coefficients = coefficients

    @property
    def evaluated(self) -> bool:
        """Whether the coefficients are known already."""
        return not callable(self._coefficients)

    @property
    def coefficients(self) -> Sequence[Any]:
        if callable(self._coefficients):
            self._coefficients = self._coefficients()
        return self._coefficients

    @property
    def order(self) -> int:
        return len(self.coefficients) - 1

    @property
    def primal(self) -> Any:
        return self.coefficients[0]

    def with_primal(self, primal: Any) -> Series:
        """The series with another coefficient 0."""
        return Series([primal, *self.coefficients[1:]])

    def truncated(self, order: int) -> Series:
        """The series without the coefficients above ``order``."""
        return Series(self.coefficients[: order + 1])

    def _map(self, function: Callable[[Any], Any]) -> Series:
        return Series([function(c) for c in self.coefficients])

    def __neg__(self) -> Series:
        return self._map(operator.neg)

    def __add__(self, other: Any) -> Series:
        if isinstance(other, Series):
            return Series([a + b for a, b in zip(self.coefficients, other.coefficients, strict=True)])
        return self.with_primal(self.primal + other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Series:
        return self + -other

    def __rsub__(self, other: Any) -> Series:
        return -self + other

    def __mul__(self, other: Any) -> Series:
        if not isinstance(other, Series):
            return self._map(lambda c: c * other)
        a, b = self.coefficients, other.coefficients
        return Series([_sum(a[j] * b[k - j] for j in range(k + 1)) for k in range(len(a))])

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Series:
        if not isinstance(other, Series):
            return self._map(lambda c: c / other)
        return _divide(self.coefficients, other.coefficients)

    def __rtruediv__(self, other: Any) -> Series:
        return _divide([other] + [None] * self.order, self.coefficients)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.where:
            return _where(*args)
        for op in UNARY_OPS.values():
            if func is op.function:
                return apply(op, args[0], op.params(*args[1:]) if func is not torch.pow else args[1:])
        raise NotImplementedError(f"a slope can't use {func}: only arithmetic, unary ops and torch.where")


def _sum(terms: Any) -> Any:
    total = None
    for term in terms:
        total = term if total is None else total + term
    return total


def _divide(numerator: Sequence[Any], denominator: Sequence[Any]) -> Series:
    """The quotient; ``None`` in the numerator stands for 0."""
    quotient = [numerator[0] / denominator[0]]
    for k in range(1, len(denominator)):
        known = _sum(denominator[j] * quotient[k - j] for j in range(1, k + 1))
        rest = -known if numerator[k] is None else numerator[k] - known
        quotient.append(rest / denominator[0])
    return Series(quotient)


def _where(condition: Any, a: Any, b: Any) -> Any:
    """``torch.where`` where ``a`` or ``b`` may be a series, the other one a constant."""
    if not isinstance(a, Series) and not isinstance(b, Series):
        return torch.where(condition, a, b)
    length = len(a.coefficients if isinstance(a, Series) else b.coefficients)
    series = [s.coefficients if isinstance(s, Series) else [s] + [0.0] * (length - 1) for s in (a, b)]
    return Series([torch.where(condition, p, q) for p, q in zip(*series, strict=True)])


def apply(op: UnaryOp, x: Series, params: Sequence[float]) -> Series:
    """``y = op(x)`` by ``y_k = (1/k) sum_j j x_j s_{k-j}``, where ``s`` is the slope one order lower."""
    if x.order == 0:
        return Series([op.function(x.primal, *params)])
    lower = x.truncated(x.order - 1)
    y = Series(lambda: apply(op, lower, params).coefficients)
    slope = op.slope(lower, y, *params)
    # Where the slope needed y, all coefficients but the last are known from there.
    known = list(y.coefficients) if y.evaluated else [op.function(x.primal, *params)]
    for k in range(len(known), x.order + 1):
        if isinstance(slope, Series):
            s = slope.coefficients
            known.append(_sum((j / k) * x.coefficients[j] * s[k - j] for j in range(1, k + 1)))
        else:
            known.append(x.coefficients[k] * slope)
    return Series(known)


def unary(op: UnaryOp, coefficients: Any, layout: Layout, params: Sequence[float] = ()) -> Any:
    """``op`` on the coefficients ``(C, *shape)`` of a jet; the same shape."""
    primal = coefficients[0]
    outputs = [op.function(primal, *params)]
    top = None
    for r in range(layout.directions):
        x = [primal] + [coefficients[layout.index(k, r)] for k in range(1, layout.stored(r) + 1)]
        if r in layout.collapsed_directions:
            assert layout.weights is not None
            # The output is linear in the top coefficients: any of them may stand for their weighted sum.
            first = r == layout.collapsed_directions[0]
            x.append(coefficients[-1] / layout.weights[r] if first else torch.zeros_like(primal))
            y = apply(op, Series(x), params).coefficients
            term = layout.weights[r] * y[-1]
            top = term if top is None else top + term
            y = y[:-1]
        else:
            y = apply(op, Series(x), params).coefficients
        outputs.extend(y[1:])
    if top is not None:
        outputs.append(top)
    return torch.stack(outputs)


def cauchy(a: Any, b: Any, layout: Layout) -> Any:
    """The product of two jets of one shape, each ``(C, *shape)``."""
    return torch.stack(
        [
            _sum(a[i] * b[j] if weight == 1 else weight * a[i] * b[j] for i, j, weight in terms)
            for terms in layout.products()
        ]
    )


def correlate(b: Any, grad: Any, layout: Layout) -> Any:
    """The gradient of ``<grad, cauchy(a, b)>`` with respect to ``a``, for real coefficients."""
    gradients: list[list[Any]] = [[] for _ in range(layout.size)]
    for n, terms in enumerate(layout.products()):
        for i, j, weight in terms:
            gradients[i].append(weight * b[j] * grad[n])
    return torch.stack([_sum(terms) for terms in gradients])
