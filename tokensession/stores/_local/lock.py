"""A lock beside the data: an flock on a file of its own, used by the file store and the SQLite store.

* The kernel releases the lock when its holder dies, so there is no lease to guess. But then the dead
  holder's token request may still be on the way. So a holder that is about to send one leaves a *mark* in
  the lock file, which only a clean end removes.
* flock, not lockf: POSIX record locks are lost when any descriptor of the file is closed.
* Never a blocking flock: in an abandoned thread it gets the lock later, and leaks it.
* Lock files are never unlinked: another process may have opened one and be about to lock it. So they stay
  when their record is deleted, empty, two per key that was ever claimed. When no process uses the store, you
  may remove them. If someone else unlinks one, its inode differs after locking, and we try again.
* Parent and child share an flock after a fork, so the child closes its copy. (It must not unlock: LOCK_UN
  would free the parent's lock.) For the same reason a release unlocks before it closes: a subprocess that
  has not called exec yet may have a copy.
* A claim whose event loop was closed cannot be ended, but its process lives on and keeps the lock. So a lock
  knows its claim's loop, and the next caller in this process that needs the lock unlocks it. The mark stays,
  because that was not a clean end.

The file of a lock, while it is held::

    0     the mark: when a holder's token request was sent. It may still be that of an earlier holder
    128   the holder: since when it has the lock, its process id and its host, for the error of a waiter
    4096  space that is reserved for the commit

A clean end empties the file. If an earlier holder's mark is not resolved, it stays.

Everything here runs in the store's worker thread, except for unlocking such an orphaned lock, which any
thread may do (hence `_mutex`), and closing after a fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import StoreUnavailable
from . import fork
from .files import UNSUPPORTED, open_private
from .worker import Busy

try:
    import fcntl
except ImportError:  # not POSIX: making a store raises an error
    fcntl = None  # type: ignore[assignment]

__all__ = ["HeldElsewhere", "Holder", "Mark", "SidecarLock", "exclusive", "lock_name", "shared", "try_lock"]

_MARK_BYTES = 128
_HOLDER_BYTES = 384
_HEADER_BYTES = _MARK_BYTES + _HOLDER_BYTES
_RESERVE = 64 * 1024  # bytes; a record is a few KiB, and SQLite writes it in whole pages, twice
_BLOCK = 4096
_LONG_AGO = 86_400.0  # seconds; no token request takes a day
_ATTEMPTS = 100  # a lock file is replaced by accident, if at all
_REPLACED = (
    "Use a directory on a local file system (others may change a file's inode number at any time), and let "
    "no other program replace or remove files in it."
)


@dataclass(frozen=True, slots=True)
class Mark:
    """What a holder leaves in the lock file when its token request is about to leave.

    `sent`: when (boot clock). `version`: what it will store; that tells a holder that was killed after its
    commit from one that was killed before it. `listening`: how long it waits for the response, in seconds.
    """

    sent: float
    version: str
    listening: float = 0.0

    def age(self, now: float) -> float:
        """Seconds since it was left. If that is in the future, it was before a reboot: a day."""
        return now - self.sent if self.sent <= now else _LONG_AGO

    def encode(self) -> bytes:
        """One line of text, padded."""
        return _line(_MARK_BYTES, self.sent, self.version, self.listening)

    @classmethod
    def decode(cls, line: bytes, now: float) -> Mark | None:
        """The mark, or None if there is none. An unreadable mark counts as left just now."""
        text = line.rstrip(b"\0").decode("ascii", "replace")
        if not text:
            return None
        # Older versions wrote no `listening`, and left the mark when they took the claim: that counts too.
        sent, version, listening, *_ = [*text.split(), "", "", ""]
        try:
            return cls(float(sent), version, float(listening or 0))
        except ValueError:
            return cls(now, "")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock, since when (boot clock)."""

    since: float
    pid: int
    host: str

    def encode(self) -> bytes:
        """One line of text, padded."""
        return _line(_HOLDER_BYTES, self.since, self.pid, self.host)

    @classmethod
    def decode(cls, line: bytes) -> Holder | None:
        """The holder, or None if it is not known. It is read without the lock, so it may be half written."""
        try:
            since, pid, host = line.rstrip(b"\0").decode("ascii").split()
            return cls(float(since), int(pid), host)
        except ValueError:
            return None

    def describe(self, now: float) -> str:
        """For an error: "process 4711 on web-1, for 3.2 s"."""
        return f"process {self.pid} on {self.host}, for {max(now - self.since, 0):.1f} s"


