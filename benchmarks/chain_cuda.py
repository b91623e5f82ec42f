"""Training steps on a GPU: the fused chain, what it is compared with, and the floor of both.

    python benchmarks/chain_cuda.py [results.json]
    python benchmarks/chain_cuda.py --profile                  where the time of the first workload's step goes
    python benchmarks/chain_cuda.py --device cpu --points 32   a rehearsal: all of it runs, the times mean nothing

A step is a loss of derivatives of a network and its gradient with respect to the parameters. Its floor is the larger
of two times: of the floating-point operations, three matrix products per layer (forward, gradient of the input,
gradient of the weight) of all coefficients, at the GPU's peak rate; and of reading the points and reading and writing
the parameters and their gradients once, at its memory's bandwidth. Both are the vendor's figures (PEAKS), or measured
with a large matrix product and a large copy on a GPU that isn't listed. float32 matrix products have the rate of the
float32 units, or a third of TF32's (three products of TF32 numbers are as accurate as one of float32): the larger one
counts. Prints Markdown; times are medians.
"""
# pyright: reportMissingImports=false

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taylorderiv import bilaplacian, derivatives, partials

REPEATS = 15
SECONDS = 4.0  # about as long is one competitor timed


@dataclass(frozen=True)
class Peaks:
    """Operations per second of float32 units and of matrix units in TF32 and float64, bytes per second of memory."""

    float32: float
    tf32: float
    float64: float
    bandwidth: float

    def operations(self, dtype: torch.dtype) -> float:
        return self.float64 if dtype == torch.float64 else max(self.float32, self.tf32 / 3)


# By how torch names the GPU; the first that fits. Dense rates, of the vendor's datasheets.
PEAKS = {
    "H200": Peaks(67e12, 494.7e12, 67e12, 4.8e12),
    "H100 PCIe": Peaks(51e12, 378e12, 51e12, 2.0e12),
    "H100": Peaks(67e12, 494.7e12, 67e12, 3.35e12),
    "A100": Peaks(19.5e12, 156e12, 19.5e12, 1.935e12),
}


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        title: as printed.
        layers: hidden ones.
        width: of each.
        activation: "tanh" or "sin".
        variables: of the network's input.
        points: how many.
        dtype: of everything.
        directions: unit vectors or others along which the hand-written jets go, and their orders.
        coefficients: of a jet.
        loss: of the network at the points, by taylorderiv.
        nested: the same by nested autograd.
        residual: what is squared and averaged, from the derivatives of orders 1, 2, ... along each direction.
        nested_points: as many as nested autograd has memory for; its time is scaled to all points.
        targets: what is to be reached, by quantity (see `quantities`): at most so much for "floor" and "float32", at
            least for others.
    """

    title: str
    layers: int
    width: int
    activation: str
    variables: int
    points: int
    dtype: torch.dtype
    directions: tuple[tuple[tuple[float, ...], int], ...]
    coefficients: int
    loss: Callable[[nn.Module, Tensor], Tensor]
    nested: Callable[[nn.Module, Tensor], Tensor]
    residual: Callable[[Sequence[Sequence[Any]]], Any]
    nested_points: int
    targets: Mapping[str, float]

    def network(self, device: str) -> nn.Sequential:
        torch.manual_seed(0)
        widths = [self.variables] + [self.width] * self.layers
        modules: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            modules += [nn.Linear(a, b), nn.Tanh() if self.activation == "tanh" else Sine()]
        return nn.Sequential(*modules, nn.Linear(self.width, 1)).to(device, self.dtype)

    @property
    def order(self) -> int:
        return max(order for _, order in self.directions)

    @property
    def operations(self) -> int:
        """Floating-point operations of a step's matrix products."""
        weights = self.variables * self.width + (self.layers - 1) * self.width**2 + self.width
        return 3 * 2 * self.coefficients * self.points * weights

    @property
    def bytes(self) -> int:
        """Those that must be read or written at least."""
        parameters = sum(p.numel() for p in self.network("cpu").parameters())
        return (self.points * self.variables + 2 * parameters) * self.dtype.itemsize


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


# ---------------------------------------------------------------------------------------------------------------------
# The competitors
# ---------------------------------------------------------------------------------------------------------------------


