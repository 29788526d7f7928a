"""Real servers on loopback for tests, torture and benchmarks: Redis, Valkey, Postgres and pgbouncer.

Each has a free port and a temporary directory, keeps its data over a kill, and can be stopped, killed, frozen
and started again. Everything is gone when the process ends that has started it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .postgres_server import PgBouncer, PostgresServer
from .process import NotInstalled, ServerProcess, free_port
from .redis_server import RedisServer

__all__ = [
    "REMOTE",
    "NotInstalled",
    "PgBouncer",
    "PostgresServer",
    "RedisServer",
    "Remote",
    "ServerProcess",
    "free_port",
    "local_url",
    "remote",
    "require",
]

REMOTE = ("redis", "valkey", "postgres", "pgbouncer")
"""The names that `remote` knows."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A server that a store uses. `url(**options)`: the URL of a store there. `address`: for a driver."""

    name: str
    server: ServerProcess
    url: Callable[..., str]
    address: str


def local_url(name: str, directory: str) -> str:
    """The URL of a file or SQLite store in this directory."""
    return f"file://{directory}/tokens" if name == "file" else f"sqlite:///{directory}/tokens.db"


def require(name: str) -> None:
    """Raises `NotInstalled` if `remote` could not start this one."""
    if name in RedisServer.KINDS:
        RedisServer.program(name)
        return
    PostgresServer.program("initdb")
    if name == "pgbouncer":
        PgBouncer.program()


@contextlib.contextmanager
def remote(name: str, *, fsync: bool = False) -> Iterator[Remote]:
    """A running server of its own. Raises `NotInstalled`. `fsync`: it syncs as in production."""
    with contextlib.ExitStack() as stack:
        if name in RedisServer.KINDS:
            redis = stack.enter_context(RedisServer(name, fsync=fsync))
            yield Remote(name, redis, redis.url, f"redis://{redis.address}")
            return
        reached: PostgresServer | PgBouncer = stack.enter_context(PostgresServer(fsync=fsync))
        server: ServerProcess = reached
        if name == "pgbouncer":
            reached = stack.enter_context(PgBouncer(reached))
        yield Remote(name, server, reached.store_url, f"{reached.url}?sslmode=disable")
