"""Bad input gives a clear error of the right type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import rand, unfused
from torch import nn
from torch.nn import functional as F

import taylorderiv
from taylorderiv import Jet, jet, registry

# Untyped: what is wrong here, a type checker would see.
derivatives: Any = taylorderiv.derivatives
partials: Any = taylorderiv.partials
X = rand(3)
POINTS = rand(4, 2)

CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "integer x": (
        lambda: derivatives(torch.sin, torch.arange(3), 1),
        TypeError,
        "x must be floating-point.*int64",
    ),
    "boolean x": (
        lambda: derivatives(torch.sin, torch.tensor([True]), 1),
        TypeError,
        "x must be floating.*bool",
    ),
    "x is a number": (
        lambda: derivatives(torch.sin, 1.0, 1),
        TypeError,
        "x must be a torch.Tensor, got float",
    ),
    "sparse x": (
        lambda: derivatives(torch.sin, X.to_sparse(), 1),
        NotImplementedError,
        "x is torch.sparse_coo.*to_dense",
    ),
    "negative order": (
        lambda: derivatives(torch.sin, X, -1),
        ValueError,
        "order must not be negative, got -1",
    ),
    "fractional order": (
        lambda: derivatives(torch.sin, X, 2.0),
        TypeError,
        "order must be an int, got float",
    ),
    "boolean order": (lambda: derivatives(torch.sin, X, True), TypeError, "order must be an int, got bool"),
    "direction of another shape": (
        lambda: derivatives(torch.sin, X, 1, direction=rand(4)),
        ValueError,
        r"direction has shape \(4,\), expected \(3,\)",
    ),
    "direction of another dtype": (
        lambda: derivatives(torch.sin, X, 1, direction=X.float()),
        TypeError,
        "direction has dtype torch.float32",
    ),
    "direction on another device": (
        lambda: derivatives(torch.sin, X, 1, direction=X.to("meta")),
        ValueError,
        "direction is on meta",
    ),
    "direction is a list": (
        lambda: derivatives(torch.sin, X, 1, direction=[1.0]),
        TypeError,
        "direction must be a",
    ),
    "function returns None": (
        lambda: derivatives(lambda x: None, X, 1),
        TypeError,
        "must return a torch.Tensor",
    ),
    "function returns a tuple": (lambda: derivatives(lambda x: (x, x), X, 1), TypeError, "got tuple"),
    "orders and directions": (lambda: Jet.variable(X, (1, 2)), ValueError, "2 orders for 1 directions"),
    "jet: numbers of arguments": (lambda: jet(torch.sin, (X,), ()), ValueError, "1 primals but 0 series"),
    "jet: no argument": (lambda: jet(torch.sin, (), ()), ValueError, "at least one primal"),
    "jet: lengths": (lambda: jet(torch.add, (X, X), ([X], [X, X])), ValueError, "inconsistent lengths"),
    "jet: shape of a term": (
        lambda: jet(torch.sin, (X,), ([rand(2)],)),
        ValueError,
        "term 1 of series 0 has shape",
    ),
    "jet: dtype of a term": (
        lambda: jet(torch.sin, (X,), ([X.float()],)),
        TypeError,
        "term 1 of series 0 has dtype",
    ),
    "jet: integer primal": (lambda: jet(torch.sin, (torch.arange(3),), ([X],)), TypeError, "primal 0"),
    "jet: returns a number": (
        lambda: jet(lambda x: 1.0, (X,), ([X],)),
        TypeError,
        "must return a torch.Tensor",
    ),
    "partials: unknown variable": (
        lambda: partials(torch.sin, POINTS, ["xz"], variables="xt"),
        ValueError,
        r"unknown variable 'z' in 'xz'; the variables are \['x', 't'\]",
    ),
    "partials: repeated variable": (
        lambda: partials(torch.sin, POINTS, ["x"], variables="xx"),
        ValueError,
        "must be distinct",
    ),
    "partials: number of variables": (
        lambda: partials(torch.sin, POINTS, ["x"], variables="xyz"),
        ValueError,
        "3 variables.*2 columns",
    ),
    "partials: nothing asked": (
        lambda: partials(torch.sin, POINTS, [], variables="xt"),
        ValueError,
        "at least one",
    ),
    "partials: one string": (
        lambda: partials(torch.sin, POINTS, "xx", variables="xt"),
        ValueError,
        "a sequence",
    ),
    "partials: empty name": (
        lambda: partials(torch.sin, POINTS, [""], variables="xt"),
        ValueError,
        "always .u",
    ),
    "partials: multi-index": (lambda: partials(torch.sin, POINTS, [(1, 0, 0)]), ValueError, "multi-index"),
    "partials: integer points": (
        lambda: partials(torch.sin, torch.ones(2, 2, dtype=torch.int64), ["x"]),
        TypeError,
        "float",
    ),
    "partials: a number": (lambda: partials(torch.sin, torch.tensor(1.0), ["x"]), ValueError, "last axis"),
    "partials: keys": (
        lambda: partials(lambda v: v["x"], {"x": X}, ["x"], variables="y"),
        ValueError,
        "aren't the keys",
    ),
    "partials: shapes of named tensors": (
        lambda: partials(lambda v: v["x"], {"x": X, "y": rand(2)}, ["x"]),
        ValueError,
        "has shape",
    ),
    "partials: returns None": (
        lambda: partials(lambda x: None, POINTS, ["x"], variables="xt"),
        TypeError,
        "return",
    ),
    "an index that is a jet": (lambda: derivatives(lambda x: torch.ones(3)[x], X, 1), TypeError, "index"),
    "numpy": (
        lambda: derivatives(lambda x: x.numpy(), X, 1),
        NotImplementedError,
        "'numpy'.*lose the derivatives",
    ),
    "backward": (lambda: derivatives(lambda x: x.sum().backward(), X, 1), NotImplementedError, "'backward'"),
    "data_ptr": (lambda: derivatives(lambda x: x.data_ptr(), X, 1), NotImplementedError, "'data_ptr'"),
    "view of another dtype": (
        lambda: derivatives(lambda x: x.view(torch.int64), X, 1),
        NotImplementedError,
        "another dtype",
    ),
    "matmul of numbers": (lambda: derivatives(lambda x: x[0] @ x[1], X, 1), RuntimeError, "at least 1D"),
    "matmul of wrong shapes": (lambda: derivatives(lambda x: x @ rand(4), X, 1), RuntimeError, "size|shape"),
    "matmul across devices": (
        lambda: derivatives(lambda x: x @ POINTS.to("meta").T, POINTS, 1),
        ValueError,
        "matmul: the second factor is on meta, expected cpu",
    ),
    "linear: width": (
        lambda: derivatives(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(9, 1)).double(), POINTS, 2),
        ValueError,
        r"linear: the input has shape \(4, 8\), expected \(…, 9\) for a weight of shape \(1, 9\)",
    ),
    "linear: dtype of the points": (
        lambda: derivatives(nn.Linear(2, 3), POINTS, 1),
        TypeError,
        "linear: weight has dtype torch.float32, expected torch.float64",
    ),
    "linear: dtype of one weight": (
        lambda: derivatives(nn.Sequential(nn.Linear(2, 8).double(), nn.Tanh(), nn.Linear(8, 1)), POINTS, 2),
        TypeError,
        "linear: weight has dtype torch.float32, expected torch.float64",
    ),
    "linear: dtype of a bias": (
        lambda: derivatives(lambda x: F.linear(x, POINTS, torch.ones(4)), POINTS, 1),
        TypeError,
        "linear: bias has dtype torch.float32, expected torch.float64",
    ),
    "linear: 16-bit weight": (
        lambda: derivatives(nn.Linear(2, 3).half(), POINTS, 1),
        TypeError,
        "linear: weight has dtype torch.float16",
    ),
    "linear: network on another device": (
        lambda: derivatives(nn.Linear(2, 3, device="meta", dtype=torch.float64), POINTS, 1),
        ValueError,
        "linear: weight is on meta, expected cpu",
    ),
    "linear: one layer on another device": (
        lambda: derivatives(
            nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False, device="meta")).double(), POINTS, 1
        ),
        ValueError,
        "linear: weight is on meta, expected cpu",
    ),
    "linear: bias on another device": (
        lambda: derivatives(lambda x: F.linear(x, POINTS, torch.ones(4, device="meta").double()), POINTS, 1),
        ValueError,
        "linear: bias is on meta, expected cpu",
    ),
    "shapes that don't broadcast": (lambda: derivatives(lambda x: x + rand(4), X, 1), RuntimeError, "size"),
    "jets whose shapes don't broadcast": (
        lambda: derivatives(lambda x: x * x[:2], X, 1),
        RuntimeError,
        "broadcast",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        unfused(call)


def test_op_without_rule_is_named_and_says_what_to_do() -> None:
    with pytest.raises(NotImplementedError, match=r"'.*special_zeta.*'.*register_rule\(function, rule\)"):
        derivatives(lambda x: torch.special.zeta(x + 2, x + 1), X, 2)


def test_refused_ops_are_not_supported_ops() -> None:
    assert "backward" not in registry.supported_ops()


@pytest.mark.parametrize("name", ["unknown", ""])
def test_unknown_backend(name: str) -> None:
    import subprocess
    import sys

    result = subprocess.run(
        [sys.executable, "-c", "import taylorderiv"],
        env={"TAYLORDERIV_BACKEND": name, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "TAYLORDERIV_BACKEND must be 'kernels' or 'reference'" in result.stderr
