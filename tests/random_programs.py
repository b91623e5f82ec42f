"""Random programs of torch functions, and whether Taylor mode agrees with nested forward mode on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from taylorderiv import Jet, derivatives
from taylorderiv.jet import nested_level
from taylorderiv.testing import nested_derivatives

Step = Callable[[list[Any]], Any]
"""Computes a new value from the values so far."""


@dataclasses.dataclass
class Program:
    """A function of one tensor, step by step, with the words for it, and what to compute of it.

    Attributes:
        x: where.
        direction: along which.
        order: the highest order.
        other_order: of a second direction in the same jet; 0 for none.
        collapsed: whether the top coefficients of the two directions are summed.
        gradient: whether to compare the gradient of the results too.
    """

    x: Tensor
    direction: Tensor
    order: int
    other_order: int = 0
    collapsed: bool = False
    gradient: bool = False
    steps: list[Step] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, x: Any) -> Any:
        values = [x]
        for step in self.steps:
            values.append(step(values))
        return values[-1]

    def __repr__(self) -> str:
        task = f"{self.x.dtype} {tuple(self.x.shape)}, orders {self.order} and {self.other_order}"
        return f"Program({task}: {'; '.join(self.names)}; x={self.x.tolist()}, direction={self.direction.tolist()})"


def _constant(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(tuple(shape), generator=generator, dtype=torch.float64) * 2 - 1
    if dtype.is_complex:
        numbers = torch.complex(numbers, torch.rand(tuple(shape), generator=generator, dtype=torch.float64) - 0.5)
    return numbers.to(dtype)


# Of one argument, each for numbers of any size; the first ones also for complex numbers.
_ANALYTIC: dict[str, Callable[[Any], Any]] = {
    "sin": torch.sin,
    "cos": torch.cos,
    "exp": lambda x: torch.exp(x * 0.3),
    "sinh": lambda x: torch.sinh(x * 0.3),
    "square": torch.square,
    "cube": lambda x: x**3,
    "neg": lambda x: -x,
    "reciprocal": lambda x: 1 / (3 + x.sin()),
    "pow_-2": lambda x: (3 + x.sin()) ** -2,
    "sqrt": lambda x: torch.sqrt(3 + x.sin()),
    "log": lambda x: torch.log(3 + x.sin()),
    "tanh": lambda x: torch.tanh(x.sin()),
    "atan": lambda x: torch.atan(x.sin() * 0.5),
    "asinh": lambda x: torch.asinh(x.sin() * 0.5),
    "add": lambda x: x + 0.5,
    "rsub": lambda x: 1 - x,
    "rdiv": lambda x: 2 / (3 + x.cos()),
    "pow": lambda x: (3 + x.sin()) ** 1.7,
    "rpow": lambda x: 1.5 ** x.sin(),
    "sigmoid": lambda x: torch.sigmoid(x.sin()),
    "expm1": lambda x: torch.expm1(x.sin()),
    "log1p": lambda x: torch.log1p(x.sin() * 0.5),
    "addcmul": lambda x: torch.addcmul(x, x, x.cos(), value=0.3),
    "lerp": lambda x: torch.lerp(x, x.sin(), 0.25),
}
_REAL: dict[str, Callable[[Any], Any]] = {
    "relu": torch.relu,
    "abs": torch.abs,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
    "elu": F.elu,
    "mish": F.mish,
    "leaky_relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
    "softsign": F.softsign,
    "erf": torch.erf,
    "logsigmoid": F.logsigmoid,
    "hardswish": F.hardswish,
    "softshrink": F.softshrink,
    "sign_times": lambda x: x * torch.sign(x),
    "floor_plus": lambda x: x + torch.floor(x),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "clamp": lambda x: x.clamp(-0.5, 0.8),
    "where": lambda x: torch.where(x > 0, x.sin(), x * 2),
    "masked_fill": lambda x: x.masked_fill(x > 0.5, 0.25),
    "branch": lambda x: x.cos() if x.sum() > 0 else x.sin(),
    "item": lambda x: x * (x.reshape(-1)[0].item() if x.numel() else 1.0),
    "detach": lambda x: x * x.detach(),
    "atan2": lambda x: torch.atan2(x, 2 + x.cos()),
    "hypot": lambda x: torch.hypot(x, 2 + x.sin()),
    "pow_jet": lambda x: (2 + x.sin()) ** x.cos(),
    "xlogy": lambda x: torch.xlogy(x, 2 + x.sin()),
    "logaddexp": lambda x: torch.logaddexp(x, x.sin()),
    "lgamma": lambda x: torch.lgamma(2 + x.sin()),
    "digamma": lambda x: torch.digamma(2 + x.sin()),
    "argmax_index": lambda x: x * x.argmax() if x.numel() else x,
    "complex": lambda x: torch.complex(x, x.sin()),
    "complex_exp": lambda x: torch.exp(1j * x),
}
_COMPLEX: dict[str, Callable[[Any], Any]] = {
    "real": lambda z: z.real,
    "imag": lambda z: z.imag,
    "conj": lambda z: z.conj() * z,
    "modulus": lambda z: (3 + z.sin()).abs(),
    "phase": lambda z: (3 + z.sin()).angle(),
    "view_as_real": torch.view_as_real,
    "fft": lambda z: torch.fft.fft(z) if z.ndim and z.shape[-1] else z,
}
_IN_PLACE: dict[str, Callable[[Any], Any]] = {
    "mul_": lambda x: x.clone().mul_(0.5),
    "add_": lambda x: x.clone().add_(x),
    "sin_": lambda x: x.clone().sin_(),
    "iadd": lambda x: _iadd(x.clone()),
    "setitem": lambda x: _setitem(x.clone()),
}


def _iadd(x: Any) -> Any:
    x += 2
    return x


def _setitem(x: Any) -> Any:
    if x.ndim and x.shape[0]:
        x[0] = x[-1] * 2
    return x


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": lambda a, b: a / (3 + b.sin()),
    "add_alpha": lambda a, b: torch.add(a, b, alpha=0.5),
    "stack_sum": lambda a, b: torch.stack(torch.broadcast_tensors(a, b)).sum(0),
}
_BINARY_REAL: dict[str, Callable[[Any, Any], Any]] = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "where": lambda a, b: torch.where(a > b, a, b.sin()),
    "pow": lambda a, b: (2 + a.sin()) ** b.cos(),
}

# With an axis.
_ALONG: dict[str, Callable[[Any, int], Any]] = {
    "sum": lambda x, d: x.sum(d),
    "mean_keepdim": lambda x, d: x.mean(d, keepdim=True),
    "cumsum": lambda x, d: x.cumsum(d),
    "flip": lambda x, d: x.flip(d),
    "roll": lambda x, d: x.roll(1, d),
    "unbind": lambda x, d: x.unbind(d)[0],
    "select": lambda x, d: x.select(d, -1),
    "narrow": lambda x, d: x.narrow(d, 0, max(x.shape[d] - 1, 0)),
    "chunk": lambda x, d: x.chunk(2, d)[-1],
    "unsqueeze": lambda x, d: x.unsqueeze(d),
    "squeeze": lambda x, d: x.squeeze(d),
    "movedim": lambda x, d: x.movedim(d, 0),
    "transpose": lambda x, d: x.transpose(d, -1),
    "index": lambda x, d: x.index_select(d, torch.tensor([0, -1 % x.shape[d], 0])),
    "repeat": lambda x, d: torch.repeat_interleave(x, 2, d),
    "cat": lambda x, d: torch.cat([x, x * x], d),
    "stack": lambda x, d: torch.stack([x, x.sin()], d),
    "diff": lambda x, d: torch.diff(x, dim=d),
    "pad": lambda x, d: F.pad(x, (1, 0), value=0.5),
    "var": lambda x, d: x.var(d, correction=0),
    "gather": lambda x, d: x.gather(d, torch.zeros_like(x.real if x.is_complex() else x, dtype=torch.int64)),
    "index_add": lambda x, d: x.index_add(d, torch.tensor([0]), x.narrow(d, 0, 1)),
    "prod": lambda x, d: x.prod(d),
}
_ALONG_REAL: dict[str, Callable[[Any, int], Any]] = {
    "softmax": lambda x, d: x.softmax(d),
    "log_softmax": lambda x, d: x.log_softmax(d),
    "logsumexp": lambda x, d: x.logsumexp(d),
    "amax": lambda x, d: x.amax(d),
    "max": lambda x, d: x.max(d)[0],
    "sort": lambda x, d: x.sort(d).values,
    "median": lambda x, d: x.median(d).values,
    "cummax": lambda x, d: x.cummax(d)[0],
    "std": lambda x, d: (x + torch.arange(x.shape[d]).reshape([-1 if i == d else 1 for i in range(x.ndim)])).std(d),
    "norm": lambda x, d: torch.linalg.vector_norm(2 + x.sin(), dim=d),
    "norm_3": lambda x, d: torch.linalg.vector_norm(2 + x.sin(), 3, dim=d),
    "normalize": lambda x, d: F.normalize(2 + x.sin(), dim=d),
    "glu": lambda x, d: F.glu(x, d),
    "scatter": lambda x, d: x.scatter(d, torch.zeros(x.shape, dtype=torch.int64).narrow(d, 0, 1), x.sin()),
    "topk": lambda x, d: x.topk(1, d).values,
}

# With random constants, of the dtype of the value and of its last size.
_WITH_CONSTANTS: dict[str, Callable[[Any, Callable[..., Tensor]], Any]] = {
    "linear": lambda x, c: F.linear(x, c(3, x.shape[-1]), c(3)),
    "linear_tanh": lambda x, c: torch.tanh(F.linear(x, c(4, x.shape[-1]) * 0.5)),
    "matmul": lambda x, c: torch.matmul(x, c(x.shape[-1], 2)),
    "gram": lambda x, c: torch.matmul(x, x.mT if x.ndim > 1 else x),
    "einsum": lambda x, c: torch.einsum("...i,ij,...j->...", x, c(x.shape[-1], x.shape[-1]), x.sin()),
    "outer": lambda x, c: x.unsqueeze(-1) * c(2),
    "conv": lambda x, c: F.conv1d(x.reshape(1, 1, -1), c(2, 1, 2), padding=1),
    "where": lambda x, c: torch.where(c(x.shape[-1]).real > 0, x, c(x.shape[-1])),
    "promote": lambda x, c: x * c(x.shape[-1]).to(torch.complex128 if x.is_complex() else torch.float64),
    "half_sum": lambda x, c: x + c(x.shape[-1]).real.float(),
    "mask": lambda x, c: x[..., c(x.shape[-1]).real > 0],
    "mixed_index": lambda x, c: x[..., [0, -1], None],
    "solve": lambda x, c: (c(3, 3) * 0.1 + torch.eye(3)) @ x[..., :1].expand(*x.shape[:-1], 3).unsqueeze(-1),
}

_TABLES: dict[str, dict[str, Callable[..., Any]]] = {
    "unary": _ANALYTIC,
    "real": _REAL,
    "complex": _COMPLEX,
    "in place": _IN_PLACE,
    "binary": _BINARY,
    "binary real": _BINARY_REAL,
    "along": _ALONG,
    "along real": _ALONG_REAL,
    "constants": _WITH_CONSTANTS,
}


def _bind(kind: str, function: Callable[..., Any], i: int, j: int, dim: int, seed: int) -> Step:
    if kind.startswith("binary"):
        return lambda values: function(values[i], values[j])
    if kind.startswith("along"):
        return lambda values: function(values[i], dim)
    if kind == "constants":

        def step(values: list[Any]) -> Any:
            x = values[i]
            return function(x, lambda *shape: _constant(shape, x.dtype, seed))

        return step
    return lambda values: function(values[i])


@st.composite
def programs(draw: st.DrawFn, most_steps: int = 7) -> Program:
    """Programs of up to so many steps, and an input, a direction and an order from 0 to 5 for them."""
    dtype = draw(st.sampled_from([torch.float64] * 4 + [torch.complex128, torch.float32]))
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 2, 3, 0]), max_size=3))
    seed = draw(st.integers(0, 10**6))
    order = draw(st.sampled_from([0, 1, 2, 2, 3, 3, 4, 5]))
    program = Program(_constant(shape, dtype, seed), _constant(shape, dtype, seed + 1), order)
    program.gradient = order <= 2 and draw(st.booleans())
    if order and draw(st.booleans()):
        program.collapsed = draw(st.booleans())
        program.other_order = order if program.collapsed else draw(st.integers(1, 3))
    values: list[Tensor] = [program.x]
    for _ in range(draw(st.integers(1, most_steps))):
        i = draw(st.integers(max(len(values) - 3, 0), len(values) - 1))
        kinds = ["unary", "binary", "along", "constants"]
        kinds += ["complex"] if values[i].is_complex() else ["real", "in place", "along real", "binary real"]
        kind = draw(st.sampled_from(kinds))
        j = draw(st.integers(0, len(values) - 1)) if kind.startswith("binary") else i
        if kind == "binary real" and values[j].is_complex():
            continue  # Comparisons don't know it, and PyTorch's derivative of real ** complex is wrong.
        name = draw(st.sampled_from(list(_TABLES[kind])))
        dim = draw(st.integers(0, max(values[i].ndim - 1, 0))) if kind.startswith("along") else 0
        step = _bind(kind, _TABLES[kind][name], i, j, dim, seed + len(values))
        try:
            value = step(values)
        except (RuntimeError, IndexError, ZeroDivisionError, NotImplementedError):
            continue  # It doesn't fit the shapes.
        if value.numel() > 200 or (value.numel() and not value.abs().max() < 100):
            continue
        values.append(value)
        program.steps.append(step)
        program.names.append(f"v{len(values) - 1} = {kind} {name}(v{i}, v{j}, dim={dim})")
    return program


def by_forward_mode(f: Callable[[Any], Any], x: Tensor, direction: Tensor, order: int) -> list[Tensor]:
    """All derivatives up to an order, in one evaluation of nested ``torch.func.jvp``."""
    if order == 0:
        return [f(x)]
    values, tangents, *_ = torch.func.jvp(lambda x: by_forward_mode(f, x, direction, order - 1), (x,), (direction,))
    return [*values, tangents[-1]]


def by_reverse_mode(f: Callable[[Any], Any], x: Tensor, direction: Tensor, order: int) -> Sequence[Tensor]:
    """Nested ``torch.autograd.grad``."""
    return nested_derivatives(f, x, order, direction=direction)


Method = Callable[..., Sequence[Tensor]]

# In this order: reverse mode takes a tenth of the time. Neither knows all ops, and each is wrong about some.
ORACLES: tuple[Method, ...] = (by_reverse_mode, by_forward_mode)


def _taylor_mode(f: Callable[[Any], Any], x: Tensor, direction: Tensor, order: int) -> Sequence[Tensor]:
    return derivatives(f, x, order, direction=direction)


def _results(method: Method, program: Program, x: Tensor, direction: Tensor) -> list[Tensor]:
    """The derivatives, and the gradient of a fixed functional of them if that is wanted."""
    x = x.detach().requires_grad_(program.gradient)
    results = list(method(program, x, direction, program.order))
    if program.gradient:
        terms = [(y * _constant(y.shape, y.dtype, k)).sum() for k, y in enumerate(results)]
        total = sum((term.real for term in terms), torch.zeros(()))
        if total.requires_grad:
            results += torch.autograd.grad(total, x, materialize_grads=True)
    return [y.detach() for y in results]


def verdict(program: Program) -> str:
    """Whether Taylor mode agrees with nested autograd on a program.

    Returns:
        "agrees", "agrees with by_forward_mode" where reverse mode fails or is wrong, "no oracle …" if both fail,
        "raises …", or "wrong: …" of what neither agrees with.
    """
    failures, problems = [], []
    try:
        got = _results(_taylor_mode, program, program.x, program.direction)
        problem = _problem_of_several_directions(program) if program.other_order else ""
    except NotImplementedError as error:
        return f"raises {str(error).splitlines()[0]}"
    except RuntimeError as error:  # which PyTorch's own modes must raise too
        got, problem = None, ""
        failures.append(f"Taylor mode: {str(error).splitlines()[0]}")
    if problem:
        return f"wrong: {problem}"
    for oracle in ORACLES:
        try:
            problem = _disagreement(program, got, oracle)
        except (RuntimeError, NotImplementedError) as error:
            failures.append(f"{oracle.__name__}: {str(error).splitlines()[0]}")
            continue
        if not problem:
            return "agrees" if oracle is ORACLES[0] else f"agrees with {oracle.__name__}"
        problems.append(f"{oracle.__name__}: {problem}")
    return f"wrong: {'; '.join([*failures, *problems])}" if problems else f"no oracle: {'; '.join(failures)}"


def _disagreement(program: Program, got: list[Tensor] | None, oracle: Method) -> str:
    """What is wrong beside an oracle, or nothing.

    An error is allowed to be as large as what rounding does to the oracle: seen in the oracle at inputs that differ
    by rounding errors.
    """
    x, v = program.x, program.direction
    expected = _results(oracle, program, x, v)
    if got is None:
        return "Taylor mode raises an error"
    epsilon = max(torch.finfo(t.dtype).eps for t in (x, *expected))
    dtypes = [expected[0].dtype] * (program.order + 1) + [x.dtype]
    nearby = None
    for k, (a, b, dtype) in enumerate(zip(got, expected, dtypes, strict=False)):
        # PyTorch's own derivatives of an op in place may have another dtype than the value.
        if a.shape != b.shape or a.dtype != dtype:
            return f"order {k}: {a.dtype} {tuple(a.shape)} instead of {b.dtype} {tuple(b.shape)}"
        error = _error(a, b)
        if error <= 1e5 * epsilon * _scale(b):
            continue
        nearby = nearby or [_nudged(oracle, program, seed, epsilon) for seed in range(4)]
        noise = max(_error(n[k], b) for n in nearby)
        if not error <= 1e3 * noise:
            return f"order {k}: off by {error:.1e}, the largest is {_scale(b):.1e}, noise {noise:.1e}"
    return ""


def _error(a: Tensor, b: Tensor) -> float:
    """The largest difference where ``b`` is finite; infinite where ``a`` isn't."""
    difference = (a - b).abs()[b.isfinite()].nan_to_num(math.inf)
    return float(difference.max()) if difference.numel() else 0.0


