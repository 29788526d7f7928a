"""`python -m benchmarks versus`: two checkouts in one run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from _torture_runs import ROOT

from benchmarks import versus


def test_a_checkout_can_be_compared_with_itself() -> None:
    """Each figure has both checkouts, their ratio, and the noise."""
    result = asyncio.run(versus.compare(ROOT, list(versus.MEASUREMENTS), rounds=1))
    assert {row[""].partition(":")[0] for row in result.rows} == set(versus.MEASUREMENTS)
    for row in result.rows:
        assert list(row) == ["", "base", "new", "new / base", "noise"]
        assert row["base"]["median"] > 0
        assert row["new / base"]["median"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--base"),
        (["--base", "."], "must be a checkout of tokensession"),
        (["--base", str(ROOT), "tenants"], "must be one of hot-path"),
    ],
    ids=["no base", "not a checkout", "unknown name"],
)
def test_wrong_options_are_errors(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit status 2."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exited:
        versus.main(arguments)
    assert exited.value.code == 2
    assert message in capsys.readouterr().err


def test_a_measurement_of_another_tokensession_is_refused(tmp_path: Path) -> None:
    """Otherwise a checkout would be compared with the installed package."""
    with pytest.raises(RuntimeError, match="was imported from"):
        versus._measured("hot-path", tmp_path, {})
