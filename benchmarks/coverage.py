"""Every entry of PyTorch's databases of operators and modules, in Taylor mode and in PyTorch's own nested modes.

    python benchmarks/coverage.py                  # all samples of all entries, orders 1 to 3, and gradients
    python benchmarks/coverage.py --fast           # two samples of each, orders 1 and 2
    python benchmarks/coverage.py --ops linalg.qr  # some entries;  --complex: in complex128
    python benchmarks/coverage.py --modules        # the layers of torch.nn, each in training and in evaluation mode

All differentiable inputs of a sample move at once, along random directions; parameters have gradients. An entry's
verdict is the worst of its samples'. The exit status isn't 0 if anything is wrong, or unsupported without being listed
as such below.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import math
import multiprocessing
import random
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import taylorderiv
from torch_modules import modules

# Entries that some sample of raises NotImplementedError for, and why.
UNSUPPORTED: dict[str, str] = {
    # Without forward mode in PyTorch:
    **dict.fromkeys(("grid_sampler_3d", "nn.functional.grid_sample"), "the 3D op has no derivative in forward mode"),
    "to_sparse": "Taylor coefficients are dense",
    **dict.fromkeys(
        (f"nn.{name}.{mode}" for name in ("AdaptiveLogSoftmaxWithLoss", "CrossMapLRN2d") for mode in ("train", "eval")),
        "is Python code that writes into new plain tensors",
    ),
}

# Entries that PyTorch's nested forward mode gets wrong. Each time, values of the function nearby, interpolated by a
# polynomial, must side with Taylor mode: that is checked, the reason is for the reader.
_FACTORS = "takes the LU factors inside for constants, from the second order on"
_STATISTICS = "takes the saved mean and variance for constants, from the second order on"
_VECTORS = "takes the eigenvectors inside for constants, from the third order on"
_ZEROS = "of elements next to a 0, takes the other factors for constants"
ORACLE_WRONG: dict[str, str] = {
    **dict.fromkeys(("linalg.solve", "linalg.solve_ex", "linalg.tensorsolve"), _FACTORS),
    **dict.fromkeys(("linalg.det", "linalg.slogdet", "logdet"), _FACTORS),
    **dict.fromkeys(("linalg.eig", "linalg.eigvals"), _VECTORS),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update"), _STATISTICS),
    **dict.fromkeys((f"nn.functional.{name}_norm" for name in ("batch", "instance", "layer")), _STATISTICS),
    "native_layer_norm": _STATISTICS,
    **dict.fromkeys((f"nn.{kind}BatchNorm{n}d.train" for kind in ("", "Lazy") for n in (1, 2, 3)), _STATISTICS),
    **dict.fromkeys((f"nn.BatchNorm{n}d.eval" for n in (1, 2, 3)), _STATISTICS),
    **dict.fromkeys((f"nn.LazyInstanceNorm{n}d.train" for n in (1, 2, 3)), _STATISTICS),
    **dict.fromkeys((f"nn.InstanceNorm{n}d.{mode}" for n in (1, 2, 3) for mode in ("train", "eval")), _STATISTICS),
    **dict.fromkeys(
        (f"nn.{name}.{mode}" for name in ("LayerNorm", "TransformerDecoder") for mode in ("train", "eval")), _STATISTICS
    ),
    **dict.fromkeys(
        (
            *(f"nn.LinearCrossEntropyLoss.{mode}" for mode in ("train", "eval")),
            *(f"nn.functional.linear_cross_entropy.{what}" for what in ("chunked", "chunked_none")),
        ),
        "has 0 for the derivative of chunks",
    ),
    "scatter_reduce.prod": "has 0 for the derivative",
    "as_strided_scatter": "its gradient takes the elements that are overwritten for the others",
    **dict.fromkeys(("cumprod", "prod"), _ZEROS),
    "cholesky_inverse": "inverts an ill-conditioned product in the formula of the first derivative",
    "logcumsumexp": "subtracts large numbers in the formula of the first derivative",
}

TOLERANCE = 1e-7  # relative to the largest entry

# What an entry means, in other words, where rounding leaves the other second opinions without a say.
EQUIVALENT: dict[str, Callable[..., Any]] = {
    "logcumsumexp": lambda x, dim: torch.stack(
        [x.narrow(dim, 0, i + 1).logsumexp(dim) for i in range(x.shape[dim])], dim
    ),
}

Function = Callable[..., list[Any]]


class Record(NamedTuple):
    """What became of one sample of an entry."""

    entry: str
    sample: int
    verdict: str
    detail: str


# From the best to the worst. "oracle cannot": neither forward nor reverse mode of PyTorch can be nested.
VERDICTS = ("matched", "oracle cannot", "oracle wrong", "unsupported", "time-out", "WRONG")


# The entries and their samples.


@functools.cache
def entries(dtype: torch.dtype) -> dict[str, Any]:
    """The entries that support a dtype and differentiation, by name."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {
        f"{entry.name}.{entry.variant_test_name}".rstrip("."): entry
        for entry in op_db
        if entry.supports_dtype(dtype, "cpu") and (entry.supports_forward_ad or entry.supports_autograd)
    }


