"""The fused chain's CUDA kernels against those of the CPU, wherever the former run: on a device, or on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cuda_agreement import random_jet, structure
from torch import Tensor
from unary_records import RECORDS, Record

from taylorderiv.layout import Layout

CHAIN_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
RECORD_OF: dict[str, Record] = {record.op: record for record in RECORDS if record.kernel}

ORDER_2 = Layout((2,))

# Of a tensor, relative to its largest value.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
TF32_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Case:
    """A chain, and the jets that pass through it.

    Attributes:
        widths: of its input, and of each layer's result.
        ops: per layer, the name of a unary op or "".
        layout: of the jets.
        points: their number.
        biases: whether layers have one; those with an even index only, if ``"even"``.
    """

    widths: tuple[int, ...]
    ops: tuple[str, ...]
    layout: Layout = ORDER_2
    points: int = 7
    biases: bool | str = True

    def __str__(self) -> str:
        ops = ",".join(op or "-" for op in self.ops)
        directions = ",".join(map(str, self.layout.orders)) + ("c" if self.layout.weights else "")
        return f"{'x'.join(map(str, self.widths))} {ops} ({directions}) {self.points} points, bias {self.biases}"


@dataclass(frozen=True)
class Inputs:
    """The tensors of a case, and the constants that go with them."""

    x: Tensor
    grad: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    rest: tuple[Any, ...]

    def to(self, target: Any) -> Inputs:
        """With all tensors on another device, or of another dtype."""
        weights, biases = [w.to(target) for w in self.weights], [b.to(target) for b in self.biases]
        return Inputs(self.x.to(target), self.grad.to(target), weights, biases, self.rest)


def params_of(ops: Sequence[str]) -> list[float]:
    return [float(param) for op in ops if op for param in RECORD_OF[op].params]


def random_inputs(case: Case, dtype: torch.dtype) -> Inputs:
    """A network with weights such that coefficients of all layers are of order 1."""
    torch.manual_seed(len(str(case)))
    weights, biases = [], []
    for i, (a, b) in enumerate(zip(case.widths, case.widths[1:], strict=False)):
        weights.append((torch.randn(b, a) / a**0.5).to(dtype))
        biased = i % 2 == 0 if case.biases == "even" else case.biases
        biases.append((0.3 * torch.randn(b) if biased else torch.empty(0)).to(dtype))
    size = case.layout.size
    x = (0.5 * torch.randn(size, case.points, case.widths[0])).to(dtype)
    grad = torch.randn(size, case.points, case.widths[-1]).to(dtype)
    return Inputs(x, grad, weights, biases, (list(case.ops), params_of(case.ops), *structure(case.layout)))


@dataclass(frozen=True)
class Chains:
    """The ops to test, and where: ``ops`` like ``torch.ops.taylorderiv``."""

    ops: Any
    device: str = "cpu"

    def __call__(self, inputs: Inputs, *, save: bool = False, tf32: bool = False, dx: bool = True) -> list[Tensor]:
        """The result, and the gradients of the input (empty unless wanted), the weights and the biases."""
        i = inputs.to(self.device)
        y, saved = self.ops.chain(i.x, i.x.new_empty(0), i.weights, i.biases, *i.rest, -1 if save else 0, tf32)
        gradients = self.ops.chain_backward(
            i.grad, i.x, i.x.new_empty(0), saved, i.weights, i.biases, *i.rest, dx, tf32
        )
        return [t.cpu() for t in (y, *gradients)]


CPU_CHAINS = Chains(torch.ops.taylorderiv)


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, context: object) -> None:
    for n, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, (context, n)
        if not e.numel():
            continue
        error = ((a.double() - e).abs().max() / (e.abs().max() + 1e-30)).item()
        assert error <= tolerance, f"{context}, result {n}: relative error {error:.3g}"  # a NaN fails, too


def chain_agrees(chains: Chains, case: Case, dtype: torch.dtype, *, save: bool = False, tf32: bool = False) -> None:
    """Fail unless a chain and its gradients agree with the CPU's in float64, to what the arithmetic can do."""
    inputs = random_inputs(case, dtype)
    tolerance = TF32_TOLERANCE if tf32 else TOLERANCE[dtype]
    assert_close(chains(inputs, save=save, tf32=tf32), CPU_CHAINS(inputs.to(torch.float64)), tolerance, (case, dtype))


