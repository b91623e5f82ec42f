"""Selection by the primal: maxima, order, clamping; ties follow PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import DOUBLE, agrees, rand

from taylorderiv import derivatives

OTHER = rand(3, 4, low=-1, seed=20)

# Applied to a value of shape (3, 4) without ties.
CASES: dict[str, Callable[[Any], Any]] = {
    "max": lambda x: x.max(),
    "max_dim": lambda x: torch.max(x, 1).values,
    "max_dim_keepdim": lambda x: x.max(dim=0, keepdim=True)[0],
    "max_other": lambda x: torch.max(x, OTHER),
    "min": lambda x: torch.min(x),
    "min_dim": lambda x: x.min(-1)[0],
    "maximum": lambda x: torch.maximum(x, x.cos() - 0.5),
    "minimum": lambda x: torch.minimum(OTHER, x),
    "fmax": lambda x: torch.fmax(x, OTHER),
    "fmin": lambda x: torch.fmin(x, OTHER),
    "amax": lambda x: x.amax(1),
    "amax_all": lambda x: torch.amax(x),
    "amin_dims": lambda x: x.amin((0, 1), keepdim=True),
    "aminmax": lambda x: torch.aminmax(x, dim=1).max - torch.aminmax(x).min,
    "clamp": lambda x: x.clamp(-0.3, 0.4),
    "clamp_min": lambda x: torch.clamp_min(x, -0.3),
    "clamp_max_tensor": lambda x: torch.clamp(x, max=OTHER),
    "clamp_jets": lambda x: torch.clamp(x, x.sin() - 0.1, 2 * x),
    "clamp_crossed": lambda x: torch.clamp(x, 0.5, -0.5) + x,
    "clip": lambda x: x.clip(min=0.1),
    "sort": lambda x: x.sort(dim=1, descending=True).values,
    "sort_default": lambda x: torch.sort(x)[0],
    "msort": lambda x: torch.msort(x),
    "topk": lambda x: x.topk(2).values,
    "kthvalue": lambda x: torch.kthvalue(x, 2).values,
    "median": lambda x: x.median(),
    "median_dim": lambda x: x.median(dim=1).values,
    "mode": lambda x: torch.mode(x, 0).values,
    "cummax": lambda x: torch.cummax(x, 1).values,
    "cummin": lambda x: x.cummin(0)[0],
    "argmax_is_an_index": lambda x: x[:, x.sum(0).argmax()],
    "sort_indices": lambda x: torch.gather(x, 1, x.argsort(1)),
    "where_on_itself": lambda x: torch.where(x > 0, x.sin(), -x),
    "branch": lambda x: x.exp() if (x.sum() > 0) else -x,
    "relu": F.relu,
    "threshold": lambda x: F.threshold(x, 0.1, 2.0),
    "hardshrink": lambda x: F.hardshrink(x, 0.3),
    "softshrink": lambda x: F.softshrink(x, 0.3),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2, 0.1, 0.3, 0.4], dtype=DOUBLE)),
    "hardswish": lambda x: F.hardswish(4 * x),
    "logical": lambda x: x * ((x > 0) & (x < 0.5)),
    "rounding": lambda x: x - x.round() + x.ceil() * x.frac(),
}


@pytest.mark.parametrize("f", CASES.values(), ids=CASES)
def test_selection(f: Callable[[Any], Any]) -> None:
    x = torch.tensor([[0.81, -0.52, 0.33, -0.94], [0.11, 0.62, -0.73, 0.24], [-0.35, 0.96, 0.47, -0.18]], dtype=DOUBLE)
    agrees(lambda x: f(x**3 + x), x, 2)


TIES: dict[str, Callable[[Any], Any]] = {
    "amax": lambda x: x.amax(),
    "amin_dim": lambda x: (-x).amin(0),
    "max": lambda x: x.max(),
    "max_dim": lambda x: x.max(0).values,
    "maximum": lambda x: torch.maximum(x, x.flip(0)),
    "minimum_number": lambda x: torch.minimum(x, torch.ones_like(x)),
    "clamp_at_its_bounds": lambda x: x.clamp(-1.0, 1.0),
    "relu": lambda x: F.relu(x - 1),
    "sort": lambda x: x.sort(stable=True).values,
    "where": lambda x: torch.where(x >= 1, 2 * x, x),
}


@pytest.mark.parametrize("f", TIES.values(), ids=TIES)
def test_ties_are_shared_as_in_pytorch(f: Callable[[Any], Any]) -> None:
    x = torch.tensor([1.0, -1.0, 1.0, 0.5], dtype=DOUBLE)
    direction = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=DOUBLE)
    expected = torch.func.vjp(f, x)
    got = derivatives(f, x, 1, direction=direction)
    torch.testing.assert_close(got[0], expected[0])
    cotangent = rand(*got[0].shape, seed=3)
    torch.testing.assert_close((got[1] * cotangent).sum(), (expected[1](cotangent)[0] * direction).sum())


def test_nan_and_infinity_are_kept() -> None:
    x = torch.tensor([torch.nan, torch.inf, 1.0], dtype=DOUBLE)
    for f in (
        lambda x: x.clamp(-2, 2),
        lambda x: torch.maximum(x, torch.zeros_like(x)),
        lambda x: x.amax(),
        lambda x: torch.where(x.isnan(), 0.0, x),
        lambda x: x.nan_to_num(nan=3.0, posinf=7.0),
    ):
        torch.testing.assert_close(derivatives(f, x, 1)[0], f(x), equal_nan=True)


def test_comparisons_and_tests_are_plain_tensors() -> None:
    seen = []

    def f(x: Any) -> Any:
        seen.extend([x > 0, x == x, x.isnan(), torch.isfinite(x), x.argmax(), x.long(), torch.zeros_like(x), x < 1])
        return x

    derivatives(f, torch.tensor([0.5, -1.0]), 2)
    assert all(isinstance(value, torch.Tensor) for value in seen)
    assert seen[0].tolist() == [True, False]
    assert seen[-1].tolist() == [True, True]


def test_random_slopes_are_those_that_pytorch_draws() -> None:
    x = rand(50, low=-1.0)
    torch.manual_seed(3)
    expected = F.rrelu(x, training=True)
    torch.manual_seed(3)
    value, first = derivatives(lambda x: F.rrelu(x, training=True), x, 1)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(first, expected / x)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "mean", "prod", "amax", "amin"])
def test_reductions_of_scattered_elements(reduce: str, include_self: bool) -> None:
    index = torch.tensor([[0, 0, 1], [1, 0, 1], [0, 2, 1]])
    x = rand(4, 3, low=0.5, high=1.5)

    def by_loops(x: Any) -> Any:
        combine = {"mean": "sum"}.get(reduce, reduce)
        rows = []
        for i in range(4):
            row = []
            for j in range(3):
                group = [x.sin()[k, j] for k in range(3) if index[k, j] == i]
                group += [x[i, j]] if include_self or not group else []
                value = getattr(torch.stack(group), combine)(0)
                row.append(value / len(group) if reduce == "mean" else value)
            rows.append(torch.stack(row))
        return torch.stack(rows)

    agrees(lambda x: x.scatter_reduce(0, index, x.sin(), reduce, include_self=include_self), x, equivalent=by_loops)
    if reduce != "sum":
        places = torch.tensor([2, 0, 2])
        agrees(
            lambda x: x.index_reduce(0, places, x[:3].sin(), reduce, include_self=include_self),
            x,
            equivalent=lambda x: x.scatter_reduce(
                0, places[:, None].expand(3, 3), x[:3].sin(), reduce, include_self=include_self
            ),
            layouts=False,
        )
