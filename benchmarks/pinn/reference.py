"""What each case should give, in float64, a few points at a time.

Up to order 4 by nested ``autograd.grad``. Above, that would take minutes: there it's by jets written out in plain
torch, after they have agreed with nested ``autograd.grad`` at some of the points.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from pinn.cases import Case
from pinn.competitors import handwritten, nested_autograd
from pinn.competitors.taylorderiv_jets import drawn_directions
from pinn.problem import Problem, make_problem

HIGHEST_NESTED = 4
COMPARED_POINTS = 16
COMPARED_TOLERANCE = 1e-11
NUMBERS_AT_ONCE = 2**24  # in one layer's values of all derivatives: bounds the memory


def solved(case: Case) -> Problem:
    """The problem of a case with its loss and gradient.

    Raises:
        ArithmeticError: the two ways to compute them disagree.
    """
    problem = make_problem(case)
    if case.workload.samples:
        problem.random = drawn_directions(problem)
    order = case.workload.order
    method = "nested" if order <= HIGHEST_NESTED else "jets"
    if method == "jets":
        some = slice(COMPARED_POINTS)
        jets, nested = (np.append(*_evaluated(problem, some, way)) for way in ("jets", "nested"))
        if not np.linalg.norm(jets - nested) <= COMPARED_TOLERANCE * np.linalg.norm(nested):
            raise ArithmeticError("hand-written jets and nested autograd.grad disagree: there's no reference")
    size = max(NUMBERS_AT_ONCE // (3 ** min(order, 5) * len(case.workload.quantities) * max(case.hidden)), 1)
    loss, gradient = 0.0, np.zeros(sum(array.size for array in problem.parameters))
    for start in range(0, case.batch, size):
        part = slice(start, min(start + size, case.batch))
        share = (part.stop - part.start) / case.batch
        part_gradient, part_loss = _evaluated(problem, part, method)
        loss += share * part_loss
        gradient += share * part_gradient
    problem.loss, problem.gradient = loss, gradient
    return problem


def _evaluated(problem: Problem, part: slice, method: str) -> tuple[np.ndarray, float]:
    """The gradient, flattened, and the loss at some of the points."""
    parameters = [array.astype("float64") for array in problem.parameters]
    points = problem.points[part].astype("float64")
    chunk = Problem(
        dataclasses.replace(problem.case, batch=len(points), dtype="float64", gradient=True),
        parameters[::2],
        parameters[1::2],
        points,
        problem.source[part].astype("float64"),
        None if problem.random is None else problem.random.astype("float64"),
    )
    step = nested_autograd.build(chunk) if method == "nested" else handwritten.build(chunk, "eager")
    loss, gradient = step()
    return torch.cat([entry.flatten() for entry in gradient]).numpy(), float(loss)
