"""The rules of all ops, by family. Importing this package registers them."""

from taylorderiv.rules import (
    bilinear,
    composite,
    constant,
    factorizations,
    fallback,
    linalg,
    linear,
    memory,
    piecewise,
    shape,
    unary,
)
from taylorderiv.rules.unary import register_rule

__all__ = [
    "bilinear",
    "composite",
    "constant",
    "factorizations",
    "fallback",
    "linalg",
    "linear",
    "memory",
    "piecewise",
    "register_rule",
    "shape",
    "unary",
]
