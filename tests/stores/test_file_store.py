"""What the file store does beyond the contract: its locks, its files, its clock."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgpack
import pytest
from _backends import flocked

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


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


WRITTEN = Moment(wall=1_750_000_000.0, boot=1000.0)
CONTENT = msgpack.unpackb(file._encode("k", Record("v", b"data"), WRITTEN))


def named(directory: Path, suffix: str, key: str = "k") -> Path:
    return directory / lock_name(key, suffix)


def test_the_stored_bytes_are_pinned(tmp_path: Path) -> None:
    """The next version must read the files that this one writes."""
    content = bytes.fromhex(
        "87a6666f726d617402a36b6579c4016ba776657273696f6ea176a464617461c4026869a477616c6ccb41da13b8"
        "60000000a4626f6f74cb408f400000000000a5636865636bc410f7fa8f39d89e4121e87affec605ae3e0"
    )
    clock = FakeClock(wall=1_750_000_007.0, boot=1007.0)
    assert file._encode("k", Record("v", b"hi"), WRITTEN) == content
    assert decoded(content, clock) == ("k", Record("v", b"hi"), 7)


def test_a_file_of_version_0_1_0_is_read_with_the_age_0() -> None:
    """Its format 1 does not say when it was written."""
    content = bytes.fromhex(
        "85a6666f726d617401a36b6579c4016ba776657273696f6ea176a464617461c4026869a5636865636bc410"
        "972379478b5a122cc2d6f36287130816"
    )
    assert decoded(content, FakeClock()) == ("k", Record("v", b"hi"), 0)


def decoded(content: bytes, clock: FakeClock) -> tuple[str, Record, float]:
    found = file._decode(Path("tokens"), content, clock)
    assert not isinstance(found, StoreCorrupt)
    key, record = found
    return key, record, record.age


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
def test_any_other_content_is_corrupt_until_the_next_put(content: bytes, tmp_path: Path) -> None:
    directory = tmp_path / "tokens"
    directory.mkdir(mode=0o700)
    path = named(directory, ".token")
    path.write_bytes(content)
    path.chmod(0o600)

    async def main() -> None:
        store = FileStore(directory)
        with pytest.raises(StoreCorrupt):
            await store.load("k")
        with pytest.raises(StoreCorrupt):
            await store.put("k", b"new", expect=None)
        assert path.read_bytes() == content
        record = await store.put("k", b"new")
        assert await store.load("k") == record
        await store.aclose()

    run(main())


def test_reading_creates_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        assert await store.load("k") is None
        assert await store.keys() == []
        await store.aclose()

    run(main())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_parent_directory_is_an_error_that_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        store = FileStore(tmp_path / "missing" / "tokens")
        with pytest.raises(StoreUnavailable, match="No such file or directory"):
            await store.put("k", b"data")
        with pytest.raises(StoreUnavailable, match="No such file or directory"):
            await store.claim("k", seen=None, timeout=0)
        await store.aclose()

    run(main())


def test_a_relative_directory_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FileStore("tokens")
    monkeypatch.chdir("/")
    run(store.put("k", b"data"))
    run(store.aclose())
    assert (tmp_path / "tokens").is_dir()


def test_a_stuck_writer_stops_no_other_key(tmp_path: Path) -> None:
    """Neither its readers nor its writers."""

    async def main() -> None:
        store = FileStore(tmp_path / "tokens", clock=FakeClock())  # which stands still: no write gives up
        await store.put("k", b"before")
        with flocked(named(tmp_path / "tokens", ".write")):
            put = asyncio.ensure_future(store.put("k", b"after"))
            await ticks()
            for number in range(10):
                record = await store.put("other", b"%d" % number)
                claim = await claimed(store, "other", record.version)
                await claim.abandon()
                assert await store.load("other") == record
            assert not put.done()
        assert (await put).data == b"after"
        await store.aclose()

    run(main())


def test_a_commit_waits_for_a_running_write(tmp_path: Path) -> None:
    """A put that has begun its comparison is not overtaken, and the commit then finds what it wrote."""

    async def main() -> None:
        store, other = FileStore(tmp_path / "tokens"), FileStore(tmp_path / "tokens")
        claim = await claimed(store, "k")
        with flocked(named(tmp_path / "tokens", ".write")):
            commit = asyncio.ensure_future(claim.commit(b"late"))
            while store._worker._pending == 0:
                await asyncio.sleep(0)
            record = Record("v", b"signed in")
            file._save(named(tmp_path / "tokens", ".token"), file._encode("k", record, WRITTEN))
        with pytest.raises(Superseded) as caught:
            await commit
        assert caught.value.record == record == await newer(other, "k")
        await store.aclose()
        await other.aclose()

    run(main())


def test_the_temporary_file_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    """The next put or delete of its key removes it, whatever it is."""

    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        for sweep in (store.put("k", b"data"), store.delete("k"), store.delete("k")):
            await sweep
            assert not named(tmp_path / "tokens", ".tmp").exists()
            named(tmp_path / "tokens", ".tmp").symlink_to(tmp_path / "elsewhere")
        await store.aclose()

    run(main())
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("content", "mode"), [(b"half a rec", 0o600), (b"", 0o644)])
def test_only_an_empty_private_temporary_file_is_used(content: bytes, mode: int, tmp_path: Path) -> None:
    """Another one was left by a killed writer, or is being written, if the lock was removed."""

    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        await store.put("k", b"data")
        temporary = named(tmp_path / "tokens", ".tmp")
        temporary.write_bytes(content)
        temporary.chmod(mode)
        with temporary.open("rb+") as other:
            record = await store.put("k", b"new")
            other.write(b"by the other writer")
        assert await store.load("k") == record
        await store.aclose()

    run(main())


def test_a_commit_uses_the_file_that_its_claim_has_made(tmp_path: Path) -> None:
    """So it needs no other inode."""

    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        claim = await claimed(store, "k")
        reserved = named(tmp_path / "tokens", ".tmp").stat()
        assert (reserved.st_size, reserved.st_mode & 0o777) == (0, 0o600)
        await claim.commit(b"data")
        assert named(tmp_path / "tokens", ".token").stat().st_ino == reserved.st_ino
        await store.aclose()

    run(main())


def test_a_repeated_write_is_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record may be there, and its name not be synced yet: the first try failed at that."""
    syncs = list[Path]()

    def fail(directory: Path) -> None:
        syncs.append(directory)
        if len(syncs) < 3:
            raise OSError(5, "Input/output error")

    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        claim = await claimed(store, "k")
        with monkeypatch.context() as patch:
            patch.setattr(file, "sync_directory", fail)
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="Input/output error"):
                    await claim.commit(b"data")
            assert (await claim.commit(b"data")).data == b"data"
        assert syncs == [tmp_path / "tokens"] * 3
        await store.aclose()

    run(main())