def _scale(b: Tensor) -> float:
    sizes = b.abs()[b.isfinite()]
    return max(1.0, float(sizes.max())) if sizes.numel() else 1.0


def _nudged(oracle: Method, program: Program, seed: int, epsilon: float) -> list[Tensor]:
    x, v = program.x, program.direction
    nudges = [1 + 4 * epsilon * _constant(x.shape, torch.float64, seed + n).to(x.real.dtype) for n in (10, 20)]
    return _results(oracle, program, x * nudges[0], v * nudges[1])


def _problem_of_several_directions(program: Program) -> str:
    """What is wrong with a jet of two directions beside two jets of one."""
    directions = [program.direction, program.direction.flip(0) if program.x.ndim else -program.direction]
    orders, weights = (program.order, program.other_order), (0.5, -2.0)
    with nested_level() as level:
        y = program(Jet.variable(program.x, orders, directions, weights if program.collapsed else None, level))
    if not isinstance(y, Jet):
        return ""
    alone = [derivatives(program, program.x, k, direction=v) for k, v in zip(orders, directions, strict=True)]
    pairs = [
        (f"order {k} of direction {r}", y.derivative(k, r), alone[r][k])
        for r, order in enumerate(orders)
        for k in range(order + 1 - program.collapsed)
    ]
    if program.collapsed:
        pairs.append(("collapsed", y.collapsed, sum(w * d[-1] for w, d in zip(weights, alone, strict=True))))
    epsilon = max(torch.finfo(t.dtype).eps for t in (program.x, y))
    for name, a, b in pairs:
        if _error(a, b) > 1e5 * epsilon * max(_scale(d[-1]) for d in alone) * _scale(b):
            return f"{name}: off by {_error(a, b):.1e}, the largest is {_scale(b):.1e}"
    return ""
