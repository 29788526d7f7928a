"""Commands as real processes: start them, read what they print, and watch their children."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

TIMEOUT = 60.0  # seconds; only a command that hangs takes that long


@contextlib.contextmanager
def running(*arguments: str, tmp: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `python …` with pipes for its output and `tmp` for its temporary files. Killed at the end."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp)},
    )
    timer = threading.Timer(TIMEOUT, process.kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read its output up to a line with these words, and return that line."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"it ended before it printed {words!r}")


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait until it ends. Returns its exit status, the rest of its output, and its stderr.

    `communicate` would lose what an earlier `readline` has buffered. Its stderr must fit into a pipe.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    return process.wait(), out, err


class Children:
    """The processes that have this parent now. You can wait for their end even if the parent ends first.

    A pidfd for each still means the same process when its number is used again.
    """

    def __init__(self, parent: int) -> None:
        numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        self.pids = [pid for pid in numbers if _parent(pid) == parent]
        self._handles = {pid: os.pidfd_open(pid) for pid in self.pids}

    def send_signal(self, pid: int, number: int) -> None:
        signal.pidfd_send_signal(self._handles[pid], number)

    def all_gone(self, *, timeout: float) -> bool:
        """Wait until all have ended. False if one is still there after `timeout` seconds."""
        for handle in self._handles.values():
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            if not poll.poll(timeout * 1000):
                return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles.values():
            os.close(handle)


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended since
        return None
    return int(stat.rpartition(")")[2].split()[1])
