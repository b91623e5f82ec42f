"""Numbers that aren't finite pass a fused chain as they pass its layers one by one: the IEEE result."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from agreement import unfused
from torch import Tensor
from torch.nn import functional as F
from unary_records import RECORDS, Record

from taylorderiv import Jet, fusion, kernels

pytestmark = pytest.mark.skipif(
    kernels.build_info()["backend"] == "reference", reason="the reference backend fuses nothing"
)

WEIGHTS, BIASES, POINTS, DIRECTIONS, GRADIENT = range(5)


def results(record: Record, value: float, where: int, seeded: bool, save: bool) -> list[Tensor]:
    """A chain and its gradients, with ``value`` as one number of something."""
    torch.manual_seed(0)
    dtype = torch.float64
    weights = [torch.rand(19, 2, dtype=dtype), torch.rand(17, 19, dtype=dtype) / 19, torch.rand(2, 17, dtype=dtype)]
    biases = [torch.full((19,), 0.2, dtype=dtype), torch.full((17,), 0.3, dtype=dtype)]
    x, along = torch.rand(5, 2, dtype=dtype) / 2, torch.rand(2, 1 if seeded else 5, 2, dtype=dtype)
    grad = torch.rand(5, 5, 2, dtype=dtype)
    place = [weights[1][3:4, 1], biases[1][4:5], x[2, :1], along[1, 0, :1], grad[2, 3, :1]][where]
    place.fill_(value)
    inputs = [t.requires_grad_() for t in (x, along, *weights, *biases)]
    with fusion(save=save):
        y: Any = record.function(F.linear(Jet.variable(x, (3, 1), along), weights[0], biases[0]))
        y = F.linear(record.function(F.linear(y, weights[1], biases[1])), weights[2]).coefficients
        return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("record", [r for r in RECORDS if r.kernel], ids=lambda r: r.id)
def test_infinities_and_nan_are_where_they_are_layer_by_layer(record: Record, value: float) -> None:
    for where in range(5):
        seeded, save = where != POINTS, where in (POINTS, GRADIENT)
        expected = unfused(results, record, value, where, seeded, save)
        for n, (a, e) in enumerate(zip(results(record, value, where, seeded, save), expected, strict=True)):
            context = f"place {where}, result {n}"
            for kind in (torch.isnan, torch.isposinf, torch.isneginf):
                assert torch.equal(kind(a), kind(e)), f"{context}:\n{a}\n{e}"
            finite = e.isfinite()
            torch.testing.assert_close(a[finite], e[finite], rtol=1e-9, atol=1e-9, msg=context)
