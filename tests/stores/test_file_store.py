"""What the file store does beyond the contract: its locks, its files, its clock."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from _backends import flocked
from _store_helpers import Local, cancelled, failing, gated, printed, run

from tokensession.errors import (
    ClaimTimeout,
    ConfigurationError,
    StoreCorrupt,
    StoreInsecure,
    StoreUnavailable,
    Superseded,
)
from tokensession.stores import FileStore, Record, file
from tokensession.stores._local import files, lock
from tokensession.stores._local.lock import HeldElsewhere, Holder, Mark, SidecarLock, lock_name, try_lock
from tokensession.stores._local.moment import Moment
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import claimed, newer, ticks

WRITTEN = Moment(wall=1_750_000_000.0, boot=1000.0)
CONTENT = msgpack.unpackb(file._encode("k", Record("v", b"data"), WRITTEN))
NO_SPACE = "No space left on device"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture
def store(directory: Path, clock: FakeClock) -> Iterator[FileStore]:
    store = FileStore(directory, clock=clock)
    yield store
    run(store.aclose())


def named(directory: Path, suffix: str) -> Path:
    return directory / lock_name("k", suffix)


FORMAT_1 = bytes.fromhex(
    "85a6666f726d617401a36b6579c4016ba776657273696f6ea176a464617461c4026869a5636865636bc410"
    "972379478b5a122cc2d6f36287130816"
)
FORMAT_2 = bytes.fromhex(
    "87a6666f726d617402a36b6579c4016ba776657273696f6ea176a464617461c4026869a477616c6ccb41da13b8"
    "60000000a4626f6f74cb408f400000000000a5636865636bc410f7fa8f39d89e4121e87affec605ae3e0"
)


def test_the_stored_bytes_are_pinned() -> None:
    """The next version must read the files that this one writes."""
    assert file._encode("k", Record("v", b"hi"), WRITTEN) == FORMAT_2


@pytest.mark.parametrize(("content", "age"), [(FORMAT_1, 0), (FORMAT_2, 7)], ids=["0.1.0", "this version"])
def test_a_file_of_this_version_or_of_0_1_0_is_read(content: bytes, age: float) -> None:
    """Version 0.1.0 did not say when it wrote a file, so that has the age 0."""
    found = file._decode(Path("tokens"), content, FakeClock(wall=1_750_000_007.0, boot=1007.0))
    assert found == ("k", Record("v", b"hi"))
    assert found[1].age == age


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"not msgpack",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb({}),
        msgpack.packb({"format": 3, "key": b"k", "version": "v", "data": b"", "check": b""}),
        msgpack.packb({"format": 2, "key": b"k", "version": "v", "data": b"", "check": b""}),
        msgpack.packb({**CONTENT, "format": 1}),
        msgpack.packb({**CONTENT, "wall": 1_750_000_001.0}),
        msgpack.packb({**CONTENT, "boot": 1001.0}),
        msgpack.packb({**CONTENT, "boot": "1000"}),
        msgpack.packb({**CONTENT, "wall": None}),
        msgpack.packb({"format": 1, "key": "k", "version": "v", "data": b"", "check": b""}),
        msgpack.packb({"format": 1, "key": b"k", "version": 7, "data": b"", "check": b""}),
        msgpack.packb({"format": 1, "key": b"k", "version": "v", "data": None, "check": b""}),
        file._encode("another key", Record("v", b"data"), WRITTEN),
        file._encode("k", Record("v", b"data"), WRITTEN)[:-1],
        file._encode("k", Record("v", b"data"), WRITTEN) + b"\0",
    ],
)
def test_any_other_content_is_corrupt_until_the_next_put(
    content: bytes, directory: Path, store: FileStore
) -> None:
    directory.mkdir(mode=0o700)
    path = named(directory, ".token")
    path.touch(mode=0o600)
    path.write_bytes(content)
    for work in (store.load("k"), store.put("k", b"new", expect=None)):
        with pytest.raises(StoreCorrupt):
            run(work)
    assert path.read_bytes() == content
    record = run(store.put("k", b"new"))
    assert run(store.load("k")) == record


def test_a_missing_parent_directory_is_an_error_that_says_so(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "missing" / "tokens")
    for work in (store.put("k", b"data"), store.claim("k", seen=None, timeout=0)):
        with pytest.raises(StoreUnavailable, match="No such file or directory"):
            run(work)
    run(store.aclose())


def test_a_stuck_writer_stops_no_other_key(directory: Path, store: FileStore) -> None:
    """Its clock stands still, so no write gives up."""
    run(store.put("k", b"before"))
    with flocked(named(directory, ".write")):
        put = run.start(store.put("k", b"after"))
        run(ticks())
        for number in range(10):
            record = run(store.put("other", b"%d" % number))
            claim = run(claimed(store, "other", record.version))
            run(claim.abandon())
            assert run(store.load("other")) == record
        assert not put.done()
    assert run(put).data == b"after"


def test_a_commit_waits_for_a_running_write(directory: Path, store: FileStore) -> None:
    """A put that has begun its comparison is not overtaken, and the commit then finds what it wrote."""
    claim = run(claimed(store, "k"))
    with flocked(named(directory, ".write")):
        commit = run.start(claim.commit(b"late"))
        while store._worker._pending == 0:
            run(asyncio.sleep(0))
        record = Record("v", b"signed in")
        file._save(named(directory, ".token"), file._encode("k", record, WRITTEN))
    with pytest.raises(Superseded) as caught:
        run(commit)
    assert caught.value.record == record == run(newer(store, "k"))


def test_the_temporary_file_of_a_killed_writer_is_removed(
    directory: Path, tmp_path: Path, store: FileStore
) -> None:
    """The next put or delete of its key removes it, whatever it is."""
    for sweep in (store.put("k", b"data"), store.delete("k"), store.delete("k")):
        run(sweep)
        assert not named(directory, ".tmp").exists()
        named(directory, ".tmp").symlink_to(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("content", "mode"), [(b"half a rec", 0o600), (b"", 0o644)])
def test_only_an_empty_private_temporary_file_is_used(
    content: bytes, mode: int, directory: Path, store: FileStore
) -> None:
    """Another one was left by a killed writer, or is being written, if the lock was removed."""
    run(store.put("k", b"data"))
    temporary = named(directory, ".tmp")
    temporary.write_bytes(content)
    temporary.chmod(mode)
    with temporary.open("rb+") as other:
        record = run(store.put("k", b"new"))
        other.write(b"by the other writer")
    assert run(store.load("k")) == record


def test_a_commit_uses_the_file_that_its_claim_has_made(directory: Path, store: FileStore) -> None:
    """So it needs no other inode."""
    claim = run(claimed(store, "k"))
    reserved = named(directory, ".tmp").stat()
    assert (reserved.st_size, reserved.st_mode & 0o777) == (0, 0o600)
    run(claim.commit(b"data"))
    assert named(directory, ".token").stat().st_ino == reserved.st_ino


def test_a_repeated_write_is_durable_too(
    directory: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record may be there, and its name not be synced yet: the first try failed at that."""
    syncs = list[Path]()

    def fail(path: Path) -> None:
        syncs.append(path)
        if len(syncs) < 3:
            raise OSError(5, "Input/output error")

    claim = run(claimed(store, "k"))
    monkeypatch.setattr(file, "sync_directory", fail)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            run(claim.commit(b"data"))
    assert run(claim.commit(b"data")).data == b"data"
    assert syncs == [directory] * 3


