"""Few directions whose k-th powers span given forms of degree k: real, joint Waring decompositions."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from taylorderiv.planner import binary, lattice, minimal_rank, quadratic
from taylorderiv.planner.forms import TOLERANCE, Direction, FormSpace, rank, residual_norm, space, tidy
from taylorderiv.planner.polynomial import Polynomial

_DENSE_LIMIT = 800
"""Forms of more coefficients than this are decomposed by closed formulas alone."""

_SEARCH_LIMIT = 3e7
"""The numerical search is left out above this many multiplications a step."""

_SQUARED_LAPLACIANS = {8: 45, 9: 60, 10: 76}
"""By dimension, numbers of directions with which Δ² was found; finding out which takes longer than a plan may."""

_TRIES = 6
_KEPT = 4


@functools.lru_cache(maxsize=1024)
def decompose(
    forms: tuple[Polynomial, ...], dimension: int, order: int, existing: tuple[Direction, ...]
) -> tuple[tuple[Direction, ...], ...]:
    """Sets of as few directions as can be found that, together with the existing ones, span the forms.

    Args:
        forms: homogeneous polynomials of degree ``order`` in the variables 0 … ``dimension - 1``.
        dimension: the number d of variables.
        order: the degree k.
        existing: directions whose k-th powers come free.

    Returns:
        Sets of directions to add, of which the smallest are always kept; one empty set if none are needed.
    """
    if dimension == 1:
        return ((),) if existing else (((1,),),)
    if order == 1:
        return (_linear(forms, dimension, existing),)
    if dimension == 2:
        found = binary.decompose_binary(forms, order, existing)
        return tuple(map(tuple, found))
    if order == 2 and len(forms) == 1:
        return tuple(map(tuple, quadratic.decompose_quadratic(forms[0], dimension, existing)))
    taken = set(existing)

    def new(chosen: Sequence[Direction]) -> tuple[Direction, ...]:
        return tuple(sorted(direction for direction in chosen if direction not in taken))

    unique = {new(chosen): None for chosen in lattice.formula_directions(forms, dimension)}
    # Different monomials are independent, so that many directions are needed in any case.
    monomials = not taken and all(len(form.terms) == 1 for form in forms)
    done = monomials and min(map(len, unique)) == len(set(forms))
    if not done and math.comb(dimension + order - 1, order) <= _DENSE_LIMIT:
        unique |= {new(chosen): None for chosen in _dense(forms, dimension, order, existing)}
    return tuple(sorted(unique, key=len)[:_KEPT])


def _linear(forms: Sequence[Polynomial], dimension: int, existing: Sequence[Direction]) -> tuple[Direction, ...]:
    """Degree 1: a form is itself a direction. Coordinates are taken where the forms ask for them."""
    rows = [list(map(float, direction)) for direction in existing]
    added = []
    for form in sorted(forms, key=lambda form: len(form.terms)):
        row = [0.0] * dimension
        for ((variable, _),), value in form.terms.items():
            row[variable] = float(value)
        target = torch.tensor(row, dtype=torch.float64)
        if not rows or residual_norm(torch.tensor(rows, dtype=torch.float64).T, target[:, None])[1] > TOLERANCE:
            rows.append(row)
            added.append(tidy(row))
    return tuple(added)


def _dense(
    forms: Sequence[Polynomial], dimension: int, order: int, existing: Sequence[Direction]
) -> list[list[Direction]]:
    """Candidates that need the forms as vectors: fewer variables, icosahedron, lattice, numerical search."""
    here = space(dimension, order)
    targets = torch.stack([here.vector(form) for form in forms], 1)
    targets = targets / targets.norm(dim=0)
    reduced = _in_essential_variables(forms, targets, here, existing)
    if reduced is not None:
        return reduced
    known = torch.tensor(existing, dtype=torch.float64).reshape(-1, dimension)
    candidates = [
        *_icosahedron(forms, targets, here),
        *lattice.select(here, targets, known, lattice.lattice_pool(dimension, order, forms)),
    ]
    count = _SQUARED_LAPLACIANS.get(dimension, 0)
    if count and not existing and _is_squared_laplacian(forms, order):
        found = minimal_rank.search_directions(here, targets, known, count, _TRIES)
        return candidates if found is None else [*candidates, [tidy(row) for row in found.tolist()]]
    bound = _lower_bound(here, targets, known)
    fewest = min((len(chosen) for chosen in candidates), default=len(here.monomials) + 1)
    independent = rank(targets)
    rows = len(here.monomials) * independent
    while bound < fewest:
        count = (bound + fewest) // 2
        if rows * (count * (dimension + independent)) ** 2 > _SEARCH_LIMIT:
            break
        found = minimal_rank.search_directions(here, targets, known, count, _TRIES)
        if found is None:
            bound = count + 1
        else:
            candidates.append([tidy(row) for row in found.tolist()])
            fewest = count
    return candidates


def _lower_bound(here: FormSpace, targets: Tensor, known: Tensor) -> int:
    """No fewer new directions than this can do: ranks of flattenings, and the number of new dimensions."""
    flat = max(rank(here.flattening(targets, split)) for split in range(1, here.order))
    if not len(known):
        return max(flat, rank(targets))
    powers = here.powers(torch.nn.functional.normalize(known))
    return max(flat - len(known), rank(torch.cat([powers, targets], 1)) - rank(powers), 1)


def _is_squared_laplacian(forms: Sequence[Polynomial], order: int) -> bool:
    """Whether it's the square of a definite operator of order 2: Δ² in other coordinates."""
    root = forms[0].root(2) if len(forms) == 1 and order == 4 else None
    if root is None:
        return False
    values = torch.linalg.eigvalsh(quadratic.matrix_of(root, max(root.variables) + 1))
    return bool(values[0] * values[-1] > 0)


