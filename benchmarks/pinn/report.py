"""What a run found, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pinn.cases import Case
from pinn.claims import CLAIMS, Claim
from pinn.competitors import COMPETITORS, FLOOR, OURS, SINGLE, YARDSTICKS
from pinn.plots import draw
from pinn.results import OK, Results, Row

MISSING = "–"


def write(results: Results, facts: Mapping[str, Any], directory: Path) -> str:
    """Write ``results.json``, ``table.md`` and the plots to a directory; return the table."""
    table = markdown(results, facts)
    data = {
        "machine": facts,
        "claims": [_claim_data(claim, results) for claim in CLAIMS],
        "rows": [row.to_json() for row in results],
    }
    (directory / "results.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / "table.md").write_text(table, encoding="utf-8")
    draw(results, directory)
    return table


def markdown(results: Results, facts: Mapping[str, Any]) -> str:
    """All tables, the claims last."""
    sections = [
        "# High-order PINN losses: results",
        *(_line(name, value) for name, value in facts.items()),
        "",
        "## Speed",
        "",
        "Milliseconds of taylorderiv for the loss and its gradient; beside them, how many times longer others take,",
        "and the floor's share of the time (100 %: as fast as the matrix products alone).",
        "",
        *_table(_speed_rows(results)),
        "",
        "## Memory",
        "",
        "By how much the resident set grows at most during a step, in MiB.",
        "",
        *_table(_memory_rows(results)),
        "",
        "## float64",
        "",
        *_table(_double_rows(results)),
        "",
        "## All rows",
        "",
        *_table(_all_rows(results)),
        "",
        "## Claims",
        "",
        *_table(_claim_rows(results)),
        "",
    ]
    return "\n".join(sections)


def _line(name: str, value: Any) -> str:
    text = ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, Mapping) else str(value)
    return f"- {name.replace('_', ' ')}: {text}"


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown lines; the first row is the header. The first column is text, the others are numbers."""
    header, *body = rows
    rule = ["---", *["--:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *body)]


def _rivals(results: Results) -> list[str]:
    """Competitors to compare with that were timed in any case."""
    timed = {row.competitor for row in results if row.times} - {OURS, *YARDSTICKS}
    return [name for name in COMPETITORS if name in timed]


def _titles(names: Iterable[str]) -> list[str]:
    return [COMPETITORS[name].title for name in names]


def _cases_of_ours(results: Results) -> list[Case]:
    return [case for case in results.cases if results.seconds(case, OURS)]


def _speed_rows(results: Results) -> Iterable[Sequence[str]]:
    rivals = _rivals(results)
    yield ["case", "ms", "floor's share", *_titles(rivals)]
    for case in _cases_of_ours(results):
        ours = results.seconds(case, OURS)
        assert ours is not None
        floor = results.seconds(case, FLOOR)
        share = MISSING if floor is None else f"{floor / ours:.0%}"
        yield [
            case.label,
            _milliseconds(ours),
            share,
            *(_times_longer(results.get(case, name), ours) for name in rivals),
        ]


def _times_longer(row: Row | None, ours: float) -> str:
    if row is None:
        return MISSING
    return _reason(row) if row.median is None else f"{row.median / ours:.3g}×"


def _reason(row: Row) -> str:
    """Why there's no number, in a few words."""
    return row.reason.split(":")[0]


def _memory_rows(results: Results) -> Iterable[Sequence[str]]:
    rivals = _rivals(results)
    yield ["case", COMPETITORS[OURS].title, *_titles(rivals)]
    for case in _cases_of_ours(results):
        yield [case.label, *(_mebibytes(results.get(case, name)) for name in (OURS, *rivals))]


def _mebibytes(row: Row | None) -> str:
    return MISSING if row is None or row.memory is None else f"{row.memory / 2**20:.1f}"


def _double_rows(results: Results) -> Iterable[Sequence[str]]:
    yield ["case", "float32, ms", "float64, ms", "quotient"]
    for case in _cases_of_ours(results):
        single, double = results.seconds(case, SINGLE), results.seconds(case, OURS)
        if single and double:
            label = case.label.replace(f", {case.dtype}", "")
            yield [label, _milliseconds(single), _milliseconds(double), f"{double / single:.2f}"]


def _all_rows(results: Results) -> Iterable[Sequence[str]]:
    numbers = ["ms", "quartiles", "rounds", "steps", "MiB", "first step, s", "error of loss", "of gradient"]
    yield ["case", "competitor", *numbers]
    for case in results.cases:
        for name, competitor in COMPETITORS.items():
            row = results.get(case, name)
            if row is None:
                continue
            if row.status != OK:
                yield [case.label, competitor.title, row.reason.replace("|", "\\|"), *[MISSING] * (len(numbers) - 1)]
                continue
            quartiles = MISSING if row.quartiles is None else "–".join(map(_milliseconds, row.quartiles))
            yield [
                case.label,
                competitor.title,
                MISSING if row.median is None else _milliseconds(row.median),
                quartiles,
                str(len(row.times)),
                str(row.steps),
                _mebibytes(row),
                MISSING if row.preparation is None else f"{row.preparation:.1f}",
                _error(row.loss_error),
                _error(row.gradient_error),
            ]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _error(error: float | None) -> str:
    return MISSING if error is None else f"{error:.0e}"


def _claim_rows(results: Results) -> Iterable[Sequence[str]]:
    yield ["workload", "against", "required", "measured", ""]
    for claim in CLAIMS:
        quotient, met = claim.measured(results), claim.met(results)
        verdict = {None: "not measured", True: "met", False: "**missed**"}[met]
        yield [claim.title, claim.against, claim.required, MISSING if quotient is None else f"{quotient:.3g}", verdict]


def _claim_data(claim: Claim, results: Results) -> dict[str, Any]:
    return {
        "workload": claim.title,
        "against": claim.against,
        "required": claim.required,
        "measured": claim.measured(results),
        "met": claim.met(results),
    }
