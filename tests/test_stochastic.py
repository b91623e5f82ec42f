"""Stochastic estimates: unbiased, with honest standard errors, and refused where they would be biased.

A statistical test fails for a right estimator with a probability of 6e-5 (4 standard deviations) per number
compared. The random numbers are the same in every run, so what passes once passes always.
"""

from __future__ import annotations

import math
import tracemalloc

import pytest
import torch
from torch import Tensor

from taylorderiv import Estimate, LinearOperator, bilaplacian, differentials, estimate, laplacian

DOUBLE = torch.float64
DIMENSION = 6
d = differentials(*(f"x{i}" for i in range(DIMENSION)))


def weight(X: Tensor) -> Tensor:
    return 1 + X[:, 0] ** 2


OPERATORS: dict[str, tuple[LinearOperator, tuple[str, ...]]] = {
    "Laplacian": (laplacian, ("rademacher", "normal", "coordinates")),
    "biharmonic": (bilaplacian, ("normal", "coordinates")),
    "triharmonic": (laplacian**3, ("coordinates",)),
    "orders 0, 1, 2 and 4": (bilaplacian / 2 - laplacian + d[0] * 3 + 2, ("normal", "coordinates")),
    "indefinite diagonal": (d[0] ** 2 - 3 * d[1] ** 2 + d[2], ("rademacher", "normal", "coordinates")),
    "dense second order": ((d[0] + d[1] * 2) ** 2 - d[0] * d[3], ("rademacher", "normal", "coordinates")),
    "power of a dense operator": (((d[0] + d[1]) ** 2 + d[2] ** 2) ** 2, ("normal", "coordinates")),
    "negative definite": (-(d[0] ** 2) - 2 * d[1] ** 2, ("rademacher", "normal", "coordinates")),
    "third order": (d[0] ** 3 + 2 * d[1] ** 2 * d[2], ("coordinates",)),
    "with coefficients": (
        weight * laplacian + d[1] ** 2 + weight * d[2],
        ("rademacher", "normal", "coordinates"),
    ),
}
CASES = [(name, method) for name, (_, methods) in OPERATORS.items() for method in methods]


