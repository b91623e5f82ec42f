"""Settings shared by all tests: the same random numbers each time, few threads, no time limit."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import settings

# The first call of an op may load or warm something up: a time limit per example would fail at random.
settings.register_profile("taylorderiv", deadline=None, derandomize=True)
settings.load_profile("taylorderiv")

torch.set_num_threads(2)


@pytest.fixture
def show(record_property: Callable[[str, str], None]) -> Callable[[str], None]:
    """Shows a text when all tests are done, in whichever process this one runs."""
    return partial(record_property, "shown")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for group in terminalreporter.stats.values() for report in group]
    for report in reports:
        if getattr(report, "when", None) == "call":
            for name, text in report.user_properties:
                if name == "shown":
                    terminalreporter.section(report.nodeid)
                    terminalreporter.write_line(text)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)
