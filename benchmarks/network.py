"""One training step whose loss holds all derivatives up to an order: taylorderiv beside nested autograd.

A tanh network of one input, 4 hidden layers of 64 and one output, 4096 points, float32; forward and backward.
Prints a Markdown table of milliseconds, medians.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from taylorderiv import derivatives

POINTS, WIDTH, LAYERS, HIGHEST = 4096, 64, 4, 6
REPEATS = 7

Method = Callable[[nn.Module, Tensor, int], Sequence[Tensor]]


def nested(model: nn.Module, x: Tensor, order: int) -> Sequence[Tensor]:
    x = x.detach().requires_grad_()
    results = [model(x)]
    for _ in range(order):
        results += torch.autograd.grad(results[-1].sum(), x, create_graph=True)
    return results


def milliseconds(method: Method, model: nn.Module, x: Tensor, order: int) -> float:
    def step() -> float:
        start = time.perf_counter()
        model.zero_grad()
        torch.stack([result.square().mean() for result in method(model, x, order)]).sum().backward()
        return time.perf_counter() - start

    step()
    return 1e3 * statistics.median(step() for _ in range(REPEATS))


def main() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(1, WIDTH), nn.Tanh()]
    for _ in range(LAYERS - 1):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 1))
    x = torch.rand(POINTS, 1)

    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {capability}\n")
    print("| order | nested autograd | taylorderiv | ratio |\n|---|---|---|---|")
    for order in range(1, HIGHEST + 1):
        theirs, ours = (milliseconds(method, model, x, order) for method in (nested, derivatives))
        print(f"| {order} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.1f} |", flush=True)


if __name__ == "__main__":
    main()
