"""Real processes of the command line, and what becomes of their children."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

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


def children(parent: int) -> list[int]:
    """The process ids whose parent this is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


class Watch:
    """Notices the end of processes that are not our children, without polling."""

    def __init__(self, pids: list[int]) -> None:
        self._handles = {os.pidfd_open(pid): pid for pid in pids}

    def all_gone(self) -> bool:
        """Wait until every one has ended; False if one is still there after the guard."""
        poll = select.poll()
        for handle in self._handles:
            poll.register(handle, select.POLLIN)
        left = dict(self._handles)
        while left:
            ended: list[Any] = poll.poll(GUARD * 1000)
            if not ended:
                return False
            for handle, _ in ended:
                poll.unregister(handle)
                del left[handle]
        return True

    def close(self) -> None:
        for handle in self._handles:
            os.close(handle)
