"""What is promised: the doors, the page that lists them, and their types."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
API: dict[str, Any] = runpy.run_path(str(ROOT / "tests" / "docs" / "api_page.py"))


def test_the_api_page_is_what_the_docstrings_say() -> None:
    stale = "docs/reference/api.md is stale: run .venv/bin/python tests/docs/api_page.py"
    assert API["PAGE"].read_text(encoding="utf-8") == API["page"](), stale


@pytest.mark.parametrize("module", API["MODULES"])
def test_every_public_name_has_a_heading_and_a_docstring_on_the_api_page(module: str) -> None:
    text = API["PAGE"].read_text(encoding="utf-8")
    section = text.partition(f"\n## {module}\n")[2].partition("\n## ")[0]
    names = importlib.import_module(module).__all__
    parts = dict(part.split("\n", 1) for part in section.split("\n### ")[1:])
    assert set(parts) == set(names)
    for name, part in parts.items():
        said = part.partition("```\n")[2] if "```" in part else part
        assert said.strip(), f"{module}.{name} has no docstring"
