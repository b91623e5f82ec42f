"""A PINN's loss through what PyTorch does with a loss: torch.func, compiled steps, export, threads, optimizers.

torch.func and torch.compile of derivatives themselves, checkpointing and inference mode are in test_api.py; CUDA graphs
in test_cuda.py.
"""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, TensorDataset

from taylorderiv import derivatives, evaluation, partials, registry


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


Parameters = dict[str, Tensor]


def functional(model: nn.Module, x: Tensor) -> tuple[Callable[[Parameters], Tensor], Parameters]:
    """The loss of a model's residuals as a function of its parameters, and these."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return lambda p: torch.func.functional_call(model, p, (x,)).square().mean(), parameters


def flat(tree: Any) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in pytree.tree_leaves(tree)])


def test_hessian_of_a_loss_by_torch_func() -> None:
    """Forward over reverse, over parameters: what Newton's method on a small network takes."""
    torch.manual_seed(0)
    model = Heat().double()
    model.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()
    loss, parameters = functional(model, points(5).double())
    hessian = torch.func.hessian(loss)(parameters)
    rows = [
        torch.cat([hessian[i][j].flatten(p.ndim).flatten(0, p.ndim - 1) for j in parameters], 1)
        for i, p in parameters.items()
    ]
    vectors = {name: torch.randn_like(p) for name, p in parameters.items()}
    leaves = [p.requires_grad_() for p in parameters.values()]
    gradients = torch.autograd.grad(loss(parameters), leaves, create_graph=True)
    product = torch.autograd.grad(gradients, leaves, list(vectors.values()))
    torch.testing.assert_close(torch.cat(rows) @ flat(vectors), flat(product))
    torch.testing.assert_close(torch.cat(rows), torch.cat(rows).T)


def test_jacobians_of_residuals_over_parameters() -> None:
    """Gauss–Newton and natural gradients: J v by forward mode, Jᵀ w by reverse mode, and J itself."""
    model, x = Heat().double(), points(4).double()
    _, parameters = functional(model, x)

    def residuals(p: Parameters) -> Tensor:
        return torch.func.functional_call(model, p, (x,))[:, 0]

    vectors = {name: torch.randn_like(p) for name, p in parameters.items()}
    weights = torch.randn(4, dtype=torch.float64)
    jacobian = torch.func.jacrev(residuals)(parameters)
    matrix = torch.cat([jacobian[name].flatten(1) for name in parameters], 1)
    torch.testing.assert_close(torch.func.jvp(residuals, (parameters,), (vectors,))[1], matrix @ flat(vectors))
    torch.testing.assert_close(flat(torch.func.vjp(residuals, parameters)[1](weights)[0]), weights @ matrix)


def test_an_ensemble_of_networks_by_vmap() -> None:
    x = points()
    models = []
    for seed in range(3):
        models.append(Heat())
        torch.manual_seed(seed)
        for p in models[-1].parameters():
            nn.init.normal_(p)
    parameters, buffers = torch.func.stack_module_state(models)

    def loss(p: Any, b: Any) -> Tensor:
        return torch.func.functional_call(models[0], (p, b), (x,)).square().mean()

    losses = torch.func.vmap(loss)(parameters, buffers)
    torch.testing.assert_close(losses, torch.stack([model(x).square().mean() for model in models]))
    gradients = torch.func.vmap(torch.func.grad(loss))(parameters, buffers)
    for i, model in enumerate(models):
        expected = torch.autograd.grad(model(x).square().mean(), list(model.parameters()), materialize_grads=True)
        for name, gradient in zip(dict(model.named_parameters()), expected, strict=True):
            torch.testing.assert_close(gradients[name][i], gradient, rtol=1e-4, atol=1e-4)


def test_a_mixed_derivative_by_nesting_in_a_loss() -> None:
    model, x = Heat().net.double(), points().double()
    e, s = (torch.eye(2, dtype=torch.float64)[i].expand_as(x) for i in (0, 1))

    def gradients(mixed: Tensor) -> Any:
        return torch.autograd.grad(mixed.square().mean(), list(model.parameters()), materialize_grads=True)

    nested = derivatives(lambda x: derivatives(model, x, 2, direction=e)[2], x, 1, direction=s)[1]
    torch.testing.assert_close(gradients(nested), gradients(partials(model, x, ["xxt"], variables="xt").xxt))