def network() -> torch.nn.Sequential:
    torch.manual_seed(1)
    layers = [torch.nn.Linear(DIMENSION, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(16, 2)).double().requires_grad_(False)


def points() -> Tensor:
    torch.manual_seed(2)
    return torch.randn(3, DIMENSION, dtype=DOUBLE)


@pytest.mark.parametrize("standard_error", [True, False])
@pytest.mark.parametrize(("name", "method"), CASES)
def test_estimates_are_unbiased(name: str, method: str, standard_error: bool) -> None:
    operator, net, x = OPERATORS[name][0], network(), points()
    exact, repeats = operator(net, x), 60
    values = torch.stack(
        [estimate(operator, net, x, 30, method=method, standard_error=standard_error).value for _ in range(repeats)]
    )
    bias, spread = (values.mean(0) - exact).abs(), values.std(0) / math.sqrt(repeats)
    assert (bias <= 4 * spread + 1e-12 * exact.abs()).all()


@pytest.mark.parametrize(("name", "method"), CASES)
def test_standard_errors_are_honest(name: str, method: str) -> None:
    """Their mean square is the variance of the estimates, within what 100 repetitions can tell."""
    operator, net, x = OPERATORS[name][0], network(), points()
    results = [estimate(operator, net, x, 20, method=method) for _ in range(100)]
    errors = torch.stack([result.standard_error for result in results if result.standard_error is not None])
    variance = torch.stack([result.value for result in results]).var(0).mean()
    if variance < 1e-20:
        assert float(errors.max()) < 1e-10
    else:
        assert 0.5 < float(errors.square().mean() / variance) < 2


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_moments_of_normal_directions(power: int) -> None:
    """``Δ^m |x|^(2m) = m! 2^m D (D + 2) … (D + 2m - 2)``, from heavy-tailed samples: many of them."""
    x = torch.zeros(1, 3, dtype=DOUBLE)
    result = estimate(laplacian**power, lambda z: (z**2).sum(-1) ** power, x, 20_000, method="normal")
    exact = math.factorial(power) * 2**power * math.prod(range(3, 3 + 2 * power, 2))
    assert result.standard_error is not None
    assert abs(float(result.value) - exact) <= 4 * float(result.standard_error)
    assert float(result.standard_error) < 0.05 * exact


def test_laplacian_of_the_laplacian_both_ways() -> None:
    """Estimating Δ² u directly, and Δ of the exact Δ u."""
    net, x = network(), points()
    exact = bilaplacian(net, x)
    for operator, f in ((bilaplacian, net), (laplacian, lambda z: laplacian(net, z))):
        result = estimate(operator, f, x, 2000)
        assert result.standard_error is not None
        assert ((result.value - exact).abs() <= 4 * result.standard_error).all()


def test_all_terms_are_exact() -> None:
    net, x = network(), points()
    for samples in (DIMENSION, 2 * DIMENSION):
        value, error, _ = estimate(laplacian, net, x, samples, method="coordinates")
        torch.testing.assert_close(value, laplacian(net, x))
        assert error is not None
        assert not error.any()


def test_low_orders_are_exact() -> None:
    net, x = network(), points()
    operator = 2 * d[0] - d[1] + weight * d[2] + 0.5
    value, error, primal = estimate(operator, net, x, 1)
    torch.testing.assert_close(value, operator(net, x))
    torch.testing.assert_close(primal, net(x))
    assert error is not None
    assert not error.any()


def test_one_sample_says_nothing_of_its_error() -> None:
    assert estimate(laplacian, network(), points(), 1).standard_error.isnan().all()  # pyright: ignore


@pytest.mark.parametrize("standard_error", [False, True])
def test_the_value_of_the_function_is_trainable(standard_error: bool) -> None:
    net, x = network().requires_grad_(), points()
    parameters = list(net.parameters())

    def gradients(primal: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((value + primal.sin()).square().sum(), parameters)

    estimated = estimate(laplacian, net, x, DIMENSION, method="coordinates", standard_error=standard_error)
    for a, e in zip(gradients(estimated.primal, estimated.value), gradients(net(x), laplacian(net, x)), strict=True):
        torch.testing.assert_close(a, e)


def test_generators_reproduce() -> None:
    net, x = network(), points()
    for method in ("rademacher", "normal", "coordinates"):
        first, second, other = (
            estimate(laplacian, net, x, 4, torch.Generator().manual_seed(seed), method=method).value
            for seed in (5, 5, 6)
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
    state = torch.get_rng_state()
    estimate(laplacian, net, x, 4, torch.Generator())
    assert torch.equal(state, torch.get_rng_state())


def test_without_standard_error_the_top_is_collapsed() -> None:
    sizes = []

    def watch(z: object) -> object:
        sizes.append(z.coefficient_layout.size)  # pyright: ignore
        return network()(z)

    assert estimate(laplacian, watch, points(), 10, standard_error=False).standard_error is None
    estimate(laplacian, watch, points(), 10)
    assert sizes == [12, 21]


def test_gradients_are_those_of_the_sampled_directions() -> None:
    net, x = network().requires_grad_(), points()

    def loss() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return estimate(laplacian, net, x, 5, generator).value.square().sum()

    (gradient,) = torch.autograd.grad(loss(), net[0].weight)  # pyright: ignore
    step = torch.randn_like(net[0].weight) * 1e-6  # pyright: ignore
    with torch.no_grad():
        net[0].weight += step  # pyright: ignore
        above = loss()
        net[0].weight -= 2 * step  # pyright: ignore
        slope = float(above - loss()) / 2
    assert slope == pytest.approx(float((gradient * step).sum()), rel=1e-5)


@pytest.mark.parametrize("method", ["rademacher", "coordinates"])
def test_a_million_dimensions(method: str) -> None:
    """Memory grows with samples times D, not with D²."""
    x = torch.full((1, 1_000_000), 0.5)
    tracemalloc.start()
    result = estimate(laplacian, lambda z: (z**3).sum(-1), x, 4, method=method)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert float(result.value) == pytest.approx(3e6, rel=1e-4)
    assert peak < 2**28  # of Python's own


def test_empty_batch() -> None:
    result = estimate(laplacian, network(), torch.zeros(0, DIMENSION, dtype=DOUBLE), 3)
    assert isinstance(result, Estimate)
    assert result.value.shape == (0, 2)


def test_functions_that_do_not_depend_on_the_points() -> None:
    value, error, primal = estimate(laplacian + 2, lambda z: torch.ones(3, dtype=DOUBLE), points(), 3)
    assert value.tolist() == [2, 2, 2]
    assert primal.tolist() == [1, 1, 1]
    assert error.tolist() == [0, 0, 0]  # pyright: ignore


def estimate_with(operator: LinearOperator = laplacian, samples: object = 3, **options: object) -> Estimate:
    return estimate(operator, network(), points(), samples, **options)  # pyright: ignore


ERRORS = {
    "no samples": (lambda: estimate_with(samples=0), ValueError, "samples must be positive, got 0"),
    "fractional samples": (
        lambda: estimate_with(samples=2.0),
        TypeError,
        "samples must be an int, got float",
    ),
    "unknown method": (
        lambda: estimate_with(method="hutchinson"),
        ValueError,
        "one of rademacher, normal, coordinates, got 'hutchinson'",
    ),
    "random signs for order 4": (
        lambda: estimate_with(bilaplacian, method="rademacher"),
        ValueError,
        "random signs give a biased estimate of an operator of order 4: use method='normal'",
    ),
    "random signs for order 3": (
        lambda: estimate_with(d[0] ** 3, method="rademacher"),
        ValueError,
        "order 3 .* use method='coordinates'",
    ),
    "normal for no power": (
        lambda: estimate_with(d[0] ** 4 + d[1] ** 4, method="normal"),
        ValueError,
        "isn't a power of an operator of order 2: use method='coordinates'",
    ),
    "normal for an indefinite power": (
        lambda: estimate_with((d[0] ** 2 - d[1] ** 2) ** 2, method="normal"),
        ValueError,
        "indefinite operator: use method='coordinates'",
    ),
    "composition": (lambda: estimate_with(d[0] @ (weight * d[0])), ValueError, "composition"),
    "other variables": (
        lambda: estimate_with(differentials("xy")[0]),
        ValueError,
        "x has 6 variables, expected 2",
    ),
    "named points": (
        lambda: estimate(laplacian, torch.sin, {"x": torch.ones(3, 1)}, 3),  # pyright: ignore
        TypeError,
        "x must be a torch.Tensor, got dict",
    ),
    "function of no tensor": (
        lambda: estimate(laplacian, lambda z: 1, points(), 3),
        TypeError,
        "must return a torch",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
