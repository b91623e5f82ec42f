"""One quadratic form as a sum of squares of directions: as many as its matrix has rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taylorderiv.planner.forms import Direction, tidy
from taylorderiv.planner.polynomial import Polynomial


def decompose_quadratic(form: Polynomial, dimension: int, existing: Sequence[Direction]) -> list[list[Direction]]:
    """Two sets of the fewest directions to add to the existing ones: coordinates first, and eigenvectors."""
    matrix = matrix_of(form, dimension)
    matrix = matrix / matrix.norm()
    if existing:
        matrix, _ = _reduce(matrix, torch.tensor(existing, dtype=torch.float64))
    remainder, used = _reduce(matrix, torch.eye(dimension, dtype=torch.float64))
    axes = [tidy(row) for row in torch.eye(dimension, dtype=torch.float64)[used].tolist()]
    return [axes + _eigenvectors(remainder), _eigenvectors(matrix)]


def matrix_of(form: Polynomial, dimension: int) -> Tensor:
    """The symmetric ``(d, d)`` matrix of a quadratic form."""
    matrix = torch.zeros(dimension, dimension, dtype=torch.float64)
    for key, value in form.terms.items():
        matrix[key[0][0], key[-1][0]] = float(value)
    return (matrix + matrix.T) / 2


def _reduce(matrix: Tensor, directions: Tensor) -> tuple[Tensor, list[int]]:
    """Take ``c v v^T`` off for each direction that lowers the rank so (Wedderburn: ``c = 1 / v^T A^+ v``)."""
    used = []
    for index, direction in enumerate(directions):
        direction = direction / direction.norm()
        inverse = torch.linalg.pinv(matrix, rtol=1e-10, hermitian=True)
        preimage = inverse @ direction
        within = float((matrix @ preimage - direction).norm()) < 1e-9
        if within and abs(float(direction @ preimage)) * float(matrix.norm()) > 1e-6:
            matrix = matrix - torch.outer(direction, direction) / (direction @ preimage)
            used.append(index)
        if float(matrix.norm()) < 1e-12:
            return torch.zeros_like(matrix), used
    return matrix, used


def _eigenvectors(matrix: Tensor) -> list[Direction]:
    values, vectors = torch.linalg.eigh(matrix)
    kept = values.abs() > 1e-10
    return [tidy(row) for row in vectors.T[kept].tolist()]
