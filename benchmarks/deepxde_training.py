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
from taylorderiv import partials

ROUNDS, ITERATIONS = 9, 20
Residual = Callable[[Tensor, Tensor], Tensor]


def nested(equation: str) -> Residual:
    """The residual of x, t and u, as DeepXDE's documentation writes it."""

    def residual(x: Tensor, u: Tensor) -> Tensor:
        u_x, u_t = (deepxde.grad.jacobian(u, x, i=0, j=j) for j in (0, 1))
        u_xx = deepxde.grad.hessian(u, x, i=0, j=0)
        if equation == "Burgers":
            return u_t + u * u_x - 0.01 / np.pi * u_xx
        return u_t + u * u_x + u_xx + deepxde.grad.hessian(u_xx, x, i=0, j=0)

    return residual


def fused(equation: str, net: torch.nn.Module) -> Residual:
    """The same by partials of the network."""

    def residual(x: Tensor, u: Tensor) -> Tensor:
        d = partials(net, x, ["x", "t", "xx"] if equation == "Burgers" else ["x", "t", "xx", "xxxx"], variables="xt")
        if equation == "Burgers":
            return d.t + u * d.x - 0.01 / np.pi * d.xx
        return d.t + u * d.x + d.xx + d.xxxx

    return residual


def training(equation: str, derivatives: str) -> Any:
    """A DeepXDE model of 4×64 tanh, 4096 points and two conditions."""
    deepxde.config.set_random_seed(0)
    net = deepxde.nn.FNN([2, 64, 64, 64, 64, 1], "tanh", "Glorot normal")
    domain = deepxde.geometry.GeometryXTime(deepxde.geometry.Interval(-1, 1), deepxde.geometry.TimeDomain(0, 1))
    conditions = [
        deepxde.icbc.DirichletBC(domain, lambda x: 0, lambda x, on: on),
        deepxde.icbc.IC(domain, lambda x: -np.sin(np.pi * x[:, 0:1]), lambda x, on: on),
    ]
    residual = nested(equation) if derivatives == "nested" else fused(equation, net)
    data = deepxde.data.TimePDE(domain, residual, conditions, num_domain=4096, num_boundary=80, num_initial=160)
    model = deepxde.Model(data, net)
    model.compile("adam", lr=1e-3, verbose=0)
    return model


def main() -> None:
    """See above."""
    facts = {**machine_facts(), **library_facts(), "deepxde": deepxde.__version__}
    print(", ".join(f"{name} {facts[name]}" for name in ("processor", "cores", "instruction set", "torch", "deepxde")))
    print("\n| equation | nested autograd | partials | faster by | relative difference of the first loss |")
    print("|---|---|---|---|---|")
    for equation in ("Burgers", "Kuramoto–Sivashinsky"):
        models = {derivatives: training(equation, derivatives) for derivatives in ("nested", "partials")}
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
        print(f"| {equation} | {before:.1f} ms | {after:.1f} ms | {before / after:.1f}× | {difference:.0e} |")


if __name__ == "__main__":
    main()
