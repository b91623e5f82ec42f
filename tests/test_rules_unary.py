"""Every op in the table of unary ops, generated from it: an op without samples here fails a test."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from agreement import DOUBLE, agrees, agrees_in_all_layouts, rand
from torch.library import opcheck

from taylorderiv import Jet, derivatives, kernels, reference, supported_ops
from taylorderiv.layout import Layout
from taylorderiv.rules.unary import apply_unary
from taylorderiv.testing import nested_derivatives
from taylorderiv.unary_ops import UNARY_OPS

# Where each op is tried: an interval inside its domain. Piecewise ops have their kinks between the samples.
DOMAINS: dict[str, tuple[float, float]] = {
    **dict.fromkeys("log log2 log10 sqrt rsqrt pow".split(), (0.3, 4.0)),
    **dict.fromkeys("log1p".split(), (-0.6, 4.0)),
    **dict.fromkeys("reciprocal".split(), (-3.0, -0.4)),
    **dict.fromkeys("asin acos atanh".split(), (-0.7, 0.7)),
    **dict.fromkeys("tan".split(), (-1.1, 1.1)),
    **dict.fromkeys("acosh".split(), (1.3, 4.0)),
    **dict.fromkeys("relu6".split(), (-3.0, 9.0)),
    **dict.fromkeys(
        "neg square exp exp2 expm1 sin cos atan sinh cosh tanh asinh sigmoid logsigmoid softplus silu gelu"
        " gelu_tanh mish elu selu celu erf erfc sinc relu leaky_relu hardtanh abs sign floor ceil trunc"
        " round frac".split(),
        (-2.3, 2.4),
    ),
}
PARAMS: dict[str, tuple[float, ...]] = {
    "pow": (1.7,),
    "softplus": (1.5, 2.0),
    "elu": (1.3,),
    "celu": (2.0,),  # PyTorch's own backward rounds 1 / alpha to float32
    "leaky_relu": (0.1,),
    "hardtanh": (-1.05, 0.85),
}
NAMES = sorted(UNARY_OPS)
WITH_KERNEL = sorted(kernels.build_info()["unary_kernels"])
# No forward or no second derivative in PyTorch, or (sinc) an inaccurate one.
WITHOUT_ORACLE = {"sinc"}


def samples(name: str, count: int = 7) -> torch.Tensor:
    low, high = DOMAINS[name]
    return rand(count, low=low, high=high)


def on_tensor(name: str, x: Any) -> Any:
    return UNARY_OPS[name].function(x, *PARAMS.get(name, ()))


def on_jet(name: str) -> Any:
    return lambda x: apply_unary(name, x, *PARAMS.get(name, ())) if isinstance(x, Jet) else on_tensor(name, x)


def random_coefficients(name: str, layout: Layout, dtype: torch.dtype = DOUBLE) -> torch.Tensor:
    x = samples(name)
    rest = rand(layout.size - 1, *x.shape, low=-0.5, high=0.5, seed=9)
    return torch.cat([x[None], rest]).to(dtype)


def test_every_op_has_samples() -> None:
    assert set(DOMAINS) == set(NAMES)  # as imported: other tests add ops of their own


def test_every_kernel_is_in_the_table_and_has_a_rule() -> None:
    assert set(WITH_KERNEL) <= set(UNARY_OPS)
    for name in WITH_KERNEL:
        keys = UNARY_OPS[name].keys or (name,)
        assert any(
            not isinstance(key, str) or key.lstrip("_") in supported_ops() or key == "_gelu_tanh" for key in keys
        )


@pytest.mark.parametrize("name", sorted(set(NAMES) - WITHOUT_ORACLE))
def test_agrees_with_nested_differentiation(name: str) -> None:
    agrees(on_jet(name), samples(name))


@pytest.mark.parametrize("name", sorted(set(NAMES) - WITHOUT_ORACLE))
def test_values_agree_up_to_order_6(name: str) -> None:
    x = samples(name, 3)
    got, expected = derivatives(on_jet(name), x, 6), nested_derivatives(on_jet(name), x, 6, mode="forward")
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_sinc_agrees_with_its_power_series() -> None:
    x = torch.tensor([0.0, 1e-3, 0.4, -1.3], dtype=DOUBLE)

    def series(x: Any) -> Any:
        return sum((-1) ** n * (math.pi * x) ** (2 * n) / float(math.factorial(2 * n + 1)) for n in range(20))

    torch.testing.assert_close(derivatives(torch.sinc, x, 6), derivatives(series, x, 6), rtol=1e-9, atol=1e-9)
    agrees_in_all_layouts(torch.sinc, x)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_and_gradgradcheck(name: str) -> None:
    layout = Layout((2, 1))
    c = random_coefficients(name, layout)[:, :3].clone().requires_grad_()

    def f(c: torch.Tensor) -> Any:
        return kernels.unary(name, c, layout, PARAMS.get(name, ()))

    assert torch.autograd.gradcheck(f, c)
    assert torch.autograd.gradgradcheck(f, c)


@pytest.mark.parametrize("layout", [Layout((12,)), Layout((1, 4)), Layout((4, 2, 4), (1.5, 0.0, -0.5))], ids=str)
@pytest.mark.parametrize("name", WITH_KERNEL)
def test_kernel_agrees_with_reference(name: str, layout: Layout) -> None:
    params = PARAMS.get(name, ())
    first = random_coefficients(name, layout).requires_grad_()
    second = first.detach().clone().requires_grad_()
    got = kernels.unary(name, first, layout, params)
    expected = reference.unary(UNARY_OPS[name], second, layout, params)
    scale = expected.detach().abs().amax(1, keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(got / scale, expected / scale, rtol=1e-9, atol=1e-9)
    if got.requires_grad and expected.requires_grad:
        weights = rand(*got.shape, seed=5) / scale
        (a,), (b,) = (
            torch.autograd.grad((y * weights).sum(), c, create_graph=True)
            for y, c in ((got, first), (expected, second))
        )
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
        if a.requires_grad and b.requires_grad:
            mixture = rand(*a.shape, seed=6) / scale
            (a,), (b,) = (torch.autograd.grad((g * mixture).sum(), c) for g, c in ((a, first), (b, second)))
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_16_bit_floats_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    layout = Layout((3,))
    c = random_coefficients(name, layout, dtype)
    got = kernels.unary(name, c, layout, PARAMS.get(name, ()))
    expected = kernels.unary(name, c.float(), layout, PARAMS.get(name, ()))
    assert got.dtype == dtype
    assert torch.equal(got, expected.to(dtype))


HOLOMORPHIC = (
    "neg square exp exp2 expm1 log log10 log1p sqrt rsqrt reciprocal sin cos tan asin acos atan sinh cosh"
    " tanh asinh acosh atanh sigmoid".split()
)


@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_complex_values(name: str) -> None:
    x = samples(name, 4)
    z = torch.complex(x, 0.3 * x)

    def f(t: Any) -> Any:  # along a complex curve, so that the variable is real
        return torch.view_as_real(on_jet(name)(z + (0.3 + 0.2j) * t))

    agrees(f, torch.zeros(4, dtype=DOUBLE), 3, layouts=False)


# Through the torch functions themselves, with their arguments.

CALLS: dict[str, Any] = {
    "tanh_method": lambda x: x.tanh(),
    "sigmoid_functional": torch.nn.functional.sigmoid,
    "expit": torch.special.expit,
    "arctan": torch.arctan,
    "softplus_beta": lambda x: torch.nn.functional.softplus(x, beta=2),
    "softplus_threshold": lambda x: torch.nn.functional.softplus(x, 3.0, 1.0),
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "elu": lambda x: torch.nn.functional.elu(x, 0.5),
    "celu": lambda x: torch.nn.functional.celu(x, alpha=0.5),
    "leaky_relu": lambda x: torch.nn.functional.leaky_relu(x, 0.2),
    "hardtanh": lambda x: torch.nn.functional.hardtanh(x, -0.5, 0.7),
    "hardtanh_default": torch.nn.functional.hardtanh,
    "logsigmoid": torch.nn.functional.logsigmoid,
    "negative": torch.negative,
    "absolute": torch.absolute,
    "aten": torch.ops.aten.sin,
    "aten_overload": torch.ops.aten.silu.default,
    "modules": torch.nn.Sequential(
        torch.nn.SiLU(),
        torch.nn.Mish(),
        torch.nn.ELU(0.7),
        torch.nn.Softplus(2),
        torch.nn.GELU(),
        torch.nn.Tanhshrink(),
    ),
    "inplace_modules": torch.nn.Sequential(torch.nn.Linear(7, 7), torch.nn.SiLU(inplace=True)).double(),
}


@pytest.mark.parametrize("f", CALLS.values(), ids=CALLS)
def test_torch_function(f: Any) -> None:
    agrees(f, rand(7, low=-2.1, high=2.2))


def test_high_order() -> None:
    x = torch.tensor([0.3, -1.2], dtype=DOUBLE)
    for k, d in enumerate(derivatives(torch.exp, x, 40)):
        torch.testing.assert_close(d, x.exp(), rtol=1e-12, atol=0, msg=lambda m, k=k: f"order {k}: {m}")
    sines = derivatives(torch.sin, x, 40)
    torch.testing.assert_close(sines[40], x.sin(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sines[37], x.cos(), rtol=1e-12, atol=0)


KINKS = {
    torch.relu: 0.0,
    torch.abs: 0.0,
    torch.nn.functional.relu6: 6.0,
    torch.nn.functional.hardtanh: 1.0,
    torch.nn.functional.leaky_relu: 0.0,
    torch.nn.functional.elu: 0.0,
}


@pytest.mark.parametrize("f", KINKS, ids=lambda f: f.__name__)
def test_kinks_follow_pytorch(f: Any) -> None:
    x = torch.tensor([KINKS[f]], dtype=DOUBLE, requires_grad=True)
    (expected,) = torch.autograd.grad(f(x), x)
    torch.testing.assert_close(derivatives(f, x, 1)[1], expected)


@pytest.mark.parametrize("name", ["tanh", "softplus", "gelu"])
@pytest.mark.parametrize("layout", [Layout((3,)), Layout((2, 2), (1.0, 1.0))], ids=str)
def test_registrations_of_the_ops(name: str, layout: Layout) -> None:
    c = random_coefficients(name, layout).requires_grad_()
    rest = (name, list(PARAMS.get(name, ())), list(layout.orders), list(layout.weights or ()))
    opcheck(torch.ops.taylorderiv.unary.default, (c, *rest))
    grad = rand(*c.shape, seed=3).requires_grad_()
    opcheck(torch.ops.taylorderiv.unary_backward.default, (grad, c, *rest))
    opcheck(torch.ops.taylorderiv.unary_double_backward.default, (c.detach(), grad.detach(), c.detach(), *rest))


@pytest.mark.parametrize("layout", [Layout((3,)), Layout((2, 2), (1.0, -0.5)), Layout((1, 3))], ids=str)
def test_products_of_coefficients(layout: Layout) -> None:
    a, b, g = (rand(layout.size, 4, low=-1, seed=seed).requires_grad_() for seed in (1, 2, 3))
    structure = (list(layout.orders), list(layout.weights or ()))
    torch.testing.assert_close(kernels.cauchy(a, b, layout), reference.cauchy(a, b, layout))
    correlated = torch.ops.taylorderiv.correlate(b, g, *structure)
    torch.testing.assert_close(correlated, reference.correlate(b, g, layout))
    for op in (torch.ops.taylorderiv.cauchy.default, torch.ops.taylorderiv.correlate.default):
        opcheck(op, (a, b, *structure))
        assert torch.autograd.gradcheck(lambda a, b, op=op: op(a, b, *structure), (a, b))
        assert torch.autograd.gradgradcheck(lambda a, b, op=op: op(a, b, *structure), (a, b))


def test_third_order_gradients_of_a_kernel() -> None:
    layout = Layout((2,))
    c = random_coefficients("tanh", layout)[:, :2]

    def scalar(c: torch.Tensor) -> torch.Tensor:
        return (kernels.unary("tanh", c, layout) ** 2).sum()

    def by_reference(c: torch.Tensor) -> torch.Tensor:
        return (reference.unary(UNARY_OPS["tanh"], c, layout) ** 2).sum()

    third = torch.func.jacrev(torch.func.jacrev(torch.func.grad(scalar)))(c)
    torch.testing.assert_close(third, torch.func.jacrev(torch.func.jacrev(torch.func.grad(by_reference)))(c))
    mixed = torch.func.jacfwd(torch.func.jacrev(torch.func.grad(scalar)))(c)
    torch.testing.assert_close(third, mixed)
    torch.testing.assert_close(third, torch.func.jacfwd(torch.func.jacfwd(torch.func.jacfwd(scalar)))(c))
