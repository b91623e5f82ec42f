"""Unary ops: each has a rule and a record; its jets and gradients agree with nested autograd."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from unary_oracles import CPU_FIXED_LAYOUTS, FIXED_OPS, LAYOUTS, fixed_layout, nested_along, pack, random_curves
from unary_records import RECORDS, Record

from taylorderiv import Jet, kernels, reference, registry
from taylorderiv.layout import Layout
from taylorderiv.unary_ops import UNARY_OPS

DOUBLE = torch.float64
OPS = dict(UNARY_OPS)  # other tests add to the table while they run
SMALL_LAYOUTS = (Layout((3, 1)), Layout((2, 3, 3), (0.0, -0.7, 1.0)))

by_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
by_small_layout = pytest.mark.parametrize("layout", SMALL_LAYOUTS, ids=["several directions", "collapsed"])
by_dtype = pytest.mark.parametrize("dtype", [DOUBLE, torch.float32], ids=str)


def of(record: Record, layout: Layout) -> Callable[[Tensor], Tensor]:
    """The op on the coefficients of jets."""
    return lambda coefficients: kernels.unary(record.op, coefficients, layout, record.params)


def random_jet(record: Record, layout: Layout, elements: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    """Random coefficients ``(C, elements)``, where the op is smooth."""
    x = record.random(elements, dtype=dtype)
    return pack(layout, x, random_curves(x, layout.directions, max(layout.order, 1)))


# The table of ops, the rules and the kernels.


def test_every_op_has_a_record_and_a_kernel_if_promised() -> None:
    assert {record.op for record in RECORDS} == set(OPS)
    assert {record.op for record in RECORDS if record.kernel} == set(kernels.build_info()["unary_kernels"])


def callables() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Names of torch functions and tensor methods, the functions, and the ops of the table that they mean."""
    meant = {registry.canonical(key): op.name for op in OPS.values() for key in op.keys or (op.name,)}
    for prefix, module in {"torch": torch, "special": torch.special, "F": F, "Tensor": torch.Tensor}.items():
        for name in dir(module):
            function = getattr(module, name)
            if not callable(function) or isinstance(function, type) or name.startswith("_"):
                continue
            op = meant.get(registry.find(function).name)
            if op is not None:
                yield f"{prefix}.{name}", operator.methodcaller(name) if prefix == "Tensor" else function, op


CALLABLES = tuple(callables())


def test_every_op_is_reached_from_torch() -> None:
    # Private keys: another rule chooses the op by an argument (test_rules_pass_parameters_on).
    chosen = {op.name for op in OPS.values() if op.keys and all(str(key).startswith("_") for key in op.keys)}
    assert {op for _, _, op in CALLABLES} | chosen == set(OPS)


@pytest.mark.parametrize(("function", "op"), [c[1:] for c in CALLABLES], ids=[c[0] for c in CALLABLES])
def test_torch_functions_mean_their_op(function: Callable[..., Any], op: str) -> None:
    record = next(record for record in RECORDS if record.op == op)
    layout, params = Layout((2,)), OPS[op].params()
    coefficients = random_jet(record, layout, 3)
    y = function(Jet(coefficients.clone(), layout))
    torch.testing.assert_close(y.primal, function(coefficients[0].clone()), rtol=1e-14, atol=0)
    assert torch.equal(y.coefficients, kernels.unary(op, coefficients, layout, params))


@by_record
def test_rules_pass_parameters_on(record: Record) -> None:
    layout = LAYOUTS["partly collapsed"]
    coefficients = random_jet(record, layout, 3)
    y = record.function(Jet(coefficients, layout))
    assert torch.equal(y.coefficients, of(record, layout)(coefficients))


# Agreement with nested autograd and with the reference.


@by_record
def test_jets_agree_with_nested_autograd(record: Record) -> None:
    x = record.random(19)
    curves = random_curves(x, 3, 6)
    expected = nested_along(record.function, x, curves)
    for layout in LAYOUTS.values():
        actual = of(record, layout)(pack(layout, x, curves))
        torch.testing.assert_close(actual, pack(layout, *expected).detach(), rtol=1e-10, atol=1e-300)


@by_record
def test_gradients_agree_with_nested_autograd(record: Record) -> None:
    layout = LAYOUTS["collapsed"]
    x = record.random(5).requires_grad_()
    curves = random_curves(x.detach(), 3, 6).requires_grad_()
    expected = pack(layout, *nested_along(record.function, x, curves))
    actual = of(record, layout)(pack(layout, x, curves))
    cotangent = torch.rand_like(actual)
    for a, b in zip(
        torch.autograd.grad(actual, (x, curves), cotangent),
        torch.autograd.grad(expected, (x, curves), cotangent, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), Layout((12,))], ids=str)
