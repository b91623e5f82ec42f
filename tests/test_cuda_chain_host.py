"""The fused chain's CUDA kernels, compiled for the host (cuda_host/), agree with those of the CPU."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from chain_agreement import (
    CHAIN_DTYPES,
    FIXED_SHAPES,
    RECORD_OF,
    SHAPES,
    Case,
    Chains,
    chain_agrees,
    not_finite_agrees,
    op_agrees,
    random_inputs,
)
from cuda_host import build
from unary_oracles import FIXED_LAYOUTS, FIXED_OPS, fixed_layout

from taylorderiv import _C, build_info
from taylorderiv.layout import Layout

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

H200 = (132, 227 << 10)  # multiprocessors, and bytes of shared memory for a block
FEW_BLOCKS = (2, 227 << 10)  # so that a block has several tiles
LITTLE_MEMORY = (2, 99 << 10)
TOO_LITTLE_FOR_PARTS = (2, 64 << 10)  # float32 numbers are then kept whole

by_dtype = pytest.mark.parametrize("dtype", CHAIN_DTYPES, ids=str)
by_float = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
by_shape = pytest.mark.parametrize("case", [*SHAPES, *FIXED_SHAPES], ids=str)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return build.load()


@pytest.fixture
def chains(library: ctypes.CDLL) -> Iterator[Chains]:
    library.set_device(*FEW_BLOCKS)
    yield Chains(torch.ops.taylorderiv_cuda_host)
    library.set_reversed(0)
    library.set_early_copies(0)


@by_dtype
@by_shape
def test_chains_agree(chains: Chains, case: Case, dtype: torch.dtype) -> None:
    chain_agrees(chains, case, dtype)


@pytest.mark.parametrize("case", [*SHAPES[2:5], *FIXED_SHAPES], ids=str)
def test_chains_in_tf32_agree(chains: Chains, case: Case) -> None:
    chain_agrees(chains, case, torch.float32, tf32=True)


@by_dtype
@pytest.mark.parametrize("case", [*SHAPES[1:5], *FIXED_SHAPES[1:4]], ids=str)
def test_saved_layers_agree(chains: Chains, case: Case, dtype: torch.dtype) -> None:
    inputs = random_inputs(case, dtype)
    for a, b in zip(chains(inputs, save=True), chains(inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", [H200, LITTLE_MEMORY], ids=["one tile a block", "little memory"])
@pytest.mark.parametrize("case", SHAPES[2:6], ids=str)
def test_other_tilings_agree(chains: Chains, library: ctypes.CDLL, case: Case, device: tuple[int, int]) -> None:
    library.set_device(*device)
    chain_agrees(chains, case, torch.float32)


@pytest.mark.parametrize("case", [*FIXED_SHAPES[:6], FIXED_SHAPES[7]], ids=str)
def test_jets_that_are_not_in_parts_agree(chains: Chains, library: ctypes.CDLL, case: Case) -> None:
    library.set_device(*TOO_LITTLE_FOR_PARTS)
    for save in (False, True):
        chain_agrees(chains, case, torch.float32, save=save)


@by_float
@pytest.mark.parametrize("case", [*SHAPES[1:9], *FIXED_SHAPES[1:5]], ids=str)
def test_threads_in_another_order_give_the_same_bits(
    chains: Chains, library: ctypes.CDLL, case: Case, dtype: torch.dtype
) -> None:
    """Else one reads what another may not have written yet."""
    inputs = random_inputs(case, dtype)
    expected = chains(inputs)
    library.set_reversed(1)
    for a, e in zip(chains(inputs), expected, strict=True):
        assert torch.equal(a, e)


@by_float
@pytest.mark.parametrize("case", [*SHAPES[3:6], *FIXED_SHAPES[1:3], FIXED_SHAPES[7]], ids=str)
def test_copies_that_are_done_at_once_give_the_same_bits(
    chains: Chains, library: ctypes.CDLL, case: Case, dtype: torch.dtype
) -> None:
    """Else weights are overwritten before they are used; that they aren't used too early is what other tests see."""
    inputs = random_inputs(case, dtype)
    expected = chains(inputs)
    library.set_early_copies(1)
    for a, e in zip(chains(inputs), expected, strict=True):
        assert torch.equal(a, e)


@by_float
@pytest.mark.parametrize("op", sorted(RECORD_OF))
def test_every_op_agrees(chains: Chains, op: str, dtype: torch.dtype) -> None:
    for layout in (
        Layout((1,)),
        Layout((4, 2)),
        Layout((5, 5), (1.0, -0.5)),
        Layout((8,)),
        Layout((10,)),
        Layout((11,)),
    ):
        op_agrees(chains, op, layout, dtype)


