"""The numbers that are printed are the numbers that are used."""

from __future__ import annotations

from life_table import BEGIN, END, PAGE, written


def test_the_table_in_the_docs_is_what_the_policy_says() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert page == written(page), "the table is stale; run: .venv/bin/python tests/docs/life_table.py"
