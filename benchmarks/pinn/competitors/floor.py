"""The floor: the matrix products of a training step and nothing else.

Per layer, over the C·N rows of all Taylor coefficients: forward, gradient for the weight, gradient for the input
(which the first layer doesn't need); outputs are allocated beforehand. C is that of taylorderiv's plan.
"""

from __future__ import annotations

import torch

from pinn.competitors import Step
from pinn.competitors.taylorderiv_jets import coefficients
from pinn.problem import Problem


def build(problem: Problem) -> Step:
    rows = coefficients(problem) * problem.case.batch
    weights = [torch.from_numpy(weight) for weight in problem.weights]
    widths = [weights[0].shape[1], *(len(weight) for weight in weights)]
    values = [torch.rand(rows, width, dtype=weights[0].dtype) for width in widths]
    if not problem.case.gradient:

        def forward() -> tuple[float, tuple[()]]:
            for weight, x, y in zip(weights, values, values[1:], strict=False):
                torch.mm(x, weight.T, out=y)
            return 0.0, ()

        return forward
    outputs = [torch.empty_like(value) for value in values]
    gradients = [torch.empty_like(weight) for weight in weights]
    input_gradients = [torch.empty_like(value) for value in values]

    def step() -> tuple[float, tuple[()]]:
        for i, weight in enumerate(weights):
            torch.mm(values[i], weight.T, out=outputs[i + 1])
        for i, weight in reversed(list(enumerate(weights))):
            torch.mm(values[i + 1].T, values[i], out=gradients[i])
            if i:
                torch.mm(values[i + 1], weight, out=input_gradients[i])
        return 0.0, ()

    return step
