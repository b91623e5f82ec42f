"""Linear differential operators as values: sums, products, powers, coefficients, composition, plans."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from numbers import Real
from typing import Any, TypeGuard

from torch import Tensor

from taylorderiv.evaluation import Points, check_points, evaluate_each, plan_once
from taylorderiv.jet import Jet
from taylorderiv.planner import NestedPlan, Plan, Polynomial, make_plan, parse_partial, parse_variables
from taylorderiv.planner.names import PartialName
from taylorderiv.planner.polynomial import LAPLACIAN, expand

Coefficient = Tensor | Callable[[Any], Any]
"""A tensor of one number or of one per point, or a function of the points that returns one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """``coefficients · symbol(∂)``, applied to what ``inner`` gives if there is an inner operator."""

    coefficients: tuple[Coefficient, ...]
    symbol: Polynomial
    inner: LinearOperator | None = None

    @property
    def key(self) -> tuple[int, ...]:
        """Equal for terms whose symbols can be added."""
        return (id(self.inner) if self.inner is not None else 0, *map(id, self.coefficients))


class LinearOperator:
    """A linear differential operator: ``L(f, x)`` is ``(L f)(x)``.

    Made from :func:`differentials`, :data:`laplacian` and :data:`bilaplacian` with ``+``, ``-``, ``*``,
    ``/``, ``**`` and ``@``. Coefficients are numbers, tensors (of one number, or of one per point), or
    functions of the points; they multiply from the left. ``L1 @ L2`` is the composition ``L1 (L2 f)``;
    ``*`` of two operators is the same, and is refused where coefficients would have to be differentiated.

    Calling it propagates the jet that its `plan` describes through ``f`` once, and is differentiable with
    respect to ``x``, tensor coefficients, and the parameters of ``f``.

    Example:
        >>> import torch
        >>> from taylorderiv import differentials
        >>> dx, dy = differentials("x", "y")
        >>> L = dx**4 + 2 * dx**2 * dy**2 + dy**4
        >>> L.plan().size
        11
        >>> X = torch.tensor([[1.0, 2.0]])
        >>> (dx**3 - X[:, 1] * dy)(lambda X: X[:, 0] ** 3 * X[:, 1], X)
        tensor([10.])
    """

    __array_ufunc__ = None  # NumPy's numbers leave products with an operator to the operator.

    def __init__(
        self,
        terms: Iterable[Term],
        variables: tuple[str, ...] | None = None,
        factors: tuple[Polynomial, Polynomial] | None = None,
    ) -> None:
        merged: dict[tuple[int, ...], Term] = {}
        for term in terms:
            if term.key in merged:
                term = dataclasses.replace(term, symbol=merged[term.key].symbol + term.symbol)
            merged[term.key] = term
        self.terms = tuple(term for term in merged.values() if term.symbol.terms)
        self.variables = variables
        self.factors = factors

    # Evaluation.

    def __call__(self, f: Callable[[Any], Any], x: Points, *, chunk_size: int | None = None) -> Any:
        """The operator applied to a function, at points.

        Args:
            f: a function or module that acts on each point by itself: of ``x``, or of a dict like ``x``.
            x: points ``(…, D)`` with the variables along the last axis, or a dict of named tensors.
            chunk_size: how many directions to propagate at once; by default, as many as fit into memory.

        Returns:
            A tensor shaped like ``f(x)``.

        Raises:
            TypeError: ``x`` isn't made of floating-point tensors, or ``f`` or a coefficient doesn't return
                a tensor.
            ValueError: ``x`` has another number of variables, or a coefficient another length, than needed.
        """
        dimension = self._dimension_of(x)
        total = None
        plain = [term for term in self.terms if term.inner is None]
        if plain or not self.terms:
            values = evaluate_each(self._planned(dimension), f, x, chunk_size=chunk_size)
            total = scaled(values[0], plain[0].coefficients, x) if plain else values[0]
            for value, term in zip(values[1:], plain[1:], strict=True):
                total = total + scaled(value, term.coefficients, x)
        for term in self.terms:
            if term.inner is not None:
                outer = LinearOperator([Term((), term.symbol)], self.variables)
                inner = functools.partial(term.inner, f, chunk_size=chunk_size)
                value = scaled(outer(inner, x, chunk_size=chunk_size), term.coefficients, x)
                total = value if total is None else total + value
        return total

    def plan(self, dimension: int | None = None) -> Plan | NestedPlan:
        """What is propagated to evaluate the operator: directions, orders, weights, and their cost.

        Args:
            dimension: the number of variables, for an operator that's for any number of them.

        Raises:
            ValueError: the number of variables isn't known, or the operator is a sum with compositions that
                have to be evaluated one by one: ask those for their plans.
        """
        if dimension is None:
            if self.variables is None:
                raise ValueError("dimension must be given: this operator is for any number of variables")
            dimension = len(self.variables)
        elif self.variables is not None and dimension != len(self.variables):
            raise ValueError(f"dimension is {dimension}, but the variables are {', '.join(self.variables)}")
        if not any(term.inner for term in self.terms):
            plan = self._planned(dimension)
        elif len(self.terms) == 1 and self.terms[0].inner is not None:
            outer = make_plan((expand(self.terms[0].symbol, dimension),), dimension)
            inner = self.terms[0].inner.plan(dimension)
            plan = NestedPlan(outer, inner, ((0, 0),), (outer.quantities[0],))
        else:
            raise ValueError("a sum with compositions has no single plan: ask each composition for its own")
        return dataclasses.replace(plan, variables=self.variables)

    def _planned(self, dimension: int) -> Plan | NestedPlan:
        return plan_once(self, f"_plan_{dimension}", _plan_of, self, dimension)

    def _dimension_of(self, x: Any) -> int:
        if self.variables is None:
            return check_points(x)
        if isinstance(x, Mapping) and tuple(x) != self.variables:
            raise ValueError(f"x has the entries {', '.join(x)}, but the variables are {', '.join(self.variables)}")
        try:
            return check_points(x, len(self.variables))
        except ValueError as error:
            raise ValueError(f"{error} ({', '.join(self.variables)})") from None

    # Algebra.

    def __add__(self, other: object) -> LinearOperator:
        other = _operator(other)
        if other is None:
            return NotImplemented
        return LinearOperator((*self.terms, *other.terms), self._common_variables(other))

    __radd__ = __add__

    def __neg__(self) -> LinearOperator:
        return self * -1

    def __sub__(self, other: object) -> LinearOperator:
        other = _operator(other)
        return NotImplemented if other is None else self + -other

    def __rsub__(self, other: object) -> LinearOperator:
        return -self + other

    def __mul__(self, other: object) -> LinearOperator:
        """A number times the operator, or the product of two operators."""
        if isinstance(other, LinearOperator):
            return self._product(other)
        if _is_number(other):
            return LinearOperator(
                (dataclasses.replace(term, symbol=term.symbol * other) for term in self.terms), self.variables
            )
        if isinstance(other, Tensor) or callable(other):
            raise TypeError("write coefficients to the left of the operator: c * L")
        return NotImplemented

    def __rmul__(self, other: object) -> LinearOperator:
        """A coefficient times the operator."""
        if _is_number(other):
            return self * other
        operator = _operator(other)
        return NotImplemented if operator is None else operator._product(self)

    def __truediv__(self, other: object) -> LinearOperator:
        if _is_number(other):
            return self * (1 / Fraction(other))
        if isinstance(other, Tensor):
            return (1 / other) * self
        return NotImplemented

    def __pow__(self, power: int) -> LinearOperator:
        if type(power) is not int or power < 0:
            raise ValueError(f"the power of an operator must be an integer of at least 0, got {power!r}")
        result = _constant(1, self.variables)
        for _ in range(power):
            result = result * self
        return result

    def __matmul__(self, other: object) -> LinearOperator:
        """The composition: ``(L1 @ L2)(f, x)`` is ``L1(lambda x: L2(f, x), x)``."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        if other._is_constant:
            return self._product(other)
        for term in other.terms:
            for coefficient in term.coefficients:
                if isinstance(coefficient, Tensor) and coefficient.ndim and self._order:
                    raise TypeError(
                        "the inner operator of a composition has a tensor as a coefficient, which can't be "
                        "differentiated by the variables: give it as a function of the points"
                    )
        variables = self._common_variables(other)
        return LinearOperator(
            (
                dataclasses.replace(term, inner=other if term.inner is None else term.inner @ other)
                for term in self.terms
            ),
            variables,
        )

    def _product(self, other: LinearOperator) -> LinearOperator:
        terms = []
        for left in self.terms:
            for right in other.terms:
                movable = not right.coefficients and right.inner is None
                if left.inner is not None or not (movable or left.symbol.degree == 0):
                    raise TypeError(
                        "the product would have to differentiate the right operator's coefficients: "
                        "use L1 @ L2 for the composition"
                    )
                coefficients = (*left.coefficients, *right.coefficients)
                terms.append(Term(coefficients, left.symbol * right.symbol, right.inner))
        factors = None
        if len(terms) == 1 and not terms[0].coefficients and terms[0].inner is None:
            factors = (self.terms[0].symbol, other.terms[0].symbol)
            if not all(factor.degree for factor in factors):
                factors = None
        return LinearOperator(terms, self._common_variables(other), factors)

    @property
    def _is_constant(self) -> bool:
        return not any(term.coefficients or term.inner for term in self.terms)

    @property
    def _order(self) -> int:
        return max((term.symbol.degree for term in self.terms), default=0)

    def _common_variables(self, other: LinearOperator) -> tuple[str, ...] | None:
        if self.variables is None or other.variables is None or self.variables == other.variables:
            return self.variables or other.variables
        raise ValueError(
            f"operators of different variables can't be combined: {', '.join(self.variables)} and "
            f"{', '.join(other.variables)}"
        )

    def __repr__(self) -> str:
        return f"LinearOperator({' + '.join(map(self._format, self.terms)) or '0'})"

    def _format(self, term: Term) -> str:
        text = term.symbol.format(self.variables)
        if term.inner is not None:
            text = f"({text}) @ {term.inner!r}"
        elif term.coefficients and len(term.symbol.terms) > 1:
            text = f"({text})"
        return " * ".join([*map(_name_coefficient, term.coefficients), text])


def differentials(*names: str) -> tuple[LinearOperator, ...]:
    """The partial derivatives by each of the variables, to build operators from.

    Args:
        names: the names of all variables, in the order of the points' last axis; or one string of
            one-letter names.

    Raises:
        ValueError: no names, or a repeated one, or ``"u"``.

    Example:
        >>> from taylorderiv import differentials
        >>> dx, dt = differentials("x", "t")
        >>> dt - 0.01 * dx**2
        LinearOperator(-0.01 u_xx + u_t)
    """
    variables = parse_variables(names[0] if len(names) == 1 else names)
    return tuple(LinearOperator([Term((), Polynomial.variable(i))], variables) for i in range(len(variables)))


def plan(
    requests: PartialName | LinearOperator | Sequence[PartialName | LinearOperator],
    variables: str | Sequence[str],
) -> Plan | NestedPlan:
    """What would be propagated to get all of some partial derivatives and operators in one pass.

    Args:
        requests: names such as ``"xxt"``, multi-indices, and operators with constant coefficients.
        variables: the names of the variables, in order.

    Raises:
        TypeError: a request is neither a name nor an operator.
        ValueError: nothing is requested, an unknown or repeated variable, an operator of other variables or
            one with coefficients that depend on the point, or no plan exists that doesn't amplify rounding.

    Example:
        >>> from taylorderiv import plan
        >>> plan(["u", "x", "t", "xxx"], variables="xt").size
        5
    """
    names = parse_variables(variables)
    if isinstance(requests, str | LinearOperator):
        requests = [requests]
    quantities = []
    for request in requests:
        if not isinstance(request, LinearOperator):
            key = parse_partial(request, names)  # pyright: ignore[reportArgumentType]
            quantities.append(Polynomial({key: 1}))
            continue
        if not request._is_constant:
            raise ValueError(f"{request!r} has coefficients that depend on the point: ask it for its own plan")
        if request.variables not in (None, names):
            raise ValueError(f"{request!r} isn't an operator of the variables {', '.join(names)}")
        symbols = [expand(term.symbol, len(names)) for term in request.terms]
        quantities.append(symbols[0] if symbols else Polynomial())
    found = make_plan(tuple(quantities), len(names))
    return dataclasses.replace(found, variables=names)


def _plan_of(operator: LinearOperator, dimension: int) -> Plan | NestedPlan:
    """The plan of an operator's terms without inner operators, one quantity each."""
    plain = [term.symbol for term in operator.terms if term.inner is None] or [Polynomial()]
    symbols = tuple(expand(symbol, dimension) for symbol in plain)
    if operator.factors is None:
        return make_plan(symbols, dimension)
    outer, inner = (expand(factor, dimension) for factor in operator.factors)
    return make_plan(symbols, dimension, ((outer, inner),))


