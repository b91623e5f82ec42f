"""Products and powers of jets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import DOUBLE, agrees, rand

from taylorderiv import build_info, derivatives

# Applied to a positive value of shape (3, 4).
CASES: dict[str, Callable[[Any], Any]] = {
    "mul": lambda x: x * torch.sin(x),
    "mul_broadcast": lambda x: x[:, :1] * x[0],
    "mul_itself": lambda x: x * x,
    "div": lambda x: torch.sin(x) / x,
    "div_broadcast": lambda x: x[:, None] / x[0],
    "number_div": lambda x: 2 / x,
    "constant_div": lambda x: rand(3, 4, seed=1) / x,
    "remainder": lambda x: torch.remainder(3 * x, x.cos()),
    "fmod": lambda x: torch.fmod(-3 * x, 0.7),
    "mod_operator": lambda x: (5 * x) % x[0],
    "pow_2": lambda x: x**2,
    "pow_10": lambda x: (x - 0.3) ** 10,
    "pow_minus_3": lambda x: x**-3,
    "pow_0": lambda x: x**0 + x,
    "pow_half": lambda x: x**0.5,
    "pow_minus_half": lambda x: x**-0.5,
    "pow_fraction": lambda x: x**1.7,
    "pow_integral_float": lambda x: torch.pow(x, 3.0),
    "pow_constants": lambda x: x ** torch.tensor([0.0, 1.0, 2.5, -1.0], dtype=DOUBLE),
    "pow_integer_constants": lambda x: torch.pow(x, torch.arange(4)),
    "pow_jets": lambda x: x ** torch.sin(x),
    "pow_number_base": lambda x: 2**x,
    "pow_number_base_function": lambda x: torch.pow(1.5, x),
    "pow_constant_base": lambda x: rand(3, 1, low=0.5, high=2, seed=1) ** x,
    "float_power": lambda x: torch.float_power(x, 1.5),
    "rpow_method": lambda x: torch.full((4,), 2.0, dtype=DOUBLE).__rpow__(x),
    "square": lambda x: x.square(),
    "addcmul": lambda x: torch.addcmul(x, x, x.sin(), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x.sin(), x, value=-2),
    "lerp": lambda x: torch.lerp(x, x.sin(), 0.3),
    "lerp_jet_weight": lambda x: torch.lerp(rand(3, 4, seed=1), x.sin(), x),
    "hypot": lambda x: torch.hypot(x, x.sin()),
    "atan2": lambda x: torch.atan2(x.sin() - 0.5, x - 0.4),
    "atan2_constant": lambda x: torch.atan2(x, rand(3, 4, low=-1, seed=1)),
    "atan2_constant_first": lambda x: torch.atan2(rand(3, 4, low=-1, seed=1), x - 0.5),
    "xlogy": lambda x: torch.xlogy(x, x.cos()),
    "matmul": lambda x: x @ x.T,
    "matmul_vectors": lambda x: x[0] @ x[1],
    "matmul_matrix_vector": lambda x: x @ x[0].sin(),
    "matmul_vector_matrix": lambda x: x[0] @ x.T,
    "matmul_batched": lambda x: x.expand(2, 3, 4) @ x.T.sin(),
    "mm": lambda x: torch.mm(x, x.T.exp()),
    "bmm": lambda x: torch.bmm(x[:, None], x[:, :, None].sin()),
    "mv": lambda x: torch.mv(x, x[0]),
    "dot": lambda x: torch.dot(x[0], x[1].exp()),
    "vdot": lambda x: torch.vdot(x[0], x[1].exp()),
    "outer": lambda x: torch.outer(x[0], x[1]),
    "inner": lambda x: torch.inner(x, x.sin()),
    "tensordot": lambda x: torch.tensordot(x, x.sin(), dims=2),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x.sin()),
    "einsum_trace": lambda x: torch.einsum("ij,ij->", x, x.exp()),
    "einsum_ellipsis": lambda x: torch.einsum("...i,...i->...", x, x.exp()),
    "einsum_three": lambda x: torch.einsum("ij,kj,kl->il", x, x.sin(), x),
    "einsum_with_constants": lambda x: torch.einsum("ij,j,kj,k->i", x, rand(4, seed=1), x.exp(), rand(3, seed=2)),
    "addmm": lambda x: torch.addmm(x @ x.T, x, x.T, beta=2, alpha=0.5),
    "linear": lambda x: torch.nn.functional.linear(x, x.sin(), x[:, 0]),
    "kron": lambda x: torch.kron(x, x.sin()),
    "cross": lambda x: torch.linalg.cross(x[:, :3], x[:, 1:].sin()),
    "bilinear": lambda x: torch.nn.functional.bilinear(x, x.sin(), rand(2, 4, 4, seed=1)),
    "multi_dot": lambda x: torch.linalg.multi_dot([x, x.T, x]),
    "matrix_power": lambda x: torch.linalg.matrix_power(x[:, :3], 5),
    "vecdot": lambda x: torch.linalg.vecdot(x, x.sin()),
}


@pytest.mark.parametrize("f", CASES.values(), ids=CASES)
def test_product(f: Callable[[Any], Any]) -> None:
    agrees(f, rand(3, 4, low=0.2, high=1.2))


def test_cosine_similarity() -> None:
    agrees(lambda x: torch.cosine_similarity(x, x.sin() - 0.3, dim=-1), rand(3, 4))


def test_cosine_similarity_broadcasts() -> None:
    agrees(lambda x: torch.cosine_similarity(x, x[:1].sin(), dim=0), rand(3, 4))


def test_division_with_rounding_is_constant() -> None:
    x = rand(3, 4, low=0.2)
    for divide in (lambda x: 3 * x // 0.5, lambda x: torch.div(3 * x, 0.5, rounding_mode="floor")):
        got = derivatives(lambda x, divide=divide: x * divide(x), x, 2)
        torch.testing.assert_close(got, (x * divide(x), divide(x), torch.zeros_like(x)))


@pytest.mark.parametrize("power", [1, 2, 3, 10])
def test_integer_powers_at_zero_are_exact(power: int) -> None:
    x = torch.zeros(1, dtype=DOUBLE)
    for f in (
        lambda x: x**power,
        lambda x: x ** float(power),
        lambda x: x ** torch.tensor(power),
        lambda x: x ** torch.tensor([float(power)], dtype=DOUBLE),
    ):
        got = [d.item() for d in derivatives(f, x, 12)]
        assert got == [math.factorial(power) if k == power else 0.0 for k in range(13)]


@pytest.mark.skipif(build_info()["backend"] == "reference", reason="the reference gives nan for 0 · inf")
def test_fractional_power_at_zero_is_what_calculus_says() -> None:
    x = torch.zeros(1, dtype=DOUBLE)
    for f in (lambda x: x**1.5, lambda x: x ** torch.tensor([1.5], dtype=DOUBLE)):
        value, first, second, third = (d.item() for d in derivatives(f, x, 3))
        assert (value, first, second, third) == (0, 0, math.inf, -math.inf)


def test_power_of_a_negative_number_by_integer_constants() -> None:
    x = torch.tensor([-1.5, -0.3], dtype=DOUBLE)
    powers = torch.tensor([3.0, 2.0], dtype=DOUBLE)
    first = derivatives(lambda x: torch.sin(x) ** powers, x, 4)
    second = derivatives(lambda x: torch.stack([torch.sin(x[0]) ** 3, torch.sin(x[1]) ** 2]), x, 4)
    torch.testing.assert_close(first, second)


def test_power_of_zero_to_a_jet_is_zero() -> None:
    x = torch.tensor([0.5, 1.0], dtype=DOUBLE)
    for base in (0.0, torch.zeros(2, dtype=DOUBLE)):
        for d in derivatives(lambda x, base=base: base ** torch.sin(x), x, 3):
            torch.testing.assert_close(d, torch.zeros_like(x))


def test_gradient_of_an_exponent() -> None:
    p = torch.tensor(2.5, dtype=DOUBLE, requires_grad=True)
    third = derivatives(lambda x: x**p, torch.tensor([0.7], dtype=DOUBLE), 3)[3].sum()
    x, q = 0.7, 2.5
    expected = ((q - 1) * (q - 2) + q * (q - 2) + q * (q - 1) + q * (q - 1) * (q - 2) * math.log(x)) * x ** (q - 3)
    (gradient,) = torch.autograd.grad(third, p)
    assert gradient.item() == pytest.approx(expected, rel=1e-12)


def test_type_promotion_is_that_of_tensors() -> None:
    x32 = torch.rand(3)
    operands: list[Any] = [
        2,
        2.5,
        True,
        torch.tensor(2.0, dtype=DOUBLE),
        torch.rand(3, dtype=DOUBLE),
        torch.tensor(3),
        torch.ones(3, dtype=torch.int64),
        torch.rand(3, dtype=torch.float16),
        1j,
    ]
    functions: list[Callable[[Any, Any], Any]] = [
        lambda a, b: a + b,
        lambda a, b: a * b,
        lambda a, b: a / b,
        lambda a, b: b * a,
        lambda a, b: a**b,
        lambda a, b: a - b if not isinstance(b, bool) else a,
    ]
    for other in operands:
        for f in functions:
            expected = f(x32, other)
            for x in (x32, x32[0]):
                got = derivatives(lambda x, f=f, other=other: f(x, other), x, 1)
                assert got[1].dtype == f(x, other).dtype, (other, x)
            torch.testing.assert_close(derivatives(lambda x, f=f, o=other: f(x, o), x32, 1)[0], expected)


def test_complex_values() -> None:
    x = rand(3, low=0.3)

    def f(x: Any) -> Any:
        z = torch.exp(1j * x) * (x + 2j)
        return (z * z.conj()).real + (z**3).imag + z.abs()

    agrees(f, x)
    agrees(lambda x: torch.complex(x, rand(2, 3)).abs(), x)
    agrees(lambda x: torch.polar(x, x.sin()).imag, x)
    agrees(lambda x: torch.angle(x - 0.5) + torch.angle(torch.complex(x, x**2)), x)
    agrees(lambda x: torch.view_as_real(torch.sin(torch.complex(x, x**2)) / (1 + 1j * x)), x)


def test_gradcheck_of_products() -> None:
    x = rand(2, 3, low=0.3).requires_grad_()
    w = rand(3, 3, seed=1).requires_grad_()

    def f(x: Any, w: Any) -> Any:
        return derivatives(lambda x: torch.tanh(x @ w) * x / (1 + x**2), x, 2)[1:]

    assert torch.autograd.gradcheck(f, (x, w))
    assert torch.autograd.gradgradcheck(f, (x, w))
