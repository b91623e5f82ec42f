"""A part of benchmarks/coverage.py: PyTorch's operator database, two samples of each entry, to second order."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    # By its path: there is a well-known package of that name.
    spec = importlib.util.spec_from_file_location("operator_coverage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_operators_of_pytorch_agree_with_its_nested_forward_mode() -> None:
    # In a process of its own: PyTorch's samples look through the call stack, which is deep in a test.
    run = subprocess.run([sys.executable, SCRIPT, "--fast"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("entry", ["grid_sampler_3d", "to_sparse"])
def test_the_list_of_what_is_not_supported_is_exact(coverage: ModuleType, entry: str) -> None:
    assert entry in coverage.UNSUPPORTED
    (record, *_) = coverage.run(coverage.Task(entry, torch.float64, 1, 1, seconds=60))
    assert record.verdict == "unsupported"
    assert coverage.failures(coverage.verdicts([record])) == []
    assert coverage.failures(coverage.verdicts([record._replace(entry="sin")])) != []


def test_a_wrong_rule_is_noticed(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from taylorderiv import registry

    monkeypatch.setitem(registry._RULES, "sin", lambda x: x.with_coefficients(x.coefficients.sin()))
    monkeypatch.setattr(registry, "_FOUND", {})
    (record, *_) = coverage.run(coverage.Task("sin", torch.float64, 2, 1, seconds=60))
    assert record.verdict == "WRONG"
    assert coverage.failures(coverage.verdicts([record])) == [record]
