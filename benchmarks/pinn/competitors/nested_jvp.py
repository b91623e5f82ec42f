"""Nested ``torch.func.jvp``: forward mode over forward mode; the parameters' gradient is reverse mode over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap

from pinn.competitors import Step
from pinn.competitors.torch_network import network, training_step
from pinn.directions import directions
from pinn.problem import Problem


def build(problem: Problem) -> Step:
    workload = problem.case.workload
    model, points = network(problem), torch.from_numpy(problem.points)
    plan = directions(workload, problem.random)
    vectors = torch.from_numpy(plan.vectors).to(points)
    summed = plan.summed()

    def quantities() -> Mapping[str, Tensor]:
        if summed is not None and len(summed) > 4:
            (name,) = plan.reads
            dims: Any = (None, 0, 0)
            along = vmap(lambda v: tower(model, points, v, 2), out_dims=dims)
            u, _, second = along(torch.from_numpy(summed).to(points))
            return {"u": u, name: second.sum(dim=0)}
        towers = [tower(model, points, v, order) for v, order in zip(vectors, plan.orders, strict=True)]
        results = {"u": towers[0][0]}
        for name, reads in plan.reads.items():
            results[name] = torch.stack([factor * towers[r][k] for r, k, factor in reads]).sum(dim=0)
        return results

    return training_step(problem, model, quantities)


def tower(f: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, order: int) -> Sequence[Tensor]:
    """The derivatives of f at x along a direction, from order 0 up."""

    def derivatives(x: Tensor, order: int) -> tuple[Tensor, ...]:
        if order == 0:
            return (f(x),)
        values, slopes, *_ = jvp(lambda z: derivatives(z, order - 1), (x,), (direction.expand_as(x),))
        return (*values, slopes[-1])

    return derivatives(x, order)
