"""What the planner returns: what to propagate, and how to read off each quantity."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from taylorderiv.layout import Layout
from taylorderiv.planner.polynomial import Polynomial, Vector

_ROWS = 12
_MOST_KEPT = 256


def kept(store: dict[Any, Tensor], key: Any, device: torch.device, build: Callable[[], Tensor]) -> Tensor:
    """``store[key]``, or what ``build`` makes on the device, kept there for the next time: not to be changed.

    Not kept is what a compiler or a transform makes, which doesn't outlive it, and the memory of a CUDA graph.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    ):
        return build()
    tensor = store.get(key)
    if tensor is None:
        with torch.inference_mode(False):
            tensor = build()
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            if len(store) >= _MOST_KEPT:
                store.clear()
            store[key] = tensor
    return tensor


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a plan costs on a fully connected network, estimated.

    Attributes:
        coefficients: C, the Taylor coefficients that each activation is propagated with.
        flops: additions and multiplications.
        bytes: memory traffic if every operation reads its inputs from memory and writes its outputs there; a
            fused chain has less.
    """

    coefficients: int
    flops: float
    bytes: float

    def __str__(self) -> str:
        return f"C = {self.coefficients}, {format_scaled(self.flops)}FLOP, {format_scaled(self.bytes)}B"


@dataclasses.dataclass(frozen=True)
class Plan:
    """One pass of a jet that gives all requested quantities.

    Attributes:
        quantities: what was requested, in order.
        dimension: the number D of variables.
        vectors: the R directions, sparse.
        layout: the directions' orders, and the weights of the collapsed top coefficient if there is one.
        reads: per quantity, ``(index of a coefficient, factor)`` pairs: the quantity is the sum of factor
            times (scaled Taylor) coefficient. The factors include the factorials.
        condition: by how much rounding is amplified: the error of the worst quantity, if every directional
            derivative is off by one rounding, over that of adding up correctly rounded partial derivatives;
            at least 1.
        variables: names of the variables, for printing.
    """

    quantities: tuple[Polynomial, ...]
    dimension: int
    vectors: tuple[Vector, ...]
    layout: Layout
    reads: tuple[tuple[tuple[int, float], ...], ...]
    condition: float
    variables: tuple[str, ...] | None = None

    @functools.cached_property
    def size(self) -> int:
        """The number C of coefficients, the primal included."""
        return self.layout.size

    @property
    def orders(self) -> tuple[int, ...]:
        """The order of each direction."""
        return self.layout.orders

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Each direction's weight in the collapsed top coefficient; None if nothing is collapsed."""
        return self.layout.weights

    @property
    def directions(self) -> Tensor:
        """The directions, ``(R, D)`` in float64."""
        return self._new_direction_tensor(torch.float64, torch.device("cpu"))

    def direction_tensor(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The directions, ``(R, D)``, kept for the next time: not to be changed."""
        return self._kept("directions", dtype, device, self._new_direction_tensor)

    def lines(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A coordinate's coefficients above the primal, ``(C - 1, D)``, kept for the next time: not to be changed."""
        return self._kept("lines", dtype, device, lambda *kind: self.layout.lines(self._new_direction_tensor(*kind)))

    def _kept(self, name: str, dtype: torch.dtype, device: torch.device, build: Callable[..., Tensor]) -> Tensor:
        return kept(self._tensors, (name, dtype, device), device, lambda: build(dtype, device))

    @functools.cached_property
    def _tensors(self) -> dict[tuple[str, torch.dtype, torch.device], Tensor]:
        return {}

    def _new_direction_tensor(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        out = torch.zeros(len(self.vectors), self.dimension, dtype=dtype, device=device)
        if self.vectors:
            entries = [(r, i, value) for r, vector in enumerate(self.vectors) for i, value in vector]
            rows, columns, values = map(list, zip(*entries, strict=True))
            out[rows, columns] = torch.tensor(values, dtype=dtype, device=device)
        return out

    @property
    def multiplications(self) -> int:
        """Multiplications in one Cauchy product, the top coefficient's included."""
        return 1 + sum((order + 1) * (order + 2) // 2 - 1 for order in self.orders)

    def chunks(self, size: int) -> tuple[Plan, ...]:
        """The plan in passes of at most ``size`` directions; each quantity is the sum of the passes'.

        Raises:
            ValueError: ``size`` isn't a positive integer.
        """
        if type(size) is not int or size < 1:
            raise ValueError(f"a chunk must be a positive number of directions, got {size!r}")
        count = len(self.vectors)
        if count <= size:
            return (self,)
        starts = range(0, count, size)
        return tuple(self._restricted(range(i, min(i + size, count)), first=i == 0) for i in starts)

    def _restricted(self, directions: Sequence[int], first: bool) -> Plan:
        weights = None if self.weights is None else tuple(self.weights[r] for r in directions)
        if weights is not None and not any(weights):
            weights = None
        layout = Layout(tuple(self.orders[r] for r in directions), weights)
        place = {0: 0} if first else {}
        ours, theirs = self.layout.first_places, layout.first_places
        for new, old in enumerate(directions):
            for k in range(1, layout.stored(new) + 1):
                place[ours[old] + k - 1] = theirs[new] + k - 1
        if layout.collapsed:
            place[self.size - 1] = layout.size - 1
        return dataclasses.replace(
            self,
            vectors=tuple(self.vectors[r] for r in directions),
            layout=layout,
            reads=tuple(
                tuple((place[index], factor) for index, factor in terms if index in place) for terms in self.reads
            ),
        )

    def cost(self, widths: Sequence[int], points: int, *, itemsize: int = 4, backward: bool = True) -> Cost:
        """What the plan costs on a fully connected network.

        Args:
            widths: the layers' widths, from the inputs to the outputs.
            points: the number of points.
            itemsize: bytes of a number.
            backward: whether the gradient by the parameters is included.

        Raises:
            ValueError: fewer than two widths, or a width or number of points that isn't positive.
        """
        return _network_cost(self.size, self.multiplications, widths, points, itemsize, backward)

    def __str__(self) -> str:
        names = self.variables
        title = "collapsed " if self.layout.collapsed else ""
        counts = f"C = {self.size} coefficients, {len(self.vectors)} {title}directions"
        order = f"order {self.layout.order}, rounding amplified by {self.condition:.3g}"
        lines = [f"plan: {counts}, {order}"]
        weights = self.weights or (0.0,) * len(self.vectors)
        rows = [
            (str(r), str(order), f"{weight:.6g}" if weight else "-", _format_vector(vector, names))
            for r, (order, weight, vector) in enumerate(
                zip(self.orders[:_ROWS], weights[:_ROWS], self.vectors[:_ROWS], strict=True)
            )
        ]
        lines += format_table(("direction", "order", "weight of top", "along"), rows, len(self.vectors))
        named = dict(self._coefficient_names())
        rows = []
        for quantity, terms in zip(self.quantities[:_ROWS], self.reads[:_ROWS], strict=True):
            text = "".join(f" {'-' if f < 0 else '+'} {abs(f):.6g} {named[i]}" for i, f in terms[:_ROWS])
            text = (text + (" + …" if len(terms) > _ROWS else "")).removeprefix(" + ").strip() or "0"
            rows.append((quantity.format(names), text))
        lines += format_table(("quantity", "from coefficients"), rows, len(self.quantities))
        return "\n".join(lines)

    def _coefficient_names(self) -> list[tuple[int, str]]:
        names = [(0, "c0")]
        for r, place in enumerate(self.layout.first_places):
            names += [(place + k - 1, f"c{k}[{r}]") for k in range(1, self.layout.stored(r) + 1)]
        return [*names, (self.size - 1, "T")] if self.layout.collapsed else names


@dataclasses.dataclass(frozen=True)
class NestedPlan:
    """A jet of a jet: the outer plan applied to the function whose outputs are the inner plan's quantities.

    Attributes:
        outer: the plan of the outer pass.
        inner: the plan of the inner one.
        pairs: per requested quantity, which of the outer's and which of the inner's quantities it is.
        quantities: what was requested.
        variables: names of the variables, for printing.
    """

    outer: Plan | NestedPlan
    inner: Plan | NestedPlan
    pairs: tuple[tuple[int, int], ...]
    quantities: tuple[Polynomial, ...]
    variables: tuple[str, ...] | None = None

    @property
    def dimension(self) -> int:
        """The number D of variables."""
        return self.outer.dimension

    @property
    def size(self) -> int:
        """The number of coefficients: the product of the outer's and the inner's."""
        return self.outer.size * self.inner.size

    @property
    def condition(self) -> float:
        """By how much rounding is amplified, at most."""
        return self.outer.condition * self.inner.condition

    @property
    def multiplications(self) -> int:
        """Multiplications in one Cauchy product of Cauchy products."""
        return self.outer.multiplications * self.inner.multiplications

    def cost(self, widths: Sequence[int], points: int, *, itemsize: int = 4, backward: bool = True) -> Cost:
        """What the plan costs on a fully connected network: see `Plan.cost`."""
        return _network_cost(self.size, self.multiplications, widths, points, itemsize, backward)

    def __str__(self) -> str:
        outer = dataclasses.replace(self.outer, variables=self.variables)
        inner = dataclasses.replace(self.inner, variables=self.variables)
        counts = f"C = {outer.size} x {inner.size} = {self.size} coefficients"
        lines = [f"nested plan: {counts}, rounding amplified by {self.condition:.3g}"]
        for name, part in (("outer", outer), ("inner", inner)):
            lines += [f"{name} {line}" if not i else f"  {line}" for i, line in enumerate(str(part).split("\n"))]
        return "\n".join(lines)


def _network_cost(
    size: int, multiplications: int, widths: Sequence[int], points: int, itemsize: int, backward: bool
) -> Cost:
    if len(widths) < 2 or any(width < 1 for width in widths):
        raise ValueError(f"widths must be two or more positive numbers, inputs first, got {tuple(widths)}")
    if points < 1:
        raise ValueError(f"points must be positive, got {points}")
    products = sum(a * b for a, b in itertools.pairwise(widths))
    hidden, ends = sum(widths[1:-1]), widths[0] + widths[-1]
    # A linear layer is a GEMM over all coefficients; an activation is a slope's recurrence and a product.
    flops = 2 * size * products + 4 * multiplications * hidden
    numbers = size * (ends + 4 * hidden)
    # The backward has two GEMMs and two products for each of the forward's.
    passes = 3 if backward else 1
    return Cost(size, float(flops) * points * passes, float(numbers) * points * passes * itemsize)


def _format_vector(vector: Vector, names: Sequence[str] | None) -> str:
    def term(variable: int, value: int | float) -> str:
        name = names[variable] if names is not None else f"x{variable}"
        size = "" if abs(value) == 1 else f"{abs(value):.4g} "
        return f"{'-' if value < 0 else '+'} {size}{name}"

    text = " ".join(term(variable, value) for variable, value in vector[:_ROWS])
    return text.removeprefix("+ ") + (" + …" if len(vector) > _ROWS else "")


def format_table(header: tuple[str, ...], rows: list[tuple[str, ...]], total: int) -> list[str]:
    """The lines of a table, an empty one first; says so if these aren't all of its ``total`` rows."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    if total > len(rows):
        lines.append(f"… {total - len(rows)} more")
    return ["", *lines]


def format_scaled(value: float) -> str:
    """A number with three digits and a prefix: 12.3 M."""
    power = min(int(math.log10(max(value, 1.0)) // 3), 5)
    return f"{value / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P'][power]}"
