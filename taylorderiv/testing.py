"""Compare Taylor mode with nested automatic differentiation, for a function of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from taylorderiv.api import derivatives

_SHOWN = 10


def nested_derivatives(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    order: int,
    *,
    direction: Tensor | None = None,
    mode: str = "reverse",
) -> tuple[Tensor, ...]:
    """What :func:`taylorderiv.derivatives` computes, by nested differentiation: slow, an oracle for tests.

    Args:
        f: the function.
        x: where.
        order: the highest order. The work grows exponentially with it.
        direction: a tensor like ``x``; ones if left out.
        mode: ``"reverse"`` nests ``torch.autograd.grad``, where a derivative along a direction is the
            gradient of a gradient. ``"forward"`` nests ``torch.func.jvp``: faster at high orders, but some
            ops of PyTorch have no forward mode.
    """
    direction = torch.ones_like(x) if direction is None else direction
    if mode == "forward":
        results = [f(x)]
        for _ in range(order):
            f = _by_jvp(f, direction)
            results.append(f(x))
        return tuple(results)
    x = x if x.requires_grad else x.detach().requires_grad_()
    results = [f(x)]
    for _ in range(order):
        results.append(_by_two_gradients(results[-1], x, direction))
    return tuple(results)


def _by_jvp(g: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.func.jvp(g, (x,), (direction,))[1]


def _by_two_gradients(y: Tensor, x: Tensor, direction: Tensor) -> Tensor:
    """The derivative of ``y``, computed from ``x``, along a direction."""
    if not y.requires_grad:
        return torch.zeros_like(y)
    cotangent = torch.zeros_like(y, requires_grad=True)
    (gradient,) = torch.autograd.grad(y, x, cotangent, create_graph=True, materialize_grads=True)
    if not gradient.requires_grad:
        return torch.zeros_like(y)
    (result,) = torch.autograd.grad(gradient, cotangent, direction, create_graph=True, materialize_grads=True)
    return result


def check(
    f: Callable[[Any], Any],
    x: Tensor,
    order: int,
    *,
    direction: Tensor | None = None,
    parameters: Iterable[Tensor] | None = None,
    equivalent: Callable[[Tensor], Tensor] | None = None,
    mode: str = "reverse",
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
) -> None:
    """Check the derivatives of a function, and their gradients, against nested automatic differentiation.

    Compared are the derivatives of orders 0 … ``order``, and the gradients, with respect to ``x`` and the
    parameters, of a fixed random combination of them. An error is relative to the largest entry of its
    tensor.

    Args:
        f: the function or module.
        x: where; float64 gives a sharp check.
        order: the highest order.
        direction: as for :func:`taylorderiv.derivatives`.
        parameters: tensors that require gradients; those of ``f`` if it is a module.
        equivalent: a function equal to ``f`` that is nested in its place, where PyTorch's own high
            derivatives of ``f`` are missing or wrong (those of layer_norm are, from the third on).
        mode: of the nested differentiation, as for :func:`nested_derivatives`.
        rtol: the relative error allowed; 1e-9 in float64, 1e-4 in float32, 1e-2 in 16-bit floats.
        atol: the absolute error allowed; ``rtol`` times 1e-3.
        seed: of the random combination.

    Raises:
        AssertionError: they disagree; the message is a table of the worst entries.
    """
    if parameters is None:
        parameters = f.parameters() if isinstance(f, torch.nn.Module) else ()
    parameters = [p for p in parameters if p.requires_grad]
    if rtol is None:
        rtol = {torch.float64: 1e-9, torch.complex128: 1e-9, torch.float32: 1e-4}.get(x.dtype, 1e-2)
    atol = 1e-3 * rtol if atol is None else atol
    x = x.detach().requires_grad_()

    got = derivatives(f, x, order, direction=direction)
    expected = nested_derivatives(equivalent or f, x, order, direction=direction, mode=mode)
    rows = []
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        rows += _disagreements(f"derivative {k}", a, b, rtol, atol)

    inputs = [x, *parameters]
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.rand(y.shape, generator=generator, dtype=torch.float64).to(y) / _magnitude(y) for y in expected]
    names = ["gradient of x", *[f"gradient of parameter {i}" for i in range(len(parameters))]]
    gradients = [_gradients(values, weights, inputs) for values in (got, expected)]
    for name, a, b in zip(names, *gradients, strict=True):
        rows += _disagreements(name, a, b, rtol, atol)
    if rows:
        rows.sort(key=lambda row: -row[0])
        raise AssertionError(_table(rows, rtol))


def _magnitude(y: Tensor) -> float:
    return max(1.0, float(y.detach().abs().max())) if y.numel() else 1.0


def _gradients(values: Iterable[Tensor], weights: Iterable[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The gradients of the weighted sum of all values."""
    total = sum(((y * weight).sum() for y, weight in zip(values, weights, strict=True)), torch.zeros(()))
    if not total.requires_grad:
        return [torch.zeros_like(p) for p in inputs]
    total = total.real if total.is_complex() else total
    gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, inputs, strict=True)]


Row = tuple[float, str, tuple[int, ...], Any, Any]


def _disagreements(name: str, got: Tensor, expected: Tensor, rtol: float, atol: float) -> list[Row]:
    """A row for each entry that is off, the worst first."""
    got, expected = got.detach(), expected.detach()
    if got.shape != expected.shape:
        return [(float("inf"), name, (), f"shape {tuple(got.shape)}", f"shape {tuple(expected.shape)}")]
    if expected.numel() == 0:
        return []
    finite = expected.abs()[expected.isfinite()]
    scale = max(float(finite.max()) if finite.numel() else 0.0, atol / rtol)
    errors = (got - expected).abs() / scale
    agree = (errors <= rtol) | (got == expected) | (got.isnan() & expected.isnan())
    errors = torch.where(agree, 0.0, torch.where(errors.isnan(), float("inf"), errors)).flatten()
    worst = errors.argsort(descending=True)[:_SHOWN]
    return [
        (
            float(errors[i]),
            name,
            tuple(int(j) for j in torch.unravel_index(i, got.shape)),
            got.flatten()[i].item(),
            expected.flatten()[i].item(),
        )
        for i in worst
        if errors[i] > 0
    ]


def _table(rows: list[Row], rtol: float) -> str:
    lines = [
        f"Taylor mode and nested differentiation disagree by more than {rtol:g} (relative); worst entries:",
        f"{'what':<24} {'index':<16} {'Taylor mode':>24} {'nested':>24} {'error':>9}",
    ]
    for error, name, index, got, expected in rows[:_SHOWN]:
        lines.append(f"{name:<24} {index!s:<16} {got!s:>24} {expected!s:>24} {error:9.1e}")
    return "\n".join(lines)
