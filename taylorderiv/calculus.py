"""Gradients, Jacobians, Hessians, divergence, curl: derivatives of functions of several variables, by name.

All of them act on points ``x`` of shape ``(…, D)``, the variables along the last axis, and on functions
that treat each point by itself: ``(N, D)`` for a network on a batch, ``(D,)`` for a function of one point
under ``torch.vmap``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from taylorderiv.evaluation import check_output, check_points, evaluate, plan_once, plans
from taylorderiv.jet import Jet, check_like, check_order, check_variable, nested_level
from taylorderiv.planner import NestedPlan, Plan, Polynomial, make_plan

Function = Callable[[Any], Any]


def _all_partials(dimension: int, order: int) -> Plan | NestedPlan:
    """The plan for all partial derivatives of an order, in lexicographic order."""
    factors = itertools.combinations_with_replacement(map(Polynomial.variable, range(dimension)), order)
    return make_plan(tuple(math.prod(each, start=Polynomial.constant(1)) for each in factors), dimension)


def jacobian(f: Function, x: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """The first derivatives of every output by every variable.

    Args:
        f: a function or module that acts on each point by itself.
        x: points ``(…, D)``.
        chunk_size: how many directions to propagate at once; by default, as many as fit into memory.

    Returns:
        ``(*f(x).shape, D)``.

    Raises:
        TypeError: ``x`` isn't a floating-point tensor, or ``f`` doesn't return one.
        ValueError: ``x`` has no variables, or ``chunk_size`` isn't positive.

    Example:
        >>> import torch
        >>> from taylorderiv import jacobian
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> jacobian(lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 1] ** 2], -1), x)
        tensor([[[2., 1.],
                 [0., 4.]]])
    """
    dimension = check_points(x)
    plan = plan_once(plans, f"jacobian_{dimension}", _all_partials, dimension, 1)
    return evaluate(plan, f, x, chunk_size=chunk_size).movedim(0, -1)


def gradient(f: Function, x: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """The gradient of a function with one output per point.

    Args:
        f: a function or module that acts on each point by itself, with an output ``(…)`` or ``(…, 1)``.
        x: points ``(…, D)``.
        chunk_size: how many directions to propagate at once; by default, as many as fit into memory.

    Returns:
        A tensor shaped like ``x``.

    Raises:
        TypeError: ``x`` isn't a floating-point tensor, or ``f`` doesn't return one.
        ValueError: ``f`` has several outputs per point, ``x`` has no variables, or ``chunk_size`` isn't
            positive.

    Example:
        >>> import torch
        >>> from taylorderiv import gradient
        >>> gradient(lambda x: x[:, 0] * x[:, 1] ** 2, torch.tensor([[1.0, 2.0]]))
        tensor([[4., 4.]])
    """
    result = jacobian(f, x, chunk_size=chunk_size)
    if result.shape[:-1] not in (x.shape[:-1], (*x.shape[:-1], 1)):
        raise ValueError(
            f"gradient needs one output per point, got f(x) of shape {tuple(result.shape[:-1])} for x of "
            f"shape {tuple(x.shape)}: use jacobian"
        )
    return result.reshape(x.shape)


def hessian(f: Function, x: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """The second derivatives of every output by every pair of variables, ``D (D + 1) + 1`` coefficients.

    Args:
        f: a function or module that acts on each point by itself.
        x: points ``(…, D)``.
        chunk_size: how many directions to propagate at once; by default, as many as fit into memory.

    Returns:
        ``(*f(x).shape, D, D)``, symmetric.

    Raises:
        TypeError: ``x`` isn't a floating-point tensor, or ``f`` doesn't return one.
        ValueError: ``x`` has no variables, or ``chunk_size`` isn't positive.

    Example:
        >>> import torch
        >>> from taylorderiv import hessian
        >>> hessian(lambda x: x[:, 0] * x[:, 1] ** 2, torch.tensor([[1.0, 2.0]]))
        tensor([[[0., 4.],
                 [4., 2.]]])
    """
    dimension = check_points(x)
    plan = plan_once(plans, f"hessian_{dimension}", _all_partials, dimension, 2)
    values = evaluate(plan, f, x, chunk_size=chunk_size)
    rows, columns = torch.triu_indices(dimension, dimension, device=x.device)
    place = torch.zeros(dimension, dimension, dtype=torch.long, device=x.device)
    place[rows, columns] = place[columns, rows] = torch.arange(len(rows), device=x.device)
    return values[place].movedim((0, 1), (-2, -1))


def hvp(f: Function, x: Tensor, v: Tensor) -> Tensor:
    """The Hessian of a function with one output per point, times a vector, without the Hessian.

    The gradient, in reverse mode, of the derivative along ``v``.

    Args:
        f: a function or module that acts on each point by itself, with an output ``(…)`` or ``(…, 1)``.
        x: points ``(…, D)``.
        v: a vector ``(D,)``, or one per point, shaped like ``x``.

    Returns:
        A tensor shaped like ``x``.

    Raises:
        TypeError: ``x`` or ``v`` isn't a floating-point tensor, or ``f`` doesn't return one.
        ValueError: ``f`` has several outputs per point, or ``v`` doesn't fit ``x``.

    Example:
        >>> import torch
        >>> from taylorderiv import hvp
        >>> hvp(lambda x: x[:, 0] * x[:, 1] ** 2, torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 0.0]))
        tensor([[0., 4.]])
    """
    v = _along(v, x)

    def slope(z: Tensor) -> Tensor:
        y = directional(f, z, v, 1)
        if y.numel() != z.numel() // z.shape[-1]:
            raise ValueError(
                f"hvp needs one output per point, got f(x) of shape {tuple(y.shape)} for x of shape {tuple(x.shape)}"
            )
        return y.sum()

    return torch.func.grad(slope)(x)


def directional(f: Function, x: Tensor, v: Tensor, order: int = 1) -> Any:
    """The derivative of an order along a direction: ``d^k/dε^k f(x + ε v)`` at ε = 0.

    Args:
        f: a function or module that acts on each point by itself.
        x: points ``(…, D)``.
        v: a direction ``(D,)``, or one per point, shaped like ``x``.
        order: the order k, at least 0.

    Returns:
        A tensor shaped like ``f(x)``.

    Raises:
        TypeError: ``x`` or ``v`` isn't a floating-point tensor, ``order`` isn't an int, or ``f`` doesn't
            return a tensor.
        ValueError: ``order`` is negative, or ``v`` doesn't fit ``x``.

    Example:
        >>> import torch
        >>> from taylorderiv import directional
        >>> x, v = torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 1.0])
        >>> directional(lambda x: x[:, 0] * x[:, 1] ** 2, x, v, order=3)
        tensor([6.])
    """
    check_points(x)
    check_order(order)
    v = _along(v, x)
    with nested_level() as level:
        y: Any = check_output(f(Jet.variable(x, order, [v], level=level)))
        if getattr(y, "level", None) == level:
            return y.derivative(order)
    return y if order == 0 else torch.zeros_like(y)  # It doesn't depend on x.


def divergence(f: Function, x: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """The divergence of a vector field: ``sum_i ∂f_i/∂x_i``.

    Args:
        f: a function or module that acts on each point by itself, with an output ``(…, D)``.
        x: points ``(…, D)``.
        chunk_size: how many directions to propagate at once; by default, as many as fit into memory.

    Returns:
        A tensor of shape ``f(x).shape[:-1]``.

    Raises:
        TypeError: ``x`` isn't a floating-point tensor, or ``f`` doesn't return one.
        ValueError: ``f`` doesn't have D outputs per point, or ``chunk_size`` isn't positive.

    Example:
        >>> import torch
        >>> from taylorderiv import divergence
        >>> divergence(lambda x: x**2, torch.tensor([[1.0, 2.0]]))
        tensor([6.])
    """
    values = _vector_field(f, x, "divergence", chunk_size)
    return values.diagonal(dim1=-2, dim2=-1).sum(-1)


def curl(f: Function, x: Tensor) -> Tensor:
    """The curl of a vector field in three dimensions.

    Args:
        f: a function or module that acts on each point by itself, with an output ``(…, 3)``.
        x: points ``(…, 3)``.

    Returns:
        A tensor shaped like ``f(x)``.

    Raises:
        TypeError: ``x`` isn't a floating-point tensor, or ``f`` doesn't return one.
        ValueError: there aren't three variables and three outputs.

    Example:
        >>> import torch
        >>> from taylorderiv import curl
        >>> curl(lambda x: x[:, [2, 0, 1]], torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 1., 1.]])
    """
    check_points(x, 3)
    values = _vector_field(f, x, "curl", None)
    first, second = [1, 2, 0], [2, 0, 1]
    return values[..., second, first] - values[..., first, second]


def _vector_field(f: Function, x: Tensor, name: str, chunk_size: int | None) -> Tensor:
    values = jacobian(f, x, chunk_size=chunk_size)
    if values.ndim < 2 or values.shape[-2] != x.shape[-1]:
        raise ValueError(
            f"{name} needs as many outputs as variables along the last axis, got f(x) of shape "
            f"{tuple(values.shape[:-1])} for x of shape {tuple(x.shape)}"
        )
    return values


def _along(v: Any, x: Tensor) -> Tensor:
    """A direction for each point.

    Raises:
        TypeError, ValueError: ``v`` isn't a tensor of the dtype and device of ``x``, and of shape ``(D,)``
            or its own.
    """
    check_variable(v, "v")
    if v.shape == x.shape[-1:]:
        v = v.expand(x.shape)
    check_like(v, x, "v")
    return v
