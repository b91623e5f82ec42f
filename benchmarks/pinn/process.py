"""A worker process, seen from the benchmark's side."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

BENCHMARKS = Path(__file__).parent.parent


class WorkerError(Exception):
    """Why a worker couldn't do what it was asked."""


class Worker:
    """A process that does one competitor's work; ended when left as a context manager.

    Args:
        log: where its standard error goes.
        threads: how many processors it may use.
        memory: how many bytes it may allocate.
        python: the interpreter, by default this one.
    """

    def __init__(self, log: Path, *, threads: int, memory: int, python: str = sys.executable):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # in the process itself: nothing is left running
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [python, "-P", "-m", "pinn.worker", str(threads), str(memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,  # an interrupt is for the benchmark, which then ends its workers
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._asking = threading.Lock()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._end()
        with self._asking:  # another thread may wait for an answer; it gets the end of the file
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def request(self, do: str, *, timeout: float, **arguments: Any) -> Any:
        """Ask and wait for the answer.

        Raises:
            WorkerError: it couldn't, died, or took longer than ``timeout`` seconds; then it's ended.
        """
        with self._asking:
            try:
                os.write(self._stdin, json.dumps({"do": do, **arguments}).encode() + b"\n")
            except BrokenPipeError:
                raise WorkerError(self._death()) from None
            answer = json.loads(self._line(timeout))
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["ok"]

    def _line(self, timeout: float) -> bytes:
        line, end = b"", time.monotonic() + timeout
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._stdout], [], [], max(end - time.monotonic(), 0))
            if not ready:
                self._end()
                raise WorkerError(f"time-out after {timeout:.0f} s")
            part = os.read(self._stdout, 1 << 16)
            if not part:
                raise WorkerError(self._death())
            line += part
        return line

    def _death(self) -> str:
        code = self._process.wait()
        return "killed, probably for want of memory" if code == -9 else f"died with exit status {code}"
