"""The benchmark measures what it says: competitors agree, no row is lost, and what can't be measured says why."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import chain_cuda
import run
from pinn.cases import ACTIVATIONS, Case, full, usual
from pinn.claims import CLAIMS, EQUATION
from pinn.competitors import COMPETITORS, FLOOR, OURS, Competitor, handwritten
from pinn.directions import directions
from pinn.measure import Settings, measure
from pinn.problem import Problem
from pinn.process import Worker, WorkerError
from pinn.reference import solved
from pinn.report import write
from pinn.results import CANNOT, OK, Journal, Results, Row
from pinn.suites import SUITES, everyone
from pinn.worker import Session
from pinn.workloads import WORKLOADS

BENCHMARKS = Path(run.__file__).parent
EAGER = [name for name in COMPETITORS if not name.startswith(("jax", "jet", "folx"))]


def tiny(name: str, **changes: Any) -> Case:
    return dataclasses.replace(usual(name), **{"hidden": (5, 4), "batch": 3, "dtype": "float64", **changes})


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes longer than all tests together and doesn't change results."""
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)


def settings(directory: Path, **changes: Any) -> Settings:
    return Settings(directory, threads=1, timeout=60, memory=4 << 30, rounds=2, seconds=0.01, **changes)


# What is measured.


def errors(case: Case, problem: Problem, name: str) -> tuple[float, float]:
    loss, gradient = COMPETITORS[name].build(problem)()
    flat = np.concatenate([np.asarray(array).ravel() for array in gradient])
    gradient_error = np.linalg.norm(flat - problem.gradient) / np.linalg.norm(problem.gradient)
    return abs(float(loss) - problem.loss) / problem.loss, float(gradient_error)


@pytest.mark.parametrize("name", [name for name, workload in WORKLOADS.items() if workload.order <= 8])
def test_competitors_agree(name: str) -> None:
    case = tiny(name)
    problem = solved(case)
    assert problem.loss > 0
    assert problem.gradient.size == sum(array.size for array in problem.parameters)
    for competitor in set(EAGER) & set(everyone(case)):
        if COMPETITORS[competitor].role == "exact" and not (competitor == "nested-jvp" and case.workload.order > 6):
            assert max(errors(case, problem, competitor)) < 1e-10, competitor


def test_a_reference_of_high_order_must_agree_with_nested_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(handwritten.ACTIVATIONS, "tanh", handwritten.ACTIVATIONS["sin"])  # pyright: ignore
    with pytest.raises(ArithmeticError, match="disagree"):
        solved(tiny("sine-6"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["cahn-hilliard", "poisson-100"])
def test_handwritten_activations_agree(name: str, activation: str) -> None:
    case = tiny(name, activation=activation)
    assert max(errors(case, solved(case), "compiled")) < 1e-10


def test_finite_differences_are_near() -> None:
    case = tiny("burgers")
    assert 0 < max(errors(case, solved(case), "finite-differences")) < 1e-6


def test_reference_doesnt_depend_on_how_points_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny("kdv", batch=50)
    whole = solved(case)
    monkeypatch.setattr("pinn.reference.NUMBERS_AT_ONCE", 1)
    parts = solved(case)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    np.testing.assert_allclose(parts.gradient, whole.gradient, rtol=1e-9, atol=1e-12 * abs(whole.gradient).max())


def test_every_workload_has_directions() -> None:
    for workload in WORKLOADS.values():
        random = np.ones((workload.samples, workload.dimension)) if workload.samples else None
        plan = directions(workload, random)
        assert set(plan.reads) == set(workload.quantities)
        assert plan.vectors.shape == (len(plan.orders), workload.dimension)


def test_cases_are_told_apart_by_their_label() -> None:
    cases = set(full())
    assert len({case.label for case in cases}) == len({case.slug for case in cases}) == len(cases)
    assert all(Case.from_json(json.loads(json.dumps(case.to_json()))) == case for case in cases)


def test_short_suite_has_what_the_claims_need() -> None:
    suite = SUITES["short"]()
    assert all(competitor in suite[case] for claim in CLAIMS for case, competitor in claim.needs)


# How it's measured.


def test_rows_of_a_real_case(tmp_path: Path) -> None:
    case = tiny("burgers", dtype="float32", batch=200)
    rows = {row.competitor: row for row in measure(case, [OURS, FLOOR, "finite-differences"], settings(tmp_path))}
    ours, floor, approximate = rows[OURS], rows[FLOOR], rows["finite-differences"]
    assert ours.status == floor.status == approximate.status == OK
    assert len(ours.times) == 2
    assert ours.median is not None
    assert 0 < ours.median < 1
    assert ours.gradient_error is not None
    assert ours.gradient_error < 1e-5
    assert ours.memory is not None
    assert ours.versions["torch"] == torch.__version__
    assert floor.loss_error is None
    assert (approximate.times, approximate.memory) == ([], None)
    assert approximate.loss_error is not None


def test_memory_is_the_peak_of_a_step() -> None:
    session = Session()
    session.step = lambda: (float(np.ones(6 << 20).sum()), ())
    assert 47 << 20 < session.memory() < 60 << 20


def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, competitor: Competitor) -> Any:
    case = tiny("kdv")
    solved(case).save(tmp_path / "problem.npz")
    monkeypatch.setitem(COMPETITORS, competitor.name, competitor)  # pyright: ignore
    return Session().prepare(competitor.name, case.to_json(), str(tmp_path / "problem.npz"))


