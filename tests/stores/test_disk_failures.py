"""Failures about disks: writers that are killed at any moment, full disks, read-only ones."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _backends
import pytest
from _store_helpers import Local, failing, printed, run, source, success

from tokensession.errors import StoreUnavailable
from tokensession.stores import FileStore
from tokensession.testing import ScriptedTransport
from tokensession.testing.conformance.backend import Backend, claimed
from tokensession.testing.conformance.files import filled, read_only, small_disk

# Each child stores one record, and is killed before its n-th system call. The first one that survives ends
# the series.
KILLED_WRITERS = """
import asyncio, json, os, signal, sys, threading
from pathlib import Path
from tokensession import open_store
url, root = sys.argv[1], Path(sys.argv[2])
os.umask(0)
import sqlite3, sqlite_utils
SYSTEM = {"posix", "fcntl"}

async def put(data):
    store = open_store(url)
    await store.put("k", data)
    await store.aclose()

async def load():
    store = open_store(url)
    record = await store.load("k")
    await store.aclose()
    return record.data

def calls(kill_at):
    made = []
    def watch(frame, event, function):
        if event != "c_call":
            return
        of = type(getattr(function, "__self__", None)).__name__
        if function.__module__ in SYSTEM or of in ("FileIO", "Connection"):
            made.append(function.__name__)
            if len(made) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    threading.setprofile(watch)  # for the store's thread, which starts later
    return made

old, new = b"old" * 3000, b"new" * 5000
asyncio.run(put(old))
found, call = [], 0
while True:
    call += 1
    child = os.fork()
    if child == 0:
        calls(call)
        asyncio.run(put(new))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    open_to_others = [path.name for path in root.rglob("*") if path.stat().st_mode & 0o077]
    assert not open_to_others, f"a kill at call {call} left {open_to_others}"
    data = asyncio.run(load())
    assert data in (old, new), f"torn by a kill at call {call}: {len(data)} bytes"
    found.append("new" if data == new else "old")
    asyncio.run(put(old))  # what the killed writer left does not stop this
    if status == 0:
        break
made = calls(0)
asyncio.run(put(new))
print(json.dumps({"found": found, "made": made}))
"""


def killed_at_every_call(backend: Backend) -> dict[str, list[str]]:
    """What was found after each kill, and the system calls of one complete write."""
    report: dict[str, list[str]] = json.loads(printed(KILLED_WRITERS, backend.url, backend.root))
    return report


def test_f29_a_writer_killed_at_any_step_leaves_the_old_record_or_the_new_one(backend: Backend) -> None:
    """After SIGKILL before any system call, the old record or the new one is there, whole and private."""
    found = killed_at_every_call(backend)["found"]
    assert found == sorted(found, reverse=True), "once the record is new, it stays new"
    assert found[0] == "old"
    assert found[-1] == "new"
    assert len(found) > 10


def test_f29_a_file_is_synced_before_its_rename_and_its_directory_after(tmp_path: Path) -> None:
    """Write, fsync, rename, fsync of the directory, in this order: for a power failure."""
    made = killed_at_every_call(_backends.file(tmp_path))["made"]
    steps = [name for name in made if name in ("write", "fsync", "replace", "rename")]
    assert steps == ["write", "fsync", "replace", "fsync"]


NO_SYNC = [
    *(("fsync", number) for number in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)),
    *(("open", number) for number in (errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EISDIR)),
]
NO_DISK = [(call, number) for call in ("fsync", "open") for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT)]


@contextlib.contextmanager
def sync_fails(number: int, *, call: str = "fsync", directory: bool = True) -> Iterator[list[int]]:
    """A directory cannot be synced, or not be opened for that. Or a file cannot be. Collects other syncs."""
    fsync, open_, synced = os.fsync, os.open, list[int]()

    def failing_sync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) == directory:
            raise OSError(number, os.strerror(number))
        synced.append(fd)
        fsync(fd)

    def failing_open(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise OSError(number, os.strerror(number))
        return open_(path, flags, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, failing_sync if call == "fsync" else failing_open)
        yield synced


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_can_neither_sync_a_directory_nor_allocate_space_will_do(
    number: int, backend: Backend, store: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like cifs and ZFS. Files are synced all the same, and the space for a commit is written."""
    assert backend.lock_file is not None
    monkeypatch.setattr(os, "posix_fallocate", failing(number))
    with sync_fails(number) as synced:
        claim = run(claimed(store, "k"))
        assert backend.lock_file("k").stat().st_blocks * 512 >= 64 * 1024
        record = run(claim.commit(b"data"))
    assert run(store.load("k")) == record
    assert len(synced) == isinstance(store, FileStore)


