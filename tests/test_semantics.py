"""The rows of docs/semantics.md, one test each."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import DOUBLE, agrees, rand
from torch import Tensor

from taylorderiv import Jet, build_info, derivatives
from taylorderiv.testing import nested_derivatives

PAGE = Path(__file__).parent.parent / "docs" / "semantics.md"


def test_every_row_has_its_test() -> None:
    rows = re.findall(r"^\| ([a-z][^|]*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    tests = [name for name in globals() if name.startswith("test_") and name != "test_every_row_has_its_test"]
    assert [f"test_{re.sub(r'[ -]', '_', row.lower())}" for row in rows] == tests


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def test_in_place_ops() -> None:
    def f(x: Any) -> Any:
        y = x.sin()
        alias = y
        y.mul_(2)
        y += x
        y[0] = x[1] ** 2
        F.relu(y, inplace=True)
        return alias * 1.0

    expected = lambda x: torch.cat([x[1:2] ** 2, (2 * x.sin() + x)[1:]])  # noqa: E731
    agrees(f, rand(3, low=0.5), equivalent=expected)


def test_writes_through_views() -> None:
    def through(x: Any) -> Any:
        y = x * 2
        y[1:].add_(1)
        return y

    def beside(x: Any) -> Any:
        y = x * 2
        view = y[1:]
        y.add_(1)
        return view

    for f in (through, beside):
        with pytest.raises(NotImplementedError, match="clone"):
            derivatives(f, rand(3), 1)


def test_writes_into_plain_tensors() -> None:
    def f(x: Any) -> Any:
        y = torch.zeros(3, dtype=DOUBLE)
        y[0] = x[0]
        return y

    with pytest.raises(NotImplementedError, match="no place for Taylor coefficients"):
        derivatives(f, rand(3), 1)
    with pytest.raises(NotImplementedError, match="out="):
        derivatives(lambda x: torch.sin(x, out=torch.zeros(3, dtype=DOUBLE)), rand(3), 1)


def test_random_numbers() -> None:
    x = rand(50)
    for f in (
        lambda x: x**2 * torch.rand_like(x),
        lambda x: F.dropout(x**2, 0.3),
        lambda x: F.rrelu(x - 0.5, training=True),
        lambda x: x * torch.bernoulli(x),
    ):
        torch.manual_seed(5)
        expected = f(x)
        torch.manual_seed(5)
        value, first = derivatives(f, x, 1)
        torch.testing.assert_close(value, expected)
        assert first.shape == x.shape
    value, first = derivatives(lambda x: F.dropout(x**2, 0.3), x, 1)
    torch.testing.assert_close(x * first, 2 * value)


def test_values_and_branches() -> None:
    def f(x: Any) -> Any:
        assert float(x[0]) == x[0].item() == x.tolist()[0]
        assert "Jet" in repr(x) or isinstance(x, Tensor)
        return x.sin() * x[0].item() if x.sum() > 0 else x

    x = numbers(0.5, 2.0)
    torch.testing.assert_close(derivatives(f, x, 1), (x.sin() * 0.5, x.cos() * 0.5))
    torch.testing.assert_close(derivatives(f, -x, 1), (-x, torch.ones_like(x)))


def test_integers_and_booleans() -> None:
    def f(x: Any) -> Any:
        for constant in (x > 0, x.argmax(), x.int(), x.long(), x.isnan(), torch.count_nonzero(x)):
            assert not isinstance(constant, Jet)
        return x * x.argmax() * (x > 0.1)

    x = numbers(0.0, 0.7, 0.9)
    torch.testing.assert_close(derivatives(f, x, 1)[1], numbers(0.0, 2.0, 2.0))


def test_piecewise_constants() -> None:
    for f in (torch.floor, torch.ceil, torch.round, torch.trunc, torch.sign, lambda x: x // 0.3):
        value, first, second = derivatives(f, numbers(0.4, -1.3), 2)
        torch.testing.assert_close(value, f(numbers(0.4, -1.3)))
        assert not first.any()
        assert not second.any()


def test_kinks() -> None:
    zero = numbers(0.0, 0.0)
    for f in (torch.relu, torch.abs, torch.norm, lambda x: torch.maximum(x, -x), lambda x: x.amax() + (-x).amax()):
        for order, result in enumerate(derivatives(f, zero, 2)):
            assert not result.any(), (f, order)


def test_singular_points() -> None:
    zero = numbers(0.0)
    assert [float(y) for y in derivatives(torch.sqrt, zero, 2)] == [0, math.inf, -math.inf]
    assert [float(y) for y in derivatives(lambda x: x**1.5, zero, 2)] == [0, 0, math.inf]
    assert [float(y) for y in derivatives(lambda x: x**2.0, zero, 3)] == [0, 0, 2, 0]
    assert [float(y) for y in derivatives(torch.log, zero, 2)] == [-math.inf, math.inf, -math.inf]


def test_detached_values() -> None:
    x = rand(3)
    torch.testing.assert_close(derivatives(lambda x: x * x.detach(), x, 2), (x**2, x, torch.zeros_like(x)))
    torch.testing.assert_close(derivatives(lambda x: x * x.data, x, 1)[1], x)
    weight = rand(3, seed=1).requires_grad_()
    with torch.no_grad():
        value, first = derivatives(lambda x: weight * x**2, x, 1)
    torch.testing.assert_close(first, 2 * weight.detach() * x)
    assert not value.requires_grad


def test_parameters_that_change() -> None:
    layer, x = torch.nn.Linear(3, 2, dtype=DOUBLE), rand(3)
    for _ in range(2):
        agrees(layer, x)
        with torch.no_grad():
            layer.weight.mul_(2)

    def f(x: Any) -> Any:
        y = layer(x)
        with torch.no_grad():
            layer.weight.zero_()
        return y

    if build_info()["backend"] == "reference":  # which computes a layer when it is called
        assert all(value.count_nonzero() for value in derivatives(f, x, 1))
    else:
        with pytest.raises(RuntimeError, match="changed in place"):
            derivatives(f, x, 1)


def test_enclosing_variables() -> None:
    x = rand(3)
    got = derivatives(lambda x: x * derivatives(lambda y: x * y, rand(3, seed=1), 1)[1], x, 2)
    torch.testing.assert_close(got, (x**2, 2 * x, torch.full_like(x, 2)))


def test_dtypes() -> None:
    x = torch.ones(2)
    for factor in (2, 2.0, torch.ones((), dtype=DOUBLE), torch.arange(2), True):
        assert {y.dtype for y in derivatives(lambda x, factor=factor: x * factor, x, 1)} == {torch.float32}
    assert {y.dtype for y in derivatives(lambda x: x * torch.ones(2, dtype=DOUBLE), x, 1)} == {DOUBLE}
    assert {y.dtype for y in derivatives(lambda x: x * 1j, x, 1)} == {torch.complex64}
    x = torch.linspace(0.1, 2, 20)
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        for half, full in zip(derivatives(torch.tanh, x.to(dtype), 3), derivatives(torch.tanh, x, 3), strict=True):
            assert half.dtype == dtype
            torch.testing.assert_close(half.float(), full, rtol=tolerance, atol=4 * tolerance)


def test_shapes() -> None:
    number = rand()
    torch.testing.assert_close(derivatives(lambda x: x * x, number, 2)[1], 2 * number)
    agrees(lambda x: (x[:, None] * x.sin()).sum(1) + x[0], rand(3))
    for f in (torch.sin, lambda x: x.sum(0), lambda x: x.softmax(-1), lambda x: torch.cat([x, x]), lambda x: x @ x.T):
        empty = torch.zeros(0, 3)
        for y in derivatives(f, empty, 2):
            torch.testing.assert_close(y, torch.zeros_like(f(empty)))


def test_complex_numbers() -> None:
    agrees(lambda x: (torch.complex(x, x**2).exp().conj() * 1j).abs(), rand(3, low=0.5))
    agrees(lambda x: torch.angle(torch.exp(1j * x)), rand(3))
    z = torch.complex(rand(3), rand(3, seed=1))
    torch.testing.assert_close(derivatives(torch.sin, z, 2), (z.sin(), z.cos(), -z.sin()))
    torch.testing.assert_close(derivatives(lambda z: z * z.conj(), z, 1)[1], (2 * z.real).to(z.dtype))


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_sparse_tensors() -> None:
    matrix = torch.tensor([[0.0, 2, 0], [1, 0, 3]], dtype=DOUBLE)
    for sparse in (matrix.to_sparse(), matrix.to_sparse_csr()):
        for product, dense in (
            (lambda x, m=sparse: m @ x**2, lambda x: matrix @ x**2),
            (lambda x, m=sparse: m @ x[:, 0].sin(), lambda x: matrix @ x[:, 0].sin()),
            (lambda x, m=sparse: x.T @ m.t(), lambda x: x.T @ matrix.T),
            (lambda x, m=sparse: torch.sparse.mm(m, x.cos()), lambda x: matrix @ x.cos()),
        ):
            agrees(product, rand(3, 2), equivalent=dense)
    with pytest.raises(NotImplementedError, match=r"x is torch\.sparse_coo"):
        derivatives(torch.sin, matrix.to_sparse(), 1)


def test_high_orders() -> None:
    jet = torch.exp(Jet.variable(torch.zeros(1, dtype=DOUBLE), 200))
    torch.testing.assert_close(jet.coefficients[170, 0].item(), 1 / math.factorial(170))
    torch.testing.assert_close(jet.derivative(170), torch.ones(1, dtype=DOUBLE))
    with pytest.raises(OverflowError, match="171! exceeds"):
        jet.derivative(171)


def test_infinities_and_nan() -> None:
    x = numbers(math.inf, -math.inf, 800.0, -800.0, 0.5, math.nan)
    for f in (torch.sin, torch.exp, torch.tanh, torch.square, lambda x: x * 2, torch.sigmoid, torch.relu):
        for ours, theirs in zip(derivatives(f, x, 2), nested_derivatives(f, x, 2), strict=True):
            known = ~theirs[:-1].isnan()  # where nested autograd multiplies 0 by infinity, we have the limit
            torch.testing.assert_close(ours[:-1][known], theirs[:-1][known])
        torch.testing.assert_close(derivatives(f, x, 2)[0], f(x), equal_nan=True)
    assert derivatives(torch.square, x, 2)[2][-1].isnan()
    assert derivatives(lambda x: x * math.inf, numbers(1.0), 2)[2].isnan()


def test_memory_layout() -> None:
    for f in (
        lambda x: x.sin().as_strided((2,), (1,)),
        lambda x: x.data_ptr(),
        lambda x: x.numpy(),
        lambda x: x.set_(x),
    ):
        with pytest.raises(NotImplementedError):
            derivatives(f, rand(3), 1)
    agrees(lambda x: x.as_strided((2, 3), (x.stride(0), 1), x.storage_offset()).sin(), rand(5))
    agrees(lambda x: x.sin().contiguous().as_strided((2, 3), (1, 1)), rand(3, 2).T)


def test_unknown_ops() -> None:
    agrees(torch.lgamma, rand(3, low=0.5))
    with pytest.raises(NotImplementedError, match=r"multilabel_margin_loss.*register_rule"):
        derivatives(lambda x: F.multilabel_margin_loss(x, torch.tensor([0, 1, -1])), rand(3), 1)
