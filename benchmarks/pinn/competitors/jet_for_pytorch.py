"""jet-for-pytorch, in standard and in collapsed mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jet import jet  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch.func import vmap

from pinn.competitors import Step
from pinn.competitors.torch_network import network, training_step
from pinn.directions import directions
from pinn.problem import Problem


def build(problem: Problem, option: str) -> Step:
    model, points = network(problem), torch.from_numpy(problem.points)
    plan = directions(problem.case.workload, problem.random)
    vectors = torch.from_numpy(plan.vectors).to(points)
    summed = plan.summed()
    many = None if summed is None else torch.from_numpy(summed).to(points)
    zero = torch.zeros_like(points)
    collapsed = option == "collapsed"
    propagate = jet(model, (points,), collapsed=collapsed)

    def along(vector: Tensor, order: int) -> tuple[Tensor, ...]:
        return propagate((points, vector.expand_as(points), *[zero] * (order - 1)))

    def quantities() -> Mapping[str, Tensor]:
        if many is not None and (collapsed or len(many) > 4):
            (name,) = plan.reads
            order = plan.orders[0]
            if collapsed:
                rows = many[:, None, :].expand(-1, *points.shape)
                between = [torch.zeros_like(rows)] * (order - 2)
                series = propagate((points, rows, *between, zero))
                return {"u": series[0], name: series[-1]}
            dims: Any = (None, *[0] * order)
            series = vmap(lambda v: along(v, order), out_dims=dims)(many)
            return {"u": series[0], name: series[-1].sum(dim=0)}
        results = [along(vector, order) for vector, order in zip(vectors, plan.orders, strict=True)]
        read = {
            name: torch.stack([factor * results[r][k] for r, k, factor in reads]).sum(dim=0)
            for name, reads in plan.reads.items()
        }
        return {"u": results[0][0], **read}

    return training_step(problem, model, quantities)
