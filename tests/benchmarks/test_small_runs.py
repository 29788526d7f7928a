"""The benchmarks of stores, tenants and processes run from end to end, small."""

from __future__ import annotations

from types import ModuleType

import pytest

from benchmarks import processes, stores, tenants
from benchmarks.harness.results import RESULTS


def _saved(name: str) -> int | None:
    path = RESULTS / f"{name}.json"
    return path.stat().st_mtime_ns if path.exists() else None


@pytest.mark.parametrize("benchmark", [processes, stores, tenants], ids=lambda module: module.__name__)
def test_a_quick_run_ends_well_and_leaves_no_results(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows a table, exits with 0, and saves nothing: a smoke test's figures are not for the page."""
    name = benchmark.__name__.rpartition(".")[2]
    before = _saved(name)

    assert benchmark.main(["--quick"]) == 0

    assert name in capsys.readouterr().out
    assert _saved(name) == before
