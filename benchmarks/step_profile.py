"""Where a step of taylorderiv spends its time, in percent of the samples of all threads. Needs Linux's perf.

python benchmarks/step_profile.py kuramoto-sivashinsky float32
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from pinn.cases import usual
from pinn.competitors.taylorderiv_jets import build
from pinn.problem import make_problem

STEPS = 150
SAMPLES = re.compile(r"\s+[\d.]+%\s+(\d+)\s+(\S+)\s+\[.\]\s+(.*)")
ACTIVATION = re.compile(r"UnrolledOrders|LoopOrders|::(?:forward|backward)<")


def part(library: str, function: str) -> str:
    """What a function belongs to."""
    if library.startswith("_C."):
        if "gemm" in function:
            return "matrix products"
        return "activations" if ACTIVATION.search(function) else "copies, sums and the rest of the chain"
    if "gomp" in library:
        return "one thread waits for the other"
    copies = library.startswith("libc.") and re.match("__mem(?:cpy|move|set)", function)
    return "copies, sums and the rest of the chain" if copies else "Python and PyTorch"


def main() -> None:
    """See above."""
    workload, dtype = sys.argv[1:]
    step = build(make_problem(usual(workload, dtype=dtype)))
    for _ in range(50):
        step()
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "perf.data")
        recorder = subprocess.Popen(["perf", "record", "-q", "-o", data, "-p", str(Path("/proc/self").resolve().name)])
        time.sleep(1)
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        seconds = (time.perf_counter() - start) / STEPS
        recorder.send_signal(signal.SIGINT)
        recorder.wait()
        command = ["perf", "report", "-i", data, "-n", "--stdio", "--no-children", "--sort", "dso,sym"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    samples: Counter[str] = Counter()
    for count, library, function in SAMPLES.findall(report):
        samples[part(library, function)] += int(count)
    print(f"{workload}, {dtype}: {1e3 * seconds:.1f} ms a step, {torch.get_num_threads()} threads")
    for name, count in samples.most_common():
        print(f"{100 * count / samples.total():5.1f} %  {name}")


if __name__ == "__main__":
    main()
