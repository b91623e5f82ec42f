"""Ops whose result doesn't depend on the derivatives: plain tensors and Python values, from the primals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from taylorderiv.registry import refuse, register
from taylorderiv.rules.engine import primals

# Comparisons and tests, integers, fresh tensors, and facts about a tensor.
_CONSTANT = (
    "eq ne lt le gt ge greater greater_equal less less_equal not_equal isnan isinf isfinite isposinf"
    " isneginf isreal isclose allclose equal is_nonzero signbit any all logical_not logical_and logical_or"
    " logical_xor argmax argmin argsort argwhere nonzero count_nonzero searchsorted bucketize histc isin"
    " heaviside zeros_like ones_like empty_like full_like rand_like randn_like randint_like bernoulli"
    " multinomial normal new_zeros new_ones new_empty new_full new_tensor new_empty_strided is_floating_point"
    " is_complex numel is_same_size is_conj is_neg is_inference is_signed _is_all_true"
    " _is_any_true _has_same_storage_numel _new_zeros_with_same_feature_meta"
).split()


def _constant_rule(func: Any) -> Callable[..., Any]:
    def rule(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = primals((args, kwargs))
        return func(*args, **kwargs)

    return rule


def _function(name: str) -> Any:
    for namespace in (torch, torch.Tensor, torch.ops.aten):
        if hasattr(namespace, name):
            return getattr(namespace, name)
    raise AssertionError(name)


for _name in _CONSTANT:
    register(_name)(_constant_rule(_function(_name)))


@register("zero")
def _zero(input: Any) -> Any:
    return torch.zeros_like(input)


@register("fill")
def _fill(input: Any, value: Any) -> Any:
    if isinstance(value, (int, float, complex)):
        return torch.full_like(input, value)
    return value.to(input.dtype).expand(input.shape)


@register("copy")
def _copy(input: Any, src: Any, non_blocking: bool = False) -> Any:
    return src.to(input.dtype).expand(input.shape)


# What would silently lose the derivatives, or means nothing for a jet.
_REFUSED = {
    "numpy": "it would lose the derivatives; use .primal",
    "backward": "a jet isn't a scalar; call backward on derivatives computed from it",
    "requires_grad_": "require gradients of the tensor that the jet is made of",
    "register_hook": "a jet isn't a node of the autograd graph",
    "retain_grad": "a jet isn't a node of the autograd graph",
    "data_ptr": "a jet isn't one block of memory",
    "set_": "a jet isn't one block of memory",
    "resize_": "a jet isn't one block of memory",
    "storage": "a jet isn't one block of memory",
    "untyped_storage": "a jet isn't one block of memory",
}


for _name, _reason in _REFUSED.items():
    refuse(_name, _reason)
