"""The torture command as a user runs it: it ends well, says all it counted, and leaves nobody behind."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from _children import Children
from _torture_runs import GUARD, finish, stand_still, start, until_said

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

COUNTS = {
    "requests",
    "failures",
    "failures that are no weather",
    "expiries",
    "token requests",
    "kills",
    "stops",
    "faults",
    "clock steps",
    "access tokens revoked early",
    "tokens the store would not take at first",
    "concurrent token requests, at most",
    "token requests that met a dead client's",
    "reuse detections, excused",
    "reuse detections otherwise",
    "reuse detections that no caller was told of",
    "sign-ins lost, by design",
    "sign-ins lost otherwise",
    "replays",
    "lost answers to one refresh token, at most",
    "corrupt records",
    "leaked locks",
    "401s that callers got, explained",
    "401s that callers got otherwise",
    "workers that ended by themselves",
    "workers that recovered",
    "workers that did not recover",
    "401s at the API",
    "401s for a living token, a wrong one or none",
    "token requests that were not in order",
    "looks at the record",
    "looks that the store refused",
}


def test_a_short_torture_ends_well_and_counts_everything(tmp_path: Path) -> None:
    """Three processes, five seconds of chaos: exit status 0, and each count is in the JSON."""
    file = tmp_path / "counts.json"
    arguments = ["--minutes", "0.08", "--processes", "3", "--seed", "7", "--json", str(file)]
    status, said = finish(start("torture", *arguments, tmp=tmp_path))
    assert status == 0, said
    document = json.loads(file.read_text())
    assert set(document["counts"]) == COUNTS
    assert document["broken"] == []
    assert document["counts"]["requests"] > 0
    assert document["counts"]["token requests"] > 0
    assert document["counts"]["kills"] > 0
    assert document["counts"]["workers that recovered"] == 3
    assert document["counts"]["looks at the record"] > 0
    assert "Every promise was kept." in said
    assert "seed 7" in said
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
def test_the_end_of_the_command_is_the_end_of_its_processes(end: signal.Signals, tmp_path: Path) -> None:
    """Also of one that stands still, and although a killed supervisor can end nobody."""
    process = start("torture", "--minutes", "10", "--processes", "2", tmp=tmp_path)
    try:
        until_said(process, "at work")
        stand_still(process)  # so that it kills and starts nobody while we look
        with Children(process.pid) as workers:
            assert workers.pids  # perhaps one fewer, or one more: it has begun to kill
            workers.send_signal(workers.pids[0], signal.SIGSTOP)
            process.send_signal(end)
            process.send_signal(signal.SIGCONT)
            status, said = finish(process)
            assert workers.all_gone(guard=GUARD)
    finally:
        process.kill()
    assert status == (130 if end is signal.SIGINT else -signal.SIGKILL), said


def test_it_is_listed_and_another_name_is_a_mistake(tmp_path: Path) -> None:
    """Without a name everything else would be measured."""
    status, said = finish(start("--list", tmp=tmp_path))
    assert (status, "torture" in said) == (0, True)
    status, said = finish(start("tortoise", tmp=tmp_path))
    assert (status, "torture" in said) == (2, True)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--minutes", "nan"],
        ["--minutes", "0"],
        ["--processes", "0"],
        ["--store", "memory:"],
        ["--store", "file:///nowhere/at/all"],
        ["--store", "tortoise://x"],
    ],
)
def test_what_cannot_work_is_said_in_a_line_before_anything_is_started(
    wrong: list[str], tmp_path: Path
) -> None:
    """A number that is none, a store that processes cannot share, a directory that is not there."""
    status, said = finish(start("torture", *wrong, tmp=tmp_path))
    assert status == 2
    assert "error: " in said
    assert "Traceback" not in said
    assert "at work" not in said
