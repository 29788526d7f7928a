"""`open_store`: which store a URL or Path opens, and what an error never shows."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from _store_helpers import run

from tokensession.errors import ConfigurationError, StoreUnavailable
from tokensession.stores import MemoryStore, SQLiteStore, Store, open_store, urls


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory:", "<MemoryStore 0 records, 0 claims>"),
        ("MEMORY:", "<MemoryStore 0 records, 0 claims>"),
        ("file:///var/lib/tokens", "<FileStore /var/lib/tokens closed>"),
        ("file://localhost/var/lib/my%20tokens", "<FileStore /var/lib/my tokens closed>"),
        ("sqlite:////var/lib/tokens.db", "<SQLiteStore /var/lib/tokens.db closed>"),
        ("sqlite:///tokens.db", "<SQLiteStore {cwd}/tokens.db closed>"),
        ("sqlite:///a/b%3F.db", "<SQLiteStore {cwd}/a/b?.db closed>"),
    ],
)
def test_a_url_names_a_store_and_opening_it_does_no_io(
    url: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert repr(open_store(url)) == shown.format(cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "tokens.db",
        "/var/lib/tokens",
        "memory:x",
        "memory://secret@host",
        "file:tokens",
        "file://host/tokens",
        "file:///tokens?x=secret",
        "file:///a%00b",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite:tokens.db",
        "sqlite:/tokens.db",
        "sqlite://tokens.db",
        "sqlite://user:secret@host/tokens.db",
        "sqlite:///tokens.db?mode=secret",
        "sqlite:///tokens.db#secret",
        "file://user:secret@[/tokens",
        "file://user:secret\u2100@host/tokens",
        "nothing://user:secret@host/db",
    ],
)
def test_an_invalid_url_is_an_error_that_never_repeats_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_unknown_scheme_is_an_error_that_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "custom", "builtins:dict")
    with pytest.raises(
        ConfigurationError,
        match=r"'redsi'.* custom, file, memory, postgres, .*rediss, sqlite, valkey, valkeys; or encrypted[+]",
    ):
        open_store("redsi://host")
    with pytest.raises(
        ConfigurationError,
        match=r"no scheme.* custom, file, .*rediss, sqlite, valkey, valkeys; or with encrypted[+]",
    ):
        open_store("tokens.db")


def test_a_url_without_a_scheme_is_an_error_with_an_example() -> None:
    with pytest.raises(ConfigurationError, match=r"no scheme.* For a file: sqlite:///tokens\.db\."):
        open_store("tokens.db")
    with pytest.raises(TypeError, match=r"sqlite:///tokens\.db', or a pathlib\.Path, not bytes"):
        open_store(b"tokens.db")  # type: ignore[arg-type]


def test_a_directory_in_place_of_a_database_is_an_error_that_says_so(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}")
    for work in (store.load("k"), store.put("k", b""), store.claim("k", seen=None, timeout=0)):
        with pytest.raises(StoreUnavailable, match=r"is a directory, not a database file.*tokens\.db"):
            run(work)
    run(store.aclose())
    assert list(tmp_path.parent.glob("*.locks")) == []
    with pytest.raises(ConfigurationError, match="/ is a directory"):
        open_store("sqlite:////")


def test_an_invalid_path_is_an_error_when_a_store_is_made(kind: Any) -> None:
    for wrong in (7, None, b"tokens"):
        with pytest.raises(TypeError, match=rf"{kind.__name__} needs a path .*, not {type(wrong).__name__}"):
            kind(wrong)
    with pytest.raises(ConfigurationError, match=rf"path of a {kind.__name__} must not be empty"):
        kind("")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a\0b", "contains a NUL character"),
        ("n" * 256, "contains a name of 256 bytes, and 255 are possible"),
        ("é" * 128, "contains a name of 256 bytes, and 255 are possible"),
        ("d/" * 2000 + "t", "bytes, and 3967 are possible"),
        ("a\ud800b", "contains a character that no file name can have"),
    ],
)
def test_k44_a_path_that_no_file_can_have_is_an_error_when_a_store_is_made(
    kind: Any, name: str, problem: str, tmp_path: Path
) -> None:
    """By every way to make one. The error does not show the path, which may be a part of a URL."""
    ways = [lambda: kind(name), lambda: kind(tmp_path / name)]
    if kind is SQLiteStore:
        ways.append(lambda: open_store(tmp_path / name))
    for make in ways:
        with pytest.raises(ConfigurationError, match=problem) as caught:
            make()
        assert name not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_k44_a_relative_path_in_a_deleted_working_directory_is_a_clear_error(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An absolute path works."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    problem = r"working directory does not exist any more.*an absolute path"
    with pytest.raises(ConfigurationError, match=problem):
        kind("tokens")
    store = kind(tmp_path / "tokens")
    run(store.put("k", b"data"))
    run(store.aclose())


def test_a_missing_parent_directory_is_an_error_that_explains_the_slashes(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/no/tokens.db")
    assert run(store.load("k")) is None
    for work in (store.put("k", b""), store.claim("k", seen=None, timeout=0)):
        with pytest.raises(StoreUnavailable, match=r"does not exist.*three slashes .* four an absolute"):
            run(work)
    run(store.aclose())


def register(monkeypatch: pytest.MonkeyPatch, scheme: str, value: str) -> None:
    points = EntryPoints([EntryPoint(name=scheme, value=value, group=urls.ENTRY_POINTS)])
    monkeypatch.setattr(urls, "_foreign", lambda: points)


OPENED: list[str] = []


def opens(url: str) -> Store:
    OPENED.append(url)
    return MemoryStore()


def fails(url: str) -> Any:
    raise OSError(f"cannot connect to {url}")


def rejects(url: str) -> Any:
    raise ConfigurationError("The port is missing.")


@pytest.mark.parametrize("name", ["tokens.db", "memory:", "a%20b?c#d"])
def test_a_path_names_an_sqlite_database(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in its name: a Path is not a URL. It may be relative."""
    monkeypatch.chdir(tmp_path)
    stores = [open_store(tmp_path / name), open_store(Path(name))]
    monkeypatch.chdir("/")
    assert [repr(store) for store in stores] == [f"<SQLiteStore {tmp_path / name} closed>"] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_third_party_store_can_register_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "custom", f"{__name__}:opens")
    assert isinstance(open_store("custom://user:secret@host"), MemoryStore)
    assert OPENED.pop() == "custom://user:secret@host"


