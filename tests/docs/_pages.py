"""The public pages, split into their fenced blocks and their headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]


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
    found: list[Block] = []
    mark, opened = "", None
    text: list[str] = []
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


def prose(page: Path) -> str:
    """The page without its fenced blocks, comments and generated parts (figures, tables of tests)."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(
        r"^<!-- [^>]*written by [^>]*-->$.*?^<!-- end of [^>]*-->$", "", text, flags=re.DOTALL | re.MULTILINE
    )
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What links into a page may end with: its headings, as code hosts spell them."""
    titles = re.findall(
        r"^#+ (.+)$",
        re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE),
        re.MULTILINE,
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def named(path: Path) -> str:
    """The name of a page in test ids and messages."""
    return str(path.relative_to(ROOT))
