"""Who is measured. Each module's ``build(problem)`` returns a function of no arguments that is one training step.

A step returns the loss and the gradients for weights and biases in turn (none where the case asks for the loss
alone), as arrays, computed to the end.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pinn.workloads import Workload

if TYPE_CHECKING:
    from pinn.problem import Problem

Step = Callable[[], tuple[Any, Sequence[Any]]]


@dataclasses.dataclass(frozen=True)
class Competitor:
    """A way to compute the quantities of a workload.

    Attributes:
        name: as given on the command line.
        title: as shown in tables.
        module: in this package.
        applies: whether a workload is of its kind; whether it can do it, it must say itself.
        role: whether it computes the loss and its gradient exactly, or approximately (then only its error is of
            interest), or is a yardstick, whose time is wanted and whose result isn't checked.
        option: passed to ``build``, where a module serves several competitors.
    """

    name: str
    title: str
    module: str
    applies: Callable[[Workload], bool] = lambda workload: True
    role: Literal["exact", "approximate", "yardstick"] = "exact"
    option: str | None = None

    def load(self) -> ModuleType:
        """Import it.

        Raises:
            ModuleNotFoundError: its package isn't installed.
        """
        return importlib.import_module(f"{__name__}.{self.module}")

    def build(self, problem: Problem) -> Step:
        """Prepare a case; raises whatever it raises if it can't."""
        module = self.load()
        return module.build(problem) if self.option is None else module.build(problem, self.option)


def laplacian_only(workload: Workload) -> bool:
    """Whether a workload is about a Laplacian of many variables, exact."""
    return workload.quantities == ("laplacian",)


def operator_only(workload: Workload) -> bool:
    """Whether a workload needs one sum of derivatives only, which can be propagated collapsed."""
    return len(workload.quantities) == 1 and not workload.partials


OURS = "taylorderiv"
FLOOR = "floor"
SINGLE = "taylorderiv-float32"
YARDSTICKS = (FLOOR, SINGLE)

_ALL = (
    Competitor(OURS, "taylorderiv", "taylorderiv_jets"),
    Competitor(FLOOR, "floor: the matrix products alone", "floor", role="yardstick"),
    # In float64 cases that a claim is about: machines change their speed from case to case.
    Competitor(
        SINGLE,
        "taylorderiv in float32",
        "taylorderiv_jets",
        applies=lambda workload: False,
        role="yardstick",
        option="float32",
    ),
    Competitor("nested-autograd", "nested autograd.grad", "nested_autograd"),
    Competitor("nested-jvp", "nested torch.func.jvp", "nested_jvp"),
    Competitor("compiled", "hand-written jets, torch.compile", "handwritten"),
    Competitor("jet-for-pytorch", "jet-for-pytorch", "jet_for_pytorch", option="standard"),
    Competitor(
        "jet-for-pytorch-collapsed",
        "jet-for-pytorch, collapsed",
        "jet_for_pytorch",
        applies=operator_only,
        option="collapsed",
    ),
    Competitor("jax-jet", "JAX jet + jit", "jax_jet"),
    Competitor("jax-nested", "JAX nested jvp + jit", "jax_nested"),
    Competitor("folx", "folx + jit", "folx_laplacian", applies=laplacian_only),
    Competitor(
        "taylorderiv-uncollapsed",
        "taylorderiv, not collapsed",
        "taylorderiv_jets",
        applies=laplacian_only,
        option="uncollapsed",
    ),
    Competitor("hessian-trace", "vmapped torch.func.hessian", "hessian_trace", applies=laplacian_only),
    Competitor("finite-differences", "finite differences", "finite_differences", role="approximate"),
)

COMPETITORS: Mapping[str, Competitor] = {competitor.name: competitor for competitor in _ALL}
