"""What competitors in torch share: the network, the variables' columns, and the step around the quantities."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pinn.competitors import Step
from pinn.problem import Problem

MODULES: Mapping[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "silu": nn.SiLU}


class Sin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def network(problem: Problem) -> nn.Sequential:
    """The case's network with its weights; ``(…, D) -> (…, outputs)``."""
    activation = MODULES.get(problem.case.activation, Sin)
    modules: list[nn.Module] = []
    for weight, bias in zip(problem.weights, problem.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.from_numpy(weight).dtype)
        linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        modules += [linear, activation()]
    return nn.Sequential(*modules[:-1])


def columns(problem: Problem) -> dict[str, Tensor]:
    """The variables by name, if they have names, and the source; each ``(N, 1)``."""
    names, points = problem.case.workload.variables, torch.from_numpy(problem.points)
    variables = {} if isinstance(names, int) else {name: points[:, i : i + 1] for i, name in enumerate(names)}
    return {**variables, "source": torch.from_numpy(problem.source)}


def loss(problem: Problem, quantities: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Tensor:
    """The sum of the mean squares of the residuals."""
    residuals = problem.case.workload.residual(quantities, values, torch)
    return functools.reduce(torch.add, [residual.square().mean() for residual in residuals])


def training_step(problem: Problem, model: nn.Module, quantities: Callable[[], Mapping[str, Tensor]]) -> Step:
    """The step of a competitor that computes the quantities of ``model``, each ``(N, outputs)``."""
    values = columns(problem)
    parameters = list(model.parameters())

    def step() -> tuple[Tensor, tuple[Tensor, ...]]:
        value = loss(problem, quantities(), values)
        return value.detach(), torch.autograd.grad(value, parameters, materialize_grads=True)

    @torch.no_grad()
    def value_step() -> tuple[Tensor, tuple[Tensor, ...]]:
        return loss(problem, quantities(), values), ()

    return step if problem.case.gradient else value_step
