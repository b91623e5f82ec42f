"""Networks that change between calls, and calls that are interrupted or run beside each other: never a stale number."""

from __future__ import annotations

import _thread
import copy
import functools
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import unfused
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import taylorderiv
from taylorderiv import Jet, derivatives, fusion, kernels

pytestmark = pytest.mark.skipif(
    kernels.build_info()["backend"] == "reference", reason="the reference backend fuses nothing"
)

DOUBLE = torch.float64


def make_network() -> Any:
    layers = nn.Linear(2, 8), nn.Softplus(), nn.Dropout(0.5), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)
    return nn.Sequential(*layers).double()


def results(network: Any, x: Tensor) -> list[Tensor]:
    """Derivatives, and the gradients of the parameters that have one."""
    torch.manual_seed(1)  # of dropout
    values = derivatives(network, x, 2)
    parameters = [p for p in network.parameters() if p.requires_grad]
    loss = values[2].square().sum() + values[1].sum()
    if not parameters:
        return list(values)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return [*(value.detach() for value in values), *gradients]


# Ways in which a network changes. Each returns the network to go on with, if it isn't the one that was given.


def _no_grad(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(network: Any) -> None:
        with torch.no_grad():
            change(network)

    return run


def _optimizer_step(optimizer: Callable[..., torch.optim.Optimizer]) -> Callable[[Any], Any]:
    def run(network: Any) -> None:
        steps = optimizer(network.parameters(), 0.1)
        derivatives(network, torch.ones(3, 2, dtype=DOUBLE), 1)[1].sum().backward()
        steps.step()

    return run


def _wider(network: Any) -> None:
    network[0], network[3] = nn.Linear(2, 20).double(), nn.Linear(20, 8).double()


def _resized(network: Any) -> None:
    network[0].weight.data, network[0].bias.data = torch.randn(5, 2, dtype=DOUBLE), torch.randn(5, dtype=DOUBLE)
    network[3].weight.data = torch.randn(8, 5, dtype=DOUBLE)


def _set(name: str, value: Any) -> Callable[[Any], Any]:
    def run(network: Any) -> None:
        *path, last = name.split(".")
        target = functools.reduce(getattr, path, network)
        setattr(target, last, value() if callable(value) else value)

    return run


def _weight_norm(network: Any) -> None:
    parametrizations.weight_norm(network[3])
    with torch.no_grad():
        network[3].parametrizations.weight.original0.mul_(2)


def _weight_norm_removed(network: Any) -> None:
    _weight_norm(network)
    results(network, torch.ones(3, 2, dtype=DOUBLE))
    parametrize.remove_parametrizations(network[3], "weight")


def _pruned(network: Any) -> None:
    prune.l1_unstructured(network[3], "weight", 0.5)


def _functional(network: Any) -> Any:
    parameters = {name: torch.randn_like(p) for name, p in network.named_parameters()}

    class Functional(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.func.functional_call(network, parameters, (x,))

    return Functional()


def _from_vector(network: Any) -> None:
    count = sum(p.numel() for p in network.parameters())
    nn.utils.vector_to_parameters(torch.randn(count + 1, dtype=DOUBLE)[1:], network.parameters())


CHANGES: dict[str, Callable[[Any], Any]] = {
    "SGD": _optimizer_step(torch.optim.SGD),
    "Adam": _optimizer_step(torch.optim.Adam),
    "in place": _no_grad(lambda n: n[0].weight.mul_(2)),
    "in place, the bias": _no_grad(lambda n: n[5].bias.add_(2)),
    "in place by data": lambda n: n[3].weight.data.mul_(2),
    "data copied": lambda n: n[3].weight.data.copy_(torch.randn(8, 8)),
    "data replaced": _set("3.weight.data", lambda: torch.randn(8, 8, dtype=DOUBLE)),
    "data transposed": lambda n: setattr(n[3].weight, "data", n[3].weight.data.T),
    "parameter replaced": _set("3.weight", lambda: nn.Parameter(torch.randn(8, 8, dtype=DOUBLE))),
    "parameter swapped": lambda n: torch.utils.swap_tensors(n[0].bias, nn.Parameter(torch.randn(8, dtype=DOUBLE))),
    "bias removed": _set("3.bias", None),
    "parameters from a vector": _from_vector,
    "layer replaced": _set("3", lambda: nn.Linear(8, 8).double()),
    "activation replaced": _set("4", nn.Sigmoid),
    "activation's parameter": _set("1.beta", 3.0),
    "wider": _wider,
    "resized": _resized,
    "longer": lambda n: n.extend([nn.Tanh(), nn.Linear(1, 3).double()]),
    "shorter": lambda n: n.__delitem__(5),
    "state loaded": lambda n: n.load_state_dict(make_network().state_dict()),
    "state assigned": lambda n: n.load_state_dict(make_network().state_dict(), assign=True),
    "evaluation": lambda n: n.eval(),
    "frozen": lambda n: n.requires_grad_(False),
    "one layer frozen": lambda n: [n[3].requires_grad_(False)],
    "parametrized": _weight_norm,
    "no longer parametrized": _weight_norm_removed,
    "pruned": _pruned,
    "called with other parameters": _functional,
    "moved to shared memory": lambda n: n.share_memory(),
    "copied and changed": lambda n: CHANGES["in place by data"](n := copy.deepcopy(n)) is None or n,
    "pickled": lambda n: pickle.loads(pickle.dumps(n)),
}
SAME_VALUES = {"one layer frozen", "frozen", "moved to shared memory", "pickled"}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_gives_its_own_results(change: str) -> None:
    network, x = make_network(), torch.rand(5, 2, dtype=DOUBLE)
    before = results(network, x)
    changed = CHANGES[change](network)
    network = changed if isinstance(changed, nn.Module) else network
    after = results(network, x)
    for actual, expected in zip(after, unfused(results, network, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    assert all(torch.equal(a, b) for a, b in zip(before[:3], after[:3], strict=True)) == (change in SAME_VALUES)


def test_a_copy_is_a_network_of_its_own() -> None:
    network, x = make_network().eval(), torch.rand(5, 2, dtype=DOUBLE)
    before = results(network, x)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin[0].weight.mul_(2)
    results(twin, x)
    assert all(torch.equal(a, b) for a, b in zip(results(network, x), before, strict=True))


def test_a_network_of_another_dtype_computes_in_it() -> None:
    network, x = make_network().eval(), torch.rand(5, 2, dtype=DOUBLE)
    before = results(network, x)
    single = results(network.float(), x.float())
    assert {t.dtype for t in single} == {torch.float32}
    for actual, expected in zip(single, before, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    for actual, expected in zip(results(network.double(), x), before, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)  # the parameters were rounded


def test_a_module_swapped_in_a_context_is_used_there_only() -> None:
    network, x = make_network().eval(), torch.rand(5, 2, dtype=DOUBLE)
    before = results(network, x)
    other = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    inside = derivatives(lambda x: torch.func.functional_call(network, other, (x,)), x, 2)
    expected = unfused(derivatives, lambda x: torch.func.functional_call(network, other, (x,)), x, 2)
    for actual, wanted in zip(inside, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-11)
    assert all(torch.equal(a, b) for a, b in zip(results(network, x), before, strict=True))


# What happens to a layer between its call and the use of its result, where it is computed.

WHILE_IT_WAITS: dict[str, Callable[[Any], Any]] = {
    "in place": _no_grad(lambda layer: layer.weight.mul_(2)),
    "in place, the bias": _no_grad(lambda layer: layer.bias.mul_(2)),
    "in place through a view": _no_grad(lambda layer: layer.weight[0].zero_()),
    "in place through a detached tensor": lambda layer: layer.weight.detach().zero_(),
    "data replaced": lambda layer: setattr(layer.weight, "data", torch.zeros(3, 2)),
    "resized": lambda layer: setattr(layer.bias, "data", torch.zeros(4)),
    "another dtype": lambda layer: layer.double(),
    "state loaded": lambda layer: layer.load_state_dict(nn.Linear(2, 3).state_dict()),
    "trained no longer": lambda layer: layer.requires_grad_(False),
    # These leave the tensors that the layer was called with as they are.
    "another device": lambda layer: layer.to("meta"),
    "parameter replaced": lambda layer: setattr(layer, "weight", nn.Parameter(torch.zeros(3, 2))),
    "state assigned": lambda layer: layer.load_state_dict(nn.Linear(2, 3).state_dict(), assign=True),
    "evaluation": lambda layer: layer.eval(),
}
HARMLESS = {"another device", "parameter replaced", "state assigned", "evaluation"}


@pytest.mark.parametrize("scale", [None, 2.0])
@pytest.mark.parametrize("change", WHILE_IT_WAITS)
def test_a_layer_that_changes_before_its_result_is_used_is_refused_or_what_it_was(
    change: str, scale: float | None
) -> None:
    layer, last, x = nn.Linear(2, 3), nn.Linear(3, 1), torch.rand(4, 2)

    def called() -> Any:
        h: Any = layer(Jet.variable(x, 2))
        return h if scale is not None else last(torch.tanh(h))

    def used(y: Any) -> Tensor:
        return (y if scale is None else last(torch.tanh(scale * y))).coefficients

    expected = used(called())
    y = called()
    WHILE_IT_WAITS[change](layer)
    if change in HARMLESS:
        assert torch.equal(used(y), expected)
    else:
        with pytest.raises(RuntimeError, match=r"a weight or bias was changed in place.*run\s+the function again"):
            used(y)


def test_a_network_frozen_while_it_is_called_gets_no_gradient() -> None:
    frozen, trained, x = nn.Linear(2, 3), nn.Linear(3, 1), torch.rand(4, 2)
    frozen.requires_grad_(False)
    h = torch.tanh(frozen(Jet.variable(x, 2)))
    frozen.requires_grad_(True)
    trained(h).coefficients.sum().backward()
    assert frozen.weight.grad is None
    assert frozen.bias.grad is None
    assert trained.weight.grad is not None


# Interrupted calls.

PACKAGE = str(Path(taylorderiv.__file__).parent)


@contextmanager
def interrupt(at: int) -> Iterator[list[int]]:
    """Ctrl-C before the given one of the package's lines that the block runs. Yields the count of lines so far."""
    lines = [0]

    def on_line(frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            lines[0] += 1
            if lines[0] == at:
                raise KeyboardInterrupt
        return on_line

    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: on_line if frame.f_code.co_filename.startswith(PACKAGE) else None)
    try:
        yield lines
    finally:
        sys.settrace(before)


def test_after_an_interrupt_at_any_line_the_next_call_is_right() -> None:
    network, x = nn.Sequential(nn.Linear(2, 4), nn.Tanh()).double(), torch.rand(5, 2, dtype=DOUBLE)
    expected = results(network, x)

    def run() -> None:
        results(network, x)  # what a thread does once isn't counted
        with interrupt(-1) as lines:
            results(network, x)
        for at in range(1, lines[0] + 1):
            with pytest.raises(KeyboardInterrupt), interrupt(at):
                results(network, x)
            assert torch.is_grad_enabled()
            assert all(torch.equal(a, b) for a, b in zip(results(network, x), expected, strict=True))
        assert lines[0] > 100

    with ThreadPoolExecutor(1) as thread:  # a thread of its own, as the level of nesting isn't what it was
        thread.submit(run).result()


def test_a_value_whose_computation_is_interrupted_is_computed_again() -> None:
    network, x = make_network().eval(), torch.rand(5, 2, dtype=DOUBLE)
    expected = network(Jet.variable(x, 2)).coefficients
    with interrupt(-1) as lines:
        _ = network(Jet.variable(x, 2)).coefficients
    for at in range(1, lines[0] + 1):
        jet: Any = Jet.variable(x, 2)
        y = network(jet)
        try:
            with interrupt(at):
                _ = y.coefficients
        except KeyboardInterrupt:
            assert torch.equal(y.coefficients, expected)
            assert jet.coefficients[1:].sum() == x.numel()
        else:
            assert at > 10
            return
    raise AssertionError("never finished")


def test_an_interrupt_while_a_chain_runs_comes_after_it() -> None:
    network, x = make_network().float().eval(), torch.rand(100_000, 2)
    expected = results(network, x)
    running = threading.Event()

    def interrupt_soon() -> None:
        running.wait()
        time.sleep(0.01)
        _thread.interrupt_main()

    def run_until_interrupted() -> None:
        running.set()
        for _ in range(1000):
            results(network, x)

    thread = threading.Thread(target=interrupt_soon)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            run_until_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert all(torch.equal(a, b) for a, b in zip(results(network, x), expected, strict=True))


# Threads: PyTorch's, and Python's.


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_the_same_bits_from_run_to_run_and_close_for_any_number_of_threads(
    set_threads: Callable[[int], None], dtype: torch.dtype, save: bool
) -> None:
    network = nn.Sequential(nn.Linear(3, 33), nn.Tanh(), nn.Linear(33, 17, bias=False), nn.SiLU(), nn.Linear(17, 2))
    network, x = network.to(dtype), torch.rand(2500, 3, dtype=dtype, requires_grad=True)
    along = torch.rand(2, 1, 3, dtype=dtype, requires_grad=True)
    inputs = [x, along, *network.parameters()]

    def run() -> list[Tensor]:
        with fusion(save=save):
            y: Any = network(Jet.variable(x, (4, 1), along)).coefficients
            return [y, *torch.autograd.grad(y.square().mean(), inputs)]

    single = None
    for threads in (1, 2, 3):
        set_threads(threads)
        first = run()
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))
        single = first if single is None else single
        for a, b in zip(first, single, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=(1e-12 if dtype == DOUBLE else 1e-4) * b.abs().max().item())


def test_several_python_threads_do_not_disturb_each_other() -> None:
    networks = [make_network().eval() for _ in range(8)]
    points = [torch.rand(50 + 150 * n, 2, dtype=DOUBLE) for n in range(8)]
    expected = [results(n, x) for n, x in zip(networks, points, strict=True)]

    def run(n: int) -> bool:
        with fusion(save=bool(n % 2)):
            actual = results(networks[n % 8], points[n % 8])
        return all(torch.allclose(a, b, rtol=1e-11, atol=1e-11) for a, b in zip(actual, expected[n % 8], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(80)))


def test_threads_may_share_a_value_that_is_not_computed_yet() -> None:
    network, x = make_network().eval(), torch.rand(500, 2, dtype=DOUBLE)
    expected = network(Jet.variable(x, 2)).coefficients
    for _ in range(50):
        y: Any = network(Jet.variable(x, 2))
        barrier = threading.Barrier(4)

        def use(y: Any = y, barrier: threading.Barrier = barrier) -> Tensor:
            barrier.wait()
            return y.coefficients

        with ThreadPoolExecutor(4) as pool:
            assert all(torch.equal(f.result(), expected) for f in [pool.submit(use) for _ in range(4)])


def other_threads_run(work: Callable[[], object]) -> bool:
    """Whether this thread gets to run while another one is at work, without being made to."""
    inside = done = seen = False

    def other() -> None:
        nonlocal inside, done
        inside = True
        try:
            work()
        finally:
            inside = False
            done = True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # no thread has to give way
    try:
        thread = threading.Thread(target=other)
        thread.start()
        while not done:
            seen = seen or inside
            time.sleep(0)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    return seen


def test_other_python_threads_run_while_a_chain_does() -> None:
    weights, biases = [torch.randn(64, 2), torch.randn(64, 64)], [torch.randn(64), torch.randn(64)]
    x, none = torch.randn(3, 20_000, 2), torch.empty(0)
    rest = (weights, biases, ["tanh", "tanh"], [], [2], [])
    y = torch.ops.taylorderiv.chain(x, none, *rest, False, False)[0]
    assert not other_threads_run(lambda: sum(range(10**6)))
    assert other_threads_run(lambda: torch.ops.taylorderiv.chain(x, none, *rest, False, False))
    assert other_threads_run(lambda: torch.ops.taylorderiv.chain_backward(y, x, none, [none], *rest, True, False))
