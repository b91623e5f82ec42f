"""folx: the forward Laplacian, under ``jax.jit``."""
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import folx
import jax

from pinn.competitors import Step
from pinn.competitors.jax_network import Network, training_step
from pinn.problem import Problem


def build(problem: Problem) -> Step:
    def quantities(f: Network, x: Any) -> Mapping[str, Any]:
        result = jax.vmap(folx.forward_laplacian(f))(x)
        return {"u": result.x, "laplacian": result.laplacian}

    return training_step(problem, quantities)
