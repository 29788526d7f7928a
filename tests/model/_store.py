"""The model of a store: one record with versions, and claims that may be leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokensession import ClaimTimeout, StoreUnavailable
from tokensession.errors import Superseded
from tokensession.stores.protocol import ANY, AnyVersion, Claim, Record

if TYPE_CHECKING:
    from _process import Process
    from _world import World

KEY = "account"


@dataclass(eq=False)
class Mark:
    """That a token request was sent at `at`, and that its sender waits for the response until `until`.

    `over`: its sender has ended its claim.
    """

    at: float
    until: float
    over: bool = False


class ModelStore:
    """One process's store object over the world's record."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.world: World = process.world

    async def load(self, key: str) -> Record | None:
        if key != KEY:
            return None
        found: Record | None = await self.world.ask(
            self.process, "load", works=self.world.read, fails=self._unavailable
        )
        self.process.learn(self.world.decoded(found))
        return found

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Claim | Record:
        world, process = self.world, self.process
        until, mine = world.now + timeout, None

        def granted() -> Any:
            nonlocal mine
            record = world.read()
            if record is not None and record.version != seen:
                return record
            if not self.is_free():
                if world.now >= until:
                    raise ClaimTimeout("another process holds it")
                return WAIT
            mine = world.holder = ModelClaim(self, record, self.interrupted_by())
            return mine

        try:
            found: Claim | Record = await world.ask(
                process, "claim", works=granted, fails=self._unavailable, expires=timeout
            )
        except asyncio.CancelledError:
            if mine is not None:  # cancelled just when it was granted
                mine.end(mine.earlier)
            raise
        process.learn(world.decoded(found if isinstance(found, Record) else found.current))
        return found

    def is_free(self) -> bool:
        """Whether the claim can be granted."""
        return self.world.holder is None

    def interrupted_by(self) -> Mark | None:
        """The mark of an earlier holder that has not ended its claim."""
        mark = self.world.mark
        return mark if mark is not None and not mark.over else None

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        world = self.world

        def write() -> Record:
            if expect is not ANY and (world.record.version if world.record else None) != expect:
                self._supersede()
            return world.write(data, self.process)

        return await self.written("put", write)

    def _supersede(self) -> None:
        self.world.superseded += 1
        raise Superseded("another version", record=self.world.read())

    async def written(self, what: str, write: Callable[[], Record]) -> Record:
        """A write, which finishes even if its caller has gone."""
        try:
            record: Record = await self.finished(what, self.fates(write))
            return record
        except Superseded as newer:
            self.process.learn(self.world.decoded(newer.record))
            raise

    def fates(self, work: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
        """It works, it fails, or it works and no one learns of it."""

        def unconfirmed() -> None:
            work()
            self._unavailable()

        return {"works": work, "fails": self._unavailable, "works_unconfirmed": unconfirmed}

    async def finished(self, what: str, fates: dict[str, Callable[[], Any]]) -> Any:
        """This call. If its caller goes, it works later."""
        try:
            return await self.world.ask(self.process, what, **fates)
        except asyncio.CancelledError:
            if self.process.alive and not self.world.over:
                self.world.orphans.append(fates["works"])
            raise

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        raise NotImplementedError

    async def keys(self) -> list[str]:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Nothing to close."""

    def _unavailable(self) -> None:
        self.world.faults += 1
        raise StoreUnavailable("no answer")


WAIT = object()
"""A fate returns this if it is not possible yet."""


class ModelClaim:
    """A claim. As a lease it may lapse; a commit compares versions, whether it has or not."""

    def __init__(self, store: ModelStore, current: Record | None, earlier: Mark | None) -> None:
        self.store = store
        self._current = current
        self.earlier = earlier
        self._granted = store.world.now
        self._mark: Mark | None = None
        self._written: Record | None = None

    @property
    def current(self) -> Record | None:
        return self._current

    @property
    def interrupted(self) -> float | None:
        return self._granted - self.earlier.at if self.earlier is not None else None

    @property
    def listening(self) -> float:
        if self.earlier is None or not self.store.world.leases:
            return 0.0
        return max(0.0, self.earlier.until - self.store.world.now)

    async def sending(self, *, listening: float = 0.0) -> None:
        world = self.store.world

        def leave() -> None:
            if world.holder is not self:
                self.store._unavailable()
            self._mark = world.mark = Mark(world.now, world.now + listening)

        await world.ask(self.store.process, "sending", **self.store.fates(leave))

    async def commit(self, data: bytes) -> Record:
        return await self.store.written("commit", lambda: self._commit(data))

    def _commit(self, data: bytes) -> Record:
        world = self.store.world
        if self._written is None or world.record is not self._written or self._written.data != data:
            if not self.may_write():
                world.faults += 1  # a note is lost then
                self.store._supersede()  # the claim stays held
            self._written = world.write(data, self.store.process)
        self.end(None)
        return self._written

    def may_write(self) -> bool:
        """Whether the stored version is still the one that was claimed."""
        stored = self.store.world.record
        return (stored.version if stored else None) == (self._current.version if self._current else None)

    async def abandon(self) -> None:
        # The mark of an earlier holder comes back, because its outcome is still unknown.
        await self.store.finished("abandon", {"works": lambda: self.end(self.earlier)})

    def end(self, mark: Mark | None) -> None:
        world = self.store.world
        if self._mark is not None:
            self._mark.over = True
        if world.holder is self:
            world.holder, world.mark = None, mark
