"""Redis and Valkey servers in the ways in which the tests need them. See `benchmarks.servers`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from redis.asyncio import Redis

from benchmarks.servers import RedisServer, free_port
from benchmarks.servers.process import PATIENCE
from tokensession.stores import RedisStore

KINDS = RedisServer.KINDS


@contextlib.contextmanager
def pair(kind: str) -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary, and a replica that is connected to it."""
    with RedisServer(kind) as primary, RedisServer(kind) as replica:
        replica.call("REPLICAOF", "127.0.0.1", primary.port)
        until(lambda: replica.call("INFO", "replication")["master_link_status"] == "up")
        yield primary, replica


def fail_over(primary: RedisServer, replica: RedisServer) -> None:
    """Kill the primary, and let the replica take its place and its port."""
    primary.kill()
    replica.call("REPLICAOF", "NO", "ONE")
    replica.call("CONFIG", "SET", "port", primary.port)
    replica.port = primary.port


def switch_over(primary: RedisServer, replica: RedisServer) -> None:
    """Let the replica take the place of the primary, and its port. The primary keeps its connections."""
    address = primary.port
    replica.call("REPLICAOF", "NO", "ONE")
    primary.call("REPLICAOF", "127.0.0.1", replica.port)
    primary.port = _moved(primary, free_port())
    replica.port = _moved(replica, address)


def _moved(server: RedisServer, port: int) -> int:
    server.call("CONFIG", "SET", "port", port)
    return port


def until(condition: Callable[[], object]) -> None:
    """Wait until this is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not become true"
        time.sleep(0.01)


def borrowing(url: str) -> RedisStore:
    """A store with a borrowed client, for a peer."""
    address, _, query = url.partition("?")
    return RedisStore(Redis.from_url(address), prefix=query.partition("prefix=")[2])
