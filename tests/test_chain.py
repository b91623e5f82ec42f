"""The fused chain: the same numbers as layer by layer, wherever it is cut, and never a stale one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from taylorderiv import Jet, chain, derivatives, fusion, kernels, partials

pytestmark = pytest.mark.skipif(
    kernels.build_info()["backend"] == "reference", reason="the reference backend fuses nothing"
)


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of layers of each chain that runs."""
    counts: list[int] = []
    run = kernels.chain

    def counting(x, higher, weights, *rest):
        counts.append(len(weights))
        return run(x, higher, weights, *rest)

    monkeypatch.setattr(chain.kernels, "chain", counting)
    return counts


def unfused(function, *args):
    """``function(*args)`` with each layer computed by itself."""
    with fusion(enabled=False):
        return function(*args)


ACTIVATIONS = {
    "tanh": torch.tanh,
    "sin": torch.sin,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": lambda x: F.softplus(x, beta=2.0),
    "elu": F.elu,
    "relu": torch.relu,
    "none": lambda x: x,
}


class Network(nn.Module):
    def __init__(self, widths, activations, biases, dtype):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(a, b, bias=bias, dtype=dtype) for a, b, bias in zip(widths, widths[1:], biases, strict=False)
        )
        self.activations = [ACTIVATIONS[name] for name in activations]

    def forward(self, x):
        for layer, activation in zip(self.layers, self.activations, strict=False):
            x = activation(layer(x))
        return x


@st.composite
def architectures(draw):
    depth = draw(st.integers(1, 4))
    widths = draw(st.lists(st.integers(1, 40), min_size=depth + 1, max_size=depth + 1))
    activations = draw(st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=depth, max_size=depth))
    biases = draw(st.lists(st.booleans(), min_size=depth, max_size=depth))
    orders = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    collapsed = draw(st.booleans())
    if collapsed:
        orders = [orders[0]] * len(orders)
    weights = [0.5 - r for r in range(len(orders))] if collapsed else None
    points = draw(st.sampled_from([0, 1, 3, 70]))
    return widths, activations, biases, tuple(orders), weights, points, draw(st.integers(0, 10**6))


@settings(max_examples=80, deadline=None)
@given(architectures(), st.sampled_from([torch.float64, torch.float32]), st.booleans(), st.booleans())
def test_chain_matches_layer_by_layer(architecture, dtype, save, seeded):
    widths, activations, biases, orders, weights, points, seed = architecture
    torch.manual_seed(seed)
    network = Network(widths, activations, biases, dtype)
    x = torch.randn(widths[0], points, dtype=dtype).T.requires_grad_()  # not contiguous
    directions = torch.randn(len(orders), 1 if seeded else points, widths[0], dtype=dtype, requires_grad=True)

    def run():
        y = network(Jet.variable(x, orders, directions, weights)).coefficients
        cotangent = torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)
        inputs = [x, directions, *network.parameters()]
        return y, *torch.autograd.grad(y, inputs, cotangent, allow_unused=True, materialize_grads=True)

    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    with fusion(save=save):
        fused_results = run()
    for fused, single in zip(fused_results, unfused(run), strict=True):
        # Sums run in another order: rounding is relative to their largest terms.
        scale = single.abs().max().item() if single.numel() else 0.0
        torch.testing.assert_close(fused, single, rtol=tolerance, atol=tolerance * (scale + 1e-30))


def test_wide_networks_save_and_narrow_ones_recompute_most():
    narrow, wide = torch.empty(64, 64), torch.empty(512, 512)
    assert 0 < kernels.saved_bytes([narrow, narrow]) < 2**25
    assert kernels.saved_bytes([wide, wide]) == -1


def test_layers_saved_of_some_points_only_give_the_same_gradients():
    torch.manual_seed(0)
    weights = [torch.randn(16, 2), torch.randn(16, 16) / 4, torch.randn(3, 16)]
    biases, x, higher = [torch.randn(len(weight)) for weight in weights], torch.randn(1, 1000, 2), torch.randn(3, 2)
    constants = (weights, biases, ["tanh", "sin", "tanh"], [], [3], [])
    results, sizes = [], []
    for save in (0, -1, 200_000):
        y, saved = torch.ops.taylorderiv.chain(x, higher, *constants, save, False)
        gradients = torch.ops.taylorderiv.chain_backward(y, x, higher, saved, *constants, True, False)
        results.append([y, *gradients])
        sizes.append(4 * saved.numel())
    assert sizes[0] == 0 < sizes[2] <= 200_000 < sizes[1]
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert torch.equal(a, b)


