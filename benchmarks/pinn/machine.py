"""What the numbers were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def machine_facts() -> dict[str, Any]:
    """The processor and its memory, and how busy it is; nothing that tells whose machine it is."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    memory = Path("/proc/meminfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in cpu if line.startswith("model name")]
    (total,) = [int(line.split()[1]) for line in memory if line.startswith("MemTotal:")]
    caches = [
        {name: (cache / name).read_text().strip() for name in ("level", "type", "size")}
        for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": {f"L{cache['level']} {cache['type']}": cache["size"] for cache in caches},
        "memory_gib": round(total / 2**20, 1),
        "load_before": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def available_memory() -> int:
    """Bytes that processes may still allocate."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def library_facts() -> dict[str, Any]:
    """What taylorderiv and torch are; imports them."""
    import torch

    import taylorderiv

    info = taylorderiv.build_info()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "instruction set": info["instruction_set"],
        "compiler": info["compiler"],
        "backend": info["backend"],
        "taylorderiv": _commit() or importlib.metadata.version("taylorderiv"),
    }


def _commit() -> str | None:
    """The commit of the source tree, if there is one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--tags"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
