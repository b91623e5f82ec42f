"""Linear systems, inverses, determinants and factorizations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import DOUBLE, agrees, rand

from taylorderiv import derivatives

MATRIX = rand(3, 3, seed=30) + torch.eye(3, dtype=DOUBLE)

# Applied to a well-conditioned 3 x 3 matrix.
LINALG: dict[str, Callable[[Any], Any]] = {
    "inverse": torch.linalg.inv,
    "inverse_method": lambda a: a.inverse(),
    "inv_ex": lambda a: torch.linalg.inv_ex(a)[0],
    "det": torch.linalg.det,
    "slogdet": lambda a: torch.linalg.slogdet(a)[1],
    "logdet": torch.logdet,
    "solve": lambda a: torch.linalg.solve(a, a.sin()),
    "solve_vector": lambda a: torch.linalg.solve(a, a[0].sin()),
    "solve_constant_matrix": lambda a: torch.linalg.solve(MATRIX, a),
    "solve_constant_right_side": lambda a: torch.linalg.solve(a, MATRIX[:, :2]),
    "solve_from_the_right": lambda a: torch.linalg.solve(a, MATRIX[:2], left=False),
    "solve_batch": lambda a: torch.linalg.solve(torch.stack([a, a.T]), a),
    "solve_triangular": lambda a: torch.linalg.solve_triangular(a, a.sin(), upper=False),
    "solve_unitriangular": lambda a: torch.linalg.solve_triangular(
        a, MATRIX, upper=True, left=False, unitriangular=True
    ),
    "cholesky": lambda a: torch.linalg.cholesky(a @ a.T),
    "cholesky_upper": lambda a: torch.linalg.cholesky(a @ a.T, upper=True),
    "cholesky_inverse": lambda a: torch.cholesky_inverse(a.tril()),
    "cholesky_solve": lambda a: torch.cholesky_solve(MATRIX, a.tril()),
    "pinv": torch.linalg.pinv,
    "pinv_tall": lambda a: torch.linalg.pinv(a[:, :2]),
    "pinv_of_low_rank": lambda a: torch.linalg.pinv(a[:, :1] @ a[:1]),
    "lstsq": lambda a: torch.linalg.lstsq(a[:, :2], MATRIX[0])[0],
    "lstsq_residuals": lambda a: torch.linalg.lstsq(a[:, :2], a.sin(), driver="gels")[1],
    "matrix_power": lambda a: torch.linalg.matrix_power(a, -2),
}
FACTORS: dict[str, Callable[[Any], Any]] = {
    "lu": lambda a: sum(torch.linalg.lu(a)[1:]),
    "lu_tall": lambda a: torch.linalg.lu(a[:, :2])[1],
    "lu_wide": lambda a: torch.linalg.lu(a[:2])[2],
    "lu_factor": lambda a: torch.linalg.lu_factor(a[:, :2]).LU,
    "lu_factor_ex": lambda a: torch.linalg.lu_factor_ex(a)[0],
    "lu_unpack": lambda a: sum(torch.lu_unpack(a.sin(), torch.tensor([2, 2, 3], dtype=torch.int32))),
    "lu_solve": lambda a: torch.linalg.lu_solve(*torch.linalg.lu_factor(a), MATRIX, left=False, adjoint=True),
    "ormqr": lambda a: torch.ormqr(a[:, :2], a[0, :2], a.sin(), False, True),
    "qr": lambda a: sum(torch.linalg.qr(a)),
    "qr_tall": lambda a: torch.linalg.qr(a[:, :2]).Q,
    "qr_wide": lambda a: torch.linalg.qr(a[:2]).R,
    "svd_vectors": lambda a: sum(torch.linalg.svd(a)[::2]),
    "svd_tall": lambda a: torch.linalg.svd(a[:, :2], full_matrices=False).U,
    "svd_wide": lambda a: torch.linalg.svd(a[:2], full_matrices=False).Vh,
    "svd_old": lambda a: torch.svd(a[:2]).V,
    "svdvals": torch.linalg.svdvals,
    "svd_complex": lambda a: torch.linalg.svd(torch.complex(a, a.T.sin()))[0].abs(),
    "eig": lambda a: torch.linalg.eig(a)[0].abs(),
    "eig_vectors": lambda a: torch.linalg.eig(a)[1].abs(),
    "eigvals": lambda a: torch.linalg.eigvals(torch.complex(a, a.T.sin())).real,
}
HERMITIAN: dict[str, Callable[[Any], Any]] = {
    "eigvalsh": torch.linalg.eigvalsh,
    "eigh_values": lambda a: torch.linalg.eigh(a).eigenvalues,
    "eigh_projectors": lambda a: torch.linalg.eigh(a)[1][:, :, None].square(),
    "complex": lambda a: torch.linalg.eigvalsh(a + 1j * (torch.triu(a, 1) - torch.triu(a, 1).T)),
}


@pytest.mark.parametrize("f", LINALG.values(), ids=LINALG)
def test_linear_systems(f: Callable[[Any], Any]) -> None:
    agrees(lambda x: f(torch.sin(x[:, :3]) + 2 * torch.eye(3, dtype=DOUBLE)), rand(3, 4))


@pytest.mark.parametrize("f", FACTORS.values(), ids=FACTORS)
def test_factors(f: Callable[[Any], Any]) -> None:
    distinct = torch.diag(torch.tensor([1.0, 3.0, 6.0], dtype=DOUBLE))
    agrees(lambda x: f(torch.sin(x[:, :3]) + distinct), rand(3, 4))


@pytest.mark.parametrize("f", HERMITIAN.values(), ids=HERMITIAN)
def test_eigenvalues(f: Callable[[Any], Any]) -> None:
    def hermitian(x: Any) -> Any:
        a = torch.sin(x[:, :3]) + torch.diag(torch.tensor([0.0, 2.0, 5.0], dtype=DOUBLE))
        return a + a.T

    agrees(lambda x: f(hermitian(x)), rand(3, 4), 2)


def test_factors_multiply_to_the_matrix() -> None:
    x = rand(4, 3) + torch.eye(4, 3, dtype=DOUBLE)

    def products(x: Any) -> Any:
        permutation, lower, upper = torch.linalg.lu(x)
        orthogonal, triangular = torch.linalg.qr(x)
        left, values, right = torch.linalg.svd(x)
        completed = torch.nn.functional.pad(values.diag_embed(), (0, 0, 0, 1))
        return torch.stack([permutation @ lower @ upper, orthogonal @ triangular, left @ completed @ right]) - x

    for zero in derivatives(products, x, 3):
        torch.testing.assert_close(zero, torch.zeros(3, 4, 3, dtype=DOUBLE), rtol=0, atol=1e-10)


def test_all_vectors_of_a_singular_value_decomposition_stay_orthogonal() -> None:
    for zero in derivatives(lambda x: (q := torch.linalg.svd(x)[0]).T @ q, rand(4, 2), 3)[1:]:
        torch.testing.assert_close(zero, torch.zeros(4, 4, dtype=DOUBLE), rtol=0, atol=1e-10)


def test_only_the_named_triangle_of_a_matrix_is_read() -> None:
    a = rand(3, 3) + 3 * torch.eye(3, dtype=DOUBLE)
    for upper in (False, True):
        value, _ = derivatives(lambda x, upper=upper: torch.linalg.cholesky(x, upper=upper), a, 1)
        torch.testing.assert_close(value, torch.linalg.cholesky(a, upper=upper))


def test_what_is_not_differentiable_says_so() -> None:
    for mode in ("r", "complete"):
        with pytest.raises(NotImplementedError, match=f"mode='{mode}'"):
            derivatives(lambda x, mode=mode: torch.linalg.qr(x, mode)[1], rand(4, 2), 1)


def test_a_singular_system_is_an_error_as_in_pytorch() -> None:
    with pytest.raises(RuntimeError, match=r"singular|zero"):
        derivatives(lambda x: torch.linalg.solve(x, x), torch.zeros(2, 2), 1)
    assert derivatives(lambda x: torch.linalg.solve_ex(x, x)[1], torch.zeros(2, 2), 1)[0] > 0
