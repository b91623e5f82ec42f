"""Jets of unary ops computed in other ways than by Taylor recurrences, and random jets to try them on."""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from taylorderiv.layout import Layout

# What kernels are written for: lists of signed orders, negative where a direction is collapsed.
_FIXED = (Path(__file__).parents[1] / "csrc" / "fixed_layouts.h").read_text()
FIXED_LAYOUTS, CPU_FIXED_LAYOUTS = (
    re.findall(r"X\(([-\d, ]+)\)", re.findall(rf"define {name}\(X\)((?:.*\\\n)*.*)", _FIXED)[0])
    for name in ("TD_FIXED_LAYOUTS", "TD_CPU_FIXED_LAYOUTS")
)
CPU_FIXED_LAYOUTS += FIXED_LAYOUTS
FIXED_OPS: list[str] = re.findall(r"X\(([A-Z]\w+)\)", _FIXED)


def fixed_layout(signed_orders: str) -> Layout:
    """One of those that kernels are written for."""
    orders = [int(order) for order in signed_orders.split(",")]
    weights = tuple((1.0 - 0.75 * r) * (order < 0) for r, order in enumerate(orders))
    return Layout(tuple(map(abs, orders)), weights if any(weights) else None)


LAYOUTS: dict[str, Layout] = {
    "order 0": Layout(()),
    "order 1": Layout((1,)),
    "order 2": Layout((2,)),
    "order 3": Layout((3,)),
    "order 4": Layout((4,)),
    "order 5": Layout((5,)),
    "order 6": Layout((6,)),
    "several directions": Layout((6, 1, 3)),
    "collapsed": Layout((6, 6, 6), (0.5, 2.0, -1.5)),
    "partly collapsed": Layout((3, 4, 4), (0.0, -0.7, 1.0)),
    "collapsed at order 1": Layout((1, 1, 2), (1.5, -1.0, 0.0)),
    "collapsed alone": Layout((2,), (-2.0,)),
}


def random_curves(primal: Tensor, directions: int, order: int) -> Tensor:
    """Random coefficients ``(directions, order, N)`` of orders 1, 2, … of curves through ``primal (N,)``."""
    return torch.rand(directions, order, *primal.shape, dtype=primal.dtype) - 0.3


def pack(layout: Layout, primal: Tensor, curves: Tensor) -> Tensor:
    """The coefficients ``(C, N)`` of the jet of such curves, cut to the layout."""
    rows = [primal]
    for r in range(layout.directions):
        rows += curves[r, : layout.stored(r)]
    if layout.weights is not None:
        top = layout.collapsed_order - 1
        rows.append(sum_of(layout.weights[r] * curves[r, top] for r in layout.collapsed_directions))
    return torch.stack(rows)


def nested_along(f: Callable[[Tensor], Tensor], primal: Tensor, curves: Tensor) -> tuple[Tensor, Tensor]:
    """``f`` along curves, by nested autograd: its value ``(N,)`` and coefficients ``(directions, order, N)``.

    Differentiable with respect to ``primal`` and ``curves``.
    """
    order = curves.shape[1]
    t = torch.zeros_like(curves[:, 0]).requires_grad_()
    x = torch.zeros_like(t)
    for k in range(order, 0, -1):
        x = (x + curves[:, k - 1]) * t
    y = f(x + primal)
    coefficients = []
    for k in range(1, order + 1):
        # A derivative without a graph is constant: so is the one before.
        y = torch.autograd.grad(y.sum(), t, create_graph=True)[0] if y.requires_grad else torch.zeros_like(t)
        coefficients.append(y / math.factorial(k))
    return f(primal), torch.stack(coefficients, dim=1)


def compose(taylor: Tensor, center: Tensor, coefficients: Tensor, layout: Layout) -> Tensor:
    """The jet of a polynomial of a jet, by Horner's rule.

    Args:
        taylor: ``(J + 1, N)``, the polynomial's coefficients in powers of ``x - center``. With the Taylor
            coefficients of a function to order ``J``, and ``center`` the primal, this is the function's jet;
            up to ``J - layout.order`` derivatives with respect to ``coefficients`` are right as well.
        center: ``(N,)``.
        coefficients: ``(C, N)``.
        layout: that of ``coefficients``.
    """
    shift, zero = coefficients[0] - center, torch.zeros_like(center)
    rows, tops = [sum_of(c * shift**j for j, c in enumerate(taylor))], []
    weights = layout.weights or (0.0,) * layout.directions
    for r, order in enumerate(layout.orders):
        x = [shift, *(coefficients[layout.index(k, r)] for k in range(1, layout.stored(r) + 1))]
        if weights[r]:  # The result is linear in the collapsed coefficient: one direction carries it.
            x.append(zero if tops else coefficients[-1] / weights[r])
        y = [taylor[-1], *[zero] * order]
        for c in reversed(taylor[:-1].unbind()):
            y = [sum_of(x[j] * y[k - j] for j in range(k + 1)) for k in range(order + 1)]
            y[0] = y[0] + c
        rows += y[1 : layout.stored(r) + 1]
        if weights[r]:
            tops.append(weights[r] * y[order])
    return torch.stack([*rows, sum_of(tops)] if tops else rows)


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, terms)
