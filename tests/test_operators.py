"""Differential operators: against nested autograd and exact solutions; their algebra; bad input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from taylorderiv import (
    ChunkWarning,
    LinearOperator,
    bilaplacian,
    derivatives,
    differentials,
    evaluation,
    laplacian,
    partials,
    plan,
)
from taylorderiv.planner import NestedPlan, Polynomial
from taylorderiv.planner.polynomial import expand

DOUBLE = torch.float64


def network(inputs: int, outputs: int = 1, width: int = 12, dtype: torch.dtype = DOUBLE) -> torch.nn.Sequential:
    torch.manual_seed(1)
    layers = [torch.nn.Linear(inputs, width), torch.nn.Tanh(), torch.nn.Linear(width, width), torch.nn.SiLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, outputs)).to(dtype)


def points(count: int, dimension: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.rand(count, dimension, dtype=dtype) * 2 - 1


def nested(f: Callable[[Tensor], Tensor], x: Tensor, symbol: Polynomial) -> Tensor:
    """The operator with this symbol by nested autograd, output by output."""
    x = x.detach().requires_grad_()
    known: dict[tuple[int, ...], Tensor] = {(): f(x)}

    def partial(path: tuple[int, ...]) -> Tensor:
        if path not in known:
            below = partial(path[:-1])
            columns = below.reshape(len(x), -1).unbind(1)
            slopes = [
                torch.autograd.grad(column.sum(), x, create_graph=True, materialize_grads=True)[0][:, path[-1]]
                for column in columns
            ]
            known[path] = torch.stack(slopes, 1).reshape(below.shape)
        return known[path]

    total = torch.zeros_like(known[()])
    for key, value in symbol.terms.items():
        total = total + float(value) * partial(tuple(v for v, power in key for _ in range(power)))
    return total.detach()


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((actual - expected).detach().abs().max())
    assert error <= tolerance * max(1.0, float(expected.detach().abs().max()))


def symbol_of(operator: LinearOperator, dimension: int) -> Polynomial:
    (term,) = operator.terms
    return expand(term.symbol, dimension)


dx, dy = differentials("x", "y")
D5 = differentials("abcde")
REQUESTS = {
    "KdV": (["u", "x", "t", "xxx"], "xt", 5),
    "Kuramoto-Sivashinsky": (["u", "x", "t", "xx", "xxxx"], "xt", 6),
    "Laplacian, 7-D": ([laplacian], "abcdefg", 9),
    "biharmonic, 2-D": ([dx**4 + 2 * dx**2 * dy**2 + dy**4], "xy", 11),
    "biharmonic, 3-D": ([bilaplacian], "xyz", 20),
    "biharmonic, 5-D": ([bilaplacian], "abcde", 50),
    "all second partials, 3-D": (["xx", "xy", "xz", "yy", "yz", "zz"], "xyz", 13),
    "plane stress": (["xx", "yy", "xy"], "xy", 7),
    "(dx + dy)^6": ([(dx + dy) ** 6], "xy", 7),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", REQUESTS)
def test_plans_agree_with_nested_autograd(name: str, dtype: torch.dtype, tolerance: float) -> None:
    requests, variables, limit = REQUESTS[name]
    found = plan(requests, variables)
    assert found.size <= limit
    x = points(3, len(variables))
    outputs = 2 if max(q.degree for q in found.quantities) < 6 else 1  # the oracle's work is exponential
    net = network(len(variables), outputs)

    def polynomial(z: Tensor) -> Tensor:
        powers = torch.arange(1, len(variables) + 1, device=z.device)
        return ((z * (0.3 + 0.1 * powers)).sum(-1) ** 7 + z[..., 0] ** 4 * z[..., -1] ** 2).unsqueeze(-1)

    for f, typed in ((net, network(len(variables), outputs, dtype=dtype)), (polynomial, polynomial)):
        values = evaluation.evaluate(found, typed, x.to(dtype))
        for value, symbol in zip(values, found.quantities, strict=True):
            close(value.to(DOUBLE), nested(f, x, symbol), tolerance)


def test_gradients_of_operators_agree_with_nested_autograd() -> None:
    net, x = network(2), points(4, 2)
    loss = (bilaplacian(net, x) + (0.3 * dx + dx * dy)(net, x)).square().sum()
    actual = torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)

    def by_autograd(z: Tensor) -> Tensor:
        def d(u: Tensor, *path: int) -> Tensor:
            for i in path:
                u = torch.autograd.grad(u.sum(), z, create_graph=True)[0][:, i : i + 1]
            return u

        u = net(z)
        fourth = d(u, 0, 0, 0, 0) + 2 * d(u, 0, 0, 1, 1) + d(u, 1, 1, 1, 1)
        return fourth + 0.3 * d(u, 0) + d(u, 0, 1)

    loss = by_autograd(x.clone().requires_grad_()).square().sum()
    expected = torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)
    for a, b in zip(actual, expected, strict=True):
        close(a, b, 1e-9)


# Exact solutions: the residual is nothing but rounding.


def residual_is_rounding(residual: Any, scale: Tensor | float) -> None:
    assert float(residual.abs().max()) <= 1e-12 * float(torch.as_tensor(scale).abs().max())


def test_euler_bernoulli_beam() -> None:
    (d,) = differentials("x")
    x = torch.rand(20, 1, dtype=DOUBLE)
    residual_is_rounding((d**4)(lambda x: -(x**4) / 24 + x**3 / 6 - x**2 / 4, x) + 1, 1)


def test_wave_equation() -> None:
    dt, *ds = differentials("t", "a", "b", "c", "d")
    x = points(20, 5)

    def u(x: Tensor) -> Tensor:
        return torch.cosh(x[:, 0]) * torch.sinh(x[:, 1:]).sum(1)

    operator = dt**2 - sum(d**2 for d in ds)
    assert operator.plan().size <= 1 + 5 + 1
    residual_is_rounding(operator(u, x), 10)


def test_kovasznay_flow() -> None:
    reynolds = 40.0
    rate = reynolds / 2 - math.sqrt(reynolds**2 / 4 + 4 * math.pi**2)

    def flow(x: Tensor) -> Tensor:
        grows, angle = torch.exp(rate * x[:, 0]), 2 * math.pi * x[:, 1]
        u = 1 - grows * torch.cos(angle)
        v = rate / (2 * math.pi) * grows * torch.sin(angle)
        return torch.stack([u, v, (1 - grows**2) / 2], 1)

    d = partials(flow, points(30, 2), ["x", "y", "xx", "yy"], variables="xy")
    for i in range(2):
        convection = d.u[:, 0] * d.x[:, i] + d.u[:, 1] * d.y[:, i]
        pressure = (d.x, d.y)[i][:, 2]
        residual_is_rounding(convection + pressure - (d.xx + d.yy)[:, i] / reynolds, 100)
    residual_is_rounding(d.x[:, 0] + d.y[:, 1], 10)


def test_helmholtz_equation() -> None:
    k = 5.0
    x = points(20, 2)

    def u(x: Tensor) -> Tensor:
        return torch.sin(k * x).prod(1)

    residual_is_rounding((laplacian + 2 * k**2)(u, x), k**2)


def test_black_scholes_barenblatt_equation() -> None:
    sigma, rate, final, dimension = 0.4, 0.05, 1.0, 6
    dt, *ds = differentials("t", *(f"s{i}" for i in range(dimension)))

    def price(i: int) -> Callable[[Tensor], Tensor]:
        return lambda X: X[:, 1 + i]

    def u(X: Tensor) -> Tensor:
        return torch.exp((rate + sigma**2) * (final - X[:, 0])) * (X[:, 1:] ** 2).sum(1)

    second = sum(price(i) * (price(i) * d**2) for i, d in enumerate(ds))
    first = sum(price(i) * d for i, d in enumerate(ds))
    equation = dt + sigma**2 / 2 * second - rate * (1 - first)
    residual_is_rounding(equation(u, torch.rand(10, 1 + dimension, dtype=DOUBLE) + 0.5), 10)


def test_black_scholes_with_tensor_coefficients() -> None:
    ds, dt = differentials("S", "t")
    x = torch.rand(12, 2, dtype=DOUBLE) + 0.5
    stock = x[:, 0]
    black_scholes = dt + 0.02 * stock**2 * ds**2 + 0.05 * stock * ds - 0.05
    # An option on a power of the stock has a price in closed form.
    power, volatility, rate = 3, 0.2, 0.05
    growth = rate * (power - 1) + 0.5 * volatility**2 * power * (power - 1)

    def price(x: Tensor) -> Tensor:
        return x[:, 0] ** power * torch.exp(growth * (1 - x[:, 1]))

    residual_is_rounding(black_scholes(price, x), 1)


def test_soliton_of_the_korteweg_de_vries_equation() -> None:
    speed = 1.7

    def u(x: Tensor) -> Tensor:
        return speed / 2 / torch.cosh(math.sqrt(speed) / 2 * (x[:, 0] - speed * x[:, 1])) ** 2

    d = partials(u, points(30, 2), ["u", "x", "t", "xxx"], variables="xt")
    residual_is_rounding(d.t + 6 * d.u * d.x + d.xxx, 1)


def test_biharmonic_of_a_clamped_plate() -> None:
    def p(s: Tensor) -> Tensor:
        return s**2 * (1 - s) ** 2

    def p2(s: Tensor) -> Tensor:
        return 2 - 12 * s + 12 * s**2

    x = torch.rand(20, 2, dtype=DOUBLE)
    a, b = x.unbind(1)
    expected = 24 * p(b) + 2 * p2(a) * p2(b) + 24 * p(a)
    residual_is_rounding(bilaplacian(lambda x: p(x[:, 0]) * p(x[:, 1]), x) - expected, 10)


@pytest.mark.parametrize("dimension", [2, 3])
def test_elasticity(dimension: int) -> None:
    """Navier–Cauchy: ``(λ + μ) ∇(∇·u) + μ Δu + b = 0`` for ``u_i = sin(k_i · x)``, with b by hand."""
    lame, shear = 1.3, 0.8
    waves = torch.randn(dimension, dimension, dtype=DOUBLE)
    x = points(15, dimension)
    names = "xyz"[:dimension]
    seconds = [a + b for i, a in enumerate(names) for b in names[i:]]
    d = partials(lambda x: torch.sin(x @ waves.T), x, seconds, variables=names)
    sines = torch.sin(x @ waves.T)
    for i in range(dimension):
        graddiv = sum(d["".join(sorted(names[i] + names[j]))][:, j] for j in range(dimension))
        laplace = sum(d[name * 2][:, i] for name in names)
        body = sum(
            ((lame + shear) * waves[j, i] * waves[j, j] + shear * (i == j) * waves[j].square().sum()) * sines[:, j]
            for j in range(dimension)
        )
        residual_is_rounding((lame + shear) * graddiv + shear * laplace + body, 10)


# The algebra.


def test_laplacian_of_the_laplacian_is_the_bilaplacian() -> None:
    net, x = network(3, 2), points(5, 3)
    by_plan = bilaplacian(net, x)
    close(laplacian(lambda z: laplacian(net, z), x), by_plan, 1e-12)
    close((laplacian @ laplacian)(net, x), by_plan, 1e-12)
    close((laplacian * laplacian)(net, x), by_plan, 1e-12)


def test_sums_products_and_powers_are_those_of_polynomials() -> None:
    assert symbol_of((dx + 2 * dy) ** 2 - dx * dx, 2) == symbol_of(4 * dx * dy + 4 * dy**2, 2)
    assert symbol_of(dx**0, 2) == Polynomial.constant(1)
    assert symbol_of(-dx / 4 + 1, 2) == Polynomial({(): 1, ((0, 1),): Fraction(-1, 4)})
    assert symbol_of(1 - dx, 2) == symbol_of(-(dx - 1), 2)
    assert symbol_of(laplacian + dx, 2) == symbol_of(dx**2 + dy**2 + dx, 2)
    assert not (dx - dx).terms


def test_the_zero_operator() -> None:
    x = points(3, 2)
    assert (dx - dx)(network(2), x).tolist() == [[0.0]] * 3
    assert (dx - dx).plan().size == 1


def test_composition_differentiates_coefficients() -> None:
    net, x = network(2), points(6, 2)

    def c(X: Tensor) -> Tensor:
        return torch.exp(X[:, 0] * X[:, 1])

    d = partials(net, x, ["x", "xx", "xy"], variables="xy")
    slope = (x[:, 1] * c(x))[:, None]
    close((dx @ (c * dx))(net, x), slope * d.x + c(x)[:, None] * d.xx, 1e-12)
    flux = (dx @ (c * dx) + dy @ (c * dy) - 2)(net, x)
    by_hand = (laplacian(net, x) + 0 * flux) * c(x)[:, None]
    by_hand = by_hand + slope * d.x + (x[:, 0] * c(x))[:, None] * dy(net, x) - 2 * net(x)
    close(flux, by_hand, 1e-12)
    close(((c * dx) @ dx)(net, x), c(x)[:, None] * d.xx, 1e-12)
    close((dy @ (dx @ (c * dx)))(net, x), dy(lambda z: (dx @ (c * dx))(net, z), x), 1e-10)


def test_coefficients_are_numbers_tensors_or_functions() -> None:
    net, x = network(2, 3), points(6, 2)
    weights = torch.rand(6, dtype=DOUBLE)
    second = (dx**2)(net, x)
    close((weights * dx**2)(net, x), weights[:, None] * second, 1e-13)
    close((weights[:, None] * dx**2)(net, x), weights[:, None] * second, 1e-13)
    close((torch.tensor(2.5) * dx**2)(net, x), 2.5 * second, 1e-13)
    close(((lambda X: weights) * dx**2 + weights * dx**2)(net, x), 2 * weights[:, None] * second, 1e-13)
    close((weights * (weights * dx**2))(net, x), weights[:, None] ** 2 * second, 1e-13)
    close((weights + dx)(net, x), weights[:, None] * net(x) + dx(net, x), 1e-13)
    close(((dx + dy) / torch.tensor(4.0))(net, x), (dx + dy)(net, x) / 4, 1e-13)


def test_trainable_coefficients() -> None:
    viscosity = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    net, x = network(2), points(4, 2)
    (viscosity * laplacian - dx)(net, x).sum().backward()
    close(viscosity.grad, laplacian(net, x).sum(), 1e-12)  # pyright: ignore


def test_terms_that_share_a_coefficient_are_planned_together() -> None:
    def c(X: Tensor) -> Tensor:
        return X[:, 0]

    assert (c * dx**2 + c * dy**2).plan().size == 4  # the Laplacian's, collapsed
    assert (c * dx**2 + dy**2).plan().size == 5


def test_points_as_a_dict() -> None:
    net, x = network(2), points(5, 2)
    named = {"x": x[:, :1], "y": x[:, 1:]}
    weights = torch.rand(5, dtype=DOUBLE)
    operator = dx**2 * dy - 3 * dx + weights * dy + (lambda X: X["x"]) * dx
    value = operator(lambda v: net(torch.cat([v["x"], v["y"]], 1)), named)
    c = weights[:, None]
    close(value, (dx**2 * dy - 3 * dx)(net, x) + c * dy(net, x) + x[:, :1] * dx(net, x), 1e-13)


def test_plans_of_operators() -> None:
    found = (dx**4 + 2 * dx**2 * dy**2 + dy**4).plan()
    assert found.size == 11
    assert "u_xxxx + 2 u_xxyy + u_yyyy" in str(found)
    assert laplacian.plan(50).size == 52
    assert plan(["xx", laplacian, "u"], "xy").size == 5
    assert plan("xxy", ("x", "y")).quantities == (symbol_of(dx**2 * dy, 2),)
    composed = dx @ ((lambda X: X[:, 0]) * dx)
    assert isinstance(composed.plan(), NestedPlan)
    assert composed.plan().size == 4
    cost = found.cost([2, 64, 64, 1], 4096)
    assert cost.coefficients == 11
    assert cost.flops > 2 * 11 * 4096 * 64 * 64


def test_printing() -> None:
    def wind(X: Tensor) -> Tensor:
        return X[:, 0]

    assert repr(dx**2 - 2 * dy) == "LinearOperator(u_xx - 2 u_y)"
    assert repr(laplacian) == "LinearOperator(Δu)"
    assert repr(bilaplacian + laplacian / 2) == "LinearOperator(Δ²u + 0.5 Δu)"
    assert repr(wind * (dx + dy)) == "LinearOperator(wind * (u_x + u_y))"
    assert repr(dx @ (wind * dy)) == "LinearOperator((u_x) @ LinearOperator(wind * u_y))"
    assert repr(torch.ones(3) * dx) == "LinearOperator(c[3] * u_x)"
    assert repr(dx - dx) == "LinearOperator(0)"


# Transforms.


def test_functions_of_one_point_under_vmap() -> None:
    net, x = network(3, 2), points(4, 3)
    assert torch.allclose(torch.vmap(lambda z: bilaplacian(net, z))(x), bilaplacian(net, x))
    coefficient = torch.vmap(lambda z: ((lambda X: X[0]) * laplacian)(net, z))(x)
    assert torch.allclose(coefficient, x[:, :1] * laplacian(net, x))


def test_operators_inside_torch_func() -> None:
    net, x = network(2), points(4, 2)
    values: dict[str, Tensor] = dict(net.named_parameters())

    def loss(parameters: Mapping[str, Tensor]) -> Tensor:
        return laplacian(lambda z: torch.func.functional_call(net, dict(parameters), (z,)), x).square().mean()

    expected = torch.autograd.grad(laplacian(net, x).square().mean(), list(values.values()), allow_unused=True)
    for actual, other in zip(torch.func.grad(loss)(values).values(), expected, strict=True):
        close(actual, torch.zeros_like(actual) if other is None else other, 1e-12)


def test_operators_of_operators_of_derivatives() -> None:
    """An operator inside a jet of another kind: mixed by nesting."""
    net, x = network(2), points(3, 2)
    direction = torch.tensor([1.0, 0.0], dtype=DOUBLE).expand_as(x)
    by_nesting = derivatives(lambda z: laplacian(net, z), x, 1, direction=direction)[1]
    close(by_nesting, (dx * laplacian)(net, x), 1e-12)


def test_compiled_without_graph_breaks_or_recompilation() -> None:
    net, x = network(2), points(4, 2)
    operator = 0.5 * bilaplacian - dx * dy + 1
    expected = operator(net, x), operator(net, x + 1)
    compiled = torch.compile(lambda z: operator(net, z), fullgraph=True, backend="eager")
    close(compiled(x), expected[0], 1e-12)
    with torch._dynamo.config.patch(error_on_recompile=True):
        close(compiled(x + 1), expected[1], 1e-12)


# Chunks.


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_give_the_same(chunk_size: int) -> None:
    net, x = network(5), points(4, 5)
    a = differentials("abcde")
    for operator in (laplacian, bilaplacian, laplacian + a[0] * a[1] + a[2] + 1):
        whole = operator(net, x)
        close(operator(net, x, chunk_size=chunk_size), whole, 1e-12)
        with torch.no_grad():
            close(operator(net, x, chunk_size=chunk_size), whole, 1e-12)
        expected = torch.autograd.grad(whole.sum(), list(net.parameters()), materialize_grads=True)
        chunked = operator(net, x, chunk_size=chunk_size).sum()
        actual = torch.autograd.grad(chunked, list(net.parameters()), materialize_grads=True)
        for p, q in zip(actual, expected, strict=True):
            close(p, q, 1e-12)


@pytest.mark.parametrize("outer", [2, 100])
def test_chunks_inside_another_differentiation(outer: int) -> None:
    """Recomputed in the backward pass, the inner jets must not be taken for the outer ones."""
    net, x = network(3), points(4, 3)

    def curvature(z: Tensor, chunk_size: int) -> Tensor:
        return laplacian(lambda w: net(w) * torch.sin(z[:, :1]), z, chunk_size=chunk_size)

    chunked = laplacian(lambda z: curvature(z, 1), x, chunk_size=outer)
    whole = laplacian(lambda z: curvature(z, 100), x)
    close(chunked, whole, 1e-12)
    actual = torch.autograd.grad(chunked.sum(), list(net.parameters()), materialize_grads=True)
    expected = torch.autograd.grad(whole.sum(), list(net.parameters()), materialize_grads=True)
    for p, q in zip(actual, expected, strict=True):
        close(p, q, 1e-11)


def test_chunks_inside_torch_func() -> None:
    net, x = network(5), points(4, 5)
    gradient = torch.func.grad(lambda z: laplacian(net, z, chunk_size=2).sum())(x)
    close(gradient, torch.func.grad(lambda z: laplacian(net, z).sum())(x), 1e-12)


def test_chunks_bound_the_memory_of_the_graph() -> None:
    """Only one chunk's coefficients are kept at a time, forward and backward."""
    net, x = network(40, width=32), points(16, 40)
    largest = 0

    def watch(z: object) -> object:
        nonlocal largest
        largest = max(largest, z.coefficient_layout.size)  # pyright: ignore
        return net(z)

    laplacian(watch, x, chunk_size=10).sum().backward()
    assert largest == 12
    x.requires_grad_()
    saved = {}
    for size in (10, 40):
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            laplacian(lambda z: torch.sin(z).square().sum(-1), x, chunk_size=size)
        saved[size] = total
    assert saved[10] < saved[40] / 4