@by_float
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("op", ["tanh", "exp", "relu", "sqrt", ""])
def test_not_finite_weights(chains: Chains, op: str, value: float, dtype: torch.dtype) -> None:
    not_finite_agrees(chains, op, value, dtype)


@by_float
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("op", ["tanh", "sin", "silu", "gelu"])
@pytest.mark.parametrize("layout", [Layout((2, 1)), Layout((2, 2), (1.0, 0.5))], ids=str)
@pytest.mark.parametrize("widths", [(2, 3, 18, 1), (5, 6, 18, 5)])
def test_not_finite_weights_of_jets_in_registers(
    chains: Chains, widths: tuple[int, ...], op: str, layout: Layout, value: float, dtype: torch.dtype
) -> None:
    not_finite_agrees(chains, op, value, dtype, widths=widths, layout=layout, points=35)


def test_no_gradient_of_the_input(chains: Chains) -> None:
    inputs = random_inputs(SHAPES[2], torch.float32)
    y, dx, *gradients = chains(inputs, dx=False)
    assert dx.numel() == 0
    expected_y, _, *expected = chains(inputs)
    assert all(torch.equal(a, b) for a, b in zip([y, *gradients], [expected_y, *expected], strict=True))


def test_a_layer_that_is_too_wide(chains: Chains) -> None:
    with pytest.raises(RuntimeError, match="layers of at most 256 neurons, got 257"):
        chains(random_inputs(Case((2, 257), ("",)), torch.float32))


def test_too_many_layers(chains: Chains) -> None:
    with pytest.raises(RuntimeError, match="at most 32 layers, got 33"):
        chains(random_inputs(Case((2,) * 34, ("",) * 33), torch.float32))


def test_too_many_coefficients(chains: Chains) -> None:
    with pytest.raises(RuntimeError, match="don't fit into its shared memory"):
        chains(random_inputs(Case((2, 256), ("",), Layout((1,) * 200)), torch.float32))


@by_float
@pytest.mark.parametrize("coefficients", [6, 33, 65, 97])
@pytest.mark.parametrize("width", [1, 64, 200, 256])
def test_what_is_said_to_fit_fits(
    chains: Chains, library: ctypes.CDLL, width: int, coefficients: int, dtype: torch.dtype
) -> None:
    case = Case((width, width), ("",), Layout((1,) * (coefficients - 1)), 1)
    for device in (H200, LITTLE_MEMORY):
        library.set_device(*device)
        try:
            chains(random_inputs(case, dtype))
            fits = True
        except RuntimeError as error:
            assert "don't fit" in str(error)  # noqa: PT017
            fits = False
        assert fits == _C.cuda_chain_fits(coefficients, width, width, dtype.itemsize, device[1])


def test_another_dtype(chains: Chains) -> None:
    with pytest.raises(RuntimeError, match="must be float32, float64, float16 or bfloat16"):
        chains(random_inputs(Case((2, 2), ("",)), torch.int32))


def test_a_failing_launch(chains: Chains, library: ctypes.CDLL) -> None:
    library.set_failing(1)
    try:
        with pytest.raises(RuntimeError, match="can't start a kernel: no kernel image is available"):
            chains(random_inputs(SHAPES[2], torch.float32))
    finally:
        library.set_failing(0)