@by_record
def test_kernels_agree_with_the_reference(record: Record, layout: Layout) -> None:
    coefficients = random_jet(record, layout, 19).requires_grad_()
    cotangent = torch.rand_like(coefficients)
    actual = of(record, layout)(coefficients)
    expected = reference.unary(UNARY_OPS[record.op], coefficients, layout, record.params)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-300)
    (a,) = torch.autograd.grad(actual, coefficients, cotangent)
    (b,) = torch.autograd.grad(expected, coefficients, cotangent)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32], ids=str)
@pytest.mark.parametrize("layout", [*map(fixed_layout, CPU_FIXED_LAYOUTS)], ids=CPU_FIXED_LAYOUTS)
@pytest.mark.parametrize("op", [*map(str.lower, FIXED_OPS)])
def test_layouts_with_code_of_their_own_agree_with_the_reference(op: str, layout: Layout, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    coefficients = torch.randn(layout.size, 16 * 8 + 13, dtype=dtype).requires_grad_()  # a block, and some more
    cotangent = torch.randn_like(coefficients)
    actual = kernels.unary(op, coefficients, layout)
    (gradient,) = torch.autograd.grad(actual, coefficients, cotangent)
    exact = coefficients.detach().double().requires_grad_()
    expected = reference.unary(UNARY_OPS[op], exact, layout)
    (expected_gradient,) = torch.autograd.grad(expected, exact, cotangent.double())
    for a, e in ((actual, expected), (gradient, expected_gradient)):
        scale = e.abs().amax(dim=1, keepdim=True)
        tolerance = (1e-12 if dtype == DOUBLE else 2e-5) * scale
        assert ((a.double() - e).abs() <= tolerance).all(), ((a.double() - e).abs() / scale).max()


@pytest.mark.parametrize("layout", [*map(fixed_layout, CPU_FIXED_LAYOUTS)], ids=CPU_FIXED_LAYOUTS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_where_a_number_is_not_finite_code_for_a_layout_does_as_that_for_any(layout: Layout, value: float) -> None:
    torch.manual_seed(0)
    c, g = torch.randn(2, layout.size, 61)
    for i in range(layout.size):
        c[i, 3 * i], g[i, 3 * i + 1] = value, value
    # The same directions among others have the code for any layout.
    wider = Layout((*layout.orders, 1, 1), None if layout.weights is None else (*layout.weights, 0.0, 0.0))
    last = wider.size - 1 if layout.collapsed else layout.size - 1
    results = []
    for used, places in ((layout, [*range(layout.size)]), (wider, [*range(layout.size - 1), last])):
        x, grad = torch.zeros(2, used.size, 61)
        x[places], grad[places] = c, g
        y = kernels.unary("tanh", x.requires_grad_(), used)
        results.append([t[places] for t in (y, *torch.autograd.grad(y, x, grad))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


# Derivatives of the ops themselves.


@by_small_layout
@by_record
def test_gradients_of_first_and_second_order(record: Record, layout: Layout) -> None:
    coefficients = random_jet(record, layout, 2).requires_grad_()
    assert torch.autograd.gradcheck(of(record, layout), coefficients)
    assert torch.autograd.gradgradcheck(of(record, layout), coefficients)


@by_record
def test_gradients_of_third_order(record: Record) -> None:
    layout = Layout((2, 1))
    coefficients = random_jet(record, layout, 3).requires_grad_()
    cotangents = [torch.rand_like(coefficients) for _ in range(3)]

    def third(f: Callable[[Tensor], Tensor]) -> Tensor:
        y = f(coefficients)
        for cotangent in cotangents:
            if not y.requires_grad:
                return torch.zeros_like(y)
            (y,) = torch.autograd.grad(y, coefficients, cotangent, create_graph=True, materialize_grads=True)
        return y

    expected = third(lambda c: reference.unary(UNARY_OPS[record.op], c, layout, record.params))
    torch.testing.assert_close(third(of(record, layout)), expected, rtol=1e-10, atol=1e-14)


@by_small_layout
@by_record
def test_forward_mode_is_the_adjoint_of_reverse_mode(record: Record, layout: Layout) -> None:
    coefficients = random_jet(record, layout, 19)
    tangent, cotangent = torch.rand_like(coefficients), torch.rand_like(coefficients)
    pushed = torch.func.jvp(of(record, layout), (coefficients,), (tangent,))[1]
    pulled = torch.func.vjp(of(record, layout), coefficients)[1](cotangent)[0]
    torch.testing.assert_close((cotangent * pushed).sum(0), (pulled * tangent).sum(0), rtol=1e-12, atol=1e-13)


@by_dtype
@pytest.mark.parametrize("op", ["unary", "unary_backward", "unary_double_backward", "cauchy", "correlate"])
def test_the_dispatcher_knows_all_about_the_ops(op: str, dtype: torch.dtype) -> None:
    structure = ((1, 2, 2), (0.0, -0.7, 1.0))
    record = next(record for record in RECORDS if record.op == "exp")
    count = {"unary": 1, "unary_double_backward": 3}.get(op, 2)
    tensors = [random_jet(record, Layout(*structure), 2, dtype).requires_grad_() for _ in range(count)]
    constants = () if op in ("cauchy", "correlate") else (record.op, record.params)
    torch.library.opcheck(getattr(torch.ops.taylorderiv, op).default, (*tensors, *constants, *structure))


# Orders and sizes.


@by_record
def test_lower_coefficients_do_not_depend_on_the_order(record: Record) -> None:
    x = record.random(19)
    curves, grad = random_curves(x, 1, 12), torch.rand(13, 19, dtype=DOUBLE)
    highest = of(record, Layout((12,)))(pack(Layout((12,)), x, curves))
    for order in range(1, 12):
        layout = Layout((order,))
        coefficients = pack(layout, x, curves).requires_grad_()
        y = of(record, layout)(coefficients)
        torch.testing.assert_close(y, highest[: order + 1], rtol=1e-11, atol=1e-300)
        # A cotangent that is 0 above `order`: the gradient doesn't see the coefficients there.
        padded = pack(Layout((12,)), x, curves).requires_grad_()
        cotangent = torch.cat([grad[: order + 1], torch.zeros(12 - order, 19, dtype=DOUBLE)])
        (a,) = torch.autograd.grad(y, coefficients, grad[: order + 1])
        (b,) = torch.autograd.grad(of(record, Layout((12,)))(padded), padded, cotangent)
        torch.testing.assert_close(a, b[: order + 1], rtol=1e-11, atol=1e-300)
        assert not b[order + 1 :].any()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """A function that sets the number of threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@by_dtype
@by_record
def test_results_do_not_depend_on_size_or_threads(
    record: Record, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    layout, largest = Layout((3, 1)), 100_000
    coefficients = random_jet(record, layout, largest, dtype)
    coefficients[0, :: max(1, largest // 7)] = record.samples(2)[0]
    grad = torch.rand_like(coefficients)

    def run(n: int) -> tuple[Tensor, Tensor]:
        c = coefficients[:, :n].contiguous().requires_grad_()
        y = of(record, layout)(c)
        return y.detach(), torch.autograd.grad(y, c, grad[:, :n])[0]

    threads(1)
    expected = run(largest)
    for n, count in [(largest, 2), (0, 1), (1, 1), (15, 1), (16, 1), (17, 1), (1000, 2)]:
        threads(count)
        for a, b in zip(run(n), expected, strict=True):
            assert torch.equal(a, b[:, :n])


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,), (4, 5)])
def test_shapes_are_kept(shape: tuple[int, ...]) -> None:
    coefficients = torch.rand(4, *shape, requires_grad=True)
    y = kernels.unary("tanh", coefficients, Layout((3,)))
    assert y.shape == coefficients.shape
    y.sum().backward()
    assert coefficients.grad is not None
    assert coefficients.grad.shape == coefficients.shape


# Bad input.


def test_unknown_ops_and_wrong_arguments_are_refused() -> None:
    unary, x = torch.ops.taylorderiv.unary, torch.rand(3, 2)
    with pytest.raises(RuntimeError, match=r"^taylorderiv: no kernel for the unary op 'nonsense'$"):
        unary(x, "nonsense", [], [2], [])
    with pytest.raises(RuntimeError, match="'softplus' takes 2 params, got 1"):
        unary(x, "softplus", [1.0], [2], [])
    with pytest.raises(RuntimeError, match=r"x must be \(4, \.\.\.\) for this layout"):
        unary(x, "tanh", [], [3], [])
    with pytest.raises(RuntimeError, match="must be float32 or float64"):
        unary(x.long(), "tanh", [], [2], [])
    with pytest.raises(RuntimeError, match="order 0 is out of range"):
        unary(x, "tanh", [], [0, 2], [])
    with pytest.raises(RuntimeError, match="must share one order"):
        unary(torch.rand(5, 2), "tanh", [], [2, 3], [1.0, 1.0])
