"""What scripts have written into the pages is what they would write now."""

from __future__ import annotations

from types import ModuleType

import command_line_page
import life_table
import pytest
import reliability_table
import vendors_table


@pytest.mark.parametrize(
    "script",
    [command_line_page, life_table, reliability_table, vendors_table],
    ids=lambda script: script.__name__,
)
def test_the_page_is_what_its_script_writes(script: ModuleType) -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.written(page), f"stale; run: .venv/bin/python tests/docs/{script.__name__}.py"