def test_what_isnt_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_absent.py").write_text("import absent_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("pinn.competitors.__path__", [*sys.modules["pinn.competitors"].__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError) as error:
        prepare(tmp_path, monkeypatch, Competitor("absent", "absent", "needs_absent"))
    assert sys.modules["pinn.worker"]._reason(error.value) == "not installed: absent_package"


def test_what_disagrees_isnt_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match=r"disagrees with the reference by \d"):
        prepare(tmp_path, monkeypatch, Competitor("near", "near", "finite_differences"))


def test_a_worker_that_takes_too_long_or_dies_says_so(tmp_path: Path) -> None:
    with Worker(tmp_path / "log", threads=1, memory=4 << 30) as worker:
        with pytest.raises(WorkerError, match="time-out after 0 s"):
            worker.request("facts", timeout=0.01)
        with pytest.raises(WorkerError, match="killed"):
            worker.request("facts", timeout=10)


def test_a_competitor_that_cant_has_a_row_with_the_reason(tmp_path: Path) -> None:
    case = tiny("burgers")
    elsewhere = settings(tmp_path, pythons={OURS: "/bin/false"})
    (row,) = measure(case, [OURS], elsewhere)
    assert row.status == CANNOT
    assert "died with exit status 1" in row.reason


# Interruption and resumption.


class Interrupted:
    """A stand-in for `measure` that is interrupted after some rows."""

    def __init__(self, after: int):
        self.after = after
        self.measured: list[tuple[Case, str]] = []

    def __call__(self, case: Case, names: Sequence[str], settings: Settings) -> Iterator[Row]:
        for name in names:
            if len(self.measured) == self.after:
                raise KeyboardInterrupt
            self.measured.append((case, name))
            yield Row(case, name, OK, times=[0.1, 0.2])


def test_resuming_loses_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = {tiny(name): [OURS, FLOOR, "nested-autograd"] for name in ("burgers", "kdv", "heat")}
    wanted = [(case, name) for case, names in suite.items() for name in names]
    path, measured = tmp_path / "results.jsonl", []
    for after in (2, 0, 4, 99):
        stand_in = Interrupted(after)
        monkeypatch.setattr(run, "measure", stand_in)
        journal = Journal(path)
        results = journal.read()
        assert [row.key for row in results] == measured
        try:
            run.run(suite, journal, results, settings(tmp_path), run.tqdm(disable=True))
        except KeyboardInterrupt:
            with path.open("a") as file:  # as if killed while writing
                file.write('{"case": {"name": "bur')
        measured += stand_in.measured
    assert measured == wanted
    assert [row.key for row in Journal(path).read()] == wanted
    assert len(path.read_text().splitlines()) == len(wanted)


