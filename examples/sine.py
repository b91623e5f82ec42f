"""Derivatives of sin, and networks that should learn it from f + f'' = 0; writes demo/sine.png and .md.

Why does the term MSE(f + f'', 0) hurt? Every a·sin x + b·cos x makes it 0, and of these a fresh network is
nearest to f = 0.
"""

from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from sine_report import HEADER, draw, markdown, rows
from sine_training import ADAM_STEPS, LBFGS_STEPS, Run, Sine
from torch import Tensor, nn
from tqdm import tqdm

from taylorderiv import derivatives

OUTPUT = Path("demo")


def nested(x: Tensor, order: int) -> list[Tensor]:
    """The derivatives of sin by nested `torch.autograd.grad`, for comparison."""
    x = x.clone().requires_grad_()
    results = [torch.sin(x)]
    for _ in range(order):
        results += torch.autograd.grad(results[-1].sum(), x, create_graph=True)
    return [result.detach() for result in results]


def compare(console: Console, order: int = 4) -> None:
    """Print f … f'''' of sin on 10 random numbers beside nested autograd, and the size of f + f''."""
    x = torch.randn(10, dtype=torch.float64)
    ours, theirs = derivatives(torch.sin, x, order), nested(x, order)

    console.print("Derivatives of sin at 10 numbers: taylorderiv, below each nested autograd")
    table = Table("x", *("f" + "'" * k for k in range(order + 1)), box=box.SIMPLE, padding=(0, 1, 0, 0))
    for i in range(len(x)):
        table.add_row(f"{x[i]:+.4f}", *(f"{f[i]:+.9f}" for f in ours))
        table.add_row("nested", *(f"{f[i]:+.9f}" for f in theirs), style="dim")
    differences = [(f - g).abs().max().item() for f, g in zip(ours, theirs, strict=True)]
    table.add_row("differ", *(f"{difference:.1e}" for difference in differences))
    console.print(table)

    sum_ = (ours[0] + ours[2]).abs().max().item()
    console.print(f"largest |f + f''|: {sum_:.1e}\n")
    if max(*differences, sum_) > 1e-15:
        raise SystemExit("taylorderiv and nested autograd disagree about sin")


def train(run: Run) -> None:
    """Train behind a progress bar that shows each term of the loss and the norm of its gradient."""
    with tqdm(total=ADAM_STEPS + LBFGS_STEPS, desc=run.name, mininterval=0.5, dynamic_ncols=True) as bar:

        def on_step(run: Run) -> None:
            terms = (f"{run.sizes[term][-1]:.0e}∇{run.gradients[term][-1]:.0e}" for term in run.sizes)
            bar.set_postfix_str(" ".join(terms), refresh=False)
            bar.update()

        run.train(on_step)
        bar.total = bar.n  # L-BFGS may have been done earlier


def check(alone: list[Run], conditions: list[Run], relu: list[Run]) -> None:
    """The picture's titles, as assertions on what was trained."""
    failures = [f"{run.name} alone: max |f| is {run.amplitude:.2g}" for run in alone if run.amplitude > 0.2]
    failures += [f"{run.name} misses sin by {run.error:.2g}" for run in conditions if run.error > 1e-2]
    failures += [f"ReLU: max |f| is {run.amplitude:.2g}" for run in relu if run.amplitude > 0.5]
    if failures:
        raise SystemExit("\n".join(failures))


def main() -> None:
    """Compare, train, report, and fail where the outcome isn't what the report says."""
    torch.set_num_threads(1)  # these networks are too small for more
    torch.manual_seed(0)
    console = Console()
    compare(console)

    alone = [Run("SIREN", Sine, conditions=False), Run("tanh", nn.Tanh, conditions=False)]
    conditions = [Run("SIREN", Sine, conditions=True), Run("tanh", nn.Tanh, conditions=True)]
    relu = [Run("ReLU", nn.ReLU, conditions=False), Run("ReLU", nn.ReLU, conditions=True)]
    questions = {
        "(a) residual alone: f → 0": alone,
        "(b) with f(0) = 0, f'(0) = 1: f → sin": conditions,
        "(c) ReLU has f'' = 0: f → 0": relu,
    }

    console.print("Training on f + f'' = 0 over [0, 4π]. Shown: each term of the loss ∇ its gradient's norm")
    for question, runs in questions.items():
        console.print(question, style="bold")
        for run in runs:
            train(run)

    console.print("\nAfter the last step (∇: norm of the term's gradient, error: relative L2)")
    table = Table(*HEADER, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for row in rows(questions):
        table.add_row(*row)
    console.print(table)

    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "sine.md").write_text(markdown(questions), encoding="utf-8")
    draw(questions, OUTPUT / "sine.png")
    console.print(f"wrote {OUTPUT}/sine.md and {OUTPUT}/sine.png")
    check(alone, conditions, relu)


if __name__ == "__main__":
    main()
