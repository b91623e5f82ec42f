"""Linear ops: applied to all coefficients at once; a constant term touches the primal only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from taylorderiv import chain, registry
from taylorderiv.registry import register
from taylorderiv.rules.engine import (
    AnyJet,
    add_to_primal,
    align,
    bilinear,
    cast,
    check_same_device,
    coefficientwise,
    first_jet,
    is_jet,
    is_tensor,
    lift,
    promote,
    shift_dims,
    wrap_dim,
)

# Sums and differences.


@register("add")
def _add(input: Any, other: Any, *, alpha: Any = 1) -> AnyJet:
    input, other = promote(input, other)
    if alpha != 1:
        other = other * alpha
    if is_jet(input) and is_jet(other):
        ndim = max(input.ndim, other.ndim)
        return input.with_coefficients(align(input.coefficients, ndim) + align(other.coefficients, ndim))
    jet, constant = (input, other) if is_jet(input) else (other, input)
    return jet.with_coefficients(add_to_primal(jet.coefficients, constant))


@register("sub", "subtract")
def _sub(input: Any, other: Any, *, alpha: Any = 1) -> AnyJet:
    if isinstance(input, bool) or isinstance(other, bool):
        raise RuntimeError("Subtraction, the `-` operator, with a bool tensor is not supported.")
    input, other = promote(input, other)
    if is_jet(input) and is_jet(other):
        ndim = max(input.ndim, other.ndim)
        difference = torch.sub(align(input.coefficients, ndim), align(other.coefficients, ndim), alpha=alpha)
        return input.with_coefficients(difference)
    if is_jet(other):
        negative = other.with_coefficients(other.coefficients * -alpha)
        return negative.with_coefficients(add_to_primal(negative.coefficients, input))
    return input.with_coefficients(add_to_primal(input.coefficients, other * -alpha))


@register("rsub")
def _rsub(input: Any, other: Any, alpha: Any = 1) -> AnyJet:
    return _sub(other, input, alpha=alpha)


@register("sum")
def _sum(input: AnyJet, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> AnyJet:
    dims = shift_dims(dim, input.ndim)
    c = cast(input, dtype).coefficients
    return input.with_coefficients(c.sum(dims, keepdim=keepdim) if dims else c)


@register("mean")
def _mean(input: AnyJet, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> AnyJet:
    dims = shift_dims(dim, input.ndim)
    c = cast(input, dtype).coefficients
    return input.with_coefficients(c.mean(dims, keepdim=keepdim) if dims else c)


@register("sum_to_size")
def _sum_to_size(input: AnyJet, *size: Any) -> AnyJet:
    size = tuple(size[0]) if len(size) == 1 and isinstance(size[0], (tuple, list)) else size
    leading = input.ndim - len(size)
    dims = [*range(leading), *[d + leading for d, n in enumerate(size) if n == 1 != input.shape[d + leading]]]
    return (input.sum(dims, keepdim=True) if dims else input).reshape(size)


def _nan_to_zero(input: AnyJet) -> AnyJet:
    return torch.where(input.primal.isnan(), 0.0, input)


@register("nansum")
def _nansum(input: AnyJet, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> AnyJet:
    return _sum(_nan_to_zero(input), dim, keepdim, dtype=dtype)


@register("nanmean")
def _nanmean(input: AnyJet, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> AnyJet:
    dims = tuple(d - 1 for d in shift_dims(dim, input.ndim))
    counts = (~input.primal.isnan()).sum(dims, keepdim=keepdim) if dims else ~input.primal.isnan()
    return _nansum(input, dim, keepdim, dtype=dtype) / counts


@register("cumsum")
def _cumsum(input: AnyJet, dim: int, *, dtype: torch.dtype | None = None) -> AnyJet:
    if input.ndim == 0:
        return input
    return input.with_coefficients(cast(input, dtype).coefficients.cumsum(wrap_dim(dim, input.ndim) + 1))


@register("diff")
def _diff(input: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    joined = [part for part in (prepend, input, append) if part is not None and n > 0]
    result = torch.cat(joined, dim) if len(joined) > 1 else input
    for _ in range(n):
        length = max(result.shape[dim] - 1, 0)
        result = result.narrow(dim, min(1, result.shape[dim]), length) - result.narrow(dim, 0, length)
    return result


def _panels(y: Any, x: Any, dx: float, dim: int) -> AnyJet:
    """The areas between neighbouring points."""
    axis = wrap_dim(dim, y.ndim)
    length = max(y.shape[axis] - 1, 0)
    steps: Any = dx
    if x is not None and x.ndim == 1:
        steps = _diff(x).reshape([-1, *[1] * (y.ndim - 1 - axis)])
    elif x is not None:
        steps = _diff(x, dim=axis - y.ndim)
    return (y.narrow(axis, min(1, y.shape[axis]), length) + y.narrow(axis, 0, length)) * steps * 0.5


@register("trapezoid", "trapz")
def _trapezoid(y: Any, x: Any = None, *, dx: float = 1, dim: int = -1) -> AnyJet:
    return _panels(y, x, dx, dim).sum(dim)


@register("cumulative_trapezoid")
def _cumulative_trapezoid(y: Any, x: Any = None, *, dx: float = 1, dim: int = -1) -> AnyJet:
    return _panels(y, x, dx, dim).cumsum(dim)


# Affine maps. `addmm` and its like are in bilinear.py.


def _check_linear(input: AnyJet, weight: Any, bias: Any) -> None:
    # What reaches PyTorch are the coefficients, whose shape a user doesn't know; nor does PyTorch see all of this.
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None or is_jet(value):
            continue
        check_same_device("linear", input, value, name)
        if value.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
            raise TypeError(f"linear: {name} has dtype {value.dtype}, expected {input.dtype} as that of its input")
    if input.ndim and weight.ndim and input.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear: the input has shape {tuple(input.shape)}, expected (…, {weight.shape[-1]}) for a weight of shape"
            f" {tuple(weight.shape)}"
        )


@register("linear")
def _linear(input: Any, weight: Any, bias: Any = None) -> AnyJet:
    if is_jet(weight) or not is_jet(input):
        product = torch.matmul(input, weight.transpose(-1, -2) if weight.ndim > 1 else weight)
        return product if bias is None else product + bias
    value = chain.linear(input.value, weight, bias)
    if value is not None:
        return input.with_value(value)
    _check_linear(input, weight, bias)
    c = input.coefficients
    out = F.linear(c, weight)
    if bias is None:
        return input.with_coefficients(out)
    if is_jet(bias):
        return input.with_coefficients(out) + bias
    bias = bias.to(out.dtype)  # autocast computes in another dtype
    if bias.ndim != 1 or len(out) == 1:
        return input.with_coefficients(add_to_primal(out, bias))
    # With zeros for the other coefficients: the gradient of a slice would be as large as all of them.
    padded = torch.cat([bias[None], bias.new_zeros(len(out) - 1, len(bias))])
    padded = padded.reshape(len(out), *[1] * (out.ndim - 2), len(bias))
    in_place = not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())
    return input.with_coefficients(out.add_(padded) if in_place else out + padded)


def _batched_convolution(
    convolve: Callable[[Any, Any], Any], spatial: int, input: Any, weight: Any, bias: Any
) -> AnyJet:
    """A convolution, ``convolve(input, weight)``, and a bias; C is folded into the batch of the input."""
    if is_jet(weight):
        if is_jet(input):
            result = bilinear(convolve, input, weight)
        else:
            result = coefficientwise(lambda w: convolve(input, w), weight)
    elif is_jet(input):
        c = input.coefficients
        folded = c.reshape(-1, *c.shape[-spatial - 1 :])
        out = convolve(folded, weight)
        result = input.with_coefficients(out.reshape(*c.shape[: -spatial - 1], *out.shape[1:]))
    else:
        return convolve(input, weight) + bias.reshape(-1, *[1] * spatial)
    return result if bias is None else result + bias.reshape(-1, *[1] * spatial).to(result.dtype)


def _convolution_rule(func: Callable[..., Any], spatial: int) -> registry.Rule:
    def rule(input: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> AnyJet:
        if input.ndim not in (spatial + 1, spatial + 2):
            raise RuntimeError(f"expected a {spatial + 1}D or {spatial + 2}D input, got shape {tuple(input.shape)}")
        return _batched_convolution(lambda x, w: func(x, w, None, *args, **kwargs), spatial, input, weight, bias)

    return rule


for _spatial, _convolutions in enumerate(
    ((F.conv1d, F.conv_transpose1d), (F.conv2d, F.conv_transpose2d), (F.conv3d, F.conv_transpose3d)), start=1
):
    for _convolution in _convolutions:
        register(_convolution)(_convolution_rule(_convolution, _spatial))


@register("convolution")
def _aten_convolution(input: Any, weight: Any, bias: Any, *args: Any) -> AnyJet:
    def convolve(x: Any, w: Any) -> Any:
        return torch.ops.aten.convolution(x, w, None, *args)

    return _batched_convolution(convolve, weight.ndim - 2, input, weight, bias)


# Linear functions of their first argument: nothing more to say about them.

_LINEAR_IN_FIRST = (
    torch.rot90,
    torch.flip,
    torch.fliplr,
    torch.flipud,
    torch.tril,
    torch.triu,
    torch.trace,
    torch.diag,
    torch.diag_embed,
    torch.diagflat,
    torch.diagonal,
    torch.diagonal_copy,
    torch.Tensor.repeat,
    torch.tile,
    torch.repeat_interleave,
    torch.Tensor.unfold,
    torch.unfold_copy,
    torch.nn.functional.fold,
    torch.nn.functional.unfold,
    torch.ops.aten.im2col,
    torch.ops.aten.col2im,
    torch.pixel_shuffle,
    torch.pixel_unshuffle,
    torch.channel_shuffle,
    torch.avg_pool1d,
    torch.ops.aten.avg_pool2d,
    torch.ops.aten.avg_pool3d,
    torch.adaptive_avg_pool1d,
    torch.ops.aten.adaptive_avg_pool2d,
    torch.ops.aten._adaptive_avg_pool2d,
    torch.ops.aten.adaptive_avg_pool3d,
    torch.ops.aten._adaptive_avg_pool3d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
    torch.ops.aten.reflection_pad1d,
    torch.ops.aten.reflection_pad2d,
    torch.ops.aten.reflection_pad3d,
    torch.ops.aten.replication_pad1d,
    torch.ops.aten.replication_pad2d,
    torch.ops.aten.replication_pad3d,
    F.interpolate,
    torch.ops.aten.upsample_nearest1d,
    torch.ops.aten.upsample_nearest2d,
    torch.ops.aten.upsample_nearest3d,
    torch.ops.aten.upsample_linear1d,
    torch.ops.aten.upsample_bilinear2d,
    torch.ops.aten.upsample_bicubic2d,
    torch.ops.aten.upsample_trilinear3d,
    torch.gradient,
    torch.fft.fft,
    torch.fft.ifft,
    torch.fft.rfft,
    torch.fft.irfft,
    torch.fft.hfft,
    torch.fft.ihfft,
    torch.fft.fft2,
    torch.fft.ifft2,
    torch.fft.rfft2,
    torch.fft.irfft2,
    torch.fft.hfft2,
    torch.fft.ihfft2,
    torch.fft.fftn,
    torch.fft.ifftn,
    torch.fft.rfftn,
    torch.fft.irfftn,
    torch.fft.hfftn,
    torch.fft.ihfftn,
    torch.fft.fftshift,
    torch.fft.ifftshift,
    torch.ops.aten._fft_r2c,
    torch.ops.aten._fft_c2r,
    torch.ops.aten._fft_c2c,
    torch.ops.aten.select_backward,
    torch.ops.aten.slice_backward,
)


def _linear_rule(func: Callable[..., Any]) -> registry.Rule:
    name = registry.canonical(func)
    # The method, where there is one, also takes sizes and axes one by one.
    func = getattr(torch.Tensor, name, func)

    def rule(input: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_jet(input) or any(is_jet(value) for value in (*args, *kwargs.values())):
            raise registry.missing_rule(name, "it is only known for a jet as its first argument")
        return coefficientwise(func, input, *args, **kwargs)

    return rule


for _func in _LINEAR_IN_FIRST:
    register(_func)(_linear_rule(_func))


# Linear in several arguments at once: those at these places, which are tensors.

_LINEAR_IN_SEVERAL: dict[Callable[..., Any], tuple[int, ...]] = {
    torch.scatter: (0, 3),
    torch.scatter_add: (0, 3),
    torch.index_add: (0, 3),
    torch.index_copy: (0, 3),
    torch.slice_scatter: (0, 1),
    torch.diagonal_scatter: (0, 1),
    torch.index_fill: (0, 3),
}


def _jointly_linear_rule(func: Callable[..., Any], places: tuple[int, ...]) -> registry.Rule:
    name = registry.canonical(func)
    signature = _SIGNATURES.get(func, ("input", "dim", "index", "src"))

    def rule(*args: Any, **kwargs: Any) -> Any:
        filled = list(args) + [kwargs.pop(key) for key in signature[len(args) :] if key in kwargs]
        like = first_jet(filled)
        if any(is_jet(value) for i, value in enumerate(filled) if i not in places) or "reduce" in kwargs:
            raise registry.missing_rule(name, "it is only known as a linear function")
        for place in places:
            if not is_tensor(filled[place]):  # A number: written as such into the primal, as 0 elsewhere.
                filled[place] = torch.full((), filled[place], dtype=like.dtype, device=like.device)
                filled[place] = filled[place].expand(filled[2].shape) if func is torch.scatter else filled[place]
            if not is_jet(filled[place]):
                filled[place] = lift([cast(filled[place], like.dtype)], like)[0][0]
        if func in (torch.scatter, torch.scatter_add):  # Their backward expects a source as large as the index.
            filled[3] = filled[3][tuple(slice(size) for size in filled[2].shape)]
        return coefficientwise(func, *filled, **kwargs)

    return rule


_SIGNATURES: dict[Callable[..., Any], tuple[str, ...]] = {
    torch.index_add: ("input", "dim", "index", "source"),
    torch.index_copy: ("input", "dim", "index", "source"),
    torch.index_fill: ("input", "dim", "index", "value"),
    torch.slice_scatter: ("input", "src"),
    torch.diagonal_scatter: ("input", "src"),
}

for _func, _places in _LINEAR_IN_SEVERAL.items():
    register(_func)(_jointly_linear_rule(_func, _places))


# torch.vmap gets these two wrong: the first for 0-dimensional values, the second in its gradient.


@register("roll")
def _roll(input: AnyJet, shifts: Any, dims: Any = ()) -> AnyJet:
    if input.ndim == 0:
        return input.clone()
    if dims in ((), None):
        return input.with_coefficients(input.coefficients.flatten(1).roll(shifts, 1).reshape(input.coefficients.shape))
    return input.with_coefficients(input.coefficients.roll(shifts, shift_dims(dims, input.ndim)))


@register("select_scatter")
def _select_scatter(input: Any, src: Any, dim: int, index: int) -> AnyJet:
    (base, source), like = lift((input, cast(src, input.dtype)))
    axis = wrap_dim(dim, input.ndim) + 1
    return like.with_coefficients(torch.select_scatter(base.coefficients, source.coefficients, axis, index))


@register("index_put", "_index_put_impl", "_unsafe_index_put")
def _index_put(
    input: Any, indices: Sequence[Any], values: Any, accumulate: bool = False, unsafe: bool = False
) -> AnyJet:
    (base, values), _ = lift((input, cast(values, input.dtype)))
    return coefficientwise(lambda b, v: torch.ops.aten.index_put(b, indices, v, accumulate), base, values)


@register("constant_pad_nd", "nn.functional.pad", "pad")
def _pad(input: AnyJet, pad: Sequence[int], mode: str = "constant", value: Any = None) -> AnyJet:
    if not isinstance(mode, str):  # constant_pad_nd(input, pad, value)
        mode, value = "constant", mode
    if mode != "constant":
        return coefficientwise(F.pad, input, pad, mode)
    padded = F.pad(input.coefficients, list(pad))
    if not value:
        return input.with_coefficients(padded)
    inside = F.pad(torch.ones(input.shape, dtype=torch.bool, device=input.device), list(pad))
    return torch.where(inside, input.with_coefficients(padded), value)


@register("block_diag")
def _block_diag(*tensors: Any) -> AnyJet:
    operands, _ = lift(promote(*tensors))
    return coefficientwise(torch.block_diag, *operands)


@register("meshgrid")
def _meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Any, ...]:
    operands = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    sizes = [math.prod(t.shape) for t in operands]
    grids = []
    for place, operand in enumerate(operands):
        shape = [1] * len(operands)
        shape[place] = sizes[place]
        grid = operand.reshape(shape).expand(sizes)
        grids.append(grid.transpose(0, 1) if indexing == "xy" and len(operands) > 1 else grid)
    return tuple(grids)
