"""Where tokens are stored. Each store imports its driver when you first use its name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "FileStore": ".file",
    "MemoryStore": ".memory",
    "SQLiteStore": ".sqlite",
    "open_store": ".urls",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name], __name__), name)
    return found


def __dir__() -> list[str]:
    return __all__