def _in_essential_variables(
    forms: Sequence[Polynomial], targets: Tensor, here: FormSpace, existing: Sequence[Direction]
) -> list[list[Direction]] | None:
    """If the forms depend on fewer variables after a rotation, decompose them in those."""
    left, values, _ = torch.linalg.svd(here.flattening(targets, 1), full_matrices=False)
    count = int((values > 1e-10 * values[0]).sum())
    if count == here.dimension:
        return None
    basis = left[:, :count]  # x -> basis.T @ x are the essential variables
    inside = [
        tidy(row @ basis)
        for row in torch.tensor(existing, dtype=torch.float64).reshape(-1, here.dimension)
        if (basis @ (basis.T @ row) - row).norm() < 1e-12 * row.norm()
    ]
    if count == 1:
        return [[] if inside else [tidy(basis[:, 0].tolist())]]
    there = space(count, here.order)
    # <f, φ(v)> = f(v): the restricted forms are fixed by their values at enough points.
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2 * len(there.monomials), count, generator=generator, dtype=torch.float64)
    values = here.powers(torch.nn.functional.normalize(points) @ basis.T).T @ targets
    columns = there.powers(torch.nn.functional.normalize(points)).T
    restricted = torch.linalg.lstsq(columns, values, driver="gelsd").solution
    polynomials = tuple(
        Polynomial(
            {
                key: float(value * scale)
                for key, value, scale in zip(there.monomials, column, there.scale, strict=True)
                if abs(value) > 1e-14
            }
        )
        for column in restricted.T
    )
    inner = decompose(polynomials, count, here.order, tuple(inside))
    return [
        [tidy((basis @ torch.tensor(direction, dtype=torch.float64)).tolist()) for direction in chosen]
        for chosen in inner
    ]


def _icosahedron(forms: Sequence[Polynomial], targets: Tensor, here: FormSpace) -> list[list[Direction]]:
    """The 6 axes of the icosahedron if they span the forms: the 3-D biharmonic operator is their mean."""
    if here.dimension != 3 or here.order not in (2, 3, 4, 5):
        return []
    golden = (1 + math.sqrt(5)) / 2
    axes = [(0, 1, golden), (0, -1, golden), (1, golden, 0), (-1, golden, 0), (golden, 0, 1), (golden, 0, -1)]
    directions = torch.tensor(axes, dtype=torch.float64)
    chosen = [tidy(row) for row in axes]
    columns = here.powers(torch.nn.functional.normalize(directions))
    return [chosen] if residual_norm(columns, targets)[1] < TOLERANCE else []
