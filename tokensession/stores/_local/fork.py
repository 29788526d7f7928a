"""Forks of this process: the one module with hooks for them.

`os.fork` copies one thread only. In the child, a lock that another thread held stays locked, what it was
writing is half written, and every open file is shared with the parent. So, for each object that registers:

1. Before the fork, it gets ready: a worker waits for its running job, and closes what a child must not have.
2. In the parent, it goes on.
3. In the child, it forgets what belongs to the parent: its thread, its callers, its locks.

Why a fork waits for running jobs, and does not just forget them:

* An SQLite connection must be closed before the fork, and only between two jobs. In the child, SQLite takes
  the locks of an inherited connection for its own, and its mutexes stay locked if a thread was inside it.
* A job may have locked a file that is not registered yet. The child would keep that lock.

A job takes milliseconds, so that is how long a fork waits. `_LONGEST_WAIT` is for one that is stuck in the
kernel (a hung mount): then the fork goes on, and the child forgets the worker as it is.

An object that only has to know whether it is in the process that made it compares `os.getpid()`.
"""

from __future__ import annotations

import os
import threading
import weakref

from ...clock import SystemClock

__all__ = ["AtFork", "register"]

_LONGEST_WAIT = 15.0  # seconds, for all objects together; longer than any job that is not stuck


class AtFork:
    """Base class of what registers here. The methods run in the forking thread, and raise nothing."""

    def before_fork(self, seconds: float) -> None:
        """Get ready. Take at most this many seconds."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent. There is no other thread."""


# A fork concerns the whole process, and its hooks cannot be removed: the only module globals.
_registered: weakref.WeakValueDictionary[int, AtFork] = weakref.WeakValueDictionary()
_forking = (
    threading.RLock()
)  # threads may fork at the same time; this one forks alone, from first to last hook


def register(member: AtFork) -> None:
    """Call its methods at each fork, until it is collected."""
    _registered[id(member)] = member


def _members() -> list[AtFork]:
    # The references are copied in one step, because other threads register at the same time.
    return [member for reference in _registered.valuerefs() if (member := reference()) is not None]


def _before() -> None:
    _forking.acquire()
    until = SystemClock.boot() + _LONGEST_WAIT
    for member in _members():
        member.before_fork(max(0.0, until - SystemClock.boot()))


def _after_in_parent() -> None:
    try:
        for member in _members():
            member.after_fork_in_parent()
    finally:
        _forking.release()


def _after_in_child() -> None:
    try:
        for member in _members():
            member.after_fork_in_child()
    finally:
        _forking.release()  # it is the forking thread's, which is the one that is here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
