"""A PINN's loss through what PyTorch does with a loss: export, scaled gradients, loaders, copies, other optimizers.

torch.func, torch.compile, autocast, checkpointing and inference mode are in test_api.py.
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from taylorderiv import derivatives, partials


class Heat(nn.Module):
    """The residual u_t - u_xx of a network, as a module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        p = partials(self.net, x, ["t", "xx"], variables="xt")
        return p.t - p.xx


def points(count: int = 12) -> Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(1))


def test_export() -> None:
    """The exported program is PyTorch's ops alone, and runs for other numbers of points."""
    model, x = Heat().eval(), points()
    count = torch.export.Dim("count", min=2, max=1000)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: count},))
    for n in (12, 30):
        torch.testing.assert_close(program.module()(points(n)), model(points(n)))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), model(x))


def test_grad_scaler() -> None:
    model, x = Heat(), points()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    expected = torch.autograd.grad(model(x).square().mean(), list(model.parameters()), allow_unused=True)
    scaler.scale(model(x).square().mean()).backward()
    scaler.unscale_(optimizer)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient)
    before = model.net[0].weight.clone()  # pyright: ignore
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(before, model.net[0].weight)  # pyright: ignore


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_model_that_was_used(copied: Any) -> None:
    model, x = Heat(), points()
    expected = model(x)
    other = copied(model)
    torch.testing.assert_close(other(x), expected)
    with torch.no_grad():
        other.net[0].weight.mul_(2)
    assert not torch.allclose(other(x), expected)
    torch.testing.assert_close(model(x), expected)


class Residuals(Dataset[Tensor]):
    """Derivatives that are computed by the loader's workers."""

    def __init__(self, model: Heat):
        self.model = model

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.model(points(4 + index)).sum()


def test_data_loaders() -> None:
    model = Heat()
    for (x,) in DataLoader(TensorDataset(points()), batch_size=5, shuffle=True):
        model(x).square().mean().backward()
    assert model.net[0].weight.grad is not None  # pyright: ignore
    torch.set_num_threads(1)  # workers are forked: the parent's threads don't exist in them
    model(points())
    got = torch.cat(list(DataLoader(Residuals(model), num_workers=2)))
    torch.testing.assert_close(got, torch.stack([model(points(4 + i)).sum() for i in range(3)]).detach())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    model, x = Heat(), points()
    gradients = []
    for _ in range(2):
        model.zero_grad(set_to_none=set_to_none)
        model(x).square().mean().backward()
        gradients.append([torch.clone(p.grad) for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_gradients_accumulate_over_batches() -> None:
    model, x = Heat(), points()
    model(x).square().sum().backward()
    whole = [torch.clone(p.grad) for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for part in x.split(5):
        model(part).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters() if p.grad is not None], whole)


def test_newton_step_by_double_backward() -> None:
    """Hessian-vector products of a loss, as natural-gradient and Newton methods need them."""
    model = Heat().double()
    x = points().double()
    parameters = [p for p in model.parameters() if p.ndim > 1]
    loss = model(x).square().mean()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    vectors = [torch.randn_like(p) for p in parameters]
    products = torch.autograd.grad(gradients, parameters, vectors)
    step = 1e-5
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, v in zip(parameters, vectors, strict=True):
                p.add_(v, alpha=sign * step)
        sides.append(torch.autograd.grad(model(x).square().mean(), parameters))
        with torch.no_grad():
            for p, v in zip(parameters, vectors, strict=True):
                p.sub_(v, alpha=sign * step)
    for product, above, below in zip(products, *sides, strict=True):
        torch.testing.assert_close(product, (above - below) / (2 * step), rtol=1e-6, atol=1e-8)


def test_a_closure_of_lbfgs_and_a_hook_see_the_same_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    calls = []
    model.register_forward_hook(lambda module, args, output: calls.append(type(output).__name__))
    x = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        f, df = derivatives(model, x, 1)
        loss = (df + f).square().mean() + (f[0] - 1).square().mean()  # e^-x
        loss.backward()
        return loss

    before = closure().item()
    optimizer.step(closure)  # pyright: ignore
    assert closure().item() < 1e-3 * before
    assert set(calls) == {"Jet"}
