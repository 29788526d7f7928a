"""A store that does what the test says at each of its steps, and gates that stop it there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from _rig import Rig

from tokensession import StoreUnavailable
from tokensession._refresh.single_flight import SharedTask
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import ANY, Claim, Record
from tokensession.testing import FakeClock

Step = Callable[[], Awaitable[object]]


class Gate:
    """Stops what reaches it: `await gate.arrived.wait()` until something does, `gate.open.set()` to go on."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self) -> None:
        self.arrived.set()
        await self.open.wait()


async def fail() -> None:
    """The store is down."""
    raise StoreUnavailable("The disk is full.")


async def hang() -> None:
    """Never return."""
    await asyncio.Event().wait()


class Hanging:
    """A step that hangs until `end` is set. If `stubborn`, it ignores its cancellation too."""

    def __init__(self, *, stubborn: bool) -> None:
        self.end = asyncio.Event()
        self._stubborn = stubborn

    async def __call__(self) -> None:
        while not self.end.is_set():
            try:
                await self.end.wait()
            except asyncio.CancelledError:
                if not self._stubborn:
                    raise


class ScriptedStore(MemoryStore):
    """`steps["commit"] = fail` is awaited before a commit.

    So are "load", "put", "claim", "sending" and "abandon" before these calls, and "committed", "stored" and
    "abandoned" after a commit, a put and an abandon. `listening` has what each claim's `sending` was told.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps: dict[str, Step] = {}
        self.listening: list[float] = []

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
        return claim if isinstance(claim, Record) else ScriptedClaim(self, claim)

    def has_claims(self) -> bool:
        """Whether a claim is held, or a holder has left its mark."""
        return bool(self._holders or self._interrupted)


class ScriptedClaim:
    """A claim of a `ScriptedStore`."""

    def __init__(self, store: ScriptedStore, claim: Claim) -> None:
        self._store, self._claim = store, claim
        self.current, self.interrupted, self.listening = claim.current, claim.interrupted, claim.listening

    async def sending(self, *, listening: float = 0.0) -> None:
        await self._store.step("sending")
        self._store.listening.append(listening)
        await self._claim.sending(listening=listening)

    async def commit(self, data: bytes) -> Record:
        await self._store.step("commit")
        record = await self._claim.commit(data)
        await self._store.step("committed")
        return record

    async def abandon(self) -> None:
        await self._store.step("abandon")
        await self._claim.abandon()
        await self._store.step("abandoned")


def scripted(*script: Any, **options: Any) -> tuple[Rig, ScriptedStore, FakeClock]:
    """A rig over a `ScriptedStore`, with full jitter."""
    clock = FakeClock(jitter=1.0)
    store = ScriptedStore(clock=clock)
    return Rig(*script, store=store, clock=clock, **options), store, clock


def running_task(rig: Rig) -> SharedTask[Any]:
    """The only task that is running."""
    (task,) = rig.source._coordinator._tasks.running
    return task
