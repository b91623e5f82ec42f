"""as_strided and its like, of variables that lie in memory in any way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import DOUBLE, agrees, rand
from torch import Tensor

from taylorderiv import derivatives, jet


def nested_forward_mode(f: Callable[[Any], Any], x: Tensor, direction: Tensor, order: int) -> list[Tensor]:
    """As :func:`derivatives`; the function gets x itself, and not a copy that lies elsewhere in memory."""
    if order == 0:
        return [f(x)]
    lower = lambda x: nested_forward_mode(f, x, direction, order - 1)  # noqa: E731
    values, tangents, *_ = torch.func.jvp(lower, (x,), (direction,))
    return [*values, tangents[-1]]


# A row, a column and a block of a larger tensor, a transposed matrix, an image whose channels come last.
VARIABLES: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: rand(3, 4),
    "row": lambda: rand(3, 8)[1],
    "column": lambda: rand(12, 3)[:, 1],
    "block": lambda: rand(4, 6)[1:3, 2:5],
    "transposed": lambda: rand(4, 3).T,
    "channels_last": lambda: rand(1, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    "number": lambda: rand(9)[4],
}

OPS: dict[str, Callable[[Any], Any]] = {
    "from_its_first_element": lambda x: x.as_strided((2, 2), (1, 0)) ** 2,
    "from_anywhere": lambda x: torch.as_strided(x, (2, 3), (2, 1), 2).sin() * x.sum(),
    "by_its_own_strides": lambda x: x.exp() * torch.as_strided_copy(x, x.shape, x.stride(), x.storage_offset()),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("variable", VARIABLES)
def test_elements_by_their_place_in_memory(variable: str, op: str) -> None:
    f, x = OPS[op], VARIABLES[variable]()
    v = rand(*x.shape, low=-1, seed=1)
    for ours, theirs in zip(derivatives(f, x, 3, direction=v), nested_forward_mode(f, x, v, 3), strict=True):
        torch.testing.assert_close(ours, theirs)
    x = x.detach().requires_grad_()
    results = (derivatives(f, x, 2, direction=v), nested_forward_mode(f, x, v, 2))
    ours, theirs = (torch.autograd.grad(torch.stack([y.square().sum() for y in ys]).sum(), x) for ys in results)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("variable", sorted(set(VARIABLES) - {"number"}))
def test_elements_are_replaced_by_their_place_in_memory(variable: str) -> None:
    """PyTorch's own derivatives of as_strided_scatter are wrong, its values aren't."""
    x = VARIABLES[variable]()
    target = ((2, 2), (3, 1), x.storage_offset() + 3)

    def scattered(x: Any) -> Any:
        return torch.as_strided_scatter(x, x.reshape(-1)[:4].reshape(2, 2) ** 2, *target) ** 3

    def equivalent(x: Any) -> Any:
        return torch.where(places > 0, x.reshape(-1)[places - 1] ** 2, x) ** 3

    numbers = torch.arange(1, 5).reshape(2, 2)
    memory = torch.zeros(x.untyped_storage().nbytes() // 8, dtype=torch.int64)
    places = torch.as_strided_scatter(memory.as_strided(x.shape, x.stride(), x.storage_offset()), numbers, *target)
    assert places.any()
    agrees(scattered, x, equivalent=equivalent)
    constant = x.cos().contiguous()
    third = (torch.arange(x.numel()) == 2).reshape(x.shape)
    agrees(
        lambda x: torch.as_strided_scatter(constant, x.reshape(-1)[:1] ** 2, (1,), (1,), 2),
        x,
        equivalent=lambda x: torch.where(third, x.reshape(-1)[0] ** 2, constant),
    )


def test_jets_of_jets_and_of_several_arguments() -> None:
    window = lambda x: x.as_strided((2, 2), (1, 2), 1) ** 3  # noqa: E731
    x = rand(8)
    nested = derivatives(lambda x: derivatives(window, x, 1)[1], x, 1)[1]
    torch.testing.assert_close(nested, derivatives(window, x, 2)[2])
    zeros, ones = torch.zeros(8, dtype=DOUBLE), torch.ones(8, dtype=DOUBLE)
    second = jet(lambda x, y: window(x) * window(y), (x, x), ([ones, zeros], [ones, zeros]))[1][1]
    torch.testing.assert_close(second, derivatives(lambda x: window(x) ** 2, x, 2)[2])
    got = torch.func.grad(lambda x: derivatives(window, x, 1)[1].sum())(x)
    torch.testing.assert_close(got, torch.autograd.functional.jacobian(lambda x: derivatives(window, x, 1)[1].sum(), x))


def test_computed_values_once_they_are_contiguous() -> None:
    windows = lambda x: x.sin().T.contiguous().as_strided((5, 2), (1, 1)) ** 2  # noqa: E731
    agrees(windows, rand(2, 3))
    agrees(windows, rand(3, 2).T)
    agrees(lambda x: x.contiguous().as_strided((5, 2), (1, 1)) ** 2, rand(3, 2).T)


def test_where_it_lies_is_not_known() -> None:
    for f in (
        lambda x: x.sin().as_strided((2,), (1,)),
        lambda x: x.T.as_strided((2,), (1,)),
        lambda x: torch.as_strided_scatter(x.sin(), x[0], (2,), (1,)),
    ):
        with pytest.raises(NotImplementedError, match=r"contiguous\(\)"):
            derivatives(f, rand(2, 2), 1)
    with pytest.raises(NotImplementedError, match="storage_offset"):
        derivatives(lambda x: x.sin().contiguous().as_strided((2,), (1,), 1), rand(4), 1)
    with pytest.raises(NotImplementedError, match=r"x\.clone\(\)"):
        derivatives(lambda x: x.as_strided((2,), (1,)), rand(4, 1).expand(4, 2), 1)
    with pytest.raises(NotImplementedError, match=r"x\.clone\(\)"):
        derivatives(lambda x: x.as_strided((2,), (1,)), rand(4).as_strided((3, 2), (1, 1)), 1)
    with pytest.raises(NotImplementedError, match="overlap"):
        derivatives(lambda x: torch.as_strided_scatter(x, x.view(2, 2), (2, 2), (1, 1)), rand(4), 1)
    with pytest.raises(NotImplementedError, match=r"torch\.vmap"):
        torch.func.vmap(lambda x: derivatives(lambda x: x.as_strided((2,), (1,)), x, 1)[1])(rand(2, 4))


def test_wrong_arguments_are_those_of_pytorch() -> None:
    for arguments, message in (
        (((2,), (9,)), "out of bounds"),
        (((2,), (-1,)), "Negative strides"),
        (((2,), (1, 1)), "mismatch in length"),
        (((2,), (1,), -1), "storage offset"),
    ):
        with pytest.raises(RuntimeError, match=message):
            derivatives(lambda x, arguments=arguments: x.as_strided(*arguments), rand(4), 1)
    with pytest.raises(RuntimeError, match="src of shape"):
        derivatives(lambda x: torch.as_strided_scatter(x, x[:1], (2,), (1,)), rand(4), 1)
