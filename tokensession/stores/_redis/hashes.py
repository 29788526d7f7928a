"""The records and claims of one store, as hashes at the server.

Implements `operations.Operations` and `server.Listener`. The driver is imported with the first connection.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from ...clock import Clock
from ...errors import StoreCorrupt, StoreUnavailable, Superseded
from .._local.checksum import checksum
from .._remote.lease import Leases
from .._remote.operations import Attempt, Grant, Held, in_another_loop
from ..protocol import AnyVersion, Record, check_key
from .scripts import ABANDON, CLAIM, DELETE, LOAD, RENEW, SENDING, WRITE

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

    from .server import Server

__all__ = ["Hashes"]

_MICRO = 1_000_000
_BATCH = 500  # names in one round trip


class Hashes:
    """The hashes whose names begin with `prefix`. Either `client` is borrowed, or `url` is connected to.

    Mutable state: the connections, and the event loop and process to which they belong.
    """

    def __init__(
        self,
        client: Redis | RedisCluster | None,
        url: str,
        *,
        where: str,
        prefix: str,
        durability: str,
        lease: float,
        clock: Clock,
    ) -> None:
        self._client = client
        self._url = url
        self._where = where
        self._prefix = prefix
        self._durability = durability
        self._lease = _micro(lease)
        self._clock = clock
        self._server: Server | None = None
        self._channel = f"{prefix}changes".encode()
        self.leases = Leases(self, clock, lease=lease, on_wait=lambda: self._connected().listen())

    @property
    def open(self) -> bool:
        """Whether there are connections."""
        return self._server is not None

    async def load(self, key: str) -> Record | None:
        """The stored record."""
        return _record(key, *await self._connected().run(LOAD, self.name(key)))

    async def keys(self, unwanted: asyncio.Event) -> list[str]:
        """The keys of all records, sorted. Stops once it is `unwanted`."""
        server = self._connected()
        pattern = re.sub(r"([\\*?\[\]^-])", r"\\\1", self._prefix) + "{*}"
        names = await _scan(server, pattern, unwanted)
        found, remaining = list[bytes](), iter(names)
        while (batch := list(itertools.islice(remaining, _BATCH))) and not unwanted.is_set():
            found += await server.call(_with_records, server.client, batch)
        return sorted(key for name in found if (key := self._key(name)) is not None)

    async def write(self, key: str, owner: str, expect: str | AnyVersion | None, record: Record) -> Record:
        """Replace the version `expect` by this record. With an owner, it is a commit."""
        bound = _checksum(key, record.version, record.data)
        stored, now, *found = await self._connected().write(
            WRITE,
            self.name(key),
            *(owner, _expected(expect), record.version, record.data, bound, self._channel),
        )
        if not stored:
            raise Superseded("A newer record is stored.", record=_record(key, now, *found))
        return Record(record.version, record.data, _age(now, found[0]))

    async def delete(self, key: str, expect: str | AnyVersion) -> bool:
        """Delete the version `expect`. Returns whether there was a record."""
        found = await self._connected().write(DELETE, self.name(key), _expected(expect))
        if found[0] == b"superseded":
            raise Superseded("A newer record is stored.", record=_record(key, *found[1:]))
        return bool(found[0])

    async def try_claim(self, key: str, seen: str | None, owner: str) -> Attempt:
        """See `operations.Operations`."""
        answer, *found = await self._connected().run(
            CLAIM, self.name(key), _expected(seen), owner, self._lease
        )
        if answer == b"held":
            return Held(found[0].decode(errors="replace"), found[1] / _MICRO, found[2] / _MICRO)
        record = _record(key, *found[:5])
        if answer == b"newer" and record is not None:
            return record
        interrupted, listening = found[5:]
        return Grant(record, None if interrupted < 0 else interrupted / _MICRO, listening / _MICRO)

    async def renew(self, key: str, owner: str, seconds: float) -> bool:
        """See `operations.Operations`."""
        return bool(await self._connected().run(RENEW, self.name(key), owner, _micro(seconds)))

    async def sending(self, key: str, owner: str, listening: float) -> bool:
        """See `operations.Operations`. As durable as a write, so that a server without that fails here."""
        arguments = owner, _micro(listening), self._lease
        return bool(await self._connected().write(SENDING, self.name(key), *arguments))

    def commit(
        self, key: str, owner: str, expect: str | None, version: str, data: bytes
    ) -> Coroutine[Any, Any, Record]:
        """See `operations.Operations`."""
        return self.write(key, owner, expect, Record(version, data))

    async def abandon(self, key: str, owner: str) -> None:
        """See `operations.Operations`."""
        await self._connected().run(ABANDON, self.name(key), owner, self._channel)

    def changed(self, name: bytes, version: str | None) -> None:
        """See `server.Listener`."""
        key = self._key(name)
        if key is not None:
            self.leases.notify(key, version)

    def may_have_missed(self) -> None:
        """See `server.Listener`."""
        self.leases.notify_all()

    async def settle(self) -> None:
        """See `server.Listener`."""
        await self.leases.settle()

    async def aclose(self) -> None:
        """Finish what has begun, and close the connections."""
        await self.leases.aclose()
        server, self._server = self._server, None
        if server is not None and server.usable():
            await server.aclose()
        elif server is not None:
            server.leave()

    def name(self, key: str) -> bytes:
        """The name of the key's hash. The braces keep what belongs to it in one place of a cluster."""
        return f"{self._prefix}{{{check_key(key)}}}".encode()

    def _key(self, name: bytes) -> str | None:
        """The key of a name, or None if it is not one of ours."""
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return None
        begin = self._prefix + "{"
        return text[len(begin) : -1] if text.startswith(begin) and text.endswith("}") else None

    def _connected(self) -> Server:
        """The connections of this process in the running event loop."""
        before = self._server
        if before is not None:
            if before.usable():
                return before
            if self._client is not None:
                before.leave()
                raise StoreUnavailable(
                    "This client belongs to another process or event loop: the one that used it first.",
                    todo="Make a client and a store in each of them, or use RedisStore.connect(url).",
                )
            if before.in_use():
                raise in_another_loop()
            before.leave()
        from .server import Server, new_client

        self._server = server = Server(
            self._client or new_client(self._url),
            owned=self._client is None,
            where=self._where,
            channel=self._channel,
            durability=self._durability,
            clock=self._clock,
            listener=self,
        )
        return server


