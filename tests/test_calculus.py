"""gradient, jacobian, hessian, hvp, divergence, curl, directional: against torch.func, and bad input."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from taylorderiv import (
    curl,
    derivatives,
    directional,
    divergence,
    gradient,
    hessian,
    hvp,
    jacobian,
    laplacian,
)

DOUBLE = torch.float64


def network(inputs: int, outputs: int) -> torch.nn.Sequential:
    torch.manual_seed(1)
    layers = [torch.nn.Linear(inputs, 10), torch.nn.GELU(), torch.nn.Linear(10, outputs), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers).double()


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE)


def scalar(net: torch.nn.Module) -> Any:
    return lambda z: net(z)[..., 0]


@pytest.mark.parametrize("outputs", [1, 3])
def test_jacobian_and_hessian(outputs: int) -> None:
    net, x = network(4, outputs), points(5, 4)
    torch.testing.assert_close(jacobian(net, x), torch.vmap(torch.func.jacrev(net))(x))
    torch.testing.assert_close(hessian(net, x), torch.vmap(torch.func.hessian(net))(x))
    assert hessian(net, x).shape == (5, outputs, 4, 4)


def test_gradient_has_the_shape_of_the_points() -> None:
    net, x = network(4, 1), points(5, 4)
    expected = torch.vmap(torch.func.grad(scalar(net)))(x)
    torch.testing.assert_close(gradient(net, x), expected)
    torch.testing.assert_close(gradient(scalar(net), x), expected)


def test_hessian_of_many_variables_is_symmetric() -> None:
    net, x = network(12, 1), points(2, 12)
    values = hessian(scalar(net), x)
    torch.testing.assert_close(values, torch.vmap(torch.func.hessian(scalar(net)))(x))
    assert torch.equal(values, values.mT)
    torch.testing.assert_close(values.diagonal(dim1=1, dim2=2).sum(1), laplacian(scalar(net), x))


def test_hvp() -> None:
    net, x = network(4, 1), points(5, 4)
    matrices = torch.vmap(torch.func.hessian(scalar(net)))(x)
    one, each = points(4), points(5, 4)
    torch.testing.assert_close(hvp(net, x, one), matrices @ one)
    torch.testing.assert_close(hvp(scalar(net), x, each), (matrices @ each[..., None])[..., 0])


def test_hvp_trains() -> None:
    net, x, v = network(3, 1), points(4, 3), points(3)
    actual = torch.autograd.grad(hvp(net, x, v).square().sum(), list(net.parameters()), allow_unused=True)
    expected = (hessian(net, x)[:, 0] @ v).square().sum()
    for a, b in zip(actual, torch.autograd.grad(expected, list(net.parameters()), allow_unused=True), strict=True):
        torch.testing.assert_close(a if a is not None else b, b if b is not None else a)


def test_directional() -> None:
    net, x, v = network(3, 2), points(4, 3), points(4, 3)
    expected = derivatives(net, x, 3, direction=v)
    for order in range(4):
        torch.testing.assert_close(directional(net, x, v, order), expected[order])
    torch.testing.assert_close(directional(net, x, v[0], 2), derivatives(net, x, 2, direction=v[0].expand(4, 3))[2])


def test_divergence_and_curl() -> None:
    net, x = network(3, 3), points(5, 3)
    slopes = torch.vmap(torch.func.jacrev(net))(x)
    torch.testing.assert_close(divergence(net, x), slopes.diagonal(dim1=1, dim2=2).sum(1))
    expected = [slopes[:, (i + 2) % 3, (i + 1) % 3] - slopes[:, (i + 1) % 3, (i + 2) % 3] for i in range(3)]
    torch.testing.assert_close(curl(net, x), torch.stack(expected, 1))


def test_identities_of_vector_calculus() -> None:
    field, potential, x = network(3, 3), network(3, 1), points(5, 3)
    none = torch.zeros(5, dtype=DOUBLE)
    torch.testing.assert_close(divergence(lambda z: curl(field, z), x), none)
    torch.testing.assert_close(curl(lambda z: gradient(potential, z), x), torch.zeros_like(x))
    torch.testing.assert_close(divergence(lambda z: gradient(potential, z), x), laplacian(scalar(potential), x))


def test_functions_of_one_point_under_vmap() -> None:
    net, x, v = network(3, 3), points(4, 3), points(3)
    for function in (jacobian, hessian, divergence, curl, lambda f, z: directional(f, z, v, 2)):
        torch.testing.assert_close(torch.vmap(lambda z, g=function: g(net, z))(x), function(net, x))
    f = scalar(net)
    torch.testing.assert_close(torch.vmap(lambda z: gradient(f, z))(x), gradient(f, x))
    torch.testing.assert_close(torch.vmap(lambda z: hvp(f, z, v))(x), hvp(f, x, v))


def test_more_than_one_axis_of_points() -> None:
    net, x = network(3, 3), points(2, 5, 3)
    for function in (jacobian, hessian, divergence, curl):
        torch.testing.assert_close(function(net, x), function(net, x.flatten(0, 1)).unflatten(0, (2, 5)))


def test_functions_that_do_not_depend_on_the_points() -> None:
    x = points(4, 2)
    assert torch.equal(jacobian(lambda z: torch.ones(4, 3), x), torch.zeros(4, 3, 2))
    assert torch.equal(hessian(lambda z: torch.ones(4), x), torch.zeros(4, 2, 2))
    assert torch.equal(directional(lambda z: torch.ones(4), x, x, 2), torch.zeros(4))


@pytest.mark.parametrize("function", [jacobian, hessian, gradient, divergence])
def test_chunks(function: Any) -> None:
    net, x = network(6, 1 if function is gradient else 6), points(3, 6)
    torch.testing.assert_close(function(net, x, chunk_size=4), function(net, x))


def test_no_points() -> None:
    assert hessian(network(3, 2), points(0, 3)).shape == (0, 2, 3, 3)


X = points(4, 2)
ERRORS = {
    "gradient of several outputs": (
        lambda: gradient(network(2, 3), X),
        ValueError,
        "one output per point.*jacobian",
    ),
    "hvp of several outputs": (lambda: hvp(network(2, 3), X, X), ValueError, "one output per point"),
    "hvp with another shape": (lambda: hvp(network(2, 1), X, points(3)), ValueError, "v has shape"),
    "divergence of a scalar": (
        lambda: divergence(network(2, 1), X),
        ValueError,
        "as many outputs as variables",
    ),
    "divergence of numbers": (
        lambda: divergence(lambda z: z.sum(), X),
        ValueError,
        "as many outputs as variables",
    ),
    "curl in two dimensions": (lambda: curl(network(2, 2), X), ValueError, "x has 2 variables, expected 3"),
    "curl of two outputs": (
        lambda: curl(network(3, 2), points(4, 3)),
        ValueError,
        "as many outputs as variables",
    ),
    "directional with an integer vector": (
        lambda: directional(network(2, 1), X, torch.ones(2, dtype=torch.long)),
        TypeError,
        "v must be floating-point",
    ),
    "directional of negative order": (
        lambda: directional(network(2, 1), X, X, -1),
        ValueError,
        "not be negative",
    ),
    "directional of fractional order": (
        lambda: directional(network(2, 1), X, X, cast(int, 1.5)),
        TypeError,
        "must be an int",
    ),
    "directional of another dtype": (lambda: directional(network(2, 1), X, X.float()), TypeError, "dtype"),
    "integer points": (
        lambda: hessian(network(2, 1), torch.ones(3, 2, dtype=torch.long)),
        TypeError,
        "floating-point",
    ),
    "no variables": (lambda: jacobian(network(2, 1), points(3, 0)), ValueError, "last axis"),
    "function that returns a string": (
        lambda: jacobian(lambda z: "no", X),
        TypeError,
        "must return a torch.Tensor",
    ),
    "chunk size": (
        lambda: hessian(network(2, 1), X, chunk_size=-1),
        ValueError,
        "positive number of directions",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
