"""Ops that rearrange elements: on coefficients ``(C, *shape)`` the same op with every axis one further."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from taylorderiv.jet import check_writable
from taylorderiv.registry import register
from taylorderiv.rules.engine import (
    AnyJet,
    align,
    cast,
    coefficientwise,
    is_jet,
    is_tensor,
    lift,
    plain,
    promote,
    result_dtype,
    shift_dims,
    wrap_dim,
)


def _sizes(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The sizes in ``f(2, 3)`` and in ``f((2, 3))``."""
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else args


@register("reshape", "view", "_unsafe_view", "view_copy", "_reshape_alias")
def _reshape(input: AnyJet, *shape: Any, **kwargs: Any) -> AnyJet:
    sizes = _sizes(shape) or tuple(kwargs.get("shape") or kwargs.get("size") or ())
    if len(sizes) == 1 and isinstance(sizes[0], torch.dtype):
        raise NotImplementedError("a jet can't be viewed as another dtype; use .to(dtype)")
    if -1 in sizes and input.numel() > 0:
        known = -1
        for size in sizes:
            known *= size
        sizes = tuple(input.numel() // known if size == -1 else size for size in sizes)
    return input.with_coefficients(input.coefficients.reshape(input.coefficients.shape[0], *sizes))


@register("view_as", "reshape_as")
def _reshape_as(input: Any, other: Any) -> Any:
    return input.reshape(other.shape)


@register("flatten", "ravel")
def _flatten(input: AnyJet, start_dim: int = 0, end_dim: int = -1) -> AnyJet:
    if input.ndim == 0:
        return input.reshape(1)
    start, end = wrap_dim(start_dim, input.ndim), wrap_dim(end_dim, input.ndim)
    return input.with_coefficients(input.coefficients.flatten(start + 1, end + 1))


@register("unflatten")
def _unflatten(input: AnyJet, dim: int, sizes: Sequence[int]) -> AnyJet:
    return input.with_coefficients(input.coefficients.unflatten(wrap_dim(dim, input.ndim) + 1, sizes))


@register("permute", "permute_copy")
def _permute(input: AnyJet, *dims: Any, **kwargs: Any) -> AnyJet:
    order = _sizes(dims) or kwargs.get("dims", ())
    if len(order) != input.ndim:
        raise RuntimeError(f"permute: got {len(order)} dims for a jet of {input.ndim} dims")
    return input.with_coefficients(input.coefficients.permute(0, *[wrap_dim(d, input.ndim) + 1 for d in order]))


@register("transpose", "swapaxes", "swapdims", "transpose_copy")
def _transpose(input: AnyJet, dim0: int, dim1: int) -> AnyJet:
    if input.ndim == 0:
        return input
    a, b = wrap_dim(dim0, input.ndim), wrap_dim(dim1, input.ndim)
    return input.with_coefficients(input.coefficients.transpose(a + 1, b + 1))


@register("t", "t_copy")
def _t(input: AnyJet) -> AnyJet:
    if input.ndim > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {input.ndim}D")
    return input if input.ndim < 2 else _transpose(input, 0, 1)


@register("adjoint")
def _adjoint(input: AnyJet) -> AnyJet:
    return input.transpose(-2, -1).conj()


@register("movedim", "moveaxis")
def _movedim(input: AnyJet, source: int | Sequence[int], destination: int | Sequence[int]) -> AnyJet:
    moved = input.coefficients.movedim(shift_dims(source, input.ndim), shift_dims(destination, input.ndim))
    return input.with_coefficients(moved)


@register("squeeze", "squeeze_copy")
def _squeeze(input: AnyJet, dim: int | Sequence[int] | None = None) -> AnyJet:
    if dim is None:
        return input.reshape(tuple(size for size in input.shape if size != 1))
    return input.with_coefficients(input.coefficients.squeeze(shift_dims(dim, input.ndim) if dim != () else ()))


@register("unsqueeze", "unsqueeze_copy")
def _unsqueeze(input: AnyJet, dim: int) -> AnyJet:
    return input.with_coefficients(input.coefficients.unsqueeze(wrap_dim(dim, input.ndim + 1) + 1))


@register("expand", "broadcast_to", "expand_copy")
def _expand(input: AnyJet, *sizes: Any, implicit: bool = False, **kwargs: Any) -> AnyJet:
    sizes = _sizes(sizes) or tuple(kwargs.get("size", ()))
    return input.with_coefficients(align(input.coefficients, len(sizes)).expand(-1, *sizes))


@register("expand_as")
def _expand_as(input: Any, other: Any) -> Any:
    return input.expand(other.shape)


@register("broadcast_tensors")
def _broadcast_tensors(*tensors: Any) -> tuple[Any, ...]:
    operands = _sizes(tensors)
    shape = torch.broadcast_shapes(*[t.shape for t in operands])
    return tuple(t.expand(shape) for t in operands)


def _atleast(func: Callable[..., Any]) -> Callable[..., Any]:
    def rule(*tensors: Any) -> Any:
        operands = _sizes(tensors)
        results = tuple(t.reshape(func(plain(t)).shape) for t in operands)
        return results[0] if len(tensors) == 1 and is_tensor(tensors[0]) else results

    return rule


for _func in (torch.atleast_1d, torch.atleast_2d, torch.atleast_3d):
    register(_func)(_atleast(_func))


# Joining and splitting.


@register("cat", "concat", "concatenate")
def _cat(tensors: Sequence[Any], dim: int = 0) -> AnyJet:
    operands, like = lift(promote(*tensors))
    # torch.cat leaves out empty 1-dimensional tensors whatever the shape of the others.
    if any(t.ndim != 1 for t in operands):
        operands = [t for t in operands if t.shape != (0,)]
    axis = wrap_dim(dim, operands[0].ndim) + 1
    return like.with_coefficients(torch.cat([t.coefficients for t in operands], axis))


@register("stack")
def _stack(tensors: Sequence[Any], dim: int = 0) -> AnyJet:
    operands, like = lift(promote(*tensors))
    axis = wrap_dim(dim, operands[0].ndim + 1) + 1
    return like.with_coefficients(torch.stack([t.coefficients for t in operands], axis))


def _joining(prepare: Callable[[Any], Any], axis: Callable[[Any], int]) -> Callable[..., Any]:
    def rule(tensors: Sequence[Any]) -> Any:
        operands = [prepare(t) for t in tensors]
        return torch.cat(operands, axis(operands[0]))

    return rule


register("hstack")(_joining(torch.atleast_1d, lambda t: 0 if t.ndim == 1 else 1))
register("vstack", "row_stack")(_joining(torch.atleast_2d, lambda t: 0))
register("dstack")(_joining(torch.atleast_3d, lambda t: 2))
register("column_stack")(_joining(lambda t: t.reshape(-1, 1) if t.ndim <= 1 else t, lambda t: 1))


def _split_by(method: str) -> Callable[..., Any]:
    def rule(input: AnyJet, sections: Any = None, dim: int = 0, **kwargs: Any) -> tuple[AnyJet, ...]:
        # Each of these functions has another name for its second argument.
        (sections,) = kwargs.values() if kwargs else (sections,)
        parts = getattr(input.coefficients, method)(sections, dim=wrap_dim(dim, input.ndim) + 1)
        return tuple(input.with_coefficients(part) for part in parts)

    return rule


register("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")(_split_by("split"))
register("chunk", "unsafe_chunk")(_split_by("chunk"))
register("tensor_split")(_split_by("tensor_split"))


def _split_along(dim_of: Callable[[int], int]) -> Callable[..., Any]:
    def rule(input: AnyJet, *args: Any, **kwargs: Any) -> tuple[AnyJet, ...]:
        (sections,) = (*args, *kwargs.values())
        return input.tensor_split(sections, dim=dim_of(input.ndim))

    return rule


register("hsplit")(_split_along(lambda ndim: 0 if ndim == 1 else 1))
register("vsplit")(_split_along(lambda ndim: 0))
register("dsplit")(_split_along(lambda ndim: 2))


@register("unbind", "unbind_copy")
def _unbind(input: AnyJet, dim: int = 0) -> tuple[AnyJet, ...]:
    parts = input.coefficients.unbind(wrap_dim(dim, input.ndim) + 1)
    return tuple(input.with_coefficients(part) for part in parts)


# Selecting.


@register("__getitem__")
def _getitem(input: Any, index: Any) -> Any:
    if not is_jet(input) or any(is_jet(i) for i in (index if isinstance(index, tuple) else (index,))):
        raise TypeError("a jet can't be an index")
    return input.with_coefficients(_indexed(input.coefficients, index))


def _indexed(coefficients: Any, index: Any) -> Any:
    items = index if isinstance(index, tuple) else (index,)
    if all(i is None or i is Ellipsis or (isinstance(i, (int, slice)) and not isinstance(i, bool)) for i in items):
        return coefficients[(slice(None), *items)]
    # Index tensors may move their axes to the front: keep C out of their way, at the end.
    return coefficients.movedim(0, -1)[_from_the_front(items)].movedim(-1, 0)


def _from_the_front(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """The index for a tensor with one more axis behind."""
    return (*items, slice(None)) if any(i is Ellipsis for i in items) else items


@register("__setitem__")
def _setitem(input: Any, index: Any, value: Any) -> None:
    check_writable(input, "__setitem__")
    items = index if isinstance(index, tuple) else (index,)
    coefficients = input.coefficients.clone()
    if is_tensor(value):
        (value,) = lift((cast(value, input.dtype),), input)[0]
    if not is_jet(value):
        coefficients.movedim(0, -1)[_from_the_front(items)] = 0
        coefficients[0][items] = value
    else:
        target = coefficients.movedim(0, -1)[_from_the_front(items)]
        source = align(value.coefficients, target.ndim - 1).movedim(0, -1)
        coefficients.movedim(0, -1)[_from_the_front(items)] = source
    input.rebind(coefficients)


@register("select", "select_copy")
def _select(input: AnyJet, dim: int, index: int) -> AnyJet:
    return input.with_coefficients(input.coefficients.select(wrap_dim(dim, input.ndim) + 1, index))


@register("slice", "slice_copy")
def _slice(input: AnyJet, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> AnyJet:
    index = (slice(None),) * (wrap_dim(dim, input.ndim) + 1)
    return input.with_coefficients(input.coefficients[(*index, slice(start, end, step))])


@register("narrow", "narrow_copy")
def _narrow(input: AnyJet, dim: int, start: Any, length: int) -> AnyJet:
    return input.with_coefficients(input.coefficients.narrow(wrap_dim(dim, input.ndim) + 1, start, length))


@register("index_select")
def _index_select(input: AnyJet, dim: int, index: Any) -> AnyJet:
    if input.ndim == 0:
        return coefficientwise(torch.index_select, input, dim, index)
    return input.with_coefficients(torch.index_select(input.coefficients, wrap_dim(dim, input.ndim) + 1, index))


@register("gather")
def _gather(input: AnyJet, dim: int, index: Any, *, sparse_grad: bool = False) -> AnyJet:
    if input.ndim == 0:
        return coefficientwise(torch.gather, input, dim, index)
    c = input.coefficients
    whole = index.expand(c.shape[0], *index.shape)
    return input.with_coefficients(torch.gather(c, wrap_dim(dim, input.ndim) + 1, whole))


@register("take_along_dim")
def _take_along_dim(input: AnyJet, indices: Any, dim: int | None = None) -> AnyJet:
    if dim is None:
        return _take(input, indices.reshape(-1))
    axis = wrap_dim(dim, input.ndim)
    others = [(*x.shape[:axis], 1, *x.shape[axis + 1 :]) for x in (input, indices)]
    sizes = list(torch.broadcast_shapes(*others))
    sizes[axis] = -1
    indices = torch.where(indices < 0, indices + input.shape[axis], indices)
    return input.expand(sizes).gather(axis, indices.expand(sizes))


@register("take")
def _take(input: AnyJet, index: Any) -> AnyJet:
    return input.reshape(-1)[index]


@register("masked_select")
def _masked_select(input: AnyJet, mask: Any) -> AnyJet:
    shape = torch.broadcast_shapes(input.shape, mask.shape)
    return input.expand(shape)[mask.expand(shape)]


@register("index")
def _index(input: AnyJet, indices: Sequence[Any]) -> AnyJet:
    return input[tuple(slice(None) if i is None else i for i in indices)]


@register(F.embedding)
def _embedding(
    input: Any,
    weight: AnyJet,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> AnyJet:
    if max_norm is not None:
        raise NotImplementedError("embedding with max_norm writes into its weight, which is a jet here")
    rows = weight[input]
    if padding_idx is None:
        return rows
    # The row of the padding counts as constant, as in PyTorch.
    padding = (input == padding_idx % weight.shape[0]).unsqueeze(-1)
    return torch.where(padding, rows.primal.detach(), rows)


@register("embedding")
def _aten_embedding(weight: AnyJet, indices: Any, padding_idx: int = -1, *_: bool) -> AnyJet:
    return _embedding(indices, weight, None if padding_idx < 0 else padding_idx)


# Copies and conversions.


@register("clone")
def _clone(input: AnyJet, *, memory_format: Any = None) -> AnyJet:
    return input.with_coefficients(input.coefficients.clone())


@register("positive", "resolve_conj", "resolve_neg")
def _itself(input: AnyJet) -> AnyJet:
    return input


@register("alias", "lift_fresh")
def _alias(input: AnyJet) -> AnyJet:
    return input.with_coefficients(input.coefficients)


@register("conj", "conj_physical", "_conj", "_conj_physical")
def _conj(input: AnyJet) -> AnyJet:
    return input.with_coefficients(input.coefficients.conj()) if input.is_complex() else input


@register("real")
def _real(input: AnyJet) -> AnyJet:
    return input.with_coefficients(input.coefficients.real) if input.is_complex() else input


@register("imag")
def _imag(input: AnyJet) -> AnyJet:
    return input.with_coefficients(input.coefficients.imag)


@register("view_as_real", "view_as_real_copy")
def _view_as_real(input: AnyJet) -> AnyJet:
    return input.with_coefficients(torch.view_as_real(input.coefficients))


@register("view_as_complex", "view_as_complex_copy")
def _view_as_complex(input: AnyJet) -> AnyJet:
    return input.with_coefficients(torch.view_as_complex(input.coefficients))


@register("detach")
def _detach(input: AnyJet) -> Any:
    # What is detached has no derivative: the primal, as a constant.
    return input.primal.detach()


def _converted(input: AnyJet, dtype: torch.dtype | None = None, device: Any = None) -> Any:
    target: torch.dtype = input.dtype if dtype is None else dtype
    if not (target.is_floating_point or target.is_complex):
        return input.primal.to(device=device, dtype=target)  # Rounded to integers: constant.
    coefficients = input.coefficients.to(device=device, dtype=target)
    return input if coefficients is input.coefficients else input.with_coefficients(coefficients)


@register("to")
def _to(input: Any, *args: Any, **kwargs: Any) -> Any:
    dtype, device = kwargs.get("dtype"), kwargs.get("device")
    for arg in (*args, *([kwargs["other"]] if "other" in kwargs else [])):
        if isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, (str, torch.device)):
            device = arg
        elif is_tensor(arg):
            dtype, device = arg.dtype, arg.device
    if not is_jet(input):
        return input.to(device=device, dtype=dtype)
    return _converted(input, dtype, device)


@register("_to_copy")
def _to_copy(input: AnyJet, *, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Any:
    return _converted(input, dtype, device)


@register("type_as")
def _type_as(input: Any, other: Any) -> Any:
    return input.to(other.dtype)


@register("type")
def _type(input: AnyJet, dtype: torch.dtype | None = None, non_blocking: bool = False) -> Any:
    if not isinstance(dtype, torch.dtype):
        raise TypeError("type() of a jet needs a torch.dtype")
    return _converted(input, dtype)


def _conversion(dtype: torch.dtype) -> Callable[..., Any]:
    def rule(input: AnyJet, memory_format: Any = None) -> Any:
        return _converted(input, dtype)

    return rule


for _name, _dtype in {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
    "cfloat": torch.complex64, "cdouble": torch.complex128, "bool": torch.bool, "byte": torch.uint8,
    "char": torch.int8, "short": torch.int16, "int": torch.int32, "long": torch.int64,
}.items():  # fmt: skip
    register(_name)(_conversion(_dtype))


@register("cpu")
def _cpu(input: AnyJet, memory_format: Any = None) -> AnyJet:
    return _converted(input, device="cpu")


@register("cuda")
def _cuda(input: AnyJet, device: Any = None, non_blocking: bool = False, memory_format: Any = None) -> AnyJet:
    return _converted(input, device="cuda" if device is None else device)


@register("complex")
def _complex(real: Any, imag: Any) -> AnyJet:
    dtype = result_dtype(real, imag)
    operands, like = lift((cast(real, dtype), cast(imag, dtype)))
    ndim = max(real.ndim, imag.ndim)
    return like.with_coefficients(torch.complex(*[align(x.coefficients, ndim) for x in operands]))
