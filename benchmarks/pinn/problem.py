"""The numbers of a case: weights, points, right-hand side, and the loss and gradient they should give."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from pinn.cases import Case

SEED = 0


@dataclasses.dataclass
class Problem:
    """Arrays in the case's dtype, the same for every competitor.

    Attributes:
        weights: per layer, ``(out, in)``, Glorot-normal.
        biases: per layer, ``(out,)``.
        points: ``(N, D)``.
        source: ``(N, 1)``.
        random: directions ``(samples, D)``, only for an ``estimate``.
        loss: what the loss should be, in float64.
        gradient: what its gradient should be, weights and biases in turn, flattened, in float64.
    """

    case: Case
    weights: list[np.ndarray]
    biases: list[np.ndarray]
    points: np.ndarray
    source: np.ndarray
    random: np.ndarray | None = None
    loss: float = np.nan
    gradient: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    @property
    def parameters(self) -> list[np.ndarray]:
        """Weights and biases in turn."""
        return [array for layer in zip(self.weights, self.biases, strict=True) for array in layer]

    def astype(self, dtype: str) -> Problem:
        """In another dtype."""

        def cast(array: np.ndarray) -> np.ndarray:
            return array.astype(dtype)

        return dataclasses.replace(
            self,
            case=dataclasses.replace(self.case, dtype=dtype),
            weights=list(map(cast, self.weights)),
            biases=list(map(cast, self.biases)),
            points=cast(self.points),
            source=cast(self.source),
            random=None if self.random is None else cast(self.random),
        )

    def save(self, path: Path) -> None:
        """Write everything but the case; the file is there complete or not at all."""
        arrays: dict[str, Any] = {f"parameter{i}": array for i, array in enumerate(self.parameters)}
        if self.random is not None:
            arrays["random"] = self.random
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, points=self.points, source=self.source, loss=self.loss, gradient=self.gradient, **arrays)
        partial.replace(path)

    @staticmethod
    def load(case: Case, path: Path) -> Problem:
        with np.load(path) as arrays:
            parameters = [arrays[f"parameter{i}"] for i in range(2 * len(case.layers))]
            return Problem(
                case,
                parameters[::2],
                parameters[1::2],
                arrays["points"],
                arrays["source"],
                arrays.get("random"),
                float(arrays["loss"]),
                arrays["gradient"],
            )


def make_problem(case: Case) -> Problem:
    """Draw the numbers of a case, from a fixed seed; what they should give isn't filled in."""
    generator = np.random.default_rng(SEED)
    workload, dtype = case.workload, case.dtype
    weights, biases = [], []
    for inputs, outputs in case.layers:
        weights.append(generator.normal(0, (2 / (inputs + outputs)) ** 0.5, (outputs, inputs)).astype(dtype))
        biases.append(generator.normal(0, 0.1, outputs).astype(dtype))
    points = generator.uniform(*workload.domain, (case.batch, workload.dimension)).astype(dtype)
    source = np.zeros(case.batch) if workload.source is None else workload.source(points.astype("float64"))
    return Problem(case, weights, biases, points, source[:, None].astype(dtype))
