"""The networks that PINNs are made of, to third order against nested autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taylorderiv import build_info, derivatives, explain, partials, testing

WIDTH = 6


class Fourier(nn.Module):
    """sin and cos of fixed random frequencies, then a network (Tancik et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, WIDTH))
        self.net = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * x @ self.frequencies  # pyright: ignore
        return self.net(torch.cat([phase.sin(), phase.cos()], -1))


class ModifiedMLP(nn.Module):
    """Layers that mix two encodings of the input (Wang, Teng, Perdikaris 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v, self.first = (nn.Linear(2, WIDTH) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v, h = torch.tanh(self.u(x)), torch.tanh(self.v(x)), torch.tanh(self.first(x))
        for layer in self.layers:
            z = torch.tanh(layer(h))
            h = (1 - z) * u + z * v
        return self.last(h)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = torch.tanh(h + block(h))
        return self.last(h)


class PirateNet(ModifiedMLP):
    """Blocks with gates and a trainable share of their skip connection (Wang et al. 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.tensor([0.3, 0.6]))

    def forward(self, x: Tensor) -> Tensor:
        u, v, h = torch.tanh(self.u(x)), torch.tanh(self.v(x)), self.first(x)
        for layer, share in zip(self.layers, self.shares, strict=True):
            f = torch.tanh(layer(h))
            g = torch.tanh(layer(f * u + (1 - f) * v))
            h = share * g + (1 - share) * h
        return self.last(h)


