"""Homogeneous polynomials (forms) of degree k in d variables as vectors, and powers of directions among them.

The coordinates are those of the Bombieri inner product, in which ``<(v·x)^k, (w·x)^k> = (v·w)^k``, so that
nothing depends on the choice of axes and powers of unit vectors are unit vectors.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from taylorderiv.planner.polynomial import Monomial, Polynomial, Vector, monomial, multinomial

Direction = tuple[int | float, ...]
"""A direction by its components in a component's own variables: primitive integers, or floats of length 1."""

TOLERANCE = 1e-12
"""What is left of a form (relative to its norm) that counts as nothing."""


class FormSpace:
    """The forms of degree ``order`` in ``dimension`` variables."""

    def __init__(self, dimension: int, order: int) -> None:
        self.dimension, self.order = dimension, order
        self.monomials: list[Monomial] = [
            tuple((variable, len(list(same))) for variable, same in itertools.groupby(factors))
            for factors in itertools.combinations_with_replacement(range(dimension), order)
        ]
        self.row = {key: row for row, key in enumerate(self.monomials)}
        factors = list(itertools.combinations_with_replacement(range(dimension), order))
        self.factors = torch.tensor(factors, dtype=torch.long).reshape(-1, order)
        self.scale = torch.tensor([math.sqrt(multinomial(key)) for key in self.monomials], dtype=torch.float64)

    def powers(self, directions: Tensor) -> Tensor:
        """The k-th powers of directions ``(R, d)`` as the columns of an ``(N, R)`` matrix."""
        return directions.T[self.factors].prod(1) * self.scale[:, None]

    def power_slopes(self, directions: Tensor) -> Tensor:
        """The derivatives of `powers` with respect to each component, ``(d, N, R)``."""
        below = space(self.dimension, self.order - 1).powers(directions)
        slopes = directions.new_zeros(self.dimension, len(self.monomials), len(directions))
        for variable in range(self.dimension):
            rows, lower, factors = _lowering(self.dimension, self.order, variable)
            slopes[variable, rows] = below[lower] * factors[:, None]
        return slopes

    def vector(self, form: Polynomial) -> Tensor:
        """The coordinates ``(N,)`` of a form."""
        out = torch.zeros(len(self.monomials), dtype=torch.float64)
        for key, value in form.terms.items():
            row = self.row[key]
            out[row] = float(value) / self.scale[row]
        return out

    def flattening(self, vectors: Tensor, order: int) -> Tensor:
        """Forms ``(N, m)`` as maps from degree ``k - order`` to ``order`` (catalecticants), side by side.

        The rank is a lower bound on the number of directions that the forms are jointly sums of powers of.
        """
        indices, factors = _splitting(self.dimension, self.order, order)
        return (vectors[indices] * factors[..., None]).flatten(1)


@functools.lru_cache(maxsize=64)
def space(dimension: int, order: int) -> FormSpace:
    """The `FormSpace`, built once."""
    return FormSpace(dimension, order)


@functools.lru_cache(maxsize=256)
def _lowering(dimension: int, order: int, variable: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the monomials that contain ``variable``, of their derivatives, and the factors between."""
    here, below = space(dimension, order), space(dimension, order - 1)
    rows, lower, factors = [], [], []
    for row, key in enumerate(here.monomials):
        power = dict(key).get(variable, 0)
        if power:
            target = below.row[monomial((*key, (variable, -1)))]
            rows.append(row)
            lower.append(target)
            factors.append(power * float(here.scale[row] / below.scale[target]))
    return torch.tensor(rows), torch.tensor(lower), torch.tensor(factors, dtype=torch.float64)


@functools.lru_cache(maxsize=64)
def _splitting(dimension: int, order: int, left: int) -> tuple[Tensor, Tensor]:
    """Where a flattening takes its entries from, and the factors that keep it orthogonally invariant."""
    whole, lefts, rights = space(dimension, order), space(dimension, left), space(dimension, order - left)
    indices = torch.tensor(
        [[whole.row[monomial((*first, *second))] for second in rights.monomials] for first in lefts.monomials]
    )
    return indices, lefts.scale[:, None] * rights.scale / whole.scale[indices]


def residual_norm(columns: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """The least-norm least-squares solution of ``columns @ a = targets``, and its relative residual."""
    solution = torch.linalg.lstsq(columns, targets, driver="gelsd").solution
    scale = float(targets.norm(dim=0).clamp_min(1e-300).max())
    return solution, float((columns @ solution - targets).norm(dim=0).max()) / scale if scale else 0.0


def rank(matrix: Tensor) -> int:
    """The numerical rank, to a relative 1e-9."""
    if not matrix.numel():
        return 0
    values = torch.linalg.svdvals(matrix)
    return int((values > 1e-9 * values[0]).sum()) if values[0] > 0 else 0


def tidy(direction: Iterable[float]) -> Direction:
    """The same line through the origin: small integers if that's exact to rounding, else a unit vector."""
    values = [float(value) for value in direction]
    largest = max(values, key=abs)
    for denominator in range(1, 13):
        scaled = [value / largest * denominator for value in values]
        whole = [round(value) for value in scaled]
        if all(abs(value - near) < 1e-12 * denominator for value, near in zip(scaled, whole, strict=True)):
            divisor = math.gcd(*whole) * _sign(whole)
            return tuple(value // divisor for value in whole)
    length = math.hypot(*values) * _sign(values)
    return tuple(value / length if abs(value) > 1e-14 * abs(largest) else 0 for value in values)


def _sign(values: Sequence[float]) -> int:
    first = next(value for value in values if abs(value) > 1e-14)
    return 1 if first > 0 else -1


def globalize(direction: Direction, variables: Sequence[int]) -> Vector:
    """A direction in a component's own variables as a direction in all variables."""
    return tuple((variables[i], value) for i, value in enumerate(direction) if value)


def localize(form: Polynomial, place: dict[int, int]) -> Polynomial:
    """A polynomial with its variables renumbered; ``place`` must keep their order."""
    return Polynomial(
        {tuple((place[variable], power) for variable, power in key): value for key, value in form.terms.items()}
    )
