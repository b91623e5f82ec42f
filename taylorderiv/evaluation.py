"""Running a plan: seed a jet with its directions, call the function, read off the quantities."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from taylorderiv.chain import may_be_seed
from taylorderiv.jet import Jet, check_like, check_variable, nested_level
from taylorderiv.planner import NestedPlan, Plan, kept

Points = Tensor | Mapping[str, Tensor]
"""Points of shape ``(…, D)``, or a tensor per variable, all of one shape such as ``(N, 1)``."""

_MANY_TERMS = 64
_FEW_FACTORS = 2  # as many products cost less than one of all coefficients
_DEFAULT_WIDTH = 1024
_factors: dict[Any, Tensor] = {}
_NEGLIGIBLE_BYTES = 2**24  # not worth the time to ask for the free memory


class ChunkWarning(UserWarning):
    """Directions were propagated in chunks to stay within the memory there is."""


class PlanStore:
    """Plans as attributes: a compiler then guards each for itself."""


plans = PlanStore()


def plan_once(owner: Any, name: str, build: Callable[..., Plan | NestedPlan], *arguments: Any) -> Any:
    """The attribute of ``owner`` called ``name``, set to ``build(*arguments)`` the first time.

    A compiler can't trace the planning: it runs it while it traces and finds its result as an attribute.

    Args:
        owner: `plans`, or an operator.
        name: the attribute.
        build: a function, not a closure.
        arguments: of ``build``: constants, or objects that exist before the compiled code runs.
    """
    _store(owner, name, build, *arguments)
    return getattr(owner, name)


def _store(owner: Any, name: str, build: Callable[..., Plan | NestedPlan], *arguments: Any) -> bool:
    if not hasattr(owner, name):
        setattr(owner, name, build(*arguments))
    return True


# What torch.compiler.assume_constant_result does, without its import of the whole compiler.
_store._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def check_points(x: Any, dimension: int | None = None) -> int:
    """The number D of variables of points.

    Raises:
        TypeError: ``x`` isn't made of floating-point tensors.
        ValueError: it has no variables or another number of them than ``dimension``, or tensors of
            different shapes.
    """
    if isinstance(x, Mapping):
        if not x:
            raise ValueError("x must have at least one variable, got an empty dict")
        first = next(iter(x.values()))
        for name, tensor in x.items():
            check_variable(tensor, f"variable {name!r}")
            check_like(tensor, first, f"variable {name!r}")
        count = len(x)
    else:
        check_variable(x, "x")
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"x must have the variables along its last axis, got shape {tuple(x.shape)}")
        count = x.shape[-1]
    if dimension is not None and count != dimension:
        raise ValueError(f"x has {count} variables, expected {dimension}")
    return count


def evaluate(plan: Plan | NestedPlan, f: Callable[[Any], Any], x: Points, *, chunk_size: int | None = None) -> Any:
    """All quantities of a plan at all points.

    Args:
        plan: what to compute. If ``x`` is a dict, the plan's variables are its entries in order.
        f: the function; called with a jet in place of ``x`` (or a dict of jets), once per chunk.
        x: the points.
        chunk_size: how many directions to propagate at once, by default as many as half of the free memory is
            guessed to hold, with a `ChunkWarning` if those aren't all. Where gradients are recorded, the
            outermost chunks are recomputed in the backward pass: one of them is in memory at a time.

    Returns:
        A tensor ``(Q, *f(x).shape)``.

    Raises:
        TypeError: ``f`` doesn't return a tensor.
        ValueError: ``chunk_size`` isn't positive.
    """
    values = _quantities(plan, f, x, chunk_size)
    return torch.stack(values) if isinstance(values, list) else values


def evaluate_each(
    plan: Plan | NestedPlan, f: Callable[[Any], Any], x: Points, *, chunk_size: int | None = None
) -> Sequence[Any]:
    """What `evaluate` returns, quantity by quantity, without a tensor of all of them where none is needed."""
    values = _quantities(plan, f, x, chunk_size)
    return values if isinstance(values, list) else values.unbind(0)


def _quantities(plan: Plan | NestedPlan, f: Callable[[Any], Any], x: Points, chunk_size: int | None) -> Any:
    """A list of them, or a tensor of all, ``(Q, *f(x).shape)``."""
    if isinstance(plan, NestedPlan):
        inner, outer = plan.inner, plan.outer
        values = evaluate(outer, lambda z: evaluate(inner, f, z, chunk_size=chunk_size), x, chunk_size=chunk_size)
        return [values[i, j] for i, j in plan.pairs]
    if chunk_size is None:
        chunk_size = _affordable_chunk(plan, f, x)
    chunks = plan.chunks(chunk_size)
    if len(chunks) == 1:
        return _propagate(plan, f, x)
    recompute = torch.is_grad_enabled() and _outermost() and not _in_functorch()
    total = None
    for chunk in chunks:
        part = checkpoint(_propagate, chunk, f, x, use_reentrant=False) if recompute else _propagate(chunk, f, x)
        if total is None:
            total = part
        elif isinstance(part, list):
            total = [a + b for a, b in zip(total, part, strict=True)]
        else:
            total = total + part
    return total


def _propagate(plan: Plan, f: Callable[[Any], Any], x: Any) -> Any:
    if not plan.vectors:
        return _read(plan, check_output(f(x))[None], constant=True)
    with nested_level() as level:
        if isinstance(x, Mapping):
            rows = plan.directions.T.tolist()
            seeds = {
                name: Jet.variable(tensor, plan.orders, _constants(row, tensor), plan.weights, level)
                for (name, tensor), row in zip(x.items(), rows, strict=True)
            }
        elif may_be_seed(x):
            seeds = Jet.seeded(x, plan.lines(x.dtype, x.device), plan.layout, level)
        else:
            directions = plan.direction_tensor(x.dtype, x.device)
            directions = directions.reshape(-1, *[1] * (x.ndim - 1), plan.dimension)
            seeds = Jet.variable(x, plan.orders, directions, plan.weights, level)
        y = check_output(f(seeds))
        if isinstance(y, Jet) and y.level == level:
            return _read(plan, y.coefficients)
        return _read(plan, y[None], constant=True)


def _constants(numbers: Sequence[float], like: Any) -> list[Tensor]:
    """For each number a direction that the points of a variable share (see :meth:`Jet.variable`)."""
    shape = [1] * (like.ndim - 1) + list(like.shape[-1:])
    return [torch.full(shape, number, dtype=like.dtype, device=like.device) for number in numbers]


def check_output(y: Any) -> Any:
    """What a function returned, if it's a tensor or jet; a TypeError otherwise."""
    if not isinstance(y, (Tensor, Jet)):
        raise TypeError(f"the function must return a torch.Tensor, got {type(y).__name__}")
    return y