def test_a_sequential_network_is_one_op(flushes):
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.SiLU(), nn.Linear(8, 1))
    partials(network, torch.rand(5, 2), ["x", "t", "xx"], variables="xt")
    assert flushes == [3]


def test_siren_and_adaptive_slopes_stay_fused(flushes):
    first, second = nn.Linear(1, 8).double(), nn.Linear(8, 1).double()
    slope = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    x = torch.rand(5, 1, dtype=torch.float64)

    def network(x):
        return second(torch.sin(30 * first(slope * x)))

    def gradients():
        return torch.autograd.grad(derivatives(network, x, 2)[2].sum(), [slope, first.weight])

    fused = gradients()
    assert flushes[-1] == 2
    for a, b in zip(fused, unfused(gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_skip_connection_cuts_the_chain_and_stays_right():
    first, second = nn.Linear(3, 16).double(), nn.Linear(16, 16).double()
    x = torch.rand(4, 3, dtype=torch.float64)

    def network(x):
        h = torch.tanh(first(x))
        return torch.tanh(second(h)) + h

    for fused, single in zip(derivatives(network, x, 4), unfused(derivatives, network, x, 4), strict=True):
        torch.testing.assert_close(fused, single, rtol=1e-12, atol=1e-12)


def test_gradient_and_double_backward():
    torch.manual_seed(0)
    weights = [torch.randn(4, 2, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)]
    bias = torch.randn(4, dtype=torch.float64)
    x = torch.randn(3, 2, dtype=torch.float64)
    for tensor in (*weights, bias, x):
        tensor.requires_grad_()

    def function(x, first, bias, second):
        y: Any = Jet.variable(x, (3, 1), [torch.ones_like(x), x])
        y = F.linear(torch.tanh(F.linear(y, first, bias)), second)
        return y.coefficients

    assert torch.autograd.gradcheck(function, (x, weights[0], bias, weights[1]))
    assert torch.autograd.gradgradcheck(function, (x, weights[0], bias, weights[1]))


def test_gradient_and_double_backward_of_directions_that_all_points_share():
    torch.manual_seed(0)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, 1, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def function(x, v, weight):
        y: Any = Jet.variable(x, (3, 2), v)
        return F.linear(torch.tanh(F.linear(y, weight)), weight.T[:1]).coefficients

    assert torch.autograd.gradcheck(function, (x, v, weight))
    assert torch.autograd.gradgradcheck(function, (x, v, weight))


@pytest.mark.parametrize("layer_first", [True, False])
def test_a_seed_is_that_of_the_points_when_it_was_made(layer_first):
    layer = nn.Linear(2, 3)
    x = torch.rand(4, 2)
    jet: Any = Jet.variable(x, 2)
    expected = unfused(lambda: layer(Jet.variable(x.clone(), 2)).coefficients)
    if layer_first:
        jet = layer(jet)
    x.zero_()
    actual = jet if layer_first else layer(jet)
    torch.testing.assert_close(actual.coefficients, expected)


def test_a_seed_made_without_gradients_has_none():
    x = torch.rand(4, 2, requires_grad=True)
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        silent: Any = Jet.variable(x, 2)
    recorded: Any = Jet.variable(x, 2)
    with torch.no_grad():
        assert not torch.tanh(layer(recorded)).coefficients.requires_grad
        assert recorded.coefficients.requires_grad
    assert not silent.coefficients.requires_grad
    assert torch.autograd.grad(layer(silent).coefficients.sum(), x, allow_unused=True)[0] is None


def test_a_first_layer_too_wide_to_be_fused_sees_the_directions_once(flushes):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1500, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(3, 1500, dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, 1, 1500, dtype=torch.float64, requires_grad=True)

    def run():
        y: Any = network(Jet.variable(x, 2, v)).coefficients
        return y, *torch.autograd.grad(y.sum(), [x, v, *network.parameters()])

    for actual, expected in zip(run(), unfused(run), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert flushes == [1]  # the last layer


@pytest.mark.parametrize("seeded", [False, True])
def test_opcheck(seeded):
    x = torch.randn(1 if seeded else 3, 5, 2, dtype=torch.float64, requires_grad=True)
    higher = torch.randn(2 if seeded else 0, 2, dtype=torch.float64, requires_grad=seeded)
    weights = [torch.randn(4, 2, dtype=torch.float64, requires_grad=True)]
    biases = [torch.randn(4, dtype=torch.float64, requires_grad=True)]
    arguments = (x, higher, weights, biases, ["softplus"], [1.0, 20.0], [2], [], 0, False)
    # The gradient isn't the op's own: it belongs to the function that calls it.
    torch.library.opcheck(torch.ops.taylorderiv.chain, arguments, test_utils=("test_schema", "test_faketensor"))


def test_results_are_bit_identical_from_run_to_run():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 33), nn.Tanh(), nn.Linear(33, 1))
    x = torch.rand(1000, 2)

    def gradients():
        loss = partials(network, x, ["xx", "t"], variables="xt").xx.square().sum()
        return torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)

    reference = gradients()
    for _ in range(5):
        for a, b in zip(gradients(), reference, strict=True):
            assert a is b is None or torch.equal(a, b)


