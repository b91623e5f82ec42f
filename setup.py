"""Builds the extension ``taylorderiv._C`` against the PyTorch that is installed (use ``--no-build-isolation``).

With CUDA when PyTorch was built with CUDA and a CUDA toolkit is found. Environment:
    TAYLORDERIV_CUDA=0 | 1     without CUDA in any case | with it, or fail
    TORCH_CUDA_ARCH_LIST       architectures, by default "8.0;9.0+PTX"
    TAYLORDERIV_AVX512=0 | auto  without code for AVX-512, most of what is compiled | only if this machine has it
    TAYLORDERIV_SANITIZE=1     with AddressSanitizer and UndefinedBehaviorSanitizer: see .ci/sanitize
    MAX_JOBS                   parallel compilations
"""

import os
import platform
from pathlib import Path

import torch
from pybind11 import get_include
from setuptools import Extension, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10: one binary for it and what follows (stable ABI)
CUDA_ARCHITECTURES = "8.0;9.0+PTX"
# What is undefined ends the process. Checks by calls, as written out they take the compiler four times as long.
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
SANITIZED = [*SANITIZERS, "--param=asan-instrumentation-with-call-threshold=0", "-O1", "-g1", "-D_GLIBCXX_ASSERTIONS"]


def wants_cuda() -> bool:
    possible = torch.version.cuda is not None and CUDA_HOME is not None
    choice = os.environ.get("TAYLORDERIV_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"TAYLORDERIV_CUDA must be 0 or 1, got {choice!r}")
    if choice == "1" and not possible:
        raise SystemExit(
            f"TAYLORDERIV_CUDA=1, but PyTorch was built for CUDA {torch.version.cuda} and CUDA_HOME is {CUDA_HOME}"
        )
    return possible and choice != "0"


def wants_avx512() -> bool:
    choice = os.environ.get("TAYLORDERIV_AVX512", "1")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"TAYLORDERIV_AVX512 must be 0, 1 or auto, got {choice!r}")
    facts = Path("/proc/cpuinfo")
    return choice == "1" or (choice == "auto" and (not facts.exists() or "avx512bw" in facts.read_text()))


def extension() -> Extension:
    sources = [str(path) for path in [Path("csrc/library.cpp"), *sorted(Path("csrc/cpu").glob("*.cpp"))]]
    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    avx512 = False
    if platform.machine() in ("x86_64", "AMD64"):
        macros.append(("TD_X86", "1"))
        avx512 = wants_avx512()
    if avx512:
        macros.append(("TD_AVX512", "1"))
    else:
        sources = [path for path in sources if "avx512" not in path]
    # NaN and infinity keep their meaning: no -ffast-math.
    cxx = ["-std=c++20", "-O2", "-g0", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
    cxx += ["-fno-trapping-math", "-Wall", "-Wno-maybe-uninitialized", "-Wno-psabi"]
    # Libraries that the linker puts into the extension are its own: some compilers do so with libstdc++, and the
    # process has another one.
    link = ["-Wl,--exclude-libs,ALL"] if platform.system() == "Linux" else []
    if os.environ.get("TAYLORDERIV_SANITIZE", "0") != "0":
        cxx += SANITIZED
        link += SANITIZERS
    if not wants_cuda():
        arguments = {"sources": sources, "define_macros": macros, "extra_compile_args": {"cxx": cxx}}
        return CppExtension("taylorderiv._C", include_dirs=[get_include()], extra_link_args=link, **arguments)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    architectures = os.environ["TORCH_CUDA_ARCH_LIST"]
    return CUDAExtension(
        "taylorderiv._C",
        sources=sources + [str(path) for kind in ("*.cpp", "*.cu") for path in sorted(Path("csrc/cuda").glob(kind))],
        include_dirs=[get_include()],
        define_macros=[*macros, ("USE_CUDA", "1"), ("TD_CUDA_ARCHITECTURES", f'"{architectures}"')],
        extra_compile_args={"cxx": cxx, "nvcc": ["-std=c++20", "-O3", "--expt-relaxed-constexpr"]},
        extra_link_args=link,
    )


class Build(BuildExtension):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = "build/temp"  # kept between builds, also by editable installs: only what changed is compiled


setup(ext_modules=[extension()], cmdclass={"build_ext": Build})
