"""Some benchmarks run to the end, small."""

from __future__ import annotations

import asyncio
from types import ModuleType

import pytest

from benchmarks import cold_path, processes, scale, stores, tenants
from benchmarks.harness.results import RESULTS, Result
from benchmarks.harness.server import OUTAGES
from benchmarks.outage_processes.experiment import Outage, measure


def _saved(name: str) -> int | None:
    path = RESULTS / f"{name}.json"
    return path.stat().st_mtime_ns if path.exists() else None


@pytest.mark.parametrize("benchmark", [processes, scale, stores, tenants], ids=lambda module: module.__name__)
def test_a_quick_run_succeeds_and_saves_nothing(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints a table and exits with 0."""
    name = benchmark.__name__.rpartition(".")[2]
    before = _saved(name)
    assert benchmark.main(["--quick"]) == 0
    assert name in capsys.readouterr().out
    assert _saved(name) == before


@pytest.mark.parametrize("kind", OUTAGES)
def test_processes_are_served_after_a_short_outage_of_each_kind(kind: str) -> None:
    """No person has to sign in, and no spent refresh token is sent."""
    result = Result("outage")
    outage = Outage(kind, 0.3, (1, 2), response_timeout=1 if kind == "swallowed" else None)
    asyncio.run(measure(result, [outage], judged=False))
    assert [row["processes"] for row in result.rows] == [1, 2]
    assert all(row["token requests"] >= 1 for row in result.rows)
    assert [row["remark"] for row in result.rows] == [None, None]


def test_the_tree_of_a_cold_refresh_shows_its_way_through_the_modules(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the caller down to the token request, with the tasks and threads that it passes."""
    assert cold_path.main(["--tree", "file"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "source: ManagedSource.token"
    assert any("transport: AiohttpTransport.send" in line for line in lines)
    assert any(line.endswith("[in a new task]") for line in lines)
    assert any(line.endswith("[in a thread]") for line in lines)
