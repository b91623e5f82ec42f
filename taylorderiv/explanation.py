"""What runs when derivatives are computed, how much of it is fused, and how far from the matrix products' own time."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from taylorderiv import kernels
from taylorderiv.api import derivatives, partials
from taylorderiv.evaluation import Points
from taylorderiv.jet import check_order
from taylorderiv.operators import LinearOperator, plan
from taylorderiv.planner import NestedPlan, Plan, format_scaled, format_table

_ROUNDS = 5
_SMALL = 0.02  # of the bytes of a pass: not worth a line

Product = tuple[int, int, int]
"""A matrix product ``(rows, in) @ (in, out)``."""


@dataclass(frozen=True)
class Step:
    """An op that ran.

    Attributes:
        op: its name.
        what: a network's layers, if the op is a fused chain.
        products: the matrix products of the layers, each once.
        flops: floating-point operations of matrix products and convolutions.
        coefficients: how many pass activations.
        bytes: of its results.
    """

    op: str
    what: str
    products: tuple[Product, ...]
    flops: int
    coefficients: int
    bytes: int


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; printing it gives a table.

    Attributes:
        plan: what is propagated; None for derivatives along one direction.
        forward: the ops of the forward pass.
        backward: those of the gradient of a loss; empty where nothing requires a gradient.
        seconds: measured, forward and (if there is one) backward, a median.
        predicted: by the cost model by which saving or recomputing is chosen, which describes one server core.
        floor: measured, a median: the matrix products alone, into memory that exists. With a gradient, three for each
            layer: its output, and the gradients of its input and weight.
    """

    plan: Plan | NestedPlan | None
    forward: tuple[Step, ...]
    backward: tuple[Step, ...]
    seconds: float
    predicted: float
    floor: float

    @property
    def fused(self) -> tuple[Step, ...]:
        """The chains of layers that ran as one op each."""
        return tuple(step for step in self.forward if step.what)

    @property
    def flops(self) -> int:
        """Floating-point operations of matrix products and convolutions."""
        return sum(step.flops for step in (*self.forward, *self.backward))

    @property
    def bytes(self) -> int:
        """Memory written by ops, the forward and the backward pass together."""
        return sum(step.bytes for step in (*self.forward, *self.backward))

    def __str__(self) -> str:
        lines = [] if self.plan is None else [str(self.plan), ""]
        fused = sum(step.flops for step in self.fused)
        total = sum(step.flops for step in self.forward)
        share = f"{100 * fused / total:.0f} % of the forward pass's matrix products are" if total else "nothing is"
        lines.append(f"{share} in fused chains")
        rows = []
        for name, steps in (("forward", self.forward), ("backward", self.backward)):
            rows += [(name, *row) for row in _grouped(steps)]
        lines += format_table(("pass", "op", "calls", "FLOP", "bytes", "what"), rows, len(rows))
        flops, written = format_scaled(self.flops), format_scaled(self.bytes)
        lines += ["", f"altogether {flops}FLOP in matrix products, {written}B written"]
        times = [
            ("measured", self.seconds),
            ("predicted", self.predicted),
            ("floor, the matrix products alone", self.floor),
        ]
        lines += [f"{1e3 * seconds:10.3g} ms  {name}" for name, seconds in times]
        return "\n".join(lines)


def explain(
    f: Callable[[Any], Any],
    x: Points,
    request: int | Sequence[Any] | LinearOperator,
    variables: str | Sequence[str] | None = None,
) -> Explanation:
    """What runs when derivatives of a function are computed, what of it is fused, and what it costs.

    The derivatives are computed a few times; if they require a gradient, so is that of the mean of their squares, with
    respect to all that require one. No ``.grad`` is set.

    Args:
        f: a function or module, as for `derivatives`, `partials`, or an operator.
        x: its points.
        request: an order (what `derivatives` does), names of partial derivatives (`partials`), or an operator.
        variables: the variables' names, for partial derivatives.

    Returns:
        An `Explanation`. Print it.

    Raises:
        TypeError, ValueError: as the functions named above.

    Example:
        >>> print(explain(model, points, ["t", "xx"], variables="xt"))
    """
    found: Plan | NestedPlan | None = None
    if isinstance(request, LinearOperator):
        count = len(x) if not isinstance(x, Tensor) else x.shape[-1]
        found = request.plan(None if request.variables else count)

        def run() -> Any:
            return request(f, x)

    elif isinstance(request, Sequence):
        names = tuple(variables) if variables is not None else None

        def run() -> Any:
            values = partials(f, x, request, names)
            return [values[name] for name in request]

        if names is not None:
            found = plan(list(request), names)
    else:
        check_order(request)

        def run() -> Any:
            return derivatives(f, x, request)  # pyright: ignore[reportArgumentType]

    with _Recorder() as forward:
        outputs = _tensors(run())
    with _Recorder() as backward:
        leaves = _gradients(outputs)
    steps = (tuple(forward.steps), tuple(backward.steps))

    def timed() -> None:
        _gradients(_tensors(run()), leaves)

    products = [product for step in steps[0] for product in step.products]
    every = (*steps[0], *steps[1])
    dtype = outputs[0].dtype
    predicted = kernels.predicted_seconds(
        dtype,
        operations=sum(step.flops for step in every),
        coefficients=sum(step.coefficients for step in every),
        fresh_bytes=sum(step.bytes for step in every),
    )
    seconds, floor = _seconds(timed, _floor(products, dtype, outputs[0].device, 3 if leaves else 1))
    return Explanation(found, *steps, seconds, predicted / torch.get_num_threads(), floor)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]


