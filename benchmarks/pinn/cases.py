"""One measurement's settings, and the suites of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from pinn.workloads import WORKLOADS, Workload

ACTIVATIONS = ("tanh", "sin", "silu")
DTYPES = ("float32", "float64")
WIDTHS = (32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload on one network, at one number of points, in one dtype.

    Attributes:
        gradient: whether the gradient for the parameters is computed too, or the loss alone.
    """

    name: str
    hidden: tuple[int, ...]
    batch: int
    dtype: str = "float32"
    activation: str = "tanh"
    gradient: bool = True

    @property
    def workload(self) -> Workload:
        return WORKLOADS[self.name]

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each linear layer."""
        widths = [self.workload.dimension, *self.hidden, self.workload.outputs]
        return list(itertools.pairwise(widths))

    @property
    def network(self) -> str:
        """Such as ``4×64 tanh``."""
        uniform = len(set(self.hidden)) == 1
        widths = f"{len(self.hidden)}×{self.hidden[0]}" if uniform else "-".join(map(str, self.hidden))
        return f"{widths} {self.activation}"

    @property
    def label(self) -> str:
        """A line that tells the case from all others."""
        value = "" if self.gradient else ", value only"
        return f"{self.name}, {self.network}, N={self.batch:,}, {self.dtype}{value}"

    @property
    def slug(self) -> str:
        """The label as a file name."""
        return self.label.replace(", ", "_").replace(" ", "-").replace("×", "x").replace(",", "")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Case:
        return Case(**{**data, "hidden": tuple(data["hidden"])})


def usual(name: str, **changes: Any) -> Case:
    """A workload as it's usually measured, with changes; ``width=`` sets all hidden layers."""
    workload = WORKLOADS[name]
    width = changes.pop("width", None)
    hidden = workload.hidden if width is None else (width,) * len(workload.hidden)
    return dataclasses.replace(Case(name, hidden, workload.batch), **changes)


def full() -> Iterator[Case]:
    """Each workload as usual, and with one setting changed at a time."""
    for name, workload in WORKLOADS.items():
        yield usual(name)
        yield usual(name, dtype="float64")
        if not workload.scalable:
            yield usual(name, gradient=False)
            continue
        yield from (usual(name, activation=activation) for activation in ACTIVATIONS)
        yield from (usual(name, width=width) for width in WIDTHS)
        yield from (usual(name, batch=batch) for batch in workload.batches)


def product(
    names: Sequence[str],
    widths: Sequence[int],
    batches: Sequence[int],
    dtypes: Sequence[str],
    activations: Sequence[str],
) -> Iterator[Case]:
    """Every combination; an empty sequence stands for the workload's usual setting."""
    for name in names:
        for dtype in dtypes or DTYPES[:1]:
            for activation in activations or ACTIVATIONS[:1]:
                for width in widths or (None,):
                    for batch in batches or (WORKLOADS[name].batch,):
                        yield usual(name, width=width, batch=batch, dtype=dtype, activation=activation)
