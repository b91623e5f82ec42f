"""Central differences of second order in the case's dtype: how accurate is the cheap way?

The step balances rounding against truncation: ε^(1/(k + 2)) for the k-th derivative along a unit vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pinn.competitors import Step
from pinn.competitors.torch_network import network, training_step
from pinn.directions import directions
from pinn.problem import Problem


def build(problem: Problem) -> Step:
    model, points = network(problem), torch.from_numpy(problem.points)
    plan = directions(problem.case.workload, problem.random)
    vectors = torch.from_numpy(plan.vectors).to(points)
    epsilon = torch.finfo(points.dtype).eps

    def derivative(vector: Tensor, order: int) -> Tensor:
        length = float(vector.norm())
        step = epsilon ** (1 / (order + 2)) / length
        terms = [
            (-1) ** i * math.comb(order, i) * model(points + (order / 2 - i) * step * vector) for i in range(order + 1)
        ]
        return torch.stack(terms).sum(dim=0) / step**order

    def quantities() -> Mapping[str, Tensor]:
        results = {"u": model(points)}
        for name, reads in plan.reads.items():
            results[name] = torch.stack([factor * derivative(vectors[r], k) for r, k, factor in reads]).sum(dim=0)
        return results

    return training_step(problem, model, quantities)
