"""Measuring a case: all its competitors are prepared, then they take turns."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pinn.cases import Case
from pinn.competitors import COMPETITORS, OURS, SINGLE
from pinn.process import Worker, WorkerError
from pinn.results import CANNOT, OK, Row

LEAST_ROUNDS = 3
LEAST_STEPS = 3  # in a round, unless they're long
LONG = 1.0  # seconds of a step that needs no warming up, and is timed once


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        directory: for references and logs.
        threads: processors for each worker.
        timeout: seconds for one request to a worker, such as preparing a case.
        memory: bytes a worker may allocate.
        rounds: how often a competitor is timed.
        seconds: how long it's timed in a round; three steps are the least, or a single long one.
        budget: seconds in all rounds together, after which a slow competitor sits rounds out; three are the least.
        pythons: interpreters of competitors that don't run in this one.
        report: told what is being done.
    """

    directory: Path
    threads: int
    timeout: float
    memory: int
    rounds: int = 9
    seconds: float = 0.2
    budget: float = 12.0
    pythons: Mapping[str, str] = dataclasses.field(default_factory=dict)
    report: Callable[[str], None] = lambda text: None

    def worker(self, case: Case, competitor: str) -> Worker:
        """A process for a competitor, which logs to a file of its own."""
        logs = self.directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        python = self.pythons.get(competitor, sys.executable)
        return Worker(logs / f"{case.slug}_{competitor}.log", threads=self.threads, memory=self.memory, python=python)

    def rounds_of(self, competitor: str, step: float) -> int:
        """How many rounds a competitor takes part in whose step takes this many seconds; ours in all."""
        if competitor in (OURS, SINGLE):
            return self.rounds
        affordable = int(self.budget / (step + max(self.seconds, step * steps_of(step))))
        return min(self.rounds, max(affordable, LEAST_ROUNDS))


def steps_of(step: float) -> int:
    """How many steps of so many seconds are timed in a round at least: one may be slow for no reason of its own."""
    return LEAST_STEPS if step < LONG else 1


def measure(case: Case, competitors: Sequence[str], settings: Settings) -> Iterator[Row]:
    """A row for each competitor: first of those that can't, then of the others."""
    try:
        path = _solved(case, settings)
    except WorkerError as error:
        yield from (Row(case, name, CANNOT, f"no reference to compare with: {error}") for name in competitors)
        return
    # Workers are ended before the pool waits for the threads that wait for them.
    with ThreadPoolExecutor(max_workers=settings.threads) as pool, contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(settings.worker(case, name)) for name in competitors}

        def load(name: str) -> dict[str, str] | WorkerError:
            try:
                return workers[name].request("load", timeout=settings.timeout, name=name)
            except WorkerError as error:
                return error

        rows: dict[str, Row] = {}
        steps: dict[str, float] = {}
        settings.report("loading")
        # Loading takes little memory, so several do it at once; what follows may take all there is.
        for name, versions in zip(competitors, list(pool.map(load, competitors)), strict=True):
            settings.report(f"{name}: preparing")
            try:
                if isinstance(versions, WorkerError):
                    raise versions
                request = {"name": name, "case": case.to_json(), "path": str(path)}
                answer = workers[name].request("prepare", timeout=settings.timeout, **request)
            except WorkerError as error:
                yield Row(case, name, CANNOT, str(error))
                continue
            steps[name] = answer.pop("seconds")
            rows[name] = Row(case, name, OK, versions=versions, **answer)
            if COMPETITORS[name].role == "approximate":
                yield rows.pop(name)
        yield from _time(rows, steps, workers, settings)


def _solved(case: Case, settings: Settings) -> Path:
    """The file of a case's problem and reference; made if it isn't there."""
    path = (settings.directory / "problems" / f"{case.slug}.npz").resolve()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        settings.report("computing the reference")
        with settings.worker(case, OURS) as worker:
            patience = 10 * settings.timeout  # without it there's nothing to measure
            worker.request("solve", timeout=patience, case=case.to_json(), path=str(path))
    return path


def _time(
    rows: dict[str, Row], steps: Mapping[str, float], workers: Mapping[str, Worker], settings: Settings
) -> Iterator[Row]:
    """Fill in times and memory. While one runs, the others wait."""
    failed: dict[str, str] = {}

    def ask(name: str, do: str, **arguments: Any) -> Any:
        settings.report(f"{name}: {do}")
        try:
            return workers[name].request(do, timeout=settings.timeout, **arguments)
        except WorkerError as error:
            failed[name] = str(error)
            return None

    turns = deque(rows)
    for i in range(settings.rounds):
        turns.rotate(-1)
        for name in turns:
            count = settings.rounds_of(name, steps[name])
            if name in failed or i * count % settings.rounds >= count:
                continue
            step = steps[name]
            times = ask(name, "time", seconds=settings.seconds, steps=steps_of(step), warm_up=step < LONG)
            if times is not None:
                rows[name].times.append(statistics.median(times))
                rows[name].steps += len(times)
    for name, row in rows.items():
        if name not in failed:
            row.memory = ask(name, "memory")
        if name in failed:
            row = Row(row.case, name, CANNOT, failed[name])
        yield row