@pytest.mark.parametrize("partial", ["loss", "step"])
def test_compiled_training(partial: str) -> None:
    """The loss and its backward pass, or a whole step as one graph, which isn't compiled again in later steps."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model, x = Heat(), points()
    loss, parameters = functional(model, x)

    def step(p: Parameters) -> tuple[Parameters, Tensor]:
        gradients, value = torch.func.grad_and_value(loss)(p)
        return {name: p[name] - 0.1 * gradients[name] for name in p}, value

    plain, expected = dict(parameters), []
    for _ in range(4):
        plain, value = step(plain)
        expected.append(value)
    if partial == "step":
        compiled = torch.compile(step, fullgraph=True, backend=counter)
        for value in expected:
            parameters, got = compiled(parameters)
            torch.testing.assert_close(got, value)
    else:
        compiled = torch.compile(lambda x: model(x).square().mean(), fullgraph=True, backend=counter)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for value in expected:
            optimizer.zero_grad(set_to_none=True)
            got = compiled(x)
            torch.testing.assert_close(got, value)
            got.backward()
            optimizer.step()
    assert counter.frame_count == 1


def test_compiling_before_anything_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what runs later, with other ops, doesn't compile it again."""
    monkeypatch.setattr(registry, "_FOUND", {})
    vars(evaluation.plans).clear()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model, x = Heat(), points()
    compiled = torch.compile(lambda x: model(x).square().mean(), fullgraph=True, backend=counter)
    value = compiled(x)
    torch.testing.assert_close(value, model(x).square().mean())
    derivatives(lambda x: torch.atan(x).erf().cumsum(0), x, 2)
    torch.testing.assert_close(compiled(x), value)
    assert counter.frame_count == 1


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_in_mixed_precision(dtype: torch.dtype) -> None:
    model, x = Heat(), points()
    parameters = [p for name, p in model.named_parameters() if name != "net.4.bias"]  # which the residual loses
    expected = flat(torch.autograd.grad(model(x).square().mean(), parameters))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with torch.autocast("cpu", dtype=dtype):
        residuals = model(x)
    assert residuals.dtype == dtype
    scaler.scale(residuals.float().square().mean()).backward()
    scaler.unscale_(optimizer)
    got = flat([p.grad for p in parameters])
    assert not torch.equal(got, expected)
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
    before = flat(parameters).clone()
    scaler.step(optimizer)
    torch.testing.assert_close(flat(parameters), before - 0.1 * got)


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


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX's, if another test has imported it
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


def test_losses_of_several_threads() -> None:
    """Each thread has its own points; they share the network, and each has its own level of nesting."""
    model = Heat()
    batches = [torch.rand(200, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]

    def gradient(x: Tensor) -> Tensor:
        loss = model(x).square().mean() + derivatives(lambda x: model(x), x, 1)[1].square().mean()
        return flat(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))

    expected = [gradient(x) for x in batches]
    results: list[tuple[int, Tensor]] = []

    def work(i: int) -> None:
        results.extend((i, gradient(batches[i])) for _ in range(10))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    for i, got in results:
        torch.testing.assert_close(got, expected[i])


def test_a_differentiation_that_ends_in_another_thread_leaves_levels_alone() -> None:
    """Ours begins while the other one runs, and goes on with an inner one when the other has ended."""
    x = torch.rand(3, dtype=torch.float64)
    began, ours_began, ended = (threading.Event() for _ in range(3))

    def other() -> None:
        def f(x: Any) -> Any:
            began.set()
            assert ours_began.wait(60)
            return x

        derivatives(f, x, 1)
        ended.set()

    def f(x: Any) -> Any:
        ours_began.set()
        assert ended.wait(60)
        return x * derivatives(lambda y: x * y, torch.ones(3, dtype=torch.float64), 1)[1]

    thread = threading.Thread(target=other)
    thread.start()
    assert began.wait(60)
    got = derivatives(f, x, 2)
    thread.join()
    torch.testing.assert_close(got, (x**2, 2 * x, torch.full_like(x, 2)))


def test_hooks_may_replace_arguments_and_results() -> None:
    model, x = Heat(), points()
    expected = model(x)
    handles = [
        model.net.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
        model.net.register_forward_hook(lambda module, args, output: 3 * output),  # pyright: ignore
    ]
    got = model(x)
    for handle in handles:
        handle.remove()
    p = partials(lambda x: 3 * model.net(2 * x), x, ["t", "xx"], variables="xt")
    torch.testing.assert_close(got, p.t - p.xx)
    torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(got, expected)


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
