"""The jet as a value: construction, the tensor protocol, in-place ops, nesting."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from agreement import DOUBLE, rand
from torch import nn

from taylorderiv import Jet, Layout, derivatives
from taylorderiv.jet import nested_level
from taylorderiv.testing import nested_derivatives


def test_layout_places_the_directions_one_after_another() -> None:
    layout = Layout((4, 1))
    assert layout.size == 6
    assert layout.order == 4
    assert [layout.index(k) for k in range(5)] == [0, 1, 2, 3, 4]
    assert layout.index(1, 1) == 5
    with pytest.raises(ValueError, match="no coefficient 2 in direction 1"):
        layout.index(2, 1)
    with pytest.raises(ValueError, match="no direction 2"):
        layout.index(1, 2)


def test_collapsed_layout_stores_one_top_coefficient() -> None:
    layout = Layout((4, 2, 4), (0.5, 0.0, 2.0))
    assert layout.size == 1 + 3 + 2 + 3 + 1
    assert layout.collapsed_order == 4
    assert layout.index(2, 1) == 5
    with pytest.raises(ValueError, match="collapsed"):
        layout.index(4, 0)


@pytest.mark.parametrize(
    ("orders", "weights", "message"),
    [
        ((0,), None, "at least 1"),
        ((2, 3), (1.0, 1.0), "share one order"),
        ((2,), (1.0, 1.0), "2 weights for 1 directions"),
        ((2,), (0.0,), "isn't 0"),
    ],
)
def test_layout_refuses(orders: tuple[int, ...], weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(orders, weights)


def test_variable_has_the_direction_as_first_coefficient() -> None:
    x, v = rand(3), rand(2, 3, seed=1)
    jet = Jet.variable(x, (2, 1), v)
    assert torch.equal(jet.primal, x)
    assert torch.equal(jet.coefficients, torch.stack([x, v[0], torch.zeros(3, dtype=DOUBLE), v[1]]))
    assert torch.equal(jet.derivative(1, 1), v[1])
    assert torch.equal(Jet.variable(x, 1).derivative(1), torch.ones(3, dtype=DOUBLE))
    assert Jet.variable(x, 0).coefficient_layout == Layout(())
    assert Jet.variable(x, (2, 0, 1), [x, x, x]).coefficient_layout == Layout((2, 1))
    collapsed = Jet.variable(x, 1, v, weights=(2.0, -1.0))
    torch.testing.assert_close(collapsed.collapsed, 2 * v[0] - v[1])
    with_another = Jet.variable(x, (1, 1, 2), torch.stack([*v[:2], v[1]]), weights=(2.0, -1.0, 0.0))
    torch.testing.assert_close(with_another.collapsed, 2 * v[0] - v[1])
    assert with_another.derivative(2, 2).count_nonzero() == 0


def test_derivatives_are_unscaled_coefficients() -> None:
    jet = Jet.variable(rand(3), 4).exp()
    torch.testing.assert_close(jet.derivative(4), 24 * jet.coefficients[4])
    with pytest.raises(ValueError, match="isn't collapsed"):
        _ = jet.collapsed


def test_tensor_protocol() -> None:
    x = rand(3, 4)
    jet = Jet.variable(x, 2)
    assert jet.shape == x.shape
    assert jet.size() == x.size()
    assert jet.size(-1) == 4
    assert jet.ndim == jet.dim() == 2
    assert jet.numel() == 12
    assert len(jet) == 3
    assert jet.dtype == DOUBLE
    assert jet.device == x.device
    assert jet.is_floating_point()
    assert not jet.is_complex()
    assert not jet.is_sparse
    assert not jet.requires_grad
    assert Jet.variable(x.requires_grad_(), 1).requires_grad
    assert [row.shape for row in jet] == [(4,)] * 3
    assert jet.float().dtype == torch.float32
    assert jet.to(torch.float16).dtype == torch.float16
    assert jet.to("cpu") is jet
    assert jet.T.shape == (4, 3)
    assert "Layout(orders=(2,))" in repr(jet)
    assert isinstance(hash(jet), int)
    with pytest.raises(AttributeError, match="no_such_method"):
        jet.no_such_method()
    with pytest.raises(TypeError, match="0-d"):
        len(jet[0, 0])


def test_values_are_the_primal() -> None:
    jet = Jet.variable(torch.tensor(2.5, dtype=DOUBLE), 3)
    assert float(jet) == jet.item() == 2.5
    assert int(jet) == 2
    assert bool(jet)
    assert jet.tolist() == 2.5
    assert jet > 2
    assert 2 < jet < 3
    assert (jet == None) is False  # noqa: E711 - as for a tensor
    assert torch.equal(jet.detach(), torch.tensor(2.5, dtype=DOUBLE))
    assert isinstance(jet.detach(), torch.Tensor)


def test_detached_values_are_constants() -> None:
    value, first = derivatives(lambda x: x * x.detach(), rand(3), 1)
    torch.testing.assert_close(first, rand(3))
    torch.testing.assert_close(value, rand(3) ** 2)


def test_jets_of_different_layouts_do_not_mix() -> None:
    with pytest.raises(ValueError, match=r"'add'.*orders=\(2,\).*orders=\(3,\)"):
        Jet.variable(rand(3), 2) + Jet.variable(rand(3), 3)


def test_wrong_number_of_coefficients() -> None:
    with pytest.raises(ValueError, match="3 coefficients along axis 0"):
        Jet(torch.zeros(2, 5), Layout((2,)))
    with pytest.raises(TypeError, match="floating-point"):
        Jet(torch.zeros(3, 5, dtype=torch.int64), Layout((2,)))


# In-place ops.


def test_ops_in_place_rebind_the_jet() -> None:
    def f(x: Any) -> Any:
        y = torch.sin(x)
        y += x
        y *= 2
        y -= 1
        y /= x
        y **= 2
        y.add_(x, alpha=2).mul_(0.5).exp_()
        torch.relu_(y)
        y.clamp_(min=0.1)
        y.neg_()
        torch.nn.functional.silu(y, inplace=True)
        y[1:] = x[1:] ** 3
        y[0] = 2.0
        return y

    def g(x: Any) -> Any:
        y = ((2 * (torch.sin(x) + x) - 1) / x) ** 2
        y = -torch.relu(torch.exp((y + 2 * x) * 0.5)).clamp(min=0.1)
        y = torch.nn.functional.silu(y)
        return torch.cat([2.0 + 0 * y[:1], x[1:] ** 3])

    x = rand(4, low=0.3)
    torch.testing.assert_close(derivatives(f, x, 3), derivatives(g, x, 3))


def test_filling_in_place_makes_a_constant() -> None:
    def f(x: Any) -> Any:
        y, z, w = x * 1, x * 1, x * 1
        y.zero_()
        z.fill_(3.0)
        w.copy_(x.exp())
        return y + z + w

    x = rand(3)
    torch.testing.assert_close(derivatives(f, x, 1), (3 + x.exp(), x.exp()))


def test_assignment_broadcasts_and_takes_index_tensors() -> None:
    def f(x: Any) -> Any:
        y = x * 1
        y[torch.tensor([0, 2]), :] = x[1]
        y[:, 1] = x[0, 0]
        y[..., -1] = rand(3, seed=4)
        return y

    def g(x: Any) -> Any:
        rows = torch.stack([x[1], x[1], x[1]])
        return torch.cat([rows[:, :1], x[0, 0].expand(3, 1), rows[:, 2:3], rand(3, seed=4)[:, None]], 1)

    x = rand(3, 4)
    torch.testing.assert_close(derivatives(f, x, 2), derivatives(g, x, 2))


def test_write_into_a_view_or_a_viewed_jet_is_refused() -> None:
    def into_a_view(x: Any) -> Any:
        y = x * 1
        y[0].add_(1)
        return y

    def into_the_base(x: Any) -> Any:
        y = x * 1
        row = y[0]
        y += 1
        return row

    def into_a_reshaped(x: Any) -> Any:
        y = x * 1
        z = y.reshape(-1)
        z.mul_(2)
        return y

    for f in (into_a_view, into_the_base, into_a_reshaped):
        with pytest.raises(NotImplementedError, match="shares memory"):
            derivatives(f, rand(3, 4), 1)


def test_write_is_fine_once_the_view_is_gone() -> None:
    def f(x: Any) -> Any:
        y = x * 1
        _ = y[0].sum()
        y += 1
        return y

    assert derivatives(f, rand(3, 4), 1)[1].eq(1).all()


def test_write_into_a_plain_tensor_is_refused() -> None:
    def by_index(x: Any) -> Any:
        buffer = torch.zeros(3, 2, dtype=DOUBLE)
        buffer[:, 0] = x
        return buffer

    def by_add(x: Any) -> Any:
        return torch.zeros(3, dtype=DOUBLE).add_(x)

    def by_iadd(x: Any) -> Any:
        total = torch.zeros(3, dtype=DOUBLE)
        total += x
        return total

    def by_copy(x: Any) -> Any:
        return torch.zeros(3, dtype=DOUBLE).copy_(x)

    for f in (by_index, by_add, by_iadd, by_copy):
        with pytest.raises(NotImplementedError, match="plain tensor"):
            derivatives(f, rand(3), 1)
    with pytest.raises(NotImplementedError, match="out="):
        derivatives(lambda x: torch.sin(x, out=torch.empty(3, dtype=DOUBLE)), rand(3), 1)


def test_in_place_can_not_change_the_shape() -> None:
    def f(x: Any) -> Any:
        y = x * 1
        y += torch.ones(2, 3, dtype=DOUBLE)
        return y

    with pytest.raises(ValueError, match="in place"):
        derivatives(f, rand(3), 1)


# Nesting.


def test_jets_of_jets_give_mixed_derivatives() -> None:
    x, t = rand(4), rand(4, seed=1)

    def u(x: Any, t: Any) -> Any:
        return torch.tanh(x * t) + torch.exp(x) * torch.sin(2 * t) / (1 + x**2)

    def u_x(t: Any) -> Any:
        return derivatives(lambda x: u(x, t), x, 2)[2]

    got = derivatives(u_x, t, 2)[2]

    def expected_u_x(t: torch.Tensor) -> torch.Tensor:
        return nested_derivatives(lambda x: u(x, t), x, 2, mode="forward")[2]

    torch.testing.assert_close(got, nested_derivatives(expected_u_x, t, 2, mode="forward")[2])


def test_derivatives_of_derivatives() -> None:
    x = rand(4)
    model = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 5), nn.Softplus(), nn.Linear(5, 1)).double()
    column = x[:, None]
    nested = derivatives(lambda x: derivatives(model, x, 2)[2], column, 3)
    direct = derivatives(model, column, 5)
    torch.testing.assert_close(nested, tuple(direct[2:]))


def test_an_outer_variable_is_a_constant_inside() -> None:
    x = rand(3)
    # d/dx [x · d/dy (x y²)] at y = x, where y is a variable of its own: x · 2 x y.
    got = derivatives(lambda x: x * derivatives(lambda y: x * y**2, x.detach(), 1)[1], x, 2)
    y = x
    torch.testing.assert_close(got, (2 * x**2 * y, 4 * x * y, 4 * y))
    constant = derivatives(lambda x: derivatives(lambda y: x**2, x.detach(), 1)[1], x, 1)
    assert all(bool((d == 0).all()) for d in constant)


def test_hand_made_jets_are_constants_to_a_differentiation() -> None:
    jet = Jet.variable(rand(3), 2)
    _, first, second = derivatives(lambda y: jet * y, rand(3, seed=1), 2)
    assert isinstance(first, Jet)
    torch.testing.assert_close(first.coefficients, jet.coefficients)
    assert bool((second == 0).all())


def test_levels_are_restored_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        derivatives(lambda x: x / (1 // 0), rand(3), 1)
    with nested_level() as level:
        assert level == (1, 0)


def test_threads_have_levels_of_their_own() -> None:
    results: list[Any] = []

    def work(seed: int) -> None:
        x = rand(50, seed=seed)
        for _ in range(20):
            inner = derivatives(lambda x: derivatives(torch.sin, x, 1)[1] * x, x, 1)[1]
            results.append(torch.allclose(inner, x.cos() - x * x.sin()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80


def test_deepcopy_of_a_jet() -> None:
    jet = Jet.variable(rand(3), 2)
    torch.testing.assert_close(copy.deepcopy(jet).coefficients, jet.coefficients)


def test_layout_is_that_of_a_tensor() -> None:
    x = rand(3)
    assert Jet.variable(x, 1).layout is torch.strided
    mask = torch.tensor([True, False, True])
    got = derivatives(lambda x: torch.masked.mean(x**2, mask=mask), x, 1)
    torch.testing.assert_close(got[1], 2 * x[mask].mean())
