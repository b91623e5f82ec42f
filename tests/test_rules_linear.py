"""Linear and shape ops, each applied to the result of a nonlinear op, so that no coefficient vanishes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import DOUBLE, agrees, rand

from taylorderiv import derivatives

MATRIX = rand(4, 3, low=-1, high=1, seed=10)
VECTOR = rand(4, low=-1, high=1, seed=11)
TENSORDOT: Any = torch.tensordot  # its stubs lack dims as lists
INDEX = torch.tensor([[0, 2, 1], [1, 1, 0]])
MASK = torch.tensor([[True, False, True, False], [False, True, True, False], [True, True, True, False]])

# Applied to a value of shape (3, 4).
MATRIX_CASES: dict[str, Callable[[Any], Any]] = {
    "linear": lambda x: F.linear(x, rand(5, 4, seed=1), rand(5, seed=2)),
    "linear_without_bias": lambda x: F.linear(x, rand(5, 4, seed=1)),
    "linear_vector_weight": lambda x: F.linear(x, VECTOR),
    "addmm": lambda x: torch.addmm(rand(3, seed=1), x, MATRIX, beta=0.5, alpha=2.0),
    "addmm_jet_input": lambda x: torch.addmm(x[:, :3], x, MATRIX),
    "addmm_beta_zero": lambda x: torch.addmm(torch.full((3,), torch.nan, dtype=DOUBLE), x, MATRIX, beta=0),
    "addmv": lambda x: torch.addmv(rand(3, seed=1), x, VECTOR),
    "addr": lambda x: torch.addr(rand(3, 4, seed=1), x[:, 0], VECTOR),
    "baddbmm": lambda x: torch.baddbmm(rand(2, 3, 3, seed=1), x.expand(2, 3, 4), MATRIX.expand(2, 4, 3)),
    "addbmm": lambda x: torch.addbmm(rand(3, 3, seed=1), x.expand(2, 3, 4), MATRIX.expand(2, 4, 3)),
    "mm": lambda x: torch.mm(x, MATRIX),
    "mm_constant_first": lambda x: torch.mm(MATRIX, x),
    "bmm": lambda x: torch.bmm(x.expand(2, 3, 4), rand(2, 4, 2, seed=1)),
    "mv": lambda x: torch.mv(x, VECTOR),
    "mv_constant_matrix": lambda x: torch.mv(MATRIX, x[:, 0]),
    "dot": lambda x: torch.dot(x[0], VECTOR),
    "matmul": lambda x: x @ MATRIX,
    "matmul_vector": lambda x: x @ VECTOR,
    "matmul_constant_first": lambda x: MATRIX @ x,
    "matmul_vector_first": lambda x: x[0] @ MATRIX,
    "matmul_constant_vector_first": lambda x: rand(3, seed=1) @ x,
    "matmul_batched_constant": lambda x: x @ rand(2, 1, 4, 2, seed=1),
    "matmul_batched_constant_first": lambda x: rand(2, 5, 3, seed=1) @ x,
    "matmul_vector_batched": lambda x: x[0] @ rand(2, 4, 2, seed=1),
    "einsum": lambda x: torch.einsum("ij,jk->ki", x, MATRIX),
    "einsum_implicit": lambda x: torch.einsum("ij,jk", x, MATRIX),
    "einsum_ellipsis": lambda x: torch.einsum("...j,jk->...k", x, MATRIX),
    "einsum_lists": lambda x: torch.einsum(MATRIX, [1, 2], x, [0, 1], [2, 0]),
    "einsum_diagonal": lambda x: torch.einsum("ii->i", x[:, :3]),
    "tensordot": lambda x: torch.tensordot(x, MATRIX, dims=1),
    "inner": lambda x: torch.inner(x, rand(2, 4, seed=1)),
    "outer": lambda x: torch.outer(x[0], VECTOR),
    "kron": lambda x: torch.kron(x, MATRIX),
    "cross": lambda x: torch.linalg.cross(x[:, :3], MATRIX[:3], dim=-1),
    "vdot": lambda x: torch.vdot(x[0], VECTOR),
    "sum": lambda x: x.sum(),
    "sum_dim": lambda x: x.sum(-1, keepdim=True),
    "sum_dims": lambda x: torch.sum(x, dim=(0, 1)),
    "sum_axis": lambda x: x.sum(axis=0),
    "mean": lambda x: x.mean(),
    "mean_dim": lambda x: torch.mean(x, 1, keepdim=True),
    "nansum": lambda x: x.nansum(0),
    "nanmean": lambda x: x.nanmean(0),
    "cumsum": lambda x: x.cumsum(1),
    "diff": lambda x: torch.diff(x, n=2, dim=1),
    "diff_prepended": lambda x: torch.diff(x, dim=0, prepend=torch.zeros(1, 4, dtype=DOUBLE)),
    "cat": lambda x: torch.cat([x, rand(1, 4, seed=1), x[:1]], 0),
    "cat_dim": lambda x: torch.cat([rand(3, 2, seed=1), x], dim=-1),
    "cat_with_legacy_empty": lambda x: torch.cat([torch.empty(0, dtype=DOUBLE), x], 0),
    "stack": lambda x: torch.stack([x, rand(3, 4, seed=1)], dim=1),
    "hstack": lambda x: torch.hstack([x, x[:, :1]]),
    "vstack": lambda x: torch.vstack([x[0], x]),
    "dstack": lambda x: torch.dstack([x, x]),
    "column_stack": lambda x: torch.column_stack([x[:, 0], x]),
    "block_diag": lambda x: torch.block_diag(x, MATRIX),
    "chunk": lambda x: torch.chunk(x, 3, dim=1)[1],
    "split": lambda x: torch.split(x, 3, dim=1)[1],
    "split_sizes": lambda x: x.split([1, 2], 0)[1],
    "tensor_split": lambda x: torch.tensor_split(x, (1, 3), dim=1)[1],
    "hsplit": lambda x: torch.hsplit(x, 2)[1],
    "vsplit": lambda x: torch.vsplit(x, [1])[1],
    "unbind": lambda x: torch.unbind(x, -1)[2],
    "iteration": lambda x: sum(row * (i + 1) for i, row in enumerate(x)),
    "reshape": lambda x: x.reshape(2, -1),
    "reshape_tuple": lambda x: torch.reshape(x, (4, 3)),
    "view": lambda x: x.view(-1),
    "view_as": lambda x: x.view_as(torch.empty(2, 6)),
    "flatten": lambda x: x.unsqueeze(0).flatten(0, 1),
    "unflatten": lambda x: x.unflatten(-1, (2, 2)),
    "ravel": lambda x: x.ravel(),
    "permute": lambda x: x.permute(1, 0),
    "permute_tuple": lambda x: torch.permute(x, (-1, 0)),
    "transpose": lambda x: x.transpose(0, -1),
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
    "t": lambda x: x.t(),
    "movedim": lambda x: x.unsqueeze(0).movedim((0, 1), (2, 0)),
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "squeeze": lambda x: x[:, None, :1].squeeze(),
    "squeeze_dim": lambda x: x.unsqueeze(0).squeeze(0),
    "squeeze_dim_of_other_size": lambda x: x.squeeze(1),
    "squeeze_dims": lambda x: x[None, :, :1].squeeze((0, 2)),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "expand": lambda x: x[:, :1].expand(3, 5),
    "expand_keeping": lambda x: x.expand(2, -1, -1),
    "expand_as": lambda x: x[:1].expand_as(MATRIX[:, :1].expand(4, 4)),
    "broadcast_to": lambda x: torch.broadcast_to(x, (2, 3, 4)),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x[:, :1], MATRIX[:1])[0],
    "atleast_3d": lambda x: torch.atleast_3d(x),
    "meshgrid": lambda x: torch.meshgrid(x[0], x[:, 0], indexing="xy")[0],
    "repeat": lambda x: x.repeat(2, 1),
    "tile": lambda x: torch.tile(x, (2,)),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "index_int": lambda x: x[1],
    "index_negative": lambda x: x[..., -1],
    "index_slice": lambda x: x[:, 0:1],
    "index_step": lambda x: x[::2, 1::2],
    "index_none": lambda x: x[..., None],
    "index_list": lambda x: x[[0, 2]],
    "index_tensor": lambda x: x[:, INDEX],
    "index_tensors": lambda x: x[INDEX[:, :2], INDEX[:, 1:]],
    "index_separated": lambda x: x.unsqueeze(1)[INDEX[0], :, INDEX[1]],
    "index_ellipsis_tensor": lambda x: x[..., INDEX[0]],
    "index_mask": lambda x: x[MASK],
    "index_row_mask": lambda x: x[torch.tensor([True, False, True])],
    "select": lambda x: x.select(1, 2),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "index_select": lambda x: torch.index_select(x, 1, INDEX[0]),
    "gather": lambda x: torch.gather(x, 1, INDEX),
    "take_along_dim": lambda x: torch.take_along_dim(x, INDEX[:1].T, dim=0),
    "take_along_dim_negative": lambda x: torch.take_along_dim(x, INDEX[:1] - 2, dim=1),
    "tensordot_of_length_one": lambda x: TENSORDOT(x[:, :1], MATRIX, dims=([1], [0])),
    "embedding_with_padding": lambda x: F.embedding(INDEX, x, padding_idx=1),
    "prelu_of_a_number": lambda x: F.prelu(x[0, 0] - 2, torch.tensor([0.2], dtype=DOUBLE)),
    "rrelu": lambda x: F.rrelu(x - 0.2),
    "take": lambda x: torch.take(x, INDEX),
    "masked_select": lambda x: torch.masked_select(x, MASK),
    "masked_fill": lambda x: x.masked_fill(MASK, 2.0),
    "where": lambda x: torch.where(MASK, x, 2 * x + 1),
    "where_constant": lambda x: torch.where(MASK, rand(3, 4, seed=1), x),
    "where_number": lambda x: torch.where(MASK, x, 3.0),
    "where_method": lambda x: x.where(MASK, 0),
    "flip": lambda x: x.flip(0, 1),
    "roll": lambda x: torch.roll(x, 1, 0),
    "rot90": lambda x: torch.rot90(x),
    "tril": lambda x: x.tril(),
    "triu": lambda x: torch.triu(x, 1),
    "diagonal": lambda x: torch.diagonal(x),
    "diag": lambda x: torch.diag(x),
    "diag_embed": lambda x: torch.diag_embed(x),
    "trace": lambda x: torch.trace(x),
    "unfold": lambda x: x.unfold(1, 2, 1),
    "pad": lambda x: F.pad(x, (1, 2)),
    "pad_value": lambda x: F.pad(x, (1, 2, 0, 1), value=3.0),
    "pad_reflect": lambda x: F.pad(x, (1, 1), mode="reflect"),
    "fft": lambda x: torch.view_as_real(torch.fft.fft(x)),
    "rfft_round_trip": lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2, n=4),
    "fft2": lambda x: torch.fft.fft2(x).real,
    "scatter": lambda x: torch.scatter(rand(3, 4, seed=1), 1, torch.tensor([[0, 2, 1], [3, 1, 0]]), x[:2, :3]),
    "scatter_number": lambda x: x.scatter(1, INDEX, 2.0),
    "scatter_add": lambda x: torch.scatter_add(x, 1, INDEX, rand(2, 3, seed=1)),
    "index_add": lambda x: torch.index_add(x, 0, torch.tensor([0, 2]), x[:2]),
    "index_copy": lambda x: torch.index_copy(x, 0, torch.tensor([0, 2]), x[:2] * 2),
    "index_fill": lambda x: torch.index_fill(x, 0, torch.tensor([0, 2]), 2.0),
    "index_put": lambda x: torch.index_put(x, (torch.tensor([0, 2]),), VECTOR),
    "select_scatter": lambda x: torch.select_scatter(x, VECTOR, 0, 1),
    "slice_scatter": lambda x: torch.slice_scatter(x, x[:1], 0, 1, 2),
    "diagonal_scatter": lambda x: torch.diagonal_scatter(x, VECTOR[:3]),
    "masked_scatter": lambda x: torch.masked_scatter(x, MASK, MATRIX),
    "trapezoid": lambda x: torch.trapezoid(x, dim=1),
    "embedding": lambda x: F.embedding(INDEX, x),
    "add_number": lambda x: x + 2,
    "add_constant": lambda x: x + VECTOR,
    "add_constant_that_broadcasts": lambda x: x[0] + rand(2, 3, 4, seed=1),
    "add_jets_that_broadcast": lambda x: x[:, :1] + x[0],
    "add_alpha": lambda x: torch.add(x, VECTOR, alpha=3),
    "radd": lambda x: VECTOR + x,
    "sub": lambda x: x - VECTOR,
    "sub_jets": lambda x: torch.sub(x, x[0], alpha=2),
    "rsub": lambda x: 1 - x,
    "rsub_constant": lambda x: VECTOR - x,
    "torch_rsub": lambda x: torch.rsub(x, VECTOR, alpha=2),
    "mul_number": lambda x: 3 * x,
    "mul_constant": lambda x: VECTOR * x,
    "mul_constant_that_broadcasts": lambda x: x[0] * rand(2, 3, 4, seed=1),
    "div_number": lambda x: x / 3,
    "div_constant": lambda x: x / (VECTOR + 3),
    "neg": lambda x: -x,
    "pos": lambda x: +x,
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.T.contiguous(),
    "double": lambda x: x.double(),
    "dropout_eval": lambda x: F.dropout(x, 0.5, training=False),
    "avg_pool1d": lambda x: F.avg_pool1d(x, 2),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x, 2),
    "interpolate": lambda x: F.interpolate(x[None], scale_factor=2, mode="linear"),
    "prelu": lambda x: F.prelu(x - 0.5, torch.tensor([0.2], dtype=DOUBLE)),
    "bilinear_constant": lambda x: F.bilinear(x, rand(3, 2, seed=1), rand(5, 4, 2, seed=2), rand(5, seed=3)),
}


@pytest.mark.parametrize("f", MATRIX_CASES.values(), ids=MATRIX_CASES)
def test_linear_op(f: Callable[[Any], Any]) -> None:
    agrees(lambda x: f(torch.sin(x)), rand(3, 4, low=-1, high=1), 2)


# Applied to an image of shape (2, 4, 6, 6); one axis less or more of space where needed.
CONVOLUTIONS: dict[str, Callable[[Any], Any]] = {
    "conv1d": lambda x: F.conv1d(x[..., 0], rand(3, 4, 3, seed=1), rand(3, seed=2), stride=2, padding=1),
    "conv1d_unbatched": lambda x: F.conv1d(x[0, ..., 0], rand(3, 4, 3, seed=1)),
    "conv1d_same": lambda x: F.conv1d(x[..., 0], rand(3, 4, 3, seed=1), padding="same"),
    "conv2d": lambda x: F.conv2d(x, rand(3, 4, 3, 3, seed=1), rand(3, seed=2)),
    "conv2d_groups": lambda x: F.conv2d(x, rand(4, 2, 3, 3, seed=1), groups=2, dilation=2),
    "conv2d_weight": lambda x: F.conv2d(rand(1, 4, 7, 7, seed=1), x),
    "conv2d_both": lambda x: F.conv2d(x, x[:1, :, :3, :3]),
    "conv2d_bias": lambda x: F.conv2d(rand(1, 4, 7, 7, seed=1), rand(6, 4, 3, 3, seed=2), x[0, 0, 0]),
    "conv3d": lambda x: F.conv3d(x[:, None], rand(2, 1, 2, 2, 2, seed=1)),
    "conv_transpose1d": lambda x: F.conv_transpose1d(x[..., 0], rand(4, 2, 3, seed=1), rand(2, seed=2), stride=2),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x, rand(4, 2, 3, 3, seed=1), rand(2, seed=2)),
    "conv_transpose3d": lambda x: F.conv_transpose3d(x[:, None], rand(1, 2, 2, 2, 2, seed=1)),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 3),
    "max_pool1d": lambda x: F.max_pool1d(x[..., 0], 2),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "max_pool2d_unbatched": lambda x: F.max_pool2d(x[0], 2, return_indices=True)[0],
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "interpolate": lambda x: F.interpolate(x, size=(3, 3), mode="bilinear"),
    "unfold": lambda x: F.unfold(x, 2),
}


@pytest.mark.parametrize("f", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_or_pooling(f: Callable[[Any], Any]) -> None:
    agrees(lambda x: f(torch.sin(x)), rand(2, 4, 6, 6, low=-1, high=1), 2)


def test_zero_dimensional_values() -> None:
    for f in (
        lambda x: x.sum(0),
        lambda x: x.reshape(1),
        lambda x: x.flatten(),
        lambda x: x.cumsum(0),
        lambda x: x.gather(0, torch.tensor(0)),
        lambda x: x.unsqueeze(0),
        lambda x: x.squeeze(),
        lambda x: x[None],
        lambda x: x.mean(),
        lambda x: x.max(0).values,
        lambda x: x.softmax(0),
        lambda x: x * torch.ones(2, dtype=DOUBLE),
    ):
        agrees(lambda x, f=f: f(torch.sin(x)), torch.tensor(0.7, dtype=DOUBLE), 2)


def test_empty_values() -> None:
    x = torch.zeros(0, 3, dtype=DOUBLE)
    agrees(lambda x: torch.tanh(F.linear(x, MATRIX)).sum(0), x, 2)
    agrees(lambda x: torch.cat([x, x.sin()]).reshape(-1, 3), x, 2)


def test_wrong_axis_is_an_index_error() -> None:
    from taylorderiv import Jet

    x = Jet.variable(rand(3, 4), 2)
    for f in (lambda: x.sum(2), lambda: x.transpose(0, 2), lambda: x.unsqueeze(3), lambda: x.cumsum(-3)):
        with pytest.raises(IndexError, match="Dimension out of range"):
            f()


def test_trapezoids_between_points_that_move() -> None:
    x = rand(3, 4)
    agrees(lambda x: torch.trapezoid(x.sin(), x, dim=1), x)
    agrees(lambda x: torch.trapezoid(x.sin(), x[:, 0], dim=0), x)
    agrees(lambda x: torch.cumulative_trapezoid(rand(3, 4, seed=1), x), x)
    agrees(lambda x: torch.trapz(x**2, dx=0.5, dim=0), x)


def test_no_differences_are_the_value_itself() -> None:
    x = rand(3)
    torch.testing.assert_close(derivatives(lambda x: torch.diff(x, 0, prepend=x), x, 1)[0], x)
    assert derivatives(torch.diff, torch.zeros(0), 1)[1].shape == (0,)


@pytest.mark.parametrize("scatter", [torch.scatter, torch.scatter_add])
def test_scattering_from_a_source_larger_than_the_index(scatter: Any) -> None:
    """PyTorch has the value, but no gradient of it."""
    index = torch.tensor([[0, 2]])
    agrees(
        lambda x: scatter(x, 1, index, x.sin()) ** 2,
        rand(2, 3),
        equivalent=lambda x: scatter(x, 1, index, x[:1, :2].sin()) ** 2,
    )


def test_scattering_to_one_index() -> None:
    agrees(lambda x: torch.select_scatter(x**2, x[:, 0].sin(), 1, -1), rand(3, 4))
    agrees(lambda x: torch.select_scatter(rand(3, 4, seed=1), x[0], 0, 2), rand(3, 4))


def test_rolling_a_number() -> None:
    x = rand()
    torch.testing.assert_close(derivatives(lambda x: torch.roll(x**2, 1), x, 1), (x**2, 2 * x))
    torch.testing.assert_close(derivatives(lambda x: torch.roll(x**2, 1, 0), x, 1), (x**2, 2 * x))


def test_axes_of_a_number() -> None:
    x = rand()
    for f in (lambda x: x.flip(0), lambda x: x.cumsum(0), lambda x: torch.diff(x[None]), lambda x: x.tile(2)):
        torch.testing.assert_close(derivatives(f, x, 1)[1], f(torch.ones_like(x)))
