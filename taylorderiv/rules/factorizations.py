"""Factorizations of matrices, from the differential equations that their factors satisfy.

The primal is factored once and the factors evolve from there, so that the choices of a factorization (signs and phases
of vectors, the order of pivots) are made once.
"""

from __future__ import annotations

from typing import Any

import torch

from taylorderiv.registry import register
from taylorderiv.rules.engine import AnyJet, evolve, primals

return_types: Any = torch.return_types  # its named tuples lack type stubs

_Jets = list[AnyJet]


def _diagonal(x: Any) -> Any:
    return x.diagonal(dim1=-2, dim2=-1)


def _off_diagonal_quotient(x: Any, y: Any) -> Any:
    """``x / y``, with 0 on the diagonal, where both may be 0."""
    diagonal = torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
    return torch.where(diagonal, 0.0, x / torch.where(diagonal, 1.0, y))


def _gaps(values: Any) -> Any:
    """``values_j - values_i``."""
    return values.unsqueeze(-2) - values.unsqueeze(-1)


# Cholesky.


def _cholesky_factor(value: Any, A: AnyJet, upper: bool) -> AnyJet:
    def formula(_: _Jets, outputs: _Jets, velocities: _Jets) -> list[Any]:
        (factor,) = outputs
        inner = torch.linalg.solve_triangular(factor, velocities[0], upper=False)
        inner = torch.linalg.solve_triangular(factor.mH, inner, upper=True, left=False)
        return [factor @ (inner.tril() - _diagonal(inner).diag_embed() / 2)]

    lower = evolve([value.mH if upper else value], [A], formula)[0]
    return lower.mH if upper else lower


@register("linalg_cholesky", "cholesky")
def _cholesky(input: AnyJet, upper: bool = False) -> AnyJet:
    return _cholesky_factor(torch.linalg.cholesky(input.primal, upper=upper), input, upper)


@register("linalg_cholesky_ex")
def _cholesky_ex(input: AnyJet, *, upper: bool = False, check_errors: bool = False) -> Any:
    value, info = torch.linalg.cholesky_ex(input.primal, upper=upper, check_errors=check_errors)
    return return_types.linalg_cholesky_ex((_cholesky_factor(value, input, upper), info))


# LU, with the pivots of the primal.


def _triangular_factors(B: AnyJet, lower: Any, upper: Any) -> tuple[AnyJet, AnyJet]:
    """``B = L U`` without pivoting, from the factors ``(m, k)`` and ``(k, n)`` of the primal, k the smaller of m, n."""
    k = lower.shape[-1]

    def formula(_: _Jets, outputs: _Jets, velocities: _Jets) -> list[Any]:
        lower, upper = outputs
        inner = torch.linalg.solve_triangular(lower, velocities[0], upper=False, unitriangular=True)
        inner = torch.linalg.solve_triangular(upper, inner, upper=True, left=False)
        return [lower @ inner.tril(-1), inner.triu() @ upper]

    lower_square, upper_square = evolve([lower[..., :k, :], upper[..., :k]], [B[..., :k, :k]], formula)
    below = torch.linalg.solve_triangular(upper_square, B[..., k:, :k], upper=True, left=False)
    beside = torch.linalg.solve_triangular(lower_square, B[..., :k, k:], upper=False, unitriangular=True)
    return torch.cat([lower_square, below], -2), torch.cat([upper_square, beside], -1)


def _lu_of(A: AnyJet) -> tuple[Any, AnyJet, AnyJet]:
    permutation, lower, upper = torch.linalg.lu(A.primal)
    return permutation, *_triangular_factors(permutation.mT @ A, lower, upper)


@register("linalg_lu")
def _lu(A: AnyJet, *, pivot: bool = True) -> Any:
    return return_types.linalg_lu(_lu_of(A))


def _packed(lower: AnyJet, upper: AnyJet) -> AnyJet:
    """``L`` without its diagonal of ones, and ``U``, in one matrix."""
    m, k, n = lower.shape[-2], lower.shape[-1], upper.shape[-1]
    padded = [torch.nn.functional.pad(lower.tril(-1), (0, n - k)), torch.nn.functional.pad(upper, (0, 0, 0, m - k))]
    return padded[0] + padded[1]


@register("linalg_lu_factor_ex")
def _lu_factor_ex(A: AnyJet, *, pivot: bool = True, check_errors: bool = False) -> Any:
    packed, pivots, info = torch.linalg.lu_factor_ex(A.primal, pivot=pivot, check_errors=check_errors)
    permutation, lower, upper = torch.lu_unpack(packed, pivots)
    factors = _triangular_factors(permutation.mT @ A, lower, upper)
    return return_types.linalg_lu_factor_ex((_packed(*factors), pivots, info))


