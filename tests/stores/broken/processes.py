"""Stores that break a promise about several processes: see `broken` and `broken.files`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path
from typing import Any

from broken import Expect, breaks
from broken.files import BrokenFileStore
from tokensession.errors import ClaimTimeout, StoreUnavailable
from tokensession.stores._local.claims import LocalClaim
from tokensession.stores._local.lock import lock_name
from tokensession.stores.file import _Files
from tokensession.stores.protocol import ANY, Record


@breaks("test_one_process_at_a_time_holds_the_claim")
class ExclusionPerProcess(BrokenFileStore):
    """Each process has a lock of its own."""

    class files(_Files):  # noqa: N801
        def prepare(self, key: str) -> Path:
            path = super().prepare(key)
            return path.with_name(f"{os.getpid()}-{path.name}")


@breaks("test_one_commit_serves_all_waiting_processes")
class WaitersIgnoreNewRecords(BrokenFileStore):
    """Each waiter gets the lock in its turn, and refreshes again."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        while True:
            record = await self.load(key)
            try:
                found = await super().claim(key, seen=record.version if record else None, timeout=0)
            except ClaimTimeout:
                await asyncio.sleep(0.01)  # without a pause, six of them stop the whole machine for seconds
            else:
                if not isinstance(found, Record):
                    return found


@breaks("test_a_hundred_keys_held_elsewhere_can_be_waited_for_at_once")
class OnlyFortyCanWait(BrokenFileStore):
    """Each waiter needs one of forty threads, so further callers wait for a thread."""

    patience = 1.5  # one of its waiters never gets a thread

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        self._threads = self.__dict__.get("_threads") or asyncio.Semaphore(40)
        async with self._threads:
            return await super().claim(key, seen=seen, timeout=timeout)


@breaks("test_a_commit_is_noticed_although_its_process_is_killed_at_once")
class WaitersDependOnANotice(BrokenFileStore):
    """A waiter only looks after a notice, which the committing process may be too dead to send."""

    patience = 1.5

    class Claim(LocalClaim):
        async def commit(self, data: bytes) -> Record:
            record = await super().commit(data)
            asyncio.get_running_loop().call_later(60, self._lock.path.with_suffix(".notice").touch)
            return record

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        notice = self._files.prepare(key).with_suffix(".notice")
        while True:
            try:
                return await super().claim(key, seen=seen, timeout=0)
            except ClaimTimeout:
                while not notice.exists():
                    await asyncio.sleep(0)


@breaks("test_sixteen_processes_may_start_at_once")
class EachStartCreatesTheTable(BrokenFileStore):
    """A start finds no table and creates one, and deletes what other processes have stored since."""

    patience = 15.0  # long enough for sixteen processes to start

    _made = False

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        record = await super().put(key, data, expect=expect)
        if not self._made:
            self._made = True
            for path in self._files.directory.glob("*.token"):
                if path != self._files._path(key, ".token"):
                    path.unlink(missing_ok=True)
        return record


@breaks("test_a_forked_child_may_use_the_store_it_inherited")
class UnusableAfterAFork(BrokenFileStore):
    """Its thread stays in the parent, so the child gets an error."""

    def __init__(self, directory: Path, *, clock: Any = None) -> None:
        super().__init__(directory, clock=clock)
        self._pid = os.getpid()

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        if os.getpid() != self._pid:
            raise StoreUnavailable("This store was opened in another process.")
        return await super().put(key, data, expect=expect)


@breaks("test_a_killed_holder_loses_its_claim_and_the_next_one_learns_of_it")
class NoInterruptionIsReported(BrokenFileStore):
    """The next holder sends its request while that of a dead one may still be on the way."""

    class Claim(LocalClaim):
        @property
        def interrupted(self) -> float | None:
            return None


@breaks("test_a_holder_killed_before_it_sends_leaves_nothing")
class MarksAtTheClaim(BrokenFileStore):
    """A process that is killed during its DNS look-up counts as one whose request was sent."""

    async def granted(self, claim: LocalClaim) -> None:
        await claim.sending()


