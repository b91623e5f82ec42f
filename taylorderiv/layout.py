"""Which Taylor coefficients a jet holds, and where each one lies."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import Any

Product = tuple[int, int, float]
"""A term ``weight * a[i] * b[j]`` of one output coefficient of a product, as ``(i, j, weight)``."""


@dataclass(frozen=True)
class Layout:
    """The order of the coefficients of a jet along axis 0 of a ``(C, *shape)`` tensor.

    Index 0 is the primal, shared by all directions; then orders 1, 2, … of direction 0, of direction 1, …;
    last, if collapsed, the weighted sum ``T = sum_r w_r x_{r,K}`` of the top coefficients of the collapsed
    directions, which are then not stored one by one.

    Attributes:
        orders: the highest order of each direction, each at least 1; ``()`` is a jet of order 0.
        weights: ``None`` if nothing is collapsed, else a weight per direction; a direction of weight 0 isn't
            collapsed. All collapsed directions have the same order.
    """

    orders: tuple[int, ...] = ()
    weights: tuple[float, ...] | None = None
    _stored: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if any(not isinstance(order, int) or order < 1 for order in self.orders):
            raise ValueError(f"each order must be an integer of at least 1, got {self.orders}")
        weights = (0.0,) * len(self.orders) if self.weights is None else self.weights
        stored = tuple(order - (weight != 0) for order, weight in zip(self.orders, weights, strict=False))
        object.__setattr__(self, "_stored", stored)
        if self.weights is None:
            return
        if len(self.weights) != len(self.orders):
            raise ValueError(f"{len(self.weights)} weights for {len(self.orders)} directions")
        tops = {order for order, weight in zip(self.orders, self.weights, strict=True) if weight != 0}
        if not tops:
            raise ValueError("a collapsed layout needs a weight that isn't 0; use weights=None otherwise")
        if len(tops) > 1:
            raise ValueError(f"collapsed directions must share one order, got {sorted(tops)}")

    @property
    def directions(self) -> int:
        """The number R of directions."""
        return len(self.orders)

    @property
    def order(self) -> int:
        """The highest order of any direction."""
        return max(self.orders, default=0)

    @property
    def collapsed(self) -> bool:
        """Whether the last coefficient is a weighted sum over directions."""
        return self.weights is not None

    @property
    def collapsed_order(self) -> int:
        """The order K of the collapsed coefficient."""
        return self.orders[self.collapsed_directions[0]]

    @property
    def collapsed_directions(self) -> tuple[int, ...]:
        """The directions whose top coefficient is only stored as part of the weighted sum."""
        return tuple(r for r, weight in enumerate(self.weights or ()) if weight != 0)

    @property
    def size(self) -> int:
        """The number C of coefficients, the primal included."""
        return 1 + sum(self._stored) + self.collapsed

    @property
    def first_places(self) -> tuple[int, ...]:
        """For each direction the index of its first coefficient above the primal, or where it would be."""
        return tuple(itertools.accumulate(self._stored, initial=1))[:-1]

    def stored(self, direction: int) -> int:
        """How many coefficients of ``direction`` above the primal are stored for themselves."""
        return self._stored[direction]

    def index(self, k: int, direction: int = 0) -> int:
        """The place of coefficient ``k`` of ``direction`` along axis 0.

        Raises:
            ValueError: there is no such direction, or the coefficient isn't stored for itself.
        """
        if k == 0:
            return 0
        if not 0 <= direction < len(self.orders):
            raise ValueError(f"no direction {direction} in {self}")
        if 0 < k <= self.stored(direction):
            return self.first_places[direction] + k - 1
        if k == self.orders[direction]:
            raise ValueError(f"coefficient {k} of direction {direction} is collapsed: only the weighted sum is known")
        raise ValueError(f"no coefficient {k} in direction {direction} of order {self.orders[direction]}")

    def lines(self, vectors: Any) -> Any:
        """The coefficients above the primal, ``(C - 1, D)``, of ``x + ε v`` along the vectors ``v``, ``(R, D)``."""
        above = vectors.new_zeros(self.size - 1, vectors.shape[-1])
        stored = [r for r in range(self.directions) if self.stored(r)]
        if stored:
            places = self.first_places
            above[[places[r] - 1 for r in stored]] = vectors if len(stored) == len(vectors) else vectors[stored]
        if self.weights is not None and self.collapsed_order == 1:
            above[-1] = sum(self.weights[r] * vectors[r] for r in self.collapsed_directions)
        return above

    @functools.lru_cache  # noqa: B019 - layouts are few and small
    def products(self) -> tuple[tuple[Product, ...], ...]:
        """For each coefficient of a product ``a · b``, the terms it is the sum of (the Cauchy product)."""
        outputs: list[tuple[Product, ...]] = [((0, 0, 1.0),)]
        for r in range(len(self.orders)):
            outputs += [
                tuple((self.index(j, r), self.index(k - j, r), 1.0) for j in range(k + 1))
                for k in range(1, self.stored(r) + 1)
            ]
        if self.weights is not None:
            top, order = self.size - 1, self.collapsed_order
            terms = [(0, top, 1.0), (top, 0, 1.0)]
            for r in self.collapsed_directions:
                terms += [(self.index(j, r), self.index(order - j, r), self.weights[r]) for j in range(1, order)]
            outputs.append(tuple(terms))
        return tuple(outputs)

    def __str__(self) -> str:
        weights = "" if self.weights is None else f", weights={self.weights}"
        return f"Layout(orders={self.orders}{weights})"
