"""Broken stores that need files or processes: see `broken`.

Each is a `FileStore` with one mistake. A peer opens one by `open_broken`, whose URL is the class's
name, a colon, and the directory.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgpack

from ..clock import SystemClock
from ..errors import ClaimTimeout, StoreUnavailable
from ..stores._claims import Claims, LocalClaim
from ..stores._lock import Mark, SidecarLock
from ..stores._places import Place
from ..stores.base import ANY, AnyVersion, Record, Store, new_version
from ..stores.file import FileStore, _encode, _Files
from .backend import Backend
from .broken import Broken

__all__ = ["BROKEN_IN_FILES", "open_broken"]

Expect = str | AnyVersion | None


class _Broken(FileStore):
    """A `FileStore` whose files or claims may be of another kind."""

    files: type[_Files] = _Files
    claims: type[Claims] = Claims

    def __init__(self, directory: Path, *, clock: Any = None) -> None:
        super().__init__(directory, clock=clock)
        self._files = self.files(self._files.directory)
        self._claims = self.claims(self._files, self._worker, clock or SystemClock())


class WritesInPlace(_Broken):
    """A reader, or a crash, finds half a record."""

    class files(_Files):  # noqa: N801 - it stands in for an attribute
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            content = _encode(key, record)
            with self._writing(key) as path, path.open("wb", buffering=0) as file:
                path.chmod(0o600)
                file.write(content[: len(content) // 2])
                time.sleep(0.005)  # what a disk may take
                file.write(content[len(content) // 2 :])
                os.fsync(file.fileno())
            return record


class WritesBehind(_Broken):
    """It is stored soon; not yet when `put` or `commit` returns."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            self.later = (key, record, expect)
            return record


class ExclusionPerProcess(_Broken):
    """A lock that other processes do not know."""

    class files(_Files):  # noqa: N801
        def prepare(self, key: str) -> Path:
            path = super().prepare(key)
            return path.with_name(f"{os.getpid()}-{path.name}")


class OnlyTheLockCounts(_Broken):
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


class _Claim(LocalClaim):
    """A claim that may be broken."""

    def __init__(self, claim: LocalClaim) -> None:
        self.__dict__.update(claim.__dict__)


class NobodyIsTold(_Broken):
    """The next holder learns of nothing, and sends its request beside the dead one's."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        class Silent(_Claim):
            @property
            def interrupted(self) -> float | None:
                return None

        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Silent(found)


class AgesAreSubtracted(_Broken):
    """A holder from before a reboot is of a negative age, and waited for."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        class Naive(_Claim):
            @property
            def interrupted(self) -> float | None:
                return None if self._found is None else self._mark.began - self._found.began

        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Naive(found)


class LeaseOfNoTime(_Broken):
    """Who was paused may not commit, though nobody else has."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        class Lapsed(_Claim):
            async def commit(self, data: bytes) -> Record:
                raise StoreUnavailable("The lease has lapsed.")

        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Lapsed(found)


class WaitersCount(_Broken):
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


class CommitIgnoresVersions(_Broken):
    """The last one to commit wins."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            return super().write(key, record, ANY)


class WaitingBlocksTheLoop(_Broken):
    """Everything else stands still while somebody waits (here: for a moment)."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        for _ in range(20):
            found = self._claims._try(key, seen, asyncio.get_running_loop(), None)
            if found is not None:
                assert not isinstance(found, Place)
                return found
            time.sleep(0.005)  # noqa: ASYNC251 - that is the mistake
        raise ClaimTimeout("Somebody else holds the claim.")


class OrphansStay(_Broken):
    """A new temporary name each time: what a killed writer leaves lies about for ever."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            with self._writing(key) as path:
                temporary = path.with_name(f"{new_version()}.tmp")
                temporary.touch(mode=0o600)
                temporary.write_bytes(_encode(key, record))
                time.sleep(0.02)
                temporary.replace(path)
            return record


class TheChildHoldsOn(_Broken):
    """A forked child keeps its dead parent's lock."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        found = await super().claim(key, seen=seen, timeout=timeout)
        if isinstance(found, LocalClaim):
            self._copy = os.dup(found._lock._fd)
        return found


class ModesFollowTheUmask(_Broken):
    """Under an umask of 0, everybody may read the tokens."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            super().write(key, record, expect)
            self._path(key, ".token").chmod(0o666)
            return record