async def _scan(server: Server, pattern: str, unwanted: asyncio.Event) -> set[bytes]:
    """The names of all hashes like this. A call for each page, since most have only names of others."""
    scan = partial(server.client.scan, match=pattern, count=_BATCH, _type="hash")
    cursors, names = await server.call(scan)
    found = set(names)  # a scan may return a name twice
    for node, cursor in cursors.items() if isinstance(cursors, dict) else [("", cursors)]:
        on_node = partial(scan, target_nodes=server.client.get_node(node_name=node)) if node else scan
        while cursor and not unwanted.is_set():
            cursors, names = await server.call(on_node, cursor)
            cursor = cursors[node] if node else cursors
            found.update(names)
    return {name if isinstance(name, bytes) else name.encode() for name in found}


async def _with_records(client: Any, names: list[bytes]) -> list[bytes]:
    """Those of these hashes that have a record: some may only have a claim."""
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.hexists(name, "v")
    stored = await pipeline.execute()
    return [name for name, has_record in zip(names, stored, strict=True) if has_record]


def _expected(version: str | AnyVersion | None) -> str:
    """How a script is told which version is expected."""
    return "*" if isinstance(version, AnyVersion) else "-" if version is None else f"={version}"


def _micro(seconds: float) -> int:
    return int(seconds * _MICRO)


def _checksum(key: str, version: str, data: bytes) -> bytes:
    return checksum(key.encode(), version.encode(), data)


def _age(now: int, written: bytes | int) -> float:
    return max(0.0, (now - int(written)) / _MICRO)


def _record(
    key: str, now: int, version: bytes | None, data: bytes | None, written: bytes | None, bound: bytes | None
) -> Record | None:
    """The record in these fields of a hash."""
    if version is None:
        return None
    if data is None or written is None or not written.isdigit():
        raise StoreCorrupt("A stored record lacks a part.")
    record = Record(version.decode(errors="replace"), data, _age(now, written))
    if bound != _checksum(key, record.version, record.data):
        raise StoreCorrupt("A stored record has the wrong checksum: it is damaged, or another key's.")
    return record
