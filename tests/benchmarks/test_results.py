"""Saved results: a new run changes the lines of its figures and no others."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import results
from benchmarks.harness.results import RESULTS, Goal, Result

FILES = sorted(RESULTS.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_saving_a_result_again_does_not_reformat_its_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same figures and environment, only the date can change."""
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    monkeypatch.setattr(results, "environment", lambda: document["environment"])
    again = Result(
        document["name"],
        document["command"],
        document["rows"],
        document["series"],
        [Goal(**goal) for goal in document["goals"]],
        document["notes"],
    ).save(tmp_path)
    old, new = (path.read_text(encoding="utf-8").splitlines() for path in (file, again))
    assert again.name == file.name
    assert [line for line in new if line not in old] in ([], [new[3]])
    assert len(old) == len(new)
    assert '"date"' in new[3]


def test_a_changed_figure_changes_one_line_of_the_file(tmp_path: Path) -> None:
    def saved(ms: float) -> list[str]:
        rows = [{"store": name, "ms": {"median": value}} for name, value in (("file", ms), ("sqlite", 2.0))]
        path = Result("stores", "python -m benchmarks stores", rows, {"x": [1, 2]}).save(tmp_path)
        return path.read_text(encoding="utf-8").splitlines()

    changed = [line for line in difflib.ndiff(saved(1.25), saved(1.5)) if line.startswith(("+ ", "- "))]
    figures = [line for line in changed if '"load"' not in line]  # the load average may change as well
    assert figures == ['-     "median": 1.25', '+     "median": 1.5']
