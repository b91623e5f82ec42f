"""Networks trained on f + f'' = 0 over [0, 4π], with the size and the gradient of each term of the loss."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from taylorderiv import derivatives

END = 4 * math.pi
POINTS = 128
WIDTH = 32
OMEGA = 6.0  # frequency of the SIREN's sines, for inputs in [-1, 1]
ADAM_STEPS = 500
LBFGS_STEPS = 800

RESIDUAL, VALUE, SLOPE = "(f + f'')²", "f(0)²", "(f'(0)−1)²"  # the first is a mean over the points
TERMS = (RESIDUAL, VALUE, SLOPE)
SUM = "all terms"


class Rescale(nn.Module):
    """[0, 4π] to [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (END / 2) - 1


class Sine(nn.Module):
    """sin(ωx)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(OMEGA * x)


def network(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Two hidden layers, float64, initialized as suits the activation."""
    sizes = (1, WIDTH, WIDTH, 1)
    layers: list[nn.Module] = [Rescale()]
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(inputs, outputs, dtype=torch.float64)
        if activation is Sine:  # Sitzmann et al. 2020, arXiv:2006.09661, section 3.2
            bound = 1 / inputs if index == 0 else math.sqrt(6 / inputs) / OMEGA
            nn.init.uniform_(linear.weight, -bound, bound)
        else:
            nn.init.xavier_normal_(linear.weight)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


@dataclass
class Run:
    """A network, what it is trained on, and what happened.

    `sizes` and `gradients` hold, for each term of the loss, its size and its gradient's norm at every step;
    `gradients` also that of the sum.
    """

    name: str
    activation: Callable[[], nn.Module]
    conditions: bool
    seed: int = 0
    model: nn.Sequential = field(init=False)
    sizes: dict[str, list[float]] = field(default_factory=dict)
    gradients: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = network(self.activation)

    @property
    def loss(self) -> str:
        """What the network is trained on, in words."""
        return "residual and conditions" if self.conditions else "residual alone"

    def terms(self) -> dict[str, Tensor]:
        """The terms of the loss. One call of `derivatives` gives f, f' and f'' at every point."""
        x = torch.linspace(0, END, POINTS, dtype=torch.float64)[:, None]
        f, df, d2f = derivatives(self.model, x, 2)
        terms = {RESIDUAL: (f + d2f).square().mean()}
        if self.conditions:
            terms |= {VALUE: f[0].square().sum(), SLOPE: (df[0] - 1).square().sum()}
        return terms

    def evaluate(self) -> tuple[dict[str, float], dict[str, float]]:
        """Leave the loss's gradient in the parameters; return each term's size and its gradient's norm."""
        parameters = list(self.model.parameters())
        terms = self.terms()
        gradients = {
            name: torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
            for name, term in terms.items()
        }
        total = tuple(torch.stack(parts).sum(0) for parts in zip(*gradients.values(), strict=True))
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        if len(terms) > 1:
            gradients[SUM] = total
        sizes = {name: term.item() for name, term in terms.items()}
        return sizes, {name: math.hypot(*(g.norm() for g in parts)) for name, parts in gradients.items()}

    def step(self, optimizer: torch.optim.Optimizer) -> float:
        """One step; records the terms it started from (L-BFGS evaluates more often) and returns their sum."""
        evaluations = []

        def closure() -> float:
            evaluations.append(self.evaluate())
            return sum(evaluations[-1][0].values())

        optimizer.step(closure)
        for history, measured in zip((self.sizes, self.gradients), evaluations[0], strict=True):
            for name, value in measured.items():
                history.setdefault(name, []).append(value)
        return sum(evaluations[0][0].values())

    def train(self, on_step: Callable[["Run"], object]) -> None:
        """Adam, then L-BFGS until 100 steps lower the loss by less than 10 %; `on_step` follows each step."""
        start = time.perf_counter()
        adam = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, ADAM_STEPS)
        for _ in range(ADAM_STEPS):
            self.step(adam)
            schedule.step()
            on_step(self)
        lbfgs = torch.optim.LBFGS(
            self.model.parameters(), max_iter=1, max_eval=25, history_size=50, line_search_fn="strong_wolfe",
            tolerance_grad=0, tolerance_change=0)  # fmt: skip
        losses = []
        for _ in range(LBFGS_STEPS):
            losses.append(self.step(lbfgs))
            on_step(self)
            if len(losses) > 100 and losses[-1] > 0.9 * losses[-101]:
                break
        self.seconds = time.perf_counter() - start

    @torch.no_grad()
    def curve(self, points: int = 1001) -> tuple[Tensor, Tensor]:
        """(x, f(x)) on a grid finer than the one trained on."""
        x = torch.linspace(0, END, points, dtype=torch.float64)
        return x, self.model(x[:, None])[:, 0]

    @property
    def error(self) -> float:
        """Relative L2 error against sin."""
        x, f = self.curve()
        return ((f - x.sin()).norm() / x.sin().norm()).item()

    @property
    def amplitude(self) -> float:
        """Largest |f|: 0 for the trivial solution, 1 for sin."""
        return self.curve()[1].abs().max().item()
