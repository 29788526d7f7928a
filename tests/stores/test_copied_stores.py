"""A store that is used from another place than the one where it was made: a copy sends the same tokens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from _backends import locked_database

from tokensession.stores import FileStore, SQLiteStore
from tokensession.testing.conformance.files import read_only, small_disk

Local = FileStore | SQLiteStore

WARNING = "is a copy of the token store"


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def use(store: Local) -> None:
    """Twice, and closed in between."""
    for _ in range(2):
        await store.load("k")
        await store.put("k", b"data")
        await store.aclose()


def noted(path: Path) -> tuple[str, int]:
    """What the store at this path notes of itself."""
    if path.is_dir():
        name, inode = (path / "store").read_text("ascii").split()
        return name, int(inode)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        ((name, inode),) = connection.execute("SELECT id, inode FROM tokensession_store").fetchall()
    return name, inode


@pytest.fixture(params=["file", "sqlite"])
def kind(request: pytest.FixtureRequest) -> Callable[[Path], Local]:
    return FileStore if request.param == "file" else SQLiteStore


def copy(path: Path, to: Path) -> Path:
    shutil.copytree(path, to) if path.is_dir() else shutil.copy(path, to)
    to.chmod(path.stat().st_mode)
    return to


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record for record in caplog.records if WARNING in record.getMessage()]
    assert all((record.name, record.levelno) == ("tokensession.stores", logging.WARNING) for record in found)
    messages = [record.getMessage() for record in found]
    caplog.clear()
    return messages


def test_a_copied_store_warns_once_and_the_original_never(
    kind: Callable[[Path], Local], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning names the place and the store's id. After it, the copy is at home where it is."""
    original = tmp_path / "original"
    run(use(kind(original)))
    name, inode = noted(original)
    assert inode == original.stat().st_ino
    run(use(kind(original)))
    assert warnings(caplog) == []
    copied = copy(original, tmp_path / "copied")
    run(use(kind(copied)))
    (message,) = warnings(caplog)
    assert message.startswith(f"{copied} is a copy of the token store {name}, or was restored or moved.")
    assert noted(copied) == (name, copied.stat().st_ino)
    run(use(kind(copied)))
    run(use(kind(original)))
    assert warnings(caplog) == []


def test_a_reader_of_a_copy_is_warned_too(
    kind: Callable[[Path], Local], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have the token in use before anything is written."""
    run(use(kind(tmp_path / "original")))
    store = kind(copy(tmp_path / "original", tmp_path / "copied"))
    run(store.load("k"))
    assert len(warnings(caplog)) == 1
    run(store.aclose())


def test_two_stores_have_two_ids(kind: Callable[[Path], Local], tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(use(kind(tmp_path / name)))
    assert noted(tmp_path / "one")[0] != noted(tmp_path / "two")[0]


def test_a_renamed_store_is_no_copy(
    kind: Callable[[Path], Local], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(use(kind(tmp_path / "before")))
    (tmp_path / "before").rename(tmp_path / "after")
    run(use(kind(tmp_path / "after")))
    assert warnings(caplog) == []


def test_a_copy_that_cannot_be_written_can_be_read(
    kind: Callable[[Path], Local], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read-only, or another program keeps it locked. Each store object that reads it warns once."""

    async def read(store: Local) -> None:
        for _ in range(2):
            record = await store.load("k")
            assert record is not None
            assert record.data == b"data"
            await store.aclose()

    run(use(kind(tmp_path / "original")))
    place: contextlib.AbstractContextManager[Path]
    place = small_disk(tmp_path) if os.geteuid() == 0 else contextlib.nullcontext(tmp_path)
    with place as directory:
        copied = copy(tmp_path / "original", directory / "copied")
        with read_only(directory, directory) if copied.is_dir() else locked_database(copied):
            for _ in range(2):
                run(read(kind(copied)))
                assert len(warnings(caplog)) == 1


def test_the_note_of_a_file_store_is_read_with_its_first_use_only(tmp_path: Path) -> None:
    """So it costs nothing later."""

    async def main() -> None:
        async with FileStore(tmp_path / "tokens") as store:
            await store.put("k", b"data")
            (tmp_path / "tokens" / "store").unlink()
            await store.put("k", b"data")
            await store.load("k")
        assert not (tmp_path / "tokens" / "store").exists()

    run(main())


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a b c", b"name inode"])
def test_an_unreadable_note_is_written_again(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It only serves a warning, so it prevents nothing."""
    run(use(FileStore(tmp_path / "tokens")))
    (tmp_path / "tokens" / "store").write_bytes(content)
    run(use(FileStore(tmp_path / "tokens")))
    assert noted(tmp_path / "tokens")[1] == (tmp_path / "tokens").stat().st_ino
    assert warnings(caplog) == []


def test_a_note_behind_a_link_is_neither_followed_nor_in_the_way(tmp_path: Path) -> None:
    run(use(FileStore(tmp_path / "tokens")))
    (tmp_path / "tokens" / "store").unlink()
    (tmp_path / "tokens" / "store").symlink_to(tmp_path / "elsewhere")
    run(use(FileStore(tmp_path / "tokens")))
    assert not (tmp_path / "elsewhere").exists()
