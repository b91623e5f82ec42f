"""The modules of torch.nn, with samples to call them with: PyTorch's own, and of its other modules one each."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn


class Module:
    """A class of modules in one mode, in the form of an operator that is called with the module first."""

    supports_forward_ad = True

    def __init__(self, name: str, training: bool, samples: Callable[..., Iterator[tuple[nn.Module, Any, Any]]]):
        self.name = f"nn.{name}.{'train' if training else 'eval'}"
        self.training = training
        self._samples = samples

    @staticmethod
    def op(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    @staticmethod
    def gradcheck_wrapper(operation: Any, *args: Any, **kwargs: Any) -> Any:
        return operation(*args, **kwargs)

    def sample_inputs(self, device: str, dtype: torch.dtype, *, requires_grad: bool) -> Iterator[Any]:
        for module, args, kwargs in self._samples(device, dtype, requires_grad, self.training):
            module.to(device, dtype).train(self.training)
            with torch.no_grad():  # Lazy modules learn their shapes.
                module(*args, **kwargs)
            yield types.SimpleNamespace(input=module, args=args, kwargs=kwargs, output_process_fn_grad=None)


@functools.cache
def modules(dtype: torch.dtype) -> dict[str, Module]:
    """All modules of torch.nn that support a dtype, in both modes, by name."""
    from torch.testing._internal.common_modules import module_db

    samples = {
        info.module_cls.__name__: _of_pytorch(info)
        for info in module_db
        if dtype in info.dtypes and info.module_cls.__module__.startswith("torch.nn.modules")
    }
    if not dtype.is_complex:
        samples |= {name: _of_layer(layer) for name, layer in LAYERS.items()}
    found = [Module(name, training, of) for name, of in samples.items() for training in (True, False)]
    return {module.name: module for module in found}


def _of_pytorch(info: Any) -> Callable[..., Iterator[tuple[nn.Module, Any, Any]]]:
    def samples(device: str, dtype: torch.dtype, requires_grad: bool, training: bool) -> Iterator[Any]:
        options = {"device": device, "dtype": dtype, "requires_grad": requires_grad, "training": training}
        for given in info.module_inputs_func(info, **options):
            made = info.module_cls(*given.constructor_input.args, **given.constructor_input.kwargs)
            yield made, given.forward_input.args, given.forward_input.kwargs

    return samples


class Calling(nn.Module):
    """A module that calls another one in its own way."""

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Any], Any]):
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Any) -> Any:
        return self.call(self.module, x)


def _of_layer(layer: Layer) -> Callable[..., Iterator[tuple[nn.Module, Any, Any]]]:
    def samples(device: str, dtype: torch.dtype, requires_grad: bool, training: bool) -> Iterator[Any]:
        x = torch.randn(layer.shape, device=device, dtype=dtype, requires_grad=requires_grad)
        yield Calling(layer.make(), layer.call), (x,), {}

    return samples


class Layer(NamedTuple):
    """A module, the shape of x, and how it is called with it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    call: Callable[[nn.Module, Any], Any] = lambda module, x: module(x)


def unpool(kind: str) -> Callable[[nn.Module, Any], Any]:
    def call(module: nn.Module, x: Any) -> Any:
        return module(*getattr(nn, f"MaxPool{kind}")(2, return_indices=True)(x))

    return call


def with_itself(module: nn.Module, x: Any) -> Any:
    return module(x, x.sin())


def of_three(module: nn.Module, x: Any) -> Any:
    return module(x, x.sin(), x.cos())


