"""Write the help of each command into docs/reference/command-line.md.

python tests/docs/command_line_page.py
"""

from __future__ import annotations

from _pages import ROOT, with_text
from click.testing import CliRunner

from tokensession.cli.commands import cli

PAGE = ROOT / "docs" / "reference" / "command-line.md"


def help_of(name: str) -> str:
    """What `tokensession NAME --help` prints."""
    shown = CliRunner().invoke(cli, [name, "--help"], prog_name="tokensession", terminal_width=80)
    assert shown.exit_code == 0, shown.output
    return shown.output


def written(page: str) -> str:
    """The page with the help of each command in it."""
    for name in cli.commands:
        begin = f"<!-- help of {name}: written by tests/docs/command_line_page.py -->\n```text"
        page = with_text(page, begin, help_of(name), "```\n")
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