def samples(entry: Any, dtype: torch.dtype) -> Iterator[Any]:
    torch.default_generator.manual_seed(0)
    random.seed(0)
    return iter(entry.sample_inputs("cpu", dtype, requires_grad=True))


def as_function(entry: Any, sample: Any, operation: Any) -> tuple[Function, list[Tensor]]:
    """An operation on a sample, as a function of its differentiable inputs to its floating-point outputs, and these."""
    leaves, structure = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    # A method, such as Tensor.__radd__, is called on the value: Python checks the type of the first argument itself.
    def call_method(first: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(first, operation.__name__)(*args, **kwargs)

    if isinstance(operation, (types.MethodDescriptorType, types.WrapperDescriptorType)):
        called = call_method
    else:
        called = operation

    def function(*inputs: Any) -> list[Any]:
        filled = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for place, value in zip(places, inputs, strict=True):
            filled[place] = value
        first, args, kwargs = pytree.tree_unflatten(filled, structure)
        torch.default_generator.manual_seed(0)
        result = entry.gradcheck_wrapper(called, first, *args, **kwargs)
        if sample.output_process_fn_grad is not None:
            result = sample.output_process_fn_grad(result)
        tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, (Tensor, taylorderiv.Jet))]
        return [leaf for leaf in tensors if leaf.is_floating_point() or leaf.is_complex()]

    # A few samples have an input in single precision among those in double.
    precise = {torch.float32: torch.float64, torch.complex64: torch.complex128}
    return function, [leaves[place].to(precise.get(leaves[place].dtype)) for place in places]


# Derivatives of orders 0 … K along the directions: for each order a list of tensors, one per output.

Derivatives = list[list[Any]]


def by_taylor_mode(f: Function, inputs: Sequence[Tensor], directions: Sequence[Tensor], order: int) -> Derivatives:
    series = [[v, *[torch.zeros_like(v)] * (order - 1)] for v in directions]
    values, derivatives = taylorderiv.jet(f, inputs, series)
    return [values, *([terms[k] for terms in derivatives] for k in range(order))]


def by_forward_mode(f: Function, inputs: Sequence[Tensor], directions: Sequence[Tensor], order: int) -> Derivatives:
    """Nested ``torch.func.jvp``."""
    if order == 0:
        return [f(*inputs)]

    def lower(*x: Tensor) -> Derivatives:
        return by_forward_mode(f, x, directions, order - 1)

    values, tangents, *_ = torch.func.jvp(lower, tuple(inputs), tuple(directions))
    return [*values, tangents[-1]]


def by_reverse_mode(f: Function, inputs: Sequence[Tensor], directions: Sequence[Tensor], order: int) -> Derivatives:
    """Nested ``torch.autograd.grad``: the derivative along a direction is the gradient of a gradient."""
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    results = [f(*[x + t * v for x, v in zip(inputs, directions, strict=True)])]

    def derivative(y: Tensor) -> Tensor:
        if not y.requires_grad:
            return torch.zeros_like(y)
        cotangent = torch.zeros_like(y, requires_grad=True)
        (gradient,) = torch.autograd.grad(y, t, cotangent, create_graph=True, materialize_grads=True)
        if not gradient.requires_grad:
            return torch.zeros_like(y)
        one = torch.ones_like(gradient)
        return torch.autograd.grad(gradient, cotangent, one, create_graph=True, materialize_grads=True)[0]

    for _ in range(order):
        results.append([derivative(y) for y in results[-1]])
    return results


