"""Runs of the torture command as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

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


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status and the output."""
    assert process.stdout is not None
    guard = threading.Timer(GUARD, process.kill)
    guard.start()
    try:
        with process.stdout:
            output = process.stdout.read()
        return process.wait(), output
    finally:
        guard.cancel()


def stop(process: subprocess.Popen[str]) -> None:
    """SIGSTOP. It has stopped when this returns."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read its output up to a line with these words."""
    assert process.stdout is not None
    guard = threading.Timer(GUARD, process.kill)
    guard.start()
    try:
        for line in process.stdout:
            if words in line:
                return
        raise AssertionError(f"{words!r} is not in the output")
    finally:
        guard.cancel()
