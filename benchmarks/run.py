"""Times losses with high-order derivatives, and their gradients, beside other ways to compute them.

    python benchmarks/run.py                                     the short suite, some minutes
    python benchmarks/run.py --suite full                        every workload, a night
    python benchmarks/run.py --suite kdv plate --width 32 256    some workloads, as you like
    python benchmarks/run.py --resume                            go on after an interruption

Writes results.jsonl (a line per finished row), results.json, table.md and plots to --output, and prints the table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path

from tqdm import tqdm

from pinn.cases import ACTIVATIONS, DTYPES, Case, product
from pinn.claims import EQUATION
from pinn.competitors import COMPETITORS
from pinn.machine import available_memory, machine_facts
from pinn.measure import Settings, measure
from pinn.process import WorkerError
from pinn.report import write
from pinn.results import Journal, Results
from pinn.suites import SUITES, Suite, everyone_in
from pinn.workloads import WORKLOADS

MEMORY_SHARE = 0.8  # of the free memory, for one worker


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", default=["short"], metavar="NAME", help="short, full, or workloads")
    parser.add_argument("--workload", nargs="+", metavar="PATTERN", help="of the suite, only these: sine-*")
    parser.add_argument("--competitor", nargs="+", choices=COMPETITORS, metavar="NAME", help="only these")
    parser.add_argument("--width", nargs="+", type=int, default=[], help="of the hidden layers")
    parser.add_argument("--batch", nargs="+", type=int, default=[], help="number of points")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=[])
    parser.add_argument("--activation", nargs="+", choices=ACTIVATIONS, default=[])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", metavar="DIRECTORY")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are in the output directory")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one step of the work")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="how often competitors take turns")
    parser.add_argument(
        "--python",
        nargs="+",
        default=[],
        metavar="COMPETITOR=PATH",
        help="interpreters of competitors that are installed elsewhere",
    )
    parser.add_argument("--list", action="store_true", help="what would be measured, and nothing else")
    options = parser.parse_args()
    names = set(options.suite)
    if unknown := names - WORKLOADS.keys() - SUITES.keys():
        parser.error(f"no suite or workload {', '.join(sorted(unknown))}; there are {', '.join([*SUITES, *WORKLOADS])}")
    if names & SUITES.keys() and len(names) > 1:
        parser.error("--suite takes short, or full, or names of workloads")
    if not all("=" in entry and entry.split("=")[0] in COMPETITORS for entry in options.python):
        parser.error("--python takes COMPETITOR=PATH")
    return options


def chosen(options: argparse.Namespace) -> Suite:
    """What to measure: a suite's cases that pass the filters, or all combinations for named workloads."""
    if options.suite[0] in SUITES:
        suite = SUITES[options.suite[0]]()
    else:
        settings = (options.width, options.batch, options.dtype, options.activation)
        suite = everyone_in(product(options.suite, *settings))

    def passes(case: Case) -> bool:
        return (
            (not options.workload or any(fnmatch(case.name, pattern) for pattern in options.workload))
            and (not options.width or set(case.hidden) <= set(options.width))
            and (not options.batch or case.batch in options.batch)
            and (not options.dtype or case.dtype in options.dtype)
            and (not options.activation or case.activation in options.activation)
        )

    allowed = options.competitor or COMPETITORS
    chosen = {case: [name for name in names if name in allowed] for case, names in suite.items() if passes(case)}
    return {case: names for case, names in chosen.items() if names}


def run(suite: Suite, journal: Journal, results: Results, settings: Settings, progress: tqdm) -> None:
    """Measure what isn't among the results yet."""
    for case, names in suite.items():
        missing = [name for name in names if (case, name) not in results]
        progress.update(len(names) - len(missing))
        if not missing:
            continue
        progress.set_description(case.label)
        for row in measure(case, missing, settings):
            journal.append(row)
            results.add(row)
            progress.update()


def set_aside(output: Path) -> None:
    """Make room for a new run: keep the rows of the last one under another name, draw new problems."""
    rows = output / "results.jsonl"
    if rows.exists():
        rows.replace(output / "results.previous.jsonl")
    shutil.rmtree(output / "problems", ignore_errors=True)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being told to end ends the workers, too
    options = arguments()
    suite = chosen(options)
    rows = sum(map(len, suite.values()))
    if options.list:
        for case, names in suite.items():
            print(f"{case.label}: {', '.join(names)}")
        print(f"{len(suite)} cases, {rows} rows")
        return 0
    output = options.output
    output.mkdir(parents=True, exist_ok=True)
    machine = machine_facts()
    journal = Journal(output / "results.jsonl")
    if not options.resume:
        set_aside(output)
    results = journal.read()
    with tqdm(total=rows, unit="row", dynamic_ncols=True) as progress:
        settings = Settings(
            directory=output,
            threads=options.threads,
            timeout=options.timeout,
            memory=int(MEMORY_SHARE * available_memory()),
            rounds=options.rounds,
            pythons=dict(entry.split("=", 1) for entry in options.python),
            report=progress.set_postfix_str,
        )
        try:
            with settings.worker(EQUATION, "taylorderiv") as worker:
                library = worker.request("facts", timeout=settings.timeout)
            run(suite, journal, results, settings, progress)
        except WorkerError as error:
            sys.exit(f"taylorderiv can't be measured: {error}")
        except KeyboardInterrupt:
            sys.exit(f"\nInterrupted. {len(results)} rows are kept; go on with --resume.")
    facts = {**machine, "threads": options.threads, **library}
    print(write(results, facts, output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
