"""Linear systems, inverses and determinants.

PyTorch's own formulas in forward mode are right to first order only: they take the factors of a matrix for
constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from taylorderiv.registry import register
from taylorderiv.rules.engine import AnyJet, evolve, first_jet, is_jet, primals, promote

return_types: Any = torch.return_types  # its named tuples lack type stubs


def _system(A: Any, B: Any, solve: Callable[[Any], Any], left: bool) -> AnyJet:
    """``X`` of ``A X = B``, or of ``X A = B``, by ``A_0 X_k = B_k - sum_{i>0} A_i X_{k-i}``.

    Args:
        A: square matrices.
        B: matrices.
        solve: ``A_0^{-1}`` applied to a right side.
        left: on which side ``A`` is.
    """
    if not is_jet(A):
        return B.with_coefficients(solve(B.coefficients))
    like = first_jet(A, B)
    coefficients: list[Any] = []
    for n, terms in enumerate(like.coefficient_layout.products()):
        right = B.coefficients[n] if is_jet(B) else B if n == 0 else None
        for i, j, weight in terms:
            if i == 0:
                continue
            a, x = A.coefficients[i], coefficients[j]
            product = weight * (a @ x if left else x @ a)
            right = -product if right is None else right - product
        coefficients.append(solve(right))
    return like.with_coefficients(torch.stack(coefficients))


def _solved(A: Any, B: Any, left: bool, check_errors: bool) -> tuple[AnyJet, Any]:
    """The solution, and whether each matrix is singular."""
    A, B = promote(A, B)
    if B.ndim == 1 or (A.ndim - 1 == B.ndim and B.shape == A.shape[:-1]):
        solution, info = _solved(A, B.unsqueeze(-1), True, check_errors)
        return solution.squeeze(-1), info
    factors, pivots, info = torch.linalg.lu_factor_ex(primals(A), check_errors=check_errors)
    return _system(A, B, lambda right: torch.linalg.lu_solve(factors, pivots, right, left=left), left), info


@register("linalg_solve")
def _solve(A: Any, B: Any, *, left: bool = True) -> AnyJet:
    return _solved(A, B, left, True)[0]


@register("_linalg_solve_ex")
def _solve_ex(A: Any, B: Any, *, left: bool = True, check_errors: bool = False) -> tuple[Any, ...]:
    return _solved(A, B, left, check_errors)[0], None, None, None


@register("linalg_solve_ex")
def _linalg_solve_ex(A: Any, B: Any, *, left: bool = True, check_errors: bool = False) -> tuple[Any, ...]:
    return return_types.linalg_solve_ex(_solved(A, B, left, check_errors))


def _triangle(A: Any, upper: bool, unitriangular: bool) -> Any:
    A = A.triu() if upper else A.tril()
    if unitriangular:
        A = torch.where(torch.eye(A.shape[-1], dtype=torch.bool, device=A.device), 1.0, A)
    return A


@register("linalg_solve_triangular")
def _solve_triangular(A: Any, B: Any, *, upper: bool, left: bool = True, unitriangular: bool = False) -> AnyJet:
    A, B = promote(A, B)
    A = _triangle(A, upper, unitriangular)
    primal = primals(A)
    return _system(A, B, lambda right: torch.linalg.solve_triangular(primal, right, upper=upper, left=left), left)


@register("triangular_solve")
def _old_triangular_solve(
    b: Any, A: Any, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Any:
    matrix = _triangle(A, upper, unitriangular)
    matrix, upper = (matrix.mH, not upper) if transpose else (matrix, upper)
    solution = torch.linalg.solve_triangular(matrix, b, upper=upper)
    return return_types.triangular_solve((solution, A.expand(*solution.shape[:-2], *A.shape[-2:]).clone()))


@register("linalg_lstsq")
def _least_squares(A: Any, B: Any, rcond: float | None = None, *, driver: str | None = None) -> Any:
    plain = torch.linalg.lstsq(*primals((A, B)), rcond=rcond, driver=driver)
    vector = B.ndim == 1 or (A.ndim - 1 == B.ndim and B.shape == A.shape[:-1])
    right = B.unsqueeze(-1) if vector else B
    solution = torch.linalg.pinv(A) @ right
    residuals: Any = plain.residuals
    if residuals.numel():
        difference = A @ solution - right
        residuals = (difference * difference.conj()).real.sum(-2)
    solution = solution.squeeze(-1) if vector else solution
    return return_types.linalg_lstsq((solution, residuals, plain.rank, plain.singular_values))


# Inverses.


def _inverse(value: Any, A: AnyJet) -> AnyJet:
    def formula(_: list[AnyJet], outputs: list[AnyJet], velocities: list[AnyJet]) -> list[Any]:
        (inverse,) = outputs
        return [-(inverse @ velocities[0] @ inverse)]

    return evolve([value], [A], formula)[0]


@register("linalg_inv", "inverse")
def _linalg_inv(A: AnyJet) -> AnyJet:
    return _inverse(torch.linalg.inv(A.primal), A)


@register("linalg_inv_ex")
def _linalg_inv_ex(A: AnyJet, *, check_errors: bool = False) -> Any:
    value, info = torch.linalg.inv_ex(A.primal, check_errors=check_errors)
    return return_types.linalg_inv_ex((_inverse(value, A), info))


def _pseudoinverse(value: Any, A: AnyJet) -> AnyJet:
    """From Golub and Pereyra, "The differentiation of pseudo-inverses …", 1973; the rank is taken to be constant."""

    def formula(positions: list[AnyJet], outputs: list[AnyJet], velocities: list[AnyJet]) -> list[Any]:
        (matrix,), (inverse,), (change,) = positions, outputs, velocities
        adjoint = change.mH
        right, left = adjoint - adjoint @ matrix @ inverse, adjoint - inverse @ matrix @ adjoint
        return [inverse @ (inverse.mH @ right) + (left @ inverse.mH) @ inverse - inverse @ change @ inverse]

    return evolve([value], [A], formula)[0]


@register("linalg_pinv", "pinverse")
def _linalg_pinv(A: AnyJet, *args: Any, **kwargs: Any) -> AnyJet:
    return _pseudoinverse(torch.linalg.pinv(A.primal, *args, **kwargs), A)


@register("cholesky_inverse")
def _cholesky_inverse(input: AnyJet, upper: bool = False) -> AnyJet:
    factor = input.triu() if upper else input.tril()
    return torch.linalg.inv(factor.mH @ factor if upper else factor @ factor.mH)


# Determinants.


def _trace_of_quotient(a: Any, b: Any) -> Any:
    """The trace of ``a⁻¹ b``."""
    return torch.linalg.solve(a, b).diagonal(dim1=-2, dim2=-1).sum(-1)


@register("linalg_det", "det")
def _det(A: AnyJet) -> AnyJet:
    def formula(positions: list[AnyJet], outputs: list[AnyJet], velocities: list[AnyJet]) -> list[Any]:
        return [outputs[0] * _trace_of_quotient(positions[0], velocities[0])]

    return evolve([torch.linalg.det(A.primal)], [A], formula)[0]


@register("_linalg_det")
def _aten_det(A: AnyJet) -> tuple[Any, ...]:
    return _det(A), None, None


@register("linalg_slogdet", "slogdet")
def _slogdet(A: AnyJet) -> Any:
    def formula(positions: list[AnyJet], outputs: list[AnyJet], velocities: list[AnyJet]) -> list[Any]:
        # det'/det: its real part is that of the logarithm, its imaginary part turns the sign.
        rate = _trace_of_quotient(positions[0], velocities[0])
        return [1j * rate.imag * outputs[0], rate.real] if rate.is_complex() else [None, rate]

    return return_types.linalg_slogdet(evolve(list(torch.linalg.slogdet(A.primal)), [A], formula))


@register("_linalg_slogdet")
def _aten_slogdet(A: AnyJet) -> tuple[Any, ...]:
    return *_slogdet(A), None, None


@register("logdet")
def _logdet(A: AnyJet) -> AnyJet:
    sign, value = _slogdet(A)
    return value + torch.log(sign)
