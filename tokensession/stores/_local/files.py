"""Private files and directories: ours, and closed to other users. POSIX only.

Everything here runs in a store's worker thread. `map_os_errors` is the one place that turns an `OSError`
into a store error.
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
    "UNSUPPORTED",
    "absolute",
    "check_directory",
    "check_file",
    "check_writable",
    "make_directory",
    "map_os_errors",
    "mount_advice",
    "open_private",
    "read_private",
    "require_posix",
    "sync_directory",
]

UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""The error numbers of a file system that cannot do what it was asked."""
# Those of one that cannot sync a directory (cifs, some FUSE ones), or not even open it for that.
_NO_DIRECTORY_SYNC = (*UNSUPPORTED, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LONGEST_NAME = 255  # bytes, on almost all file systems; on the others the first use raises an error
_LONGEST_PATH = 4095 - 128  # bytes, with room for the names that a store adds


def require_posix(what: str) -> None:
    """Raise `ConfigurationError` if there is no flock."""
    try:
        import fcntl  # noqa: F401 - only whether it exists matters
    except ImportError:
        raise ConfigurationError(
            f"{what} needs POSIX file locks, and this platform has none.",
            todo="Use MemoryStore, or a store on a server.",
        ) from None


def absolute(what: str, path: str | os.PathLike[str]) -> Path:
    """The absolute path, which a later chdir does not change. `what` is the store that it was passed to.

    Raises `ConfigurationError` for a path that no file can have. It does not show the path, because it may be
    a part of a URL.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{what} needs a path (a str or a pathlib.Path), not {type(path).__name__}")
    if not os.fspath(path):
        raise ConfigurationError(
            f"The path of a {what} must not be empty.", todo="Pass the path to store the tokens at."
        )
    try:
        found = Path(path).absolute()
    except OSError:
        raise ConfigurationError(
            f"The path of this {what} is relative, and the working directory does not exist any more.",
            todo="Pass an absolute path, or start the program in a directory that exists.",
        ) from None
    problem = _impossible(found)
    if problem:
        raise ConfigurationError(f"The path of this {what} {problem}.", todo="Pass another path.")
    return found


def _impossible(path: Path) -> str:
    """What is wrong with this path, or ""."""
    if "\0" in str(path):
        return "contains a NUL character"
    try:
        size, longest = len(os.fsencode(path)), max(len(os.fsencode(name)) for name in path.parts)
    except UnicodeEncodeError:
        return "contains a character that no file name can have"
    if longest > _LONGEST_NAME:
        return f"contains a name of {longest} bytes, and {_LONGEST_NAME} are possible"
    if size > _LONGEST_PATH:
        return f"has {size} bytes, and {_LONGEST_PATH} are possible"
    return ""


_FULL = "Free some space or inodes (df -h, df -i)."
_OPEN_FILES = "Raise the limit of open files (ulimit -n): each claim that is held needs one."
_MOUNT = "Mount the file system again: its server is gone, or has replaced it."
_TODOS = {
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "Free some space or files of this user, or raise its quota (quota -s).",
    errno.EROFS: "Mount the file system read-write, or use another directory.",
    errno.ENAMETOOLONG: "Use a shorter path: this file system does not take names or paths that long.",
    errno.ESTALE: _MOUNT,
    errno.ENOTCONN: _MOUNT,
    errno.EIO: "Check the disk: the system's log (dmesg) says more.",
}


@contextlib.contextmanager
def map_os_errors(what: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` into a store error, which says that `path` could not be `what`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _insecure(path, "is a symbolic link") from None
        reason = error.strerror or type(error).__name__
        todo = _TODOS.get(
            error.errno or 0,
            "Check that its directory exists and is writable, and that there is disk space left.",
        )
        raise StoreUnavailable(f"{path} could not be {what}: {reason}.", todo=todo) from error


def check_file(path: Path, status: os.stat_result) -> None:
    """Raise `StoreInsecure` unless this is a regular file of ours that other users cannot open."""
    if stat.S_ISLNK(status.st_mode):
        raise _insecure(path, "is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise _insecure(path, "is not a regular file")
    _check(path, status, "600")


def check_directory(path: Path) -> bool:
    """Whether it exists. Raises `StoreInsecure` unless it is ours and other users cannot enter it."""
    try:
        status = path.stat()  # follows a link: the directory that it leads to is the one that counts
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        raise _insecure(path, "is not a directory")
    _check(path, status, "700")
    return True


def _check(path: Path, status: os.stat_result, mode: str) -> None:
    owner, me = status.st_uid, os.geteuid()
    if owner == me and not status.st_mode & _OTHERS:
        return
    todo = mount_advice(path if mode == "700" else path.parent)
    if todo is None and owner == me:
        todo = f"Run chmod {mode} on it. If another user may have read it, sign in again."
        if not status.st_mode & stat.S_IRWXO:  # what a fsGroup does
            todo += (
                " If this comes back with each start of a Kubernetes pod, its fsGroup does it: set "
                "fsGroupChangePolicy: OnRootMismatch, and use a directory below the volume's root. Or run "
                "chmod -R go= in an init container."
            )
    if owner != me:
        raise _insecure(path, f"belongs to user {owner}, not to user {me}", todo)
    raise StoreInsecure(
        f"{path} has mode {stat.S_IMODE(status.st_mode):o}, so other users have access to it.", todo=todo
    )


def mount_advice(directory: Path) -> str | None:
    """What to do about a file system that gives new files the wrong owner or mode, or None."""
    fresh, me = _new_file(directory), os.geteuid()
    if fresh is not None and fresh.st_uid != me:
        return (
            f"This file system gives every new file to user {fresh.st_uid}, so chown does not help. Mount it "
            f"with the option uid={me} (vfat, cifs, WSL), run as that user, or use a local Linux file system."
        )
    if fresh is not None and fresh.st_mode & _OTHERS:
        return (
            "This file system keeps no modes, so chmod does nothing. Mount it with the option umask=077 "
            "(vfat, ntfs), file_mode=0600,dir_mode=0700 (cifs) or metadata (WSL), or use a local Linux file "
            "system; under WSL that is any directory outside /mnt."
        )
    return None


def _new_file(directory: Path) -> os.stat_result | None:
    """What a new file in this directory looks like, or None: whom it belongs to, and who has access."""
    import tempfile  # 5 ms, for an error only

    try:
        with tempfile.NamedTemporaryFile(dir=directory) as file:  # by its name: some tell more about that
            return Path(file.name).lstat()
    except OSError:
        return None


def _insecure(path: Path, why: str, todo: str | None = None) -> StoreInsecure:
    return StoreInsecure(f"{path} {why}.", todo=todo or "Find out how it got there, then move it away.")


def make_directory(path: Path) -> None:
    """Create the directory with mode 0700, unless it exists. Its parent must exist."""
    if check_directory(path):
        return
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass  # another process was faster
    else:
        if stat.S_IMODE(path.stat().st_mode) != 0o700:  # the umask took rights from the owner too
            with contextlib.suppress(PermissionError):  # a file system without modes; the check says more
                path.chmod(0o700)
    check_directory(path)


def check_writable(path: Path) -> None:
    """Raise `PermissionError` unless files can be created in this directory now."""
    effective = os.access in os.supports_effective_ids
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=effective):
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        raise PermissionError(errno.EACCES, "the directory is not writable")


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a private file, checked. A new file gets mode 0600, whatever the umask.

    `O_NONBLOCK` changes nothing for a file, and keeps us from waiting if there is a named pipe instead.
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
            os.fchmod(fd, 0o600)  # a umask like 0o777 left the owner without access
        check_file(path, status)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _restore_owner_access(path: Path) -> bool:
    """Give the owner access to a file that a killed process created under a umask like 0o777."""
    status = path.lstat()
    check_file(path, status)
    if status.st_mode & 0o600 == 0o600:
        return False
    path.chmod(0o600)
    return True


def read_private(path: Path) -> bytes | None:
    """The content of a private file, or None if there is no such file."""
    try:
        fd = open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(fd, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor, which Path cannot open
        return file.read()


def sync_directory(path: Path) -> None:
    """Make added and removed names in this directory durable, if its file system can."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
