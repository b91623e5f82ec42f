"""Unary ops where derivatives are infinite or overflow: what calculus says; at kinks: what PyTorch says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from unary_oracles import nested_along
from unary_records import RECORDS, Record

from taylorderiv import build_info, derivatives, kernels
from taylorderiv.layout import Layout

pytestmark = pytest.mark.skipif(build_info()["backend"] == "reference", reason="what the kernels promise")

DOUBLE = torch.float64
SIGN = {"+": math.inf, "-": -math.inf, "0": 0.0}

# The derivatives of orders 1, 2, …, 6 at singular points: 0 or infinite.
SINGULAR = [
    ("log", (), 0.0, "+-+-+-"),
    ("log2", (), 0.0, "+-+-+-"),
    ("log10", (), 0.0, "+-+-+-"),
    ("log1p", (), -1.0, "+-+-+-"),
    ("sqrt", (), 0.0, "+-+-+-"),
    ("rsqrt", (), 0.0, "-+-+-+"),
    ("reciprocal", (), 0.0, "-+-+-+"),
    ("reciprocal", (), -0.0, "------"),
    ("pow", (1.5,), 0.0, "0+-+-+"),
    ("pow", (2.5,), 0.0, "00+-+-"),
    ("pow", (1 / 3,), 0.0, "+-+-+-"),
    ("pow", (-1.3,), 0.0, "-+-+-+"),
    ("asin", (), 1.0, "++++++"),
    ("asin", (), -1.0, "+-+-+-"),
    ("acos", (), 1.0, "------"),
    ("acos", (), -1.0, "-+-+-+"),
    ("acosh", (), 1.0, "+-+-+-"),
    ("atanh", (), 1.0, "++++++"),
    ("atanh", (), -1.0, "+-+-+-"),
]
at_singular_points = pytest.mark.parametrize(("op", "params", "x", "signs"), SINGULAR)
by_dtype = pytest.mark.parametrize("dtype", [DOUBLE, torch.float32], ids=str)


def torch_function(op: str, params: tuple[float, ...]) -> Callable[[Any], Any]:
    return lambda x: getattr(torch, op)(x, *params)


def line(x: Tensor, order: int) -> Tensor:
    """The jet of ``x + t``."""
    return torch.stack([x, torch.ones_like(x), *[torch.zeros_like(x)] * (order - 1)][: order + 1])


@by_dtype
@at_singular_points
def test_derivatives_at_singular_points(
    op: str, params: tuple[float, ...], x: float, signs: str, dtype: torch.dtype
) -> None:
    f, point = torch_function(op, params), torch.tensor([x], dtype=dtype, requires_grad=True)
    y = derivatives(f, point, 5)
    torch.testing.assert_close(y[0], f(point))
    for k in range(6):
        if k:
            assert y[k].item() == SIGN[signs[k - 1]]
        assert torch.autograd.grad(y[k], point, retain_graph=True)[0].item() == SIGN[signs[k]]


@by_dtype
@at_singular_points
def test_gradients_at_singular_points(
    op: str, params: tuple[float, ...], x: float, signs: str, dtype: torch.dtype
) -> None:
    order = 2
    slope, curvature = ([SIGN[s] for s in signs[m : m + order + 1]] for m in (0, 1))
    layout, n = Layout((order,)), order + 1
    # The Jacobian of the coefficients of y(x(t)) is the Toeplitz matrix of the series of the slope.
    rows = [[slope[k - j] if k >= j else 0.0 for j in range(n)] for k in range(n)]
    jacobian = torch.tensor(rows, dtype=dtype)
    unit = torch.eye(n, dtype=dtype)
    coefficients = line(torch.full((n,), x, dtype=dtype), order).requires_grad_()
    grad = unit.clone().requires_grad_()
    y = kernels.unary(op, coefficients, layout, params)
    (gradient,) = torch.autograd.grad(y, coefficients, grad, create_graph=True)
    assert torch.equal(gradient, jacobian.T)

    for i in range(n):
        along = unit[i, :, None].expand(n, n)
        by_grad, by_x = torch.autograd.grad(gradient, (grad, coefficients), along, retain_graph=True)
        rows = [[curvature[k - i - j] if k >= i + j else 0.0 for k in range(n)] for j in range(n)]
        assert torch.equal(by_x, torch.tensor(rows, dtype=dtype))
        assert torch.equal(by_grad, jacobian[:, i, None].expand(n, n))


@by_dtype
@at_singular_points
def test_constants_at_singular_points_have_no_derivatives(
    op: str, params: tuple[float, ...], x: float, signs: str, dtype: torch.dtype
) -> None:
    constant = torch.tensor([[x], [0.0], [0.0], [0.0]], dtype=dtype, requires_grad=True)
    y = kernels.unary(op, constant, Layout((2, 1)), params)
    assert torch.equal(y[1:], torch.zeros(3, 1, dtype=dtype))
    (gradient,) = torch.autograd.grad(y, constant, torch.zeros_like(y))
    assert torch.equal(gradient, torch.zeros(4, 1, dtype=dtype))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_integer_powers_at_zero(n: int) -> None:
    x = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    for k, y in enumerate(derivatives(lambda x: x**n, x, 12)):
        (gradient,) = torch.autograd.grad(y, x, retain_graph=True)
        assert y.item() == (math.factorial(n) if k == n else 0)
        assert gradient.item() == (math.factorial(n) if k + 1 == n else 0)


@pytest.mark.parametrize("n", [-1, -2, -3])
def test_negative_integer_powers_at_zero(n: int) -> None:
    x = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    for k, y in enumerate(derivatives(lambda x: x**n, x, 4)):
        assert y.item() == math.inf * (-1) ** k
        assert torch.autograd.grad(y, x, retain_graph=True)[0].item() == -math.inf * (-1) ** k


def test_half_integer_powers_at_zero() -> None:
    x = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    for p, signs in (0.5, "0+-+-+"), (-0.5, "+-+-+-"), (1.5, "00+-+-"):
        y = derivatives(lambda x, p=p: x**p, x, 4)
        assert [d.item() for d in y] == [SIGN[s] for s in signs[:5]]
        assert torch.autograd.grad(y[4], x)[0].item() == SIGN[signs[5]]


@by_dtype
def test_sinc_at_zero(dtype: torch.dtype) -> None:
    x = torch.zeros(1, dtype=dtype, requires_grad=True)
    expected = [(-1) ** (k // 2) * math.pi**k / (k + 1) if k % 2 == 0 else 0.0 for k in range(14)]
    for k, y in enumerate(derivatives(torch.sinc, x, 12)):
        assert y.item() == pytest.approx(expected[k], rel=10 * torch.finfo(dtype).eps)
        (gradient,) = torch.autograd.grad(y, x, retain_graph=True)
        assert gradient.item() == pytest.approx(expected[k + 1], rel=10 * torch.finfo(dtype).eps)


def test_tanh_next_to_zero() -> None:
    x = torch.tensor([1e-300], dtype=DOUBLE, requires_grad=True)
    y = derivatives(torch.tanh, x, 4)
    expected = [1e-300, 1.0, -2e-300, -2.0, 16e-300, 16.0]
    for k in range(5):
        assert y[k].item() == pytest.approx(expected[k], rel=1e-15, abs=0)
        (gradient,) = torch.autograd.grad(y[k], x, retain_graph=True)
        assert gradient.item() == pytest.approx(expected[k + 1], rel=1e-15, abs=0)


def test_silu_where_it_is_saturated() -> None:
    x = torch.tensor([40.41], dtype=DOUBLE)
    # x sigma(x) = x - x exp(-x) + …; its next term is 17 orders of magnitude below.
    expected = [x, 1, *[(-1) ** (k + 1) * (x - k) * torch.exp(-x) for k in range(2, 7)]]
    for y, value in zip(derivatives(F.silu, x, 6), expected, strict=True):
        assert y.item() == pytest.approx(float(value), rel=1e-13, abs=0)


OVERFLOWING = [
    ("exp", 800.0),
    ("exp2", 1100.0),
    ("expm1", 800.0),
    ("sinh", 800.0),
    ("sinh", -800.0),
    ("cosh", 800.0),
    ("cosh", -800.0),
    ("square", 1e200),
    ("log", 1e-120),
    ("log2", 1e-120),
    ("log10", 1e-120),
    ("sqrt", 1e-120),
    ("rsqrt", 1e-120),
    ("pow", 1e-120),
    ("reciprocal", 1e-120),
    ("reciprocal", -1e-120),
    ("asinh", 1e200),
    ("acosh", 1e200),
]


@pytest.mark.parametrize(("op", "x"), OVERFLOWING)
def test_what_overflows_is_infinite(op: str, x: float) -> None:
    record = next(record for record in RECORDS if record.op == op)
    y = kernels.unary(op, line(torch.tensor([x], dtype=DOUBLE), 6), Layout((6,)), record.params)
    assert y[:, 0].tolist() == pytest.approx([float(c) for c in record.taylor(x, 6)], rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("record", [r for r in RECORDS if r.kinks], ids=lambda record: record.id)
def test_kinks_follow_pytorch(record: Record) -> None:
    x = torch.tensor(record.kinks, dtype=DOUBLE)
    value, coefficients = nested_along(record.function, x, line(x, 3)[None, 1:])
    expected = torch.cat([value[None], coefficients[0]])
    actual = kernels.unary(record.op, line(x, 3), Layout((3,)), record.params)
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("x", [math.inf, -math.inf, 1e4, -1e4])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_infinite_and_huge_inputs_behave_as_in_nested_autograd(record: Record, x: float) -> None:
    point = torch.tensor([x], dtype=DOUBLE, requires_grad=True)
    expected = [record.function(point)]
    for _ in range(2):
        y = expected[-1]
        expected.append(torch.zeros_like(y))
        if y.requires_grad:
            (expected[-1],) = torch.autograd.grad(y, point, create_graph=True)
    actual = kernels.unary(record.op, line(point.detach(), 2), Layout((2,)), record.params)
    for k, value in enumerate(expected):
        if not value.isnan():
            torch.testing.assert_close(actual[k] * math.factorial(k), value.detach(), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_nan_stays_nan(record: Record) -> None:
    x = torch.tensor([math.nan, record.smooth[0]], dtype=DOUBLE)
    y = kernels.unary(record.op, line(x, 2), Layout((2,)), record.params)
    assert y[0, 0].isnan() == record.function(x)[0].isnan()  # torch.sign(nan) is 0
    assert y[:, 1].isfinite().all()
