"""A store around a store, and a claim around a claim, which pass everything on. Override what differs."""

from __future__ import annotations

from tokensession.stores import Record, Store
from tokensession.stores.protocol import ANY, AnyVersion, Claim

__all__ = ["WrappedClaim", "WrappedStore"]


class WrappedStore:
    """Passes every call on to `inner`. See `Store` for all of them."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    async def load(self, key: str) -> Record | None:
        """As the inner store."""
        return await self.inner.load(key)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Claim | Record:
        """As the inner store."""
        return await self.inner.claim(key, seen=seen, timeout=timeout)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """As the inner store."""
        return await self.inner.put(key, data, expect=expect)

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """As the inner store."""
        return await self.inner.delete(key, expect=expect)

    async def keys(self) -> list[str]:
        """As the inner store."""
        return await self.inner.keys()

    async def aclose(self) -> None:
        """Close the inner store."""
        await self.inner.aclose()


class WrappedClaim:
    """Passes every call on to `inner`. See `Claim` for all of them."""

    def __init__(self, inner: Claim) -> None:
        self.inner = inner

    @property
    def current(self) -> Record | None:
        """As the inner claim."""
        return self.inner.current

    @property
    def interrupted(self) -> float | None:
        """As the inner claim."""
        return self.inner.interrupted

    @property
    def listening(self) -> float:
        """As the inner claim."""
        return self.inner.listening

    async def sending(self, *, listening: float = 0.0) -> None:
        """As the inner claim."""
        await self.inner.sending(listening=listening)

    async def commit(self, data: bytes) -> Record:
        """As the inner claim."""
        return await self.inner.commit(data)

    async def abandon(self) -> None:
        """As the inner claim."""
        await self.inner.abandon()
