"""What competitors in JAX share: the network and the jitted step around the quantities."""
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pinn.competitors import Step
from pinn.problem import Problem

jax.config.update("jax_enable_x64", True)  # every array here has its dtype given
jax.config.update("jax_platforms", "cpu")

Network = Callable[[Any], Any]
ACTIVATIONS = {"tanh": jnp.tanh, "sin": jnp.sin, "silu": jax.nn.silu}


def training_step(problem: Problem, quantities: Callable[[Network, Any], Mapping[str, Any]]) -> Step:
    """The step of a competitor that computes the quantities of a network at points ``(N, D)``, each ``(N, outputs)``.

    The network maps ``(…, D)`` to ``(…, outputs)``.
    """
    workload = problem.case.workload
    activation = ACTIVATIONS[problem.case.activation]
    parameters = [jnp.asarray(array) for array in problem.parameters]
    points, source = jnp.asarray(problem.points), jnp.asarray(problem.source)

    def loss(parameters: list[Any], points: Any, source: Any) -> Any:
        layers = list(zip(parameters[::2], parameters[1::2], strict=True))

        def network(x: Any) -> Any:
            for weight, bias in layers[:-1]:
                x = activation(x @ weight.T + bias)
            weight, bias = layers[-1]
            return x @ weight.T + bias

        names = "" if isinstance(workload.variables, int) else workload.variables
        values = {"source": source, **{name: points[:, i : i + 1] for i, name in enumerate(names)}}
        residuals = workload.residual(quantities(network, points), values, jnp)
        return sum(jnp.mean(residual**2) for residual in residuals)

    function = jax.jit(jax.value_and_grad(loss) if problem.case.gradient else loss)

    def step() -> tuple[Any, list[Any]]:
        result = jax.block_until_ready(function(parameters, points, source))
        return result if problem.case.gradient else (result, [])

    return step


def constant(array: np.ndarray, like: Any) -> Any:
    """An array in the dtype of another."""
    return jnp.asarray(array, like.dtype)