def test_a_lock_file_replaced_between_open_and_lock_is_locked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inode is compared after locking, because a lock on a removed file excludes no one."""
    path = tmp_path / "k.lock"
    opened = []

    def open_then_replace(path: Path, flags: int) -> int:
        fd = files.open_private(path, flags)
        opened.append(fd)
        if len(opened) == 1:
            path.unlink()
        if len(opened) == 2:
            path.unlink()
            path.touch(mode=0o600)
        return fd

    monkeypatch.setattr(lock, "open_private", open_then_replace)
    locked = try_lock(path)
    assert isinstance(locked, SidecarLock)
    assert len(opened) == 3
    assert os.path.samestat(os.fstat(locked._fd), path.stat())
    monkeypatch.undo()
    assert isinstance(try_lock(path), HeldElsewhere)
    locked.unlock()
    locked.unlock()
    assert repr(locked) == "<SidecarLock unlocked>"


def test_a_lock_file_that_is_always_replaced_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems change the inode of a file while it is open."""
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    with pytest.raises(StoreUnavailable, match=r"k\.lock was never the file"):
        try_lock(tmp_path / "k.lock")


def test_a_release_frees_the_lock_although_another_process_has_a_copy(tmp_path: Path) -> None:
    """As a subprocess has that has not called exec yet."""
    locked = try_lock(tmp_path / "k.lock")
    assert isinstance(locked, SidecarLock)
    copy = os.dup(locked._fd)
    locked.release()
    again = try_lock(tmp_path / "k.lock")
    assert isinstance(again, SidecarLock)
    again.release()
    os.close(copy)


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


