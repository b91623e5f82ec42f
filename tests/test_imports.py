"""Imports run one way, from the API down to the extension: asserted on the syntax tree of the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import taylorderiv

PACKAGE = Path(taylorderiv.__file__).parent

# From the bottom up. A module imports only from lines above its own; `planner` stands for all its modules.
LAYERS = (
    {"_C", "layout", "unary_ops", "registry"},
    {"planner"},
    {"reference"},
    {"kernels"},
    {"chain"},
    {"jet"},
    {"rules.engine"},
    {"rules.unary", "rules.memory"},
    {
        "rules.shape",
        "rules.linear",
        "rules.bilinear",
        "rules.piecewise",
        "rules.composite",
        "rules.constant",
        "rules.linalg",
        "rules.factorizations",
        "rules.fallback",
    },
    {"rules"},
    {"evaluation"},
    {"operators"},
    {"stochastic", "calculus", "api"},
    {"testing", "explanation"},
    {"integrations"},
)


def layer(name: str) -> int:
    """The number of the line in which a module stands."""
    name = name.split(".")[0] if name.startswith(("planner", "integrations")) else name
    (number,) = [i for i, line in enumerate(LAYERS) if name in line]
    return number


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, relative to it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            if node.module == "taylorderiv":
                found |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("taylorderiv."):
                found.add(node.module.removeprefix("taylorderiv."))
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("taylorderiv.") for a in node.names if a.name.startswith("taylorderiv")}
    return found


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }


def test_each_module_imports_only_what_lies_below() -> None:
    for name, path in modules().items():
        for imported in imports(path):
            if not (name.startswith("planner.") and imported.startswith("planner")):
                assert layer(imported) < layer(name), f"{name} imports {imported}"


def test_only_kernels_imports_the_extension() -> None:
    for name, path in modules().items():
        assert ("_C" in imports(path)) == (name == "kernels"), name


def test_the_graph_has_no_cycle() -> None:
    graph = {name: imports(path) for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for below in graph.get(name, ()):
                visit(below, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_init_only_re_exports() -> None:
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    assert all(isinstance(node, (ast.Expr, ast.ImportFrom, ast.Assign)) for node in body)


def test_torch_is_the_only_runtime_dependency() -> None:
    allowed = {"torch", "taylorderiv", *sys.stdlib_module_names}
    for name, path in modules().items():
        if name.startswith("integrations"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert {n.split(".")[0] for n in names} <= allowed, (name, names)


def test_a_missing_extension_says_how_to_build_it(tmp_path: Path) -> None:
    copy = tmp_path / "taylorderiv"
    for path in PACKAGE.rglob("*.py"):
        target = copy / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    # An editable install of the package would still find the extension of the original.
    program = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]; import taylorderiv"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "pip install --no-build-isolation" in result.stderr
