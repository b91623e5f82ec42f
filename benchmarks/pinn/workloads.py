"""What is measured: the residuals of differential equations, as data that every competitor shares.

A residual is written with ``+ - * **`` on arrays, so that torch and JAX evaluate the very same line. It gets

- ``d``: the quantities by name, each ``(N, outputs)``: ``d["u"]``, ``d["xx"]``, ``d["laplacian"]``;
- ``p``: the variables by name and ``p["source"]``, each ``(N, 1)``;
- ``lib``: ``torch`` or ``jax.numpy``, for a function such as ``sin``.

It returns the residual of each equation; the loss is the sum of their mean squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]
Residual = Callable[[Arrays, Arrays, Any], Sequence[Any]]

OPERATORS = {"laplacian": 2, "bilaplacian": 4, "estimate": 2}
"""Quantities other than partial derivatives, and their orders.

``estimate`` is the mean of second derivatives along random directions, an estimate of the Laplacian.
"""


@dataclass(frozen=True)
class Workload:
    """A loss, and the network and points it's usually measured with.

    Attributes:
        name: as given on the command line.
        title: as shown in tables.
        variables: letters of the variables; of many variables, their number.
        quantities: what the residual reads besides ``u``: partial derivatives by name, or `OPERATORS`.
        residual: see above.
        outputs: columns of the network's output.
        leading: of a partial derivative, how many of the first outputs need it; all unless given.
        source: the right-hand side, ``(N, D) -> (N,)``.
        hidden: widths of the hidden layers.
        batch: points, N.
        domain: least and greatest value of every variable.
        samples: random directions of ``estimate``.
        batches: numbers of points in the full suite.
        scalable: whether other networks and activations make sense.
    """

    name: str
    title: str
    variables: str | int
    quantities: tuple[str, ...]
    residual: Residual
    outputs: int = 1
    leading: Mapping[str, int] = field(default_factory=dict)
    source: Callable[[np.ndarray], np.ndarray] | None = None
    hidden: tuple[int, ...] = (64,) * 4
    batch: int = 4096
    domain: tuple[float, float] = (-1.0, 1.0)
    samples: int = 0
    batches: tuple[int, ...] = (256, 1024, 4096, 16_384, 65_536)
    scalable: bool = True

    @property
    def dimension(self) -> int:
        """The number D of variables."""
        return self.variables if isinstance(self.variables, int) else len(self.variables)

    @property
    def partials(self) -> tuple[str, ...]:
        """The quantities that are partial derivatives."""
        return tuple(name for name in self.quantities if name not in OPERATORS)

    @property
    def operators(self) -> tuple[str, ...]:
        """The other quantities."""
        return tuple(name for name in self.quantities if name in OPERATORS)

    @property
    def order(self) -> int:
        """The highest order of differentiation."""
        return max(OPERATORS.get(name, len(name)) for name in self.quantities)


def sine(order: int) -> Workload:
    """F + f″ = 0 and its derivatives, as in gradient-enhanced training: all derivatives up to an order."""
    names = ["u", *("x" * k for k in range(1, order + 1))]

    def residual(d: Arrays, p: Arrays, lib: Any) -> list[Any]:
        return [d[lower] + d[upper] for lower, upper in zip(names, names[2:], strict=False)]

    title = "sine ODE" if order == 2 else f"sine ODE, derivatives to order {order}"
    return Workload(f"sine-{order}", title, "x", tuple(names[1:]), residual, domain=(0, 2 * math.pi))


def burgers_profile(order: int) -> Workload:
    """Self-similar Burgers, -λU + ((1 + λ)y + U)U′ = 0, and its derivative of order ``order - 1``.

    That derivative vanishes only for a smooth profile; with λ = 1/(order - 2) it singles one out (Y. Wang,
    C.-Y. Lai, J. Gómez-Serrano, T. Buckmaster 2023).
    """
    rate = 1 / (order - 2)
    names = ["u", *("y" * k for k in range(1, order + 1))]

    def residual(d: Arrays, p: Arrays, lib: Any) -> list[Any]:
        speed = [(1 + rate) * p["y"] + d["u"], (1 + rate) + d["y"], *(d[name] for name in names[2:])]

        def derivative(j: int) -> Any:
            return sum((math.comb(j, i) * speed[i] * d[names[j - i + 1]] for i in range(j + 1)), -rate * d[names[j]])

        return [derivative(0), math.factorial(order) ** -1 * derivative(order - 1)]

    return Workload(
        f"burgers-profile-{order}",
        f"self-similar Burgers profile, order {order}",
        "y",
        tuple(names[1:]),
        residual,
        hidden=(24,) * 3,
        batch=256,
    )


def kovasznay(d: Arrays, p: Arrays, lib: Any) -> list[Any]:
    """Steady incompressible Navier–Stokes for outputs (u, v, p)."""
    u, v = d["u"][:, 0:1], d["u"][:, 1:2]
    u_x, v_x, p_x = (d["x"][:, i : i + 1] for i in range(3))
    u_y, v_y, p_y = (d["y"][:, i : i + 1] for i in range(3))
    viscous = 1 / 40 * (d["xx"] + d["yy"])
    return [
        u * u_x + v * u_y + p_x - viscous[:, 0:1],
        u * v_x + v * v_y + p_y - viscous[:, 1:2],
        u_x + v_y,
    ]


def cahn_hilliard(d: Arrays, p: Arrays, lib: Any) -> list[Any]:
    """u_t = Δ(u³ - u - κΔu), expanded."""
    u, laplacian = d["u"], d["xx"] + d["yy"]
    bilaplacian = d["xxxx"] + 2 * d["xxyy"] + d["yyyy"]
    return [d["t"] - (3 * u**2 - 1) * laplacian - 6 * u * (d["x"] ** 2 + d["y"] ** 2) + 0.02 * bilaplacian]


def phase_field_crystal(d: Arrays, p: Arrays, lib: Any) -> list[Any]:
    """u_t = ∂²[(r + (1 + ∂²)²)u + u³], expanded, with r = -0.25."""
    u = d["u"]
    return [d["t"] - (0.75 + 3 * u**2) * d["xx"] - 6 * u * d["x"] ** 2 - 2 * d["xxxx"] - d["xxxxxx"]]


def waves(x: np.ndarray) -> np.ndarray:
    """A smooth right-hand side."""
    return np.sin(math.pi * x).mean(axis=1)


_ALL = (
    sine(2),
    Workload(
        "burgers",
        "Burgers",
        "xt",
        ("x", "t", "xx"),
        lambda d, p, lib: [d["t"] + d["u"] * d["x"] - 0.01 / math.pi * d["xx"]],
    ),
    Workload("heat", "heat, 2-D", "xyt", ("t", "xx", "yy"), lambda d, p, lib: [d["t"] - d["xx"] - d["yy"]]),
    Workload(
        "allen-cahn",
        "Allen–Cahn",
        "xt",
        ("t", "xx"),
        lambda d, p, lib: [d["t"] - 1e-4 * d["xx"] + 5 * d["u"] ** 3 - 5 * d["u"]],
    ),
    Workload(
        "helmholtz",
        "Helmholtz, 2-D",
        "xy",
        ("xx", "yy"),
        lambda d, p, lib: [d["xx"] + d["yy"] + 16 * d["u"] - p["source"]],
        source=waves,
    ),
    Workload(
        "kdv",
        "Korteweg–de Vries",
        "xt",
        ("x", "t", "xxx"),
        lambda d, p, lib: [d["t"] + 6 * d["u"] * d["x"] + d["xxx"]],
    ),
    Workload("beam", "Euler–Bernoulli beam", "xt", ("tt", "xxxx"), lambda d, p, lib: [d["tt"] + d["xxxx"]]),
    Workload(
        "kuramoto-sivashinsky",
        "Kuramoto–Sivashinsky",
        "xt",
        ("x", "t", "xx", "xxxx"),
        lambda d, p, lib: [d["t"] + d["u"] * d["x"] + d["xx"] + d["xxxx"]],
    ),
    Workload(
        "cahn-hilliard",
        "Cahn–Hilliard, 2-D",
        "xyt",
        ("x", "y", "t", "xx", "yy", "xxxx", "xxyy", "yyyy"),
        cahn_hilliard,
    ),
    Workload(
        "plate",
        "biharmonic plate, 2-D",
        "xy",
        ("bilaplacian",),
        lambda d, p, lib: [d["bilaplacian"] - p["source"]],
        source=waves,
    ),
    Workload(
        "kawahara",
        "Kawahara",
        "xt",
        ("x", "t", "xxx", "xxxxx"),
        lambda d, p, lib: [d["t"] + d["u"] * d["x"] + d["xxx"] - d["xxxxx"]],
    ),
    Workload(
        "phase-field-crystal",
        "phase-field crystal",
        "xt",
        ("x", "t", "xx", "xxxx", "xxxxxx"),
        phase_field_crystal,
    ),
    Workload(
        "kovasznay",
        "Navier–Stokes, Kovasznay",
        "xy",
        ("x", "y", "xx", "yy"),
        kovasznay,
        outputs=3,
        leading={"xx": 2, "yy": 2},
    ),
    *(sine(order) for order in (4, 6, 8)),
    *(burgers_profile(order) for order in (4, 6, 8, 10)),
    Workload(
        "poisson-100",
        "Poisson, 100-D",
        100,
        ("laplacian",),
        lambda d, p, lib: [d["laplacian"] - p["source"]],
        source=waves,
        batch=256,
        batches=(256, 1024, 4096),
    ),
    Workload(
        "sine-gordon-10000",
        "sine-Gordon, 10,000-D, 16 random directions",
        10_000,
        ("estimate",),
        lambda d, p, lib: [d["estimate"] + lib.sin(d["u"]) - p["source"]],
        source=waves,
        hidden=(128,) * 4,
        batch=64,
        batches=(64, 256),
        samples=16,
    ),
    Workload(
        "laplacian-50",
        "Laplacian, 50-D",
        50,
        ("laplacian",),
        lambda d, p, lib: [d["laplacian"]],
        hidden=(768, 768, 512, 512),
        batch=64,
        scalable=False,
    ),
)

WORKLOADS: Mapping[str, Workload] = {workload.name: workload for workload in _ALL}
