"""Linear systems and eigenvalues, from the formulas of their derivatives.

PyTorch's own formulas in forward mode are right to first order only: they take the factors of a matrix for
constants.
"""

from __future__ import annotations

from typing import Any

import torch

from taylorderiv.registry import register
from taylorderiv.rules.engine import AnyJet, integrate, is_jet, primals, promote

return_types: Any = torch.return_types  # its named tuples lack type stubs


def _trace_of_quotient(a: Any, b: Any) -> Any:
    """The trace of ``a⁻¹ b``."""
    return torch.linalg.solve(a, b).diagonal(dim1=-2, dim2=-1).sum(-1)


def _inverse(A: AnyJet) -> AnyJet:
    def formula(positions: list[AnyJet], velocities: list[AnyJet]) -> list[Any]:
        inverse = torch.linalg.inv(positions[0])
        return [-(inverse @ velocities[0] @ inverse)]

    return integrate([torch.linalg.inv(A.primal)], [A], formula)[0]


@register("linalg_inv", "inverse")
def _linalg_inv(A: AnyJet) -> AnyJet:
    return _inverse(A)


@register("linalg_inv_ex")
def _linalg_inv_ex(A: AnyJet, *, check_errors: bool = False) -> Any:
    info = torch.zeros(A.shape[:-2], dtype=torch.int32, device=A.device)
    return return_types.linalg_inv_ex((_inverse(A), info))


@register("linalg_solve")
def _solve(A: Any, B: Any, *, left: bool = True) -> AnyJet:
    A, B = promote(A, B)
    value = torch.linalg.solve(*primals((A, B)), left=left)
    vector = B.ndim == 1 or (A.ndim - 1 == B.ndim and B.shape == A.shape[:-1])

    def times(a: Any, x: Any) -> Any:
        if vector:
            return (a @ x.unsqueeze(-1)).squeeze(-1)
        return a @ x if left else x @ a

    jets = [value for value in (A, B) if is_jet(value)]

    def formula(positions: list[AnyJet], velocities: list[AnyJet]) -> list[Any]:
        a = positions[0] if is_jet(A) else A
        b = positions[-1] if is_jet(B) else B
        right = velocities[-1] if is_jet(B) else None
        if is_jet(A):
            change = times(velocities[0], torch.linalg.solve(a, b, left=left))
            right = -change if right is None else right - change
        return [torch.linalg.solve(a, right, left=left)]

    return integrate([value], jets, formula)[0]


@register("_linalg_solve_ex")
def _solve_ex(A: Any, B: Any, *, left: bool = True, check_errors: bool = False) -> tuple[Any, ...]:
    return _solve(A, B, left=left), None, None, None


@register("linalg_solve_ex")
def _linalg_solve_ex(A: Any, B: Any, *, left: bool = True, check_errors: bool = False) -> tuple[Any, ...]:
    return _solve(A, B, left=left), torch.zeros(A.shape[:-2], dtype=torch.int32, device=A.device)


@register("linalg_solve_triangular")
def _solve_triangular(A: Any, B: Any, *, upper: bool, left: bool = True, unitriangular: bool = False) -> AnyJet:
    A, B = promote(A, B)
    A = A.triu() if upper else A.tril()
    if unitriangular:
        A = torch.where(torch.eye(A.shape[-1], dtype=torch.bool, device=A.device), 1.0, A)
    return _solve(A, B.expand(*torch.broadcast_shapes(A.shape[:-2], B.shape[:-2]), *B.shape[-2:]), left=left)


@register("cholesky_inverse")
def _cholesky_inverse(input: AnyJet, upper: bool = False) -> AnyJet:
    factor = input.triu() if upper else input.tril()
    return torch.linalg.inv(factor.mH @ factor if upper else factor @ factor.mH)


def _factor(A: AnyJet, upper: bool) -> AnyJet:
    def formula(positions: list[AnyJet], velocities: list[AnyJet]) -> list[Any]:
        factor = torch.linalg.cholesky(positions[0])
        inner = torch.linalg.solve_triangular(factor, velocities[0], upper=False)
        inner = torch.linalg.solve_triangular(factor.mH, inner, upper=True, left=False)
        return [factor @ (inner.tril() - inner.diagonal(dim1=-2, dim2=-1).diag_embed() / 2)]

    lower = integrate([torch.linalg.cholesky(A.primal)], [A], formula)[0]
    return lower.mH if upper else lower


@register("linalg_cholesky", "cholesky")
def _cholesky(input: AnyJet, upper: bool = False) -> AnyJet:
    return _factor(input, upper)


@register("linalg_cholesky_ex")
def _cholesky_ex(input: AnyJet, *, upper: bool = False, check_errors: bool = False) -> Any:
    info = torch.zeros(input.shape[:-2], dtype=torch.int32, device=input.device)
    return return_types.linalg_cholesky_ex((_factor(input, upper), info))


@register("linalg_det", "det")
def _det(A: AnyJet) -> AnyJet:
    def formula(positions: list[AnyJet], velocities: list[AnyJet]) -> list[Any]:
        return [torch.linalg.det(positions[0]) * _trace_of_quotient(positions[0], velocities[0])]

    return integrate([torch.linalg.det(A.primal)], [A], formula)[0]


@register("_linalg_det")
def _aten_det(A: AnyJet) -> tuple[Any, ...]:
    return _det(A), None, None


def _signed_log_det(A: AnyJet) -> tuple[Any, AnyJet]:
    sign, value = torch.linalg.slogdet(A.primal)
    if A.is_complex():
        raise NotImplementedError("slogdet of a complex jet isn't supported: its sign varies; use det")

    def formula(positions: list[AnyJet], velocities: list[AnyJet]) -> list[Any]:
        return [_trace_of_quotient(positions[0], velocities[0])]

    return sign, integrate([value], [A], formula)[0]


@register("linalg_slogdet", "slogdet")
def _slogdet(A: AnyJet) -> Any:
    return return_types.linalg_slogdet(_signed_log_det(A))


@register("_linalg_slogdet")
def _aten_slogdet(A: AnyJet) -> tuple[Any, ...]:
    return *_signed_log_det(A), None, None


@register("logdet")
def _logdet(A: AnyJet) -> AnyJet:
    sign, value = _signed_log_det(A)
    return value + torch.log(sign)


# Eigenvalues of Hermitian matrices.


@register("linalg_eigh")
def _eigh(A: AnyJet, UPLO: str = "L") -> Any:
    def formula(positions: list[AnyJet], velocities: list[AnyJet]) -> list[Any]:
        values, vectors = torch.linalg.eigh(positions[0], UPLO)
        change = vectors.mH @ velocities[0] @ vectors
        gaps = values.unsqueeze(-2) - values.unsqueeze(-1)
        diagonal = torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)
        # The eigenvectors turn by change / gaps; on the diagonal, where both would be 0, not at all.
        turn = torch.where(diagonal, 0.0, change / torch.where(diagonal, 1.0, gaps))
        return [change.diagonal(dim1=-2, dim2=-1).real, vectors @ turn]

    return return_types.linalg_eigh(integrate(torch.linalg.eigh(A.primal, UPLO), [A], formula))


@register("linalg_eigvalsh")
def _eigvalsh(A: AnyJet, UPLO: str = "L") -> AnyJet:
    return _eigh(A, UPLO)[0]


@register("_linalg_eigh")
def _aten_eigh(A: AnyJet, UPLO: str = "L", compute_v: bool = True) -> tuple[AnyJet, AnyJet]:
    values, vectors = _eigh(A, UPLO)
    return values, vectors