def test_a_claim_timeout_names_the_holder_of_the_claim(tmp_path: Path) -> None:
    """Or no one, if the lock file does not say it: one of version 0.1.0 does not."""
    clock = FakeClock()

    async def main() -> None:
        store, other = (FileStore(tmp_path / "tokens", clock=clock) for _ in range(2))
        claim = await claimed(store, "k")
        clock.advance(31)
        with pytest.raises(ClaimTimeout, match=rf"held by process {os.getpid()} on \S+, for 31\.0 s"):
            await other.claim("k", seen=None, timeout=0)
        os.pwrite(claim._lock._fd, bytes(384), 128)  # type: ignore[attr-defined]
        with pytest.raises(ClaimTimeout, match="held by another holder"):
            await other.claim("k", seen=None, timeout=0)
        await claim.abandon()
        await store.aclose()
        await other.aclose()

    run(main())


def test_only_a_release_looks_like_a_change_to_waiters(tmp_path: Path) -> None:
    """Each of them would look at the record for nothing while the holder sends its request or commits."""
    path = tmp_path / "k.lock"
    locked = try_lock(path)
    assert isinstance(locked, SidecarLock)
    locked.begin(Holder(1.0, 1, "web-1"), nonce=7)
    held = try_lock(path)
    assert isinstance(held, HeldElsewhere)
    locked.leave_mark(Mark(1.0, "v"))
    locked.free_reserve()
    assert not held.changed
    locked.release(Mark(1.0, "v"))
    assert held.changed
    again = try_lock(path)
    assert isinstance(again, SidecarLock)
    again.begin(Holder(2.0, 1, "web-1"), nonce=8)
    assert held.changed
    assert again.mark(2.0) == Mark(1.0, "v")
    again.release()
    assert held.changed
    path.unlink()
    assert not held.changed


def test_the_claim_after_a_killed_holder_looks_like_a_change(tmp_path: Path) -> None:
    """Whatever size the killed holder has left the file with."""
    path = tmp_path / "k.lock"
    for number in (4095, 0):
        locked = try_lock(path)
        assert isinstance(locked, SidecarLock)
        locked.begin(Holder(1.0, 1, "web-1"), nonce=number)
        if number:
            held = try_lock(path)
            assert isinstance(held, HeldElsewhere)
        locked.unlock()  # as the kernel does
    assert held.changed


@pytest.mark.parametrize("sent", [False, True])
def test_an_unfinished_claim_gives_the_earlier_mark_back(sent: bool, tmp_path: Path) -> None:
    """Byte for byte, whether or not the claim has left its own mark."""
    path = named(tmp_path / "tokens", ".lock")
    clock = FakeClock()

    async def interrupted() -> None:
        async with FileStore(tmp_path / "tokens", clock=clock) as store:
            await (await claimed(store, "k")).sending(listening=120.0)

    run(interrupted())
    before = path.read_bytes()[:128]
    clock.advance(5)

    async def main() -> None:
        async with FileStore(tmp_path / "tokens", clock=clock) as store:
            claim = await claimed(store, "k")
            if sent:
                await claim.sending()
            assert (path.read_bytes()[:128] == before) is not sent
            await claim.abandon()

    run(main())
    assert path.read_bytes() == before


def test_a_mark_that_cannot_be_left_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing may be sent. The claim stays held."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        claim = await claimed(store, "k")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(StoreUnavailable, match=r"\.lock could not be marked: No space left"):
                await claim.sending()
        await claim.sending()
        await claim.abandon()
        await store.aclose()

    run(main())


def test_ages_are_measured_by_the_boot_clock(tmp_path: Path) -> None:
    """Steps of the wall clock do not matter."""
    clock = FakeClock()

    async def begin() -> None:
        store = FileStore(tmp_path / "tokens", clock=clock)
        await (await claimed(store, "k")).sending()
        await store.aclose()

    async def take_over() -> float | None:
        store = FileStore(tmp_path / "tokens", clock=clock)
        claim = await claimed(store, "k")
        await claim.abandon()
        await store.aclose()
        return claim.interrupted

    run(begin())
    clock.advance(7)
    clock.step_wall(-1_000_000)
    assert run(take_over()) == 7.0
    clock.advance(3)
    clock.step_wall(2_000_000)
    assert run(take_over()) == 10.0


