"""Runs of the torture command as real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
GUARD = 90.0  # seconds; an upper bound for a hang


def start(*arguments: str, tmp: Path) -> subprocess.Popen[str]:
    """`python -m benchmarks …` with its temporary files under `tmp`."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp)},
    )


@contextlib.contextmanager
def output_of(process: subprocess.Popen[str]) -> Iterator[IO[str]]:
    """Its output. If it hangs, it is killed."""
    assert process.stdout is not None
    guard = threading.Timer(GUARD, process.kill)
    guard.start()
    try:
        yield process.stdout
    finally:
        guard.cancel()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status and the output."""
    with output_of(process) as output, output:
        said = output.read()
        return process.wait(), said


def stop(process: subprocess.Popen[str]) -> None:
    """SIGSTOP. It has stopped when this returns."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read its output up to a line with these words."""
    with output_of(process) as output:
        assert any(words in line for line in output), f"{words!r} is not in the output"
