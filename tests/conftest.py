"""Settings shared by all tests: the same random numbers each time, few threads, no time limit."""

import pytest
import torch
from hypothesis import settings

# The first call of an op may load or warm something up: a time limit per example would fail at random.
settings.register_profile("taylorderiv", deadline=None, derandomize=True)
settings.load_profile("taylorderiv")

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)