def _read(plan: Plan, coefficients: Any, constant: bool = False) -> Any:
    """The quantities, a list or a tensor ``(Q, *shape)``. ``constant``: there is a primal only."""
    reads = plan.reads
    if constant:  # the function doesn't depend on the variables
        reads = tuple(tuple((i, factor) for i, factor in terms if i == 0) for terms in reads)
    if isinstance(coefficients, Jet) or sum(map(len, reads)) <= _MANY_TERMS:
        single = {terms[0][0]: terms[0][1] for terms in reads if len(terms) == 1}
        factors = [single.get(i, 1.0) for i in range(coefficients.shape[0])]
        few = sum(factor != 1 for factor in factors) <= _FEW_FACTORS and coefficients.dtype.itemsize > 2
        # Where each quantity is a coefficient of its own, and most are wanted, one product does it.
        if len(single) == len(reads) and len(factors) <= 2 * len(reads) and not few:
            parts = scaled(coefficients, factors).unbind(0)
            return [parts[i] for i in single]
        parts = coefficients.unbind(0)  # once: the gradient of each indexing would be as large as all of them
        return [_combine(parts, terms) if terms else torch.zeros_like(parts[0]) for terms in reads]
    shape, dtype, device = coefficients.shape[1:], coefficients.dtype, coefficients.device
    triples = [(q, i, factor) for q, terms in enumerate(reads) for i, factor in terms]
    quantities, indices, factors = map(list, zip(*triples, strict=True))
    scale = _on_device(factors, dtype, device)
    terms = coefficients[_on_device(indices, torch.int64, device)] * scale.reshape(-1, *[1] * len(shape))
    out = torch.zeros(len(reads), *shape, dtype=dtype, device=device)
    return out.index_add(0, _on_device(quantities, torch.int64, device), terms)


def scaled(coefficients: Any, factors: Sequence[float]) -> Tensor:
    """Coefficients ``(C, *shape)``, each times its factor."""
    dtype = torch.promote_types(coefficients.dtype, torch.float32)  # in which the factors are finite
    device = coefficients.device
    scale = kept(_factors, (*factors, dtype, device), device, lambda: _on_device(factors, dtype, device))
    return (coefficients * scale.reshape(-1, *[1] * (coefficients.ndim - 1))).to(coefficients.dtype)


def _on_device(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():  # a graph can't copy from the host
        return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])
    return torch.tensor(values, dtype=dtype, device=device)


def _combine(coefficients: Any, terms: tuple[tuple[int, float], ...]) -> Any:
    total = None
    for index, factor in terms:
        term = coefficients[index] if factor == 1 else coefficients[index] * factor
        total = term if total is None else total + term
    return total


# Memory.


def _affordable_chunk(plan: Plan, f: Any, x: Any) -> int:
    """How many directions half of the free memory is guessed to hold; all of them where there's no doubt."""
    count = len(plan.vectors)
    if count <= 32 or torch.compiler.is_compiling():
        return max(count, 1)
    tensor = next(iter(x.values())) if isinstance(x, Mapping) else x
    if tensor.device.type not in ("cpu", "cuda"):
        return count
    points = tensor.numel() if isinstance(x, Mapping) else tensor.numel() // tensor.shape[-1]
    numbers = plan.dimension + _width(f)
    per_direction = plan.size / count * points * numbers * tensor.element_size()
    if count * per_direction < _NEGLIGIBLE_BYTES:
        return count
    room = _free_memory(tensor.device) / 2
    size = max(int(room / per_direction), 1) if per_direction else count
    if size >= count:
        return count
    size = math.ceil(count / math.ceil(count / size))
    warnings.warn(
        f"propagating {count} directions in chunks of {size}, to stay within half of the "
        f"{room * 2 / 2**30:.1f} GiB of free memory; pass chunk_size= to choose otherwise",
        ChunkWarning,
        stacklevel=4,
    )
    return size


def _width(f: Any) -> int:
    """Numbers that a network holds per point: two per neuron; a guess for other functions."""
    modules = f.modules() if isinstance(f, torch.nn.Module) else ()
    widths = [width for module in modules if isinstance(width := getattr(module, "out_features", None), int)]
    return 2 * sum(widths) or _DEFAULT_WIDTH


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2


def _outermost() -> bool:
    """Whether no other differentiation runs: recomputed later, outside it, its jets would be taken for ours."""
    with nested_level() as level:
        return level[0] == 1


def _in_functorch() -> bool:
    """Whether a transform of torch.func is active: it can't recompute in the backward pass."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore
