"""The benchmarks of stores, tenants and processes run to the end, small."""

from __future__ import annotations

from types import ModuleType

import pytest

from benchmarks import processes, stores, tenants
from benchmarks.harness.results import RESULTS


def _saved(name: str) -> int | None:
    path = RESULTS / f"{name}.json"
    return path.stat().st_mtime_ns if path.exists() else None


@pytest.mark.parametrize("benchmark", [processes, stores, tenants], ids=lambda module: module.__name__)
def test_a_quick_run_succeeds_and_saves_nothing(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints a table and exits with 0."""
    name = benchmark.__name__.rpartition(".")[2]
    before = _saved(name)

    assert benchmark.main(["--quick"]) == 0

    assert name in capsys.readouterr().out
    assert _saved(name) == before
