"""Real processes of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

GUARD = 60.0  # seconds; an upper bound for a hang, never waited for


def start(*arguments: str, tmp: Path) -> subprocess.Popen[str]:
    """`tokensession …` with plain output into a pipe, and its temporary files under `tmp`."""
    program = "from tokensession.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp)},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, the rest of stdout, and stderr.

    Not `communicate`: that loses what a `readline` before it has buffered. What is said on stderr
    fits into its pipe.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    guard = threading.Timer(GUARD, process.kill)
    guard.start()
    try:
        with process.stdout, process.stderr:
            out, err = process.stdout.read(), process.stderr.read()
        return process.wait(), out, err
    finally:
        guard.cancel()
