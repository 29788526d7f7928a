"""Where tokens are stored. Each store imports its driver when you first use its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily
from .protocol import ANY, AnyVersion, Claim, Record, Store

if TYPE_CHECKING:
    from .file import FileStore
    from .memory import MemoryStore
    from .sqlite import SQLiteStore
    from .urls import open_store

__all__ = [
    "ANY",
    "AnyVersion",
    "Claim",
    "FileStore",
    "MemoryStore",
    "Record",
    "SQLiteStore",
    "Store",
    "open_store",
]

if not TYPE_CHECKING:  # a type checker knows the names, and finds wrong ones
    __getattr__ = lazily(
        globals(),
        {
            "FileStore": ".file",
            "MemoryStore": ".memory",
            "SQLiteStore": ".sqlite",
            "open_store": ".urls",
        },
    )


def __dir__() -> list[str]:
    return __all__
