"""Promises of a store that keeps its records in files. A part of `StoreConformance`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import shutil
import stat
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from ...errors import StoreError, StoreInsecure, StoreUnavailable
from ...stores.protocol import Store
from .backend import Backend, claimed, is_free, needs, promise, superseded, taking

__all__ = ["FilePromises"]


def on_a_small_disk(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A `promise` of a store on a `disk` that is easily filled."""

    @functools.wraps(test)
    def run(self: FilePromises, tmp_path: Path, **fixtures: Any) -> None:
        with small_disk(tmp_path) as disk:
            backend = self.make_backend(disk)
            needs(backend.root, "kept in files")
            promise(test)(self, backend=backend, disk=disk, **fixtures)

    return taking(run, "tmp_path", inspect.signature(test).parameters)


class FilePromises:
    """Modes, owners, links, full disks and read-only ones."""

    def make_backend(self, directory: Path) -> Backend:
        """An empty backend. Keep its files in this directory."""
        raise NotImplementedError

    @pytest.mark.parametrize("umask", [0, 0o022, 0o777])
    def test_files_are_private_under_any_umask(self, backend: Backend, umask: int) -> None:
        """Files have mode 0600, and directories 0700."""
        root = needs(backend.root, "kept in files")
        with backend.peers() as [peer]:
            peer.ask("umask", mask=umask)
            version = peer.ask("put", key="k", data="data")["version"]
            peer.ask("claim", key="k", seen=version)
            entries = [path for path in root.rglob("*") if not path.is_symlink()]
            assert entries
            modes = {str(path): stat.S_IMODE(path.stat().st_mode) for path in entries}
            expected = {str(path): 0o700 if path.is_dir() else 0o600 for path in entries}
            assert modes == expected
            assert peer.ask("commit", data="data")["data"] == "data"

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
    def test_a_file_that_others_may_open_is_not_used(self, backend: Backend, mode: int) -> None:
        """Whichever of its files it is: it is neither read nor written until its mode is private again."""

        @contextlib.contextmanager
        def exposed(path: Path) -> Iterator[None]:
            path.chmod(mode)
            yield
            path.chmod(0o600)

        uses_no_file(backend, exposed)

    @promise
    async def test_a_directory_that_others_may_enter_is_not_used(
        self, backend: Backend, store: Store
    ) -> None:
        """This is about the directory that the store creates."""
        lock = needs(backend.lock_file, "locked by files")("k")
        record = await store.put("k", b"data")
        await (await claimed(store, "k", record.version)).abandon()
        lock.parent.chmod(0o755)
        with pytest.raises(StoreInsecure):
            await store.claim("k", seen=record.version, timeout=0)
        lock.parent.chmod(0o700)
        await (await claimed(store, "k", record.version)).abandon()

    @promise
    async def test_a_directory_that_others_may_write_to_is_not_used(
        self, backend: Backend, store: Store
    ) -> None:
        """Nor one around it, as long as it is the store's: others could replace its files, or add some."""
        root = needs(backend.root, "kept in files")
        record = await (await claimed(store, "k")).commit(b"data")
        for directory in (root, *(path for path in root.rglob("*") if path.is_dir())):
            directory.chmod(0o777)
            async with backend.opened() as other:
                with pytest.raises(StoreInsecure):
                    await other.claim("k", seen=record.version, timeout=0)
                directory.chmod(0o700)
                await (await claimed(other, "k", record.version)).abandon()

    def test_a_file_of_another_user_is_not_used(self, backend: Backend) -> None:
        """Whichever of its files it is: that user may have forged it."""
        needs(os.geteuid() == 0 or None, "tested by root, which can change the owner of a file")

        @contextlib.contextmanager
        def given_away(path: Path) -> Iterator[None]:
            os.chown(path, 65534, 65534)
            yield
            os.chown(path, 0, 0)

        uses_no_file(backend, given_away)

    def test_a_symbolic_link_is_not_followed(self, backend: Backend, tmp_path: Path) -> None:
        """Whichever of its files it replaces."""

        @contextlib.contextmanager
        def linked(path: Path) -> Iterator[None]:
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
            yield
            (tmp_path / "elsewhere").rename(path)

        uses_no_file(backend, linked)

    @promise
    async def test_a_second_name_leads_to_no_second_claim(self, backend: Backend, store: Store) -> None:
        """Under another name of the same records, the claim is exclusive, or the store is not used."""
        second_names = needs(backend.second_names, "one whose records can have a second name")
        record = await store.put("k", b"data")
        claim = await claimed(store, "k", record.version)
        for other in second_names():
            async with backend.opened(other):
                with contextlib.suppress(StoreError):
                    assert not await is_free(other, "k", record.version)
        await claim.abandon()

    @on_a_small_disk
    async def test_a_full_disk_fails_the_claim(self, store: Store, disk: Path) -> None:
        """So no refresh token is spent; reading still works, and with free space so does everything."""
        record = await store.put("k", b"data" * 200)
        await (await claimed(store, "k", record.version)).abandon()
        with filled(disk):
            with pytest.raises(StoreUnavailable):
                await store.claim("k", seen=record.version, timeout=0)
            assert await store.load("k") == record
        claim = await claimed(store, "k", record.version)
        assert claim.interrupted is None
        assert (await claim.commit(b"more")).data == b"more"

    @on_a_small_disk
    async def test_a_claim_reserves_space_for_its_commit(self, store: Store, disk: Path) -> None:
        """The mark and the commit are stored even if the disk fills up before the token request."""
        before = await store.put("k", b"data" * 200)
        claim = await claimed(store, "k", before.version)
        with filled(disk):
            await claim.sending()
            record = await claim.commit(b"rotated" * 200)
            assert await store.load("k") == record

    @pytest.mark.parametrize("key", ["k", "new"])
    @on_a_small_disk
    async def test_a_disk_without_inodes_fails_the_claim_and_no_commit(
        self, store: Store, disk: Path, key: str
    ) -> None:
        """If the claim is granted all the same, its commit needs no new file."""
        before = await store.put("k", b"data")
        await (await claimed(store, "k", before.version)).abandon()
        seen = before.version if key == "k" else None
        with crowded(disk):
            try:
                found = await claimed(store, key, seen)
            except StoreUnavailable:
                pass
            else:
                await found.commit(b"rotated")
            assert await store.load("k") is not None

    @on_a_small_disk
    async def test_a_claim_reserves_a_file_for_its_commit(self, store: Store, disk: Path) -> None:
        """The commit succeeds even if the last inode of the disk is used up during the token request."""
        claim = await claimed(store, "k")
        with crowded(disk):
            await claim.sending()
            record = await claim.commit(b"rotated")
            assert await store.load("k") == record

    @promise
    async def test_an_abandoned_claim_leaves_no_file_behind(self, backend: Backend, store: Store) -> None:
        """What it reserved is given back."""
        needs(backend.root, "kept in files")
        record = await store.put("k", b"data")
        await (await claimed(store, "k", record.version)).abandon()
        before = backend.names()
        claim = await claimed(store, "k", record.version)
        await claim.sending()
        await claim.abandon()
        assert backend.names() == before
        claim = await claimed(store, "k", record.version)
        await store.put("k", b"signed in")
        await superseded(claim.commit(b"data"))
        await claim.abandon()
        assert backend.names() == before

    @on_a_small_disk
    async def test_a_failed_write_changes_nothing_and_can_be_repeated(self, store: Store, disk: Path) -> None:
        """If a commit is too large for the disk, the claim stays held, and a second try is stored."""
        large = b"x" * 600_000
        before = await store.put("k", b"data")
        claim = await claimed(store, "k", before.version)
        with filled(disk):
            with pytest.raises(StoreUnavailable):
                await claim.commit(large)
            with pytest.raises(StoreUnavailable):
                await store.put("k", large)
            assert await store.load("k") == before
        record = await claim.commit(large)
        assert await store.load("k") == record

    def test_a_read_only_directory_fails_the_claim(self, tmp_path: Path) -> None:
        """So no refresh token is spent; the store works again when it is writable."""
        disk: contextlib.AbstractContextManager[Path]
        disk = small_disk(tmp_path) if os.geteuid() == 0 else contextlib.nullcontext(tmp_path)
        with disk as directory:
            backend = self.make_backend(directory)
            root = needs(backend.root, "kept in files")

            async def promise(store: Store) -> None:
                record = await store.put("k", b"data")
                await (await claimed(store, "k", record.version)).abandon()
                await store.aclose()
                with read_only(directory, root):
                    with pytest.raises(StoreUnavailable):
                        await store.claim("k", seen=record.version, timeout=0)
                    await store.aclose()
                await (await claimed(store, "k", record.version)).abandon()

            backend.run(promise)

    @promise
    async def test_removing_a_lock_file_loses_nothing(self, backend: Backend, store: Store) -> None:
        """If it is removed during a claim, that claim sends nothing, and the second commit is superseded."""
        lock = needs(backend.lock_file, "locked by files")("k")
        async with backend.opened() as other:
            first = await claimed(store, "k")
            lock.unlink()
            second = await claimed(other, "k")
            with pytest.raises(StoreUnavailable):
                await first.sending()
            await second.sending()
            record = await second.commit(b"second")
            await superseded(first.commit(b"first"))
            assert await store.load("k") == record
            # Both claims on the removed file have ended, so the claim is exclusive again.
            third = await claimed(store, "k", record.version)
            await first.abandon()
            await second.abandon()
            await superseded(first.commit(b"first"))
            await third.abandon()


