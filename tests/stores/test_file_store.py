"""What the file store does beyond the contract: its locks, its files, its clock."""

from __future__ import annotations

import asyncio
import fcntl
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

from tokensession.errors import (
    ConfigurationError,
    StoreCorrupt,
    StoreInsecure,
    StoreUnavailable,
    Superseded,
)
from tokensession.stores import FileStore, Record, file
from tokensession.stores._local import files, lock, worker
from tokensession.stores._local.lock import Mark, lock_name, try_lock
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import claimed, newer, ticks


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


def named(directory: Path, suffix: str, key: str = "k") -> Path:
    return directory / lock_name(key, suffix)


def test_the_stored_bytes_are_pinned(tmp_path: Path) -> None:
    """The next version must read the files that this one writes."""
    content = bytes.fromhex(
        "85a6666f726d617401a36b6579c4016ba776657273696f6ea176a464617461c4026869a5636865636bc410"
        "972379478b5a122cc2d6f36287130816"
    )
    assert file._encode("k", Record("v", b"hi")) == content
    assert file._decode(tmp_path, content) == ("k", Record("v", b"hi"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"not msgpack",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb({}),
        msgpack.packb({"format": 2, "key": b"k", "version": "v", "data": b"", "check": b""}),
        msgpack.packb({"format": 1, "key": "k", "version": "v", "data": b"", "check": b""}),
        msgpack.packb({"format": 1, "key": b"k", "version": 7, "data": b"", "check": b""}),
        msgpack.packb({"format": 1, "key": b"k", "version": "v", "data": None, "check": b""}),
        file._encode("another key", Record("v", b"data")),
        file._encode("k", Record("v", b"data"))[:-1],
        file._encode("k", Record("v", b"data")) + b"\0",
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


def test_a_stuck_writer_stops_neither_readers_nor_other_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the end, a writer of the same key gets `StoreUnavailable`."""

    async def main() -> None:
        store = FileStore(tmp_path / "tokens")
        before = await store.put("k", b"before")
        monkeypatch.setattr(worker, "_TRIES", 1_000_000)  # it must not give up during this
        with named(tmp_path / "tokens", ".write").open("rb+") as stuck:
            fcntl.flock(stuck, fcntl.LOCK_EX)
            put = asyncio.ensure_future(store.put("k", b"between"))
            await ticks()
            assert await store.load("k") == before
            await store.put("other", b"data")
            assert not put.done()
        between = await put
        monkeypatch.setattr(worker, "_TRIES", 20)
        with named(tmp_path / "tokens", ".write").open("rb+") as stuck:
            fcntl.flock(stuck, fcntl.LOCK_EX)
            with pytest.raises(StoreUnavailable, match="Another process is writing"):
                await store.put("k", b"after")
            claim = await claimed(store, "k", between.version)
            with pytest.raises(StoreUnavailable):
                await claim.commit(b"after")
        # The writer is gone. The claim is still held, and its commit can be repeated.
        assert (await claim.commit(b"after")).data == b"after"
        await store.aclose()

    run(main())


def test_a_commit_waits_for_a_running_write(tmp_path: Path) -> None:
    """A put that has begun its comparison is not overtaken, and the commit then finds what it wrote."""

    async def main() -> None:
        store, other = FileStore(tmp_path / "tokens"), FileStore(tmp_path / "tokens")
        claim = await claimed(store, "k")
        path = named(tmp_path / "tokens", ".write")
        path.touch(mode=0o600)
        with path.open("rb+") as writing:
            fcntl.flock(writing, fcntl.LOCK_EX)
            commit = asyncio.ensure_future(claim.commit(b"late"))
            while store._worker._pending == 0:
                await asyncio.sleep(0)
            record = Record("v", b"signed in")
            file._save(named(tmp_path / "tokens", ".token"), file._encode("k", record))
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
    assert locked is not None
    assert len(opened) == 3
    assert os.path.samestat(os.fstat(locked._fd), path.stat())
    monkeypatch.undo()
    assert try_lock(path) is None
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
    ],
)
def test_a_mark_is_as_old_as_its_holder(line: bytes, age: float | None) -> None:
    """None without a mark, a day if the holder began in the future, 0 if the mark is unreadable."""
    mark = Mark.decode(line, 100.0)
    assert (None if mark is None else mark.age(100.0)) == age


def test_ages_are_measured_by_the_boot_clock(tmp_path: Path) -> None:
    """Steps of the wall clock do not matter."""
    clock = FakeClock()

    async def begin() -> None:
        store = FileStore(tmp_path / "tokens", clock=clock)
        await claimed(store, "k")
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
        record = store._files.write("k", Record(claim._mark.version, b"data"), None)  # type: ignore[attr-defined]
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
