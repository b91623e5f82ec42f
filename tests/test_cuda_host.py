"""The CUDA kernels, compiled for the host (cuda_host/), agree with those of the CPU; every one of them is run."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
import torch
from cuda_agreement import (
    DTYPES,
    KERNEL_RECORDS,
    Kernels,
    assert_agree,
    products_agree,
    random_jet,
    special_points_agree,
    structure,
    unary_agrees,
)
from cuda_host import build
from unary_records import Record

from taylorderiv import build_info
from taylorderiv.layout import Layout

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

KERNEL = re.compile(
    r"elementwise<taylorderiv::cuda::(?P<name>\w+)(?:<taylorderiv::cuda::(?P<op>\w+)> ?)?, (?P<storage>\w+), "
    r"taylorderiv::cuda::(?:PaddedOrder<(?P<order>\d+)>|LoopOrders), (?P<width>\d+)>"
)
STORAGES = ("float", "double", "__half", "__nv_bfloat16")

RUN: set[str] = set()  # kernels, by the tests of this session

by_record = pytest.mark.parametrize("record", KERNEL_RECORDS, ids=lambda record: record.id)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return build.load()


@pytest.fixture(scope="module")
def kernels(library: ctypes.CDLL) -> Kernels:
    assert library is not None
    return Kernels(torch.ops.taylorderiv_cuda_host)


def parsed(text: bytes) -> dict[str, re.Match[str]]:
    """A list of kernels: their names, and what these say."""
    matches = [KERNEL.search(line) for line in text.decode().splitlines()]
    return {match[0]: match for match in matches if match is not None}


@pytest.fixture(scope="module")
def compiled(library: ctypes.CDLL) -> dict[str, re.Match[str]]:
    return parsed(library.kernels())


@pytest.fixture
def all_run(library: ctypes.CDLL, compiled: dict[str, re.Match[str]]) -> Iterator[None]:
    """Fail unless a test runs all kernels of the op and the dtype that it runs at all."""
    library.launched()
    yield
    run = parsed(library.launched())
    RUN.update(run)
    ((op, storage),) = {(match["op"], match["storage"]) for match in run.values()}
    assert run.keys() == {name for name, m in compiled.items() if (m["op"], m["storage"]) == (op, storage)}


@by_dtype
@by_record
@pytest.mark.usefixtures("all_run")
def test_unary_kernels_agree(kernels: Kernels, record: Record, dtype: torch.dtype) -> None:
    unary_agrees(kernels, record, dtype)


@by_dtype
@pytest.mark.usefixtures("all_run")
def test_products_agree(kernels: Kernels, dtype: torch.dtype) -> None:
    products_agree(kernels, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@by_record
def test_singular_points_agree(kernels: Kernels, record: Record, dtype: torch.dtype) -> None:
    special_points_agree(kernels, record, dtype)


def test_every_op_has_all_kernels_and_all_are_run(
    compiled: dict[str, re.Match[str]], request: pytest.FixtureRequest, show: Callable[[str], None]
) -> None:
    kernels: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    ops: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for kernel, m in compiled.items():
        kernels[m["name"], m["storage"], m["order"] or "any"].add(kernel)
        ops[m["name"], m["storage"], m["order"] or "any"].add(m["op"])
    lines = []
    for group, found in sorted(kernels.items()):
        name, storage, order = group
        counts = f"{len(found & RUN):4} of {len(found):4} kernels of {len(ops[group]):3} ops run"
        lines.append(f"{name:15} {storage:14} order {order:>3}: {counts}")
    show("\n".join(lines))
    unary = {"Forward", "Backward", "DoubleBackward"}
    for name in unary | {"Cauchy", "Correlate"}:
        for storage in STORAGES:
            expected = len(build_info()["unary_kernels"]) if name in unary else 1
            assert len(ops[name, storage, "any"]) == expected, (name, storage)
    selected = [item for item in request.session.items if "all_run" in getattr(item, "fixturenames", ())]
    if len(selected) == len(DTYPES) * (len(KERNEL_RECORDS) + 1):
        assert compiled.keys() == RUN


@pytest.mark.parametrize("op", ["exp", "sin"])
def test_order_40(kernels: Kernels, op: str) -> None:
    layout = Layout((40, 3))
    x = random_jet(torch.rand(5, dtype=torch.float64), layout)
    rest = (op, [], *structure(layout))
    assert_agree(kernels, "unary", [x], rest)
    assert_agree(kernels, "unary_backward", [x, x], rest)


def test_many_equal_directions(kernels: Kernels) -> None:
    layout = Layout((2,) * 1000, (1.0,) * 999 + (0.0,))
    x = random_jet(torch.rand(3, dtype=torch.float64), layout)
    assert_agree(kernels, "unary", [x], ("tanh", [], *structure(layout)))


def test_too_many_different_directions(kernels: Kernels) -> None:
    layout = Layout((2, 3) * 65)
    with pytest.raises(RuntimeError, match="at most 128 different orders or weights in a row, got 130"):
        kernels("unary", [torch.rand(layout.size, 3)], "tanh", [], *structure(layout))


def test_no_elements(kernels: Kernels) -> None:
    (y,) = kernels("unary", [torch.rand(3, 0)], "tanh", [], [2], [])
    assert y.shape == (3, 0)


def test_other_dtypes(kernels: Kernels) -> None:
    with pytest.raises(RuntimeError, match="must be float32, float64, float16 or bfloat16"):
        kernels("unary", [torch.ones(3, 2, dtype=torch.int32)], "neg", [], [2], [])


def test_a_failing_launch(kernels: Kernels, library: ctypes.CDLL) -> None:
    library.set_failing(1)
    try:
        with pytest.raises(RuntimeError, match="can't start a kernel: no kernel image is available"):
            kernels("unary", [torch.rand(3, 2)], "tanh", [], [2], [])
    finally:
        library.set_failing(0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_numbers_survive(kernels: Kernels, dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[None]
    (y,) = kernels("unary", [x], "neg", [], [], [])
    torch.testing.assert_close(y, -x, rtol=0, atol=0, equal_nan=True)


def test_more_than_2_to_the_31_elements(kernels: Kernels, library: ctypes.CDLL) -> None:
    """The last elements of a tensor whose indices need more than 32 bits; of its memory only these pages exist."""
    elements, last = 2**31 + 4096, 512
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    memory = mmap.mmap(-1, 2 * 2 * elements, flags=flags)
    x = torch.frombuffer(memory, dtype=torch.float16).view(2, elements)
    x[:, -last:] = torch.rand(2, last).half()
    library.set_first_block(0xFFFFFFFF)  # nothing runs, but the launch tells how many blocks there are
    (y,) = kernels("unary", [x], "tanh", [], [1], [])
    library.set_first_block(library.blocks() - 2)
    try:
        (y,) = kernels("unary", [x], "tanh", [], [1], [])
    finally:
        library.set_first_block(0)
    (expected,) = kernels("unary", [x[:, -last:].contiguous()], "tanh", [], [1], [])
    done = 2 * 128
    assert torch.equal(y[:, -done:], expected[:, -done:])
