"""A store on a server, in a world whose clock a benchmark moves.

A record's age is by the server's clock, which cannot be moved. So each record is written with the seconds by
which the world is ahead, and read with an age that has grown by as much as the world has moved since.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from tokensession.stores import Record, Store
from tokensession.stores.protocol import ANY, AnyVersion, Claim

from .wrapped import WrappedClaim, WrappedStore

__all__ = ["AgedStore"]

_AHEAD = struct.Struct("<d")


class AgedStore(WrappedStore):
    """`ahead()`: the seconds by which the world is ahead of the server."""

    def __init__(self, inner: Store, ahead: Callable[[], float]) -> None:
        super().__init__(inner)
        self._ahead = ahead

    async def load(self, key: str) -> Record | None:
        """An older record."""
        record = await self.inner.load(key)
        return None if record is None else self.aged(record)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Claim | Record:
        """With an older record."""
        found = await self.inner.claim(key, seen=seen, timeout=timeout)
        return self.aged(found) if isinstance(found, Record) else _AgedClaim(found, self)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """With the present moment."""
        return self.aged(await self.inner.put(key, self.written(data), expect=expect))

    def written(self, data: bytes) -> bytes:
        """The data with the present moment."""
        return _AHEAD.pack(self._ahead()) + data

    def aged(self, record: Record) -> Record:
        """The record as the world sees it."""
        (then,) = _AHEAD.unpack(record.data[: _AHEAD.size])
        return Record(record.version, record.data[_AHEAD.size :], record.age + self._ahead() - then)


class _AgedClaim(WrappedClaim):
    """A claim of an `AgedStore`."""

    def __init__(self, inner: Claim, store: AgedStore) -> None:
        super().__init__(inner)
        self._store = store

    @property
    def current(self) -> Record | None:
        record = self.inner.current
        return None if record is None else self._store.aged(record)

    async def commit(self, data: bytes) -> Record:
        return self._store.aged(await self.inner.commit(self._store.written(data)))