def gradient(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def column(y: Tensor, x: Tensor, i: int, order: int) -> Tensor:
    """The partial derivative of order ``order`` in variable ``i``, ``(N, 1)``."""
    for _ in range(order):
        y = gradient(y, x)[:, i : i + 1]
    return y


def tanh_series(x: Sequence[Tensor]) -> list[Tensor]:
    y = [torch.tanh(x[0])]
    s = [1 - y[0] * y[0]]
    for k in range(1, len(x)):
        y.append(sum((j * x[j] * s[k - j] for j in range(1, k + 1)), torch.zeros_like(x[0])) / k)
        s.append(-sum((y[j] * y[k - j] for j in range(k + 1)), torch.zeros_like(x[0])))
    return y


def sin_series(x: Sequence[Tensor]) -> list[Tensor]:
    y, s = [torch.sin(x[0])], [torch.cos(x[0])]
    for k in range(1, len(x)):
        y.append(sum((j * x[j] * s[k - j] for j in range(1, k + 1)), torch.zeros_like(x[0])) / k)
        s.append(-sum((j * x[j] * y[k - j] for j in range(1, k + 1)), torch.zeros_like(x[0])) / k)
    return y


def hand_written(workload: Workload) -> Callable[[nn.Module, Tensor], Tensor]:
    """Jets as one writes them by hand: all coefficients through one matrix product per layer, series in a loop."""
    series = tanh_series if workload.activation == "tanh" else sin_series
    orders = [order for _, order in workload.directions]

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        rows = [x]
        for vector, order in workload.directions:
            rows.append(torch.tensor(vector, dtype=x.dtype, device=x.device).expand_as(x))
            rows += [torch.zeros_like(x)] * (order - 1)
        for module in model.children():
            if isinstance(module, nn.Linear):
                rows = list((torch.stack(rows) @ module.weight.T).unbind())
                rows[0] = rows[0] + module.bias
                continue
            results, first = [], 1
            for order in orders:
                results.append(series([rows[0], *rows[first : first + order]]))
                first += order
            rows = [results[0][0], *(y for result in results for y in result[1:])]
        split = torch.split(torch.stack(rows[1:]), orders)
        factorials = [math.factorial(k) for k in range(1, max(orders) + 1)]
        derivatives = [[factorials[k] * c for k, c in enumerate(coefficients)] for coefficients in split]
        return workload.residual(derivatives).square().mean()

    return loss


def jax_loss(workload: Workload) -> Callable[[Any, Any], Any]:
    """``jax.experimental.jet``, a call for each direction; in float32, not TF32, as the others are."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.jet import jet

    jax.config.update("jax_enable_x64", True)  # every array here has its dtype given
    jax.config.update("jax_default_matmul_precision", "highest")
    activation = jnp.tanh if workload.activation == "tanh" else jnp.sin

    def loss(parameters: Any, x: Any) -> Any:
        layers = list(zip(parameters[::2], parameters[1::2], strict=True))

        def network(x: Any) -> Any:
            for weight, bias in layers[:-1]:
                x = activation(x @ weight.T + bias)
            weight, bias = layers[-1]
            return x @ weight.T + bias

        derivatives = []
        for vector, order in workload.directions:
            zero = jnp.zeros_like(x)
            series = [jnp.broadcast_to(jnp.asarray(vector, x.dtype), x.shape), *[zero] * (order - 1)]
            _, terms = jet(network, (x,), (series,))  # derivatives, not divided by factorials
            derivatives.append(terms)
        return jnp.mean(jnp.square(workload.residual(derivatives)))

    return loss


# ---------------------------------------------------------------------------------------------------------------------
# The workloads
# ---------------------------------------------------------------------------------------------------------------------


def heat_loss(model: nn.Module, x: Tensor) -> Tensor:
    d = partials(model, x, ["xxxx", "t"], variables="xt")
    return (d.t + d.xxxx).square().mean()


def heat_nested(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    u = model(x)
    return (column(u, x, 1, 1) + column(u, x, 0, 4)).square().mean()


def order_8_nested(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return column(model(x), x, 0, 8).square().mean()


def biharmonic_nested(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    u = model(x)
    for _ in range(2):
        u = column(u, x, 0, 2) + column(u, x, 1, 2)
    return u.square().mean()


def heat(dtype: torch.dtype) -> Workload:
    """u_t + u_xxxx."""
    return Workload(
        f"4×64 tanh, N = 65,536, x:4 t:1, {str(dtype).removeprefix('torch.')}",
        *(4, 64, "tanh", 2, 65_536, dtype, (((1.0, 0.0), 4), ((0.0, 1.0), 1)), 6),
        loss=heat_loss,
        nested=heat_nested,
        residual=lambda d: d[1][0] + d[0][3],
        nested_points=65_536,
        targets={"floor": 2, "nested": 20, "jets": 5, "jax": 5} if dtype == torch.float32 else {"float32": 2.5},
    )


HALF_SQRT_3 = 3**0.5 / 2
WORKLOADS = (
    heat(torch.float32),
    Workload(
        "3×24 tanh, N = 256, order 8",
        *(3, 24, "tanh", 1, 256, torch.float32, (((1.0,), 8),), 9),
        loss=lambda model, x: derivatives(model, x, 8)[8].square().mean(),
        nested=order_8_nested,
        residual=lambda d: d[0][7],
        nested_points=256,
        targets={"nested": 500},
    ),
    Workload(
        "4×128 sin, N = 262,144, biharmonic",
        *(4, 128, "sin", 2, 262_144, torch.float32),
        directions=tuple((vector, 4) for vector in ((1.0, 0.0), (0.5, HALF_SQRT_3), (-0.5, HALF_SQRT_3))),
        coefficients=11,
        loss=lambda model, x: bilaplacian(model, x).square().mean(),
        nested=biharmonic_nested,
        residual=lambda d: 8 / 9 * (d[0][3] + d[1][3] + d[2][3]),
        nested_points=32_768,
        targets={"nested": 15, "memory": 50},
    ),
    heat(torch.float64),
)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Timing:
    """Microseconds, and bytes at the most beyond those before the step."""

    microseconds: float
    peak_bytes: int = 0


def timed(call: Callable[[], object], device: str) -> Timing:
    """Of a call that only starts work on the device: the median over repetitions."""
    call()
    begin = time.perf_counter()
    call()
    synchronize(device)
    once = time.perf_counter() - begin
    if device == "cpu":
        return Timing(1e6 * once)
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(max(3, min(REPEATS, int(SECONDS / once)))):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return Timing(statistics.median(times), torch.cuda.max_memory_allocated() - before)


def timed_until_ready(call: Callable[[], Any]) -> Timing:
    """Of a call into JAX, by the clock: it has a stream of its own."""
    times = []
    deadline = time.perf_counter() + SECONDS
    call()
    while len(times) < REPEATS and (len(times) < 3 or time.perf_counter() < deadline):
        begin = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - begin))
    return Timing(statistics.median(times))


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def step(loss: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, x: Tensor) -> list[Tensor]:
    # The last bias is in no derivative.
    return list(torch.autograd.grad(loss(model, x), list(model.parameters())[:-1]))


def in_a_graph(call: Callable[[], object]) -> Callable[[], object]:
    """The same, captured once and replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@functools.cache
def measured_operations(dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product as accurate as the dtype."""

    def rate(precision: str) -> float:
        torch.backends.cuda.matmul.fp32_precision = precision
        a, b = (torch.randn(8192, 8192, dtype=dtype, device="cuda") for _ in range(2))
        seconds = 1e-6 * timed(lambda: a @ b, "cuda").microseconds
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        return 2 * 8192**3 / seconds

    return max(rate("ieee"), rate("tf32") / 3) if dtype == torch.float32 else rate("ieee")


@functools.cache
def measured_bandwidth() -> float:
    """Bytes read or written per second by a large copy."""
    source = torch.randint(256, (2**30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (1e-6 * timed(lambda: target.copy_(source), "cuda").microseconds)


@dataclass
class Result:
    """What was measured of a workload, in microseconds unless it says otherwise."""

    workload: str
    operations: int
    bytes: int
    operations_per_second: float
    bytes_per_second: float
    floor: float
    microseconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    gradient_errors: dict[str, float] = field(default_factory=dict)  # against nested autograd in float64, some points
    failures: dict[str, str] = field(default_factory=dict)
    targets: dict[str, tuple[float, float]] = field(default_factory=dict)  # required, measured

    @property
    def best(self) -> float:
        """Ours, as launched or in a graph."""
        return min(self.microseconds.get(name, math.inf) for name in ("ours", "graph"))


CHECKED_POINTS = 4096  # enough for the kernels that many points are for


class Contestants:
    """Ways to do a workload's step. Each is ``build(points)``: a call and how to time it, and the gradients it has."""

    def __init__(self, workload: Workload, device: str):
        self.workload, self.device = workload, device
        self.model = workload.network(device)
        torch.manual_seed(1)
        self.x = torch.rand(workload.points, workload.variables, dtype=workload.dtype, device=device)

    def torch_step(self, loss: Callable[[nn.Module, Tensor], Tensor], points: int) -> Callable[[], list[Tensor]]:
        return functools.partial(step, loss, self.model, self.x[:points])

    def ours(self, points: int) -> Callable[[], list[Tensor]]:
        return self.torch_step(self.workload.loss, points)

    def nested(self, points: int) -> Callable[[], list[Tensor]]:
        return self.torch_step(self.workload.nested, points)

    def jets(self, points: int) -> Callable[[], list[Tensor]]:
        backend = "inductor" if self.device == "cuda" else "eager"
        compiled = torch.compile(hand_written(self.workload), fullgraph=True, backend=backend)
        return self.torch_step(compiled, points)

    def jax(self, points: int) -> Callable[[], Any]:
        import jax
        import jax.numpy as jnp

        gradient = jax.jit(jax.grad(jax_loss(self.workload)))
        parameters = [jnp.asarray(p.detach().cpu().numpy()) for p in self.model.parameters()]
        x = jnp.asarray(self.x[:points].cpu().numpy())
        return lambda: jax.block_until_ready(gradient(parameters, x))

    def reference(self) -> list[Tensor]:
        exact = replace(self.workload, dtype=torch.float64)
        model = exact.network(self.device)
        model.load_state_dict({name: value.double() for name, value in self.model.state_dict().items()})
        return step(exact.nested, model, self.x[:CHECKED_POINTS].double())


def gradient_error(gradients: Sequence[Any], reference: Sequence[Tensor]) -> float:
    """Relative, in the Euclidean norm."""
    actual = torch.cat([torch.as_tensor(numpy_of(g)).double().flatten() for g in gradients[: len(reference)]])
    expected = torch.cat([g.cpu().flatten() for g in reference])
    return ((actual - expected).norm() / expected.norm()).item()


def numpy_of(gradient: Any) -> Any:
    import numpy as np

    return gradient.detach().cpu().numpy() if isinstance(gradient, Tensor) else np.array(gradient)


class Measurement:
    """A workload's result as it comes about."""

    def __init__(self, workload: Workload, device: str):
        self.workload, self.device = workload, device
        if device == "cuda":
            name = torch.cuda.get_device_name()
            listed = next((peaks for key, peaks in PEAKS.items() if key in name), None)
            rate = listed.operations(workload.dtype) if listed else measured_operations(workload.dtype)
            bandwidth = listed.bandwidth if listed else measured_bandwidth()
        else:
            rate = bandwidth = math.nan
        floor = 1e6 * max(workload.operations / rate, workload.bytes / bandwidth)
        self.result = Result(workload.title, workload.operations, workload.bytes, rate, bandwidth, floor)
        self.contestants = Contestants(workload, device)
        self.reference = self.contestants.reference()

    def measure(self, name: str) -> None:
        """Whatever becomes of the others."""
        workload, result = self.workload, self.result
        try:
            build = self.contestants.ours if name == "graph" else getattr(self.contestants, name)
            points = workload.nested_points if name == "nested" else workload.points
            if name != "graph":
                gradients = build(min(CHECKED_POINTS, workload.points))()
                result.gradient_errors[name] = gradient_error(gradients, self.reference)
            call = build(points)
            if name == "jax":
                timing = timed_until_ready(call)
            else:
                timing = timed(in_a_graph(call) if name == "graph" else call, self.device)
                result.peak_bytes[name] = int(timing.peak_bytes * workload.points / points)
            result.microseconds[name] = timing.microseconds * workload.points / points
        except Exception as error:
            result.failures[name] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            )
            traceback.print_exc()
        finally:
            if self.device == "cuda":
                torch.cuda.empty_cache()


def quantities(result: Result, results: Mapping[str, Result]) -> dict[str, float]:
    """What targets are about: multiples of the floor, times that others take longer or more memory."""
    found = {name: microseconds / result.best for name, microseconds in result.microseconds.items()}
    found["floor"] = result.best / result.floor
    if result.peak_bytes.get("ours") and "nested" in result.peak_bytes:
        found["memory"] = result.peak_bytes["nested"] / result.peak_bytes["ours"]
    single = results.get(result.workload.replace("float64", "float32"))
    if single is not None and single is not result:
        found["float32"] = result.best / single.best
    return found


NAMES = {"nested": "nested autograd", "jets": "compiled hand-written jets", "jax": "JAX jet + jit"}


def row(result: Result, found: Mapping[str, float]) -> str:
    def time_of(name: str) -> str:
        return f"{result.microseconds[name]:,.0f}" if name in result.microseconds else "—"

    arithmetic = (
        f"max({result.operations / 1e9:.2f} GFLOP / {result.operations_per_second / 1e12:.0f} TFLOP/s, "
        f"{result.bytes / 1e6:.2f} MB / {result.bytes_per_second / 1e12:.2f} TB/s)"
    )
    others = " | ".join(f"{time_of(name)} ({found.get(name, math.nan):.1f}×)" for name in NAMES)
    return (
        f"| {result.workload} | {result.floor:,.0f} = {arithmetic} | {time_of('ours')} | {time_of('graph')} "
        f"| {found['floor']:.1f} | {others} | {found.get('memory', math.nan):.0f}× |"
    )


def profile(device: str) -> None:
    """Which kernels the first workload's step runs, and how long."""
    contestants = Contestants(WORKLOADS[0], device)
    call = contestants.ours(WORKLOADS[0].points)
    for _ in range(3):
        call()
    synchronize(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(10):
            call()
        synchronize(device)
    print(WORKLOADS[0].title, "- ten steps")
    key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    print(recorded.key_averages().table(sort_by=key, row_limit=12, max_name_column_width=90))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--points", type=int, help="at most, for a rehearsal")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after so many, nothing new is started")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: torch.cuda.is_available() is False")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes the memory that torch needs
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    if options.profile:
        profile(device)
        return
    gpu = torch.cuda.get_device_name() if device == "cuda" else "no GPU, a rehearsal"
    print(f"{gpu}, torch {torch.__version__}. Microseconds for a loss and its gradient.\n")
    columns = ["workload", "floor", "ours", "in a graph", "× floor", *NAMES.values(), "memory of nested"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    measurements = []
    for workload in WORKLOADS:
        if options.points:
            fewer = {name: min(options.points, getattr(workload, name)) for name in ("points", "nested_points")}
            workload = replace(workload, **fewer)
        measurements.append(Measurement(workload, device))
    results = {m.workload.title: m.result for m in measurements}
    start = time.perf_counter()
    # The quick ones first: compiling takes the longest, and longer for higher orders.
    passes = (("ours", "graph", "nested") if device == "cuda" else ("ours", "nested")), ("jax", "jets")
    for names in passes:
        for measurement in sorted(measurements, key=lambda m: m.workload.order):
            for name in names:
                if time.perf_counter() - start > options.seconds:
                    measurement.result.failures[name] = "no time left"
                    continue
                measurement.measure(name)
                print(f"{measurement.workload.title}: {name}", file=sys.stderr, flush=True)
    for measurement in measurements:
        result = measurement.result
        found = quantities(result, results)
        targets = measurement.workload.targets
        result.targets = {name: (required, found.get(name, math.nan)) for name, required in targets.items()}
        print(row(result, found), flush=True)
    print("\n| workload | target | required | measured | |\n|---|---|---|---|---|")
    for result in results.values():
        for name, (required, value) in result.targets.items():
            upper = name in ("floor", "float32")
            met = value <= required if upper else value >= required
            sign = "≤" if upper else "≥"
            print(f"| {result.workload} | {name} | {sign} {required:g} | {value:.2f} | {'met' if met else 'missed'} |")
    for result in results.values():
        for name, failure in result.failures.items():
            print(f"\nnot measured: {name}, {result.workload}: {failure}")
        errors = ", ".join(f"{name} {error:.1e}" for name, error in result.gradient_errors.items())
        print(f"\nrelative error of the gradient, {result.workload}: {errors}")
    if options.output:
        facts: dict[str, Any] = {"gpu": gpu, "torch": torch.__version__}
        if device == "cuda":
            dtypes = (torch.float32, torch.float64)
            facts["measured_operations_per_second"] = {str(dtype): measured_operations(dtype) for dtype in dtypes}
            facts["measured_bytes_per_second"] = measured_bandwidth()
        rows = [vars(result) for result in results.values()]
        options.output.write_text(json.dumps({**facts, "results": rows}, indent=1))


if __name__ == "__main__":
    main()
