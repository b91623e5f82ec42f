"""The CUDA kernels on a device agree with those of the CPU, and behave on it: streams, graphs, two devices, memory."""

from __future__ import annotations

import dataclasses

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
from unary_records import Record

from taylorderiv import build_info, derivatives
from taylorderiv.layout import Layout

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and build_info()["cuda"]), reason="needs a CUDA device and a build for CUDA"
)

KERNELS = Kernels(torch.ops.taylorderiv, "cuda")
CHAINS = Chains(torch.ops.taylorderiv, "cuda")
OPS = torch.ops.taylorderiv

# Enough points for the kernels that keep jets in registers, on a GPU of up to 250 multiprocessors.
MANY_POINTS = [dataclasses.replace(case, points=4000 + case.points) for case in FIXED_SHAPES]

by_record = pytest.mark.parametrize("record", KERNEL_RECORDS, ids=lambda record: record.id)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@by_dtype
@by_record
def test_unary_kernels_agree(record: Record, dtype: torch.dtype) -> None:
    unary_agrees(KERNELS, record, dtype)


@by_dtype
def test_products_agree(dtype: torch.dtype) -> None:
    products_agree(KERNELS, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@by_record
def test_singular_points_agree(record: Record, dtype: torch.dtype) -> None:
    special_points_agree(KERNELS, record, dtype)


@pytest.mark.parametrize("op", ["exp", "sin"])
def test_order_40(op: str) -> None:
    layout = Layout((40, 3))
    x = random_jet(torch.rand(5, dtype=torch.float64), layout)
    assert_agree(KERNELS, "unary", [x], (op, [], *structure(layout)))


def test_rows_that_are_views() -> None:
    """Memory that doesn't start at a multiple of 16 bytes."""
    x = torch.rand(3 * 64 + 1, device="cuda")[1:].view(3, 64)
    torch.testing.assert_close(
        OPS.unary(x, "tanh", [], [2], []).cpu(), OPS.unary(x.cpu(), "tanh", [], [2], []), rtol=1e-5, atol=1e-6
    )


def test_more_than_2_to_the_31_elements() -> None:
    elements = 2**31 + 4096
    if torch.cuda.mem_get_info()[0] < 5 * 2 * elements:
        pytest.skip("too little memory")
    x = torch.zeros(2, elements, dtype=torch.float16, device="cuda")
    x[:, -512:] = torch.rand(2, 512)
    y = OPS.unary(x, "tanh", [], [1], [])
    assert torch.equal(y[:, -512:], OPS.unary(x[:, -512:].contiguous(), "tanh", [], [1], []))
    assert not y[:, : 2**20].any()


def test_the_current_stream_is_used() -> None:
    x = torch.rand(3, 2**20, device="cuda")
    expected = OPS.unary(2 * x, "exp", [], [2], [])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        y = OPS.unary(x.mul_(2), "exp", [], [2], [])
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("order", [4, 12])  # unrolled code, and a loop with scratch memory
def test_calls_can_be_captured_in_a_graph(order: int) -> None:
    x = torch.rand(order + 1, 1000, device="cuda")
    rest = ("tanh", [], [order], [])
    OPS.unary_backward(x, OPS.unary(x, *rest), *rest)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = OPS.unary_backward(x, OPS.unary(x, *rest), *rest)
    x.copy_(torch.rand_like(x))
    graph.replay()
    assert torch.equal(y, OPS.unary_backward(x, OPS.unary(x, *rest), *rest))


@pytest.mark.parametrize("dtype", CHAIN_DTYPES, ids=str)
@pytest.mark.parametrize("case", [*SHAPES, *MANY_POINTS], ids=str)
def test_chains_agree(case: Case, dtype: torch.dtype) -> None:
    chain_agrees(CHAINS, case, dtype)


@pytest.mark.parametrize("case", [*SHAPES[2:5], *MANY_POINTS], ids=str)
def test_chains_in_tf32_agree(case: Case) -> None:
    chain_agrees(CHAINS, case, torch.float32, tf32=True)


@pytest.mark.parametrize("dtype", CHAIN_DTYPES, ids=str)
@pytest.mark.parametrize("case", [*SHAPES[2:5], *MANY_POINTS[1:4]], ids=str)
def test_saved_layers_of_a_chain_agree(case: Case, dtype: torch.dtype) -> None:
    inputs = random_inputs(case, dtype)
    for a, b in zip(CHAINS(inputs, save=True), CHAINS(inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", sorted(RECORD_OF))
def test_every_op_in_a_chain_agrees(op: str, dtype: torch.dtype) -> None:
    for layout in (Layout((4, 2)), Layout((5, 5), (1.0, -0.5)), Layout((10,)), Layout((11,))):
        op_agrees(CHAINS, op, layout, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("op", ["tanh", "exp", "relu", "sqrt", ""])
def test_weights_of_a_chain_that_are_not_finite(op: str, value: float, dtype: torch.dtype) -> None:
    not_finite_agrees(CHAINS, op, value, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("op", ["tanh", "sin", "silu", "gelu"])
@pytest.mark.parametrize("widths", [(2, 3, 18, 1), (5, 6, 18, 5)])
def test_weights_that_are_not_finite_of_jets_in_registers(
    widths: tuple[int, ...], op: str, value: float, dtype: torch.dtype
) -> None:
    not_finite_agrees(CHAINS, op, value, dtype, widths=widths, layout=Layout((2, 1)), points=4005)


def test_chains_give_the_same_bits_every_time() -> None:
    for points in (1000, 5000):
        inputs = random_inputs(Case((2, 64, 64, 1), ("tanh", "tanh", ""), points=points), torch.float32)
        expected = CHAINS(inputs)
        for _ in range(5):
            assert all(torch.equal(a, e) for a, e in zip(CHAINS(inputs), expected, strict=True))


def test_a_training_step_can_be_captured_in_a_graph() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 24), torch.nn.Tanh(), torch.nn.Linear(24, 1)).cuda()
    x = torch.rand(256, 1, device="cuda")

    def step() -> list[torch.Tensor]:
        loss = derivatives(model, x, 8)[8].square().mean()
        return list(torch.autograd.grad(loss, list(model.parameters())[:3]))

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients = step()
    x.copy_(torch.rand_like(x))
    graph.replay()
    for a, e in zip(gradients, step(), strict=True):
        assert torch.equal(a, e)


def test_no_memory_for_a_chain() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).cuda()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**22) / total)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            derivatives(model, torch.rand(2**20, 1, device="cuda"), 4)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_tensors_on_two_devices() -> None:
    x = torch.rand(3, 4)
    with pytest.raises(RuntimeError, match="device"):
        OPS.cauchy(x.cuda(), x, [2], [])
    points, none = x[..., None].cuda(), torch.empty(0)
    for weight, bias in ((torch.rand(2, 1), none.cuda()), (torch.rand(2, 1).cuda(), torch.rand(2))):
        with pytest.raises(RuntimeError, match="with the dtype and device of x"):
            OPS.chain(points, none.cuda(), [weight], [bias], [""], [], [2], [], False, False)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_the_second_device() -> None:
    x = torch.rand(3, 1000)
    y = OPS.unary(x.to("cuda:1"), "tanh", [], [2], [])
    torch.testing.assert_close(y.cpu(), OPS.unary(x, "tanh", [], [2], []), rtol=1e-5, atol=1e-6)


@by_dtype
def test_a_network_on_the_device(dtype: torch.dtype) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).to(dtype)
    x = torch.rand(8, 1).to(dtype)

    def gradients(device: str) -> list[torch.Tensor]:
        model.to(device).zero_grad()
        loss = derivatives(model, x.to(device), 2)[2].square().mean()
        return [g.cpu() for g in torch.autograd.grad(loss, list(model.parameters())[:3])]

    tolerance = 1e-4 if dtype.itemsize > 2 else 0.1
    for actual, expected in zip(gradients("cuda"), gradients("cpu"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
