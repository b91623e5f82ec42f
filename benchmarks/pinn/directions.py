"""Directional derivatives that give a workload's quantities: what competitors without a planner are handed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from pinn.workloads import Workload

Reads = list[tuple[int, int, float]]


@dataclasses.dataclass
class Directions:
    """Which derivatives along which directions are needed, and what to make of them.

    Attributes:
        vectors: ``(R, D)``.
        orders: per direction, the highest order needed.
        reads: per quantity, ``(direction, order, factor)``: the sum of factor times that derivative.
    """

    vectors: np.ndarray
    orders: list[int]
    reads: dict[str, Reads]

    def summed(self) -> np.ndarray | None:
        """Directions ``(R, D)`` whose plain sum of derivatives is the workload's only quantity; None if there are more.

        A factor is moved into its direction: derivatives of order k scale with the k-th power.
        """
        if len(self.reads) > 1:
            return None
        (reads,) = self.reads.values()
        scales = np.array([factor ** (1 / order) for _, order, factor in reads])
        return self.vectors * scales[:, None]


def directions(workload: Workload, random: np.ndarray | None) -> Directions:
    """The fewest directions there are.

    Pure partial derivatives lie along the axes. ∂x²∂y² is the (x + y)⁴ and (x - y)⁴ parts less 2x⁴ and 2y⁴, over
    12; Δ² in the plane is 8/9 of the sum of fourth derivatives along three directions 60° apart.

    Args:
        workload: what is wanted.
        random: the random directions ``(samples, D)`` of an ``estimate``.
    """
    vectors: dict[tuple[float, ...], int] = {}
    orders: list[int] = []

    def needed(vector: tuple[float, ...], order: int) -> int:
        index = vectors.setdefault(vector, len(vectors))
        orders[index : index + 1] = [max([order, *orders[index : index + 1]])]
        return index

    def needed_all(rows: np.ndarray, order: int, factor: float) -> Reads:
        return [(needed(tuple(row), order), order, factor) for row in rows.tolist()]

    reads: dict[str, Reads] = {}
    for name in workload.quantities:
        if name == "laplacian":
            reads[name] = needed_all(np.eye(workload.dimension), 2, 1.0)
        elif name == "bilaplacian":
            angles = np.arange(3) * math.pi / 3
            reads[name] = needed_all(np.stack([np.cos(angles), np.sin(angles)], axis=1), 4, 8 / 9)
        elif name == "estimate":
            assert random is not None
            reads[name] = needed_all(random, 2, 1 / len(random))
        else:
            letters = sorted(set(name))
            along = [np.eye(workload.dimension)[str(workload.variables).index(letter)] for letter in letters]
            if len(letters) == 1:
                reads[name] = needed_all(np.stack(along), len(name), 1.0)
            elif sorted(map(name.count, letters)) == [2, 2]:
                x, y = along
                reads[name] = needed_all(np.stack([x + y, x - y]), 4, 1 / 12) + needed_all(np.stack([x, y]), 4, -1 / 6)
            else:
                raise NotImplementedError(f"no directions are known for the mixed derivative {name}")
    return Directions(np.array(list(vectors)), orders, reads)
