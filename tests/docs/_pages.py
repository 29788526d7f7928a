"""The pages that people read, taken apart into their fenced blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark` is the text of the HTML comment right above it, "" without one."""

    page: Path
    line: int  # of its first line of text, counted from 1
    language: str
    text: str
    mark: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order. A fence that is never closed is an error."""
    found, mark, opened, text = [], "", None, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened is not None:
            if line == "```":
                found.append(Block(page, *opened, "\n".join(text) + "\n", mark))
                opened, text, mark = None, [], ""
            else:
                text.append(line)
        elif fence := re.fullmatch(r"```(\S*)", line):
            opened = (number + 1, fence[1])
        elif comment := re.fullmatch(r"<!-- (.+) -->", line):
            mark = comment[1]
        elif line:
            mark = ""
    assert opened is None, f"{page}: the block at line {opened} is never closed"
    return found


def named(path: Path) -> str:
    """How a test calls a page."""
    return str(path.relative_to(ROOT))