def _operator(value: object) -> LinearOperator | None:
    """An operator, or a coefficient as the operator that multiplies by it; None for anything else."""
    if isinstance(value, LinearOperator):
        return value
    if _is_number(value):
        return _constant(value)
    if isinstance(value, Tensor | Jet) or callable(value):
        return LinearOperator([Term((value,), Polynomial.constant(1))])  # pyright: ignore[reportArgumentType]
    return None


def _constant(value: Any, variables: tuple[str, ...] | None = None) -> LinearOperator:
    return LinearOperator([Term((), Polynomial.constant(value))], variables)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real | float) and not isinstance(value, bool)


def _name_coefficient(coefficient: Coefficient) -> str:
    if isinstance(coefficient, Tensor):
        return f"{coefficient.item():.6g}" if coefficient.ndim == 0 else f"c{list(coefficient.shape)}"
    return getattr(coefficient, "__name__", type(coefficient).__name__)


def scaled(value: Any, coefficients: Sequence[Coefficient], x: Any) -> Any:
    """The value times its coefficients, each aligned with the points.

    Raises:
        TypeError: a coefficient is a function that doesn't return a tensor or number.
        ValueError: a coefficient has neither one number nor one per point.
    """
    for coefficient in coefficients:
        factor = coefficient
        if not isinstance(factor, Tensor | Jet):
            factor = coefficient(x)  # pyright: ignore[reportCallIssue]
            if not (isinstance(factor, Tensor | Jet) or _is_number(factor)):
                raise TypeError(
                    f"coefficient {_name_coefficient(coefficient)} must return a tensor, got {type(factor).__name__}"
                )
        value = value * _aligned(factor, value, x, coefficient)
    return value


def _aligned(factor: Any, value: Any, x: Any, coefficient: Coefficient) -> Any:
    if not isinstance(factor, Tensor | Jet) or factor.ndim == 0 or factor.shape == value.shape:
        return factor
    if factor.numel() == 1:
        return factor.reshape(())
    points = next(iter(x.values())).shape if isinstance(x, Mapping) else x.shape[:-1]
    if factor.numel() == math.prod(points):
        return factor.reshape(*points, *[1] * (value.ndim - len(points)))
    raise ValueError(
        f"coefficient {_name_coefficient(coefficient)} has shape {tuple(factor.shape)}; it needs one number, "
        f"or one for each of the points {tuple(points)}"
    )


laplacian = LinearOperator([Term((), Polynomial.variable(LAPLACIAN))])
"""The sum of the second derivatives by all variables, ``laplacian(f, x)``: D + 2 coefficients."""

bilaplacian = laplacian**2
"""The Laplacian of the Laplacian: 11 coefficients in two variables, 20 in three."""