class AdaptiveSlopes(nn.Module):
    """tanh(n a x) with a trainable slope for each layer or neuron (Jagtap et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.slope, self.slopes = nn.Parameter(torch.tensor(0.2)), nn.Parameter(0.1 + 0.1 * torch.rand(WIDTH))
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(5 * self.slope * self.layers[0](x))
        return self.last(torch.tanh(5 * self.slopes * self.layers[1](h)))


class Separable(nn.Module):
    """A sum of products of networks of one coordinate each (SPINN, Cho et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = (net(x[:, i : i + 1]) for i, net in enumerate(self.nets))
        return torch.einsum("nr,nr->n", a, b)[:, None]


class Splines(nn.Module):
    """A layer of cubic B-splines on each edge, as in Kolmogorov–Arnold networks (Liu et al. 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2.5, 2.5, 14))
        self.coefficients = nn.Parameter(torch.randn(2, 3, 10) / 3)
        self.last = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        grid: Any = self.grid
        x = torch.tanh(x)[..., None]
        basis = ((x >= grid[:-1]) & (x < grid[1:])).to(grid.dtype)
        for k in range(1, 4):
            left = (x - grid[: -k - 1]) / (grid[k:-1] - grid[: -k - 1])
            right = (grid[k + 1 :] - x) / (grid[k + 1 :] - grid[1:-k])
            basis = left * basis[..., :-1] + right * basis[..., 1:]
        return self.last(torch.einsum("nib,ijb->nj", basis, self.coefficients) + F.silu(x[..., 0]).sum(-1, True))


class HardBoundary(nn.Module):
    """A distance to the boundary times a network, plus the boundary's values."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        distance = x[:, :1] * (1 - x[:, :1]) * x[:, 1:]
        return torch.sin(math.pi * x[:, :1]) + distance * self.net(x)


class FourierLayer(nn.Module):
    """A layer of a Fourier neural operator on samples of a function (Li et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.local, self.last = nn.Linear(2, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.modes = nn.Parameter(torch.randn(3, WIDTH, WIDTH, dtype=torch.complex128) / WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        spectrum = torch.fft.rfft(h, dim=0)[:3]
        mixed = torch.einsum("mi,mij->mj", spectrum, self.modes)
        return self.last(F.gelu(torch.fft.irfft(mixed, n=h.shape[0], dim=0) + self.local(h)))


class Grid(nn.Module):
    """Features gathered from a trainable table at a cell's corners, blended smoothly, as in hash grids (2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 5, 3))
        self.net = nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        scaled = 4 * torch.sigmoid(x)
        corner = scaled.floor().long()
        t = scaled - corner
        t = t**3 * (10 - 15 * t + 6 * t**2)
        (i, j), (s, u) = corner.unbind(-1), t[..., None].unbind(-2)
        low = (1 - s) * self.features(i, j) + s * self.features(i + 1, j)
        high = (1 - s) * self.features(i, j + 1) + s * self.features(i + 1, j + 1)
        return self.net((1 - u) * low + u * high)

    def features(self, i: Tensor, j: Tensor) -> Tensor:
        return self.table[i, j]


class Hash(Grid):
    """The same with a smaller table: corners share rows by a hash of their numbers (Müller et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 3))

    def features(self, i: Tensor, j: Tensor) -> Tensor:
        return self.table[(i ^ (j * 2_654_435_761)) % len(self.table)]


class Swish(nn.Module):
    """Activations with a trainable shape: x sigmoid(b x), and a trainable mixture (Jagtap et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.steepness, self.shares = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = self.second(h * torch.sigmoid(self.steepness * h))
        a, b, c = self.shares.softmax(0)
        return self.last(a * torch.tanh(h) + b * torch.sin(h) + c * F.gelu(h))


class Factorized(nn.Module):
    """Weights as products of a scale per neuron and a matrix (random weight factorization, Wang et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList(torch.randn(n).exp() for n in (WIDTH, 1))
        self.weights = nn.ParameterList([torch.randn(WIDTH, 2), torch.randn(1, WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x, self.scales[0][:, None] * self.weights[0]))
        return F.linear(h, self.scales[1][:, None] * self.weights[1])


NETWORKS: tuple[Callable[[], nn.Module], ...] = (
    Fourier,
    ModifiedMLP,
    Residual,
    PirateNet,
    AdaptiveSlopes,
    Separable,
    Splines,
    HardBoundary,
    FourierLayer,
    Grid,
    Hash,
    Swish,
    Factorized,
)


def made(network: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return network().double(), torch.randn(7, 2, dtype=torch.float64)


@pytest.mark.parametrize("network", NETWORKS)
def test_agrees_with_nested_autograd(network: Callable[[], nn.Module]) -> None:
    model, x = made(network)
    testing.check(model, x, 3, direction=torch.randn_like(x))


def test_separable_network_on_a_grid() -> None:
    """Each coordinate's network sees its own points alone; the values are those of all combinations."""
    model, _ = made(Separable)
    x, y = (torch.rand(n, 1, dtype=torch.float64) for n in (4, 5))

    def on_grid(x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("ir,jr->ij", model.nets[0](x), model.nets[1](y))  # pyright: ignore

    corners = torch.stack(torch.broadcast_tensors(x, y.T), -1).reshape(-1, 2)
    p = partials(model, corners, ["xx", "yy"], variables="xy")
    torch.testing.assert_close(derivatives(lambda x: on_grid(x, y), x, 2)[2], p.xx.reshape(4, 5))
    torch.testing.assert_close(derivatives(lambda y: on_grid(x, y), y, 2)[2], p.yy.reshape(4, 5))


@pytest.mark.skipif(build_info()["backend"] == "reference", reason="the reference backend fuses nothing")
@pytest.mark.parametrize(
    "network", [Fourier, ModifiedMLP, Residual, PirateNet, Separable, HardBoundary, Grid, Hash, Factorized]
)
def test_layers_stay_fused(network: Callable[[], nn.Module]) -> None:
    """Every product with a trainable weight is in a chain."""
    model, x = made(network)
    report = explain(model, x, 2)
    fused, total = (sum(step.flops for step in steps) for steps in (report.fused, report.forward))
    assert fused >= 0.7 * total
    if network is not Fourier:  # whose frequencies are a product outside of a layer
        assert fused == total - sum(step.flops for step in report.forward if step.op == "bmm")
