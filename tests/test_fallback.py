"""Functions without a rule: decomposed, or derived from PyTorch's forward mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import DOUBLE, agrees, rand

from taylorderiv import derivatives, registry
from taylorderiv.testing import nested_derivatives


def square(x: Any) -> Any:
    """A well-conditioned 3 × 3 matrix from a value of shape (2, 3)."""
    return torch.cat([x, x[:1] * x[1:]]) + 3 * torch.eye(3, dtype=DOUBLE)


def symmetric(x: Any) -> Any:
    matrix = square(x)
    return matrix + matrix.T + torch.diag(torch.tensor([0.0, 3.0, 7.0], dtype=DOUBLE))


TARGET = torch.tensor([0, 2])

# Applied to a value of shape (2, 3) between 0.2 and 0.8.
CASES: dict[str, Callable[[Any], Any]] = {
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "polygamma": lambda x: torch.polygamma(2, x),
    "erfinv": torch.erfinv,
    "i0": torch.i0,
    "i1e": torch.special.i1e,
    "logit": torch.logit,
    "ndtr": torch.special.ndtr,
    "ndtri": torch.special.ndtri,
    "log_ndtr": torch.special.log_ndtr,
    "erfcx": torch.special.erfcx,
    "entr": torch.special.entr,
    "xlog1py": lambda x: torch.special.xlog1py(x, x.sin()),
    "deg2rad": torch.deg2rad,
    "cond": lambda x: torch.linalg.cond(symmetric(x)),
    "matrix_exp": lambda x: torch.linalg.matrix_exp(square(x) / 3),
    "cross_entropy": lambda x: F.cross_entropy(x, TARGET),
    "nll_loss": lambda x: F.nll_loss(x.log_softmax(-1), TARGET, reduction="sum"),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy(x, torch.full((2, 3), 0.3, dtype=DOUBLE)),
    "bce_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, torch.full((2, 3), 0.3, dtype=DOUBLE)),
    "huber_loss": lambda x: F.huber_loss(x, torch.zeros(2, 3, dtype=DOUBLE), delta=0.5),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, torch.zeros(2, 3, dtype=DOUBLE)),
    "kl_div": lambda x: F.kl_div(x.log_softmax(-1), x.softmax(-1), reduction="batchmean"),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x**2),
    "renorm": lambda x: torch.renorm(x, 2, 0, 0.5),
    "local_response_norm": lambda x: F.local_response_norm(x[None], 2),
    "grid_sample": lambda x: F.grid_sample(rand(1, 1, 4, 4), x.reshape(1, 3, 1, 2), align_corners=True),
    "affine_grid": lambda x: F.affine_grid(x[None], [1, 1, 2, 2], align_corners=False),
    "upsample": lambda x: F.interpolate(x[None, None], scale_factor=2, mode="bicubic"),
    "stft": lambda x: torch.view_as_real(
        torch.stft(x.reshape(-1), 4, window=torch.ones(4, dtype=DOUBLE), return_complex=True)
    ),
    "cov": torch.cov,
    "rad2deg": torch.rad2deg,
}


@pytest.mark.parametrize("f", CASES.values(), ids=CASES)
def test_function_without_a_rule(f: Callable[[Any], Any]) -> None:
    agrees(f, rand(2, 3, low=0.2, high=0.8), 2)


def test_these_functions_have_no_rule() -> None:
    for func in (torch.lgamma, torch.renorm, F.cross_entropy, F.pairwise_distance, F.grid_sample):
        assert registry.find(func).rule is None


def test_high_order_of_a_derived_op() -> None:
    x = rand(3, low=1.0, high=2.0)
    got = derivatives(torch.lgamma, x, 6)
    for k in range(1, 7):
        torch.testing.assert_close(got[k], torch.polygamma(k - 1, x), rtol=1e-8, atol=1e-8)


def test_parameters_keep_their_gradients() -> None:
    weight = rand(3, 3, seed=1).requires_grad_()
    x = rand(2, 3)

    def f(x: Any) -> Any:
        return F.cross_entropy(torch.linalg.solve(weight @ weight.T + torch.eye(3, dtype=DOUBLE), x.T).T, TARGET)

    for k in range(3):
        (got,) = torch.autograd.grad(derivatives(f, x, 2)[k], weight)
        (expected,) = torch.autograd.grad(nested_derivatives(f, x, 2)[k], weight)
        torch.testing.assert_close(got, expected)


def test_a_parameter_as_argument_of_a_decomposed_function() -> None:
    weight = rand(2, 3, seed=1).requires_grad_()
    x = rand(2, 3)

    def f(x: Any) -> Any:
        return F.pairwise_distance(x, weight)

    (got,) = torch.autograd.grad(derivatives(f, x, 2)[2].sum(), weight)
    (expected,) = torch.autograd.grad(nested_derivatives(f, x, 2)[2].sum(), weight)
    torch.testing.assert_close(got, expected)


def test_in_place_ops_inside_a_decomposition() -> None:
    recurrent = torch.nn.GRUCell(3, 4).double()
    agrees(lambda x: recurrent(x, x[:, :1].expand(2, 4)), rand(2, 3), 2)


def test_random_functions_draw_once() -> None:
    torch.manual_seed(3)
    x = rand(200, low=0.5)
    value, first = derivatives(lambda x: F.alpha_dropout(x, 0.5, training=True), x, 1)
    slopes = first.unique()
    assert len(slopes) == 2  # one for what was kept, 0 for the rest
    kept = first != 0
    offset = (value - x * first)[kept]
    torch.testing.assert_close(offset, offset[:1].expand_as(offset))


def test_random_numbers_are_drawn_inside_a_decomposition() -> None:
    attention = torch.nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True, dtype=DOUBLE)
    x = rand(2, 3, 4)

    def f(x: Any) -> Any:
        torch.manual_seed(0)
        return attention(x, x, x, need_weights=False)[0]

    agrees(f, x, 2)


def test_under_torch_func_grad() -> None:
    x = rand(3, low=0.5)
    got = torch.func.grad(lambda x: derivatives(torch.lgamma, x, 2)[2].sum())(x)
    torch.testing.assert_close(got, torch.polygamma(2, x))


def test_inside_vmap_it_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"torch\.vmap"):
        torch.func.vmap(lambda x: derivatives(torch.lgamma, x, 1)[1])(rand(3))


def test_jets_of_jets() -> None:
    x = rand(3, low=0.5)
    nested = derivatives(lambda x: derivatives(torch.lgamma, x, 1)[1], x, 2)
    torch.testing.assert_close(nested, derivatives(torch.lgamma, x, 3)[1:])


def test_no_forward_mode_is_an_error_and_not_zero() -> None:
    with pytest.raises(NotImplementedError, match=r"multilabel_margin_loss_forward.*register_rule"):
        derivatives(lambda x: F.multilabel_margin_loss(x, torch.tensor([0, 1, -1])), rand(3), 1)


def test_a_wrong_forward_mode_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's forward mode of this one gives 0.
    monkeypatch.delitem(registry._RULES, "scatter_reduce")
    monkeypatch.setattr(registry, "_FOUND", {})
    index = torch.tensor([[0, 0, 1], [1, 0, 1]])
    with pytest.raises(NotImplementedError, match=r"scatter_reduce.*disagree"):
        derivatives(lambda x: torch.scatter_reduce(x, 0, index, x.sin(), "prod"), rand(2, 3), 1)


def test_a_result_without_derivative_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's formula takes the factors inside for constants: right to first order only.
    for name in ("linalg_solve", "linalg_solve_ex", "_linalg_solve_ex"):
        monkeypatch.delitem(registry._RULES, name)
    monkeypatch.setattr(registry, "_FOUND", {})
    with pytest.raises(NotImplementedError, match=r"linalg_solve.*without derivative"):
        derivatives(lambda x: torch.linalg.solve(square(x), x.T), rand(2, 3), 2)


def test_arguments_keep_the_names_they_were_given() -> None:
    def total(x: torch.Tensor, *, axis: int) -> torch.Tensor:
        if torch.overrides.has_torch_function_unary(x):
            return torch.overrides.handle_torch_function(total, (x,), x, axis=axis)
        return torch.cumsum(x, axis)

    x = rand(2, 3)
    torch.testing.assert_close(derivatives(lambda x: total(x, axis=1), x, 1)[0], x.cumsum(1))


def test_nothing_is_warned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        derivatives(lambda x: F.grid_sample(rand(1, 1, 4, 4), x.reshape(1, 3, 1, 2), align_corners=True), rand(2, 3), 2)
