"""One hash for each key on a Redis or Valkey server, for processes on several hosts.

The record and its claim are fields of one hash, so each step is one script on one key. That is atomic, works
in a cluster, and takes one round trip.

- `_redis/hashes.py`: the steps, with the scripts of `_redis/scripts.py`
- `_redis/server.py`: the connections, and the wake-ups
- `_redis/failures.py`: what an error of the server means
- `_remote/lease.py`: claims, waiting and renewing

The driver (redis-py, for both servers) is imported when you make a store.
"""

from __future__ import annotations

import asyncio
import math
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlsplit

from anyio import CancelScope

from .._validate import describe, one_of
from ..clock import Clock, SystemClock
from ..errors import ConfigurationError
from ._closing import ClosesAtExit
from ._pickling import check_parts
from ._redis.hashes import Hashes
from ._remote.lease import READ_PATIENCE, LeasedClaim
from .protocol import ANY, AnyVersion, Record, new_version

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

__all__ = ["RedisStore"]

_DURABILITIES = ("server", "fsync", "replica")


class RedisStore(ClosesAtExit):
    """Keeps records on a Redis or Valkey server, which any number of hosts may share.

    `RedisStore(client)` borrows a `redis.asyncio.Redis` (from Sentinel too) or `RedisCluster`, and does not
    close it. It belongs to one process and event loop. `RedisStore.connect(url)` makes its own connections.

    - `prefix` begins the name of every hash and of the channel.
    - `lease`: seconds after which the claim of a holder ends that is dead, stopped or cut off.
    - `durability`: what a write waits for. "server": nothing more. "fsync": the server has synced it to its
      append-only file. "replica": a replica has it too.
    - `clock` times waiting. Leases and the ages of records are the server's.

    Use `async with`, or call `aclose` at the end. A store with connections of its own pickles as its
    configuration, which includes the URL with its password. A borrowed client cannot be pickled.
    """

    def __init__(
        self,
        client: Redis | RedisCluster,
        *,
        prefix: str = "tokensession:",
        lease: float = 10.0,
        durability: str = "server",
        clock: Clock | None = None,
    ) -> None:
        _require_driver()
        self._set_up(client, "", "The server of the client", prefix, lease, durability, clock)
        if durability != "server" and not hasattr(client, "connection_pool"):
            raise ConfigurationError(
                "A cluster client cannot wait for durability, because each command may go to another node.",
                todo="Use durability='server', and set min-replicas-to-write on the nodes.",
            )

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        prefix: str = "tokensession:",
        lease: float = 10.0,
        durability: str = "server",
        clock: Clock | None = None,
    ) -> Self:
        """A store with connections of its own. Does no I/O yet.

        The URL is `redis://user:password@host:6379/0`, `rediss://` for TLS, `unix:///path`, or the same with
        `valkey`. Its query holds options of the driver, such as `ssl_ca_certs`.
        """
        _require_driver()
        store = cls.__new__(cls)
        store._set_up(None, url, _checked_url(url), prefix, lease, durability, clock)
        return store

    def _set_up(
        self,
        client: Redis | RedisCluster | None,
        url: str,
        where: str,
        prefix: str,
        lease: float,
        durability: str,
        clock: Clock | None,
    ) -> None:
        if not isinstance(prefix, str) or not prefix or "{" in prefix:
            raise ConfigurationError("prefix must be a string that is not empty and has no '{' in it.")
        if isinstance(lease, bool) or not isinstance(lease, int | float) or not 0 < lease < math.inf:
            raise ConfigurationError(f"lease must be a positive number of seconds, not {describe(lease)}.")
        one_of("durability", durability, _DURABILITIES)
        self._configuration: dict[str, Any] = {
            "prefix": prefix,
            "lease": lease,
            "durability": durability,
            "clock": clock or SystemClock(),
        }
        self._url = url
        self._where = where
        self._hashes = Hashes(client, url, where=where, **self._configuration)
        self._leases = self._hashes.leases

    async def load(self, key: str) -> Record | None:
        """The whole record, or None. Never waits for a claim."""
        self._hashes.name(key)
        load = partial(self._hashes.load, key)
        return await self._leases.run(load, patience=READ_PATIENCE, on_abandoned=_drop)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LeasedClaim | Record:
        """A newer record than `seen`, or the only claim. `timeout` in seconds. See `Store.claim`."""
        self._hashes.name(key)
        return await self._leases.claim(key, seen=seen, timeout=timeout)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Store `data` under a new version, whether or not the key is claimed. See `Store.put`."""
        self._hashes.name(key)
        record = Record(new_version(), bytes(data))
        del data  # if a reporter prints this frame's locals, a Record shows nothing
        stored = await self._leases.run(partial(self._hashes.write, key, "", expect, record))
        self._leases.notify(key, stored.version)  # those in this process need no message
        return stored

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Delete the record. Returns whether there was one. See `Store.delete`."""
        self._hashes.name(key)
        return await self._leases.run(partial(self._hashes.delete, key, expect))

    async def keys(self) -> list[str]:
        """The keys of all records, sorted. The server looks at all its keys, so this may take a while."""
        unwanted = asyncio.Event()
        find = partial(self._hashes.keys, unwanted)
        return await self._leases.run(find, patience=READ_PATIENCE, on_abandoned=lambda _: unwanted.set())

    async def aclose(self) -> None:
        """Close the connections, but not a borrowed client. A later call reopens.

        The lease of a claim that is still held ends, so the next holder need not wait for it. A cancelled
        anyio scope does not cut this short.
        """
        with CancelScope(shield=True):
            await self._hashes.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        kind, clock = type(self), self._configuration["clock"]
        if not self._url:
            raise TypeError(
                f"This {kind.__name__} can be neither pickled nor copied, because its client is borrowed and "
                "belongs to this process. Use RedisStore.connect(url)."
            )
        check_parts(self, clock=clock)
        return partial(kind.connect, self._url, **self._configuration), ()

    def __repr__(self) -> str:
        state = "open" if self._hashes.open else "closed"
        return f"<RedisStore {self._where} {self._configuration['prefix']} {state}>"


