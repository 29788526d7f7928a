"""The page of the command line shows what the commands say about themselves."""

from __future__ import annotations

from command_line_page import PAGE, written


def test_the_page_shows_the_help_of_every_command() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "the page is stale; run: .venv/bin/python tests/docs/command_line_page.py"