def test_chunks_are_chosen_from_the_free_memory_and_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(100), points(8, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = laplacian(net, x)
    monkeypatch.setattr(evaluation, "_free_memory", lambda device: 5e5)
    monkeypatch.setattr(evaluation, "_NEGLIGIBLE_BYTES", 0)
    with pytest.warns(ChunkWarning, match=r"100 directions in chunks of \d+, .* pass chunk_size="):
        close(laplacian(net, x), whole, 1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        laplacian(net, x, chunk_size=100)


def test_free_memory_is_known() -> None:
    assert evaluation._free_memory(torch.device("cpu")) > 2**20


# Bad input.


X = points(4, 2)
ERRORS = {
    "other number of variables": (
        lambda: dx(network(3), points(4, 3)),
        ValueError,
        r"x has 3 variables, expected 2 \(x, y\)",
    ),
    "dict with other entries": (
        lambda: dx(network(2), {"y": X[:, :1], "x": X[:, 1:]}),
        ValueError,
        "entries y, x, but the variables are x, y",
    ),
    "integer points": (
        lambda: dx(network(2), torch.ones(3, 2, dtype=torch.long)),
        TypeError,
        "floating-point",
    ),
    "a number as points": (lambda: laplacian(torch.sin, torch.tensor(1.0)), ValueError, "last axis"),
    "empty dict": (lambda: laplacian(torch.sin, {}), ValueError, "at least one variable"),
    "function of no tensor": (
        lambda: dx(lambda x: "no", X),
        TypeError,
        "must return a torch.Tensor, got str",
    ),
    "coefficient of the wrong length": (
        lambda: (torch.ones(3) * dx)(network(2), X),
        ValueError,
        r"coefficient c\[3\] has shape \(3,\); it needs one number, or one for each of the points \(4,\)",
    ),
    "function of the wrong length": (
        lambda: ((lambda X: torch.ones(7)) * dx)(network(2), X),
        ValueError,
        r"coefficient <lambda> has shape \(7,\)",
    ),
    "function that returns no tensor": (
        lambda: ((lambda X: None) * dx)(network(2), X),
        TypeError,
        "<lambda> must return a tensor, got NoneType",
    ),
    "coefficient on the right": (lambda: dx * torch.ones(3), TypeError, "to the left"),
    "coefficients to be differentiated": (lambda: dx * (torch.ones(4) * dx), TypeError, "use L1 @ L2"),
    "tensor inside a composition": (
        lambda: dx @ (torch.ones(4) * dx),
        TypeError,
        "give it as a function of the points",
    ),
    "power of a variable operator": (lambda: (torch.ones(4) * dx) ** 2, TypeError, "use L1 @ L2"),
    "negative power": (lambda: dx**-1, ValueError, "integer of at least 0, got -1"),
    "fractional power": (lambda: dx ** cast(int, 0.5), ValueError, "integer of at least 0, got 0.5"),
    "different variables": (lambda: dx + differentials("x", "t")[0], ValueError, "x, y and x, t"),
    "string": (lambda: dx + "x", TypeError, "unsupported operand"),
    "infinite coefficient": (lambda: math.inf * dx, ValueError, "must be finite"),
    "repeated differential": (lambda: differentials("x", "x"), ValueError, "'x' more than once"),
    "no differential": (lambda: differentials(), ValueError, "at least one name"),
    "plan without dimension": (lambda: laplacian.plan(), ValueError, "dimension must be given"),
    "plan with another dimension": (
        lambda: dx.plan(3),
        ValueError,
        "dimension is 3, but the variables are x, y",
    ),
    "plan of a sum of compositions": (
        lambda: (dx @ ((lambda X: X[:, 0]) * dx) + dy).plan(),
        ValueError,
        "no single plan",
    ),
    "plan of nothing": (lambda: plan([], "xy"), ValueError, "nothing is requested"),
    "plan of an unknown variable": (
        lambda: plan(["xz"], "xy"),
        ValueError,
        "'xz' isn't made of the variables",
    ),
    "plan of a number": (lambda: plan([3], "xy"), TypeError, "must be a string, or a tuple"),  # pyright: ignore
    "plan of other variables": (
        lambda: plan([dx], "xt"),
        ValueError,
        "isn't an operator of the variables x, t",
    ),
    "plan of a variable operator": (
        lambda: plan([torch.ones(3) * dx], "xy"),
        ValueError,
        "depend on the point",
    ),
    "plan of too high an order": (lambda: plan(["x" * 171], "x"), ValueError, "order 171; at most 170"),
    "no chunk": (lambda: laplacian(network(2), X, chunk_size=0), ValueError, "positive number of directions"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
