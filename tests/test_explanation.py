"""explain() says what ran; fusion() decides it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taylorderiv import build_info, derivatives, explain, fusion, laplacian

pytestmark = pytest.mark.skipif(build_info()["backend"] == "reference", reason="the reference backend fuses nothing")

WIDTH, POINTS = 16, 50


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Sigmoid(), nn.Linear(WIDTH, 1))


def test_a_network_is_one_chain_and_its_operations_are_counted() -> None:
    report = explain(network(), torch.rand(POINTS, 2), ["u", "x", "xx", "t"], variables="xt")
    (chain,) = report.fused
    assert chain.what == "2 → 16 tanh → 16 sigmoid → 1, seed"
    coefficients = 4
    assert report.plan is not None
    assert report.plan.size == coefficients
    rows = coefficients * POINTS
    forward = 2 * (POINTS * 2 * WIDTH + rows * WIDTH * WIDTH + rows * WIDTH)
    assert chain.flops == forward == sum(step.flops for step in report.forward)
    (backward,) = [step for step in report.backward if step.what]
    assert backward.what.endswith("layers saved")
    assert backward.flops == 2 * forward  # no gradient of the points, but the first layer once more
    assert chain.coefficients == rows * 2 * WIDTH
    assert report.seconds > 0
    assert report.floor > 0
    text = str(report)
    assert "plan: C = 4" in text
    assert "100 % of the forward pass's matrix products are in fused chains" in text


def test_what_is_not_fused_is_listed() -> None:
    net = network()
    x = torch.rand(POINTS, 2)
    report = explain(lambda x: net(x) * torch.sin(x[:, :1]), x, 2)
    assert report.plan is None
    assert {"taylorderiv.unary", "taylorderiv.cauchy"} <= {step.op for step in report.forward}
    with fusion(enabled=False):
        report = explain(net, x, laplacian)
    assert not report.fused
    assert "nothing" not in str(report)
    assert "0 % of the forward pass's matrix products" in str(report)
    assert {"mm", "addmm"} & {step.op for step in report.forward}


def test_without_gradients_there_is_no_backward_pass() -> None:
    with torch.no_grad():
        report = explain(network(), torch.rand(POINTS, 2), 3)
    assert report.backward == ()
    assert "backward" not in str(report)
    assert "nothing is in fused chains" in str(explain(torch.sin, torch.rand(3), 2))


def test_no_grad_is_set() -> None:
    net, x = network(), torch.rand(POINTS, 2, requires_grad=True)
    explain(net, x, 1)
    assert x.grad is None
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("request_", [-1, 1.5, "xx", ["q"], []])
def test_bad_requests(request_: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        explain(network(), torch.rand(POINTS, 2), request_, variables="xt")


@pytest.mark.parametrize("save", [True, False])
def test_saving_can_be_chosen(save: bool) -> None:
    net, x = network().double(), torch.rand(POINTS, 2, dtype=torch.float64)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(derivatives(net, x, 3)[3].square().sum(), list(net.parameters())[:-1])

    expected = gradients()
    with fusion(save=save):
        (backward,) = [step for step in explain(net, x, 3).backward if step.what]
        actual = gradients()
    assert ("recomputed" in backward.what) != save
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_an_error_inside_restores_fusion() -> None:
    with pytest.raises(ZeroDivisionError), fusion(enabled=False):
        raise ZeroDivisionError
    assert explain(network(), torch.rand(POINTS, 2), 1).fused
