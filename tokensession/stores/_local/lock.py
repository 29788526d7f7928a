"""A lock beside the data: an flock on a file of its own, used by the file store and the SQLite store.

* The kernel releases the lock when its holder dies, so there is no lease to guess. But then the dead
  holder's token request may still be on the way. So a holder leaves a *mark* in the lock file, which only a
  clean end removes.
* flock, not lockf: POSIX record locks are lost when any descriptor of the file is closed.
* Never a blocking flock: in an abandoned thread it gets the lock later, and leaks it.
* Lock files are never unlinked. If someone else unlinks one, its inode differs after locking, and we try
  again.
* Parent and child share an flock after a fork, so the child closes its copy. (It must not unlock: LOCK_UN
  would free the parent's lock.) For the same reason a release unlocks before it closes: a subprocess that
  has not called exec yet may have a copy.
* A claim whose event loop was closed cannot be ended, but its process lives on and keeps the lock. So a lock
  knows its claim's loop, and the next caller in this process that needs the lock unlocks it. The mark stays,
  because that was not a clean end.

Everything here runs in the store's worker thread, except for unlocking such an orphaned lock, which any
thread may do (hence `_mutex`), and closing after a fork.
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

from .files import open_private
from .slots import Slot
from .worker import Busy

try:
    import fcntl
except ImportError:  # not POSIX: making a store raises an error
    fcntl = None  # type: ignore[assignment]

__all__ = ["Mark", "SidecarLock", "exclusive", "lock_name", "release_orphaned", "stat_signature", "try_lock"]

_MARK_BYTES = 128
_RESERVE = 64 * 1024  # bytes; a record is a few KiB, and SQLite writes it in whole pages, twice
_BLOCK = 4096
_LONG_AGO = 86_400.0  # seconds; no token request takes a day


@dataclass(frozen=True, slots=True)
class Mark:
    """What a holder leaves in the lock file: when it began (boot clock), and the version it will write.

    The version tells a holder that was killed after its commit from one that was killed before it.
    """

    began: float
    version: str

    def age(self, now: float) -> float:
        """Seconds since the holder began. If that is in the future, it was before a reboot: a day."""
        return now - self.began if self.began <= now else _LONG_AGO

    def encode(self) -> bytes:
        """One line of text, padded."""
        return f"{self.began!r} {self.version}\n".encode().ljust(_MARK_BYTES, b"\0")

    @classmethod
    def decode(cls, line: bytes, now: float) -> Mark | None:
        """The mark, or None if there is none. An unreadable mark counts as left just now."""
        text = line.rstrip(b"\0").decode("ascii", "replace")
        if not text:
            return None
        began, _, version = text.strip().partition(" ")
        try:
            return cls(float(began), version)
        except ValueError:
            return cls(now, "")


class SidecarLock:
    """A lock, `locked` until `release` or the end of this process. Unlocking it releases its slot too."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.slot: Slot | None = None
        self._mutex = threading.RLock()

    @property
    def locked(self) -> bool:
        """Whether this process has the lock. False in a forked child."""
        return self._fd >= 0

    @property
    def orphaned(self) -> bool:
        """Whether it is locked by a claim whose event loop is closed."""
        return self.locked and self.slot is not None and self.slot.loop.is_closed()

    def mark(self, now: float) -> Mark | None:
        """The mark that an earlier holder left."""
        return Mark.decode(os.pread(self._fd, _MARK_BYTES, 0), now)

    def begin(self, mark: Mark) -> None:
        """Leave a mark, and reserve the disk space that a commit needs.

        A lock file can still be created on a full disk. Whether the record will fit must be known before a
        refresh token is spent. Not synced: a power failure ends every token request too.
        """
        try:
            _allocate(self._fd, _RESERVE)
            os.pwrite(self._fd, mark.encode(), 0)
        except OSError:
            self.free_reserve()
            raise

    def free_reserve(self) -> None:
        """Free the reserved space, for the write that needs it. The mark stays.

        Ignores a failure: there may be enough space anyway, and the write will find out.
        """
        with self._mutex, contextlib.suppress(OSError):
            if self.locked:
                os.ftruncate(self._fd, min(_MARK_BYTES, os.fstat(self._fd).st_size))

    def release(self, mark: Mark | None = None) -> None:
        """Empty the file, or leave `mark` in it, and unlock."""
        with self._mutex:
            if not self.locked:
                return
            try:
                # If this fails, the next holder takes us for interrupted, which is the safe mistake.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, 0)
                    if mark is not None:
                        os.pwrite(self._fd, mark.encode(), 0)
            finally:
                self.unlock()

    def unlock(self) -> None:
        """Unlock, and leave the file as it is."""
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
        """Close the child's copy. The parent stays locked."""
        self._mutex = threading.RLock()  # a thread of the parent may have the old one
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # The claim was collected without an end (its task was destroyed). The mark stays.
        if self._fd >= 0:
            os.close(self._fd)
            self._release_slot()

    def __repr__(self) -> str:
        return f"<SidecarLock {'locked' if self.locked else 'unlocked'}>"


def lock_name(key: str, suffix: str) -> str:
    """A file name for a key. Any text is a key, and no file system accepts every text as a name."""
    return hashlib.sha256(key.encode()).hexdigest() + suffix


def try_lock(path: Path) -> SidecarLock | None:
    """The lock, or None if another holder has it. Never waits. Raises `OSError`."""
    while True:
        fd = open_private(path, os.O_RDWR | os.O_CREAT)
        try:
            inode = _inode(fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.lstat()):
                    lock = _locks[inode] = SidecarLock(fd)
                    return lock
        except BlockingIOError:
            os.close(fd)
            holder = _locks.get(inode)
            if holder is None or not holder.orphaned:
                return None
            holder.unlock()
            continue
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the file was removed or replaced since, so locking it excludes no one


def stat_signature(path: Path) -> tuple[int, int] | None:
    """A value that changes with every release. None if there is no such file, or its holder is committing.

    A committing holder has freed its reserve, and needs the processor more than its waiters do.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return None if status.st_size == _MARK_BYTES else (status.st_size, status.st_mtime_ns)


def release_orphaned() -> None:
    """Unlock every lock whose claim can never be ended, because its event loop is closed."""
    for lock in _live_locks():
        if lock.orphaned:
            lock.unlock()


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock for a moment. Raises `Busy` if another holder has it."""
    lock = try_lock(path)
    if lock is None:
        raise Busy(f"Another process is writing ({path} is locked).")
    try:
        yield
    finally:
        lock.unlock()


def _allocate(fd: int, size: int) -> None:
    # Behind the first block, which holds the mark: ext4 (Linux 6.18) complains in the kernel's log when a
    # block that was only allocated is written and the rest of its extent is cut off.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, _BLOCK, size)
    else:
        os.pwrite(fd, bytes(size), _BLOCK)


# The hook of a fork cannot be removed, and concerns every lock of the process. No job runs while the
# process forks (see `worker`), so no lock is half taken.
_locks: weakref.WeakValueDictionary[tuple[int, int], SidecarLock] = weakref.WeakValueDictionary()


def _inode(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _live_locks() -> list[SidecarLock]:
    # The references are copied in one step, because other threads take locks at the same time.
    return [lock for reference in _locks.valuerefs() if (lock := reference()) is not None]


def _after_fork_in_child() -> None:
    for lock in _live_locks():
        lock.drop_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
