"""A lock beside the data: an flock on a file of its own, shared by the file and the SQLite store.

* The kernel lets go when its holder dies, so there is no lease to guess. That is also why a crash is
  noticed at once, while the dead one's request may still be on the wire: so a holder leaves a *mark*
  in the lock file, which only a clean end removes.
* flock, not lockf: POSIX record locks are lost when any handle of the file is closed.
* Never a blocking flock: in an abandoned thread it takes the lock later, and leaks it.
* Lock files are never unlinked. If somebody else does it, the inode is another after locking, and we
  try again.
* Parent and child share an flock after a fork, so the child closes its copy (it must not unlock:
  LOCK_UN would free the parent's). For the same reason a release unlocks before it closes: a
  subprocess that has not called exec yet may hold a copy.

* A claim whose event loop was closed in mid-claim is ended by nobody, but its process lives on, and
  with it the lock. So a lock knows the loop of its claim, and whoever finds it in his way, in this
  process, lets go of it. The mark stays: that was no clean end.

Everything here runs in the store's worker thread, except letting go of such a lock, which any thread
may do (hence `_mutex`), and the closing after a fork.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .slots import Slot
from .files import open_private
from .worker import Busy

try:
    import fcntl
except ImportError:  # no POSIX: the stores say so when they are made
    fcntl = None  # type: ignore[assignment]

__all__ = ["Mark", "SidecarLock", "exclusive", "stat_signature", "release_orphaned", "lock_name", "try_lock"]

_MARK_BYTES = 128
_RESERVE = 64 * 1024  # bytes; a record is a few KiB, and SQLite writes it in whole pages, twice
_BLOCK = 4096
_LONG_AGO = 86_400.0  # seconds; no request is on the wire for a day


@dataclass(frozen=True, slots=True)
class Mark:
    """What a holder leaves in the lock file: when it began (boot clock), and the version it will write.

    With the version, a holder that was killed after its commit is told from one killed before it.
    """

    began: float
    version: str

    def age(self, now: float) -> float:
        """Seconds since the holder began. One that begins in the future began before a reboot."""
        return now - self.began if self.began <= now else _LONG_AGO

    def encode(self) -> bytes:
        """One line of text."""
        return f"{self.began!r} {self.version}\n".encode().ljust(_MARK_BYTES, b"\0")

    @classmethod
    def decode(cls, line: bytes, now: float) -> Mark | None:
        """The mark, or None if there is none. One that cannot be read counts as set just now."""
        text = line.rstrip(b"\0").decode("ascii", "replace")
        if not text:
            return None
        began, _, version = text.strip().partition(" ")
        try:
            return cls(float(began), version)
        except ValueError:
            return cls(now, "")


class SidecarLock:
    """A lock that is held, until `release` or the end of this process. Then its `place` is released, too."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.slot: Slot | None = None
        self._mutex = threading.RLock()

    @property
    def held(self) -> bool:
        """Whether this process holds it. Not in a child that was forked meanwhile."""
        return self._fd >= 0

    @property
    def orphaned(self) -> bool:
        """Whether it is held by a claim whose event loop is closed."""
        return self.held and self.slot is not None and self.slot.loop.is_closed()

    def mark(self, now: float) -> Mark | None:
        """What an earlier holder left behind."""
        return Mark.decode(os.pread(self._fd, _MARK_BYTES, 0), now)

    def begin(self, mark: Mark) -> None:
        """Leave a mark, and reserve the space that a commit will need.

        A lock file can still be made on a full disk; whether the record will fit must be known
        before the grant is spent. Not synced: after a power failure nobody's request is on the wire.
        """
        try:
            _allocate(self._fd, _RESERVE)
            os.pwrite(self._fd, mark.encode(), 0)
        except OSError:
            self.free_reserve()
            raise

    def free_reserve(self) -> None:
        """Free the reserved space, for the write that it was reserved for. The mark stays.

        If this fails there may be room all the same, which the write will find out.
        """
        with self._mutex, contextlib.suppress(OSError):
            if self.held:
                os.ftruncate(self._fd, min(_MARK_BYTES, os.fstat(self._fd).st_size))

    def release(self, mark: Mark | None = None) -> None:
        """Let go. The file then holds `mark`, or nothing."""
        with self._mutex:
            if not self.held:
                return
            try:
                # If this fails, the next holder takes us for interrupted: too careful, never wrong.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, 0)
                    if mark is not None:
                        os.pwrite(self._fd, mark.encode(), 0)
            finally:
                self.unlock()

    def unlock(self) -> None:
        """Let go, and leave the file as it is."""
        with self._mutex:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                try:
                    fcntl.flock(fd, fcntl.LOCK_UN)
                finally:
                    os.close(fd)
                    self._release_slot()

    def _release_slot(self) -> None:
        if self.slot is not None:
            self.slot.release()

    def drop_after_fork(self) -> None:
        """Close the child's copy, which leaves the parent's lock alone."""
        self._mutex = threading.RLock()  # a thread that had the old one stayed in the parent
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # Nobody can end this any more (its task was destroyed). The mark stays: that was no clean end.
        if self._fd >= 0:
            os.close(self._fd)
            self._release_slot()

    def __repr__(self) -> str:
        return f"<SidecarLock {'held' if self.held else 'released'}>"


def lock_name(key: str, suffix: str) -> str:
    """A file name for a key: any text is a key, and no file system takes any text for a name."""
    return hashlib.sha256(key.encode()).hexdigest() + suffix


def try_lock(path: Path) -> SidecarLock | None:
    """The lock, or None if somebody else holds it. Never waits. Raises `OSError`."""
    while True:
        fd = open_private(path, os.O_RDWR | os.O_CREAT)
        try:
            inode = _inode(fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.lstat()):
                    lock = _held[inode] = SidecarLock(fd)
                    return lock
        except BlockingIOError:
            os.close(fd)
            holder = _held.get(inode)
            if holder is None or not holder.orphaned:
                return None
            holder.unlock()
            continue
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # somebody removed or replaced the file: ours locks nobody out


def stat_signature(path: Path) -> tuple[int, int] | None:
    """Something that every release changes. None if there is no such file, or its holder is committing.

    He has given back his reserve then, and wants the processor more than those do who wait for him.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return None if status.st_size == _MARK_BYTES else (status.st_size, status.st_mtime_ns)


def release_orphaned() -> None:
    """Let go of every lock whose claim can never be ended, because its event loop is closed."""
    for lock in _alive():
        if lock.orphaned:
            lock.unlock()


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock for a moment. Raises `Busy` while somebody else does."""
    lock = try_lock(path)
    if lock is None:
        raise Busy(f"Another process is writing ({path} is locked).")
    try:
        yield
    finally:
        lock.unlock()


def _allocate(fd: int, size: int) -> None:
    # Behind the first block, which the mark is written to: ext4 (Linux 6.18) complains in the kernel's
    # log when a block that was only allocated is written, and the rest of its extent cut off.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, _BLOCK, size)
    else:
        os.pwrite(fd, bytes(size), _BLOCK)


# The hook of a fork cannot be taken back, and concerns every lock of the process. No job runs while
# the process forks (see `worker`), so none of these is half taken.
_held: weakref.WeakValueDictionary[tuple[int, int], SidecarLock] = weakref.WeakValueDictionary()


def _inode(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _alive() -> list[SidecarLock]:
    # By the references, which are copied in one step: other threads take locks meanwhile.
    return [lock for reference in _held.valuerefs() if (lock := reference()) is not None]


def _after_fork_in_child() -> None:
    for lock in _alive():
        lock.drop_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
