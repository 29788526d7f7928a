"""The failure modes of disks: writers that are killed at any moment, full disks, read-only ones."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import _backends
import pytest
from _store_helpers import opened, run, source, success

from tokensession.errors import StoreUnavailable
from tokensession.testing import ScriptedTransport
from tokensession.testing.conformance.backend import Backend
from tokensession.testing.conformance.files import filled, read_only, small_disk

# Each child stores one record, and is killed before its n-th call to the system; the first one that
# comes through ends the series. Each is a process of its own: what it had open, the kernel closes.
DIES = """
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
    threading.setprofile(watch)  # for the store's thread, which starts after this
    return made

old, new = b"old" * 3000, b"new" * 5000
asyncio.run(put(old))
found, place = [], 0
while True:
    place += 1
    child = os.fork()
    if child == 0:
        calls(place)
        asyncio.run(put(new))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    open_to_others = [path.name for path in root.rglob("*") if path.stat().st_mode & 0o077]
    assert not open_to_others, f"a kill at place {place} left {open_to_others}"
    data = asyncio.run(load())
    assert data in (old, new), f"torn by a kill at place {place}: {len(data)} bytes"
    found.append("new" if data == new else "old")
    asyncio.run(put(old))  # nothing that was left behind is in the way
    if status == 0:
        break
made = calls(0)
asyncio.run(put(new))
print(json.dumps({"found": found, "made": made}))
"""


def killed_everywhere(backend: Backend) -> dict[str, list[str]]:
    """What was found after each kill, and the calls of one whole write."""
    command = [sys.executable, "-c", DIES, str(backend.url), str(backend.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told: dict[str, list[str]] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_f29_a_writer_killed_at_any_step_leaves_the_old_record_or_the_new_one(
    kind: str, tmp_path: Path
) -> None:
    """SIGKILL before each call to the system: the old record or the new one, never half, always private."""
    found = killed_everywhere(getattr(_backends, kind)(tmp_path))["found"]
    assert found == sorted(found, reverse=True), "once it is new, it stays new"
    assert found[0] == "old"
    assert found[-1] == "new"
    assert len(found) > 10


def test_f29_a_file_is_synced_before_it_gets_its_name_and_its_name_after(tmp_path: Path) -> None:
    """Temporary file, fsync, rename, fsync of the directory, in this order: also after a power failure."""
    made = killed_everywhere(_backends.file(tmp_path))["made"]
    steps = [name for name in made if name in ("write", "fsync", "replace", "rename")]
    assert steps == ["write", "fsync", "replace", "fsync"]


@pytest.mark.parametrize("kind", ["file", "sqlite"])
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_f29_a_disk_that_cannot_be_written_costs_no_grant(kind: str, trouble: str, tmp_path: Path) -> None:
    """A full or read-only disk is noticed before the token request, and harms no record; then all goes on."""
    slot: contextlib.AbstractContextManager[Path]
    needs_mount = trouble == "full" or os.geteuid() == 0
    slot = small_disk(tmp_path) if needs_mount else contextlib.nullcontext(tmp_path)
    with slot as disk:
        backend = getattr(_backends, kind)(disk)

        async def main() -> None:
            transport = ScriptedTransport(success(1), success(2))
            async with opened(backend) as store:
                assert (await source(store, transport).token()).access_token == "access-1"
                stored = await store.load("k")
                await store.aclose()
                with filled(disk) if trouble == "full" else read_only(disk, backend.root):
                    with pytest.raises(StoreUnavailable):
                        await source(store, transport).refresh()
                    assert len(transport.requests) == 1
                    await store.aclose()
                assert await store.load("k") == stored
                assert (await source(store, transport).refresh()).access_token == "access-2"

        run(main())
