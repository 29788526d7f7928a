"""Write the help of each command into docs/reference/command-line.md.

python tests/docs/command_line_page.py
"""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from tokensession.cli.commands import cli

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "command-line.md"


def help_of(name: str) -> str:
    """What `tokensession NAME --help` prints."""
    shown = CliRunner().invoke(cli, [name, "--help"], prog_name="tokensession", terminal_width=80)
    assert shown.exit_code == 0, shown.output
    return shown.output


def written(page: str) -> str:
    """The page with the help of each command in it."""
    for name in cli.commands:
        begin = f"<!-- help of {name}: written by tests/docs/command_line_page.py -->\n```text\n"
        assert page.count(begin) == 1, f"the page has no place for the help of {name}"
        before, _, rest = page.partition(begin)
        after = rest.partition("```\n")[2]
        page = f"{before}{begin}{help_of(name)}```\n{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
