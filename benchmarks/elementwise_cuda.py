"""The bandwidth of the elementwise CUDA kernels, beside that of copying as many bytes.

    python benchmarks/elementwise_cuda.py [results.json]

Each case reads and writes every coefficient once (the backward pass reads two tensors), so a copy of the same number
of bytes is the floor. Prints a Markdown table; times are medians.
"""

import json
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import taylorderiv  # noqa: F401 - registers the ops
from taylorderiv.layout import Layout

OPS = ("tanh", "sin", "gelu", "silu", "exp", "sqrt")
LAYOUTS = (
    Layout((1,)),
    Layout((2,)),
    Layout((4,)),
    Layout((6,)),
    Layout((10,)),
    Layout((4, 1)),
    Layout((2,) * 8, (1.0,) * 8),
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
BYTES = 2**29  # of one tensor: far more than fits into caches
REPEATS = 7


@dataclass
class Result:
    """A timing: of the op, and of a copy of as many bytes."""

    op: str
    backward: bool
    layout: str
    dtype: str
    microseconds: float
    copy_microseconds: float

    @property
    def efficiency(self) -> float:
        """The share of the copy's bandwidth."""
        return self.copy_microseconds / self.microseconds


def microseconds(call: Callable[[], Any]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


def copy_microseconds() -> float:
    """The time to copy ``BYTES``."""
    source = torch.zeros(BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return microseconds(lambda: target.copy_(source))


def results() -> list[Result]:
    found = []
    copy = copy_microseconds()
    for dtype in DTYPES:
        for layout in LAYOUTS:
            elements = BYTES // (layout.size * dtype.itemsize) // 16 * 16
            share = elements * layout.size * dtype.itemsize / BYTES
            x = torch.rand(layout.size, elements, device="cuda").to(dtype)
            x[0] += 0.5
            grad = torch.rand(layout.size, elements, device="cuda").to(dtype)
            structure = (list(layout.orders), list(layout.weights or ()))
            for op in OPS:
                for backward in (False, True):
                    name = "unary_backward" if backward else "unary"
                    kernel = getattr(torch.ops.taylorderiv, name)
                    tensors = (grad, x) if backward else (x,)
                    time = microseconds(lambda: kernel(*tensors, op, [], *structure))  # noqa: B023
                    floor = copy * share * (1.5 if backward else 1.0)
                    found.append(Result(op, backward, str(layout), str(dtype).removeprefix("torch."), time, floor))
    return found


def main() -> None:
    measured = results()
    gpu = torch.cuda.get_device_name()
    columns = [f"{op}{suffix}" for op in OPS for suffix in ("", "'")]
    print(f"{gpu}, torch {torch.__version__}. Share of the bandwidth of a copy; ' is the backward pass.\n")
    print(f"| dtype | layout | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for start in range(0, len(measured), len(columns)):
        row = measured[start : start + len(columns)]
        shares = " | ".join(f"{100 * result.efficiency:.0f} %" for result in row)
        print(f"| {row[0].dtype} | {row[0].layout} | {shares} |")
    if len(sys.argv) > 1:
        facts = {"gpu": gpu, "torch": torch.__version__, "machine": platform.machine()}
        rows = [asdict(result) | {"efficiency": result.efficiency} for result in measured]
        Path(sys.argv[1]).write_text(json.dumps({**facts, "results": rows}, indent=1))


if __name__ == "__main__":
    main()
