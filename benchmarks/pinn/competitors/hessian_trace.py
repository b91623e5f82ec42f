"""The trace of ``torch.func.hessian``, vmapped over the points."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import hessian, vmap

from pinn.competitors import Step
from pinn.competitors.torch_network import network, training_step
from pinn.problem import Problem


def build(problem: Problem) -> Step:
    model, points = network(problem), torch.from_numpy(problem.points)

    def laplacian(x: Tensor) -> Tensor:
        return hessian(model)(x).diagonal(dim1=-2, dim2=-1).sum(dim=-1)

    def quantities() -> Mapping[str, Tensor]:
        return {"laplacian": vmap(laplacian)(points)}

    return training_step(problem, model, quantities)
