"""What is around a database: its directory, its other names, and the mount that it came with.

SQLite finds a database's journal by name and believes what it reads there, and our lock files are beside the
database too. So no one else may create files there, and all processes must use the same name.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from ...errors import StoreInsecure, StoreUnavailable
from .files import mount_advice

__all__ = ["check_not_mounted", "check_one_name", "check_parent"]

_MOUNTS = Path("/proc/self/mountinfo")  # Linux only
_OCTAL = re.compile(rb"\\([0-7]{3})")


def check_parent(path: Path) -> None:
    """Raise `StoreInsecure` if other users can create files in this directory."""
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & stat.S_IWOTH or (mode & stat.S_IWGRP and _has_others(status.st_gid)):
        raise StoreInsecure(
            f"Other users can create files in {path}, which has mode {mode:o}.",
            todo=mount_advice(path) or "Put the tokens into a directory of your own (mkdir -m 700).",
        )


def _has_others(gid: int) -> bool:
    """Whether this group has another user. A group that only a container knows has no name and no users."""
    import grp  # POSIX only, as everything here
    import pwd

    me = os.geteuid()
    with contextlib.suppress(KeyError):
        members = set(grp.getgrgid(gid).gr_mem)
        users = [user for user in pwd.getpwall() if user.pw_gid == gid or user.pw_name in members]
        return any(user.pw_uid not in (0, me) for user in users)
    return False


def check_one_name(path: Path, status: os.stat_result) -> None:
    """Raise `StoreUnavailable` if the file has a second name."""
    if status.st_nlink > 1:
        raise StoreUnavailable(
            f"{path} has {status.st_nlink} names (hard links). Processes that use different names do not "
            "exclude each other.",
            todo=f"Find the others with find -inum {status.st_ino}, and remove them. For a backup, copy it.",
        )


def check_not_mounted(path: Path) -> None:
    """Raise `StoreUnavailable` if the file is mounted without its directory."""
    try:
        mounts = _MOUNTS.read_bytes()
    except OSError:
        return
    if os.fsencode(path.parent.resolve() / path.name) in mount_points(mounts):
        raise StoreUnavailable(
            f"{path} is a mount point: the file is mounted without its directory. Its lock files are not, so "
            "processes in different containers do not exclude each other.",
            todo="Mount the directory instead.",
        )


def mount_points(mounts: bytes) -> set[bytes]:
    """The mount points in a `mountinfo` file: the fifth fields. Some bytes are octal numbers (proc(5))."""
    lines = (line.split(b" ") for line in mounts.splitlines())
    points = (fields[4] for fields in lines if len(fields) > 4)
    return {_OCTAL.sub(lambda octal: bytes([int(octal[1], 8) & 0xFF]), point) for point in points}
