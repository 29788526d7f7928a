"""Notices that a store was copied. A staging system that was restored from production has its tokens.

A store notes where it is, by its inode: a copy has another one. (Not the device: its number may change when
the machine starts.) A clone of a whole disk is not noticed, and neither is a file that gets the very inode of
the one that it replaces.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import NamedTuple

__all__ = ["Note", "Place"]

_log = logging.getLogger("tokensession.stores")


class Note(NamedTuple):
    """What a store knows of itself: a random name, and its inode, or 0 before it has been noted."""

    id: str
    inode: int


class Place:
    """Where the store at `path` is used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warned = False

    def compare(self, noted: Note | None) -> Note | None:
        """What the store must note now, or None if it has noted that. Warns, once, if it was copied."""
        inode = self._path.stat().st_ino
        if noted is None:
            return Note(secrets.token_hex(8), inode)
        if noted.inode == inode:
            return None
        if noted.inode and not self._warned:
            self._warned = True
            _log.warning(
                "%s is a copy of the token store %s, or was restored or moved. If the other one is still in "
                "use, both send the same refresh tokens, and the provider may end these sign-ins. Use one of "
                "them only: sign in again here, or stop using the other.",
                self._path,
                noted.id,
            )
        return Note(noted.id, inode)

    def __repr__(self) -> str:
        return f"<Place {self._path}>"
