"""``jax.experimental.jet`` under ``jax.jit``."""
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.jet import jet

from pinn.competitors import Step
from pinn.competitors.jax_network import Network, constant, training_step
from pinn.directions import directions
from pinn.problem import Problem


def build(problem: Problem) -> Step:
    plan = directions(problem.case.workload, problem.random)
    summed = plan.summed()

    def along(f: Network, x: Any, vector: Any, order: int) -> tuple[Any, list[Any]]:
        zero = jnp.zeros_like(x)
        return jet(f, (x,), ([jnp.broadcast_to(vector, x.shape), *[zero] * (order - 1)],))

    def quantities(f: Network, x: Any) -> Mapping[str, Any]:
        if summed is not None and len(summed) > 4:
            (name,) = plan.reads
            u, series = jax.vmap(lambda v: along(f, x, v, plan.orders[0]), out_axes=(None, 0))(constant(summed, x))
            return {"u": u, name: series[-1].sum(axis=0)}
        results = [along(f, x, constant(v, x), order) for v, order in zip(plan.vectors, plan.orders, strict=True)]
        read = {
            name: sum(factor * results[r][1][k - 1] for r, k, factor in reads) for name, reads in plan.reads.items()
        }
        return {"u": results[0][0], **read}

    return training_step(problem, quantities)