def _line(size: int, *words: object) -> bytes:
    text = " ".join(map(str, words)) + "\n"
    return text.encode("ascii", "replace")[:size].ljust(size, b"\0")


@dataclass(frozen=True, slots=True)
class HeldElsewhere:
    """Someone else has the lock. `size` is the lock file's at that time."""

    path: Path
    size: int
    holder: Holder | None

    @property
    def changed(self) -> bool:
        """Whether the lock has been released since.

        Each claim gives the file another size, and its end gives it one that no claim has. (A time would
        also change when the holder leaves its mark, and then all waiters would look for nothing.) A holder
        that is committing needs the processor more than its waiters do, so that does not count yet. The size
        of an ended claim always counts: it may also have been there between a claim's lock and its begin.
        """
        try:
            size = os.lstat(self.path).st_size
        except OSError:
            return False
        return size < _HEADER_BYTES or size not in (self.size, _HEADER_BYTES)


class SidecarLock(fork.AtFork):
    """A lock, `locked` until `release` or the end of this process. `loop` is that of its claim, if any."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self.loop: asyncio.AbstractEventLoop | None = None
        self._mutex = threading.RLock()
        fork.register(self)

    @property
    def locked(self) -> bool:
        """Whether this process has the lock. False in a forked child."""
        return self._fd >= 0

    @property
    def orphaned(self) -> bool:
        """Whether it is locked by a claim whose event loop is closed."""
        return self.locked and self.loop is not None and self.loop.is_closed()

    def mark(self, now: float) -> Mark | None:
        """The mark that an earlier holder left."""
        return Mark.decode(os.pread(self._fd, _MARK_BYTES, 0), now)

    def begin(self, holder: Holder, nonce: int) -> None:
        """Say who holds the lock, and reserve the disk space that a commit needs.

        A lock file can still be created on a full disk. Whether the record will fit must be known before a
        refresh token is spent. An earlier holder's mark stays. `nonce`, from 0 to 4095, makes the file's
        size: see `HeldElsewhere.changed`.
        """
        try:
            self.free_reserve()  # that of a killed holder
            _allocate(self._fd, _RESERVE + nonce)
            os.pwrite(self._fd, holder.encode(), _MARK_BYTES)
        except OSError:
            self.free_reserve()
            raise

    def leave_mark(self, mark: Mark) -> None:
        """Leave a mark: the token request is about to leave.

        Not synced, because a power failure ends the request too, and the mark need not outlive that. Raises
        `StoreUnavailable` if the lock was released, or its file removed: then another holder may be sending.
        """
        with self._mutex:
            if not self.locked:
                raise StoreUnavailable(
                    "This claim has ended, so no token request may be sent under it.",
                    todo="Claim the key again.",
                )
            if not self._is_ours():
                raise StoreUnavailable(
                    f"{self.path} is not the file any more that this claim has locked, so no token request "
                    "may be sent under it.",
                    todo=_REPLACED,
                )
            os.pwrite(self._fd, mark.encode(), 0)

    def _is_ours(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self.locked and os.path.samestat(os.fstat(self._fd), self.path.lstat())
        return False

    def free_reserve(self) -> None:
        """Free the reserved space, for the write that needs it. The mark stays.

        Ignores a failure: there may be enough space anyway, and the write will find out.
        """
        with self._mutex, contextlib.suppress(OSError):
            if self.locked and os.fstat(self._fd).st_size > _HEADER_BYTES:
                os.ftruncate(self._fd, _HEADER_BYTES)

    def release(self, mark: Mark | None = None) -> None:
        """Empty the file, or leave nothing but `mark` in it, and unlock."""
        with self._mutex:
            if not self.locked:
                return
            try:
                # If this fails, the next holder may take us for interrupted, which is the safe mistake.
                with contextlib.suppress(OSError):
                    if mark is not None:  # first, so that a kill in between does not lose it
                        os.pwrite(self._fd, mark.encode(), 0)
                    os.ftruncate(self._fd, 0 if mark is None else _MARK_BYTES)
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

    def after_fork_in_child(self) -> None:
        """Close the child's copy. The parent stays locked."""
        self._mutex = threading.RLock()  # a thread of the parent may have the old one
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # The claim was collected without an end (its task was destroyed). A mark stays.
        if self._fd >= 0:
            os.close(self._fd)

    def __repr__(self) -> str:
        return f"<SidecarLock {'locked' if self.locked else 'unlocked'}>"


