"""What the tests of rules share: agreement with nested differentiation, in every layout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from taylorderiv import Jet, build_info, derivatives, fusion
from taylorderiv.jet import nested_level
from taylorderiv.testing import check

DOUBLE = torch.float64


def rand(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    """The same uniform float64 numbers each time."""
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=DOUBLE)


def unfused(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` with each layer of networks computed by itself."""
    with fusion(enabled=False):
        return function(*args)


def agrees(
    f: Callable[[Any], Any],
    x: Tensor,
    order: int = 3,
    *,
    equivalent: Callable[[Any], Any] | None = None,
    layouts: bool = True,
) -> None:
    """Fail unless ``f`` and its gradients agree with nested differentiation, in jets of any layout."""
    direction = rand(*x.shape, low=-1.0, high=1.5, seed=1)
    check(f, x, order, direction=direction, equivalent=equivalent)
    if layouts:
        agrees_in_all_layouts(f, x)


def agrees_in_all_layouts(f: Callable[[Any], Any], x: Tensor) -> None:
    """Fail unless jets of several directions, collapsed or not, agree with one direction at a time."""
    directions = torch.stack([rand(*x.shape, low=-1.0, high=1.0, seed=seed) for seed in (2, 3, 4)])
    with nested_level() as level:
        several = f(Jet.variable(x, (1, 3, 2), directions, level=level))
        weights = (0.5, 0.0, -2.0)
        collapsed = f(Jet.variable(x, (3, 1, 3), directions, weights=weights, level=level))
    for r, order in enumerate((1, 3, 2)):
        alone = derivatives(f, x, order, direction=directions[r])
        for k in range(order + 1):
            torch.testing.assert_close(several.derivative(k, r), alone[k], rtol=1e-9, atol=1e-9)
    first, last = (derivatives(f, x, 3, direction=directions[r]) for r in (0, 2))
    expected = weights[0] * first[3] + weights[2] * last[3]
    torch.testing.assert_close(collapsed.collapsed, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(collapsed.derivative(2, 2), last[2], rtol=1e-9, atol=1e-9)


# Those that this machine has besides the one in use: every better one includes the lesser.
_SETS = build_info()["instruction_sets"]
OTHER_INSTRUCTION_SETS = _SETS[: _SETS.index(build_info()["instruction_set"])]


def passes_with(instruction_set: str, file: str, selection: str) -> None:
    """Assert that tests of a file pass with another instruction set, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=line", file, "-k", selection],
        env={**os.environ, "TAYLORDERIV_INSTRUCTION_SET": instruction_set},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]
