"""Pictures of a run's results."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pinn.cases import Case, usual
from pinn.competitors import COMPETITORS, FLOOR, OURS
from pinn.results import Results, Row
from pinn.workloads import WORKLOADS

FAMILIES = {"sine": "sine ODE and its derivatives", "burgers-profile": "self-similar Burgers profile"}
STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
COLORS = dict(zip(COMPETITORS, matplotlib.colormaps["tab20"].colors, strict=False))  # pyright: ignore


def draw(results: Results, directory: Path) -> None:
    """Write those pictures for which there are results."""
    matplotlib.use("Agg")
    with plt.rc_context(STYLE):
        _against_order(results, lambda row: row.median, "seconds", directory / "time.png")
        _against_order(results, _mebibytes, "extra memory, MiB", directory / "memory.png")
        _speedups(results, directory / "speedup.png")
        _floor_shares(results, directory / "floor.png")


def _mebibytes(row: Row) -> float | None:
    return None if row.memory is None else row.memory / 2**20


def _named(results: Results) -> list[str]:
    """Competitors that were timed in any case, in the usual order."""
    timed = {row.competitor for row in results if row.times}
    return [name for name in COMPETITORS if name in timed]


def _against_order(results: Results, value: Callable[[Row], float | None], label: str, path: Path) -> None:
    """A line per competitor over the order of differentiation, for each family of workloads."""
    panels = {}
    for family, title in FAMILIES.items():
        names = [name for name in WORKLOADS if re.fullmatch(rf"{family}-\d+", name)]
        cases = sorted(map(usual, names), key=lambda case: case.workload.order)
        lines = {name: _line(results, cases, name, value) for name in _named(results)}
        if lines := {name: line for name, line in lines.items() if len(line) > 1}:
            panels[f"{title}\n{cases[0].network}, N={cases[0].batch:,}, float32"] = lines
    if not panels:
        return
    figure, grid = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), squeeze=False, layout="constrained")
    for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
        for name, line in lines.items():
            axes.plot(*zip(*line, strict=True), "o-", color=COLORS[name], label=COMPETITORS[name].title, markersize=4)
        axes.set_title(title, fontsize=9)
        axes.set_yscale("log")
        axes.set_xlabel("order")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=7)
    grid[0][0].set_ylabel(label)
    _save(figure, path)


def _line(
    results: Results, cases: Sequence[Case], name: str, value: Callable[[Row], float | None]
) -> list[tuple[int, float]]:
    rows = [(case.workload.order, results.get(case, name)) for case in cases]
    return [(order, number) for order, row in rows if row is not None and (number := value(row))]


def _usual_cases(results: Results) -> list[Case]:
    return [case for case in results.cases if case == usual(case.name) and results.seconds(case, OURS)]


def _speedups(results: Results, path: Path) -> None:
    """A group of bars per workload: how many times longer each competitor takes."""
    cases = _usual_cases(results)
    names = [
        name for name in _named(results) if name not in (OURS, FLOOR) and any(results.seconds(c, name) for c in cases)
    ]
    if not names:
        return
    groups = [(case, [name for name in names if results.seconds(case, name)]) for case in cases]
    groups = [(case, present) for case, present in groups if present]
    bars = [
        (name, (results.seconds(case, name) or 0) / (results.seconds(case, OURS) or 1), position)
        for (case, present), start in zip(groups, _starts(groups), strict=True)
        for position, name in enumerate(present, start)
    ]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.16 * (len(bars) + len(groups))), layout="constrained")
    for name in names:
        mine = [(position, quotient) for owner, quotient, position in bars if owner == name]
        drawn = axes.barh(*zip(*mine, strict=True), color=COLORS[name], label=COMPETITORS[name].title)
        axes.bar_label(drawn, fmt=" %.3g", fontsize=6)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    middles = [start + (len(present) - 1) / 2 for (_, present), start in zip(groups, _starts(groups), strict=True)]
    _label_cases(axes, middles, [case for case, _ in groups])
    axes.set_xlabel("time over that of taylorderiv")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)


def _floor_shares(results: Results, path: Path) -> None:
    """A bar per workload: the floor's time over ours."""
    cases = [case for case in _usual_cases(results) if results.seconds(case, FLOOR)]
    if not cases:
        return
    shares = [(results.seconds(case, FLOOR) or 0) / (results.seconds(case, OURS) or 1) for case in cases]
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.28 * len(cases)), layout="constrained")
    drawn = axes.barh(range(len(cases)), shares, 0.7, color=COLORS[OURS])
    axes.bar_label(drawn, [f" {share:.0%}" for share in shares], fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    _label_cases(axes, range(len(cases)), cases)
    axes.set_xlabel("time of the matrix products alone, over that of taylorderiv")
    _save(figure, path)


def _starts(groups: Sequence[tuple[Case, Sequence[str]]]) -> list[int]:
    """The position of each group's first bar; a bar's height is left between groups."""
    return [0, *itertools.accumulate(len(present) + 1 for _, present in groups)][:-1]


def _label_cases(axes: Axes, positions: Sequence[float], cases: Sequence[Case]) -> None:
    axes.set_yticks(positions, [f"{case.workload.title}\n{case.network}, N={case.batch:,}" for case in cases])
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
