"""The Python blocks of the README and of docs/ run, and what these pages point to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pages
def test_code_runs(page: Path) -> None:
    """The blocks of a page run in order, in one namespace; a traceback shows the page's own line."""
    text = page.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert blocks
    namespace = {"__name__": page.stem}
    for block in blocks:
        source = "\n" * text.count("\n", 0, block.start(1)) + block[1]
        exec(compile(source, page, "exec"), namespace)


@pages
def test_links_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pages
def test_make_commands_exist(page: Path) -> None:
    commands = re.findall(r"^make ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [command for command in commands if not re.search(rf"^{command}:", makefile, re.MULTILINE)] == []


@pytest.mark.parametrize(("language", "source"), [("cpp", "csrc/unary_ops.h"), ("python", "taylorderiv/unary_ops.py")])
def test_contributing_shows_code_as_it_is(language: str, source: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert "".join(block.split()) in "".join((ROOT / source).read_text(encoding="utf-8").split())
