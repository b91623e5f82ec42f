"""Sums of powers of directions in two variables: Sylvester's algorithm, exact and minimal over the reals.

A binary form ``sum_i C(k, i) b_i x^(k-i) y^i`` is a combination of the k-th powers of the directions
``(α_r, β_r)`` exactly if ``b_i`` is one of the sequences ``α_r^(k-i) β_r^i``, that is, if b obeys the linear
recurrence ``sum_j g_j b_(i+j) = 0`` whose polynomial ``sum_j g_j X^(s-j) Y^j`` vanishes at the directions. So
the recurrences of length s that all the wanted forms obey are a null space, and the least s whose null space
holds a polynomial with s distinct real roots is the least number of directions.
(J. J. Sylvester 1851; G. Comas, M. Seiguer 2011.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from taylorderiv.planner.forms import Direction, tidy
from taylorderiv.planner.polynomial import Polynomial

_NICE = [math.atan2(y, x) % math.pi for x, y in ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (2, -1), (1, 2), (1, -2))]
_TRIALS = 60
_ENOUGH = 8


def decompose_binary(forms: Sequence[Polynomial], order: int, existing: Sequence[Direction]) -> list[list[Direction]]:
    """Sets of the fewest directions that, with the existing ones, span the forms in variables 0 and 1."""
    sequences = torch.tensor(
        [[_coefficient(form, order, i) / math.comb(order, i) for i in range(order + 1)] for form in forms],
        dtype=torch.float64,
    )
    sequences /= sequences.norm(dim=1, keepdim=True)
    # What a direction explains obeys its recurrence of length 1; applying that leaves the rest.
    for alpha, beta in existing:
        length = math.hypot(alpha, beta)
        sequences = (beta * sequences[:, :-1] - alpha * sequences[:, 1:]) / length
    taken = [math.atan2(beta, alpha) % math.pi for alpha, beta in existing]
    degree = sequences.shape[1] - 1
    if degree < 0:  # More directions than dimensions span everything, however badly.
        return [[]]
    for count in range(1, degree + 2):
        found = []
        for angles in itertools.islice(_angles(_null_space(sequences, count), count, taken), _TRIALS):
            directions = [tidy((math.cos(angle), math.sin(angle))) for angle in angles]
            if directions not in found:
                found.append(directions)
            if len(found) == _ENOUGH:
                break
        if found:
            return found
    raise AssertionError("k + 1 directions span every binary form of degree k")


def _coefficient(form: Polynomial, order: int, i: int) -> float:
    key = tuple((variable, power) for variable, power in ((0, order - i), (1, i)) if power)
    return float(form.terms.get(key, 0))


def _null_space(sequences: Tensor, count: int) -> Tensor:
    """The recurrences of length ``count`` that all sequences obey, as rows of ``(n, count + 1)``."""
    windows = sequences.unfold(1, min(count + 1, sequences.shape[1]), 1).flatten(0, 1)
    if sequences.shape[1] < count + 1:
        return torch.eye(count + 1, dtype=torch.float64)
    _, values, right = torch.linalg.svd(windows, full_matrices=True)
    return right[int((values > 1e-10).sum()) :]


def _angles(kernel: Tensor, count: int, taken: Sequence[float]) -> Iterator[list[float]]:
    """The roots, as angles, of members of the null space whose roots are all real; agreeable ones first."""
    free = len(kernel) - 1
    shifts = [[math.pi * (j + shift) / count for j in range(count)] for shift in (0.0, 0.5)]
    menus = [[angle for angle in menu if _far(angle, taken)] for menu in (_NICE, *shifts)]
    if free == count:  # Any roots will do.
        yield from (menu[:count] for menu in menus if len(menu) >= count)
        yield [math.pi * (j + 0.3) / count for j in range(count)]
        return
    for recurrence in itertools.islice(_recurrences(kernel, menus), _TRIALS):
        angles = _real_roots(recurrence, taken)
        if angles is not None:
            yield angles


def _recurrences(kernel: Tensor, menus: Sequence[Sequence[float]]) -> Iterator[Tensor]:
    """Members of the null space to try: those with roots from the menus, then some at random."""
    count, free = kernel.shape[1] - 1, len(kernel) - 1
    if free < 1:
        yield from kernel
        return
    for menu in menus:
        for chosen in itertools.islice(itertools.combinations(menu, free), _TRIALS // 4):
            powers = [[math.cos(a) ** (count - j) * math.sin(a) ** j for j in range(count + 1)] for a in chosen]
            values = torch.tensor(powers, dtype=torch.float64) @ kernel.T
            values /= values.norm(dim=1, keepdim=True).clamp_min(1e-300)
            _, sizes, right = torch.linalg.svd(values, full_matrices=True)
            if sizes[-1] > 1e-6:
                yield right[-1] @ kernel
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(free + 1, generator=generator, dtype=torch.float64) @ kernel


def _far(angle: float, taken: Sequence[float], gap: float = 1e-3) -> bool:
    return all(min(abs(angle - other), math.pi - abs(angle - other)) > gap for other in taken)


def _real_roots(recurrence: Tensor, taken: Sequence[float]) -> list[float] | None:
    """The angles in [0, pi) of all roots of a binary form, or None unless they are real and well apart."""
    count = len(recurrence) - 1
    exponents = torch.arange(count + 1, dtype=torch.float64)

    def value(angles: Tensor) -> Tensor:
        return (angles.cos()[:, None] ** (count - exponents) * angles.sin()[:, None] ** exponents) @ recurrence

    # Nearer roots than the grid's spacing would amplify rounding anyway. The offset keeps roots off the grid.
    grid = 0.0123456789 - 1 / 64 + torch.linspace(0, math.pi, 64 * count + 1, dtype=torch.float64)
    signs = value(grid).sign()
    change = (signs[1:] != signs[:-1]).nonzero()[:, 0]
    if len(change) != count:
        return None
    low, high, below = grid[change], grid[change + 1], signs[change]
    for _ in range(60):
        middle = (low + high) / 2
        left = value(middle).sign() == below
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    angles = [angle % math.pi for angle in ((low + high) / 2).tolist()]
    if not all(_far(angle, [*taken, *angles[:i]]) for i, angle in enumerate(angles)):
        return None
    return sorted(angles)