def test_a_changed_network_never_gives_a_stale_result():
    network: Any = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1)).double().eval()
    x = torch.rand(5, 1, dtype=torch.float64)

    def check():
        for fused, single in zip(derivatives(network, x, 2), unfused(derivatives, network, x, 2), strict=True):
            torch.testing.assert_close(fused, single, rtol=1e-12, atol=1e-12)

    check()
    with torch.no_grad():
        network[0].weight.add_(1)
    check()
    network[3] = nn.Linear(8, 2).double()
    check()
    network[0].weight = nn.Parameter(torch.randn(8, 1, dtype=torch.float64))
    check()
    network.float()
    x = x.float()
    derivatives(network, x, 2)
    with pytest.raises((TypeError, RuntimeError), match=r"dtype|same"):
        derivatives(network, x.double(), 2)


def test_a_weight_changed_before_the_coefficients_are_used_is_refused():
    layer = nn.Linear(2, 3)
    y: Any = torch.tanh(layer(Jet.variable(torch.rand(4, 2), 1)))
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        _ = y.coefficients


def test_in_place_ops_on_a_waiting_value_change_only_that_value():
    first, second = nn.Linear(2, 3).double(), nn.Linear(3, 3).double()
    x = torch.rand(4, 2, dtype=torch.float64)

    def network(x):
        h = first(x)
        y = second(h)
        h += 1  # after y was noted, before it is computed
        return y + h

    for fused, single in zip(derivatives(network, x, 1), unfused(derivatives, network, x, 1), strict=True):
        torch.testing.assert_close(fused, single, rtol=1e-12, atol=1e-12)


def test_grad_mode_is_that_of_the_code_that_ran():
    layer, last = nn.Linear(2, 3), nn.Linear(3, 1)
    with torch.no_grad():
        h = torch.tanh(layer(Jet.variable(torch.rand(4, 2), 1)))
    y = last(h).coefficients
    assert y.requires_grad
    assert torch.autograd.grad(y.sum(), [layer.weight], allow_unused=True)[0] is None


def test_a_value_looked_at_without_gradients_keeps_its_own():
    layer, last = nn.Linear(2, 3), nn.Linear(3, 1)
    h: Any = torch.tanh(layer(Jet.variable(torch.rand(4, 2), 1)))
    with torch.no_grad():
        assert h.primal.abs().max() < 1
    last(h).coefficients.sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_give_the_ieee_result(value):
    network: Any = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    with torch.no_grad():
        network[0].weight[0, 0] = value
    x = torch.rand(4, 2)
    for fused, single in zip(derivatives(network, x, 2), unfused(derivatives, network, x, 2), strict=True):
        assert torch.equal(fused.isnan(), single.isnan())


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0)])
def test_layers_without_elements(shape):
    points, inputs, outputs = shape
    weight, bias = torch.ones(outputs, inputs), torch.ones(outputs)
    x = torch.ones(points, inputs)
    value, first = derivatives(lambda x: torch.tanh(nn.functional.linear(x, weight, bias)), x, 1)
    torch.testing.assert_close(value, torch.tanh(nn.functional.linear(x, weight, bias)))
    assert first.shape == (points, outputs)