def by_interpolation(f: Function, inputs: Sequence[Tensor], directions: Sequence[Tensor], order: int) -> Derivatives:
    """From values alone: a polynomial through points around the inputs, the step chosen entry by entry."""
    count = 17
    nodes = torch.cos(math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    inverse = torch.linalg.inv(torch.linalg.vander(nodes))
    estimates = []
    for step in (0.4, 0.2, 0.1, 0.05, 0.02):
        rows = [f(*[x + float(step * node) * v for x, v in zip(inputs, directions, strict=True)]) for node in nodes]
        stacks = [torch.stack(column) for column in zip(*rows, strict=True)]
        estimates.append(
            [
                [torch.tensordot(inverse[k].to(y.dtype), y, 1) * (math.factorial(k) / step**k) for y in stacks]
                for k in range(order + 1)
            ]
        )
    return [[_most_stable([e[k][i] for e in estimates]) for i in range(len(estimates[0][k]))] for k in range(order + 1)]


def _most_stable(candidates: list[Tensor]) -> Tensor:
    """Of successive approximations, the one that changed least, entry by entry."""
    changes = torch.stack([(b - a).abs() for a, b in itertools.pairwise(candidates)])
    best = torch.nan_to_num(changes, nan=math.inf).argmin(0, keepdim=True)
    return torch.stack(candidates[1:]).gather(0, best)[0]


# Comparisons.


def disagreement(got: Derivatives, expected: Derivatives, rtol: float = TOLERANCE, *, lowest: int = 0) -> str:
    """What is wrong, or nothing.

    A value is always compared, a derivative where the oracle is finite and the value isn't NaN: with us derivatives are
    NaN where the value is; nested autograd may leave terms out rather than multiply NaN by 0.
    """
    values = [y.isnan() for y in expected[0]] if lowest == 0 and expected else []
    for k, (ours, theirs) in enumerate(zip(got, expected, strict=False), start=lowest):
        if len(ours) != len(theirs):
            return f"{len(ours)} outputs instead of {len(theirs)}"
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            where = f"order {k} of output {i}, shape {tuple(b.shape)}"
            a, b = a.detach().resolve_conj(), b.detach().resolve_conj()
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{where}: {a.dtype} {tuple(a.shape)} instead of {b.dtype} {tuple(b.shape)}"
            finite = b.isfinite()
            if k > 0 and len(theirs) == len(values):
                finite &= ~values[i]
            if k == 0 and not torch.allclose(a[~finite], b[~finite], equal_nan=True):
                return f"{where}: {a[~finite][:3].tolist()} instead of {b[~finite][:3].tolist()}"
            a, b = a[finite], b[finite]
            if not a.isfinite().all():
                return f"{where}: {int((~a.isfinite()).sum())} entries aren't finite"
            if b.numel() and (error := float((a - b).abs().max())) > rtol * max(1.0, float(b.abs().max())):
                return f"{where}: off by {error:.1e}, the largest is {float(b.abs().max()):.1e}"
    return ""


def functional(values: Derivatives, at: Derivatives | None = None) -> Tensor:
    """A fixed random linear functional of all values, which are scaled by those at another point if that is given."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64)
    for y, fixed in zip(itertools.chain(*values), itertools.chain(*(at or values)), strict=True):
        weight = torch.rand(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
        scale = max(1.0, float(fixed.detach().abs().max())) if y.numel() else 1.0
        term = (y * weight).sum() / scale
        total = total + (term.real if term.is_complex() else term)
    return total


Method = Callable[[Function, Sequence[Tensor], Sequence[Tensor], int], Derivatives]


def gradients(
    method: Method,
    f: Function,
    inputs: Sequence[Tensor],
    directions: Sequence[Tensor],
    order: int,
    parameters: Sequence[Tensor],
) -> list[Tensor]:
    """Of the functional of the derivatives, with respect to the inputs and the parameters."""
    inputs = [x.detach().requires_grad_() for x in inputs]  # as they lie in memory
    total = functional(method(f, inputs, directions, order))
    if not total.requires_grad:
        return [torch.zeros_like(x) for x in (*inputs, *parameters)]
    return list(torch.autograd.grad(total, (*inputs, *parameters), materialize_grads=True))


def manages(method: Method, f: Function, inputs: Sequence[Tensor], directions: Sequence[Tensor], order: int) -> Any:
    """The derivatives of as many orders as PyTorch's own modes manage; None if they don't manage any."""
    for k in range(order, 0, -1):
        with contextlib.suppress(RuntimeError, NotImplementedError, AttributeError, TypeError, IndexError, ValueError):
            return method(f, inputs, directions, k)
    return None


def judge(entry: Any, sample: Any, order: int) -> tuple[str, str]:
    """The verdict on one sample, and what there's to say about it."""
    f, inputs = as_function(entry, sample, entry.op)
    parameters: list[Tensor] = list(sample.input.parameters()) if isinstance(sample.input, torch.nn.Module) else []
    if not inputs:
        return "matched", "nothing to differentiate"
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in inputs]
    point = (inputs, directions)

    oracle: Method = by_forward_mode
    expected = manages(oracle, f, *point, order)
    orders = 0 if expected is None else len(expected) - 1
    if orders < order and (by_other := manages(by_reverse_mode, f, *point, order)) and len(by_other) > orders + 1:
        oracle, expected, orders = by_reverse_mode, by_other, len(by_other) - 1
    try:
        got = by_taylor_mode(f, *point, max(orders, 1))
    except NotImplementedError as error:
        return ("oracle cannot" if expected is None else "unsupported"), str(error).splitlines()[0]
    value = f(*[x.detach().requires_grad_() for x in inputs])
    varies = [y.requires_grad for y in value]
    if expected is None:
        problem = disagreement(got[:1], [value])
        return ("WRONG" if problem else "oracle cannot"), problem
    got, expected = _constant_where(got, varies), _constant_where(expected, varies)
    problem = disagreement(got, expected)
    if problem:
        equivalent, _ = as_function(entry, sample, EQUIVALENT.get(entry.name, entry.op))
        return _arbitrated(point, equivalent, got, expected, varies, problem)
    if all(y.isfinite().all() for row in expected for y in row):
        return _judge_gradients(oracle, f, inputs, directions, min(orders, 2), varies, parameters)
    return "matched", "some derivatives aren't finite, so no gradient"