@pytest.mark.parametrize(("call", "number"), NO_SYNC)
def test_k42_a_token_is_stored_although_no_directory_can_be_synced(
    call: str, number: int, store: Local, other: Local
) -> None:
    """As on cifs and some FUSE file systems. Nothing counts as unsaved, and another process finds it."""
    transport = ScriptedTransport(success(1), success(2))
    work = source(store, transport)
    with sync_fails(number, call=call):
        assert run(work.token()).access_token == "access-1"
        assert run(work.refresh()).access_token == "access-2"
        assert not work.snapshot().unsaved
        assert run(source(other, transport).token()).access_token == "access-2"
        assert len(transport.requests) == 2
        run(store.delete("k"))


@pytest.mark.parametrize(("call", "number"), NO_DISK)
def test_f70_k42_a_directory_whose_disk_fails_is_an_error(call: str, number: int, tmp_path: Path) -> None:
    """That the record is durable is not known then."""
    store = FileStore(tmp_path / "tokens")
    run(store.put("k", b"old"))
    with sync_fails(number, call=call), pytest.raises(StoreUnavailable):
        run(store.put("k", b"new"))
    run(store.aclose())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_k42_a_file_that_cannot_be_synced_is_an_error(number: int, tmp_path: Path) -> None:
    """Whatever the reason. The old record stays."""
    store = FileStore(tmp_path / "tokens")
    old = run(store.put("k", b"old"))
    with sync_fails(number, directory=False), pytest.raises(StoreUnavailable, match=os.strerror(number)):
        run(store.put("k", b"new"))
    assert run(store.load("k")) == old
    run(store.aclose())


def test_k42_space_that_must_be_written_to_be_reserved_is_reserved_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only a part of it fits on the disk, a write of all of it succeeds halfway. The claim fails."""
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP))
    with small_disk(tmp_path) as disk:
        store = FileStore(disk / "tokens")
        record = run(store.put("k", b"data"))
        killed = run(claimed(store, "k", record.version))
        run(killed.sending())  # so that the file has a first block already
        killed._lock.free_reserve()
        killed._lock.unlock()  # as the kernel does
        with filled(disk):
            os.truncate(disk / "filler", (disk / "filler").stat().st_size - 32 * 1024)
            with pytest.raises(StoreUnavailable, match=r"No space left.*df -i"):
                run(store.claim("k", seen=record.version, timeout=0))
        run(run(claimed(store, "k", record.version)).abandon())
        run(store.aclose())


@pytest.mark.parametrize("call", ["posix_fallocate", "open"])
@pytest.mark.parametrize(
    ("number", "helps"),
    [(errno.EDQUOT, "quota -s"), (errno.ENOSPC, "df -i"), (errno.EROFS, "read-write"), (errno.EIO, "dmesg")],
)
def test_k43_a_claim_notices_what_would_stop_its_commit(
    call: str, number: int, helps: str, store: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space, no inodes, no quota left, or read-only: the error says what helps, and nothing is sent."""
    real, transport = getattr(os, call), ScriptedTransport(success(1))

    def fail(*args: Any, **options: Any) -> Any:
        if call == "posix_fallocate" or args[1] & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    run(store.put("other", b"data"))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StoreUnavailable, match=rf"{os.strerror(number)}.*{helps}"):
            run(source(store, transport).token())
    assert transport.requests == []
    assert run(source(store, transport).token()).access_token == "access-1"


def test_k43_a_read_only_mount_is_named(tmp_path: Path) -> None:
    """Not only that the directory is not writable."""
    with small_disk(tmp_path) as disk:
        store = FileStore(disk / "tokens")
        record = run(store.put("k", b"data"))
        if os.geteuid() == 0:  # another user cannot mount
            with read_only(disk, disk / "tokens"):
                with pytest.raises(StoreUnavailable, match=r"Read-only file system.*read-write"):
                    run(store.claim("k", seen=record.version, timeout=0))
                assert run(store.load("k")) == record
        run(store.aclose())


@pytest.mark.parametrize("problem", ["full", "read-only"])
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_f29_a_disk_that_cannot_be_written_costs_no_refresh_token(
    kind: str, problem: str, tmp_path: Path
) -> None:
    """A full or read-only disk is noticed before the token request, harms no record, and may recover."""
    mount: contextlib.AbstractContextManager[Path]
    needs_mount = problem == "full" or os.geteuid() == 0
    mount = small_disk(tmp_path) if needs_mount else contextlib.nullcontext(tmp_path)
    with mount as disk:
        backend = getattr(_backends, kind)(disk)
        store, transport = backend.open(), ScriptedTransport(success(1), success(2))
        assert run(source(store, transport).token()).access_token == "access-1"
        stored = run(store.load("k"))
        run(store.aclose())
        with filled(disk) if problem == "full" else read_only(disk, backend.root):
            with pytest.raises(StoreUnavailable):
                run(source(store, transport).refresh())
            assert len(transport.requests) == 1
            run(store.aclose())
        assert run(store.load("k")) == stored
        assert run(source(store, transport).refresh()).access_token == "access-2"
        run(store.aclose())
