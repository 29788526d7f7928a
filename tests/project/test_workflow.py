"""The workflow runs what a maintainer runs, on the Pythons that the package claims."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_matrix_has_exactly_the_pythons_of_the_classifiers() -> None:
    found = re.search(r"^\s*python-version: \[(.*)\]$", WORKFLOW, re.MULTILINE)
    assert found is not None
    matrix = re.findall(r'"([\d.]+)"', found[1])
    claimed = [
        name.removeprefix("Programming Language :: Python :: ")
        for name in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: \d+\.\d+", name)
    ]
    assert matrix == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"


def test_the_workflow_runs_the_ci_script_and_nothing_else() -> None:
    assert re.findall(r"^\s*- run: (.*)$", WORKFLOW, re.MULTILINE) == ["bash .ci/run"]


def test_actions_are_named_with_a_version() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for action in re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action), f"{path.name}: {action}"
