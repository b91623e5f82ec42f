"""The fused chain: the same numbers as layer by layer, wherever it is cut, and never a stale one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agreement import OTHER_INSTRUCTION_SETS, passes_with, unfused
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
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


def test_wide_networks_save_and_narrow_ones_recompute_most():
    narrow, wide = torch.empty(16, 16), torch.empty(512, 512)  # on every instruction set
    assert 0 < kernels.saved_bytes([narrow, narrow], 1000) < 2**26
    assert kernels.saved_bytes([wide, wide], 1000) > 2**26
    with fusion(save=True):
        assert kernels.saved_bytes([narrow, narrow], 1000) == -1
    with fusion(save=False):
        assert kernels.saved_bytes([wide, wide], 1000) == 0


def test_on_a_gpu_all_layers_are_saved_or_none():
    with FakeTensorMode():
        layers = [torch.empty(64, 64, device="cuda")] * 4
    most = 2**30 // (4 * 64 * 4)
    assert [kernels.saved_bytes(layers, rows) for rows in (1000, most, most + 1)] == [-1, -1, 0]
    with fusion(save=True):
        assert kernels.saved_bytes(layers, most + 1) == -1


@pytest.mark.parametrize(("width", "some_bytes"), [(16, 200_000), (900, 9_000_000)])
def test_layers_saved_of_some_points_only_give_the_same_gradients(width: int, some_bytes: int) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(width, 2), torch.randn(width, width) / width**0.5, torch.randn(3, width)]
    biases, x, higher = [torch.randn(len(weight)) for weight in weights], torch.randn(1, 1000, 2), torch.randn(3, 2)
    constants = (weights, biases, ["tanh", "sin", "tanh"], [], [3], [])
    results, sizes = [], []
    for save in (0, -1, some_bytes):
        y, saved = torch.ops.taylorderiv.chain(x, higher, *constants, save, False)
        gradients = torch.ops.taylorderiv.chain_backward(y, x, higher, saved, *constants, True, False)
        results.append([y, *gradients])
        sizes.append(4 * sum(block.numel() for block in saved))
    assert sizes[0] == 0 < sizes[2] <= some_bytes < sizes[1]
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert torch.equal(a, b)


def test_layers_saved_in_two_blocks_give_the_same_gradients():
    torch.manual_seed(0)
    weights = [torch.randn(64, 1), torch.randn(64, 64) / 8, torch.randn(64, 64) / 8, torch.randn(1, 64)]
    biases, x, higher = [torch.randn(len(weight)) for weight in weights], torch.randn(1, 20_000, 1), torch.rand(4, 1)
    constants = (weights, biases, ["tanh", "tanh", "tanh", ""], [], [4], [])
    results = []
    for save in (0, 50_000_000):
        y, saved = torch.ops.taylorderiv.chain(x, higher, *constants, save, False)
        results.append(torch.ops.taylorderiv.chain_backward(y, x, higher, saved, *constants, True, False))
    first, second = (4 * block.numel() for block in saved)
    assert first > second > 0
    assert 45_000_000 < first + second <= 50_000_000
    with pytest.raises(RuntimeError, match="isn't what this chain saved"):
        torch.ops.taylorderiv.chain_backward(y, x, higher, saved[::-1], *constants, True, False)
    for a, b in zip(*results, strict=True):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outputs", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [16, 20, 64, 80])
def test_layers_with_few_outputs(width: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [
        nn.Linear(2, width),
        nn.Tanh(),
        nn.Linear(width, outputs, bias=width != 64),
        nn.Sigmoid(),
        nn.Linear(outputs, width),
    ]
    model = nn.Sequential(*layers, nn.Tanh(), nn.Linear(width, outputs)).to(dtype)
    x, directions = torch.rand(53, 2, dtype=dtype), torch.eye(2, dtype=dtype)[:, None].requires_grad_()

    def results() -> list[torch.Tensor]:
        jet: Any = Jet.variable(x, (3, 1), directions)
        c = model(jet).coefficients
        return [c, *torch.autograd.grad(c.square().sum(), [directions, *model.parameters()])]

    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for fused, expected in zip(results(), unfused(results), strict=True):
        error = (fused - expected).norm() / expected.norm()
        assert error < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("width", "points"), [(257, 90), (700, 30), (1024, 200)])
def test_wide_layers(width: int, points: int, dtype: torch.dtype, flushes: list[int]) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width - 8), nn.Sigmoid(), nn.Linear(width - 8, 2)]
    model, x = nn.Sequential(*layers).to(dtype), torch.rand(points, 3, dtype=dtype, requires_grad=True)

    def results() -> list[torch.Tensor]:
        d = partials(model, x, ["x", "yy", "zzz"], variables="xyz")
        residual = d.x + d.yy * d.u + d.zzz
        return [residual, *torch.autograd.grad(residual.square().sum(), [x, *model.parameters()])]

    first = results()
    assert flushes == [3]
    for a, b in zip(first, results(), strict=True):
        assert torch.equal(a, b)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for fused, expected in zip(first, unfused(results), strict=True):
        assert (fused - expected).norm() / expected.norm() < tolerance


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


@pytest.mark.parametrize("save", [True, False])
def test_gradient_and_double_backward_of_collapsed_directions_and_a_slope(save):
    x, v, weight, bias, last = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 2), (2, 1, 2), (3, 2), (3,), (1, 3))
    )
    slope = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def function(x, v, weight, bias, last, slope):
        with fusion(save=save):
            y: Any = Jet.variable(x, (2, 2), v, (1.0, -0.5))
            return F.linear(F.softplus(slope * F.linear(y, weight, bias)), last).coefficients

    assert torch.autograd.gradcheck(function, (x, v, weight, bias, last, slope))
    assert torch.autograd.gradgradcheck(function, (x, v, weight, bias, last, slope))


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


@pytest.mark.parametrize("instruction_set", OTHER_INSTRUCTION_SETS)
def test_other_instruction_sets_pass(instruction_set: str) -> None:
    passes_with(instruction_set, __file__, "not other_instruction_sets")
