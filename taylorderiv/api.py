"""Derivatives of functions: the calls users make. Here, and only here, coefficients become derivatives and back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from taylorderiv.evaluation import evaluate_each, plan_once, plans, scaled
from taylorderiv.jet import Jet, Level, check_like, check_order, check_variable, factorial, nested_level
from taylorderiv.layout import Layout
from taylorderiv.planner import NestedPlan, Plan, Polynomial, make_plan
from taylorderiv.planner.polynomial import monomial

MultiIndex = tuple[int, ...]
"""How often to differentiate with respect to each variable."""


def derivatives(
    f: Callable[[Any], Any], x: Tensor, order: int, *, direction: Tensor | None = None
) -> tuple[Tensor, ...]:
    """A function and its derivatives along a direction, up to any order, in one pass.

    The k-th result is ``d^k/dε^k f(x + ε · direction)`` at ε = 0. With the default direction of ones these are the
    derivatives f, f', f'', … of every element, if ``f`` is elementwise or a network of one input column.
    The results are differentiable with respect to ``x``, ``direction`` and the parameters of ``f``.

    Args:
        f: a function or module of one tensor that returns one tensor. It is called once, with a :class:`Jet`.
        x: a floating-point or complex tensor of any shape.
        order: the highest order, at least 0.
        direction: a tensor like ``x``; ones if left out.

    Returns:
        ``order + 1`` tensors shaped like ``f(x)``.

    Raises:
        TypeError: ``x`` isn't a floating-point or complex tensor, ``order`` isn't an int, ``direction`` is of
            another dtype, or ``f`` doesn't return a tensor.
        ValueError: ``order`` is negative, or ``direction`` has another shape or device than ``x``.
        NotImplementedError: ``f`` uses an op that has no rule and no decomposition.
    """
    check_order(order)
    check_variable(x, "x")
    if direction is not None:
        check_like(direction, x, "direction")
    with nested_level() as level:
        y = f(Jet.variable(x, order, None if direction is None else [direction], level=level))
        return _derivatives(y, order, level)


def _derivatives(y: Any, order: int, level: Level) -> tuple[Any, ...]:
    """The derivatives of what a function returned, along its first direction."""
    if not isinstance(y, (Tensor, Jet)):
        raise TypeError(f"the function must return a torch.Tensor, got {type(y).__name__}")
    if not (isinstance(y, Jet) and y.level == level):  # It doesn't depend on the variables.
        value: Any = y
        return (y, *[torch.zeros_like(value) for _ in range(order)])
    factors = [factorial(k) for k in range(order + 1)]
    return scaled(y.coefficients, factors).unbind(0)


def jet(
    f: Callable[..., Any],
    primals: Sequence[Tensor],
    series: Sequence[Sequence[Tensor]],
    *,
    factorial_scaled: bool = True,
) -> tuple[Any, Any]:
    """Propagate truncated Taylor series through a function, as ``jax.experimental.jet.jet`` does.

    Each argument is a curve ``x(t)``, given by ``x(0)`` and its first K derivatives at 0; the result is ``f(x(t))``
    in the same form.

    Args:
        f: a function of ``len(primals)`` tensors that returns a tensor or a pytree of tensors.
        primals: the values ``x(0)``.
        series: for each argument its K derivatives ``x'(0), x''(0), …``, each shaped like the argument.
        factorial_scaled: whether the terms are derivatives; if not, they are Taylor coefficients ``x^(k)(0) / k!``.

    Returns:
        ``(primals_out, series_out)``: the value, and for each tensor in it the list of its K terms.

    Raises:
        TypeError: an argument or a term isn't a tensor of floating-point or complex numbers, or ``f`` doesn't
            return tensors.
        ValueError: the numbers of arguments and of series differ, series have different lengths, or a term has
            another shape or device than its argument.
    """
    if len(primals) != len(series):
        raise ValueError(f"jet got {len(primals)} primals but {len(series)} series")
    if not primals:
        raise ValueError("jet needs at least one primal")
    lengths = {len(terms) for terms in series}
    if len(lengths) > 1:
        raise ValueError(f"jet terms have inconsistent lengths for different arguments: {sorted(lengths)}")
    (order,) = lengths
    scales = [math.factorial(k) if factorial_scaled else 1 for k in range(1, order + 1)]
    layout = Layout((order,) if order else ())
    for i, (x, terms) in enumerate(zip(primals, series, strict=True)):
        check_variable(x, f"primal {i}")
        for k, term in enumerate(terms, start=1):
            check_like(term, x, f"term {k} of series {i}")

    with nested_level() as level:
        arguments = [
            Jet(torch.stack([x, *[t / scale for t, scale in zip(terms, scales, strict=True)]]), layout, level, x)
            for x, terms in zip(primals, series, strict=True)
        ]
        leaves, structure = pytree.tree_flatten(f(*arguments))
        columns = [_derivatives(leaf, order, level) for leaf in leaves]
    if not factorial_scaled:
        columns = [(y, *[t / math.factorial(k) for k, t in enumerate(terms, start=1)]) for y, *terms in columns]
    return (
        pytree.tree_unflatten([column[0] for column in columns], structure),
        pytree.tree_unflatten([list(column[1:]) for column in columns], structure),
    )


# Partial derivatives.


class Partials:
    """Partial derivatives of one function: ``p.u`` is the value; ``p.xxt``, ``p["xxt"]`` or ``p[2, 1]`` the others."""

    def __init__(
        self, value: Any, variables: Sequence[str], entries: Mapping[MultiIndex, Any], names: Mapping[str, MultiIndex]
    ):
        self.u = value
        self._variables = tuple(variables)
        self._entries = dict(entries)
        self._names = names

    def __getitem__(self, name: str | Sequence[str] | MultiIndex) -> Any:
        if name == "u":
            return self.u
        if isinstance(name, str) and name in self._names:  # as it was asked for
            return self._entries[self._names[name]]
        index = _multi_index(name, self._variables)
        if index not in self._entries:
            raise KeyError(f"the partial derivative {name!r} wasn't asked for")
        return self._entries[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except (KeyError, ValueError) as error:
            raise AttributeError(str(error)) from None

    def __repr__(self) -> str:
        names = ["".join(v * n for v, n in zip(self._variables, index, strict=True)) for index in self._entries]
        return f"Partials(u, {', '.join(names)}; shape={tuple(self.u.shape)})"


def partials(
    f: Callable[[Any], Any],
    x: Tensor | Mapping[str, Tensor],
    names: Sequence[str | Sequence[str] | MultiIndex],
    variables: str | Sequence[str] | None = None,
    *,
    chunk_size: int | None = None,
) -> Partials:
    """Partial derivatives of a function of several variables, all in one pass.

    Which directions are propagated, and to which orders, is planned: see :func:`plan`.

    Args:
        f: a function or module; called once, with a jet in place of ``x`` (or a dict of jets).
        x: points of shape ``(N, D)``, the variables along the last axis; or a dict of named tensors of one shape,
            such as ``(N, 1)``.
        names: what to compute: strings of one-letter variables (``"xxt"``), tuples of names
            (``("x", "x", "theta")``), or multi-indices (``(2, 1)``).
        variables: the names of the D variables, in order; of a dict, its keys by default.
        chunk_size: how many directions to propagate at once; by default, as many as fit into memory.

    Returns:
        An object with the value as ``.u`` and the derivatives as attributes and items, each shaped like ``f(x)``.

    Raises:
        TypeError: ``x`` isn't made of floating-point tensors, or ``f`` doesn't return a tensor.
        ValueError: an unknown or repeated variable, no or an empty name, a wrong number of variables, or
            derivatives so high that no plan keeps rounding from being amplified.

    Example:
        >>> p = partials(model, points, ["x", "t", "xxx"], variables="xt")
        >>> residual = p.t + 6 * p.u * p.x + p.xxx
    """
    tensors = list(x.values()) if isinstance(x, Mapping) else [x]
    if not tensors:
        raise ValueError("partials needs at least one variable")
    for tensor in tensors:
        check_variable(tensor, "x")
        check_like(tensor, tensors[0], "a variable")
    if isinstance(x, Mapping):
        variables = tuple(x) if variables is None else tuple(variables)
        if set(variables) != set(x):
            raise ValueError(f"variables {list(variables)} aren't the keys of x, {list(x)}")
        count = len(x)
    else:
        if x.ndim == 0:
            raise ValueError("x must have the variables along its last axis, got a 0-dimensional tensor")
        count = x.shape[-1]
        variables = tuple(f"x{i}" for i in range(count)) if variables is None else tuple(variables)
    if len(variables) != count:
        raise ValueError(f"{len(variables)} variables {list(variables)}, but x has {count} columns")
    if isinstance(names, str) or len(names) == 0:
        raise ValueError("names must be a sequence with at least one partial derivative, such as ['x', 'xx']")
    # A compiler traces through the cache, and warns.
    understand = _understand.__wrapped__ if torch.compiler.is_compiling() else _understand
    asked = understand(tuple(name if isinstance(name, str) else _hashable(name) for name in names), variables)
    plan = plan_once(plans, asked.attribute, _plan_of, asked.requests, count)
    points = {name: x[name] for name in variables} if isinstance(x, Mapping) else x
    value, *entries = evaluate_each(plan, f, points, chunk_size=chunk_size)
    return Partials(value, variables, dict(zip(asked.requests, entries, strict=True)), asked.names)


class _Asked(NamedTuple):
    """Partial derivatives that were asked for: each once, what those that are strings are, and where the plan is."""

    requests: tuple[MultiIndex, ...]
    names: Mapping[str, MultiIndex]
    attribute: str


def _hashable(name: Sequence[str] | MultiIndex) -> tuple[Any, ...]:
    return tuple(entry if isinstance(entry, int) else str(entry) for entry in name)


@functools.lru_cache
def _understand(names: tuple[str | tuple[Any, ...], ...], variables: tuple[str, ...]) -> _Asked:
    if len(set(variables)) != len(variables) or "u" in variables:
        raise ValueError(f"variables must be distinct, and none called 'u', got {list(variables)}")
    indices = {name: _multi_index(name, variables) for name in names if name != "u"}
    requests = tuple(dict.fromkeys(indices.values()))
    attribute = f"partials_{len(variables)}_" + "__".join("_".join(map(str, request)) for request in requests)
    return _Asked(requests, {name: index for name, index in indices.items() if isinstance(name, str)}, attribute)


def _plan_of(requests: tuple[MultiIndex, ...], dimension: int) -> Plan | NestedPlan:
    """The plan for the value and the requested derivatives."""
    symbols = (Polynomial({monomial(enumerate(request)): 1}) for request in requests)
    return make_plan((Polynomial.constant(1), *symbols), dimension)


def _multi_index(name: str | Sequence[str] | MultiIndex, variables: Sequence[str]) -> MultiIndex:
    """A requested derivative as a multi-index.

    Raises:
        ValueError: it names an unknown variable, is empty, or has the wrong length.
    """
    if not isinstance(name, str) and all(isinstance(entry, int) for entry in name):
        index = tuple(int(entry) for entry in name)
        if len(index) != len(variables) or any(entry < 0 for entry in index):
            raise ValueError(f"multi-index {index} doesn't fit {len(variables)} variables {list(variables)}")
    else:
        letters = [name] if name in variables else list(name)
        unknown = [letter for letter in letters if letter not in variables]
        if unknown:
            raise ValueError(f"unknown variable {unknown[0]!r} in {name!r}; the variables are {list(variables)}")
        index = tuple(letters.count(variable) for variable in variables)
    if sum(index) == 0:
        raise ValueError("a partial derivative needs at least one variable; the value itself is always .u")
    return index
