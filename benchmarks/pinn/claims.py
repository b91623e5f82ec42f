"""What the project claims to reach, and whether a run did."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from pinn.cases import Case, usual
from pinn.competitors import FLOOR, OURS, SINGLE
from pinn.results import Results

Key = tuple[Case, str]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A quotient of two measurements, and what it must be.

    Attributes:
        title: of the workload.
        against: whom or what.
        numerator: a case and a competitor.
        denominator: likewise.
        least: the least the quotient must be; or
        most: the most it may be.
        of: ``median`` (seconds) or ``memory`` (bytes).
    """

    title: str
    against: str
    numerator: Key
    denominator: Key
    least: float = 0.0
    most: float = math.inf
    of: str = "median"

    @property
    def needs(self) -> tuple[Key, Key]:
        return self.numerator, self.denominator

    @property
    def required(self) -> str:
        return f"at least {self.least:g}" if self.least else f"at most {self.most:g}"

    def measured(self, results: Results) -> float | None:
        """The quotient; None if a measurement is missing."""
        rows = [results.get(*key) for key in self.needs]
        above, below = (None if row is None else getattr(row, self.of) for row in rows)
        return above / below if above is not None and below else None

    def met(self, results: Results) -> bool | None:
        """Whether it holds; None if a measurement is missing."""
        quotient = self.measured(results)
        return None if quotient is None else self.least <= quotient <= self.most


EQUATION = usual("kuramoto-sivashinsky")
SECOND_ORDER = usual("burgers")
WIDE = usual("kuramoto-sivashinsky", width=128)
LARGE = usual("kuramoto-sivashinsky", batch=65_536)
PROFILE = usual("burgers-profile-8")
LAPLACIAN = usual("laplacian-50")
VALUE = usual("laplacian-50", gradient=False)


def _faster(title: str, case: Case, competitor: str, against: str, least: float) -> Claim:
    return Claim(title, against, (case, competitor), (case, OURS), least=least)


def _double(title: str, case: Case) -> Claim:
    double = dataclasses.replace(case, dtype="float64")
    return Claim(title, "float64 / float32", (double, OURS), (double, SINGLE), most=2.2)


_X4T1 = "4×64 tanh, N=4096, x:4 t:1"
_X2T1 = "4×64 tanh, N=4096, x:2 t:1"
_WIDE = "4×128 tanh, N=4096, x:4 t:1"
_ORDER8 = "3×24 tanh, N=256, order 8"
_LARGE = "4×64 tanh, N=65,536, x:4 t:1"
_LAPLACIAN = "768-768-512-512 tanh, N=64, Laplacian in 50-D"

CLAIMS: Sequence[Claim] = (
    _faster(_X4T1, EQUATION, "nested-autograd", "nested autograd", 8),
    _faster(_X4T1, EQUATION, "jet-for-pytorch", "jet-for-pytorch", 4),
    _faster(_X4T1, EQUATION, "jax-jet", "JAX jet + jit", 5),
    _faster(_X4T1, EQUATION, "compiled", "compiled hand-written jets", 1.6),
    Claim(_X4T1, "time over that of the floor", (EQUATION, OURS), (EQUATION, FLOOR), most=1.2),
    _faster(_X2T1, SECOND_ORDER, "nested-autograd", "nested autograd", 2),
    _faster(_WIDE, WIDE, "nested-autograd", "nested autograd", 5),
    _faster(_ORDER8, PROFILE, "nested-autograd", "nested autograd", 300),
    Claim(
        "4×64 tanh, N=4096",
        "time of order 8 over that of order 2",
        (usual("sine-8"), OURS),
        (usual("sine-2"), OURS),
        most=5,
    ),
    Claim(
        f"{_LARGE}, peak extra memory",
        "nested autograd",
        (LARGE, OURS),
        (LARGE, "nested-autograd"),
        most=1 / 50,
        of="memory",
    ),
    _double(_X4T1, EQUATION),
    _double(_X2T1, SECOND_ORDER),
    _double(_WIDE, WIDE),
    _double(_ORDER8, PROFILE),
    _double("4×64 tanh, N=4096, order 2", usual("sine-2")),
    _double("4×64 tanh, N=4096, order 8", usual("sine-8")),
    _double(_LARGE, LARGE),
    _faster(f"{_LAPLACIAN}, value only", VALUE, "taylorderiv-uncollapsed", "uncollapsed jets", 1.5),
    _faster(f"{_LAPLACIAN}, value only", VALUE, "hessian-trace", "vmapped torch.func.hessian", 2),
    _faster(f"{_LAPLACIAN}, with backward", LAPLACIAN, "taylorderiv-uncollapsed", "uncollapsed jets", 1.5),
    _faster(f"{_LAPLACIAN}, with backward", LAPLACIAN, "hessian-trace", "vmapped torch.func.hessian", 2),
)
