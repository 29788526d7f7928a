"""Broken stores that break a promise between processes: see `broken`, and `broken_files`."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from tokensession.errors import ClaimTimeout, StoreUnavailable
from tokensession.stores._local.claims import LocalClaim
from tokensession.stores.protocol import ANY, AnyVersion, Record
from tokensession.stores.file import _Files
from broken import Broken
from broken.files import BrokenFileStore, backend_of

__all__ = ["BROKEN_BETWEEN_PROCESSES"]

Expect = str | AnyVersion | None


class ExclusionPerProcess(BrokenFileStore):
    """A lock that other processes do not know."""

    class files(_Files):  # noqa: N801
        def prepare(self, key: str) -> Path:
            path = super().prepare(key)
            return path.with_name(f"{os.getpid()}-{path.name}")


class OnlyTheLockCounts(BrokenFileStore):
    """Each waiter gets the lock in its turn, and refreshes once more."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        while True:
            record = await self.load(key)
            try:
                found = await super().claim(key, seen=record.version if record else None, timeout=0)
            except ClaimTimeout:
                await asyncio.sleep(0)
            else:
                if not isinstance(found, Record):
                    return found


class FortyMayWait(BrokenFileStore):
    """Each who waits has a thread, of which there are forty; nobody else gets one meanwhile."""

    patience = 1.5  # somebody waits for ever

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        self._threads = self.__dict__.get("_threads") or asyncio.Semaphore(40)
        async with self._threads:
            return await super().claim(key, seen=seen, timeout=timeout)


class _Claim(LocalClaim):
    """A claim that may be broken."""

    def __init__(self, claim: LocalClaim) -> None:
        self.__dict__.update(claim.__dict__)


class NoticesComeLater(BrokenFileStore):
    """Who waits looks when he is told to, a while after the commit: by a process that may be dead then."""

    patience = 1.5

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        class Later(_Claim):
            async def commit(self, data: bytes) -> Record:
                record = await super().commit(data)
                asyncio.get_running_loop().call_later(60, notice.touch)
                return record

        notice = self._files.prepare(key).with_suffix(".notice")
        while True:
            try:
                found = await super().claim(key, seen=seen, timeout=0)
            except ClaimTimeout:
                while not notice.exists():  # noqa: ASYNC110 - it has no other way
                    await asyncio.sleep(0)
            else:
                return found if isinstance(found, Record) else Later(found)


class EachStartMakesANewTable(BrokenFileStore):
    """There is none when it looks, so it makes one; what others have stored meanwhile goes with the old."""

    patience = 15.0  # nobody is to be taken for hung: sixteen processes start

    _made = False

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        record = await super().put(key, data, expect=expect)
        if not self._made:
            self._made = True
            for path in self._files.directory.glob("*.token"):
                if path != self._files._path(key, ".token"):
                    path.unlink(missing_ok=True)
        return record


class ServesTheProcessThatMadeIt(BrokenFileStore):
    """Its thread stays behind in the parent; the child of a fork is turned away."""

    def __init__(self, directory: Path, *, clock: Any = None) -> None:
        super().__init__(directory, clock=clock)
        self._pid = os.getpid()

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        if os.getpid() != self._pid:
            raise StoreUnavailable("This store was opened in another process.")
        return await super().put(key, data, expect=expect)


class NobodyIsTold(BrokenFileStore):
    """The next holder learns of nothing, and sends its request beside the dead one's."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        class Silent(_Claim):
            @property
            def interrupted(self) -> float | None:
                return None

        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Silent(found)


class AgesAreSubtracted(BrokenFileStore):
    """A holder from before a reboot is of a negative age, and waited for."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        class Naive(_Claim):
            @property
            def interrupted(self) -> float | None:
                return None if self._found is None else self._mark.began - self._found.began

        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Naive(found)


class LeaseOfNoTime(BrokenFileStore):
    """Who was paused may not commit, though nobody else has."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        class Lapsed(_Claim):
            async def commit(self, data: bytes) -> Record:
                raise StoreUnavailable("The lease has lapsed.")

        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Lapsed(found)


class WaitersCount(BrokenFileStore):
    """Who was killed while it waited is taken for a holder."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        class Alarmed(_Claim):
            @property
            def interrupted(self) -> float | None:
                return 0.0

        self._files.prepare(key)
        mine = self._files.directory / f"{os.getpid()}.waiting"
        mine.touch()
        found = await super().claim(key, seen=seen, timeout=timeout)
        mine.unlink()
        others = list(self._files.directory.glob("*.waiting"))
        return Alarmed(found) if others and isinstance(found, LocalClaim) else found


class WaitingBlocksTheLoop(BrokenFileStore):
    """Everything else stands still while somebody waits (here: for a moment)."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        for _ in range(20):
            found = self._claims._try(key, seen, asyncio.get_running_loop(), None)
            if isinstance(found, LocalClaim | Record):
                return found
            time.sleep(0.005)  # noqa: ASYNC251 - that is the mistake
        raise ClaimTimeout("Somebody else holds the claim.")


class TheChildHoldsOn(BrokenFileStore):
    """A forked child keeps its dead parent's lock."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        found = await super().claim(key, seen=seen, timeout=timeout)
        if isinstance(found, LocalClaim):
            self._copy = os.dup(found._lock._fd)
        return found


_TABLE: list[tuple[type[BrokenFileStore], tuple[str, ...]]] = [
    (ExclusionPerProcess, ("test_one_process_at_a_time_holds_the_claim",)),
    (OnlyTheLockCounts, ("test_all_processes_that_wait_are_served_by_one_commit",)),
    (FortyMayWait, ("test_a_hundred_keys_of_others_can_be_waited_for_at_once",)),
    (NoticesComeLater, ("test_a_commit_is_noticed_though_its_process_is_killed_right_then",)),
    (EachStartMakesANewTable, ("test_sixteen_processes_may_start_at_once",)),
    (ServesTheProcessThatMadeIt, ("test_a_forked_child_may_use_the_store_it_inherited",)),
    (NobodyIsTold, ("test_a_killed_holder_gives_way_and_the_next_one_is_told",)),
    (AgesAreSubtracted, ("test_a_clock_that_was_reset_makes_an_interruption_old",)),
    (
        LeaseOfNoTime,
        (
            "test_a_paused_holder_is_heard_if_nobody_was_faster",
            "test_a_holder_whose_event_loop_was_blocked_is_heard_if_nobody_was_faster",
        ),
    ),
    (WaitersCount, ("test_a_killed_waiter_held_nothing",)),
    (WaitingBlocksTheLoop, ("test_waiting_for_another_process_blocks_no_event_loop",)),
    (TheChildHoldsOn, ("test_a_forked_child_keeps_no_claim_alive",)),
]

BROKEN_BETWEEN_PROCESSES = [Broken(kind.__name__, backend_of(kind), promises) for kind, promises in _TABLE]
