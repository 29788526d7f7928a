"""Broken stores that need files: see `broken`.

Each is a `FileStore` with one mistake. A peer opens one with `open_broken`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import _backends
import msgpack

from broken import Expect, breaks, opened_by_peers
from tokensession.clock import SystemClock
from tokensession.errors import ClaimTimeout, StoreUnavailable
from tokensession.stores._local.claims import Claims, LocalClaim
from tokensession.stores._local.lock import SidecarLock
from tokensession.stores._local.moment import Moment
from tokensession.stores._local.worker import Busy, Worker
from tokensession.stores.file import FileStore, _encode, _Files
from tokensession.stores.protocol import ANY, Record, new_version
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import Backend


class BrokenFileStore(FileStore):
    """A `FileStore` that can have other classes for its files and claims."""

    files: type[_Files] = _Files
    claims: type[Claims] = Claims
    Claim: type[LocalClaim] = LocalClaim
    patience = 3.0

    @classmethod
    def make_backend(cls, directory: Path) -> Backend:
        backend = dataclasses.replace(_backends.file(directory, cls), patience=cls.patience)
        return opened_by_peers(backend, cls, directory / "tokens")

    def __init__(self, directory: Path, *, clock: Any = None) -> None:
        clock = clock or SystemClock()
        super().__init__(directory, clock=clock)
        self._files = self.files(self._files.directory, clock)
        self._claims = self.claims(self._files, self._worker, clock)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        found = await super().claim(key, seen=seen, timeout=timeout)
        if isinstance(found, LocalClaim):
            found.__class__ = self.Claim
            await self.granted(found)
        return found

    async def granted(self, claim: LocalClaim) -> None:
        """Do something to each claim."""


@breaks("test_a_reader_never_sees_a_torn_record", "test_a_failed_write_changes_nothing_and_can_be_repeated")
class WritesInPlace(BrokenFileStore):
    """A reader, or the next process after a crash, finds half a record."""

    class files(_Files):  # noqa: N801 - it replaces a class attribute
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            content = _encode(key, record, Moment.now(self._clock))
            self.prepare(key)
            with self._locked(key) as path, path.open("wb", buffering=0) as file:
                path.chmod(0o600)
                file.write(content[: len(content) // 2])
                time.sleep(0.005)  # as long as a disk may take
                file.write(content[len(content) // 2 :])
                os.fsync(file.fileno())
            return record


@breaks("test_what_is_stored_survives_its_killed_writer", "test_a_killed_writer_leaves_a_whole_record")
class WritesLater(BrokenFileStore):
    """The record is not stored yet when `put` or `commit` returns."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            self.later = (key, record, expect)
            return record


@breaks("test_a_paused_holder_overwrites_nothing_newer", "test_removing_a_lock_file_loses_nothing")
class CommitIgnoresVersions(BrokenFileStore):
    """The last commit wins."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            return super().write(key, record, ANY)


@breaks("test_the_next_writer_removes_what_a_killed_one_left")
class TemporaryFilesStay(BrokenFileStore):
    """Each write has a new temporary name, so the file of a killed writer stays."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            self.prepare(key)
            with self._locked(key) as path:
                temporary = path.with_name(f"{new_version()}.tmp")
                temporary.touch(mode=0o600)
                temporary.write_bytes(_encode(key, record, Moment.now(self._clock)))
                time.sleep(0.2)  # most of its time, so that it is killed here even on a busy machine
                temporary.replace(path)
            return record


@breaks("test_files_are_private_under_any_umask")
class ModesFollowTheUmask(BrokenFileStore):
    """With umask 0, every user may read the tokens."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            super().write(key, record, expect)
            self._path(key, ".token").chmod(0o666)
            return record


@breaks(
    "test_damaged_data_is_an_error_until_the_next_put",
    "test_a_file_that_others_may_open_is_not_used",
    "test_a_directory_that_others_may_enter_is_not_used",
    "test_a_directory_that_others_may_write_to_is_not_used",
    "test_a_file_of_another_user_is_not_used",
    "test_a_symbolic_link_is_not_followed",
)
class NothingIsChecked(BrokenFileStore):
    """It uses any file that it finds."""

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


@breaks("test_a_file_that_others_may_open_is_not_used")
class ModesAreRepaired(BrokenFileStore):
    """It takes rights from others and goes on, although they may have written to the file."""

    class files(_Files):  # noqa: N801
        def prepare(self, key: str) -> Path:
            path = super().prepare(key)
            for side in (path, path.with_suffix(".write")):
                with contextlib.suppress(FileNotFoundError):
                    side.chmod(0o600)
            return path


@breaks("test_a_record_that_was_moved_to_another_key_is_not_read")
class KeysAreNotBound(BrokenFileStore):
    """A record that was moved to another key is that account's token."""

    class files(_Files):  # noqa: N801
        def read(self, key: str) -> Record | None:
            stored = self._read(self._path(key, ".token"))
            return None if stored is None else stored[1]