def _constant_where(derivatives: Derivatives, varies: list[bool]) -> Derivatives:
    """Without the derivatives of outputs that PyTorch declares not to be differentiable."""
    return [row if k == 0 else [y for y, v in zip(row, varies, strict=True) if v] for k, row in enumerate(derivatives)]


def _arbitrated(
    point: tuple[list[Tensor], list[Tensor]],
    equivalent: Function,
    got: Derivatives,
    expected: Derivatives,
    varies: list[bool],
    problem: str,
) -> tuple[str, str]:
    """Who is right: a second opinion that agrees with one of the two only."""
    orders = len(expected) - 1
    for arbiter, rtol in ((by_interpolation, 1e-4), (by_reverse_mode, TOLERANCE), (by_forward_mode, TOLERANCE)):
        truth = manages(arbiter, equivalent, *point, orders)
        if truth is None or len(truth) <= orders:
            continue
        truth = _constant_where(truth, varies)
        if disagreement(expected, truth, rtol) and not disagreement(got, truth, rtol):
            return "oracle wrong", f"{arbiter.__name__} sides with Taylor mode; {problem}"
    return "WRONG", problem


def _judge_gradients(
    oracle: Method,
    f: Function,
    inputs: list[Tensor],
    directions: list[Tensor],
    order: int,
    varies: list[bool],
    parameters: list[Tensor],
) -> tuple[str, str]:
    def differentiable(*values: Any) -> list[Any]:
        return [y for y, v in zip(f(*values), varies, strict=True) if v]

    expected = None
    for method in (oracle, by_reverse_mode):
        with contextlib.suppress(RuntimeError, NotImplementedError):
            expected = gradients(method, differentiable, inputs, directions, order, parameters)
            break
    if expected is None:
        return "matched", "no oracle for the gradient"
    got = gradients(by_taylor_mode, differentiable, inputs, directions, order, parameters)
    problem = disagreement([got], [expected], lowest=1)
    if not problem:
        return "matched", ""

    # The derivatives are right: their values nearby decide about the gradient.
    here = by_taylor_mode(differentiable, inputs, directions, order)

    def total(*values: Tensor) -> list[Tensor]:
        for parameter, value in zip(parameters, values[len(inputs) :], strict=True):
            parameter.data = value
        nearby = by_taylor_mode(differentiable, values[: len(inputs)], directions, order)
        return [functional(nearby, here).detach()]

    point = [*inputs, *[parameter.detach() for parameter in parameters]]
    others = [torch.randn_like(x) for x in point]
    slope = by_interpolation(total, point, others, 1)[1]
    ours = [sum((g.conj() * v).real.sum() for g, v in zip(got, others, strict=True))]
    if not disagreement([ours], [slope], 1e-5):
        return "oracle wrong", f"by_interpolation sides with Taylor mode; gradient: {problem}"
    return "WRONG", f"gradient: {problem}"