def test_rows_are_stored_as_they_are(tmp_path: Path) -> None:
    row = Row(EQUATION, OURS, OK, times=[1.0, 2.0, 4.0], steps=9, memory=5, loss_error=1e-7, versions={"torch": "2"})
    journal = Journal(tmp_path / "results.jsonl")
    journal.append(row)
    (stored,) = journal.read()
    assert stored == row
    assert (stored.median, stored.quartiles) == (2.0, (1.5, 3.0))


# What it's turned into.


def stored() -> Results:
    """A run of the short suite in which the order doubles the time and everyone else takes twice as long."""
    results = Results()
    for case, names in SUITES["short"]().items():
        for i, name in enumerate(names):
            seconds = 1e-3 * (1 if name in (OURS, FLOOR) else 2 + i) * (1 + case.workload.order)
            results.add(Row(case, name, OK, times=[seconds, 1.1 * seconds], steps=4, memory=(1 + 99 * i) << 20))
    results.add(Row(EQUATION, "jax-jet", CANNOT, "not installed: jax"))
    return results


def test_table_and_plots(tmp_path: Path) -> None:
    table = write(stored(), {"processor": "a processor", "cores": 2}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "table.md",
        "time.png",
        "memory.png",
        "speedup.png",
        "floor.png",
    }
    assert "not installed: jax" in table
    claims = table[table.index("## Claims") :]
    assert claims.count("| met |") + claims.count("**missed**") + claims.count("not measured") == len(CLAIMS)
    assert "| 4×64 tanh, N=4096, x:4 t:1 | JAX jet + jit | at least 5 | – | not measured |" in claims
    assert "| 4×64 tanh, N=4096, x:4 t:1 | time over that of the floor | at most 1.2 | 1 | met |" in claims
    assert "| 4×64 tanh, N=4096, x:4 t:1 | nested autograd | at least 8 | 4 | **missed** |" in claims
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["machine"]["cores"] == 2
    assert [claim["met"] for claim in data["claims"]].count(None) == 1
    assert all(math.isfinite(row["median"]) for row in data["rows"] if row["status"] == OK)


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    write(Results([Row(tiny("kdv"), OURS, CANNOT, "out of memory")]), {}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "table.md"}


def test_command_line_filters() -> None:
    def listed(*options: str) -> list[str]:
        command = [sys.executable, str(BENCHMARKS / "run.py"), "--list", *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    assert listed("--suite", "full", "--workload", "sine-[0-9]", "--width", "32", "--competitor", OURS, FLOOR) == [
        *(f"sine-{k}, 4×32 tanh, N=4,096, float32: taylorderiv, floor" for k in (2, 4, 6, 8)),
        "4 cases, 8 rows",
    ]
    combinations = listed("--suite", "kdv", "plate", "--batch", "16", "32", "--dtype", "float32", "float64")
    assert len(combinations) == 2 * 2 * 2 + 1


def test_the_page_names_every_workload_and_competitor() -> None:
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*WORKLOADS, *COMPETITORS) if f"`{name}`" not in page] == []


# On a GPU.


def test_the_rehearsal_of_the_timings_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["chain_cuda.py", str(tmp_path / "chain.json"), "--device=cpu", "--points=3"])
    chain_cuda.main()
    rows = json.loads((tmp_path / "chain.json").read_text())["results"]
    assert len(rows) == len(chain_cuda.WORKLOADS)
    for row in rows:
        assert {"ours", "jets", "nested"} <= row["microseconds"].keys()
        assert all(name == "jax" and "No module" in why for name, why in row["failures"].items()), row["failures"]
        for name, error in row["gradient_errors"].items():
            assert error < 1e-3, (row["workload"], name)
        assert (
            row["targets"].keys() == next(w for w in chain_cuda.WORKLOADS if w.title == row["workload"]).targets.keys()
        )


def test_the_check_of_a_gpu_says_that_there_is_none(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    command = [str(BENCHMARKS / "gpu_check.sh")]
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout.startswith("gpu_check: no CUDA device")
    assert result.stdout.count("\n") == 1
    assert not result.stderr
    assert not list(tmp_path.iterdir())