@register("linalg_lu_factor")
def _lu_factor(A: AnyJet, *, pivot: bool = True) -> Any:
    return return_types.linalg_lu_factor(_lu_factor_ex(A, pivot=pivot, check_errors=True)[:2])


@register("lu", "_lu_with_info")
def _old_lu(A: AnyJet, pivot: bool = True, get_infos: bool = False, check_errors: bool = True) -> tuple[Any, ...]:
    return tuple(_lu_factor_ex(A, pivot=pivot, check_errors=check_errors)[: 3 if get_infos else 2])


@register("lu_unpack")
def _lu_unpack(LU_data: Any, LU_pivots: Any, unpack_data: bool = True, unpack_pivots: bool = True) -> Any:
    permutation, lower, upper = torch.lu_unpack(primals(LU_data), LU_pivots, unpack_data, unpack_pivots)
    if unpack_data:
        k = lower.shape[-1]
        diagonal = torch.eye(*lower.shape[-2:], dtype=torch.bool, device=lower.device)
        lower, upper = torch.where(diagonal, 1.0, LU_data[..., :k].tril(-1)), LU_data[..., :k, :].triu()
    return return_types.lu_unpack((permutation, lower, upper))


@register("linalg_lu_solve")
def _lu_solve(LU: Any, pivots: Any, B: Any, *, left: bool = True, adjoint: bool = False) -> AnyJet:
    permutation, lower, upper = torch.lu_unpack(LU, pivots)
    A = permutation @ lower @ upper
    return torch.linalg.solve(A.mH if adjoint else A, B, left=left)


@register("lu_solve")
def _old_lu_solve(b: Any, LU_data: Any, LU_pivots: Any) -> AnyJet:
    return _lu_solve(LU_data, LU_pivots, b)


# Eigenvalues and eigenvectors.


def _eigh_of(A: AnyJet, UPLO: str) -> list[AnyJet]:
    def formula(_: _Jets, outputs: _Jets, velocities: _Jets) -> list[Any]:
        values, vectors = outputs
        change = vectors.mH @ velocities[0] @ vectors
        return [_diagonal(change).real, vectors @ _off_diagonal_quotient(change, _gaps(values))]

    return evolve(list(torch.linalg.eigh(A.primal, UPLO)), [A], formula)


@register("linalg_eigh")
def _eigh(A: AnyJet, UPLO: str = "L") -> Any:
    return return_types.linalg_eigh(_eigh_of(A, UPLO))


@register("linalg_eigvalsh")
def _eigvalsh(A: AnyJet, UPLO: str = "L") -> AnyJet:
    return _eigh_of(A, UPLO)[0]


@register("_linalg_eigh")
def _aten_eigh(A: AnyJet, UPLO: str = "L", compute_v: bool = True) -> tuple[AnyJet, ...]:
    return tuple(_eigh_of(A, UPLO))


def _eig_of(A: AnyJet) -> list[AnyJet]:
    def formula(_: _Jets, outputs: _Jets, velocities: _Jets) -> list[Any]:
        values, vectors = outputs
        change = torch.linalg.solve(vectors, velocities[0].to(vectors.dtype) @ vectors)
        turned = vectors @ _off_diagonal_quotient(change, _gaps(values))
        # The vectors keep length 1.
        lengthened = (vectors.conj() * turned).real.sum(-2, keepdim=True)
        return [_diagonal(change), turned - vectors * lengthened]

    return evolve(list(torch.linalg.eig(A.primal)), [A], formula)


@register("linalg_eig")
def _eig(input: AnyJet) -> Any:
    return return_types.linalg_eig(_eig_of(input))


@register("linalg_eigvals", "_linalg_eigvals")
def _eigvals(input: AnyJet) -> AnyJet:
    return _eig_of(input)[0]


# QR.