# Those that PyTorch has no samples of.
LAYERS: dict[str, Layer] = {
    "AdaptiveLogSoftmaxWithLoss": Layer(
        lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 6, [2, 4], div_value=2.0),
        (3, 8),
        lambda m, x: m(x, torch.tensor([0, 3, 5])).output,
    ),
    "AlphaDropout": Layer(nn.AlphaDropout, (3, 4)),
    "ChannelShuffle": Layer(lambda: nn.ChannelShuffle(2), (1, 4, 2, 2)),
    "CosineSimilarity": Layer(nn.CosineSimilarity, (3, 4), with_itself),
    "CrossMapLRN2d": Layer(lambda: nn.CrossMapLRN2d(2), (1, 3, 2, 2)),
    "Dropout": Layer(nn.Dropout, (3, 4)),
    "Dropout1d": Layer(nn.Dropout1d, (2, 3, 4)),
    "Dropout2d": Layer(nn.Dropout2d, (2, 3, 2, 2)),
    "Dropout3d": Layer(nn.Dropout3d, (2, 3, 2, 2, 1)),
    "EmbeddingBag": Layer(lambda: nn.EmbeddingBag(5, 4), (2, 4), lambda m, x: m(torch.tensor([[0, 1], [2, 2]])) * x),
    "FeatureAlphaDropout": Layer(nn.FeatureAlphaDropout, (2, 3, 4)),
    "Flatten": Layer(nn.Flatten, (2, 3, 2)),
    "Fold": Layer(lambda: nn.Fold((3, 3), (2, 2)), (1, 4, 4)),
    "Hardsigmoid": Layer(nn.Hardsigmoid, (3, 4)),
    "Identity": Layer(nn.Identity, (3, 4)),
    "LazyBatchNorm1d": Layer(nn.LazyBatchNorm1d, (5, 3)),
    "LazyBatchNorm2d": Layer(nn.LazyBatchNorm2d, (3, 2, 2, 2)),
    "LazyBatchNorm3d": Layer(nn.LazyBatchNorm3d, (3, 2, 2, 2, 1)),
    "LazyInstanceNorm1d": Layer(nn.LazyInstanceNorm1d, (2, 2, 4)),
    "LazyInstanceNorm2d": Layer(nn.LazyInstanceNorm2d, (2, 2, 2, 2)),
    "LazyInstanceNorm3d": Layer(nn.LazyInstanceNorm3d, (1, 2, 2, 2, 2)),
    "LazyLinear": Layer(lambda: nn.LazyLinear(3), (2, 4)),
    "MaxUnpool1d": Layer(lambda: nn.MaxUnpool1d(2), (1, 2, 4), unpool("1d")),
    "MaxUnpool2d": Layer(lambda: nn.MaxUnpool2d(2), (1, 2, 4, 4), unpool("2d")),
    "MaxUnpool3d": Layer(lambda: nn.MaxUnpool3d(2), (1, 1, 2, 4, 2), unpool("3d")),
    "PairwiseDistance": Layer(nn.PairwiseDistance, (3, 4), with_itself),
    "PixelShuffle": Layer(lambda: nn.PixelShuffle(2), (1, 4, 2, 2)),
    "PixelUnshuffle": Layer(lambda: nn.PixelUnshuffle(2), (1, 1, 4, 4)),
    "RReLU": Layer(nn.RReLU, (3, 4)),
    "TransformerDecoder": Layer(
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 6, batch_first=True), 1), (1, 3, 4), with_itself
    ),
    "TripletMarginLoss": Layer(nn.TripletMarginLoss, (3, 4), of_three),
    "TripletMarginWithDistanceLoss": Layer(nn.TripletMarginWithDistanceLoss, (3, 4), of_three),
    "Unflatten": Layer(lambda: nn.Unflatten(1, (2, 2)), (3, 4)),
    "Unfold": Layer(lambda: nn.Unfold((2, 2)), (1, 2, 3, 3)),
    "Upsample": Layer(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (1, 1, 3, 3)),
    "UpsamplingBilinear2d": Layer(lambda: nn.UpsamplingBilinear2d(scale_factor=2), (1, 1, 3, 3)),
    "UpsamplingNearest2d": Layer(lambda: nn.UpsamplingNearest2d(scale_factor=2), (1, 1, 3, 3)),
}

# Containers and base classes, and a layer that needs several processes with a GPU each.
NO_LAYERS = frozenset(
    "Container LinearCrossEntropyOptions Module ModuleDict ModuleList NLLLoss2d ParameterDict ParameterList RNNBase"
    " RNNCellBase Sequential SyncBatchNorm".split()
)
