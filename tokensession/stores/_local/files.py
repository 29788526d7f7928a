"""Files and directories that are nobody else's business. POSIX only.

Everything here runs in a store's worker thread. `translated` is the one seam at which an `OSError`
gets its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigurationError, StoreInsecure, StoreUnavailable

__all__ = [
    "absolute",
    "check_directory",
    "check_file",
    "check_writable",
    "make_directory",
    "open_private",
    "read_private",
    "require_posix",
    "sync_directory",
    "map_os_errors",
]

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def require_posix(what: str) -> None:
    """Raises `ConfigurationError` where there is no flock."""
    try:
        import fcntl  # noqa: F401 - its presence is the question
    except ImportError:
        raise ConfigurationError(
            f"{what} needs POSIX file locks, and this platform has none.",
            todo="Use MemoryStore, or a store on a server.",
        ) from None


def absolute(what: str, path: str | os.PathLike[str]) -> Path:
    """The path that `what` was given, which a later chdir does not change. Raises if it is none."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{what} is given a path, a str or a pathlib.Path, not {type(path).__name__}")
    if not os.fspath(path):
        raise ConfigurationError(f"{what} was given an empty path.", todo="Say where to keep the tokens.")
    return Path(path).absolute()


@contextlib.contextmanager
def map_os_errors(what: str, path: Path) -> Iterator[None]:
    """Give an `OSError` its name: `what` could not be done with `path`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _insecure(path, "is a symbolic link") from None
        reason = error.strerror or type(error).__name__
        raise StoreUnavailable(
            f"{path} could not be {what}: {reason}.",
            todo="Check that its directory exists and is writable, and that there is space left.",
        ) from error


def check_file(path: Path, status: os.stat_result) -> None:
    """Raises `StoreInsecure` unless this is a regular file of ours that nobody else can open."""
    if stat.S_ISLNK(status.st_mode):
        raise _insecure(path, "is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise _insecure(path, "is no regular file")
    _check(path, status, "600")


def check_directory(path: Path) -> bool:
    """Whether it is there. Raises `StoreInsecure` unless it is ours and nobody else may enter it."""
    try:
        status = path.stat()  # a link is followed: the directory it leads to is the one that counts
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        raise _insecure(path, "is no directory")
    _check(path, status, "700")
    return True


def _check(path: Path, status: os.stat_result, mode: str) -> None:
    if status.st_uid != os.geteuid():
        raise _insecure(path, f"belongs to user {status.st_uid}, not to user {os.geteuid()}")
    if status.st_mode & _OTHERS:
        raise StoreInsecure(
            f"{path} has mode {stat.S_IMODE(status.st_mode):o}: others have access to it.",
            todo=f"Run chmod {mode} on it. Sign in again if somebody may have read it.",
        )


def _insecure(path: Path, why: str) -> StoreInsecure:
    return StoreInsecure(f"{path} {why}.", todo="Look at who put it there; then move it away.")


def make_directory(path: Path) -> None:
    """Make sure there is such a directory, mode 0700. Its parent must be there."""
    if check_directory(path):
        return
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass  # another process was faster
    else:
        if stat.S_IMODE(path.stat().st_mode) != 0o700:
            path.chmod(0o700)  # the umask took from the owner, too
    check_directory(path)


def check_writable(path: Path) -> None:
    """Raises `PermissionError` or its like unless files can be made in this directory now."""
    effective = os.access in os.supports_effective_ids
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=effective):
        raise PermissionError(errno.EACCES, "its directory is not writable")


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a file that is ours alone, checked; whatever the umask, a new one has mode 0600.

    `O_NONBLOCK` changes nothing about a file, and keeps us from waiting for somebody's named pipe.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except PermissionError:
        if not flags & os.O_CREAT or not _restore_owner_access(path):
            raise
        fd = os.open(path, flags, 0o600)
    try:
        status = os.fstat(fd)
        if flags & os.O_CREAT and status.st_mode & 0o600 != 0o600:
            os.fchmod(fd, 0o600)  # an umask like 0o777 left its owner without access
        check_file(path, status)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _restore_owner_access(path: Path) -> bool:
    """Give its owner access to a file that a killed process made under an umask like 0o777."""
    status = path.lstat()
    check_file(path, status)
    if status.st_mode & 0o600 == 0o600:
        return False
    path.chmod(0o600)
    return True


def read_private(path: Path) -> bytes | None:
    """All of a file that is ours alone, or None if there is none."""
    try:
        fd = open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(fd, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor, which no Path can open
        return file.read()


def sync_directory(path: Path) -> None:
    """Make the names in this directory durable: those that were added, and those that went."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
