"""The runs of `sine.py` as a picture and as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType
from PIL import Image
from sine_training import ADAM_STEPS, END, LBFGS_STEPS, RESIDUAL, SLOPE, SUM, TERMS, VALUE, Run

Questions = Mapping[str, Sequence[Run]]  # the runs that answer a question, "(a) …"

HEADER = ("network", *(cell for term in TERMS for cell in (term, "∇")), "max |f|", "error")
COLORS = {
    ("SIREN", False): "#2b6cb0",
    ("SIREN", True): "#2b6cb0",
    ("tanh", False): "#dd6b20",
    ("tanh", True): "#dd6b20",
    ("ReLU", False): "#22763f",
    ("ReLU", True): "#7cc576",
}
STYLES: dict[str, LineStyleType] = {
    RESIDUAL: "solid",
    VALUE: "dotted",
    SLOPE: "dashed",
    SUM: (0, (6, 1, 1, 1)),
}


def rows(questions: Questions) -> list[tuple[str, ...]]:
    """A line per run: each term and its gradient at the last step, the largest |f|, the error against sin."""
    lines = []
    for question, runs in questions.items():
        for run in runs:
            terms = [
                f"{history[term][-1]:.0e}" if term in history else "–"
                for term in TERMS
                for history in (run.sizes, run.gradients)
            ]
            name = f"{question[1]} {run.name}"
            lines.append((name, *terms, f"{run.amplitude:.0e}", f"{run.error:.0e}"))
    return lines


def markdown(questions: Questions) -> str:
    """The table in Markdown, with a legend."""
    legend = [*questions, "∇: norm of the term's gradient", "error: relative L2 distance from sin"]
    lines = [HEADER, ("---",) * len(HEADER), *rows(questions)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([*(f"- {line}" for line in legend), "", *table, ""])


def draw_curves(axes: Axes, runs: Sequence[Run]) -> None:
    """Sin, and what each run learned; the second run is dashed so that it hides nothing."""
    x, _ = runs[0].curve()
    axes.plot(x, x.sin(), color="0.85", linewidth=7, solid_capstyle="round", label="sin x")
    same_network = len({run.name for run in runs}) == 1
    for run, style in zip(runs, ("solid", (0, (4, 3))), strict=True):
        color = COLORS[run.name, run.conditions]
        label = run.loss if same_network else run.name
        axes.plot(*run.curve(), color=color, linestyle=style, linewidth=1.8, label=label)
    axes.set_xlim(0, END)
    axes.set_ylim(-1.25, 1.6)
    axes.set_xticks([0, END / 4, END / 2, 3 * END / 4, END], ["0", "π", "2π", "3π", "4π"])
    axes.set_xlabel("x")
    axes.legend(loc="upper center", ncols=3, fontsize=8, handlelength=1.6, columnspacing=1)


def draw_history(axes: Axes, runs: Sequence[Run], kind: str) -> None:
    """The sizes or the gradients of the loss terms at every step."""
    for run in runs:
        color = COLORS[run.name, run.conditions]
        for term, numbers in getattr(run, kind).items():
            width = 1.5 if term == RESIDUAL else 0.9
            axes.plot(numbers, color=color, linestyle=STYLES[term], linewidth=width)
    axes.axvline(ADAM_STEPS, color="0.7", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlim(-20, ADAM_STEPS + LBFGS_STEPS)
    axes.set_xlabel("steps")


def draw(questions: Questions, path: Path) -> None:
    """Write the picture: a column per question; f, the loss terms and their gradients below each other."""
    matplotlib.use("Agg")
    with plt.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    ):
        figure, grid = plt.subplots(3, len(questions), figsize=(12, 7.5), sharey="row", layout="constrained")
        for (curves, sizes, gradients), (title, runs) in zip(grid.T, questions.items(), strict=True):
            curves.set_title(title, fontsize=10, fontweight="bold")
            draw_curves(curves, runs)
            draw_history(sizes, runs, "sizes")
            draw_history(gradients, runs, "gradients")
        for axes, label in zip(grid[:, 0], ("f(x)", "loss terms", "norms of their gradients"), strict=True):
            axes.set_ylabel(label)
        grid[1, 0].set_ylim(1e-11, 1e2)
        grid[2, 0].set_ylim(1e-7, 1e2)
        terms = [Line2D([], [], color="0.3", linestyle=style, label=term) for term, style in STYLES.items()]
        for axes, handles in zip(grid[1:, 0], (terms[:-1], terms), strict=True):
            axes.legend(handles=handles, loc="upper right", fontsize=8)
            for text, side in (("Adam ", "right"), (" L-BFGS", "left")):
                top = axes.get_xaxis_transform()
                axes.text(ADAM_STEPS, 1, text, ha=side, va="top", color="0.4", fontsize=8, transform=top)
        figure.savefig(path, dpi=100)
        plt.close(figure)
    with Image.open(path) as image:  # few colors are used: a palette makes the file a third as large
        image.quantize(64).save(path, optimize=True)