def test_no_memory(chains: Chains) -> None:
    """For a result larger than the address space, of a tensor of which only a few pages exist."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    x = torch.frombuffer(mmap.mmap(-1, 2**40, flags=flags), dtype=torch.float32).view(2, -1, 1)
    with pytest.raises(RuntimeError, match="out of memory: PyTorch can't allocate a tensor of 70368744177664 numbers"):
        chains.ops.chain(x, torch.empty(0), [torch.rand(256, 1)], [torch.empty(0)], [""], [], [1], [], False, False)


# ---------------------------------------------------------------------------------------------------------------------
# The emulation of the matrix instructions
# ---------------------------------------------------------------------------------------------------------------------

LANES = torch.arange(32)
GROUP, THREAD = LANES // 4, LANES % 4  # as the PTX manual calls them


def pointer(t: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


def test_tf32_fragments(library: ctypes.CDLL) -> None:
    a, b, d = torch.randn(16, 8), torch.randn(8, 8), torch.randn(16, 8)
    a, b = ((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (a, b))
    a_parts = torch.stack([a[GROUP + 8 * (i % 2), THREAD + 4 * (i // 2)] for i in range(4)], 1).contiguous()
    b_parts = torch.stack([b[THREAD + 4 * i, GROUP] for i in range(2)], 1).contiguous()
    check_float_fragments(library, 0, a_parts, b_parts, d, a.double() @ b.double())


@pytest.mark.parametrize(("kind", "dtype"), [(1, torch.float16), (2, torch.bfloat16)])
def test_16_bit_fragments(library: ctypes.CDLL, kind: int, dtype: torch.dtype) -> None:
    a, b, d = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    a_parts = torch.stack(
        [a[GROUP + 8 * (i // 2 % 2), 2 * THREAD + i % 2 + 8 * (i // 4)] for i in range(8)], 1
    ).contiguous()
    b_parts = torch.stack([b[2 * THREAD + i % 2 + 8 * (i // 2), GROUP] for i in range(4)], 1).contiguous()
    check_float_fragments(library, kind, a_parts, b_parts, d, a.double() @ b.double())


def check_float_fragments(
    library: ctypes.CDLL, kind: int, a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, product: torch.Tensor
) -> None:
    places = [(GROUP + 8 * (i // 2), 2 * THREAD + i % 2) for i in range(4)]
    d_parts = torch.stack([d[place] for place in places], 1).contiguous()
    library.multiply_fragments(kind, pointer(a), pointer(b), pointer(d_parts))
    for i, place in enumerate(places):
        torch.testing.assert_close(d_parts[:, i], (d + product)[place].float(), rtol=1e-5, atol=1e-5)


def test_double_fragments(library: ctypes.CDLL) -> None:
    a, b, d = (torch.randn(*shape, dtype=torch.float64) for shape in ((16, 8), (8, 8), (16, 8)))
    a_parts = torch.stack([a[GROUP + 8 * (i % 2), THREAD + 4 * (i // 2)] for i in range(4)], 1).contiguous()
    b_parts = torch.stack([b[THREAD + 4 * i, GROUP] for i in range(2)], 1).contiguous()
    places = [(GROUP + 8 * (i // 2), 2 * THREAD + i % 2) for i in range(4)]
    d_parts = torch.stack([d[place] for place in places], 1).contiguous()
    library.multiply_double_fragments(pointer(a_parts), pointer(b_parts), pointer(d_parts))
    for i, place in enumerate(places):
        torch.testing.assert_close(d_parts[:, i], (d + a @ b)[place])


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices(library: ctypes.CDLL, transposed: bool) -> None:
    rows = torch.arange(4 * 8 * 8, dtype=torch.int16).view(32, 8)
    order = torch.randperm(32, dtype=torch.int32)
    loaded, stored = torch.zeros(32, 4, 2, dtype=torch.int16), torch.zeros(4, 8, 8, dtype=torch.int16)
    library.move_matrices(pointer(rows), pointer(order), transposed, pointer(loaded), pointer(stored))
    matrices = rows[order.long()].view(4, 8, 8)
    if transposed:
        matrices = matrices.mT
    for i in range(2):
        assert torch.equal(loaded[:, :, i], matrices[:, GROUP, 2 * THREAD + i].T)
    assert torch.equal(stored, matrices)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("waiting", [False, True])
def test_asynchronous_copies(library: ctypes.CDLL, waiting: bool, early: bool) -> None:
    """Of two groups, one is waited for, or none: what hasn't been is there only on hardware that was fast."""
    numbers = torch.tensor([1.0, 2.0], dtype=torch.float64)
    seen = torch.zeros(2, dtype=torch.float64)
    library.set_early_copies(early)
    library.copy_in_two_groups(pointer(numbers), pointer(seen), waiting)
    library.set_early_copies(0)
    assert seen.isnan().tolist() == [not (early or waiting), not early]
    assert torch.equal(seen[~seen.isnan()], numbers[~seen.isnan()])


# ---------------------------------------------------------------------------------------------------------------------
# All of it is run
# ---------------------------------------------------------------------------------------------------------------------

MMAS = ("SplitTf32Mma", "Tf32Mma", "HalfMma<__half>", "HalfMma<__nv_bfloat16>", "DoubleMma")
STORAGES = ("float", "__half", "__nv_bfloat16", "double")
NUMBERS = ("float", "double")
UNROLLED_OPS = re.findall(r"X\((\w+)\)", (build.CSRC / "cuda" / "chain_ops.h").read_text().partition("define")[2])


REPAIRED = ("JetRegisters", "WeightSums")
KINDS = ("parts", *NUMBERS)  # that jets in registers are kept as
MOST_PARTS = 6  # coefficients of jets that are kept in parts


def listed(text: bytes) -> str:
    """A list of functions, without namespaces."""
    return re.sub(r"taylorderiv::(?:cuda::)?", "", text.decode())


