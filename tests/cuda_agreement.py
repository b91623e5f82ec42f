"""CUDA kernels against those of the CPU, wherever the former run: on a device, or on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from unary_oracles import pack, random_curves
from unary_records import RECORDS, Record

from taylorderiv.layout import Layout

KERNEL_RECORDS = tuple(record for record in RECORDS if record.kernel)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
PASSES = ("unary", "unary_backward", "unary_double_backward")

LAYOUTS = (
    Layout(()),
    Layout((1,)),
    Layout((2,)),
    Layout((3,)),
    Layout((6,)),
    Layout((10,)),
    Layout((12,)),
    Layout((4, 1)),
    Layout((2, 5, 3)),
    Layout((1, 1), (1.5, -1.0)),
    Layout((2, 2, 2), (1.0, 1.0, 1.0)),
    Layout((4, 4, 2), (0.5, -2.0, 0.0)),
    Layout((6, 6), (0.0, 0.3)),
    Layout((12, 12), (0.5, -2.0)),
)
ELEMENTS = (1, 13, 32)  # rows that start at a chunk of several elements, or don't

# Of a coefficient, relative to its largest value over all elements: roundings of the arithmetic, or of the storage.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@dataclass(frozen=True)
class Kernels:
    """The ops to test, and where: ``ops`` like ``torch.ops.taylorderiv``."""

    ops: Any
    device: str = "cpu"

    def __call__(self, name: str, tensors: Sequence[Tensor], *rest: Any) -> list[Tensor]:
        result = getattr(self.ops, name)(*(t.to(self.device) for t in tensors), *rest)
        return [t.cpu() for t in (result if isinstance(result, tuple) else (result,))]


CPU = Kernels(torch.ops.taylorderiv)


def structure(layout: Layout) -> tuple[list[int], list[float]]:
    """A layout as the ops take it."""
    return list(layout.orders), list(layout.weights or ())


def random_jet(primal: Tensor, layout: Layout) -> Tensor:
    """Random coefficients ``(C, N)`` around a primal ``(N,)``."""
    curves = random_curves(primal.double(), layout.directions, max(layout.order, 1))
    return pack(layout, primal.double(), curves).to(primal.dtype)


def assert_agree(kernels: Kernels, name: str, tensors: Sequence[Tensor], rest: Sequence[Any]) -> None:
    """Fail unless an op agrees with the CPU's in float64, to what the dtype can do.

    Tries several numbers of elements, the first ones of the given ``tensors (C, N)``.
    """
    expected = CPU(name, [t.double() for t in tensors], *rest)
    dtype = tensors[0].dtype
    largest = torch.finfo(dtype).max
    for elements in ELEMENTS:
        actual = kernels(name, [t[:, :elements].contiguous() for t in tensors], *rest)
        for a, e in zip(actual, expected, strict=True):
            scale = e.abs().amax(dim=1, keepdim=True) + torch.finfo(dtype).tiny
            difference = a.double().clamp(-largest, largest) - e[:, :elements].clamp(-largest, largest)
            error = (difference.abs() / scale).max().item()
            # A NaN fails, too.
            assert error <= TOLERANCE[dtype], f"{name} {rest} {dtype} {elements}: relative error {error:.3g}"


def unary_agrees(kernels: Kernels, record: Record, dtype: torch.dtype) -> None:
    """Fail unless a unary op and its gradients agree with the CPU's."""
    for layout in LAYOUTS:
        x = random_jet(record.random(max(ELEMENTS)).to(dtype), layout)
        cotangents = [torch.rand(x.shape).to(dtype) - 0.3 for _ in range(2)]
        rest = (record.op, list(record.params), *structure(layout))
        for n, name in enumerate(PASSES):
            assert_agree(kernels, name, [*cotangents[:n], x], rest)


def products_agree(kernels: Kernels, dtype: torch.dtype) -> None:
    """The same for the products of jets."""
    for layout in LAYOUTS:
        tensors = [torch.rand(layout.size, max(ELEMENTS)).to(dtype) - 0.3 for _ in range(2)]
        for name in ("cauchy", "correlate"):
            assert_agree(kernels, name, tensors, structure(layout))


ZEROS = (0.0, -0.0, 1e-310, 1e-40, -1e-30)
SPECIAL = (*ZEROS, 1.0, -1.0, 40.41, 1e4, -1e4, 1e200, math.inf, -math.inf, math.nan)


def special_points_agree(kernels: Kernels, record: Record, dtype: torch.dtype) -> None:
    """Fail unless zeros, infinities and NaNs are where the CPU's kernels have them, at kinks and singular points."""
    x = torch.tensor([*SPECIAL, *record.points, *record.kinks], dtype=dtype)
    for layout in (Layout((1,)), Layout((4,)), Layout((3, 3, 2), (1.0, 1.0, 0.0)), Layout((12,))):
        # Along a straight line: most coefficients vanish, and must not meet infinities.
        line = torch.zeros(layout.size, len(x), dtype=dtype)
        line[0], line[1] = x, 1
        for name in PASSES:
            tensors = [torch.ones_like(line) for _ in range(PASSES.index(name))] + [line]
            rest = (record.op, list(record.params), *structure(layout))
            for a, e in zip(kernels(name, tensors, *rest), CPU(name, tensors, *rest), strict=True):
                context = f"{name} {record.id} {dtype} {layout} at {x.tolist()}:\n{a}\n{e}"
                assert torch.equal(a.isnan(), e.isnan()), context
                assert torch.equal(a.isposinf(), e.isposinf()), context
                assert torch.equal(a.isneginf(), e.isneginf()), context
