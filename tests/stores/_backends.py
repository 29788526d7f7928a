"""The `Backend` of each of our stores."""

from __future__ import annotations

import hashlib
import sqlite3
from functools import partial
from pathlib import Path

from tokensession.stores import FileStore, MemoryStore, SQLiteStore
from tokensession.testing.conformance.backend import Backend


def memory(directory: Path) -> Backend:
    store = MemoryStore()
    return Backend(open=lambda: store)


def file(directory: Path) -> Backend:
    root = directory / "tokens"

    def path_of(suffix: str, key: str) -> Path:
        return root / (hashlib.sha256(key.encode()).hexdigest() + suffix)

    def damage(key: str) -> None:
        path = path_of(".token", key)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return Backend(
        open=partial(FileStore, root),
        takes_clock=True,
        url=root.as_uri(),
        root=root,
        record_file=partial(path_of, ".token"),
        lock_file=partial(path_of, ".lock"),
        damage=damage,
    )


def sqlite(directory: Path) -> Backend:
    root = directory / "database"
    root.mkdir(mode=0o700)
    path = root / "tokens.db"

    def damage(key: str) -> None:
        connection = sqlite3.connect(path)
        connection.execute("UPDATE tokens SET data = 42 WHERE key = ?", (key,))
        connection.commit()
        connection.close()

    return Backend(
        open=partial(SQLiteStore, path),
        takes_clock=True,
        url=f"sqlite:///{path}",
        root=root,
        record_file=lambda key: path,
        lock_file=lambda key: root / "tokens.db.locks" / (hashlib.sha256(key.encode()).hexdigest() + ".lock"),
        damage=damage,
    )
