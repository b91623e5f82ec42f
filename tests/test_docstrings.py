"""The examples in docstrings run, and print what they say."""

import doctest

import pytest

from taylorderiv import calculus, operators, stochastic


@pytest.mark.parametrize("module", [calculus, operators, stochastic], ids=lambda module: module.__name__)
def test_examples(module: object) -> None:
    failed, attempted = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)  # pyright: ignore
    assert attempted
    assert not failed
