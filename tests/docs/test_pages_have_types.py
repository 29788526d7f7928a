"""Type checkers accept the examples of the pages."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from _pages import PAGES, ROOT, Block, blocks

# What a page may do that a program would not: several programs with a `main`, and packages without types.
_ALLOWED = ("no-redef", "import-untyped", "import-not-found")


def module(examples: list[Block]) -> str:
    """The examples of a page as one coroutine, each in the lines that it has on the page."""
    lines = ["async def page() -> None:"]
    for block in examples:
        lines += [""] * (block.line - 1 - len(lines))
        lines += textwrap.indent(block.text, "    ").splitlines()
    return "\n".join(lines) + "\n"


def test_type_checkers_accept_the_examples_of_every_page(tmp_path: Path) -> None:
    for page in PAGES:
        if examples := [block for block in blocks(page) if block.language == "python"]:
            name = "_".join(page.relative_to(ROOT).with_suffix(".py").parts).replace("-", "_")
            (tmp_path / name).write_text(module(examples), encoding="utf-8")
    strict = ["--config-file", str(ROOT / "pyproject.toml")]
    strict += ["--allow-subclassing-any", "--allow-untyped-decorators"]  # of packages that are not installed
    allowed = [f"--disable-error-code={code}" for code in _ALLOWED]
    files = sorted(map(str, tmp_path.glob("*.py")))
    assert len(files) > 20
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *strict, *allowed, *files], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
