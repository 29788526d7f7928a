"""A store that does what the test says at each of its steps, and the gates to hold it there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tokensession import StoreUnavailable
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import ANY, Claim, Record

Step = Callable[[], Awaitable[object]]


class Gate:
    """`await gate.arrived.wait()` until somebody stands here, `gate.open.set()` to let them on."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self) -> None:
        self.arrived.set()
        await self.open.wait()


async def down() -> None:
    """The store is."""
    raise StoreUnavailable("The disk is full.")


async def hang() -> None:
    """For ever."""
    await asyncio.Event().wait()


class OddStore(MemoryStore):
    """`steps["commit"] = down`: awaited before the store does it; also "load", "put", "claim", "abandon".

    "committed" and "stored" (for put) are awaited after it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps: dict[str, Step] = {}

    async def step(self, name: str) -> None:
        if name in self.steps:
            await self.steps[name]()

    async def load(self, key: str) -> Record | None:
        await self.step("load")
        return await super().load(key)

    async def put(self, key: str, data: bytes, *, expect: Any = ANY) -> Record:
        await self.step("put")
        record = await super().put(key, data, expect=expect)
        await self.step("stored")
        return record

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        await self.step("claim")
        claim = await super().claim(key, seen=seen, timeout=timeout)
        return claim if isinstance(claim, Record) else OddClaim(self, claim)

    def held(self) -> bool:
        """Whether anybody holds a claim, or has left its mark."""
        return bool(self._holders or self._interrupted)


class OddClaim:
    """Its claim."""

    def __init__(self, store: OddStore, claim: Claim) -> None:
        self._store, self._claim = store, claim
        self.current, self.interrupted = claim.current, claim.interrupted

    async def commit(self, data: bytes) -> Record:
        await self._store.step("commit")
        record = await self._claim.commit(data)
        await self._store.step("committed")
        return record

    async def abandon(self) -> None:
        await self._store.step("abandon")
        await self._claim.abandon()
