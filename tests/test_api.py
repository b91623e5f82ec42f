"""derivatives, jet, partials, check, register_rule: what users call, and how it composes with PyTorch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from agreement import DOUBLE, agrees, rand
from torch import nn

import taylorderiv
from taylorderiv import Jet, Layout, build_info, derivatives, jet, partials, register_rule, supported_ops
from taylorderiv.testing import check, nested_derivatives


def mlp(inputs: int = 1, outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


# derivatives


def test_derivatives_of_sin() -> None:
    x = torch.randn(10, dtype=DOUBLE)
    got = derivatives(torch.sin, x, 4)
    torch.testing.assert_close(got, (x.sin(), x.cos(), -x.sin(), -x.cos(), x.sin()), rtol=1e-15, atol=1e-15)
    assert (got[0] + got[2]).abs().max() < 1e-15


def test_order_zero_is_the_function() -> None:
    x = rand(3)
    (value,) = derivatives(torch.sin, x, 0)
    torch.testing.assert_close(value, x.sin())


def test_direction() -> None:
    x, v = rand(4, 3), rand(4, 3, seed=1)
    model = mlp(3)
    got = derivatives(model, x, 3, direction=v)
    torch.testing.assert_close(got, nested_derivatives(model, x, 3, direction=v))


def test_x_of_any_shape() -> None:
    for shape in ((), (0,), (2, 3, 4)):
        x = rand(*shape)
        assert [d.shape for d in derivatives(torch.exp, x, 2)] == [shape] * 3


def test_constant_function_has_zero_derivatives() -> None:
    constant = rand(2)
    value, first = derivatives(lambda x: constant, rand(3), 1)
    torch.testing.assert_close(value, constant)
    assert bool((first == 0).all())


def test_gradients_of_parameters_variable_and_direction() -> None:
    model = mlp(2)
    x = rand(5, 2).requires_grad_()
    v = rand(5, 2, seed=1).requires_grad_()

    def loss(derivs: Any) -> Any:
        return torch.stack([(d * d).mean() for d in derivs]).sum()

    inputs = [x, v, *model.parameters()]
    got = torch.autograd.grad(loss(derivatives(model, x, 2, direction=v)), inputs)
    expected = torch.autograd.grad(loss(nested_derivatives(model, x, 2, direction=v)), inputs)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert x.grad is None


def test_hessian_vector_product_of_a_loss() -> None:
    model = mlp()
    x = rand(6, 1)
    parameters = list(model.parameters())

    def product(derivs: Any) -> Any:
        loss = ((derivs[0] + derivs[2]) ** 2).mean()
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        products = [(g * p.detach().cos()).sum() for g, p in zip(gradients, parameters, strict=True)]
        return torch.autograd.grad(torch.stack(products).sum(), parameters)

    got, expected = product(derivatives(model, x, 2)), product(nested_derivatives(model, x, 2))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_training_learns_an_ode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    x = torch.linspace(0, 2, 32, dtype=DOUBLE)[:, None]
    origin = torch.zeros(1, 1, dtype=DOUBLE)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        u, _, u_xx = derivatives(model, x, 2)
        start, slope = derivatives(model, origin, 1)
        loss = ((u + u_xx) ** 2).mean() + (start**2).sum() + ((slope - 1) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (model(x) - x.sin()).abs().max() < 1e-2


# The transforms of PyTorch.


def residual(model: Any, x: Any) -> Any:
    u, u_x, u_xx = derivatives(model, x, 2)
    return u_xx + u * u_x


def test_torch_func_grad_vmap_vjp() -> None:
    model, x = mlp(), rand(5, 1)

    def loss(x: Any) -> Any:
        return (residual(model, x) ** 2).mean()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    value, pullback, *_ = torch.func.vjp(lambda x: residual(model, x), x)
    torch.testing.assert_close(pullback(2 * value / len(x))[0], expected)
    torch.testing.assert_close(torch.func.vmap(lambda row: residual(model, row))(x), residual(model, x))
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(lambda row: residual(model, row).sum()))(x),
        torch.func.jacrev(lambda x: residual(model, x).sum())(x),
    )


def test_torch_func_forward_mode_and_hessian() -> None:
    model, x, v = mlp(), rand(3, 1), rand(3, 1, seed=1)
    third = derivatives(model, x, 3)[3]
    tangent = torch.func.jvp(lambda x: derivatives(model, x, 2)[2], (x,), (v,))[1]
    torch.testing.assert_close(tangent, third * v)
    hessian = torch.func.hessian(lambda x: derivatives(model, x, 1)[1].sum())(x)
    torch.testing.assert_close(hessian.reshape(3, 3).diagonal(), third[:, 0])


def test_functional_call() -> None:
    model, x = mlp(), rand(4, 1)
    parameters = dict(model.named_parameters())

    def loss(parameters: Any) -> Any:
        return (residual(lambda x: torch.func.functional_call(model, parameters, (x,)), x) ** 2).mean()

    got = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad((residual(model, x) ** 2).mean(), list(model.parameters()))
    torch.testing.assert_close(tuple(got.values()), expected)


def test_compile_fullgraph_without_recompilation() -> None:
    model, x = mlp(), rand(6, 1)

    def loss(x: Any) -> Any:
        return (residual(model, x) ** 2).mean()

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        value = compiled(x)
        torch.testing.assert_close(value, loss(x))
        value.backward()
        got = [torch.clone(p.grad) for p in model.parameters() if p.grad is not None]
        optimizer.zero_grad()
        loss(x).backward()
        torch.testing.assert_close(got, [p.grad for p in model.parameters()])
        optimizer.step()
    assert counter.frame_count == 1


@pytest.mark.parametrize("transform", [torch.func.grad, lambda f: torch.func.vmap(f)])
def test_compile_of_a_transform(transform: Any) -> None:
    model, x = mlp(), rand(3, 1)

    def f(x: Any) -> Any:
        return (residual(model, x) ** 2).mean()

    torch._dynamo.reset()
    compiled = torch.compile(transform(f), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), transform(f)(x))


def test_autocast_and_half_precision() -> None:
    model = mlp().float()
    x = rand(8, 1).float()
    expected = derivatives(model, x, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = derivatives(model, x, 2)
    assert got[2].dtype == torch.bfloat16
    torch.testing.assert_close(tuple(d.float() for d in got), expected, rtol=0.1, atol=0.1)
    half = derivatives(mlp().bfloat16(), x.bfloat16(), 2)
    assert all(d.dtype == torch.bfloat16 for d in half)


def test_checkpoint_and_inference_mode() -> None:
    from torch.utils.checkpoint import checkpoint

    model, x = mlp(), rand(4, 1)
    expected = derivatives(model, x, 2)[2]
    got = checkpoint(lambda x: derivatives(model, x, 2)[2], x, use_reentrant=False)
    torch.testing.assert_close(got, expected)
    gradients = torch.autograd.grad(got.sum(), list(model.parameters()), allow_unused=True)
    assert gradients[0].abs().sum() > 0
    with torch.inference_mode():
        torch.testing.assert_close(derivatives(model, x, 2)[2], expected.detach())
    with torch.no_grad():
        assert not derivatives(model, x, 2)[2].requires_grad


def test_forward_hooks_see_jets() -> None:
    model = mlp()
    seen = []
    next(model.children()).register_forward_hook(lambda module, args, output: seen.append(output))
    derivatives(model, rand(4, 1), 2)
    assert isinstance(seen[0], Jet)


# jet


def test_jet_is_that_of_jax() -> None:
    # The example of jax.experimental.jet: h(z) = z³ at z = 0.5, f = sin.
    x, h1, h2 = torch.tensor(0.5**3, dtype=DOUBLE), 3 * 0.5**2, 6 * 0.5
    h1, h2 = (torch.tensor(h, dtype=DOUBLE) for h in (h1, h2))
    value, (first, second) = jet(torch.sin, (x,), ((h1, h2),))
    torch.testing.assert_close(value, x.sin())
    torch.testing.assert_close(first, x.cos() * h1)
    torch.testing.assert_close(second, x.cos() * h2 - x.sin() * h1**2)


def test_jet_of_several_arguments_and_a_pytree() -> None:
    x, y = rand(3), rand(3, seed=1)
    dx, dy = [rand(3, seed=2), rand(3, seed=3)], [rand(3, seed=4), rand(3, seed=5)]

    def f(x: Any, y: Any) -> Any:
        return {"product": x * y, "rest": [torch.exp(x), torch.ones(2, dtype=DOUBLE)]}

    values, series = jet(f, (x, y), (dx, dy))
    torch.testing.assert_close(values["product"], x * y)
    torch.testing.assert_close(series["product"][1], dx[1] * y + 2 * dx[0] * dy[0] + x * dy[1])
    torch.testing.assert_close(series["rest"][0][1], x.exp() * (dx[1] + dx[0] ** 2))
    assert [t.tolist() for t in series["rest"][1]] == [[0, 0], [0, 0]]


def test_jet_with_taylor_coefficients() -> None:
    x, c1, c2 = rand(3), rand(3, seed=1), rand(3, seed=2)
    scaled = jet(torch.exp, (x,), ([c1, 2 * c2],))
    value, terms = jet(torch.exp, (x,), ([c1, c2],), factorial_scaled=False)
    torch.testing.assert_close(value, scaled[0])
    torch.testing.assert_close(terms, [scaled[1][0], scaled[1][1] / 2])


# partials


def kdv(xt: Any) -> Any:
    x, t = xt[..., 0:1], xt[..., 1:2]
    return torch.exp(0.5 * x) * torch.sin(x * t) + t**3 * x**2


def by_autograd(f: Any, x: torch.Tensor, *columns: int) -> torch.Tensor:
    x = x.clone().requires_grad_()
    y = f(x)
    for column in columns:
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        y = gradient[..., column : column + 1]
    return y.detach()


def test_partials_of_points() -> None:
    x = rand(6, 2)
    p = partials(kdv, x, ["x", "t", "xxx", "xt", "xxt", "tt", "xxtt"], variables="xt")
    torch.testing.assert_close(p.u, kdv(x))
    torch.testing.assert_close(p.x, by_autograd(kdv, x, 0))
    torch.testing.assert_close(p.t, by_autograd(kdv, x, 1))
    torch.testing.assert_close(p["xxx"], by_autograd(kdv, x, 0, 0, 0))
    torch.testing.assert_close(p.xt, by_autograd(kdv, x, 0, 1))
    torch.testing.assert_close(p.tx, p.xt)
    torch.testing.assert_close(p["xxt"], by_autograd(kdv, x, 0, 0, 1))
    torch.testing.assert_close(p.tt, by_autograd(kdv, x, 1, 1))
    torch.testing.assert_close(p[2, 2], by_autograd(kdv, x, 0, 0, 1, 1))
    with pytest.raises(KeyError, match="xxxx"):
        _ = p["xxxx"]
    with pytest.raises(AttributeError, match="wasn't asked for"):
        _ = p.ttt


def test_partials_of_a_network_in_one_pass() -> None:
    model, x = mlp(3, 2), rand(5, 3)
    calls = []

    def f(x: Any) -> Any:
        calls.append(x.coefficient_layout)
        return model(x)

    p = partials(f, x, ["x", "yy", "zzz", ("x", "y")], variables=("x", "y", "z"))
    assert len(calls) == 1
    for name, columns in {"x": (0,), "yy": (1, 1), "zzz": (2, 2, 2), "xy": (0, 1)}.items():
        for output in range(2):
            expected = by_autograd(lambda x, o=output: model(x)[..., o : o + 1], x, *columns)
            torch.testing.assert_close(p[name][:, output : output + 1], expected)


def test_unmixed_partials_share_the_primal() -> None:
    layouts = []
    partials(
        lambda x: layouts.append(x.coefficient_layout) or x.sum(-1), rand(5, 2), ["xxxx", "t", "xx"], variables="xt"
    )
    assert layouts == [Layout((4, 1))]


def test_partials_of_named_tensors() -> None:
    x, t = rand(6, 1), rand(6, 1, seed=1)
    p = partials(lambda v: kdv(torch.cat([v["x"], v["time"]], 1)), {"x": x, "time": t}, ["xx", ("x", "time"), "time"])
    points = torch.cat([x, t], 1)
    torch.testing.assert_close(p["xx"], by_autograd(kdv, points, 0, 0))
    torch.testing.assert_close(p[("x", "time")], by_autograd(kdv, points, 0, 1))
    torch.testing.assert_close(p.time, by_autograd(kdv, points, 1))


def test_partials_with_multi_indices() -> None:
    x = rand(4, 2)
    p = partials(kdv, x, [(2, 1)])
    torch.testing.assert_close(p[2, 1], by_autograd(kdv, x, 0, 0, 1))
    assert "Partials" in repr(p)


def test_partials_of_a_constant() -> None:
    p = partials(lambda x: torch.ones(4, dtype=DOUBLE), rand(4, 2), ["x"], variables="xt")
    assert bool((p.x == 0).all())


def test_partials_train() -> None:
    model, x = mlp(2), rand(5, 2)
    p = partials(model, x, ["t", "xx"], variables="xt")
    gradients = torch.autograd.grad(((p.t - p.xx) ** 2).mean(), list(model.parameters()), allow_unused=True)
    expected = p.t.detach() - p.xx.detach()
    assert expected.shape == (5, 1)
    assert all(g is not None and g.abs().sum() > 0 for g in gradients[:-1])


# check


def test_check_passes_and_fails() -> None:
    check(mlp(), rand(4, 1), 3)
    check(torch.sin, rand(4).float(), 2)
    wrong = lambda x: x * torch.sin(x.detach()) if isinstance(x, Jet) else x * torch.sin(x)  # noqa: E731
    with pytest.raises(AssertionError, match=r"derivative 1 +\(\d,\)"):
        check(wrong, rand(4), 2)


def test_check_sees_wrong_gradients_of_parameters() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(2.0, dtype=DOUBLE))

        def forward(self, x: Any) -> Any:
            return torch.sin((self.w.detach() if isinstance(x, Jet) else self.w) * x)

    with pytest.raises(AssertionError, match="gradient of parameter 0"):
        check(Wrong(), rand(3), 1)


def test_check_with_an_equivalent() -> None:
    check(F.hardsigmoid, rand(3), 2, equivalent=lambda x: x / 6 + 0.5)
    with pytest.raises(AssertionError):
        check(torch.sin, rand(3), 1, equivalent=torch.cos)


# register_rule and the registry


def test_register_a_rule_for_a_custom_op() -> None:
    @torch.library.custom_op("taylorderiv_test::cube", mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x**3

    with pytest.raises(NotImplementedError, match=r"taylorderiv_test::cube.*register_rule"):
        derivatives(cube, rand(3), 2)
    register_rule(cube, lambda x: x**3)
    agreement = derivatives(cube, rand(3), 3)
    torch.testing.assert_close(agreement, derivatives(lambda x: x**3, rand(3), 3))
    assert "taylorderiv_test::cube" in supported_ops()


def test_register_a_rule_as_decorator_and_by_slope() -> None:
    @torch.library.custom_op("taylorderiv_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @register_rule(twice)
    def rule(x: Jet) -> Jet:
        return x.with_coefficients(2 * x.coefficients)

    assert derivatives(twice, rand(3), 1)[1].eq(2).all()

    register_rule(torch.special.entr, slope=lambda x, y: -torch.log(x) - 1)
    agrees(torch.special.entr, rand(4, low=0.2))
    with pytest.raises(ValueError, match="not both"):
        register_rule(twice, rule, slope=lambda x, y: 2.0)


def test_a_rule_serves_all_spellings_of_an_op() -> None:
    x = rand(3)
    for f in (torch.sin, lambda x: x.sin(), torch.ops.aten.sin, torch.ops.aten.sin.default):
        torch.testing.assert_close(derivatives(f, x, 1)[1], x.cos())


def test_supported_ops_and_build_info() -> None:
    ops = supported_ops()
    assert {"sin", "matmul", "einsum", "nn.functional.layer_norm", "softmax"} <= set(ops)
    assert ops == sorted(ops)
    assert "numpy" not in ops
    info = build_info()
    assert info["backend"] in ("kernels", "reference")
    assert {"unary_kernels", "instruction_sets", "cuda", "torch"} <= set(info)


def test_public_names() -> None:
    for name in taylorderiv.__all__:
        assert getattr(taylorderiv, name) is not None
    for function in (derivatives, jet, partials, register_rule, supported_ops, build_info, check):
        assert function.__doc__


def test_factorials_beyond_integers() -> None:
    x = torch.zeros(1, dtype=DOUBLE)
    assert derivatives(torch.exp, x, 25)[25].item() == pytest.approx(1.0, rel=1e-13)
    assert derivatives(lambda x: x**22, x, 22)[22].item() == pytest.approx(math.factorial(22))