def _qr_of(A: AnyJet, mode: str) -> list[AnyJet]:
    """``Q`` of shape ``(m, k)`` and ``R`` of shape ``(k, n)``, where k is the smaller of m and n."""
    orthogonal, triangular = torch.linalg.qr(A.primal, mode)
    k = triangular.shape[-2]
    if mode == "r" or orthogonal.shape[-1] > A.shape[-1]:
        raise NotImplementedError(f"linalg.qr of shape {tuple(A.shape)} isn't differentiable with mode={mode!r}")

    def formula(_: _Jets, outputs: _Jets, velocities: _Jets) -> list[Any]:
        # Qᴴ dA R⁻¹ = Qᴴ dQ + dR R⁻¹, a skew-Hermitian and an upper triangular matrix.
        orthogonal, triangular = outputs
        moved = torch.linalg.solve_triangular(triangular, velocities[0], upper=True, left=False)
        inner = orthogonal.mH @ moved
        symmetric = inner + inner.mH
        change = symmetric.triu() - _diagonal(symmetric).diag_embed() / 2
        return [moved - orthogonal @ change, change @ triangular]

    orthogonal, square = evolve([orthogonal, triangular[..., :k]], [A[..., :k]], formula)
    if A.shape[-1] == k:
        return [orthogonal, square]
    return [orthogonal, torch.cat([square, orthogonal.mH @ A[..., k:]], -1)]


@register("linalg_qr")
def _qr(A: AnyJet, mode: str = "reduced") -> Any:
    return return_types.linalg_qr(_qr_of(A, mode))


@register("qr")
def _old_qr(input: AnyJet, some: bool = True) -> Any:
    return return_types.qr(_qr_of(input, "reduced" if some else "complete"))


@register("ormqr")
def _ormqr(input: Any, tau: Any, other: Any, left: bool = True, transpose: bool = False) -> AnyJet:
    # The product of the reflections I - τ v vᴴ, one for each column v of the lower triangle.
    count = tau.shape[-1]
    vectors = input[..., :count].tril(-1) + torch.eye(input.shape[-2], count, dtype=input.dtype, device=input.device)
    for i in range(count) if left == transpose else reversed(range(count)):
        vector, factor = vectors[..., i : i + 1], tau[..., i : i + 1].unsqueeze(-1)
        factor = factor.conj() if transpose else factor
        projection = vector @ (vector.mH @ other) if left else (other @ vector) @ vector.mH
        other = other - factor * projection
    return other


# Singular values.


def _with_complement(change: Any, vectors: Any) -> Any:
    """The change of all vectors from that of the first ones: the others stay orthogonal, and turn no more than that."""
    k = change.shape[-1]
    if vectors.shape[-1] == k:
        return change
    return torch.cat([change, -(vectors[..., :k] @ (change.mH @ vectors[..., k:]))], -1)


def _svd_of(A: AnyJet, full_matrices: bool = False) -> list[AnyJet]:
    """``U``, ``S`` and ``Vᴴ``."""
    m, n = A.shape[-2:]
    k = min(m, n)

    def formula(_: _Jets, outputs: _Jets, velocities: _Jets) -> list[Any]:
        values, left, right = outputs[1], outputs[0][..., :k], outputs[2].mH[..., :k]
        change = left.mH @ velocities[0] @ right
        gaps = _gaps(values * values)
        rows, columns = change * values.unsqueeze(-2), values.unsqueeze(-1) * change
        left_turn = _off_diagonal_quotient(rows + rows.mH, gaps)
        right_turn = _off_diagonal_quotient(columns + columns.mH, gaps)
        if A.is_complex():
            # The phases of the vectors are free but for their product; both turn by half of it.
            phase = (0.5j * _diagonal(change).imag / values).diag_embed()
            left_turn, right_turn = left_turn + phase, right_turn - phase
        left_change, right_change = left @ left_turn, right @ right_turn
        if m > n:
            outside = velocities[0] @ right / values.unsqueeze(-2)
            left_change = left_change + outside - left @ (left.mH @ outside)
        elif n > m:
            outside = velocities[0].mH @ left / values.unsqueeze(-2)
            right_change = right_change + outside - right @ (right.mH @ outside)
        return [
            _with_complement(left_change, outputs[0]),
            _diagonal(change).real,
            _with_complement(right_change, outputs[2].mH).mH,
        ]

    return evolve(list(torch.linalg.svd(A.primal, full_matrices=full_matrices)), [A], formula)


@register("linalg_svd")
def _svd(A: AnyJet, full_matrices: bool = True, *, driver: str | None = None) -> Any:
    return return_types.linalg_svd(_svd_of(A, full_matrices))


@register("_linalg_svd")
def _aten_svd(A: AnyJet, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None) -> Any:
    return tuple(_svd_of(A, full_matrices and compute_uv))


@register("svd")
def _old_svd(input: AnyJet, some: bool = True, compute_uv: bool = True) -> Any:
    left, values, right = _svd_of(input, not some and compute_uv)
    return return_types.svd((left, values, right.mH))


@register("linalg_svdvals")
def _svdvals(A: AnyJet, *, driver: str | None = None) -> AnyJet:
    return _svd_of(A)[1]