def _gradients(outputs: list[Tensor], leaves: list[Tensor] | None = None) -> list[Tensor]:
    """Run the backward pass of a loss, and return what it's with respect to: by default, all leaves of the graph."""
    recorded = [y for y in outputs if y.requires_grad]
    if not recorded:
        return []
    loss = sum((y.square().mean() for y in recorded), start=torch.zeros((), device=recorded[0].device))
    leaves = list(_leaves(loss)) if leaves is None else leaves
    torch.autograd.grad(loss, leaves, allow_unused=True)
    return leaves


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors at which the graph of a loss ends."""
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable  # pyright: ignore[reportAttributeAccessIssue]
        stack += [parent for parent, _ in node.next_functions]


class _Recorder(TorchDispatchMode):
    """Notes every op that computes something."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = packet._qualified_op_name.replace("::", ".").removeprefix("aten.")
        if name in ("taylorderiv.chain", "taylorderiv.chain_backward"):
            self.steps.append(_chain_step(name, args, result))
        elif not func.is_view and not name.endswith("detach"):
            formula = flop_registry.get(packet)
            flops = formula(*args, **(kwargs or {}), out_val=result) if formula is not None else 0
            products = _products(name, args) if flops else ()
            written = _tensors(result)
            count = sum(t.numel() for t in written) if name.startswith("taylorderiv.") else 0
            self.steps.append(Step(name, "", products, flops, count, _size(written)))
        return result


def _products(name: str, args: Any) -> tuple[Product, ...]:
    if name not in ("mm", "addmm"):
        return ()
    a, b = args[-2:]
    return ((a.shape[0], a.shape[1], b.shape[1]),)


def _chain_step(name: str, args: Any, result: Any) -> Step:
    backward = name.endswith("backward")
    x, higher = args[1:3] if backward else args[:2]
    weights, _, ops = args[4:7] if backward else args[2:5]
    points = x.shape[1]
    size = 1 + higher.shape[0] if higher.numel() else x.shape[0]
    rows = [x.shape[0] * points, *[size * points] * (len(weights) - 1)]
    products: list[Product] = [(n, w.shape[1], w.shape[0]) for n, w in zip(rows, weights, strict=True)]
    flops = sum(2 * n * i * o for n, i, o in products)
    coefficients = size * points * sum(w.shape[0] for w, op in zip(weights, ops, strict=True) if op)
    notes = ["seed"] * bool(higher.numel())
    if backward:
        # Layers that the backward pass needs; of a seed the first one isn't worth saving.
        needed = [i for i, op in enumerate(ops) if op or i + 1 < len(ops)]
        saveable = [i for i in needed if i > 0 or not higher.numel()]
        all_numbers = size * points * sum(weights[i].shape[0] for i in saveable)
        share = min(sum(saved.numel() for saved in args[3]) / all_numbers, 1.0) if all_numbers else 0.0
        some = f"layers of {share:.0%} of the points saved"
        notes += ["layers recomputed" if share == 0 else "layers saved" if share > 0.99 else some]
        forward = [2 * n * i * o for n, i, o in products]
        recomputed = round(sum(forward[i] * (1 - share if i in saveable else 1) for i in needed))
        # Two products a layer, the first one's input gradient only if it's wanted, and forward ones again.
        flops = 2 * flops + recomputed - (0 if args[-1] else forward[0])
        coefficients *= 2  # forward again, and backward
    widths = [str(weights[0].shape[1])] + [f"{w.shape[0]} {op}".strip() for w, op in zip(weights, ops, strict=True)]
    what = " → ".join(widths) + "".join(f", {note}" for note in notes)
    return Step(name, what, tuple(products), flops, coefficients, _size(_tensors(result)))


def _size(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _grouped(steps: Sequence[Step]) -> list[tuple[str, ...]]:
    """A row for each op: the fused ones first, then by floating-point operations and bytes; small ones together."""
    calls = Counter((step.op, step.what) for step in steps)
    flops, size = Counter(), Counter()
    for step in steps:
        flops[step.op, step.what] += step.flops
        size[step.op, step.what] += step.bytes
    for key in list(calls):
        if flops[key] == 0 and size[key] < _SMALL * size.total():
            for counter in (calls, size):
                counter["others", ""] += counter.pop(key)
    keys = sorted(calls, key=lambda key: (key[1] == "", -flops[key], -size[key]))
    return [
        (op, str(calls[op, what]), format_scaled(flops[op, what]), format_scaled(size[op, what]) + "B", what)
        for op, what in keys
    ]


def _seconds(*runs: Callable[[], object]) -> list[float]:
    """The median time of each. By turns, so that whatever else the machine does falls on all of them."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(1 + _ROUNDS):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in times]


def _floor(products: Sequence[Product], dtype: torch.dtype, device: torch.device, each: int) -> Callable[[], object]:
    """The matrix products alone, ``each`` of the three that belong to a layer, into memory that exists."""
    shapes = [
        [torch.rand(shape, dtype=dtype, device=device) for shape in ((n, i), (o, i), (n, o))] for n, i, o in products
    ]
    results = [[torch.empty_like(t) for t in tensors] for tensors in shapes]

    def run() -> None:
        for (h, w, z), (dh, dw, out) in zip(shapes, results, strict=True):
            torch.mm(h, w.T, out=out)
            if each > 1:
                torch.mm(z, w, out=dh)
                torch.mm(z.T, h, out=dw)

    return run
