"""File systems that keep no modes or owners, and volumes whose modes come back: what the error says."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _store_helpers import Local, printed, run, source, success

from tokensession.errors import StoreInsecure
from tokensession.stores import FileStore
from tokensession.testing import ScriptedTransport
from tokensession.testing.conformance.backend import Backend, claimed


@contextlib.contextmanager
def file_system(
    below: Path, *, mode: int = 0, owner: int | None = None, chmod: str = "ignored"
) -> Iterator[None]:
    """Everything below this path has these mode bits, and this owner. A chmod does nothing, or is refused."""
    real = {name: getattr(os, name) for name in ("stat", "lstat", "fstat", "chmod", "fchmod")}

    def changed(status: os.stat_result) -> os.stat_result:
        values: list[Any] = list(status)
        values[stat.ST_MODE] |= mode
        if owner is not None:
            values[stat.ST_UID] = owner
        return os.stat_result(values)

    def is_below(path: Any) -> bool:
        name = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else os.fspath(path)
        return str(name).startswith(str(below))

    def looks(name: str) -> Any:
        def look(path: Any, *rest: Any, **options: Any) -> os.stat_result:
            status: os.stat_result = real[name](path, *rest, **options)
            return changed(status) if is_below(path) else status

        return look

    def changes(name: str) -> Any:
        def change(path: Any, *rest: Any, **options: Any) -> None:
            if not is_below(path):
                real[name](path, *rest, **options)
            elif chmod == "refused":
                raise PermissionError(1, "Operation not permitted")

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "lstat", "fstat"):
            patch.setattr(os, name, looks(name))
        for name in ("chmod", "fchmod"):
            patch.setattr(os, name, changes(name))
        yield


def refusals(store: Local) -> list[str]:
    """What the user reads, at each kind of call. No token request is made."""
    found, transport = [], ScriptedTransport(success(1))
    for work in (source(store, transport).token(), store.put("k", b"data")):
        with pytest.raises(StoreInsecure) as caught:
            run(work)
        found.append(str(caught.value))
    assert transport.requests == []
    return found


@pytest.mark.parametrize("chmod", ["ignored", "refused"])
@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_k45_where_chmod_does_nothing_the_error_does_not_advise_it(
    mode: int, chmod: str, store: Local, tmp_path: Path
) -> None:
    """WSL's /mnt without metadata, vfat, ntfs, cifs: new files and directories are open to all."""
    with file_system(tmp_path, mode=mode, chmod=chmod):
        for text in refusals(store):
            assert "keeps no modes, so chmod does nothing" in text
            assert "metadata (WSL)" in text
            assert "umask=077" in text
            assert "Run chmod" not in text
    assert not list(tmp_path.rglob("tmp*"))


def test_k45_where_all_files_have_another_owner_the_error_names_the_mount_option(
    store: Local, tmp_path: Path
) -> None:
    """As on vfat or cifs that root has mounted, or on NFS that maps root to nobody."""
    with file_system(tmp_path, owner=4711):
        for text in refusals(store):
            assert "belongs to user 4711" in text
            assert f"uid={os.geteuid()}" in text
            assert "Find out how it got there" not in text


@pytest.mark.parametrize(
    ("mode", "kubernetes"), [(0o660, True), (0o640, True), (0o644, False), (0o606, False)]
)
def test_k45_a_file_that_a_group_may_open_is_what_a_kubernetes_fsgroup_makes(
    mode: int, kubernetes: bool, backend: Backend, store: Local
) -> None:
    """The advice to run chmod stays, and the error says how to prevent it. Others do not read of it."""
    assert backend.record_file is not None
    record = run(store.put("k", b"data"))
    run(store.aclose())
    backend.record_file("k").chmod(mode)
    with pytest.raises(StoreInsecure, match=r"Run chmod 600 on it") as caught:
        run(store.load("k"))
    assert ("fsGroupChangePolicy: OnRootMismatch" in str(caught.value)) is kubernetes
    backend.record_file("k").chmod(0o600)
    assert run(store.load("k")) == record


def test_k45_a_volume_whose_modes_kubernetes_has_changed_names_directory_and_policy(tmp_path: Path) -> None:
    """The kubelet gives directories the mode 2770, and files the mode 660."""
    root = tmp_path / "tokens"
    store = FileStore(root)
    run(store.put("k", b"data"))
    for path in (root, *root.iterdir()):
        path.chmod(0o2770 if path.is_dir() else 0o660)
    with pytest.raises(StoreInsecure, match=r"mode 2770.*chmod 700.*fsGroupChangePolicy.*init container"):
        run(store.load("k"))
    root.chmod(0o700)
    with pytest.raises(StoreInsecure, match=r"mode 660.*chmod 600.*fsGroupChangePolicy"):
        run(store.load("k"))
    run(store.aclose())


NOT_WRITABLE = """
import asyncio, os, sys
from pathlib import Path
import sqlite_utils  # now, because an ordinary user may not be able to read the interpreter's files
from tokensession.errors import StoreUnavailable
from tokensession.stores import FileStore, SQLiteStore
home, kind = Path(sys.argv[1]), sys.argv[2]
if os.geteuid() == 0:
    os.chown(home, 65534, 65534)
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
path = home / "tokens"
store = FileStore(path) if kind == "file" else SQLiteStore(path)
locks = path if kind == "file" else home / "tokens.locks"

async def main():
    record = await store.put("k", b"data")
    await (await store.claim("k", seen=record.version, timeout=5)).abandon()  # its lock file exists
    locks.chmod(0o500)
    for key, seen in (("k", record.version), ("new", None)):
        try:
            await store.claim(key, seen=seen, timeout=0)
            print(key, "granted")
        except StoreUnavailable as error:
            print(key, "not writable" in str(error) or "Permission denied" in str(error))
    assert await store.load("k") == record
    locks.chmod(0o700)
    await (await store.claim("new", seen=None, timeout=5)).commit(b"data")
    await store.aclose()

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_m24_a_lock_directory_that_is_not_writable_is_found_at_the_claim(kind: str) -> None:
    """As an ordinary user, because mode bits do not stop root. Records can be read."""
    with tempfile.TemporaryDirectory() as home:
        known, new = printed(NOT_WRITABLE, home, kind).splitlines()
    assert new == "new True"
    # The SQLite store creates nothing there if the key's lock file exists.
    assert known == "k True" or (kind, known) == ("sqlite", "k granted")


@pytest.mark.parametrize("end", ["commit", "abandon"])
def test_m25_the_end_of_a_claim_frees_it_although_a_child_has_a_copy_of_its_lock(
    end: str, backend: Backend, store: Local, other: Local
) -> None:
    """A child that was forked by other means than `os.fork` keeps the descriptor until it ends."""
    assert backend.lock_file is not None
    claim = run(claimed(store, "k"))
    copies = [
        os.dup(int(fd.name))
        for fd in Path("/proc/self/fd").iterdir()
        if fd.is_symlink() and str(fd.readlink()) == str(backend.lock_file("k"))
    ]
    assert copies
    record = run(claim.commit(b"data") if end == "commit" else claim.abandon())
    run(run(claimed(other, "k", record.version if record else None, timeout=0)).abandon())
    for copy in copies:
        os.close(copy)
