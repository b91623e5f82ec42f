"""Reductions, normalisations, attention and other ops composed of simpler ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from agreement import DOUBLE, agrees, rand
from torch import nn

from taylorderiv import derivatives
from taylorderiv.testing import check, nested_derivatives

# Applied to a value of shape (3, 4).
CASES: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda x: x.softmax(-1),
    "softmax_functional": lambda x: F.softmax(x, dim=0),
    "softmax_dtype": lambda x: torch.softmax(x, 1, dtype=DOUBLE),
    "softmin": lambda x: F.softmin(x, dim=0),
    "log_softmax": lambda x: torch.log_softmax(x, 1),
    "log_softmax_functional": lambda x: F.log_softmax(x, dim=1),
    "logsumexp": lambda x: torch.logsumexp(x, (0, 1)),
    "logsumexp_keepdim": lambda x: x.logsumexp(1, keepdim=True),
    "logaddexp": lambda x: torch.logaddexp(x, x.sin()),
    "logaddexp2": lambda x: torch.logaddexp2(x, rand(3, 4, seed=1)),
    "var": lambda x: x.var(),
    "var_dim": lambda x: x.var(dim=1, keepdim=True),
    "var_biased": lambda x: torch.var(x, 0, unbiased=False),
    "var_correction": lambda x: torch.var(x, 1, correction=0),
    "var_mean": lambda x: sum(torch.var_mean(x, 1)),
    "std": lambda x: x.std(),
    "std_dim": lambda x: torch.std(x, 1),
    "std_mean": lambda x: sum(torch.std_mean(x, 1)),
    "prod": lambda x: x.prod(),
    "prod_dim": lambda x: torch.prod(x, 1, keepdim=True),
    "cumprod": lambda x: torch.cumprod(x, 1),
    "norm": lambda x: x.norm(),
    "norm_1": lambda x: torch.norm(x, 1, dim=1),
    "norm_3": lambda x: x.norm(3, dim=0, keepdim=True),
    "norm_inf": lambda x: torch.linalg.norm(x, float("inf"), dim=1),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "vector_norm_half": lambda x: torch.linalg.vector_norm(x, 0.5, dim=1),
    "matrix_norm": lambda x: torch.linalg.matrix_norm(x),
    "matrix_norm_1": lambda x: torch.linalg.matrix_norm(x, 1),
    "linalg_norm": lambda x: torch.linalg.norm(x),
    "nuclear_norm": lambda x: torch.linalg.matrix_norm(x, "nuc", keepdim=True),
    "spectral_norm": lambda x: torch.linalg.norm(x, 2),
    "dist": lambda x: torch.dist(x, x.sin()),
    "normalize": lambda x: F.normalize(x, dim=1),
    "batch_norm_eval": lambda x: F.batch_norm(x, rand(4, seed=1), rand(4, seed=2)),
    "glu": lambda x: F.glu(x),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "mse_loss": lambda x: F.mse_loss(x, rand(3, 4, seed=1)),
    "mse_loss_sum": lambda x: F.mse_loss(x, x.sin(), reduction="sum"),
    "attention_causal": lambda x: F.scaled_dot_product_attention(x[:, :3], x[:, 1:], x.sin(), is_causal=True),
    "attention_to_nothing": lambda x: F.scaled_dot_product_attention(
        x, x, x.sin(), attn_mask=torch.tensor([[True, False, True], [False] * 3, [True] * 3])
    ),
    "attention_mask": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(3, 3).tril().bool()),
}


@pytest.mark.parametrize("f", CASES.values(), ids=CASES)
def test_composite_op(f: Callable[[Any], Any]) -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        agrees(f, rand(3, 4, low=0.2, high=1.4))


def standardize(x: Any, dims: tuple[int, ...], eps: float = 1e-5) -> Any:
    centered = x - x.mean(dims, keepdim=True)
    return centered / ((centered**2).mean(dims, keepdim=True) + eps) ** 0.5


# PyTorch's own high derivatives of these are wrong or missing: beside each, what it means.
WITH_EQUIVALENT: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "layer_norm": (
        lambda x: F.layer_norm(x, (4,), rand(4, seed=1), rand(4, seed=2)),
        lambda x: standardize(x, (1,)) * rand(4, seed=1) + rand(4, seed=2),
    ),
    "layer_norm_jet_weight": (
        lambda x: F.layer_norm(x, (4,), x[0], x[1]),
        lambda x: standardize(x, (1,)) * x[0] + x[1],
    ),
    "layer_norm_two_axes": (
        lambda x: F.layer_norm(x, (3, 4), eps=1e-3),
        lambda x: standardize(x, (0, 1), 1e-3),
    ),
    "rms_norm": (
        lambda x: F.rms_norm(x, (4,), rand(4, seed=1), eps=1e-6),
        lambda x: x / ((x**2).mean(1, keepdim=True) + 1e-6) ** 0.5 * rand(4, seed=1),
    ),
    "group_norm": (
        lambda x: F.group_norm(x[..., None] * rand(2, seed=3), 2, rand(4, seed=1)),
        lambda x: (
            standardize((x[..., None] * rand(2, seed=3)).reshape(3, 2, 4), (2,)).reshape(3, 4, 2) * rand(4, 1, seed=1)
        ),
    ),
    "batch_norm_train": (
        lambda x: F.batch_norm(x, None, None, rand(4, seed=1), rand(4, seed=2), training=True),
        lambda x: standardize(x, (0,)) * rand(4, seed=1) + rand(4, seed=2),
    ),
    "instance_norm": (lambda x: F.instance_norm(x[None]), lambda x: standardize(x[None], (2,))),
    "logcumsumexp": (lambda x: torch.logcumsumexp(x, 1), lambda x: x.exp().cumsum(1).log()),
    "hardsigmoid": (lambda x: F.hardsigmoid(5 * x - 3), lambda x: ((5 * x - 3) / 6 + 0.5).clamp(0, 1)),
}


@pytest.mark.parametrize(("f", "equivalent"), WITH_EQUIVALENT.values(), ids=WITH_EQUIVALENT)
def test_composite_op_agrees_with_its_meaning(f: Callable[[Any], Any], equivalent: Callable[[Any], Any]) -> None:
    agrees(f, rand(3, 4, low=0.2, high=1.4), equivalent=equivalent)


MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mlp": (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), (4, 3)),
    "norms": (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.RMSNorm(6), nn.GELU()), (4, 6)),
    "batch_norm_eval": (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.SiLU()), (5, 3)),
    "conv": (nn.Sequential(nn.Conv1d(2, 3, 3), nn.ELU(), nn.ConvTranspose1d(3, 1, 2)), (2, 2, 6)),
    "bilinear": (nn.Bilinear(3, 3, 2), (4, 3)),
    "lstm": (nn.LSTM(3, 4, batch_first=True), (2, 3, 3)),
    "gru": (nn.GRU(3, 4), (3, 2, 3)),
    "rnn": (nn.RNN(3, 4, num_layers=2), (2, 2, 3)),
    "attention": (nn.MultiheadAttention(4, 2, batch_first=True), (2, 3, 4)),
    "transformer": (nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), (2, 3, 4)),
    "weight_norm": (nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), (4, 3)),
    "softmax": (nn.Softmax(-1), (2, 3)),
    "prelu": (nn.PReLU(), (2, 3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_module(name: str) -> None:
    module, shape = MODULES[name]
    module = module.double()

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Any) -> Any:
            if name == "bilinear":
                return self.inner(x, torch.sin(x))
            if name == "attention":
                return self.inner(x, x, x)[0]
            y = self.inner(x)
            return y[0] if isinstance(y, tuple) else y

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        called = Called()

        def equivalent(x: Any) -> Any:
            # PyTorch's third derivatives of its layer norm are wrong.
            with mock.patch.object(F, "layer_norm", lambda x, shape, w, b, eps: standardize(x, (-1,), eps) * w + b):
                return called(x)

        check(called, rand(*shape, low=-1), 2, direction=rand(*shape, seed=1), equivalent=equivalent, rtol=1e-8)


def test_batch_norm_updates_its_statistics_once() -> None:
    x = rand(6, 3)
    ours, plain = (nn.BatchNorm1d(3).double() for _ in range(2))
    value = derivatives(ours, x, 3)[0]
    torch.testing.assert_close(value, plain(x))
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)
    assert ours.num_batches_tracked == 1


def test_dropout_has_one_mask_for_all_coefficients() -> None:
    x = rand(200, low=0.5)
    value, first, second = derivatives(lambda x: F.dropout(torch.exp(x), 0.5), x, 2)
    kept = value != 0
    assert 40 < int(kept.sum()) < 160
    torch.testing.assert_close(value, torch.where(kept, 2 * x.exp(), 0.0))
    torch.testing.assert_close(first, value)
    torch.testing.assert_close(second, value)
    module = nn.Dropout(0.3)
    assert (derivatives(module, x, 1)[1] == 0).any()
    assert (derivatives(module.eval(), x, 1)[1] == 1).all()


def test_samples_are_constants() -> None:
    x = rand(5)
    value, first = derivatives(lambda x: x * torch.rand_like(x), x, 1)
    torch.testing.assert_close(value, x * first)


@pytest.mark.parametrize("f", [torch.norm, lambda x: x.norm(dim=-1), lambda x: x.std(-1), torch.linalg.vector_norm])
def test_norms_at_their_kink_follow_pytorch(f: Callable[[Any], Any]) -> None:
    x = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    value, first, second = derivatives(f, x, 2)
    assert (value, first, second) == (0, 0, 0)
    (gradient,) = torch.autograd.grad(value, x)
    assert not gradient.isnan().any()


def test_softmax_of_large_and_infinite_values() -> None:
    x = torch.tensor([1000.0, 0.0, -torch.inf, 999.0], dtype=DOUBLE)
    direction = torch.tensor([1.0, 1.0, 0.0, -1.0], dtype=DOUBLE)
    got = derivatives(lambda x: x.softmax(0), x, 2, direction=direction)
    expected = nested_derivatives(lambda x: x.softmax(0), x, 2, direction=direction)
    torch.testing.assert_close(got, expected)
    assert derivatives(lambda x: x.logsumexp(0), x, 1, direction=direction)[1].isfinite()


def test_softmax_of_nothing() -> None:
    for f in (torch.softmax, torch.log_softmax):
        assert derivatives(lambda x, f=f: f(x, 1), torch.zeros(2, 0), 1)[1].shape == (2, 0)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_distances(p: float) -> None:
    x = rand(3, 4)
    far = rand(2, 4, low=2, high=3, seed=1)
    agrees(
        lambda x: torch.cdist(x, far, p),
        x,
        equivalent=lambda x: torch.stack([((far - row).abs() ** p).sum(-1) ** (1 / p) for row in x]),
    )
    pairs = ((0, 1), (0, 2), (1, 2))
    agrees(
        lambda x: torch.pdist(x, p),
        x,
        equivalent=lambda x: torch.stack([((x[i] - x[j]).abs() ** p).sum() ** (1 / p) for i, j in pairs]),
    )


def test_product_with_zeros() -> None:
    agrees(lambda x: x.prod(0), torch.tensor([[0.0, 0.0, 2.0], [3.0, 0.0, 1.0], [0.5, 1.0, 0.0]], dtype=DOUBLE))


def test_softmax_of_a_steep_function_keeps_its_digits() -> None:
    # Where one element outweighs the others its derivatives are differences of large numbers that cancel.
    x = torch.tensor([0.0, 40.0, -30.0], dtype=DOUBLE)
    slope = torch.tensor([3000.0, -2000.0, 1000.0], dtype=DOUBLE)
    got = derivatives(lambda t: (x + slope * t).softmax(0), torch.zeros((), dtype=DOUBLE), 3)
    expected = derivatives(lambda t: torch.sigmoid(40 - 5000 * t), torch.zeros((), dtype=DOUBLE), 3)
    for k in (1, 2, 3):
        torch.testing.assert_close(got[k][1], expected[k], rtol=1e-9, atol=0)


def test_running_logarithm_of_sums_far_below_the_largest() -> None:
    x = torch.tensor([-2000.0, -2001.0, -torch.inf, 5.0], dtype=DOUBLE)
    agreed = [torch.logsumexp(x[: i + 1], 0) for i in range(4)]
    value, first = derivatives(lambda x: x.logcumsumexp(0), x, 1)
    torch.testing.assert_close(value, torch.stack(agreed))
    torch.testing.assert_close(first, torch.ones(4, dtype=DOUBLE))


COMPLEX: dict[str, Callable[[Any], Any]] = {
    "var": lambda z: z.var(1),
    "std_mean": lambda z: torch.std_mean(z, 1)[0],
    "vector_norm": lambda z: torch.linalg.vector_norm(z, 3, 1),
    "normalize": lambda z: torch.view_as_real(F.normalize(z)),
    "logsumexp": lambda z: torch.view_as_real(z.logsumexp(1)),
    "logaddexp": lambda z: torch.view_as_real(torch.logaddexp(z, z.sin())),
}


@pytest.mark.parametrize("f", COMPLEX.values(), ids=COMPLEX)
def test_reductions_of_complex_values(f: Callable[[Any], Any]) -> None:
    agrees(lambda x: f(torch.complex(x, 4 * x.sin())), rand(3, 4))


def test_running_logarithm_of_sums_of_complex_values() -> None:
    def complex_curve(x: Any) -> Any:
        return torch.complex(x, x.sin())

    agrees(
        lambda x: torch.view_as_real(complex_curve(x).logcumsumexp(1)),
        rand(3, 4),
        equivalent=lambda x: torch.view_as_real(torch.log(complex_curve(x).exp().cumsum(1))),
    )


def test_native_normalizations_return_their_statistics() -> None:
    x, weight = rand(2, 6, 3), rand(6, seed=1)
    expected = derivatives(lambda x: x.mean((0, 2)), x, 2)
    for f in (
        lambda x: torch.native_batch_norm(x, weight, None, None, None, True, 0.1, 1e-5),
        lambda x: torch.ops.aten._native_batch_norm_legit.no_stats(x, weight, None, True, 0.1, 1e-5),
        lambda x: torch.ops.aten._batch_norm_with_update(
            x, weight, None, torch.zeros(6, dtype=DOUBLE), torch.ones(6, dtype=DOUBLE), 0.1, 1e-5
        ),
    ):
        torch.testing.assert_close(derivatives(lambda x, f=f: f(x)[1], x, 2), expected)
        batch_norm = derivatives(lambda x: F.batch_norm(x, None, None, weight, training=True), x, 2)
        torch.testing.assert_close(derivatives(lambda x, f=f: f(x)[0], x, 2), batch_norm)
    got = derivatives(lambda x: torch.native_group_norm(x, weight, None, 2, 6, 3, 3, 1e-5)[0], x, 2)
    torch.testing.assert_close(got, derivatives(lambda x: F.group_norm(x, 3, weight), x, 2))
    mean = derivatives(lambda x: torch.native_group_norm(x, weight, None, 2, 6, 3, 3, 1e-5)[1], x, 1)
    torch.testing.assert_close(mean[1], torch.ones(2, 3, dtype=DOUBLE))


def test_normalization_of_nothing() -> None:
    assert derivatives(lambda x: F.group_norm(x, 2), torch.zeros(2, 4, 0), 1)[1].shape == (2, 4, 0)
    empty = torch.zeros(0)
    assert derivatives(lambda x: F.batch_norm(x, empty, empty), empty, 1)[1].shape == (0,)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="PyTorch has it since 2.13")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_linear_cross_entropy_is_differentiated_in_chunks_too(reduction: str) -> None:
    weight, bias, target = rand(5, 4, seed=1), rand(5, seed=2), torch.tensor([0, 4, 2, 1, -100, 3])

    def plain(x: Any) -> Any:
        return F.cross_entropy(F.linear(x.sin(), weight, bias), target, reduction=reduction)

    for options in (None, nn.LinearCrossEntropyOptions(chunking_method="aspect_ratio:2")):
        agrees(
            lambda x, options=options: F.linear_cross_entropy(
                x.sin(), weight, target, linear_bias=bias, reduction=reduction, options=options
            ),
            rand(6, 4),
            equivalent=plain,
        )


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="PyTorch has it since 2.13")
def test_linear_cross_entropy_of_more_dimensions() -> None:
    weight, target = rand(5, 2, 4, seed=1), torch.tensor([[0, 4], [2, 1], [3, 3]])
    agrees(
        lambda x: F.linear_cross_entropy(x, weight, target, ignore_index=3, label_smoothing=0.1),
        rand(3, 4),
        equivalent=lambda x: F.cross_entropy(
            (x @ weight.flatten(0, 1).T).reshape(3, 5, 2), target, ignore_index=3, label_smoothing=0.1
        ),
    )
