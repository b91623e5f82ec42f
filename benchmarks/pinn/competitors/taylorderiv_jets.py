"""taylorderiv, by its public interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import taylorderiv as td
from pinn.competitors import Step
from pinn.competitors.torch_network import network, training_step
from pinn.problem import SEED, Problem

OPERATORS = {"laplacian": td.laplacian, "bilaplacian": td.bilaplacian}


def build(problem: Problem, option: str = "collapsed") -> Step:
    if option == "float32":
        problem = problem.astype(option)
    workload = problem.case.workload
    model, points = network(problem), torch.from_numpy(problem.points)
    names = _second_derivatives(workload.dimension) if option == "uncollapsed" else workload.partials
    variables = None if isinstance(workload.variables, int) else workload.variables

    def quantities() -> Mapping[str, Tensor]:
        results: dict[str, Tensor] = {}
        if names:
            partials = td.partials(model, points, names, variables)
            if option == "uncollapsed":
                return {"laplacian": torch.stack([partials[name] for name in names]).sum(dim=0)}
            results = {"u": partials.u, **{name: partials[name] for name in workload.partials}}
        for name in workload.operators:
            if name == "estimate":
                results[name], _, results["u"] = _estimate(model, points, workload.samples)
            else:
                results[name] = OPERATORS[name](model, points)
        return results

    return training_step(problem, model, quantities)


def _second_derivatives(dimension: int) -> list[tuple[int, ...]]:
    return [tuple(row) for row in (2 * np.eye(dimension, dtype=int)).tolist()]


def _estimate(f: Any, points: Tensor, samples: int) -> td.Estimate:
    """An estimate of the Laplacian from the same directions each time."""
    generator = torch.Generator().manual_seed(SEED)
    return td.estimate(td.laplacian, f, points, samples, generator, standard_error=False)


def drawn_directions(problem: Problem) -> np.ndarray:
    """The directions ``(samples, D)`` that `_estimate` draws: the first coefficients of the jet it passes."""
    seen: list[Tensor] = []

    def f(x: Any) -> Any:
        seen.append(x.coefficients[1:-1, 0])
        return x.sum(dim=-1)

    _estimate(f, torch.from_numpy(problem.points[:1]), problem.case.workload.samples)
    (drawn,) = seen
    assert drawn.abs().eq(1).all()
    return drawn.numpy()


def coefficients(problem: Problem) -> int:
    """C, the Taylor coefficients that each point is propagated with."""
    workload = problem.case.workload
    if workload.partials:
        return td.plan(["u", *workload.partials], variables=str(workload.variables)).size
    if workload.samples:
        return 2 + workload.samples
    (name,) = workload.operators
    return OPERATORS[name].plan(workload.dimension).size