def uses_no_file(backend: Backend, spoiled: Callable[[Path], AbstractContextManager[None]]) -> None:
    """Each file that the store has made is refused while it is spoiled, or else it is left alone.

    Another user has locked it, too: a store that uses it all the same would wait.
    """
    import fcntl  # POSIX only

    root = needs(backend.root, "kept in files")

    async def promise(store: Store) -> None:
        record = await (await claimed(store, "k")).commit(b"data")
        paths = [path for path in root.rglob("*") if path.is_file()]
        assert paths
        for path in paths:
            async with backend.opened() as fresh:
                for each in (store, fresh):
                    with spoiled(path), path.open("rb") as file:
                        fcntl.flock(file, fcntl.LOCK_EX)
                        before = signature(path)
                        try:
                            claim = await claimed(each, "k", record.version, timeout=0)
                        except StoreInsecure:
                            pass
                        else:
                            record = await claim.commit(b"data")
                        assert signature(path) == before, f"{path.name} was used"
                        if backend.record_file is not None and path == backend.record_file("k"):
                            with pytest.raises(StoreInsecure):
                                await each.load("k")
                    assert await each.load("k") == record

    backend.run(promise)


def signature(path: Path) -> tuple[int, int, int]:
    """It changes when the file is written or replaced. That of a link's target, if it is a link."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB and some inodes in memory, or a skip."""
    path = tmp_path / "disk"
    path.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=200,mode=700", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    needs(mounted or None, "tested by root, which can mount a small file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # noqa: S607 - found by PATH


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Fill the file system to the last byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        size = 65_536
        while size:
            try:
                file.write(bytes(size))
            except OSError:  # full: try again with fewer bytes
                size //= 4
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def crowded(disk: Path) -> Iterator[None]:
    """Use up all inodes of the file system."""
    fillers = disk / "fillers"
    fillers.mkdir()
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (fillers / str(number)).touch()
    try:
        yield
    finally:
        shutil.rmtree(fillers)


@contextlib.contextmanager
def read_only(disk: Path, root: Path) -> Iterator[None]:
    """Make it read-only. Mode bits do not stop root; a read-only mount does."""
    if os.geteuid() != 0:
        root.chmod(0o500)
        try:
            yield
        finally:
            root.chmod(0o700)
        return
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)  # noqa: S607 - found by PATH
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)  # noqa: S607
