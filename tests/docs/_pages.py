"""The public pages, split into their fenced blocks and their headings."""

from __future__ import annotations

import re
from collections.abc import Mapping
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


def with_text(page: str, begin: str, text: str, end: str) -> str:
    """The page with this text after the line `begin`, which it has once, and before the next `end`."""
    assert page.count(begin) == 1, f"the page must have this once: {begin}"
    before, _, rest = page.partition(begin)
    assert end in rest, f"the page must have this below: {end}"
    return f"{before}{begin}\n{text}{rest[rest.index(end) :]}"


def with_tables(page: str, script: str, tables: Mapping[str, str]) -> str:
    """The page with these tables, each between the comments that name it and the script."""
    for name, text in tables.items():
        begin = f"<!-- {name}: written by tests/docs/{script} -->"
        page = with_text(page, begin, text + "\n", f"<!-- end of {name} -->")
    return page


def prose(page: Path) -> str:
    """The page without its fenced blocks, comments and generated parts (figures, tables of tests)."""
    generated = r"(?ms)^<!-- [^>]*written by [^>]*-->$.*?^<!-- end of [^>]*-->$"
    return re.sub(r"(?s)<!--.*?-->", "", re.sub(generated, "", unfenced(page)))


def unfenced(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What links into a page may end with: its headings, as code hosts spell them."""
    titles = re.findall(r"(?m)^#+ (.+)$", unfenced(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def named(path: Path) -> str:
    """The name of a page in test ids and messages."""
    return str(path.relative_to(ROOT))
