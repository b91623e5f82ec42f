"""What each case should give: nested ``autograd.grad`` in float64, a few points at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from pinn.cases import Case
from pinn.competitors import nested_autograd
from pinn.competitors.taylorderiv_jets import drawn_directions
from pinn.problem import Problem, make_problem

NUMBERS_AT_ONCE = 2**20  # numbers in one hidden layer's values of one derivative: bounds the memory


def solved(case: Case) -> Problem:
    """The problem of a case with its loss and gradient."""
    problem = make_problem(case)
    if case.workload.samples:
        problem.random = drawn_directions(problem)
    exact = [array.astype("float64") for array in (*problem.parameters, problem.points, problem.source)]
    *parameters, points, source = exact
    count = 3 ** min(case.workload.order, 7) * len(case.workload.quantities) * max(case.hidden)
    size = max(NUMBERS_AT_ONCE // count, 16)
    loss, gradient = 0.0, 0.0
    for start in range(0, case.batch, size):
        part = slice(start, min(start + size, case.batch))
        share = (part.stop - part.start) / case.batch
        chunk = Problem(
            dataclasses.replace(case, batch=part.stop - part.start, dtype="float64", gradient=True),
            parameters[::2],
            parameters[1::2],
            points[part],
            source[part],
            None if problem.random is None else problem.random.astype("float64"),
        )
        part_loss, part_gradient = nested_autograd.build(chunk)()
        loss = loss + share * float(part_loss)
        gradient = gradient + share * torch.cat([g.flatten() for g in part_gradient])
    problem.loss, problem.gradient = loss, np.asarray(gradient)
    return problem