@breaks(
    "test_a_claim_reserves_space_for_its_commit",
    "test_a_claim_reserves_a_file_for_its_commit",
    "test_a_disk_without_inodes_fails_the_claim_and_no_commit",
)
class NothingIsReserved(BrokenFileStore):
    """Whether the record fits on the disk is only known after the refresh token was spent."""

    class claims(Claims):  # noqa: N801
        def _look_under_lock(self, lock: SidecarLock, key: str, seen: str | None) -> LocalClaim | Record:
            current = self._records.read(key)
            return LocalClaim(
                self._records, self._worker, self._clock, lock, key, current, new_version(), None, None
            )


@breaks("test_a_full_disk_fails_the_claim", "test_a_read_only_directory_fails_the_claim")
class ClaimsWithoutChecking(BrokenFileStore):
    """It grants a claim although the store cannot be written."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        try:
            return await super().claim(key, seen=seen, timeout=timeout)
        except StoreUnavailable:
            lock = SidecarLock(self._files.directory, -1)
            return LocalClaim(
                self._files, self._worker, SystemClock(), lock, key, None, new_version(), None, None
            )


@breaks("test_an_abandoned_claim_leaves_no_file_behind")
class ReservedFilesStay(BrokenFileStore):
    """Each claim that is abandoned leaves a file behind."""

    class files(_Files):  # noqa: N801
        def unreserve(self, key: str) -> None:
            pass


@breaks("test_removing_a_lock_file_loses_nothing")
class LostClaimsMaySend(BrokenFileStore):
    """A holder whose lock file was removed sends its request beside that of the next one."""

    async def granted(self, claim: LocalClaim) -> None:
        claim._lock._is_ours = lambda: True  # type: ignore[method-assign]


@breaks("test_a_locked_store_fails_the_claim")
class LockedStoresAreClaimed(BrokenFileStore):
    """That the record cannot be written is only known after the refresh token was spent."""

    class files(_Files):  # noqa: N801
        def reserve(self, key: str) -> None:
            pass


@breaks(
    "test_a_write_to_a_locked_store_ends_and_can_be_repeated",
    "test_closing_ends_although_the_store_is_locked",
)
class BusyWritesNeverGiveUp(BrokenFileStore):
    """A caller waits for ever, and so does a service that wants to stop."""

    patience = 1.0

    def __init__(self, directory: Path, *, clock: Any = None) -> None:
        super().__init__(directory, clock=clock)
        self._worker = Worker("broken", clock=FakeClock())
        self._claims = self.claims(self._files, self._worker, clock)


@breaks("test_closing_does_not_wait_for_a_claim_that_was_cancelled")
class CancelledClaimsAreRetried(BrokenFileStore):
    """A service that wants to stop waits for a claim whose caller has left long ago."""

    patience = 1.0

    class claims(Claims):  # noqa: N801
        async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
            loop = asyncio.get_running_loop()
            found = await self._worker.run(partial(self._try_claim, key, seen, loop))
            assert isinstance(found, LocalClaim | Record)
            return found


@breaks("test_a_write_to_a_locked_store_delays_no_reader")
class BusyWritesBlockTheThread(BrokenFileStore):
    """While one write waits for another program, no token can be read."""

    patience = 1.0

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            while True:
                try:
                    return super().write(key, record, expect)
                except Busy:
                    time.sleep(0.005)


@breaks("test_a_claim_timeout_says_who_holds_the_claim")
class HoldersAreAnonymous(BrokenFileStore):
    """You only learn that someone has been holding the claim for too long."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        try:
            return await super().claim(key, seen=seen, timeout=timeout)
        except ClaimTimeout:
            raise ClaimTimeout("The claim is held elsewhere.") from None
