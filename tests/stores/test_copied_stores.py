"""A store that is used from another place than the one where it was made: a copy sends the same tokens."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from _backends import locked_database
from _store_helpers import Local, run, sql

from tokensession.stores import FileStore
from tokensession.testing.conformance.files import read_only, small_disk

Use = Callable[[Path], None]


@pytest.fixture
def use(kind: type[Local]) -> Use:
    """Use the store at a path twice, and close it in between."""

    def use_twice(path: Path) -> None:
        store = kind(path)
        for _ in range(2):
            run(store.load("k"))
            run(store.put("k", b"data"))
            run(store.aclose())

    return use_twice


def noted(path: Path) -> tuple[str, int]:
    """What the store at this path notes of itself."""
    if path.is_dir():
        name, inode = (path / "store").read_text("ascii").split()
    else:
        ((name, inode),) = sql(path, "SELECT id, inode FROM tokensession_store")
    return name, int(inode)


def copy(path: Path, to: Path) -> Path:
    shutil.copytree(path, to) if path.is_dir() else shutil.copy(path, to)
    to.chmod(path.stat().st_mode)
    return to


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [each for each in caplog.records if "is a copy of the token store" in each.getMessage()]
    assert all((record.name, record.levelno) == ("tokensession.stores", logging.WARNING) for record in found)
    messages = [record.getMessage() for record in found]
    caplog.clear()
    return messages


def test_a_copied_store_warns_once_and_the_original_never(
    use: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning names the place and the store's id. After it, the copy is at home where it is."""
    original = tmp_path / "original"
    use(original)
    name, inode = noted(original)
    assert inode == original.stat().st_ino
    use(original)
    assert warnings(caplog) == []
    copied = copy(original, tmp_path / "copied")
    use(copied)
    (message,) = warnings(caplog)
    assert message.startswith(f"{copied} is a copy of the token store {name}, or was restored or moved.")
    assert noted(copied) == (name, copied.stat().st_ino)
    use(copied)
    use(original)
    assert warnings(caplog) == []


def test_two_stores_have_two_ids(use: Use, tmp_path: Path) -> None:
    use(tmp_path / "one")
    use(tmp_path / "two")
    assert noted(tmp_path / "one")[0] != noted(tmp_path / "two")[0]


def test_a_renamed_store_is_no_copy(use: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    use(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    use(tmp_path / "after")
    assert warnings(caplog) == []


@pytest.mark.parametrize("writable", [True, False])
def test_a_reader_of_a_copy_is_warned_too(
    writable: bool, use: Use, kind: type[Local], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have the token in use before anything is written. Each store object that reads it warns once.

    If it cannot be written, it can be read: it is read-only, or another program keeps it locked.
    """
    use(tmp_path / "original")
    with contextlib.ExitStack() as stack:
        directory = tmp_path
        if not writable and os.geteuid() == 0:
            directory = stack.enter_context(small_disk(tmp_path))
        copied = copy(tmp_path / "original", directory / "copied")
        if not writable:
            stack.enter_context(
                read_only(directory, directory) if copied.is_dir() else locked_database(copied)
            )
        for _ in range(1 if writable else 2):
            store = kind(copied)
            for _ in range(2):
                assert run(store.load("k")).data == b"data"
                run(store.aclose())
            assert len(warnings(caplog)) == 1


def test_the_note_of_a_file_store_is_read_with_its_first_use_only(tmp_path: Path) -> None:
    """So it costs nothing later."""
    store = FileStore(tmp_path / "tokens")
    run(store.put("k", b"data"))
    (tmp_path / "tokens" / "store").unlink()
    run(store.put("k", b"data"))
    run(store.load("k"))
    run(store.aclose())
    assert not (tmp_path / "tokens" / "store").exists()


@pytest.mark.parametrize("kind", [FileStore])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a b c", b"name inode"])
def test_an_unreadable_note_is_written_again(
    content: bytes, use: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It only serves a warning, so it prevents nothing."""
    use(tmp_path / "tokens")
    (tmp_path / "tokens" / "store").write_bytes(content)
    use(tmp_path / "tokens")
    assert noted(tmp_path / "tokens")[1] == (tmp_path / "tokens").stat().st_ino
    assert warnings(caplog) == []


@pytest.mark.parametrize("kind", [FileStore])
def test_a_note_behind_a_link_is_neither_followed_nor_in_the_way(use: Use, tmp_path: Path) -> None:
    use(tmp_path / "tokens")
    (tmp_path / "tokens" / "store").unlink()
    (tmp_path / "tokens" / "store").symlink_to(tmp_path / "elsewhere")
    use(tmp_path / "tokens")
    assert not (tmp_path / "elsewhere").exists()
