"""Nested ``jax.jvp`` under ``jax.jit``; second derivatives in many directions as ``jvp`` of ``grad``."""
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pinn.competitors import Step
from pinn.competitors.jax_network import Network, constant, training_step
from pinn.directions import directions
from pinn.problem import Problem


def build(problem: Problem) -> Step:
    plan = directions(problem.case.workload, problem.random)
    summed = plan.summed()

    def quantities(f: Network, x: Any) -> Mapping[str, Any]:
        if summed is not None and len(summed) > 4:
            (name,) = plan.reads

            def second(v: Any) -> Any:
                gradient = jax.grad(lambda z: f(z).sum())
                product = jax.jvp(gradient, (x,), (jnp.broadcast_to(v, x.shape),))[1]
                return product @ v

            return {"u": f(x), name: jax.vmap(second)(constant(summed, x)).sum(axis=0)[:, None]}
        towers = [tower(f, x, constant(v, x), order) for v, order in zip(plan.vectors, plan.orders, strict=True)]
        read = {name: sum(factor * towers[r][k] for r, k, factor in reads) for name, reads in plan.reads.items()}
        return {"u": towers[0][0], **read}

    return training_step(problem, quantities)


def tower(f: Network, x: Any, direction: Any, order: int) -> tuple[Any, ...]:
    """The derivatives of f at x along a direction, from order 0 up."""

    def derivatives(x: Any, order: int) -> tuple[Any, ...]:
        if order == 0:
            return (f(x),)
        values, slopes = jax.jvp(lambda z: derivatives(z, order - 1), (x,), (jnp.broadcast_to(direction, x.shape),))
        return (*values, slopes[-1])

    return derivatives(x, order)