def test_a_holder_that_died_after_its_commit_was_not_interrupted(tmp_path: Path) -> None:
    """The mark names the version; here the process ends between the rename and the release."""

    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        claim = await claimed(store, "k")
        await claim.sending()
        record = store._files.write("k", Record(claim._version, b"data"), None)  # type: ignore[attr-defined]
        claim._lock.unlock()  # type: ignore[attr-defined] - as the kernel does
        following = await claimed(store, "k", record.version)
        assert following.interrupted is None
        await following.abandon()
        await store.aclose()

    run(main())


def test_space_is_reserved_and_freed(tmp_path: Path) -> None:
    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        path = named(tmp_path / "tokens", ".lock")
        claim = await claimed(store, "k")
        assert path.stat().st_blocks * 512 >= 64 * 1024
        await claim.commit(b"data")
        assert (path.stat().st_size, path.stat().st_blocks) == (0, 0)
        await store.aclose()

    run(main())


def test_a_claim_that_fails_gives_its_space_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full, and others need the space too."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(StoreUnavailable, match="No space left on device"):
                await store.claim("k", seen=None, timeout=0)
        assert named(tmp_path / "tokens", ".lock").stat().st_blocks == 0
        assert not named(tmp_path / "tokens", ".tmp").exists()
        await store.aclose()

    run(main())


def test_making_a_store_without_flock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ConfigurationError, match="FileStore needs POSIX file locks"):
        FileStore(tmp_path)


def test_the_modules_can_be_imported_without_flock() -> None:
    program = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from tokensession.stores import FileStore, SQLiteStore, MemoryStore, open_store\n"
        "print(open_store('memory:'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("<MemoryStore"), done.stderr


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
    # A directory that is read-only to its owner:
    (directory / "tokens").chmod(0o500)
    try:
        await store.claim("z", seen=None, timeout=5)
    except Exception as error:
        print(type(error).__name__)
    (directory / "tokens").chmod(0o700)
    await store.aclose()
asyncio.run(main())
"""


def test_the_store_works_under_a_umask_that_excludes_the_owner() -> None:
    """Run as an ordinary user, because mode bits do not stop root."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-c", UNPRIVILEGED, home]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("StoreUnavailable\n", 0), done.stderr


def test_a_pipe_in_place_of_a_record_is_an_error_and_does_not_block(tmp_path: Path) -> None:
    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        await store.put("j", b"data")
        os.mkfifo(named(tmp_path / "tokens", ".token"), 0o600)
        with pytest.raises(StoreInsecure, match="not a regular file"):
            await store.load("k")
        await store.aclose()

    run(main())


def test_a_claim_granted_after_its_caller_was_cancelled_is_released(tmp_path: Path) -> None:
    """The worker thread is busy when the claim is requested and cancelled, and takes the lock later."""

    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        gate = threading.Event()
        store._worker.post(lambda: gate.wait(30))
        task = asyncio.ensure_future(store.claim("k", seen=None, timeout=30))
        await ticks()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        gate.set()
        claim = await claimed(FileStore(tmp_path / "tokens"), "k")
        assert claim.interrupted is None
        await claim.abandon()
        await store.aclose()

    run(main())


def test_a_failed_write_whose_caller_was_cancelled_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The claim stays held, because the data may be the only copy of a refresh token."""

    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        claim = await claimed(store, "k")
        gate = threading.Event()
        store._worker.post(lambda: gate.wait(30))
        task = asyncio.ensure_future(claim.commit(b"secret"))
        await ticks()
        task.cancel()
        await asyncio.wait([task])
        (tmp_path / "tokens").rename(tmp_path / "moved")
        (tmp_path / "tokens").touch()
        gate.set()
        await store.aclose()
        assert repr(claim) == "<LocalClaim held, interrupted=None>"
        await claim.abandon()
        assert repr(claim) == "<LocalClaim ended, interrupted=None>"
        await store.aclose()

    run(main())
    assert "A write whose caller was cancelled failed" in caplog.text
    assert "secret" not in caplog.text