def op_agrees(chains: Chains, op: str, layout: Layout, dtype: torch.dtype) -> None:
    """The same for a chain with an op at points of its domain, which a first layer that changes nothing passes on."""
    record = RECORD_OF[op]
    width, points = 3, 5
    x = random_jet(record.random(width * points).to(dtype), layout).reshape(layout.size, points, width)
    inputs = random_inputs(Case((width, width, 2), (op, ""), layout, points, biases=False), dtype)
    inputs.weights[0].copy_(torch.eye(width))
    inputs = Inputs(x, inputs.grad, inputs.weights, inputs.biases, inputs.rest)
    tolerance = 20 * TOLERANCE[dtype]  # the product of float32 numbers and 1 isn't exact
    assert_close(chains(inputs), CPU_CHAINS(inputs.to(torch.float64)), tolerance, (op, layout, dtype))


def not_finite_agrees(
    chains: Chains,
    op: str,
    value: float,
    dtype: torch.dtype,
    *,
    widths: tuple[int, ...] = (2, 3, 18, 1),
    layout: Layout = ORDER_2,
    points: int = 4,
) -> None:
    """Fail unless a weight that isn't finite leads to infinities and NaNs where the CPU has them."""
    inputs = random_inputs(Case(widths, (op, op, ""), layout, points), dtype)
    inputs.weights[0][0, 0] = value
    for n, (a, e) in enumerate(zip(chains(inputs), CPU_CHAINS(inputs), strict=True)):
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(a), kind(e)), f"{op} {value} {dtype}, result {n}:\n{a}\n{e}"


SHAPES = (
    Case((1, 1), ("",), Layout((1,)), 1),
    Case((3, 5, 2), ("tanh", "sin"), Layout((3,)), 5, biases=False),
    Case((2, 64, 64, 1), ("tanh", "tanh", ""), Layout((4, 1)), 37),
    Case((1, 24, 24, 24, 1), ("tanh", "tanh", "tanh", ""), Layout((8,)), 9),
    Case((7, 33, 17, 3), ("silu", "", "gelu"), Layout((2, 2, 2), (1.0, 0.5, -1.0)), 20, biases="even"),
    Case((2, 130, 1), ("sin", ""), Layout((4, 4, 4), (1.0, 1.0, 1.0)), 6),
    Case((3, 256, 200, 2), ("softplus", "sigmoid", ""), Layout((2,)), 3),
    Case((600, 16, 1), ("tanh", ""), Layout((2,)), 5),
    Case((257, 20), ("",), Layout(()), 40),
    Case((2, 16, 256), ("", "tanh"), Layout((1, 1)), 11),
    Case((2, 40, 40, 1), ("tanh", "sin", ""), Layout((2,) * 40), 2),
    Case((1, 8, 1), ("elu", ""), Layout((12, 3)), 3),
    Case((2, 8, 1), ("tanh", ""), Layout((2,)), 0),
)

# Enough points for the kernels that keep jets in registers, on a device of few multiprocessors: every layout and op
# that has such code (csrc/fixed_layouts.h), layers of one to several fragments, a last tile that isn't full.
FIXED_SHAPES = (
    Case((1, 24, 24, 1), ("tanh", "tanh", ""), Layout((2,)), 75),
    Case((2, 64, 64, 64, 1), ("tanh", "tanh", "tanh", ""), Layout((2, 1)), 150),
    Case((2, 20, 33, 3), ("sin", "gelu", ""), Layout((3, 1)), 37),
    Case((2, 64, 64, 1), ("tanh", "sin", ""), Layout((4, 1)), 70, biases="even"),
    Case((2, 17, 48, 5), ("silu", "tanh", ""), Layout((2, 2)), 90, biases=False),
    Case((3, 128, 40, 1), ("sin", "sin", ""), Layout((2, 2, 1)), 33),
    Case((256, 16, 16, 16), ("tanh", "silu", ""), Layout((2, 2), (1.0, -0.5)), 64),
    Case((2, 100, 128, 1), ("sin", "tanh", ""), Layout((4, 4, 4), (8 / 9, 8 / 9, 8 / 9)), 50),
)
