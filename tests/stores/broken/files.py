"""Broken stores that need files: see `broken`.

Each is a `FileStore` with one mistake. A peer opens one by `open_broken`, whose URL is the class's
module and name and the directory, with colons between them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import msgpack

from tokensession.clock import SystemClock
from tokensession.errors import StoreUnavailable
from tokensession.stores._local.claims import Claims, LocalClaim
from tokensession.stores._local.lock import Mark, SidecarLock
from tokensession.stores.protocol import ANY, AnyVersion, Record, Store, new_version
from tokensession.stores.file import FileStore, _encode, _Files
from tokensession.testing.conformance.backend import Backend
from broken import Broken

__all__ = ["BROKEN_IN_FILES", "BrokenFileStore", "backend_of", "open_broken"]

Expect = str | AnyVersion | None


class BrokenFileStore(FileStore):
    """A `FileStore` whose files or claims may be of another kind."""

    files: type[_Files] = _Files
    claims: type[Claims] = Claims
    patience = 3.0

    def __init__(self, directory: Path, *, clock: Any = None) -> None:
        super().__init__(directory, clock=clock)
        self._files = self.files(self._files.directory)
        self._claims = self.claims(self._files, self._worker, clock or SystemClock())


class WritesInPlace(BrokenFileStore):
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


class WritesBehind(BrokenFileStore):
    """It is stored soon; not yet when `put` or `commit` returns."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            self.later = (key, record, expect)
            return record


class CommitIgnoresVersions(BrokenFileStore):
    """The last one to commit wins."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            return super().write(key, record, ANY)


class OrphansStay(BrokenFileStore):
    """A new temporary name each time: what a killed writer leaves lies about for ever."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            with self._writing(key) as path:
                temporary = path.with_name(f"{new_version()}.tmp")
                temporary.touch(mode=0o600)
                temporary.write_bytes(_encode(key, record))
                time.sleep(0.2)  # most of its time, however busy the machine: that is where it is killed
                temporary.replace(path)
            return record


class ModesFollowTheUmask(BrokenFileStore):
    """Under an umask of 0, everybody may read the tokens."""

    class files(_Files):  # noqa: N801
        def write(self, key: str, record: Record, expect: Expect) -> Record:
            super().write(key, record, expect)
            self._path(key, ".token").chmod(0o666)
            return record


class NothingIsChecked(BrokenFileStore):
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


class NothingIsReserved(BrokenFileStore):
    """Whether there is room for the record shows when the grant is spent."""

    class claims(Claims):  # noqa: N801
        def _under(self, lock: SidecarLock, key: str, seen: str | None) -> LocalClaim | Record:
            mark = Mark(0.0, new_version())
            return LocalClaim(self._medium, self._worker, lock, key, self._medium.read(key), mark, None)


class HopesForTheBest(BrokenFileStore):
    """A claim on a store that cannot be written."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        try:
            return await super().claim(key, seen=seen, timeout=timeout)
        except StoreUnavailable:
            mark = Mark(0.0, new_version())
            return LocalClaim(self._files, self._worker, SidecarLock(-1), key, None, mark, None)


def open_broken(url: str) -> Store:
    """The store that "module:ClassName:/directory" names."""
    module, name, directory = url.split(":", 2)
    kind: type[BrokenFileStore] = getattr(import_module(module), name)
    return kind(Path(directory))


def backend_of(kind: type[BrokenFileStore]) -> Callable[[Path], Backend]:
    """Makes what the suite has to know about this kind of store."""

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
            url=f"{kind.__module__}:{kind.__name__}:{root}",
            opener="broken.files:open_broken",
            root=root,
            record_file=partial(named, ".token"),
            lock_file=partial(named, ".lock"),
            damage=damage,
            patience=kind.patience,
        )

    return make


_TABLE: list[tuple[type[BrokenFileStore], tuple[str, ...]]] = [
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
    (
        CommitIgnoresVersions,
        ("test_a_paused_holder_overwrites_nothing_newer", "test_removing_a_lock_file_loses_nothing"),
    ),
    (OrphansStay, ("test_what_a_killed_writer_leaves_is_swept_by_the_next",)),
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

BROKEN_IN_FILES = [Broken(kind.__name__, backend_of(kind), promises) for kind, promises in _TABLE]
