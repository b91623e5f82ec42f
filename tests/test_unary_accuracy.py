"""The accuracy of unary ops against exact Taylor coefficients (mpmath), over their domains.

The error of f^(k) is measured against |f^(k)| + |x f^(k+1)|: its own size and what one rounding of x would
change.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import OTHER_INSTRUCTION_SETS, passes_with
from mp_series import Series
from mpmath import mp
from torch import Tensor
from unary_oracles import compose, pack, random_curves
from unary_records import RECORDS, Record

from taylorderiv import build_info, derivatives, kernels
from taylorderiv.layout import Layout

pytestmark = pytest.mark.skipif(build_info()["backend"] == "reference", reason="what the kernels promise")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}
ORDER = {torch.float64: 20, torch.float32: 10}
LAYOUT = Layout((4, 7, 4), (0.5, 0.0, -1.5))

by_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
by_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def assert_accurate(what: str, points: Tensor, actual: Tensor, expected: Tensor, scale: Tensor) -> None:
    """Fail unless the error of ``actual (C, N)`` is below the tolerance of its dtype, times ``scale``.

    Left out are results close to overflow, and the digits lost below the smallest normal number.
    """
    info = torch.finfo(actual.dtype)
    error = ((actual.double() - expected).abs() / (scale + info.tiny)).nan_to_num(nan=math.inf)
    error = torch.where(scale < 1e-3 * info.max, error, 0.0)
    if error.max() > TOLERANCE[actual.dtype]:
        c, i = divmod(int(error.argmax()), error.shape[1])
        raise AssertionError(
            f"{what}, coefficient {c} at x = {points[i].item()!r}: {actual[c, i].item()!r}, exactly"
            f" {expected[c, i].item()!r}, error {error[c, i].item():.1e}"
        )


@functools.cache
def exact_taylor(record: Record, order: int, spaced: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points ``(N,)``, exact Taylor coefficients there ``(order + 1, N)``, and the scale of their errors."""
    points = record.samples(spaced)
    rows = [[float(c) for c in record.taylor(x, order + 1)] for x in points]
    x, c = torch.tensor(points, dtype=torch.float64), torch.tensor(rows, dtype=torch.float64).T
    factors = torch.arange(1.0, order + 2.0, dtype=torch.float64)[:, None]
    return x, c[:-1], c[:-1].abs() + (factors * x * c[1:]).abs()


@by_record
def test_exact_series_agree_with_mpmath(record: Record) -> None:
    x = sum(record.smooth) / 2
    with mp.workdps(30):
        expected = mp.taylor(lambda x: record.exact(Series([x])).c[0], x, 8)
        assert all(abs(a - b) < 1e-20 for a, b in zip(record.taylor(x, 8), expected, strict=True))


@by_dtype
@by_record
def test_derivatives_are_accurate(record: Record, dtype: torch.dtype) -> None:
    assert_derivatives_are_accurate(record, dtype, ORDER[dtype], *exact_taylor(record, 20, 25))


@by_record
def test_derivatives_of_order_40_are_accurate(record: Record) -> None:
    assert_derivatives_are_accurate(record, torch.float64, 40, *exact_taylor(record, 40, 3))


def assert_derivatives_are_accurate(
    record: Record, dtype: torch.dtype, order: int, x: Tensor, expected: Tensor, scale: Tensor
) -> None:
    coefficients = torch.stack([x, torch.ones_like(x), *[torch.zeros_like(x)] * (order - 1)]).to(dtype)
    actual = kernels.unary(record.op, coefficients, Layout((order,)), record.params)
    assert_accurate(record.id, x, actual, expected[: order + 1], scale[: order + 1])


JetAndGradients = tuple[Tensor, Tensor, Tensor, Tensor]


def jet_and_gradients(f: Callable[[Tensor], Any], x: Tensor, grad: Tensor, grad_grad: Tensor) -> JetAndGradients:
    """``f(x)``, its gradient for the cotangent ``grad``, and the gradients of that for ``grad_grad``."""
    x, grad = x.requires_grad_(), grad.requires_grad_()
    y = f(x)
    (x_grad,) = torch.autograd.grad(y, x, grad, create_graph=True)
    by_grad, by_x = torch.autograd.grad(x_grad, (grad, x), grad_grad, materialize_grads=True)
    return y.detach(), x_grad.detach(), by_grad, by_x


