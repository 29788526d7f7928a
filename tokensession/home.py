"""Which event loop and process a source or session belongs to, and what a fork leaves behind."""

from __future__ import annotations

import asyncio
import os

__all__ = ["THIS_PROCESS", "Home", "parents"]


class _Process:
    """The running process: its id. Asking for it is a system call, so it is only asked for after a fork."""

    __slots__ = ("pid",)
    pid: int

    def __init__(self) -> None:
        self.begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.begin)

    def begin(self) -> None:
        """Be this process."""
        self.pid = os.getpid()


THIS_PROCESS = _Process()


class Home:
    """The event loop and the process that a source or session is used in.

    Its loop may change while that does not run: a closed one is followed by the next.
    """

    __slots__ = ("_what", "loop", "pid")

    def __init__(self, what: str) -> None:
        self._what = what
        self.loop: asyncio.AbstractEventLoop | None = None
        """None before it is first used, and after closing."""
        self.pid: int = THIS_PROCESS.pid

    @property
    def forked(self) -> bool:
        """Whether this is a forked child of the process that it was used in."""
        return self.pid != THIS_PROCESS.pid

    def check(self) -> asyncio.AbstractEventLoop:
        """The running event loop, if it may be used there. Raises RuntimeError otherwise."""
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            if self.loop is None or not self.forked:
                raise
            running = None
        if running is None or (running is self.loop and self.forked):
            raise RuntimeError(
                f"This process was forked, and uses this {self._what} in the event loop of its parent: the "
                "two would disturb each other. Nothing was done. Start an event loop in the child, for "
                "example with asyncio.run."
            )
        if running is not self.loop and self.loop is not None and not self.forked and self.loop.is_running():
            raise RuntimeError(
                f"This {self._what} is in use in another running event loop. Nothing was done. Make one for "
                "each event loop, and so for each thread, over a store that they can share, such as "
                "SQLiteStore."
            )
        return running

    def move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Be used in this loop and process from now on."""
        self.loop, self.pid = loop, THIS_PROCESS.pid


parents: list[object] = []
"""What a fork has copied from the parent and must never be closed or collected here.

Both would change the epoll descriptor that parent and child share, and the parent would wait forever.
"""
