"""Promises of a store that keeps its records in files. A part of `StoreConformance`."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ...errors import StoreInsecure, StoreUnavailable, Superseded
from ...stores.protocol import Store
from .backend import Backend, claimed, needs, newer

__all__ = ["FilePromises"]


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
        """It is neither read nor written until its mode is private again."""
        path = needs(backend.record_file, "kept in files")("k")

        async def promise(store: Store) -> None:
            record = await store.put("k", b"data")
            path.chmod(mode)
            with pytest.raises(StoreInsecure):
                await store.load("k")
            with pytest.raises(StoreInsecure):
                await store.claim("k", seen=record.version, timeout=0)
            path.chmod(0o600)
            assert await store.load("k") == record

        backend.run(promise)

    def test_a_directory_that_others_may_enter_is_not_used(self, backend: Backend) -> None:
        """This is about the directory that the store creates."""
        lock = needs(backend.lock_file, "locked by files")("k")

        async def promise(store: Store) -> None:
            record = await store.put("k", b"data")
            await (await claimed(store, "k", record.version)).abandon()
            lock.parent.chmod(0o755)
            with pytest.raises(StoreInsecure):
                await store.claim("k", seen=record.version, timeout=0)
            lock.parent.chmod(0o700)
            await (await claimed(store, "k", record.version)).abandon()

        backend.run(promise)

    def test_a_file_of_another_user_is_not_used(self, backend: Backend) -> None:
        """That user may have forged it."""
        path = needs(backend.record_file, "kept in files")("k")
        needs(os.geteuid() == 0 or None, "tested by root, which can change the owner of a file")

        async def promise(store: Store) -> None:
            await store.put("k", b"data")
            os.chown(path, 65534, 65534)
            with pytest.raises(StoreInsecure):
                await store.load("k")
            os.chown(path, 0, 0)
            await newer(store, "k")

        backend.run(promise)

    def test_a_symbolic_link_is_not_followed(self, backend: Backend, tmp_path: Path) -> None:
        """True for records and for lock files."""
        record_file = needs(backend.record_file, "kept in files")
        lock_file = needs(backend.lock_file, "locked by files")

        async def promise(store: Store) -> None:
            await (await claimed(store, "k")).commit(b"data")
            await store.put("j", b"data")
            await store.aclose()
            elsewhere = tmp_path / "elsewhere"
            elsewhere.write_bytes(b"")
            elsewhere.chmod(0o600)
            lock_file("j").unlink(missing_ok=True)
            lock_file("j").symlink_to(elsewhere)
            with pytest.raises(StoreInsecure):
                await store.claim("j", seen=(await newer(store, "j")).version, timeout=0)
            await store.aclose()
            record_file("k").rename(tmp_path / "moved")
            record_file("k").symlink_to(tmp_path / "moved")
            with pytest.raises(StoreInsecure):
                await store.load("k")

        backend.run(promise)

    def test_a_full_disk_fails_the_claim(self, tmp_path: Path) -> None:
        """So no refresh token is spent; reading still works, and with free space so does everything."""
        with small_disk(tmp_path) as disk:
            backend = self.make_backend(disk)
            needs(backend.root, "kept in files")

            async def promise(store: Store) -> None:
                record = await store.put("k", b"data" * 200)
                await (await claimed(store, "k", record.version)).abandon()
                with filled(disk):
                    with pytest.raises(StoreUnavailable):
                        await store.claim("k", seen=record.version, timeout=0)
                    assert await store.load("k") == record
                claim = await claimed(store, "k", record.version)
                assert claim.interrupted is None
                assert (await claim.commit(b"more")).data == b"more"

            backend.run(promise)

    def test_a_claim_reserves_space_for_its_commit(self, tmp_path: Path) -> None:
        """The mark and the commit are stored even if the disk fills up before the token request."""
        with small_disk(tmp_path) as disk:
            backend = self.make_backend(disk)
            needs(backend.root, "kept in files")

            async def promise(store: Store) -> None:
                before = await store.put("k", b"data" * 200)
                claim = await claimed(store, "k", before.version)
                with filled(disk):
                    await claim.sending()
                    record = await claim.commit(b"rotated" * 200)
                    assert await store.load("k") == record

            backend.run(promise)

    @pytest.mark.parametrize("key", ["k", "new"])
    def test_a_disk_without_inodes_fails_the_claim_and_no_commit(self, tmp_path: Path, key: str) -> None:
        """If the claim is granted all the same, its commit needs no new file."""
        with small_disk(tmp_path) as disk:
            backend = self.make_backend(disk)
            needs(backend.root, "kept in files")

            async def promise(store: Store) -> None:
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

            backend.run(promise)

    def test_a_claim_reserves_a_file_for_its_commit(self, tmp_path: Path) -> None:
        """The commit succeeds even if the last inode of the disk is used up during the token request."""
        with small_disk(tmp_path) as disk:
            backend = self.make_backend(disk)
            needs(backend.root, "kept in files")

            async def promise(store: Store) -> None:
                claim = await claimed(store, "k")
                with crowded(disk):
                    await claim.sending()
                    record = await claim.commit(b"rotated")
                    assert await store.load("k") == record

            backend.run(promise)

    def test_an_abandoned_claim_leaves_no_file_behind(self, backend: Backend) -> None:
        """What it reserved is given back."""
        needs(backend.root, "kept in files")

        async def promise(store: Store) -> None:
            record = await store.put("k", b"data")
            await (await claimed(store, "k", record.version)).abandon()
            before = backend.names()
            claim = await claimed(store, "k", record.version)
            await claim.sending()
            await claim.abandon()
            assert backend.names() == before
            claim = await claimed(store, "k", record.version)
            await store.put("k", b"signed in")
            with pytest.raises(Superseded):
                await claim.commit(b"data")
            await claim.abandon()
            assert backend.names() == before

        backend.run(promise)

    def test_a_failed_write_changes_nothing_and_can_be_repeated(self, tmp_path: Path) -> None:
        """If a commit is too large for the disk, the claim stays held, and a second try is stored."""
        with small_disk(tmp_path) as disk:
            backend = self.make_backend(disk)
            needs(backend.root, "kept in files")
            large = b"x" * 600_000

            async def promise(store: Store) -> None:
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

            backend.run(promise)

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

    def test_removing_a_lock_file_loses_nothing(self, backend: Backend) -> None:
        """If it is removed during a claim, that claim sends nothing, and the second commit is superseded."""
        lock = needs(backend.lock_file, "locked by files")("k")

        async def promise(store: Store) -> None:
            async with backend.opened() as other:
                first = await claimed(store, "k")
                lock.unlink()
                second = await claimed(other, "k")
                with pytest.raises(StoreUnavailable):
                    await first.sending()
                await second.sending()
                record = await second.commit(b"second")
                with pytest.raises(Superseded):
                    await first.commit(b"first")
                assert await store.load("k") == record
                # Both claims on the removed file have ended, so the claim is exclusive again.
                third = await claimed(store, "k", record.version)
                await first.abandon()
                await second.abandon()
                with pytest.raises(Superseded):
                    await first.commit(b"first")
                await third.abandon()

        backend.run(promise)


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
