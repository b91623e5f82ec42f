"""Random networks: the fused chain gives the numbers and gradients of layer by layer, to rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from agreement import unfused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from unary_records import RECORDS, Record

from taylorderiv import Jet, chain, fusion, kernels

pytestmark = pytest.mark.skipif(
    kernels.build_info()["backend"] == "reference", reason="the reference backend fuses nothing"
)

# Of the largest number of a coefficient or gradient: sums run in another order.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4}
WIDTHS = st.one_of(st.integers(1, 40), st.sampled_from([1, 15, 16, 17, 32, 64, 255, 257, 300]))
ACTIVATIONS = [record for record in RECORDS if record.kernel]


@dataclass(frozen=True)
class Layer:
    """``op(factor * (x @ weightᵀ + bias))``.

    Attributes:
        width: of its result.
        record: of the op, or None.
        bias: whether it has one.
        factor: of its own, a number, or a parameter.
        transposed: whether its weight is laid out in memory as ``(in, out)``.
    """

    width: int
    record: Record | None
    bias: bool
    factor: float | str | None
    transposed: bool


LAYERS = st.builds(
    Layer,
    WIDTHS,
    st.one_of(st.none(), st.sampled_from(ACTIVATIONS)),
    st.booleans(),
    st.sampled_from([None, None, 30.0, -0.5, "parameter"]),
    st.booleans(),
)


@st.composite
def directions(draw: Any) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    """Orders and weights, None where nothing is collapsed."""
    orders = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    if not draw(st.booleans()):
        return tuple(orders), None
    weights = draw(st.lists(st.sampled_from([0.0, 1.0, -1.5]), min_size=len(orders), max_size=len(orders)))
    weights[0] = 0.5
    return tuple(orders[0] if w else k for k, w in zip(orders, weights, strict=True)), tuple(weights)


def interval(record: Record | None, dtype: torch.dtype) -> tuple[float, float]:
    """Where an op's arguments may lie; across its kinks only where rounding doesn't reach them."""
    if record is None:
        return -1.0, 1.0
    low, high = record.smooth
    if dtype == torch.float64:
        low, high = min(low, *(k - 1 for k in record.kinks), low), max(high, *(k + 1 for k in record.kinks), high)
    return low, high


class Network:
    """A network whose layers' arguments lie where their ops are defined, at the points given."""

    def __init__(self, layers: Sequence[Layer], x: Tensor):
        dtype = x.dtype
        self.layers = layers
        self.weights: list[Tensor] = []
        self.biases: list[Tensor | None] = []
        self.factors: list[Any] = []
        h = x.detach().double().reshape(-1, x.shape[-1])
        for layer in layers:
            low, high = interval(layer.record, dtype)
            middle, reach = (low + high) / 2, 0.4 * (high - low)
            biased = layer.bias or not low < 0 < high
            if not biased:
                middle, reach = 0.0, 0.9 * min(-low, high)
            factor = 1.5 if layer.factor == "parameter" else layer.factor or 1.0
            weight = torch.randn(layer.width, h.shape[-1], dtype=torch.float64)
            largest = (h @ weight.T).abs().max().item() if len(h) else 1.0
            weight *= reach / factor / (largest or 1.0)
            bias = middle + 0.1 * (high - low) * (torch.rand(layer.width, dtype=torch.float64) - 0.5)
            h = factor * F.linear(h, weight, bias / factor if biased else None)
            h = h if layer.record is None else layer.record.function(h)
            weight = weight.to(dtype)
            self.weights.append((weight.T.contiguous().T if layer.transposed else weight).requires_grad_())
            self.biases.append((bias / factor).to(dtype).requires_grad_() if biased else None)
            parameter = layer.factor == "parameter"
            self.factors.append(torch.tensor(factor, dtype=dtype, requires_grad=True) if parameter else layer.factor)

    def __call__(self, x: Any) -> Any:
        for layer, weight, bias, factor in zip(self.layers, self.weights, self.biases, self.factors, strict=True):
            x = F.linear(x, weight, bias)
            x = x if factor is None else factor * x
            x = x if layer.record is None else layer.record.function(x)
        return x

    def parameters(self) -> list[Tensor]:
        return [t for t in (*self.weights, *self.biases, *self.factors) if isinstance(t, Tensor)]


def scale(value: Tensor) -> Tensor:
    """The largest number of each coefficient."""
    return value.detach().abs().amax(tuple(range(1, value.ndim)), keepdim=True) if value.numel() else value.detach()


def assert_agrees(actual: Tensor, expected: Tensor, largest: Tensor, what: str) -> None:
    assert actual.shape == expected.shape
    error = ((actual - expected).abs() / (largest + 1e-30)).nan_to_num(nan=math.inf)
    assert not error.numel() or error.max() < TOLERANCE[actual.dtype], f"{what}: relative error {error.max():.3g}"


@settings(max_examples=150, deadline=None)
@given(
    WIDTHS,
    st.lists(LAYERS, min_size=1, max_size=5),
    directions(),
    st.sampled_from([(0,), (1,), (3,), (70,), (2, 3), ()]),
    st.sampled_from([torch.float64, torch.float32]),
    st.sampled_from([True, False, None]),
    st.sampled_from(["points", "shared", "computed"]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_a_chain_is_its_layers_one_by_one(
    width, layers, orders_and_weights, points, dtype, save, seed, everything, number
):
    orders, weights = orders_and_weights
    torch.manual_seed(number)
    x = (2 * torch.rand(width, *points, dtype=dtype) - 1).movedim(0, -1).requires_grad_()  # not contiguous
    along = torch.randn(len(orders), *([1] * len(points) if seed == "shared" else points), width, dtype=dtype)
    along = (along / math.sqrt(width)).requires_grad_()
    network = Network(layers, torch.sin(x) if seed == "computed" else x)
    inputs = [x, along, *network.parameters()]

    def run():
        jet: Any = Jet.variable(x, orders, along, weights)
        return network(torch.sin(jet) if seed == "computed" else jet).coefficients

    def gradients(y):
        return torch.autograd.grad(y, inputs, cotangent, allow_unused=True, materialize_grads=True)

    expected = unfused(run)
    largest = scale(expected)
    cotangent = torch.linspace(-1, 1, expected.numel(), dtype=dtype).reshape(expected.shape) / (largest + 1e-30)
    expected_gradients = unfused(gradients, expected)
    # Some wide layers aren't fused, as that wouldn't be faster.
    with mock.patch.object(chain, "_WIDEST", 10**6 if everything else 100), fusion(save=save):
        actual = run()
        actual_gradients = gradients(actual)
        with torch.no_grad():
            assert_agrees(run(), expected, largest, "without gradients")
    assert_agrees(actual, expected, largest, "coefficients")
    for n, (a, e) in enumerate(zip(actual_gradients, expected_gradients, strict=True)):
        assert_agrees(a, e, e.abs().max() if e.numel() else e, f"gradient {n}")
