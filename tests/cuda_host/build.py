"""Compiles the CUDA kernels for the host: the same ``.cu`` files, with the headers beside this file as CUDA's."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FOLDER = HERE.parents[1] / "build" / "cuda_host"
SOURCES = (*sorted(HERE.glob("*.cpp")), *sorted(CSRC.glob("cuda/*.cu")))
HEADERS = (*HERE.glob("*.h"), *CSRC.glob("*.h"), *CSRC.glob("cuda/*.h"), *CSRC.glob("cuda/*.cuh"))

# Without optimization: compiling is what takes the time.
FLAGS = ["-std=c++20", "-O0", "-fPIC", "-fno-strict-aliasing", "-Wno-attributes", "-DTD_HOST_RUN", "-DUSE_CUDA"]
FLAGS += ["-DTORCH_TARGET_VERSION=0x020a000000000000", '-DTD_CUDA_ARCHITECTURES="none"']


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which(os.environ.get("CXX", "c++"))


def load() -> ctypes.CDLL:
    """Load ``torch.ops.taylorderiv_cuda_host``, having built it if its sources changed, and return the library.

    Raises:
        subprocess.CalledProcessError: it doesn't compile.
    """
    parts = [*FLAGS, torch.__version__, *(path.read_text() for path in (*SOURCES, *HEADERS))]
    library = FOLDER / f"{_key(*parts)}.so"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not library.exists():
            _build(library)
    torch.ops.load_library(library)
    loaded = ctypes.CDLL(str(library))
    loaded.kernels.restype = loaded.launched.restype = loaded.entered.restype = ctypes.c_char_p
    return loaded


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build(library: Path) -> None:
    command = [str(compiler()), *FLAGS, f"-I{HERE}", *(f"-I{path}" for path in include_paths())]

    def compiled(source: Path) -> Path:
        # Objects carry the name of what the compiler sees, so that only those are compiled again whose source changed.
        text = subprocess.run([*command, "-x", "c++", "-E", source], check=True, stdout=subprocess.PIPE).stdout
        target = FOLDER / f"{source.name}.{_key(*command, text.decode())}.o"
        if not target.exists():
            unfinished = target.with_suffix(".unfinished")
            subprocess.run([*command, "-x", "c++", "-c", source, "-o", unfinished], check=True)
            unfinished.rename(target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, SOURCES))
    unfinished = library.with_suffix(".unfinished")
    libraries = [f"-L{path}" for path in library_paths()] + ["-ltorch_cpu", "-lc10"]
    subprocess.run([str(compiler()), "-shared", "-Wl,-Bsymbolic", *objects, *libraries, "-o", unfinished], check=True)
    unfinished.rename(library)
    for path in set(FOLDER.iterdir()) - {library, FOLDER / "lock", *objects}:
        path.unlink()