def test_a_built_in_scheme_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "memory", f"{__name__}:fails")
    assert isinstance(open_store("memory:"), MemoryStore)


def test_a_third_party_error_about_its_url_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "custom", f"{__name__}:fails")
    with pytest.raises(
        ConfigurationError, match=r"'custom' \(.*:fails\) could not be opened: OSError"
    ) as caught:
        open_store("custom://user:secret@host")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    register(monkeypatch, "custom", f"{__name__}:rejects")
    with pytest.raises(ConfigurationError, match="The port is missing"):
        open_store("custom://host")


def test_an_entry_point_must_return_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "custom", "builtins:len")
    with pytest.raises(ConfigurationError, match="a store that `async with` closes, not int"):
        open_store("custom://host")


def test_an_installed_package_adds_its_scheme(tmp_path: Path) -> None:
    """The entry point is enough: no import, no registration."""
    info = tmp_path / "otherstore-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: otherstore\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tokensession.stores]\nother = otherstore:open_it\n")
    (tmp_path / "otherstore.py").write_text(
        "from tokensession.stores import MemoryStore\n"
        "class OtherStore(MemoryStore): ...\n"
        "def open_it(url): return OtherStore()\n"
    )
    program = "from tokensession import open_store; print(type(open_store('other://host/name')).__name__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "OtherStore"
