"""The `Backend` of each of our stores."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from _store_helpers import sql

from tokensession.clock import Clock
from tokensession.stores import FileStore, MemoryStore, SQLiteStore, Store, open_store
from tokensession.testing.conformance.backend import Backend

if TYPE_CHECKING:
    from benchmarks.servers import RedisServer


def memory(directory: Path, kind: type[MemoryStore] = MemoryStore) -> Backend:
    store = kind()

    def open_with(clock: Clock | None = None) -> MemoryStore:
        store._clock = clock or store._clock
        return store

    return Backend(open=open_with, takes_clock=True)


def file(directory: Path, kind: Callable[..., Store] = FileStore) -> Backend:
    root = directory / "tokens"

    def path_of(suffix: str, key: str) -> Path:
        return root / (hashlib.sha256(key.encode()).hexdigest() + suffix)

    def damage(key: str) -> None:
        path = path_of(".token", key)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return Backend(
        open=partial(kind, root),
        takes_clock=True,
        url=root.as_uri(),
        root=root,
        record_file=partial(path_of, ".token"),
        lock_file=partial(path_of, ".lock"),
        damage=damage,
        move=lambda source, target: path_of(".token", source).rename(path_of(".token", target)),
        second_names=lambda: [kind(linked_directory(root))],
        blocked=lambda key: flocked(path_of(".write", key)),
        names_holder=True,
    )


def linked_directory(path: Path) -> Path:
    """A link to this directory."""
    link = path.with_name("link")
    link.symlink_to(path)
    return link


@contextlib.contextmanager
def flocked(path: Path) -> Iterator[None]:
    """Lock the file, as a writer does that is stuck."""
    path.touch(mode=0o600)
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


KEEP_LOCKED = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked_database(path: Path) -> Iterator[None]:
    """Another process has begun a transaction, and does not end it."""
    command = [sys.executable, "-c", KEEP_LOCKED, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        yield
        holder.communicate()


def sqlite(directory: Path, kind: Callable[..., Store] = SQLiteStore) -> Backend:
    root = directory / "database"
    root.mkdir(mode=0o700)
    path = root / "tokens.db"

    def second_names() -> list[Store]:
        hard = directory / "hard"
        hard.mkdir(mode=0o700)
        os.link(path, hard / path.name)
        return [kind(hard / path.name), kind(linked_directory(root) / path.name)]

    rename = partial(sql, path, "UPDATE OR REPLACE tokens SET key = ? WHERE key = ?")
    return Backend(
        open=partial(kind, path),
        takes_clock=True,
        url=f"sqlite:///{path}",
        root=root,
        record_file=lambda key: path,
        lock_file=lambda key: root / "tokens.db.locks" / (hashlib.sha256(key.encode()).hexdigest() + ".lock"),
        damage=partial(sql, path, "UPDATE tokens SET data = 42 WHERE key = ?"),
        move=lambda source, target: rename(target, source),
        second_names=second_names,
        blocked=lambda key: locked_database(path),
        names_holder=True,
    )


def redis(server: RedisServer) -> Backend:
    url = server.url(lease=4)
    prefix = url.partition("prefix=")[2].partition("&")[0]

    def name(key: str) -> str:
        return f"{prefix}{{{key}}}"

    return Backend(
        open=partial(open_store, url),
        url=url,
        damage=lambda key: server.call("HSET", name(key), "d", "something else"),
        move=lambda source, target: server.call("RENAME", name(source), name(target)),
        names_holder=True,
    )
