"""The torture command as a user runs it: it prints its verdict, and leaves no process behind."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from _processes import Children
from _torture_runs import GUARD, finish, read_until, start, stop

from benchmarks.servers import require

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

COUNTS = {
    "requests",
    "expiries",
    "kills",
    "stops",
    "faults",
    "ends of the store's server",
    "outages",
    "clock steps",
    "holders that may have lost their lease",
    "access tokens revoked early",
    "older records put back",
    "records deleted",
    "records restored",
    "token requests",
    "tokens the store did not accept at first",
    "token requests in outages",
    "token requests in one outage, at most",
    "repetitions after a lost response",
    "lost responses to one refresh token, at most",
    "token requests beside one whose lease had ended",
    "reuse detections",
    "sign-ins lost",
    "401s that callers got",
    "workers that recovered",
    "failures",
    "401s at the API",
    "reads of the record",
    "reads that failed",
}
PROMISES = {
    "outages with too many token requests",
    "concurrent token requests, at most",
    "token requests that met a dead client's",
    "reuse detections without excuse",
    "reuse detections without a sign-in error",
    "sign-ins lost without excuse",
    "processes told to sign in while they knew a healthy sign-in",
    "processes that followed the store back",
    "corrupt records",
    "leaked locks",
    "401s that callers got without explanation",
    "workers that ended by themselves",
    "workers that did not recover",
    "unexpected failures",
    "401s for a valid token, an unknown one or none",
    "invalid token requests",
}


def test_a_short_torture_breaks_no_promise_and_counts_everything(tmp_path: Path) -> None:
    """Three processes, five seconds of chaos: exit status 0, and each count is in the JSON."""
    file = tmp_path / "counts.json"
    arguments = ["--minutes", "0.08", "--processes", "3", "--seed", "7", "--json", str(file)]
    status, output = finish(start("torture", *arguments, tmp=tmp_path))
    assert status == 0, output
    document = json.loads(file.read_text())
    assert set(document["counts"]) == COUNTS
    assert set(document["promises"]) == PROMISES
    assert document["broken"] == []
    for counted in ("requests", "token requests", "kills", "reads of the record"):
        assert document["counts"][counted] > 0
    assert document["counts"]["workers that recovered"] == 3
    assert "Every promise held." in output
    assert "seed 7" in output
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("store", ["redis", "valkey", "postgres"])
def test_a_short_torture_of_a_store_on_a_server_kills_the_server_too(store: str, tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    arguments = ["--minutes", "0.15", "--processes", "3", "--seed", "7", "--json", str(file)]
    require(store)
    status, output = finish(start("torture", "--stores", store, "--restart-store", *arguments, tmp=tmp_path))
    assert status == 0, output
    document = json.loads(file.read_text())
    assert document["counts"]["ends of the store's server"] > 0
    assert document["counts"]["token requests"] > 0
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
def test_ending_the_command_ends_its_processes(end: signal.Signals, tmp_path: Path) -> None:
    """Also a stopped worker ends, and also if the supervisor is killed."""
    process = start("torture", "--minutes", "10", "--processes", "2", tmp=tmp_path)
    try:
        read_until(process, "at work")
        stop(process)  # so it kills and starts no worker while we look
        with Children(process.pid) as workers:
            assert workers.pids  # perhaps one fewer or one more: it has begun to kill
            workers.send_signal(workers.pids[0], signal.SIGSTOP)
            process.send_signal(end)
            process.send_signal(signal.SIGCONT)
            status, output = finish(process)
            assert workers.all_gone(timeout=GUARD)
    finally:
        process.kill()
    assert status == (130 if end is signal.SIGINT else -signal.SIGKILL), output


@pytest.mark.parametrize(
    "wrong",
    [
        ["--minutes", "nan"],
        ["--minutes", "0"],
        ["--processes", "0"],
        ["--store", "memory:"],
        ["--store", "file:///nowhere/at/all"],
        ["--store", "tortoise://x"],
        ["--restart-store", "--stores", "sqlite"],
        ["--restart-store", "--store", "redis://127.0.0.1:1"],
    ],
)
def test_wrong_options_are_reported_before_anything_starts(wrong: list[str], tmp_path: Path) -> None:
    """A value that is not a number, a store that processes cannot share, a missing directory."""
    status, output = finish(start("torture", *wrong, tmp=tmp_path))
    assert status == 2
    assert "error: " in output
    assert "Traceback" not in output
    assert "at work" not in output
