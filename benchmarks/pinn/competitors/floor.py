"""The floor: the matrix products of a training step and nothing else.

Per layer, over the C·N rows of all Taylor coefficients: forward, gradient for the weight, gradient for the input;
outputs are allocated beforehand. The first layer has N + R rows only, since its directions are those of all points,
and needs no gradient for its input. C is that of taylorderiv's plan.
"""

from __future__ import annotations

import torch

from pinn.competitors import Step
from pinn.competitors.taylorderiv_jets import coefficients
from pinn.directions import directions
from pinn.problem import Problem


def build(problem: Problem) -> Step:
    points, all_rows = problem.case.batch, coefficients(problem) * problem.case.batch
    shared = len(directions(problem.case.workload, problem.random).orders)
    weights = [torch.from_numpy(weight) for weight in problem.weights]
    rows = [points + shared, *[all_rows] * (len(weights) - 1)]
    inputs = [torch.rand(n, weight.shape[1], dtype=weight.dtype) for n, weight in zip(rows, weights, strict=True)]
    outputs = [torch.rand(n, weight.shape[0], dtype=weight.dtype) for n, weight in zip(rows, weights, strict=True)]
    gradients = [torch.empty_like(weight) for weight in weights]
    input_gradients = [torch.empty_like(x) for x in inputs]

    def forward() -> None:
        for weight, x, y in zip(weights, inputs, outputs, strict=True):
            torch.mm(x, weight.T, out=y)

    def backward() -> None:
        for i, weight in reversed(list(enumerate(weights))):
            torch.mm(outputs[i].T, inputs[i], out=gradients[i])
            if i:
                torch.mm(outputs[i], weight, out=input_gradients[i])

    def step() -> tuple[float, tuple[()]]:
        forward()
        if problem.case.gradient:
            backward()
        return 0.0, ()

    return step
