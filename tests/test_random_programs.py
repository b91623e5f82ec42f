"""Random programs against nested differentiation.

``TAYLORDERIV_PROGRAMS=100000 TAYLORDERIV_SEED=1 pytest -s tests/test_random_programs.py`` tries as many as you like.
"""

from __future__ import annotations

import collections
import os
import sys

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from random_programs import Program, programs, verdict

COUNT = int(os.environ.get("TAYLORDERIV_PROGRAMS", "200"))
SEED = int(os.environ.get("TAYLORDERIV_SEED", "0"))


@pytest.mark.filterwarnings("ignore")  # of PyTorch, of the variance of one element
def test_random_programs_agree_with_nested_autograd() -> None:
    verdicts: collections.Counter[str] = collections.Counter()

    @hypothesis.seed(SEED)
    @settings(max_examples=COUNT, derandomize=False, database=None, suppress_health_check=list(HealthCheck))
    @given(programs())
    def try_one(program: Program) -> None:
        found = verdict(program)
        verdicts[found] += 1
        assert not found.startswith("wrong"), f"{found}: {program!r}"

    try_one()
    sys.stdout.write(f"\nseed {SEED}, {verdicts.total()} programs: {dict(verdicts)}\n")
    assert verdicts["agrees"] > 0.9 * verdicts.total()