def taken(path: Path) -> SidecarLock:
    locked = try_lock(path)
    assert isinstance(locked, SidecarLock)
    return locked


def held(path: Path) -> HeldElsewhere:
    found = try_lock(path)
    assert isinstance(found, HeldElsewhere)
    return found


def test_a_lock_file_replaced_between_open_and_lock_is_locked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inode is compared after locking, because a lock on a removed file excludes no one."""
    path = tmp_path / "k.lock"
    opened = []

    def open_then_replace(path: Path, flags: int) -> int:
        fd = files.open_private(path, flags)
        opened.append(fd)
        if len(opened) <= 2:
            path.unlink()
        if len(opened) == 2:
            path.touch(mode=0o600)
        return fd

    monkeypatch.setattr(lock, "open_private", open_then_replace)
    locked = taken(path)
    assert len(opened) == 3
    assert os.path.samestat(os.fstat(locked._fd), path.stat())
    monkeypatch.undo()
    assert held(path)
    locked.unlock()
    locked.unlock()
    assert repr(locked) == "<SidecarLock unlocked>"


@pytest.mark.parametrize(
    ("line", "age"),
    [
        (b"", None),
        (bytes(128), None),
        (Mark(90.0, "v").encode(), 10.0),
        (Mark(100.0, "v").encode(), 0.0),
        (Mark(100.1, "v").encode(), 86_400.0),
        (b"garbage", 0.0),
        (b"\xff\xfe", 0.0),
        (b"12.5", 87.5),
        (b"12.5 77786dfdc79ad8c5d136677dbcbc3f53\n" + bytes(90), 87.5),  # of version 0.1.0
        (b"12.5 77786dfdc79ad8c5d136677dbcbc3f53 soon\n", 0.0),
    ],
)
def test_a_mark_is_as_old_as_its_holder(line: bytes, age: float | None) -> None:
    """None without a mark, a day if the holder began in the future, 0 if the mark is unreadable."""
    mark = Mark.decode(line, 100.0)
    assert (None if mark is None else mark.age(100.0)) == age


def test_a_mark_says_how_long_its_holder_listens() -> None:
    mark = Mark(90.0, "77786dfdc79ad8c5d136677dbcbc3f53", 120.0)
    assert len(mark.encode()) == 128
    assert Mark.decode(mark.encode(), 100.0) == mark
    assert Mark.decode(b"90.0 v", 100.0) == Mark(90.0, "v", 0.0)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (Holder(90.0, 4711, "web-1").encode(), "process 4711 on web-1, for 10.0 s"),
        (Holder(110.0, 4711, "web-1").encode(), "process 4711 on web-1, for 0.0 s"),
        (b"", None),
        (bytes(384), None),
        (b"90.0 4711", None),
        (b"90.0 47x11 web-1", None),
        (b"\xff\xfe", None),
    ],
)
def test_the_error_of_a_waiter_describes_the_holder(line: bytes, text: str | None) -> None:
    """None if the line is missing or half written."""
    holder = Holder.decode(line)
    assert (None if holder is None else holder.describe(100.0)) == text


def test_a_claim_timeout_names_the_holder_of_the_claim(clock: FakeClock, store: FileStore) -> None:
    """Or no one, if the lock file does not say it: one of version 0.1.0 does not."""
    claim = run(claimed(store, "k"))
    clock.advance(31)
    with pytest.raises(ClaimTimeout, match=rf"held by process {os.getpid()} on \S+, for 31\.0 s"):
        run(store.claim("k", seen=None, timeout=0))
    os.pwrite(claim._lock._fd, bytes(384), 128)
    with pytest.raises(ClaimTimeout, match="held by another holder"):
        run(store.claim("k", seen=None, timeout=0))


def test_only_a_release_looks_like_a_change_to_waiters(tmp_path: Path) -> None:
    """Each of them would look at the record for nothing while the holder sends its request or commits."""
    path = tmp_path / "k.lock"
    locked = taken(path)
    locked.begin(Holder(1.0, 1, "web-1"), nonce=7)
    waiting = held(path)
    locked.leave_mark(Mark(1.0, "v"))
    locked.free_reserve()
    assert not waiting.changed
    locked.release(Mark(1.0, "v"))
    assert waiting.changed
    again = taken(path)
    again.begin(Holder(2.0, 1, "web-1"), nonce=8)
    assert waiting.changed
    assert again.mark(2.0) == Mark(1.0, "v")
    again.release()
    assert waiting.changed
    path.unlink()
    assert not waiting.changed


def test_a_release_looks_like_a_change_to_who_came_before_the_claim_had_begun(tmp_path: Path) -> None:
    """The file had the size of an ended claim then, and has it again."""
    path = tmp_path / "k.lock"
    locked = taken(path)
    waiting = held(path)
    locked.begin(Holder(1.0, 1, "web-1"), nonce=7)
    locked.release()
    assert waiting.changed


def test_the_claim_after_a_killed_holder_looks_like_a_change(tmp_path: Path) -> None:
    """Whatever size the killed holder has left the file with."""
    path = tmp_path / "k.lock"
    killed = taken(path)
    killed.begin(Holder(1.0, 1, "web-1"), nonce=4095)
    waiting = held(path)
    killed.unlock()  # as the kernel does
    taken(path).begin(Holder(1.0, 1, "web-1"), nonce=0)
    assert waiting.changed


@pytest.mark.parametrize("sent", [False, True])
def test_an_unfinished_claim_gives_the_earlier_mark_back(
    sent: bool, directory: Path, clock: FakeClock, store: FileStore
) -> None:
    """Byte for byte, whether or not the claim has left its own mark."""

    async def interrupted() -> None:
        await (await claimed(store, "k")).sending(listening=120.0)
        await store.aclose()

    asyncio.run(interrupted())
    path = named(directory, ".lock")
    before = path.read_bytes()[:128]
    clock.advance(5)
    claim = run(claimed(store, "k"))
    if sent:
        run(claim.sending())
    assert (path.read_bytes()[:128] == before) is not sent
    run(claim.abandon())
    assert path.read_bytes() == before


def test_a_mark_that_cannot_be_left_is_an_error(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing may be sent. The claim stays held."""
    claim = run(claimed(store, "k"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(errno.ENOSPC))
        with pytest.raises(StoreUnavailable, match=rf"\.lock could not be marked: {NO_SPACE}"):
            run(claim.sending())
    run(claim.sending())


def test_ages_are_measured_by_the_boot_clock(clock: FakeClock, directory: Path) -> None:
    """Steps of the wall clock do not matter."""

    async def take_over(*, send: bool) -> float | None:
        async with FileStore(directory, clock=clock) as store:
            claim = await claimed(store, "k")
            await (claim.sending() if send else claim.abandon())
            return claim.interrupted

    asyncio.run(take_over(send=True))
    clock.advance(7)
    clock.step_wall(-1_000_000)
    assert asyncio.run(take_over(send=False)) == 7.0
    clock.advance(3)
    clock.step_wall(2_000_000)
    assert asyncio.run(take_over(send=False)) == 10.0


def test_a_holder_that_died_after_its_commit_was_not_interrupted(store: FileStore) -> None:
    """The mark names the version; here the process ends between the rename and the release."""
    claim = run(claimed(store, "k"))
    run(claim.sending())
    record = store._files.write("k", Record(claim._version, b"data"), None)
    claim._lock.unlock()  # as the kernel does
    assert run(claimed(store, "k", record.version)).interrupted is None


def test_space_is_reserved_and_freed(directory: Path, store: FileStore) -> None:
    claim = run(claimed(store, "k"))
    path = named(directory, ".lock")
    assert path.stat().st_blocks * 512 >= 64 * 1024
    run(claim.commit(b"data"))
    assert (path.stat().st_size, path.stat().st_blocks) == (0, 0)


def test_a_claim_that_fails_gives_its_space_back(
    directory: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, and others need the space too."""
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
    with pytest.raises(StoreUnavailable, match=NO_SPACE):
        run(store.claim("k", seen=None, timeout=0))
    assert named(directory, ".lock").stat().st_blocks == 0
    assert not named(directory, ".tmp").exists()


def test_making_a_store_without_flock_is_an_error(
    kind: type[Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ConfigurationError, match=f"{kind.__name__} needs POSIX file locks"):
        kind(tmp_path / "tokens")


def test_the_modules_can_be_imported_without_flock() -> None:
    program = """
import sys
sys.modules['fcntl'] = None
from tokensession.stores import FileStore, SQLiteStore, MemoryStore, open_store
print(open_store('memory:'))
"""
    assert printed(program).startswith("<MemoryStore")


UNPRIVILEGED = """
import asyncio, os, sys
import sqlite_utils  # now, because an ordinary user may not be able to read the interpreter's files
from pathlib import Path
from tokensession.stores import FileStore, SQLiteStore
from tokensession.stores._local.lock import lock_name
directory = Path(sys.argv[1])
if os.geteuid() == 0:
    os.chown(directory, 65534, 65534)
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.umask(0o777)
async def main():
    for store in (FileStore(directory / "tokens"), SQLiteStore(directory / "tokens.db")):
        record = await store.put("k", b"data")
        claim = await store.claim("k", seen=record.version, timeout=5)
        record = await claim.commit(b"more")
        assert await store.load("k") == record
        await store.aclose()
    # A process killed between making a lock file and giving its owner access to it:
    lock = directory / "tokens" / lock_name("j", ".lock")
    lock.touch(mode=0); lock.chmod(0)
    store = FileStore(directory / "tokens")
    await (await store.claim("j", seen=None, timeout=5)).abandon()
    await store.aclose()
asyncio.run(main())
"""


def test_the_store_works_under_a_umask_that_excludes_the_owner() -> None:
    """Run as an ordinary user, because mode bits do not stop root."""
    with tempfile.TemporaryDirectory() as home:
        assert printed(UNPRIVILEGED, home) == ""


def test_a_pipe_in_place_of_a_record_is_an_error_and_does_not_block(
    directory: Path, store: FileStore
) -> None:
    run(store.put("j", b"data"))
    os.mkfifo(named(directory, ".token"), 0o600)
    with pytest.raises(StoreInsecure, match="not a regular file"):
        run(store.load("k"))


def test_a_failed_write_whose_caller_was_cancelled_is_logged(
    directory: Path, store: FileStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The claim stays held, because the data may be the only copy of a refresh token."""
    claim = run(claimed(store, "k"))
    gate = gated(store._worker)
    run(cancelled(run.start(claim.commit(b"secret"))))
    directory.rename(directory.with_name("moved"))
    directory.touch()
    gate.set()
    run(store.aclose())
    assert repr(claim) == "<LocalClaim held, interrupted=None>"
    run(claim.abandon())
    assert repr(claim) == "<LocalClaim ended, interrupted=None>"
    assert "A write whose caller was cancelled failed" in caplog.text
    assert "secret" not in caplog.text