@functools.cache
def exact_jet(record: Record) -> tuple[tuple[Tensor, ...], JetAndGradients, JetAndGradients]:
    """Random arguments for :func:`jet_and_gradients`, exact results, and the scales of their errors."""
    x, taylor, scale = (t[: LAYOUT.order + 3] if t.ndim == 2 else t for t in exact_taylor(record, 20, 25))
    coefficients = pack(LAYOUT, x, random_curves(x.float(), 3, LAYOUT.order).double())
    inputs = coefficients, *(torch.rand_like(coefficients).float().double() for _ in range(2))
    exact = jet_and_gradients(lambda c: compose(taylor, x, c, LAYOUT), *(t.clone() for t in inputs))
    # With absolute values everywhere, all that is added up is added up in size.
    sizes = Layout(LAYOUT.orders, tuple(abs(w) for w in LAYOUT.weights or ()))
    bound = jet_and_gradients(lambda c: compose(scale, x.abs(), c, sizes), *(t.abs() for t in inputs))
    return inputs, exact, bound


@by_dtype
@by_record
def test_jets_and_their_gradients_are_accurate(record: Record, dtype: torch.dtype) -> None:
    inputs, expected, scales = exact_jet(record)
    inputs = tuple(t.to(dtype, copy=True) for t in inputs)
    actual = jet_and_gradients(lambda c: kernels.unary(record.op, c, LAYOUT, record.params), *inputs)
    names = "jet", "gradient", "second derivative, by the gradient,", "second derivative, by the jet,"
    for name, a, b, scale in zip(names, actual, expected, scales, strict=True):
        assert_accurate(f"{name} of {record.id}", inputs[0][0].detach(), a, b, scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@by_record
def test_16_bit_floats_are_rounded_once(record: Record, dtype: torch.dtype) -> None:
    x = torch.tensor(record.samples(25)).to(dtype).float()
    coefficients = pack(LAYOUT, x, random_curves(x, 3, LAYOUT.order)).to(dtype)
    grad = torch.rand(coefficients.shape).to(dtype)
    results = []
    for argument in (coefficients.clone(), coefficients.float()):
        y = kernels.unary(record.op, argument.requires_grad_(), LAYOUT, record.params)
        results.append((y, torch.autograd.grad(y, argument, grad.to(y.dtype))[0]))
    for low, high in zip(*results, strict=True):
        assert low.dtype == dtype
        assert torch.equal(low.nan_to_num(), high.to(dtype).nan_to_num())


@by_dtype
def test_sin_and_cos_are_accurate_however_far_and_near_their_zeros(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(2000, generator=generator, dtype=torch.float64) * 2 - 1
    multiples = torch.randint(-30_000, 30_000, (2000,), generator=generator) * (math.pi / 2)
    far = torch.tensor([48e3, 1e5, 1e9, 1e10, 1e30])
    x = torch.cat([spread, 30 * spread, 48e3 * spread, multiples, far, -far]).to(dtype)
    sin, cos = derivatives(torch.sin, x, 1)
    with mp.workdps(60):
        for name, y, function in ("sin", sin, mp.sin), ("cos", cos, mp.cos):
            exact = [function(mp.mpf(point)) for point in x.tolist()]
            error = max(abs((value - e) / e) for value, e in zip(y.tolist(), exact, strict=True))
            assert error < 1.25 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_sin_and_tanh_keep_the_sign_of_zero(zero: float) -> None:
    for f in torch.sin, torch.tanh:
        assert math.copysign(1.0, derivatives(f, torch.tensor([zero]), 2)[0].item()) == math.copysign(1.0, zero)


@pytest.mark.parametrize("x", [-3.0, -1e-9, 0.5, 20.0])
def test_derivatives_of_exp_and_sin_repeat_up_to_order_40(x: float) -> None:
    point = torch.tensor([x], dtype=torch.float64)
    cycle = math.sin(x), math.cos(x), -math.sin(x), -math.cos(x)
    exp, sin = derivatives(torch.exp, point, 40), derivatives(torch.sin, point, 40)
    assert [y.item() for y in exp] == pytest.approx([math.exp(x)] * 41, rel=1e-13, abs=0)
    assert [y.item() for y in sin] == pytest.approx([cycle[k % 4] for k in range(41)], rel=1e-13, abs=0)


@pytest.mark.parametrize("instruction_set", OTHER_INSTRUCTION_SETS)
def test_other_instruction_sets_are_as_accurate(instruction_set: str) -> None:
    selection = "instruction_set_in_use or derivatives_are_accurate or gradients_are_accurate"
    passes_with(instruction_set, __file__, selection)


def test_the_instruction_set_in_use_is_the_one_asked_for() -> None:
    wanted = os.environ.get("TAYLORDERIV_INSTRUCTION_SET", build_info()["instruction_set"])
    assert build_info()["instruction_set"] == wanted