class NothingIsChecked(_Broken):
    """Whatever lies there is believed."""

    class files(_Files):  # noqa: N801
        def prepare(self, key: str) -> Path:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            return self._path(key, ".lock")

        def _read(self, path: Path) -> tuple[str, Record] | None:
            try:
                document = msgpack.unpackb(path.read_bytes())
            except FileNotFoundError:
                return None
            return document["key"].decode(), Record(document["version"], document["data"])


class NothingIsReserved(_Broken):
    """Whether there is room for the record shows when the grant is spent."""

    class claims(Claims):  # noqa: N801
        def _under(self, lock: SidecarLock, key: str, seen: str | None) -> LocalClaim | Record:
            mark = Mark(0.0, new_version())
            return LocalClaim(self._medium, self._worker, lock, key, self._medium.read(key), mark, None)


class HopesForTheBest(_Broken):
    """A claim on a store that cannot be written."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        try:
            return await super().claim(key, seen=seen, timeout=timeout)
        except StoreUnavailable:
            mark = Mark(0.0, new_version())
            return LocalClaim(self._files, self._worker, SidecarLock(-1), key, None, mark, None)


def open_broken(url: str) -> Store:
    """The store that "ClassName:/directory" names."""
    name, _, directory = url.partition(":")
    kind: type[_Broken] = globals()[name]
    return kind(Path(directory))


def _backend(kind: type[_Broken]) -> Callable[[Path], Backend]:
    def make(directory: Path) -> Backend:
        root = directory / "tokens"

        def named(suffix: str, key: str) -> Path:
            return root / (hashlib.sha256(key.encode()).hexdigest() + suffix)

        def damage(key: str) -> None:
            path = named(".token", key)
            content = bytearray(path.read_bytes())
            content[content.index(b"data" * 10)] ^= 1
            path.write_bytes(content)

        return Backend(
            open=partial(kind, root),
            takes_clock=True,
            url=f"{kind.__name__}:{root}",
            opener="tokensession.testing.broken_files:open_broken",
            root=root,
            record_file=partial(named, ".token"),
            lock_file=partial(named, ".lock"),
            damage=damage,
            patience=3.0,
        )

    return make


_TABLE: list[tuple[type[_Broken], tuple[str, ...]]] = [
    (
        WritesInPlace,
        (
            "test_a_reader_never_sees_a_torn_record",
            "test_a_write_that_fails_changes_nothing_and_can_be_made_again",
        ),
    ),
    (
        WritesBehind,
        (
            "test_what_is_stored_outlives_its_writer",
            "test_a_reader_never_sees_half_a_record_though_writers_are_killed",
        ),
    ),
    (ExclusionPerProcess, ("test_one_process_at_a_time_holds_the_claim",)),
    (OnlyTheLockCounts, ("test_all_processes_that_wait_are_served_by_one_commit",)),
    (NobodyIsTold, ("test_a_killed_holder_gives_way_and_the_next_one_is_told",)),
    (AgesAreSubtracted, ("test_a_clock_that_was_reset_makes_an_interruption_old",)),
    (LeaseOfNoTime, ("test_a_paused_holder_is_heard_if_nobody_was_faster",)),
    (WaitersCount, ("test_a_killed_waiter_held_nothing",)),
    (
        CommitIgnoresVersions,
        ("test_a_paused_holder_overwrites_nothing_newer", "test_removing_a_lock_file_loses_nothing"),
    ),
    (WaitingBlocksTheLoop, ("test_waiting_for_another_process_blocks_no_event_loop",)),
    (OrphansStay, ("test_what_a_killed_writer_leaves_is_swept_by_the_next",)),
    (TheChildHoldsOn, ("test_a_forked_child_keeps_no_claim_alive",)),
    (ModesFollowTheUmask, ("test_its_files_are_nobody_elses_business",)),
    (
        NothingIsChecked,
        (
            "test_damaged_content_is_an_error_and_the_next_put_repairs_it",
            "test_a_file_that_others_may_open_is_not_used",
            "test_a_directory_that_others_may_enter_is_not_used",
            "test_a_file_of_somebody_else_is_not_used",
            "test_a_symbolic_link_is_not_followed",
        ),
    ),
    (NothingIsReserved, ("test_a_claim_has_room_for_its_commit",)),
    (
        HopesForTheBest,
        (
            "test_a_full_disk_is_known_before_a_grant_is_spent",
            "test_a_read_only_place_is_known_before_a_grant_is_spent",
        ),
    ),
]

BROKEN_IN_FILES = [Broken(kind.__name__, _backend(kind), promises) for kind, promises in _TABLE]
