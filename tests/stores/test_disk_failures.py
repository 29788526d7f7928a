"""Failures about disks: writers that are killed at any moment, full disks, read-only ones."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import _backends
import pytest
from _store_helpers import opened, run, source, success

from tokensession.errors import StoreUnavailable
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
    command = [sys.executable, "-c", KILLED_WRITERS, str(backend.url), str(backend.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    report: dict[str, list[str]] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_f29_a_writer_killed_at_any_step_leaves_the_old_record_or_the_new_one(
    kind: str, tmp_path: Path
) -> None:
    """After SIGKILL before any system call, the old record or the new one is there, whole and private."""
    found = killed_at_every_call(getattr(_backends, kind)(tmp_path))["found"]
    assert found == sorted(found, reverse=True), "once the record is new, it stays new"
    assert found[0] == "old"
    assert found[-1] == "new"
    assert len(found) > 10


def test_f29_a_file_is_synced_before_its_rename_and_its_directory_after(tmp_path: Path) -> None:
    """Write, fsync, rename, fsync of the directory, in this order: for a power failure."""
    made = killed_at_every_call(_backends.file(tmp_path))["made"]
    steps = [name for name in made if name in ("write", "fsync", "replace", "rename")]
    assert steps == ["write", "fsync", "replace", "fsync"]


@pytest.mark.parametrize("kind", ["file", "sqlite"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_can_neither_sync_a_directory_nor_allocate_space_will_do(
    kind: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like cifs and ZFS. Files are synced all the same, and the space for a commit is written."""
    fsync, synced = os.fsync, list[str]()

    def sync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        synced.append("file")
        fsync(fd)

    def allocate(fd: int, offset: int, size: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    backend = getattr(_backends, kind)(tmp_path)

    async def main() -> None:
        async with opened(backend) as store:
            claim = await claimed(store, "k")
            assert backend.lock_file("k").stat().st_blocks * 512 >= 64 * 1024
            record = await claim.commit(b"data")
            assert await store.load("k") == record

    run(main())
    assert synced == ["file"] * (kind == "file")


def test_any_other_failure_to_sync_or_to_allocate_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        async with opened(_backends.file(tmp_path)) as store:
            for failing, work in {
                "posix_fallocate": partial(store.claim, "k", seen=None, timeout=0),
                "fsync": partial(store.put, "k", b"data"),
            }.items():
                with monkeypatch.context() as patch:
                    patch.setattr(os, failing, fail)
                    with pytest.raises(StoreUnavailable, match="Input/output error"):
                        await work()
            await (await claimed(store, "k")).commit(b"data")

    run(main())


@pytest.mark.parametrize("kind", ["file", "sqlite"])
@pytest.mark.parametrize("problem", ["full", "read-only"])
def test_f29_a_disk_that_cannot_be_written_costs_no_refresh_token(
    kind: str, problem: str, tmp_path: Path
) -> None:
    """A full or read-only disk is noticed before the token request, harms no record, and may recover."""
    mount: contextlib.AbstractContextManager[Path]
    needs_mount = problem == "full" or os.geteuid() == 0
    mount = small_disk(tmp_path) if needs_mount else contextlib.nullcontext(tmp_path)
    with mount as disk:
        backend = getattr(_backends, kind)(disk)

        async def main() -> None:
            transport = ScriptedTransport(success(1), success(2))
            async with opened(backend) as store:
                assert (await source(store, transport).token()).access_token == "access-1"
                stored = await store.load("k")
                await store.aclose()
                with filled(disk) if problem == "full" else read_only(disk, backend.root):
                    with pytest.raises(StoreUnavailable):
                        await source(store, transport).refresh()
                    assert len(transport.requests) == 1
                    await store.aclose()
                assert await store.load("k") == stored
                assert (await source(store, transport).refresh()).access_token == "access-2"

        run(main())
