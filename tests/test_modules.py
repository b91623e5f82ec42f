"""The layers of torch.nn, by benchmarks/coverage.py, and what PyTorch builds around them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import rand
from torch import nn

from taylorderiv import derivatives
from taylorderiv.testing import check
from torch_modules import LAYERS, NO_LAYERS

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "coverage.py"


def test_modules_of_pytorch_agree_with_nested_differentiation() -> None:
    # In a process of its own: PyTorch's samples look through the call stack, which is deep in a test.
    run = subprocess.run([sys.executable, SCRIPT, "--modules", "--fast"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_layer_is_forgotten() -> None:
    from torch.testing._internal.common_modules import module_db

    with_samples = {info.module_cls.__name__ for info in module_db}
    assert set(nn.modules.__all__) - with_samples == LAYERS.keys() | NO_LAYERS


PARAMETRIZED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)).eval(),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 2)),
    "spectral_norm_of_convolution": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv1d(4, 2, 2)).eval(),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrized_weights(name: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(PARAMETRIZED[name](), nn.Tanh()).double()
    check(module, rand(4, 3, low=-1), 3)


def test_spectral_norm_iterates_once_in_training() -> None:
    torch.manual_seed(0)
    ours, plain = (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)).double() for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    x = rand(4, 3)
    torch.testing.assert_close(derivatives(ours, x, 2)[0], plain(x))
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())


def test_embedded_numbers_are_constants() -> None:
    """A network of coordinates beside an embedding of which equation, body or material it is for."""

    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(3, 4, padding_idx=0)
            self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))

        def forward(self, x: Any) -> Any:
            return self.net(torch.cat([x, self.embedding(torch.tensor([0, 1, 2, 1]))], -1))

    torch.manual_seed(0)
    check(Conditioned().double(), rand(4, 1), 3)