def _require_driver() -> None:
    try:
        import hiredis  # noqa: F401
        import redis.asyncio  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "RedisStore needs the driver for Redis and Valkey, with hiredis.",
            todo="pip install 'tokensession[redis]'",
        ) from error


def _checked_url(url: str) -> str:
    """What may be shown of this URL. An error repeats nothing of it."""
    from redis.exceptions import RedisError

    from ._redis.server import SCHEMES, new_client

    if not isinstance(url, str):
        raise ConfigurationError(f"url must be a string, not {describe(url)}.")
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise ConfigurationError("url must begin with " + ", ".join(f"{each}://" for each in SCHEMES) + ".")
    problem = ""
    try:
        new_client(url)
        parts = urlsplit(url)
        host, port = parts.hostname or "localhost", parts.port or 6379
        # The driver takes another path for database 0, and drops a fragment and options without a value.
        # Each may be the rest of a password with a "/", "#" or "?" in it.
        if scheme != "unix" and not re.fullmatch(r"/?[0-9]*", parts.path):
            problem = "its path is not the number of a database"
        elif parts.fragment or not all(value for _, value in parse_qsl(parts.query, keep_blank_values=True)):
            problem = "a part without a meaning"
    except (TypeError, ValueError, AttributeError, RedisError) as error:
        problem = type(error).__name__
    if problem:  # outside the handler: that error's message may repeat the URL and its password
        raise ConfigurationError(
            f"The URL of the Redis or Valkey server is malformed, or has an unknown option ({problem}).",
            todo="Write it redis://user:password@host:6379/0, and escape special characters (%40 for @).",
        )
    return f"{scheme}://{'' if scheme == 'unix' else f'{host}:{port}'}{parts.path.rstrip('/')}"


def _drop(task: asyncio.Task[Any]) -> None:
    """A read whose caller was cancelled: its result is of no interest."""
