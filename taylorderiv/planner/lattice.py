"""Directions with small integer components: closed formulas, and a sparse selection from all of a box."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from taylorderiv.planner.forms import Direction, FormSpace, residual_norm, space, tidy
from taylorderiv.planner.polynomial import Monomial, Polynomial

_POOL_LIMIT = 1500
_RESTARTS = 4
_SUPPORT = 4


def monomial_directions(key: Monomial) -> list[Direction]:
    """Directions of R. Kan's formula for one monomial, as components in the monomial's own variables.

    ``x^α = 1/k! sum_β (-1)^|β| prod_i C(α_i, β_i) ((α/2 - β)·x)^k``, where β and α - β give the same
    direction: half of ``prod_i (α_i + 1)``, and no other set is smaller over the reals in two variables.
    (R. Kan, "From moments of sum to moments of product", 2008.)
    """
    powers = [power for _, power in key]
    found: dict[Direction, None] = {}
    for beta in itertools.product(*(range(power + 1) for power in powers)):
        doubled = [power - 2 * b for power, b in zip(powers, beta, strict=True)]
        if any(doubled):
            found[tidy(doubled)] = None
    return list(found)


def formula_directions(forms: Sequence[Polynomial], dimension: int) -> list[list[Direction]]:
    """Sets that span every monomial of the forms, from closed formulas: for any size, not always minimal."""
    keys = list(dict.fromkeys(key for form in forms for key in form.terms))

    def place(key: Monomial, direction: Direction) -> Direction:
        components: list[int | float] = [0] * dimension
        for (variable, _), value in zip(key, direction, strict=True):
            components[variable] = value
        return tuple(components)

    signed = dict.fromkeys(place(key, direction) for key in keys for direction in monomial_directions(key))
    supports: dict[tuple[int, ...], None] = {}
    for key in keys:
        variables = [variable for variable, _ in key]
        supports |= dict.fromkeys(
            subset for size in range(len(key)) for subset in itertools.combinations(variables, size + 1)
        )
    if max(map(len, supports)) > _SUPPORT:
        return [list(signed)]
    order = sum(power for _, power in keys[0])
    shared = [
        place(tuple((variable, 1) for variable in support), direction)
        for support in supports
        for direction in full_support_directions(len(support), order)
    ]
    return [list(signed), shared]


@functools.lru_cache(maxsize=64)
def full_support_directions(size: int, order: int) -> tuple[Direction, ...]:
    """Directions without zeros that add all forms of ``size`` variables to those of fewer variables.

    Taken for every set of variables that meet in one of many requested monomials, these are as many as there
    are monomials, and each monomial is read off those within its own variables.
    """
    here = space(size, order)
    columns = torch.zeros(len(here.monomials), 0, dtype=torch.float64)
    for fewer in range(1, size):
        for support in itertools.combinations(range(size), fewer):
            for direction in full_support_directions(fewer, order):
                row = torch.zeros(1, size, dtype=torch.float64)
                row[0, list(support)] = torch.tensor(direction, dtype=torch.float64)
                columns = torch.cat([columns, here.powers(torch.nn.functional.normalize(row))], 1)
    basis = torch.linalg.qr(columns)[0]
    chosen: list[Direction] = []
    for reach in itertools.count(1):
        box = [tidy(v) for v in itertools.product(range(-reach, reach + 1), repeat=size) if all(v)]
        pool = torch.tensor(list(dict.fromkeys(box)), dtype=torch.float64)
        powers = here.powers(torch.nn.functional.normalize(pool))
        while basis.shape[1] < len(here.monomials):
            # The one whose power is farthest from what is spanned already.
            left = powers - basis @ (basis.T @ powers)
            best = int(left.norm(dim=0).argmax())
            if left[:, best].norm() < 1e-2 / order:
                break
            chosen.append(tidy(pool[best].tolist()))
            basis = torch.cat([basis, torch.nn.functional.normalize(left[:, [best]], dim=0)], 1)
        if basis.shape[1] == len(here.monomials):
            return tuple(chosen)
    raise AssertionError("unreachable")


def lattice_pool(dimension: int, order: int, forms: Sequence[Polynomial]) -> list[Direction]:
    """All small integer directions; in many variables those within a monomial's. [] if they are too many."""
    supports = {tuple(variable for variable, _ in key) for form in forms for key in form.terms}
    if dimension <= 4:
        supports = {tuple(range(dimension))}
    reach = 1
    while True:
        pool: dict[Direction, None] = {}
        for support in sorted(supports):
            if (2 * reach + 1) ** len(support) > 4 * _POOL_LIMIT:
                return []
            for values in itertools.product(range(-reach, reach + 1), repeat=len(support)):
                if any(values) and math.gcd(*values) == 1:
                    direction = [0] * dimension
                    for variable, value in zip(support, values, strict=True):
                        direction[variable] = value
                    pool[tidy(direction)] = None
        if len(pool) > _POOL_LIMIT:
            return []
        # A line's k-th powers live in a space of C(d + k - 1, k) dimensions: fewer lines can't fill it.
        width = max(map(len, supports))
        if len(pool) >= 1.5 * math.comb(width + order - 1, order) or reach == 3:
            return list(pool)
        reach += 1


def select(forms: FormSpace, targets: Tensor, existing: Tensor, pool: Sequence[Direction]) -> list[list[Direction]]:
    """Small subsets of the pool that span the targets with the existing directions; [] if all of it doesn't.

    Iteratively reweighted least squares drives most directions' coefficients to zero (a sum of logarithms as
    the penalty, common to all targets); what is left is then thinned one by one. Restarted from a few random
    weights, always the same ones.
    """
    candidates = torch.tensor(pool, dtype=torch.float64)
    columns = forms.powers(torch.nn.functional.normalize(candidates))
    kept = torch.linalg.qr(forms.powers(existing))[0] if len(existing) else columns[:, :0]
    columns, targets = columns - kept @ (kept.T @ columns), targets - kept @ (kept.T @ targets)
    if residual_norm(columns, targets)[1] > 1e-9:
        return []
    generator = torch.Generator().manual_seed(0)
    # Short vectors first: they are the better conditioned, and their lower orders the more useful.
    short = 1 / candidates.abs().sum(1)
    sets: dict[tuple[int, ...], None] = {}
    for restart in range(_RESTARTS):
        weights = short * torch.rand(len(pool), generator=generator, dtype=torch.float64) if restart else short
        support = _sparsify(columns, targets, weights)
        sets[tuple(_thin(columns, targets, support))] = None
    fewest = min(map(len, sets))
    return [[pool[i] for i in chosen] for chosen in sets if len(chosen) == fewest]


def _sparsify(columns: Tensor, targets: Tensor, weights: Tensor) -> list[int]:
    sizes = weights
    for step in range(30):
        roots = weights.sqrt()
        solution = roots[:, None] * torch.linalg.lstsq(columns * roots, targets, driver="gelsd").solution
        sizes = solution.norm(dim=1)
        weights = sizes**2 / sizes.max() ** 2 + 10.0 ** (-step / 3)
        weights /= weights.max()
    order = sizes.argsort()
    return [i for i in order.tolist() if sizes[i] > 1e-7 * sizes.max()]


def _thin(columns: Tensor, targets: Tensor, support: list[int]) -> list[int]:
    """Drop what isn't needed, the least used first."""
    for index in list(support):
        fewer = [i for i in support if i != index]
        if fewer and residual_norm(columns[:, fewer], targets)[1] < 1e-9:
            support = fewer
    return sorted(support)
