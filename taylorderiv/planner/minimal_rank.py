"""The least number of directions in three variables and more: a numerical search."""

from __future__ import annotations

import torch
from torch import Tensor

from taylorderiv.planner.forms import FormSpace

_STEPS = 80


def search_directions(forms: FormSpace, targets: Tensor, existing: Tensor, count: int, tries: int) -> Tensor | None:
    """``count`` unit directions ``(count, d)`` that span the targets with the existing ones, if found.

    Levenberg–Marquardt on directions and coefficients together, from ``tries`` random starts (always the same
    ones). A penalty on large coefficients fades on the way: without it, forms of border rank below their rank
    lead off to infinity.
    """
    kept = torch.linalg.qr(forms.powers(existing))[0] if len(existing) else targets[:, :0]
    targets = targets - kept @ (kept.T @ targets)
    targets = torch.linalg.qr(targets)[0]
    generator = torch.Generator().manual_seed(count)
    for _ in range(tries):
        directions = torch.randn(count, forms.dimension, generator=generator, dtype=torch.float64)
        found = _descend(forms, targets, kept, torch.nn.functional.normalize(directions))
        if found is not None:
            return found
    return None


def _descend(forms: FormSpace, targets: Tensor, kept: Tensor, directions: Tensor) -> Tensor | None:
    count, dimension = directions.shape
    rows, wanted = targets.shape
    damping, ridge = 1e-2, 1e-2

    def project(columns: Tensor) -> Tensor:
        return columns - kept @ (kept.T @ columns)

    def evaluate(directions: Tensor, coefficients: Tensor) -> Tensor:
        return targets - project(forms.powers(directions)) @ coefficients

    columns = project(forms.powers(directions))
    eye = torch.eye(count, dtype=torch.float64)
    coefficients = torch.linalg.solve(columns.T @ columns + ridge * eye, columns.T @ targets)
    left = evaluate(directions, coefficients)
    loss = float(left.square().sum() + ridge * coefficients.square().sum())
    for step in range(_STEPS):
        residual = float(left.norm())
        if residual < 1e-14:
            break
        if step == _STEPS // 2 and residual > 0.1 * wanted**0.5:
            return None
        slopes = forms.power_slopes(directions)  # (d, N, R)
        slopes = project(slopes.permute(1, 0, 2).reshape(rows, -1)).view(rows, dimension, count)
        # d residual[n, q] / d directions[r, i] = -slopes[n, i, r] a[r, q];   … / d a[r, q] = -columns[n, r]
        moving = torch.einsum("nir,rq->nqri", slopes, coefficients).reshape(rows * wanted, -1)
        columns = project(forms.powers(directions))
        scaling = torch.einsum("nr,pq->nprq", columns, torch.eye(wanted, dtype=torch.float64))
        jacobian = torch.cat([moving, scaling.reshape(rows * wanted, -1)], 1)
        gradient = jacobian.T @ left.flatten()
        gradient[count * dimension :] -= ridge * coefficients.flatten()
        normal = jacobian.T @ jacobian
        normal.diagonal()[count * dimension :] += ridge
        improved = False
        for _ in range(6):
            damped = normal + damping * torch.eye(len(normal), dtype=torch.float64)
            update = torch.linalg.solve(damped, gradient)
            moved = directions + update[: count * dimension].view(count, dimension)
            scaled = coefficients + update[count * dimension :].view(count, wanted)
            lengths = moved.norm(dim=1, keepdim=True)
            moved, scaled = moved / lengths, scaled * lengths**forms.order
            rest = evaluate(moved, scaled)
            new_loss = float(rest.square().sum() + ridge * scaled.square().sum())
            if new_loss < loss:
                improved = True
                break
            damping *= 4
        if not improved:
            if ridge == 0:
                break
        else:
            directions, coefficients, left = moved, scaled, rest
            damping = max(damping / 5, 1e-16)
        ridge = 0.0 if ridge < 1e-12 else ridge * 0.5 if step < 10 else ridge * 0.1
        loss = float(left.square().sum() + ridge * coefficients.square().sum())
    columns = project(forms.powers(directions))
    exact = torch.linalg.lstsq(columns, targets, driver="gelsd").solution
    return directions if float((columns @ exact - targets).norm()) < 1e-12 else None