# Running.


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Task(NamedTuple):
    """What a process is asked to do."""

    entry: str
    dtype: torch.dtype
    order: int
    limit: int | None
    seconds: int


def run(task: Task) -> list[Record]:
    """Judge the samples of one entry, one at a time."""
    entry = (entries(task.dtype) | modules(task.dtype))[task.entry]
    records = []
    for i, sample in enumerate(samples(entry, task.dtype)):
        if i == task.limit:
            break
        try:
            with time_limit(task.seconds):
                verdict, detail = judge(entry, sample, task.order)
        except TimeoutError:
            verdict, detail = "time-out", f"more than {task.seconds} s"
        except Exception as error:
            verdict, detail = "WRONG", f"{type(error).__name__}: {error}".splitlines()[0]
        records.append(Record(task.entry, i, verdict, detail))
    return records


def _prepare() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def verdicts(records: Sequence[Record]) -> dict[str, Record]:
    """For each entry its worst record."""
    worst: dict[str, Record] = {}
    for record in records:
        before = worst.get(record.entry)
        if before is None or VERDICTS.index(record.verdict) > VERDICTS.index(before.verdict):
            worst[record.entry] = record
    return worst


def failures(worst: dict[str, Record]) -> list[Record]:
    """What isn't as documented."""
    allowed = {"unsupported": UNSUPPORTED, "oracle wrong": ORACLE_WRONG, "matched": None, "oracle cannot": None}
    return [
        record
        for name, record in worst.items()
        if record.verdict not in allowed or name not in (allowed[record.verdict] or (name,))
    ]


def report(records: Sequence[Record]) -> None:
    worst = verdicts(records)
    counts = collections.Counter(record.verdict for record in worst.values())
    of_samples = collections.Counter(record.verdict for record in records)
    print(f"\n| {len(worst)} entries | entries | samples |\n|---|---|---|")
    for verdict in VERDICTS:
        print(f"| {verdict} | {counts[verdict]} | {of_samples[verdict]} |")
    print()
    for detail, count in collections.Counter(r.detail for r in records if r.verdict == "matched" and r.detail).items():
        print(f"{count} of the samples that match: {detail}")
    print()
    reasons = UNSUPPORTED | ORACLE_WRONG
    for record in sorted(worst.values(), key=lambda r: (VERDICTS.index(r.verdict), r.entry)):
        if record.verdict not in ("matched", "oracle cannot"):
            same = sum(r.entry == record.entry and r.verdict == record.verdict for r in records)
            print(f"{record.verdict}: {record.entry} ({same} samples, such as {record.sample}): {record.detail}")
            if record.entry in reasons:
                print(f"    {reasons[record.entry]}")


def main() -> int:
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", metavar="ENTRY", help="only these entries")
    parser.add_argument("--modules", action="store_true", help="modules of torch.nn in place of operators")
    parser.add_argument("--all", action="store_true", help="also entries that PyTorch has no forward mode of")
    parser.add_argument("--complex", action="store_true", help="complex128 in place of float64")
    parser.add_argument("--fast", action="store_true", help="two samples of each entry, orders 1 and 2")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seconds", type=int, default=60, help="time limit of a sample")
    options = parser.parse_args()

    dtype = torch.complex128 if options.complex else torch.float64
    known = modules(dtype) if options.modules else entries(dtype)
    names = options.ops or [name for name, entry in known.items() if entry.supports_forward_ad or options.all]
    order, limit = (2, 2) if options.fast else (3, None)
    tasks = [Task(name, dtype, order, limit, options.seconds) for name in names]
    records: list[Record] = []
    with contextlib.ExitStack() as stack:
        if options.jobs == 1:
            _prepare()
            results = map(run, tasks)
        else:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(options.jobs, _prepare))
            results = pool.imap_unordered(run, tasks)
        for found in tqdm(results, total=len(tasks), unit="entry"):
            records += found
    report(records)
    worst = verdicts(records)
    # The first samples of an entry don't tell that all of them are supported.
    outdated = (
        [] if options.fast else [name for name in UNSUPPORTED if name in worst and worst[name].verdict == "matched"]
    )
    for name in outdated:
        print(f"{name} is supported: it must leave the list of what isn't")
    return 1 if outdated or failures(worst) else 0


if __name__ == "__main__":
    sys.exit(main())
