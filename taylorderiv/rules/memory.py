"""as_strided and its like: the elements that lie at given places of a tensor's memory.

The coefficients of a jet lie elsewhere than the elements of a tensor would. So a jet remembers which tensor it
stands for (:attr:`Jet.memory`), as far as that is known: the variable itself, and what ``contiguous()`` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from taylorderiv.registry import register
from taylorderiv.rules.engine import AnyJet, is_jet
from taylorderiv.rules.engine import cast as to_dtype

_FUNCTORCH: Any = vars(torch._C)["_functorch"]  # a module without type stubs


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor under the wrappers of ``torch.func.grad`` and its like.

    Raises:
        NotImplementedError: one of them is that of ``torch.vmap``.
    """
    while _FUNCTORCH.is_functorch_wrapped_tensor(tensor):
        if _FUNCTORCH.is_batchedtensor(tensor):
            raise NotImplementedError("it isn't supported inside torch.vmap")
        tensor = _FUNCTORCH.get_unwrapped(tensor)
    return tensor


def indices_at(tensor: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """Which elements of a tensor ``tensor.as_strided(size, stride, storage_offset)`` takes.

    Returns:
        Indices into ``tensor.reshape(-1)``, shaped ``size``; -1 for what lies in the tensor's memory, but is none of
        its elements.

    Raises:
        RuntimeError: the arguments aren't valid, as PyTorch says.
        NotImplementedError: several elements of the tensor lie at the same place.
    """
    length = _extent(tensor) if tensor.is_meta else tensor.untyped_storage().nbytes() // tensor.element_size()
    geometry = (tensor.shape, tensor.stride(), tensor.storage_offset())
    device = "cpu" if tensor.is_meta else tensor.device
    number_at = torch.full((length,), -1, device=device)
    numbers = torch.arange(tensor.numel(), device=device).reshape(tensor.shape)
    overlaps = any(n > 1 and step == 0 for n, step in zip(*geometry[:2], strict=True))
    if not overlaps:
        number_at.as_strided(*geometry).copy_(numbers)
    if overlaps or not torch.equal(number_at.as_strided(*geometry), numbers):
        raise NotImplementedError("several elements of the tensor share a place in memory: copy it first, x.clone()")
    start = tensor.storage_offset() if storage_offset is None else storage_offset
    return number_at.as_strided(size, stride, start)


def _extent(tensor: Tensor) -> int:
    """The length of the memory that the elements of a tensor span."""
    steps = (((n - 1) * step) for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return 1 + sum(steps) if tensor.numel() else 0


def take(input: Any, indices: Tensor, others: Any = None) -> Any:
    """The elements at flat indices, and those of ``others`` where an index is -1."""
    if others is None:
        return input.reshape(-1)[indices]
    return torch.where(indices >= 0, input.reshape(-1)[indices.clamp(min=0)], others)


def put(input: Any, src: Any, indices: Tensor) -> Any:
    """A copy with other elements at flat indices; those for the index -1 are dropped.

    Raises:
        RuntimeError: the source has another shape than the indices.
        NotImplementedError: an index occurs twice.
    """
    if src.shape != indices.shape:
        raise RuntimeError(f"expected src of shape {tuple(indices.shape)}, got {tuple(src.shape)}")
    indices = indices.reshape(-1)
    inside = indices >= 0
    indices = indices[inside]
    if indices.unique().numel() != indices.numel():
        raise NotImplementedError("as_strided_scatter into places that overlap")
    source = to_dtype(src, input.dtype).reshape(-1)[inside]
    return torch.index_copy(input.reshape(-1), 0, indices, source).reshape(input.shape)


def _memory(name: str, input: Any, storage_offset: int | None) -> Tensor:
    memory = input.memory if is_jet(input) else input
    if memory is None:
        raise NotImplementedError(
            f"'{name}' of a computed jet: how PyTorch would lay it out in memory isn't known. Index it, or apply"
            f" '{name}' to what contiguous() returns."
        )
    memory = unwrapped(memory)
    if memory.is_meta and storage_offset is not None:
        raise NotImplementedError(
            f"'{name}' of a computed jet: where in its storage it would begin isn't known; leave storage_offset out"
        )
    return memory


@register("as_strided", "as_strided_copy")
def _as_strided(input: AnyJet, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> AnyJet:
    memory = _memory("as_strided", input, storage_offset)
    indices = indices_at(memory, size, stride, storage_offset).to(input.device)
    if not (indices < 0).any():
        return take(input, indices)
    # What lies around the variable is constant.
    return take(input, indices, memory.detach().as_strided(size, stride, storage_offset))


@register("as_strided_scatter")
def _as_strided_scatter(
    input: Any, src: Any, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> AnyJet:
    memory = _memory("as_strided_scatter", input, storage_offset)
    return put(input, src, indices_at(memory, size, stride, storage_offset).to(input.device))


@register("contiguous")
def _contiguous(input: AnyJet, memory_format: torch.memory_format = torch.contiguous_format) -> AnyJet:
    if input.memory is not None and input.memory.is_contiguous(memory_format=memory_format):
        return input
    result = input.with_value(input.value)
    if memory_format is torch.contiguous_format:
        result.memory = torch.empty(input.shape, dtype=input.dtype, device="meta")
    return result
