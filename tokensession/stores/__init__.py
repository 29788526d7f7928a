"""Where tokens are stored. Each store imports its driver when you first use its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily
from .protocol import ANY, AnyVersion, Claim, OpenedStore, Record, Store

if TYPE_CHECKING:
    from ._keys import Keys
    from ._sweep import StoreReport
    from .encrypted import EncryptedStore
    from .file import FileStore
    from .memory import MemoryStore
    from .postgres import PostgresStore
    from .redis import RedisStore
    from .sqlite import SQLiteStore
    from .urls import open_store

__all__ = [
    "ANY",
    "AnyVersion",
    "Claim",
    "EncryptedStore",
    "FileStore",
    "Keys",
    "MemoryStore",
    "OpenedStore",
    "PostgresStore",
    "Record",
    "RedisStore",
    "SQLiteStore",
    "Store",
    "StoreReport",
    "open_store",
]

if not TYPE_CHECKING:  # a type checker knows the names, and finds wrong ones
    __getattr__ = lazily(
        globals(),
        {
            "EncryptedStore": ".encrypted",
            "FileStore": ".file",
            "Keys": "._keys",
            "MemoryStore": ".memory",
            "PostgresStore": ".postgres",
            "RedisStore": ".redis",
            "SQLiteStore": ".sqlite",
            "StoreReport": "._sweep",
            "open_store": ".urls",
        },
    )


def __dir__() -> list[str]:
    return __all__
