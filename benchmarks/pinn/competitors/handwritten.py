"""Jets written out by hand for one kind of network, in plain torch, under ``torch.compile``.

What a specialist would write: all Taylor coefficients (scaled, f⁽ᵏ⁾/k!) are stacked into one tensor ``(C, N, width)``,
so that a layer is one matrix product; activations follow from the recurrences of their derivatives; the first layer
never sees a coefficient that is zero; of a Laplacian only the sum of second coefficients is propagated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pinn.competitors import Step
from pinn.competitors.torch_network import columns, loss
from pinn.directions import directions
from pinn.problem import Problem

Series = list[Tensor]
Activation = Callable[[Series], Series]


def build(problem: Problem, option: str = "compiled") -> Step:
    values = columns(problem)
    points = torch.from_numpy(problem.points)
    parameters = [torch.from_numpy(array).requires_grad_() for array in problem.parameters]
    plan = directions(problem.case.workload, problem.random)
    orders, summed = plan.orders, plan.summed()
    vectors = torch.from_numpy(plan.vectors).to(points)
    collapsed = summed is not None and max(orders) == 2
    forward = None if summed is None else torch.from_numpy(summed).to(points)
    activation = problem.case.activation

    def value(parameters: Sequence[Tensor], points: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        if collapsed:
            assert forward is not None
            (name,) = plan.reads
            u, second = forward_laplacian(points, forward, weights, biases, SLOPES[activation])
            return loss(problem, {"u": u, name: second}, values)
        u, series = jets(points, vectors, orders, weights, biases, ACTIVATIONS[activation])
        quantities = {"u": u}
        for name, reads in plan.reads.items():
            quantities[name] = sum((factor * math.factorial(k) * series[r][k - 1] for r, k, factor in reads), 0 * u)
        return loss(problem, quantities, values)

    compiled = value if option == "eager" else torch.compile(value, fullgraph=True, dynamic=False)

    def step() -> tuple[Tensor, Sequence[Tensor]]:
        result = compiled(parameters, points, values)
        return result.detach(), torch.autograd.grad(result, parameters, materialize_grads=True)

    @torch.no_grad()
    def value_step() -> tuple[Tensor, Sequence[Tensor]]:
        return compiled(parameters, points, values), ()

    return step if problem.case.gradient else value_step


def jets(
    points: Tensor,
    vectors: Tensor,
    orders: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: Activation,
) -> tuple[Tensor, list[Series]]:
    """The network's value ``(N, outputs)`` and, per direction, its coefficients from order 1 up."""
    primal = torch.addmm(biases[0], points, weights[0].T)
    slopes = vectors @ weights[0].T
    series = [[slope.expand_as(primal)] for slope in slopes]
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        results = [
            activation([primal, *terms, *[torch.zeros_like(primal)] * (order - len(terms))])
            for terms, order in zip(series, orders, strict=True)
        ]
        stacked = torch.stack([results[0][0], *(term for result in results for term in result[1:])])
        product = (stacked.flatten(0, 1) @ weight.T).unflatten(0, stacked.shape[:2])
        primal = product[0] + bias
        ends = [1 + sum(orders[:r]) for r in range(len(orders) + 1)]
        series = [list(product[start:end]) for start, end in itertools.pairwise(ends)]
    return primal, series


def forward_laplacian(
    points: Tensor,
    vectors: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slopes: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """The network's value and the sum of its second derivatives along ``vectors``, each ``(N, outputs)``."""
    primal = torch.addmm(biases[0], points, weights[0].T)
    first = (vectors @ weights[0].T)[:, None, :]
    second = torch.zeros_like(primal)
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        y, slope, bend = slopes(primal)
        second = slope * second + bend * first.square().sum(dim=0)
        stacked = torch.cat([y[None], slope * first, second[None]])
        product = (stacked.flatten(0, 1) @ weight.T).unflatten(0, stacked.shape[:2])
        primal, first, second = product[0] + bias, product[1:-1], product[-1]
    return primal, second


# Activations of a series, from the recurrence of their derivative: k·yₖ = Σ j·xⱼ·sₖ₋ⱼ, with s the series of φ′(x).


def _integrate(x: Series, slope: Series, k: int) -> Tensor:
    """The k-th coefficient of the function whose derivative has the series ``slope``."""
    return sum((j * x[j] * slope[k - j] for j in range(2, k + 1)), x[1] * slope[k - 1]) / k


def _product(a: Series, b: Series, k: int) -> Tensor:
    return sum((a[j] * b[k - j] for j in range(1, k + 1)), a[0] * b[k])


def tanh(x: Series) -> Series:
    y = [torch.tanh(x[0])]
    slope = [1 - y[0].square()]
    for k in range(1, len(x)):
        y.append(_integrate(x, slope, k))
        slope.append(-_product(y, y, k))
    return y


def sin(x: Series) -> Series:
    sine, cosine = [torch.sin(x[0])], [torch.cos(x[0])]
    for k in range(1, len(x)):
        sine.append(_integrate(x, cosine, k))
        cosine.append(-_integrate(x, sine, k))
    return sine


def silu(x: Series) -> Series:
    sigmoid = [torch.sigmoid(x[0])]
    slope = [sigmoid[0] * (1 - sigmoid[0])]
    for k in range(1, len(x)):
        sigmoid.append(_integrate(x, slope, k))
        slope.append(sigmoid[k] - _product(sigmoid, sigmoid, k))
    return [_product(x, sigmoid, k) for k in range(len(x))]


ACTIVATIONS: Mapping[str, Activation] = {"tanh": tanh, "sin": sin, "silu": silu}


# Activations with their first two derivatives.


def tanh_slopes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.tanh(x)
    slope = 1 - y.square()
    return y, slope, -2 * y * slope


def sin_slopes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.sin(x)
    return y, torch.cos(x), -y


def silu_slopes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sigmoid = torch.sigmoid(x)
    slope = sigmoid * (1 - sigmoid)
    return x * sigmoid, sigmoid + x * slope, slope * (2 + x * (1 - 2 * sigmoid))


SLOPES = {"tanh": tanh_slopes, "sin": sin_slopes, "silu": silu_slopes}
