"""Nested ``torch.autograd.grad``, as PINN tutorials do it; common prefixes of derivatives are computed once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pinn.competitors import Step
from pinn.competitors.torch_network import network, training_step
from pinn.problem import Problem


def build(problem: Problem) -> Step:
    workload = problem.case.workload
    model = network(problem)
    points = torch.from_numpy(problem.points)
    random = None if problem.random is None else torch.from_numpy(problem.random)

    @torch.enable_grad()
    def quantities() -> Mapping[str, Tensor]:
        x = points.detach().requires_grad_()
        u = model(x)
        results = {"u": u}
        if workload.partials:
            outputs = [
                _partials(u[:, i], x, str(workload.variables), _needed(problem, i)) for i in range(workload.outputs)
            ]
            for name in workload.partials:
                results[name] = torch.stack([output[name] for output in outputs if name in output], dim=1)
        for name in workload.operators:
            if name == "estimate":
                assert random is not None
                results[name] = _mean_along(u, x, random)
            else:
                results[name] = _laplacian(u, x)
                if name == "bilaplacian":
                    results[name] = _laplacian(results[name], x)
        return results

    return training_step(problem, model, quantities)


def _needed(problem: Problem, output: int) -> list[str]:
    """The partial derivatives that a residual reads of an output."""
    workload = problem.case.workload
    return [name for name in workload.partials if output < workload.leading.get(name, workload.outputs)]


def _gradient(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def _partials(u: Tensor, x: Tensor, variables: str, names: list[str]) -> dict[str, Tensor]:
    """Partial derivatives ``(N,)`` of one output; those that differ in the last letter share a gradient."""
    values = {"": u}
    gradients: dict[str, Tensor] = {}

    def value(name: str) -> Tensor:
        if name not in values:
            before = name[:-1]
            if before not in gradients:
                gradients[before] = _gradient(value(before), x)
            values[name] = gradients[before][:, variables.index(name[-1])]
        return values[name]

    return {name: value(name) for name in names}


def _laplacian(u: Tensor, x: Tensor) -> Tensor:
    """The sum of the second derivatives, ``(N, 1)``, one variable at a time."""
    gradient = _gradient(u, x)
    seconds = [_gradient(gradient[:, i], x)[:, i] for i in range(x.shape[1])]
    return torch.stack(seconds).sum(dim=0)[:, None]


def _mean_along(u: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """The mean of the second derivatives along directions, ``(N, 1)``, as Hessian-vector products."""
    gradient = _gradient(u, x)
    seconds = [_gradient(gradient @ direction, x) @ direction for direction in directions]
    return torch.stack(seconds).mean(dim=0)[:, None]
