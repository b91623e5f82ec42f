"""What a jet holds: coefficients, a seed, or layers of a network that wait to be computed together.

Linear, activation, linear, … isn't computed layer by layer: each layer is only noted (a :class:`Layer` in a linked
list), and the whole chain runs as one fused op when something else asks for the coefficients. A flush starts at the
nearest value that is computed already. So ``nn.Sequential``, hand-written ``forward`` loops and other libraries'
networks all reach the fused kernel unchanged. A :class:`Seed`, a coordinate's jet, is never written out where a linear
layer follows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from taylorderiv import kernels
from taylorderiv.layout import Layout

# Above this width one matrix product per layer on the whole batch may be faster, as measured on a server.
_WIDEST = 1024

_PLAIN = (Tensor, torch.nn.Parameter)


class Layer(NamedTuple):
    """``op(x @ weightᵀ + bias)``, the last step of a value that isn't computed yet.

    Attributes:
        source: the value ``x``.
        weight: ``(out, in)``.
        bias: ``(out,)``, or None.
        op: the name of a unary op with a kernel, or None.
        params: its parameters.
        state: of the parameters, when the layer was noted.
        grad_mode: whether autograd was recording.
    """

    source: Value
    weight: Tensor
    bias: Tensor | None
    op: str | None
    params: tuple[float, ...]
    state: tuple[Any, ...]
    grad_mode: bool


class Seed(NamedTuple):
    """Points, and higher coefficients that are the same at all of them.

    Attributes:
        points: ``(*shape, D)``.
        higher: ``(C - 1, D)``.
    """

    points: Tensor
    higher: Tensor


class Value:
    """The coefficients of a jet, ``(C, *shape)``, or what they are the result of. It never changes."""

    __slots__ = ("_coefficients", "device", "dtype", "layer", "layout", "plain", "seed", "shape")

    def __init__(self, coefficients: Any, layout: Layout, layer: Layer | None = None, seed: Seed | None = None):
        self._coefficients = coefficients
        self.layer = layer
        self.seed = seed
        self.layout = layout
        self.plain = coefficients is None or isinstance(coefficients, Tensor)  # and not a jet itself
        if layer is not None:
            like = layer.source
            self.shape = torch.Size((*like.shape[:-1], layer.weight.shape[0]))
        elif seed is not None:
            like = seed.points
            self.shape = like.shape
        else:
            like: Any = coefficients
            self.shape = like.shape[1:]
        self.dtype = like.dtype
        self.device = like.device

    @property
    def coefficients(self) -> Any:
        # In this order, and each read once: another thread may do the same, or an interrupt end it anywhere.
        layer, seed = self.layer, self.seed
        if layer is not None:
            self._coefficients = _flush(layer, self.layout, self.shape)
            self.layer = None
        elif seed is not None:
            self._coefficients = _written_out(seed)
            self.seed = None
        return self._coefficients


def may_be_seed(points: Any) -> bool:
    """Whether the jet of points ``(*shape, D)`` along directions that they share needn't be written out."""
    plain = type(points) in _PLAIN and points.ndim > 1
    return plain and not points.is_cuda and kernels.chain_applies(points)


def seeded(points: Tensor, higher: Tensor, layout: Layout) -> Value:
    """The jet of points ``(*shape, D)``, which share the higher coefficients ``(C - 1, D)``."""
    points = points.clone()  # the caller may change them
    if not torch.is_grad_enabled():  # so that it makes no difference in which mode it is written out
        points, higher = points.detach(), higher.detach()
    return Value(None, layout, seed=Seed(points, higher))


def _written_out(seed: Seed) -> Tensor:
    points, higher = seed
    with torch.enable_grad():
        higher = higher.reshape(higher.shape[0], *[1] * (points.ndim - 1), points.shape[-1]).expand(-1, *points.shape)
        return torch.cat([points[None], higher])