def lock_name(key: str, suffix: str) -> str:
    """A file name for a key. Any text is a key, and no file system accepts every text as a name."""
    return hashlib.sha256(key.encode()).hexdigest() + suffix


def try_lock(path: Path, *, shared: bool = False) -> SidecarLock | HeldElsewhere:
    """The lock, or who has it. Never waits. Raises `OSError`.

    `shared`: with others that share it. The file must exist, and may be read-only.
    """
    for _ in range(_ATTEMPTS):
        fd = open_private(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT)
        with contextlib.ExitStack() as unless_locked:
            unless_locked.callback(os.close, fd)
            status = os.fstat(fd)  # before locking, so that any later release is noticed
            inode = status.st_dev, status.st_ino
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                ours = _locks.get(inode)
                if ours is None or not ours.orphaned:
                    holder = Holder.decode(os.pread(fd, _HOLDER_BYTES, _MARK_BYTES))
                    return HeldElsewhere(path, status.st_size, holder)
                ours.unlock()
                continue
            except OSError as error:
                if error.errno not in (*UNSUPPORTED, errno.ENOLCK):
                    raise
                raise StoreUnavailable(
                    f"{path} is on a file system that cannot lock it: {error.strerror}.",
                    todo="Use a directory on a local file system. Or use a store on a server.",
                ) from error
            # If the file was removed or replaced since, locking it excludes no one.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(status, path.lstat()):
                    unless_locked.pop_all()
                    lock = _locks[inode] = SidecarLock(path, fd)
                    return lock
    raise StoreUnavailable(
        f"{path} was never the file that had just been opened, so it cannot be locked.",
        todo=_REPLACED,
    )


@contextlib.contextmanager
def exclusive(path: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock for a moment. Raises `Busy` if another holder has it."""
    with _held(try_lock(path), path, patience):
        yield


@contextlib.contextmanager
def shared(path: Path) -> Iterator[None]:
    """Share the lock for a moment. Raises `Busy` if another holder has it alone."""
    with _held(try_lock(path, shared=True), path, 0.0):
        yield


@contextlib.contextmanager
def _held(lock: SidecarLock | HeldElsewhere, path: Path, patience: float) -> Iterator[None]:
    if isinstance(lock, HeldElsewhere):
        raise Busy(path, patience=patience)
    try:
        yield
    finally:
        lock.unlock()


def _allocate(fd: int, size: int) -> None:
    # Behind the first block, which holds the mark: ext4 (Linux 6.18) complains in the kernel's log when a
    # block that was only allocated is written and the rest of its extent is cut off.
    try:
        os.posix_fallocate(fd, _BLOCK, size)
    except (AttributeError, OSError) as error:
        # macOS has no such function, and not every file system can do it (ZFS, or NFS with musl). One that
        # compresses or copies on write then reserves nothing, and a full disk is found out by the commit.
        if isinstance(error, OSError) and error.errno not in UNSUPPORTED:
            raise
        end = _BLOCK + size
        while (start := end - size) < end:  # on a disk that is almost full, less is written than was asked
            size -= os.pwrite(fd, bytes(size), start)


# Finds the orphaned lock that keeps others from this file.
_locks: weakref.WeakValueDictionary[tuple[int, int], SidecarLock] = weakref.WeakValueDictionary()
