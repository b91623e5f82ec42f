"""Training leaks nothing and leaves the inputs alone."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import DOUBLE, rand
from torch import nn

from taylorderiv import Jet, build_info, derivatives, fusion, partials


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def peak_bytes(run: Callable[[], object]) -> int:
    """How far resident memory rises above what it is now."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident_bytes()
    run()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) - before


def live_jets() -> int:
    return sum(type(o) is Jet for o in gc.get_objects())


def trainer() -> tuple[nn.Module, torch.Tensor, Any]:
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = rand(16, 1).requires_grad_()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        u, _, u_xx = derivatives(model, x, 2)
        optimizer.zero_grad()
        ((u + u_xx) ** 2).mean().backward(inputs=list(model.parameters()))
        optimizer.step()

    return model, x, step


def test_ten_thousand_steps_leave_memory_flat_and_no_jets() -> None:
    # In a process of its own: memory that other tests gave back makes the resident one rise and fall.
    subprocess.run([sys.executable, __file__], check=True)


def train_ten_thousand_steps() -> None:
    _, x, step = trainer()
    for _ in range(1000):
        step()
    gc.collect()
    before, objects = resident_bytes(), len(gc.get_objects())
    for _ in range(9000):
        step()
    gc.collect()
    assert resident_bytes() - before < 8 << 20
    assert len(gc.get_objects()) - objects < 500
    assert live_jets() == 0
    assert x.grad is None


@pytest.mark.skipif(build_info()["backend"] == "reference", reason="the reference backend fuses nothing")
def test_a_chain_that_recomputes_needs_memory_for_its_result_and_each_thread_only() -> None:
    layers = [nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)]
    model, directions = nn.Sequential(*layers), torch.eye(2)[:, None]

    def peak(points: int, save: bool) -> int:
        x, grad = torch.rand(points, 2), torch.rand(6, points, 1)

        def run() -> None:
            with fusion(save=save):
                jet: Any = Jet.variable(x, (4, 1), directions)
                torch.autograd.backward(model(jet).coefficients, grad)

        return peak_bytes(run)

    peak(1000, save=False)
    result = 60_000 * 6 * 4
    saved = 2 * 64 * result  # layers of all points; the first one of a seed is computed again
    inexact = 2**20  # Linux keeps account of a process's memory by blocks of pages, per core.
    assert peak(60_000, save=True) > saved - inexact  # what is measured can be seen
    assert peak(60_000, save=False) < 3 * result + (8 << 20)


def test_jets_die_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        seen: list[weakref.ref[Jet]] = []

        def f(x: Any) -> Any:
            y = torch.sin(x) * x[:, :1]
            seen.extend([weakref.ref(x), weakref.ref(y)])
            return y.sum(-1)

        derivatives(f, rand(3, 2), 3)
        assert [r() for r in seen] == [None, None]
    finally:
        gc.enable()


def test_jets_die_after_an_error() -> None:
    def f(x: Any) -> Any:
        raise KeyError("in the user's function")

    for _ in range(3):
        with pytest.raises(KeyError):
            derivatives(f, rand(3), 2)
    gc.collect()
    assert live_jets() == 0


def test_gradients_of_inputs_are_never_set() -> None:
    x = rand(4, 2).requires_grad_()
    p = partials(lambda x: torch.sin(x).prod(-1), x, ["x", "xy"], variables="xy")
    derivatives(torch.sin, x, 3)
    assert x.grad is None
    assert p.xy.dtype == DOUBLE


if __name__ == "__main__":
    train_ten_thousand_steps()