def test_all_functions_are_run(chains: Chains, library: ctypes.CDLL, show: Callable[[str], None]) -> None:
    library.launched()
    library.entered()
    for dtype in (torch.float32, torch.float64):
        for op in RECORD_OF:
            op_agrees(chains, op, Layout((2,)), dtype)
            op_agrees(chains, op, Layout((11,)), dtype)
    few, many = (Case((2, 32, 16, width, 1), ("tanh",) * 3 + ("",)) for width in (32, 256))
    for dtype in CHAIN_DTYPES:
        for tf32 in {False, dtype == torch.float32}:
            chain_agrees(chains, few, dtype, tf32=tf32)
            chain_agrees(chains, many, dtype, tf32=tf32)
            for device in (FEW_BLOCKS, TOO_LITTLE_FOR_PARTS)[: 2 if dtype == torch.float32 and not tf32 else 1]:
                library.set_device(*device)
                for orders, op in product(FIXED_LAYOUTS, ("tanh", "sin", "silu", "gelu")):
                    case = Case((2, 16, 3), (op, ""), fixed_layout(orders), 32)
                    chain_agrees(chains, case, dtype, tf32=tf32)
                    if dtype.itemsize > 2:
                        rest = {"layout": case.layout, "points": 32}
                        not_finite_agrees(chains, op, float("inf"), dtype, widths=(5, 6, 18, 5), **rest)
            library.set_device(*FEW_BLOCKS)
    kernels = set(re.findall(r"(\w+<.*>)\(ChainTask", listed(library.launched()).replace("> >", ">>")))
    functions = listed(library.entered())
    products = set(re.findall(r"(linear|outer)\(.*\[with Arithmetic = (\S+); int tiles = (\d)", functions))
    activations = re.findall(r" P = (\w+)<(\w+)>; Number = (\w+); Orders = (\w+)", functions)
    jets = r"(?:Split(?=Jets))?Jets<(\w+)"  # whole ones' number, or parts' size
    fixed = {
        (op, backward, layout, kind if kind in NUMBERS else "parts")
        for op, backward, layout, kind in re.findall(
            rf"redo_with_care\(.*\[with Op = (\w+); bool backward = (\w+); Layout = FixedLayout<(.*?)>; .*?J = {jets}",
            functions,
        )
    }
    # Of a layer's results, and of the gradient of a weight.
    repaired = [re.findall(rf" repair\({of}<.*?J = (Jets<float, |SplitJets<)(\d+)", functions) for of in REPAIRED]
    lines = sorted(kernels)
    lines += [f"{name:8} {mma:24} {tiles} tiles" for name, mma, tiles in sorted(products)]
    for group, count in sorted(Counter((name, number, orders) for name, _, number, orders in activations).items()):
        lines.append(f"activation {' '.join(group):36} {count:3} ops")
    for (backward, layout, kind), count in sorted(Counter(f[1:] for f in fixed).items()):
        name = "backward" if backward == "true" else "forward"
        lines.append(f"in registers {name:8} {kind:6} layout {layout:12} {count} ops")
    show("\n".join(lines))
    size_of = {orders: fixed_layout(orders).size for orders in FIXED_LAYOUTS}
    in_registers = [
        (kind, o) for kind, o in product(KINDS, FIXED_LAYOUTS) if kind != "parts" or size_of[o] <= MOST_PARTS
    ]
    assert kernels == {
        *(f"{name}<{number}>" for name in ("chain_forward", "chain_backward") for number in NUMBERS),
        *(
            f"fixed_chain_{name}<{'float' if kind == 'parts' else kind}, FixedLayout<{orders}>, "
            f"{'true' if kind == 'parts' else 'false'}>"
            for name in ("forward", "backward")
            for kind, orders in in_registers
        ),
        *(
            f"{name}<{'double' if storage == 'double' else 'float'}, {storage}>"
            for name in ("pack_chain", "reduce_chain")
            for storage in STORAGES
        ),
    }
    assert products == {
        *(("outer", mma, tiles) for mma in MMAS for tiles in "24"),
        *(("linear", mma, "2") for mma in MMAS),
        *(("linear", mma, "4") for mma in MMAS if "Tf32" in mma),  # the others take in twice as much in a step
    }
    assert fixed == {
        (op, backward, orders, kind)
        for op in FIXED_OPS
        for backward in ("false", "true")
        for kind, orders in in_registers
    }
    for of in repaired:
        assert {int(size) for jet, size in of if jet == "SplitJets<"} == {
            size_of[o] for k, o in in_registers if k == "parts"
        }
        assert {int(size) for jet, size in of if jet != "SplitJets<"} == set(size_of.values())
    for number in NUMBERS:
        for name in ("Forward", "Backward"):
            ops = {orders: set() for orders in ("LoopOrders", "PaddedOrders")}
            for n, op, activation_number, orders in activations:
                if (n, activation_number) == (name, number):
                    ops[orders].add(op)
            assert len(ops["LoopOrders"]) == len(build_info()["unary_kernels"])
            assert ops["PaddedOrders"] == set(UNROLLED_OPS)