@breaks("test_a_holder_killed_before_it_sends_leaves_nothing")
class MarksEndWithTheNextClaim(BrokenFileStore):
    """If the holder that learned of an interruption is killed too, the next one does not learn of it."""

    async def granted(self, claim: LocalClaim) -> None:
        os.pwrite(claim._lock._fd, bytes(128), 0)


@breaks("test_a_killed_holder_loses_its_claim_and_the_next_one_learns_of_it")
class DeadHoldersListen(BrokenFileStore):
    """The next holder waits for a process that it knows to be dead."""

    class Claim(LocalClaim):
        @property
        def listening(self) -> float:
            return 0.0 if self.interrupted is None else 3600.0


@breaks("test_after_a_clock_reset_an_interruption_counts_as_old")
class AgesCanBeNegative(BrokenFileStore):
    """A holder from before a reboot has a negative age."""

    class Claim(LocalClaim):
        @property
        def interrupted(self) -> float | None:
            now = self._clock.boot()
            return None if self._predecessor is None else now - self._predecessor.sent


@breaks(
    "test_a_paused_holder_commits_if_nothing_newer_is_stored",
    "test_a_holder_with_a_blocked_event_loop_commits_if_nothing_newer_is_stored",
)
class LeaseExpiresAtOnce(BrokenFileStore):
    """A paused holder cannot commit, although nothing newer is stored."""

    class Claim(LocalClaim):
        async def commit(self, data: bytes) -> Record:
            raise StoreUnavailable("The lease has lapsed.")


@breaks("test_a_killed_waiter_leaves_nothing_behind")
class KilledWaitersCountAsHolders(BrokenFileStore):
    """A process that was killed while it waited counts as an interrupted holder."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        self._files.prepare(key)
        mine = self._files.directory / f"{os.getpid()}.waiting"
        mine.touch()
        found = await super().claim(key, seen=seen, timeout=timeout)
        mine.unlink()
        if isinstance(found, LocalClaim) and any(self._files.directory.glob("*.waiting")):
            found._interrupted = 0.0
        return found


@breaks("test_waiting_for_another_process_does_not_block_the_event_loop")
class WaitingBlocksTheEventLoop(BrokenFileStore):
    """While one task waits, all the others stop (here for a moment)."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        for _ in range(20):
            found = self._claims._try_claim(key, seen, asyncio.get_running_loop())
            if isinstance(found, LocalClaim | Record):
                return found
            time.sleep(0.005)
        raise ClaimTimeout("Another holder has the claim.")


@breaks("test_a_backup_by_the_process_itself_breaks_nothing")
class LocksEndWithAnyDescriptor(BrokenFileStore):
    """A POSIX lock: it is gone when the process closes another descriptor of the file."""

    async def granted(self, claim: LocalClaim) -> None:
        try:
            fcntl.lockf(claim._lock._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClaimTimeout("Another holder has the claim.") from None
        fcntl.flock(claim._lock._fd, fcntl.LOCK_UN)


@breaks("test_no_file_is_touched_in_the_event_loops_thread")
class WaitersLookInTheEventLoop(BrokenFileStore):
    """If the file system hangs, each service that waits stops, with all its other tasks."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        path = self._files.directory / lock_name(key, ".lock")
        while True:
            try:
                return await super().claim(key, seen=seen, timeout=0)
            except ClaimTimeout:
                if timeout == 0:
                    raise
                path.lstat()
                await asyncio.sleep(0)


@breaks("test_no_file_is_touched_in_the_event_loops_thread")
class ClosingJoinsTheThread(BrokenFileStore):
    """If its thread is stuck in a file system that hangs, the service never stops."""

    async def aclose(self) -> None:
        if self._worker._executor is not None:
            self._worker._executor.shutdown(wait=True)
        await super().aclose()


@breaks("test_a_pickled_store_is_a_new_one_over_the_same_records")
class CannotBePickled(BrokenFileStore):
    """A spawned process cannot get the store."""

    def __reduce__(self) -> Any:
        return type(self), (self._files.directory,), {"_worker": self._worker}


@breaks("test_a_forked_child_keeps_no_claim_alive")
class AForkedChildKeepsTheLock(BrokenFileStore):
    """A forked child keeps the lock of its dead parent."""

    async def granted(self, claim: LocalClaim) -> None:
        self._copy = os.dup(claim._lock._fd)