def _state(weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    """What changes when their values do, or whether they are trained."""
    return _state_of(weight), None if bias is None else _state_of(bias)


def _state_of(t: Tensor) -> tuple[Any, ...]:
    return t.data_ptr(), t.requires_grad, None if t.is_inference() else t._version


def linear(source: Value, weight: Any, bias: Any) -> Value | None:
    """The value ``source @ weightᵀ + bias``, to be computed later; None where that isn't possible or not worth it."""
    if not (source.plain and source.shape and type(weight) in _PLAIN and weight.ndim == 2):
        return None
    dtype, device = source.dtype, source.device
    out, in_ = weight.shape
    if in_ != source.shape[-1] or weight.dtype != dtype or weight.device != device or not (in_ and out):
        return None
    if bias is not None:
        if type(bias) not in _PLAIN or bias.ndim != 1 or bias.numel() != out:
            return None
        if bias.dtype != dtype or bias.device != device:
            return None
    if not (kernels.chain_applies(source) and kernels.fits_chain(weight, source.layout)):
        return None
    if max(out, in_) > _WIDEST:
        return None if source.seed is None else _image(source.seed, weight, bias, source.layout)
    # What isn't trained now won't be if that changes before the layer is computed.
    weight = weight if weight.requires_grad else weight.detach()
    bias = bias if bias is None or bias.requires_grad else bias.detach()
    layer = Layer(source, weight, bias, None, (), _state(weight, bias), torch.is_grad_enabled())
    return Value(None, source.layout, layer)


def _image(seed: Seed, weight: Tensor, bias: Tensor | None, layout: Layout) -> Value:
    """A linear layer makes of a seed another one."""
    if seed.points.numel() > weight.numel():
        return Value(None, layout, seed=Seed(F.linear(seed.points, weight, bias), F.linear(seed.higher, weight)))
    # One product, and one gradient of a weight that is larger than its input.
    shape = seed.points.shape
    rows = F.linear(torch.cat([seed.points.reshape(-1, shape[-1]), seed.higher]), weight)
    points, higher = rows.split([shape[:-1].numel(), len(seed.higher)])
    points = points.reshape(*shape[:-1], len(weight))
    return Value(None, layout, seed=Seed(points if bias is None else points + bias, higher))


def activation(source: Value, op: str, params: tuple[float, ...]) -> Value | None:
    """The value ``op(source)``, to be computed later, where ``source`` is a linear layer; else None."""
    layer = source.layer
    if layer is None or layer.op is not None or layer.grad_mode != torch.is_grad_enabled():
        return None
    if not kernels.chain_applies(source, op):
        return None
    return Value(None, source.layout, layer._replace(op=op, params=tuple(params)))


def scaled(source: Value, factor: Any) -> Value | None:
    """The value ``factor * source`` for a scalar, where ``source`` is a linear layer or a seed; else None."""
    layer, seed = source.layer, source.seed
    if layer is None and seed is None:
        return None
    if layer is not None and (layer.op is not None or layer.grad_mode != torch.is_grad_enabled()):
        return None
    if isinstance(factor, Tensor):
        if type(factor) not in _PLAIN or factor.ndim or factor.is_complex():
            return None
        if factor.device != source.device or (factor.dtype.is_floating_point and factor.dtype != source.dtype):
            return None
    elif isinstance(factor, complex):
        return None
    if not kernels.chain_applies(source):
        return None
    if seed is not None:
        return Value(None, source.layout, seed=Seed(seed.points * factor, seed.higher * factor))
    assert layer is not None
    _check_state(layer)
    weight = layer.weight * factor
    bias = None if layer.bias is None else layer.bias * factor
    layer = layer._replace(weight=weight, bias=bias, state=_state(weight, bias))
    return Value(None, source.layout, layer)


def _check_state(layer: Layer) -> None:
    if layer.state != _state(layer.weight, layer.bias):
        raise RuntimeError(
            "a weight or bias was changed in place (by an optimizer step, for example), moved, or had its requires_grad"
            " set, before the coefficients of a jet that had passed through its layer were used. Use them first, or run"
            " the function again."
        )


def _flush(last: Layer, layout: Layout, shape: torch.Size) -> Tensor:
    """Coefficients ``(C, *shape)``: run ``last`` and the layers before it, back to the nearest value, as one op."""
    layers = [last]
    while (before := layers[-1].source.layer) is not None and before.grad_mode == last.grad_mode:
        layers.append(before)
    layers.reverse()
    for layer in layers:
        _check_state(layer)
    source = layers[0].source
    with torch.set_grad_enabled(last.grad_mode):
        seed = source.seed
        x = source.coefficients if seed is None else seed.points[None]
        result = kernels.chain(
            x if x.ndim == 3 else x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]),
            None if seed is None else seed.higher,
            [layer.weight for layer in layers],
            [layer.bias for layer in layers],
            [layer.op for layer in layers],
            [layer.params for layer in layers],
            layout,
        )
        return result if len(shape) == 2 else result.reshape(layout.size, *shape)
