"""The process of one competitor: ``python -m pinn.worker`` reads requests and answers them, a line of JSON each.

Requests, answered with ``{"ok": …}`` or ``{"error": reason}``:

- ``load``: import what a competitor needs;
- ``prepare``: build its step for a problem, run it, compare the result with the reference;
- ``time``: run it again and again for some seconds, or some steps if that takes longer;
- ``memory``: the growth of the resident set during one step;
- ``solve``: draw a problem, compute its reference, and write it to a file;
- ``facts``: about the library and the machine.

Answers go to the original standard output; whatever a package prints goes to standard error.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import math
import os
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pinn.cases import Case
from pinn.competitors import COMPETITORS, Step
from pinn.problem import Problem

PACKAGES = ("torch", "jax", "jet-for-pytorch", "folx", "numpy")
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
"""Relative errors of the loss and of the gradient above which a competitor isn't timed."""

MOST_STEPS = 200
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "resource_exhausted", "bad_alloc")


class DisagreementError(Exception):
    """A competitor's loss or gradient isn't what it should be."""


class Session:
    """What the requests act on."""

    def __init__(self) -> None:
        self.step: Step | None = None

    def load(self, name: str) -> dict[str, str]:
        COMPETITORS[name].load()
        return {package: version for package in PACKAGES if (version := _version(package))}

    def prepare(self, name: str, case: dict[str, Any], path: str) -> dict[str, float]:
        competitor, problem = COMPETITORS[name], Problem.load(Case.from_json(case), Path(path))
        start = time.perf_counter()
        self.step = competitor.build(problem)
        loss, gradients = self.step()
        preparation = time.perf_counter() - start
        errors = {} if competitor.role == "yardstick" else _errors(problem, loss, gradients)
        if competitor.role == "exact" and (worst := max(errors.values())) > TOLERANCE[problem.case.dtype]:
            raise DisagreementError(f"disagrees with the reference by {worst:.1e}")
        start = time.perf_counter()
        self.step()
        seconds = time.perf_counter() - start
        _release_memory()
        return {**errors, "preparation": preparation, "seconds": seconds}

    def time(self, seconds: float, steps: int, warm_up: bool) -> list[float]:
        assert self.step is not None
        if warm_up:
            self.step()
        times: list[float] = []
        while len(times) < steps or (sum(times) < seconds and len(times) < MOST_STEPS):
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        _release_memory()  # others need it while this process waits
        return times

    def memory(self) -> int:
        assert self.step is not None
        self.step()
        _release_memory()
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew from what is resident now.
        self.step()
        return _status("VmHWM") - before

    def solve(self, case: dict[str, Any], path: str) -> None:
        from pinn.reference import solved

        solved(Case.from_json(case)).save(Path(path))

    def facts(self) -> dict[str, Any]:
        from pinn.machine import library_facts

        return library_facts()


def _errors(problem: Problem, loss: Any, gradients: Sequence[Any]) -> dict[str, float]:
    """Relative errors of the loss, and of the gradient if there is one."""
    errors = {"loss_error": abs(float(loss) - problem.loss) / abs(problem.loss)}
    if problem.case.gradient:
        gradient = np.concatenate([np.asarray(array, dtype="float64").ravel() for array in gradients])
        difference = np.linalg.norm(gradient - problem.gradient)
        errors["gradient_error"] = float(difference / np.linalg.norm(problem.gradient))
    return {name: error if math.isfinite(error) else math.inf for name, error in errors.items()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _reason(error: Exception) -> str:
    """Why a request failed, in a line."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed: {error.name}"
    message = next(iter(str(error).splitlines()), "")
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
        return "out of memory"
    return message if isinstance(error, DisagreementError) else f"{type(error).__name__}: {message}"[:200]


def _release_memory() -> None:
    """Return freed memory to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    """A size from the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _restrict(threads: int, memory: int) -> None:
    """Run on the first processors only, with at most this many bytes of memory of one's own."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _restrict(*map(int, sys.argv[1:]))
    session = Session()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": getattr(session, request.pop("do"))(**request)}
        except Exception as error:  # whatever a package raises is a result of the benchmark
            traceback.print_exc()
            answer = {"error": _reason(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
