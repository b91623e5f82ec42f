"""Which competitors are measured in which cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pinn.cases import Case, full, usual
from pinn.claims import CLAIMS, EQUATION, LAPLACIAN
from pinn.competitors import COMPETITORS, FLOOR, OURS

Suite = Mapping[Case, list[str]]


def everyone(case: Case) -> list[str]:
    """All competitors to which a case applies."""
    return [name for name, competitor in COMPETITORS.items() if competitor.applies(case.workload)]


def full_suite() -> Suite:
    """Everyone in every case."""
    return everyone_in(full())


def everyone_in(cases: Iterable[Case]) -> Suite:
    """Everyone in these cases."""
    return {case: everyone(case) for case in cases}


def short_suite() -> Suite:
    """What the claims need, everyone in two cases, and what the plots against the order need."""
    wanted = {EQUATION: set(everyone(EQUATION)), LAPLACIAN: set(everyone(LAPLACIAN))}
    for order in (2, 4, 6):
        wanted[usual(f"sine-{order}")] = {OURS, FLOOR, "nested-autograd", "jet-for-pytorch"}
    for claim in CLAIMS:
        for case, competitor in claim.needs:
            wanted.setdefault(case, set()).update({competitor, FLOOR})
    return {case: [name for name in COMPETITORS if name in names] for case, names in wanted.items()}


SUITES = {"short": short_suite, "full": full_suite}
