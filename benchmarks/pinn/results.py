"""Finished rows: a line of JSON each, on disk before the next is measured."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pinn.cases import Case

OK, CANNOT = "ok", "cannot"


@dataclasses.dataclass
class Row:
    """What was measured of one competitor in one case.

    Attributes:
        status: ``ok``, or ``cannot`` with a ``reason``.
        times: seconds of one step, the median of each round.
        steps: how many steps these are from.
        memory: bytes by which the resident set grows at most during a step.
        preparation: seconds until the first step was done, compilation included.
        loss_error: relative, against the reference.
        gradient_error: likewise, in the Euclidean norm.
        versions: of the packages it ran with.
    """

    case: Case
    competitor: str
    status: str
    reason: str = ""
    times: list[float] = dataclasses.field(default_factory=list)
    steps: int = 0
    memory: int | None = None
    preparation: float | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[Case, str]:
        return self.case, self.competitor

    @property
    def median(self) -> float | None:
        """Seconds; None if it wasn't timed."""
        return statistics.median(self.times) if self.times else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Of the rounds, in seconds."""
        if len(self.times) < 2:
            return None
        low, _, high = statistics.quantiles(self.times, n=4, method="inclusive")
        return low, high

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "median": self.median, "quartiles": self.quartiles}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Row:
        names = {field.name for field in dataclasses.fields(Row)}
        values = {name: value for name, value in data.items() if name in names}
        return Row(**{**values, "case": Case.from_json(data["case"])})


class Results:
    """The rows of one run, by case and competitor."""

    def __init__(self, rows: list[Row] | None = None):
        self._rows = {row.key: row for row in rows or []}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: tuple[Case, str]) -> bool:
        return key in self._rows

    def add(self, row: Row) -> None:
        self._rows[row.key] = row

    def get(self, case: Case, competitor: str) -> Row | None:
        return self._rows.get((case, competitor))

    def seconds(self, case: Case, competitor: str) -> float | None:
        """The median time of a step; None if there is none."""
        row = self.get(case, competitor)
        return None if row is None else row.median

    @property
    def cases(self) -> list[Case]:
        """In the order measured."""
        return list(dict.fromkeys(case for case, _ in self._rows))

    @property
    def competitors(self) -> set[str]:
        return {competitor for _, competitor in self._rows}


class Journal:
    """The file of finished rows. What was interrupted while being written is dropped when it's opened again."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> Results:
        """All complete rows; the rest of the file is cut off."""
        if not self.path.exists():
            return Results()
        rows, kept = [], 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                rows.append(Row.from_json(json.loads(line)))
                kept += len(line)
        os.truncate(self.path, kept)
        return Results(rows)

    def append(self, row: Row) -> None:
        """Write a row through to the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row.to_json(), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
