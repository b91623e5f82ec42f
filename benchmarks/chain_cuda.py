"""Training steps on a GPU: the fused chain beside nested autograd and compiled hand-written jets, and its floor.

    python benchmarks/chain_cuda.py [results.json]

A step is a loss of derivatives of a network and its gradient with respect to the parameters. Its floor is the larger
of two times: of the floating-point operations, three matrix products per layer (forward, gradient of the input,
gradient of the weight) of all coefficients, at the rate of a large matrix product on the same GPU; and of reading the
points and reading and writing the parameters and their gradients once, at the rate of a large copy. float32 matrix
products have the rate of the float32 units, or a third of TF32's (three products of TF32 numbers are as accurate as
one of float32): the larger one counts. Prints Markdown; times are medians.
"""

import functools
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from taylorderiv import bilaplacian, derivatives, partials

REPEATS = 15


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
        jets: the same from the hand-written jets' coefficients, by direction.
        nested_points: as many as nested autograd has memory for; its time is scaled to all points.
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
    jets: Callable[[Sequence[Sequence[Tensor]]], Tensor]
    nested_points: int

    def network(self) -> nn.Sequential:
        torch.manual_seed(0)
        widths = [self.variables] + [self.width] * self.layers
        modules: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            modules += [nn.Linear(a, b), nn.Tanh() if self.activation == "tanh" else Sine()]
        return nn.Sequential(*modules, nn.Linear(self.width, 1)).to("cuda", self.dtype)

    @property
    def operations(self) -> int:
        """Floating-point operations of a step's matrix products."""
        weights = self.variables * self.width + (self.layers - 1) * self.width**2 + self.width
        return 3 * 2 * self.coefficients * self.points * weights

    @property
    def bytes(self) -> int:
        """Those that must be read or written at least."""
        parameters = sum(p.numel() for p in self.network().parameters())
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
        return workload.jets([[rows[0], *coefficients] for coefficients in split])

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
        jets=lambda d: (d[1][1] + 24 * d[0][4]).square().mean(),
        nested_points=65_536,
    )


HALF_SQRT_3 = 3**0.5 / 2
WORKLOADS = (
    heat(torch.float32),
    Workload(
        "3×24 tanh, N = 256, order 8",
        *(3, 24, "tanh", 1, 256, torch.float32, (((1.0,), 8),), 9),
        loss=lambda model, x: derivatives(model, x, 8)[8].square().mean(),
        nested=order_8_nested,
        jets=lambda d: (40_320 * d[0][8]).square().mean(),
        nested_points=256,
    ),
    Workload(
        "4×128 sin, N = 262,144, biharmonic",
        *(4, 128, "sin", 2, 262_144, torch.float32),
        directions=tuple((vector, 4) for vector in ((1.0, 0.0), (0.5, HALF_SQRT_3), (-0.5, HALF_SQRT_3))),
        coefficients=11,
        loss=lambda model, x: bilaplacian(model, x).square().mean(),
        nested=biharmonic_nested,
        jets=lambda d: (24 * 8 / 9 * torch.stack([direction[4] for direction in d]).sum(0)).square().mean(),
        nested_points=32_768,
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
    peak_bytes: int


def timed(call: Callable[[], object], repeats: int = REPEATS) -> Timing:
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return Timing(statistics.median(times), torch.cuda.max_memory_allocated() - before)


def step(loss: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss(model, x), list(model.parameters()), allow_unused=True))


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
def operations_per_second(dtype: torch.dtype) -> float:
    def rate(precision: str) -> float:
        torch.backends.cuda.matmul.fp32_precision = precision
        a, b = (torch.randn(8192, 8192, dtype=dtype, device="cuda") for _ in range(2))
        seconds = 1e-6 * timed(lambda: a @ b, 5).microseconds
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        return 2 * 8192**3 / seconds

    return max(rate("ieee"), rate("tf32") / 3) if dtype == torch.float32 else rate("ieee")


@functools.cache
def bytes_per_second() -> float:
    source = torch.zeros(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (1e-6 * timed(lambda: target.copy_(source), 5).microseconds)


@dataclass
class Result:
    """What was measured of a workload, in microseconds unless it says otherwise."""

    workload: str
    operations: int
    operations_per_second: float
    bytes: int
    bytes_per_second: float
    floor: float
    ours: float
    ours_in_a_graph: float
    ours_bytes: int
    nested: float
    nested_bytes: int
    nested_points: int
    hand_written_compiled: float


def measured(workload: Workload) -> Result:
    model = workload.network()
    x = torch.rand(workload.points, workload.variables, dtype=workload.dtype, device="cuda")
    fewer = x[: workload.nested_points]
    ours = functools.partial(step, workload.loss, model, x)
    own = timed(ours)
    graph = timed(in_a_graph(ours))
    nested = timed(lambda: step(workload.nested, model, fewer), 5)
    compiled = torch.compile(hand_written(workload), fullgraph=True)
    jets = timed(lambda: step(compiled, model, x), 5)
    rate, bandwidth = operations_per_second(workload.dtype), bytes_per_second()
    scale = workload.points / workload.nested_points
    return Result(
        workload=workload.title,
        operations=workload.operations,
        operations_per_second=rate,
        bytes=workload.bytes,
        bytes_per_second=bandwidth,
        floor=1e6 * max(workload.operations / rate, workload.bytes / bandwidth),
        ours=own.microseconds,
        ours_in_a_graph=graph.microseconds,
        ours_bytes=own.peak_bytes,
        nested=scale * nested.microseconds,
        nested_bytes=int(scale * nested.peak_bytes),
        nested_points=workload.nested_points,
        hand_written_compiled=jets.microseconds,
    )


def main() -> None:
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}, torch {torch.__version__}. Microseconds for a loss and its gradient.\n")
    print("| workload | floor | ours | × floor | in a graph | nested autograd | compiled jets | memory of nested |")
    print("|---|---|---|---|---|---|---|---|")
    results = []
    for workload in WORKLOADS:
        r = measured(workload)
        results.append(r)
        best = min(r.ours, r.ours_in_a_graph)
        arithmetic = f"{r.operations / 1e9:.2f} GFLOP at {r.operations_per_second / 1e12:.0f} TFLOP/s"
        print(
            f"| {r.workload} | {r.floor:.0f} ({arithmetic}) | {r.ours:.0f} | {best / r.floor:.1f} "
            f"| {r.ours_in_a_graph:.0f} | {r.nested:.0f} ({r.nested / best:.0f}×) "
            f"| {r.hand_written_compiled:.0f} ({r.hand_written_compiled / best:.1f}×) "
            f"| {r.nested_bytes / max(r.ours_bytes, 1):.0f}× |",
            flush=True,
        )
    if len(sys.argv) > 1:
        rows = [asdict(r) for r in results]
        facts = {"gpu": gpu, "torch": torch.__version__, "results": rows}
        Path(sys.argv[1]).write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
