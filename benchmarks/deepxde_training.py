"""Training in DeepXDE with its own derivatives, nested autograd, and with partials: milliseconds of an iteration.

    python benchmarks/deepxde_training.py

Needs DeepXDE (requirements.txt). Network, points, conditions, optimizer and loop are DeepXDE's in both; only the
function of the residual differs. The two train by turns, from the same weights, whose losses are compared; an iteration
is all that DeepXDE does in one. Prints Markdown; times are medians over the rounds.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["DDE_BACKEND"] = "pytorch"  # read by the import
import deepxde
import numpy as np
import torch
from torch import Tensor

from pinn.machine import library_facts, machine_facts
from pinn.workloads import WORKLOADS, Arrays, Workload
from taylorderiv import partials

ROUNDS, ITERATIONS = 9, 20


def nested(workload: Workload, net: torch.nn.Module, x: Tensor, u: Tensor) -> Arrays:
    """The derivatives of u by x and t with DeepXDE's functions; each second one is taken of what has been computed."""
    d = {"u": u, **{name: deepxde.grad.jacobian(u, x, i=0, j=j) for j, name in enumerate("xt")}}
    for name in workload.quantities:
        if name not in d:
            d[name] = deepxde.grad.hessian(d[name[:-2] or "u"], x, i=0, j=0)
    return d


def fused(workload: Workload, net: torch.nn.Module, x: Tensor, u: Tensor) -> Arrays:
    """The same by partials of the network."""
    d = partials(net, x, workload.quantities, variables="xt")
    return {"u": u, **{name: d[name] for name in workload.quantities}}


def training(workload: Workload, derivatives: Callable[..., Arrays]) -> Any:
    """A DeepXDE model of 4×64 tanh, 4096 points and two conditions."""
    deepxde.config.set_random_seed(0)
    net = deepxde.nn.FNN([2, *workload.hidden, 1], "tanh", "Glorot normal")
    domain = deepxde.geometry.GeometryXTime(deepxde.geometry.Interval(-1, 1), deepxde.geometry.TimeDomain(0, 1))
    conditions = [
        deepxde.icbc.DirichletBC(domain, lambda x: 0, lambda x, on: on),
        deepxde.icbc.IC(domain, lambda x: -np.sin(np.pi * x[:, 0:1]), lambda x, on: on),
    ]

    def residual(x: Tensor, u: Tensor) -> Any:
        (equation,) = workload.residual(derivatives(workload, net, x, u), {}, torch)
        return equation

    data = deepxde.data.TimePDE(
        domain, residual, conditions, num_domain=workload.batch, num_boundary=80, num_initial=160
    )
    model = deepxde.Model(data, net)
    model.compile("adam", lr=1e-3, verbose=0)
    return model


def main() -> None:
    """See above."""
    facts = {**machine_facts(), **library_facts(), "deepxde": deepxde.__version__}
    print(", ".join(f"{name} {facts[name]}" for name in ("processor", "cores", "instruction set", "torch", "deepxde")))
    print("\n| equation | nested autograd | partials | faster by | relative difference of the first loss |")
    print("|---|---|---|---|---|")
    for workload in (WORKLOADS["burgers"], WORKLOADS["kuramoto-sivashinsky"]):
        models = {"nested": training(workload, nested), "partials": training(workload, fused)}
        times: dict[str, list[float]] = {derivatives: [] for derivatives in models}
        losses = {}
        for _ in range(ROUNDS + 1):
            for derivatives, model in models.items():
                start = time.perf_counter()
                history, _ = model.train(iterations=ITERATIONS, display_every=ITERATIONS, verbose=0)
                times[derivatives].append(1e3 * (time.perf_counter() - start) / ITERATIONS)
                losses[derivatives] = float(np.sum(history.loss_train[0]))
        before, after = (statistics.median(some[1:]) for some in times.values())
        difference = abs(losses["nested"] - losses["partials"]) / losses["nested"]
        print(f"| {workload.title} | {before:.1f} ms | {after:.1f} ms | {before / after:.1f}× | {difference:.0e} |")


if __name__ == "__main__":
    main()
