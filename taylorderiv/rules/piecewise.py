"""Piecewise linear ops: the primal selects, then they are linear. Ties and kinks follow PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from taylorderiv.registry import register
from taylorderiv.rules.engine import (
    AnyJet,
    align,
    first_jet,
    is_jet,
    is_tensor,
    lift,
    plain,
    primals,
    promote,
    shift_dims,
    with_primal,
    wrap_dim,
)


class ValuesIndices(NamedTuple):
    """What torch functions such as ``max`` and ``sort`` return, with a jet of values."""

    values: Any
    indices: Any


class MinMax(NamedTuple):
    """What ``torch.aminmax`` returns."""

    min: Any
    max: Any


@register("where")
def _where(condition: Any, input: Any, other: Any) -> Any:
    if is_jet(condition):  # The method: x.where(condition, other)
        condition, input = input, condition
    a, b = promote(input, other)
    like = first_jet(a, b)
    ndim = max(condition.ndim, *(value.ndim for value in (a, b) if is_tensor(value)))
    x, y = (_branch(value, like, ndim) for value in (a, b))
    return like.with_coefficients(torch.where(condition, x, y))


def _branch(value: Any, like: AnyJet, ndim: int) -> Any:
    """The coefficients of a branch: of a jet, or a constant that is added to the primal."""
    if is_jet(value):
        return align(value.coefficients, ndim)
    if not is_tensor(value):
        value = torch.full((), value, dtype=like.dtype, device=like.device)
    return align(lift([value], like)[0][0].coefficients, ndim)


@register("masked_scatter")
def _masked_scatter(input: Any, mask: Any, source: Any) -> Any:
    shape = torch.broadcast_shapes(input.shape, mask.shape)
    mask = mask.expand(shape)
    places = (mask.reshape(-1).cumsum(0) - 1).clamp(0)
    return torch.where(mask, source.reshape(-1)[places].reshape(shape), input)


@register("masked_fill")
def _masked_fill(input: Any, mask: Any, value: Any) -> Any:
    if is_tensor(value):
        value = value.to(input.dtype)
    return torch.where(mask, value, input)


# The larger and the smaller of two.


def _of_two(func: Callable[..., Any], prefers: Callable[[Any, Any], Any], shares_ties: bool) -> Callable[..., Any]:
    def rule(input: Any, other: Any) -> Any:
        input, other = promote(input, other)
        a, b = primals((input, other))
        selected = torch.where(prefers(a, b), input, other)
        if shares_ties:
            selected = torch.where(a == b, 0.5 * input + 0.5 * other, selected)
        return with_primal(selected, func(a, b))

    return rule


register("maximum")(_of_two(torch.maximum, torch.gt, shares_ties=True))
register("minimum")(_of_two(torch.minimum, torch.lt, shares_ties=True))
register("fmax")(_of_two(torch.fmax, lambda a, b: (a >= b) | b.isnan(), shares_ties=False))
register("fmin")(_of_two(torch.fmin, lambda a, b: (a <= b) | b.isnan(), shares_ties=False))


@register("clamp", "clip")
def _clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    if min is None and max is None:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
    x, low, high = primals((input, min, max))
    result = input
    if min is not None:
        result = torch.where(x < low, min, result)
    if max is not None:
        result = torch.where(x > high, max, result)
        if min is not None and (is_tensor(low) or is_tensor(high) or low > high):
            # Where the bounds are crossed, the upper one wins.
            above = torch.as_tensor(low > high, device=x.device)
            result = torch.where(above, max, result)
    return result


@register("clamp_min")
def _clamp_min(input: Any, min: Any) -> Any:
    return _clamp(input, min=min)


@register("clamp_max")
def _clamp_max(input: Any, max: Any) -> Any:
    return _clamp(input, max=max)


# Extreme elements, and order.


def _evenly(input: AnyJet, extreme: Any, dim: Any, keepdim: bool) -> AnyJet:
    """The mean over ``dim`` of the elements whose primal is ``extreme`` (which has the reduced axes kept)."""
    dims = [d - 1 for d in shift_dims(dim, input.ndim)]
    value = extreme
    if dims and not keepdim:
        value = extreme.squeeze(dims)
    if not dims:
        return input
    chosen = (input.primal == extreme) | (input.primal.isnan() & extreme.isnan())
    mean = torch.where(chosen, input, 0.0).sum(dims, keepdim=keepdim) / chosen.sum(dims, keepdim=keepdim)
    return with_primal(mean, value)


@register("amax")
def _amax(input: AnyJet, dim: Any = (), keepdim: bool = False) -> AnyJet:
    dims = tuple(d - 1 for d in shift_dims(dim, input.ndim))
    return _evenly(input, torch.amax(input.primal, dims, keepdim=True), dim, keepdim)


@register("amin")
def _amin(input: AnyJet, dim: Any = (), keepdim: bool = False) -> AnyJet:
    dims = tuple(d - 1 for d in shift_dims(dim, input.ndim))
    return _evenly(input, torch.amin(input.primal, dims, keepdim=True), dim, keepdim)


@register("aminmax")
def _aminmax(input: AnyJet, *, dim: Any = None, keepdim: bool = False) -> MinMax:
    return MinMax(_amin(input, () if dim is None else dim, keepdim), _amax(input, () if dim is None else dim, keepdim))


def _extreme_rule(name: str) -> Callable[..., Any]:
    func, of_all, of_two = getattr(torch, name), getattr(torch, f"a{name}"), getattr(torch, f"{name}imum")

    def rule(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
        if other is not None or is_tensor(dim):
            return of_two(input, dim if other is None else other)
        if dim is None:
            return of_all(input)
        _, indices = func(input.primal, dim, keepdim=True)
        return _at(input, indices, dim, keepdim)

    return rule


def _at(input: AnyJet, indices: Any, dim: int, keepdim: bool) -> ValuesIndices:
    """The elements at indices along ``dim``, whose axis ``indices`` has with length 1."""
    values = input.gather(dim, indices)
    if keepdim or input.ndim == 0:
        return ValuesIndices(values, indices)
    return ValuesIndices(values.squeeze(dim), indices.squeeze(dim))


register("max")(_extreme_rule("max"))
register("min")(_extreme_rule("min"))


def _median(func: Callable[..., Any], input: AnyJet, dim: int | None, keepdim: bool) -> Any:
    if dim is None:
        flat = input.reshape(-1)
        _, index = func(flat.primal, 0)
        return flat.gather(0, index.reshape(1)).squeeze(0)
    _, indices = func(input.primal, dim, keepdim=True)
    return _at(input, indices, dim, keepdim)


register("median")(lambda input, dim=None, keepdim=False: _median(torch.median, input, dim, keepdim))
register("nanmedian")(lambda input, dim=None, keepdim=False: _median(torch.nanmedian, input, dim, keepdim))


@register("mode")
def _mode(input: AnyJet, dim: int = -1, keepdim: bool = False) -> ValuesIndices:
    return _at(input, torch.mode(input.primal, dim, keepdim=True).indices, dim, keepdim)


@register("kthvalue")
def _kthvalue(input: AnyJet, k: int, dim: int = -1, keepdim: bool = False) -> ValuesIndices:
    return _at(input, torch.kthvalue(input.primal, k, dim, keepdim=True).indices, dim, keepdim)


@register("sort")
def _sort(input: AnyJet, dim: int = -1, descending: bool = False, *, stable: bool = False) -> ValuesIndices:
    indices = torch.sort(input.primal, dim=dim, descending=descending, stable=stable).indices
    return ValuesIndices(input.gather(dim, indices), indices)


@register("msort")
def _msort(input: AnyJet) -> AnyJet:
    return _sort(input, 0).values


@register("topk")
def _topk(input: AnyJet, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> ValuesIndices:
    indices = torch.topk(input.primal, k, dim, largest, sorted).indices
    return ValuesIndices(input.gather(dim, indices), indices)


@register("cummax")
def _cummax(input: AnyJet, dim: int) -> ValuesIndices:
    indices = torch.cummax(input.primal, dim).indices
    return ValuesIndices(input.gather(dim, indices), indices)


@register("cummin")
def _cummin(input: AnyJet, dim: int) -> ValuesIndices:
    indices = torch.cummin(input.primal, dim).indices
    return ValuesIndices(input.gather(dim, indices), indices)


# Reductions of the elements that are sent to one place.


@register("scatter_reduce")
def _scatter_reduce(input: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True) -> AnyJet:
    if index.ndim == 0:
        input, index, src = (value.reshape(1) for value in (input, index, src))
        return _scatter_reduce(input, 0, index, src, reduce, include_self=include_self).reshape(())
    src = src[tuple(slice(n) for n in index.shape)]
    x, y = primals((input, src))
    ones = torch.ones_like(y)
    counted = torch.ones_like(x) if include_self else torch.scatter(torch.ones_like(x), dim, index, 0)
    if reduce == "prod":
        product = torch.where(counted != 0, input, 1.0)
        for i in range(index.shape[dim]):
            places = index.narrow(dim, i, 1)
            product = torch.scatter(product, dim, places, product.gather(dim, places) * src.narrow(dim, i, 1))
        return product
    if reduce in ("amax", "amin"):  # Ties share it, as in PyTorch.
        value = torch.scatter_reduce(x, dim, index, y, reduce, include_self=include_self)
        counted = counted * (x == value)
        ones = (y == value.gather(dim, index)).to(y.dtype)
    total = torch.scatter_add(torch.where(counted != 0, input, 0.0), dim, index, torch.where(ones != 0, src, 0.0))
    if reduce == "sum":
        return total
    mean = total / torch.scatter_add(counted, dim, index, ones)
    return mean if reduce == "mean" else with_primal(mean, value)


@register("index_reduce")
def _index_reduce(input: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True) -> AnyJet:
    shape = [-1 if d == wrap_dim(dim, source.ndim) else 1 for d in range(source.ndim)]
    places = index.reshape(shape).expand(source.shape)
    return torch.scatter_reduce(input, dim, places, source, reduce, include_self=include_self)


# Activations that aren't in the table of unary ops.


@register("threshold", "nn.functional._threshold")
def _threshold(input: AnyJet, threshold: float, value: float) -> AnyJet:
    return torch.where(input.primal <= threshold, value, input)


@register("hardshrink")
def _hardshrink(input: AnyJet, lambd: float = 0.5) -> AnyJet:
    return torch.where((input.primal >= -lambd) & (input.primal <= lambd), 0.0, input)


@register("softshrink")
def _softshrink(input: AnyJet, lambd: float = 0.5) -> AnyJet:
    x = input.primal
    return torch.where(x > lambd, input - lambd, torch.where(x < -lambd, input + lambd, 0.0))


@register("prelu", "_prelu_kernel")
def _prelu(input: Any, weight: Any) -> Any:
    x = input.primal if is_jet(input) else input
    if weight.numel() == 1:
        weight = weight.reshape(())
    elif weight.ndim == 1 and input.ndim > 1:
        weight = weight.reshape([1, -1, *[1] * (input.ndim - 2)])
    return torch.where(x > 0, input, weight * input)


@register("rrelu", F.rrelu)
def _rrelu(
    input: AnyJet, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> AnyJet:
    x = plain(input)
    if not training:
        return torch.where(x >= 0, input, (lower + upper) / 2 * input)
    slope = torch.ones_like(x)
    with torch.no_grad():
        torch.ops.aten.rrelu_with_noise(x, slope, lower, upper, True, generator)  # PyTorch's own random numbers
    return slope * input


@register("hardsigmoid", F.hardsigmoid)
def _hardsigmoid(input: AnyJet) -> AnyJet:
    return F.hardtanh(input / 6 + 0.5, 0.0, 1.0)


@register("hardswish", F.hardswish)
def _hardswish(input: AnyJet) -> AnyJet:
    x = input.primal
    inside = input * (input / 6 + 0.5)
    return torch.where(x <= -3, 0.0, torch.where(x < 3, inside, input))


# Pooling.


def _max_pool_rule(func: Callable[..., Any], spatial: int) -> Callable[..., Any]:
    def rule(input: AnyJet, *args: Any, return_indices: bool = False, **kwargs: Any) -> Any:
        kwargs["return_indices"] = True
        _, indices = func(input.primal, *args, **kwargs)
        flat = input.flatten(-spatial)
        values = flat.gather(-1, indices.flatten(-spatial)).reshape(indices.shape)
        return (values, indices) if return_indices else values

    return rule


for _spatial, _pools in enumerate(
    (
        (F.max_pool1d, F.adaptive_max_pool1d),
        (F.max_pool2d, F.adaptive_max_pool2d),
        (F.max_pool3d, F.adaptive_max_pool3d),
    ),
    start=1,
):
    for _pool in _pools:
        register(_pool)(_max_pool_rule(_pool, _spatial))
