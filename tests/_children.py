"""The children of a process of ours, watched beyond its end."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from types import TracebackType
from typing import Self


class Children:
    """The processes whose parent this is, at this moment.

    Each is held by a pidfd, which is no other process's when that number is used again, and which tells
    of its end although it is not our child.
    """

    def __init__(self, parent: int) -> None:
        self.pids = [pid for pid in _processes() if _parent(pid) == parent]
        self._handles = {pid: os.pidfd_open(pid) for pid in self.pids}

    def send_signal(self, pid: int, number: int) -> None:
        signal.pidfd_send_signal(self._handles[pid], number)

    def all_gone(self, *, guard: float) -> bool:
        """Wait until each of them has ended; False if one is still there after `guard` seconds."""
        for handle in self._handles.values():
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            if not poll.poll(guard * 1000):
                return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles.values():
            os.close(handle)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended since
        return None
    return int(stat.rpartition(")")[2].split()[1])
