"""What the SQLite store does beyond the contract: its schema, its settings, its errors."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import os
import sqlite3
import subprocess
import sys
import warnings
import zlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from tokensession.errors import ConfigurationError, StoreCorrupt, StoreInsecure, StoreUnavailable
from tokensession.stores import Record, SQLiteStore, sqlite
from tokensession.stores._local import database
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import claimed, newer


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.db"


def settings(store: SQLiteStore) -> list[Any]:
    connection = store._database._connection
    assert connection is not None
    names = ("journal_mode", "synchronous", "secure_delete", "busy_timeout", "recursive_triggers")
    return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]


def test_the_schema_is_as_documented_and_sqlite_utils_reads_it(path: Path) -> None:
    """It is a rowid table; the first start and the second use the same settings."""

    async def main() -> None:
        for _ in range(2):
            store = SQLiteStore(path)
            await store.put("k", b"data")
            assert settings(store) == ["truncate", 3, 1, 0, 0]
            await store.aclose()

    run(main())
    connection = sqlite3.connect(path)
    table = sqlite_utils.Database(connection)["tokens"]
    assert table.columns_dict == {
        "key": str,
        "version": str,
        "data": bytes,
        "written_wall": float,
        "written_boot": float,
        "checksum": bytes,
    }
    assert table.pks == ["key"]
    assert not table.use_rowid
    assert "WITHOUT ROWID" not in table.schema.upper()
    assert [row["data"] for row in table.rows] == [b"data"]
    connection.close()


SECOND_START = """
import asyncio, sys
from tokensession.stores import SQLiteStore
async def main():
    store = SQLiteStore(sys.argv[1])
    await store.put("k", b"data")
    claim = await store.claim("j", seen=None, timeout=5)
    await claim.commit(b"data")
    await store.delete("j")
    await store.aclose()
asyncio.run(main())
print("sqlite_utils" in sys.modules)
"""


def test_only_the_first_start_imports_sqlite_utils(path: Path) -> None:
    command = [sys.executable, "-c", SECOND_START, str(path)]
    outputs = [subprocess.run(command, capture_output=True, text=True, timeout=60).stdout for _ in range(2)]
    assert outputs == ["True\n", "False\n"]


def put(path: Path) -> None:
    async def main() -> None:
        async with SQLiteStore(path) as store:
            await store.put("k", b"data")

    run(main())


def create_without_migrations(path: Path) -> None:
    """A database of a version that had none."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(
            "CREATE TABLE tokens (key TEXT PRIMARY KEY, version TEXT NOT NULL, data BLOB NOT NULL)"
        )
        connection.execute("INSERT INTO tokens VALUES ('old', 'v', x'6265666f7265')")
    path.chmod(0o600)


def test_a_database_from_before_there_were_migrations_is_brought_up_to_date(path: Path) -> None:
    """Whether the first call reads or writes. Its records stay."""
    for first in ("load", "put"):
        database = path.with_name(f"{first}.db")
        create_without_migrations(database)

        async def main(database: Path = database, first: str = first) -> None:
            async with SQLiteStore(database) as store:
                if first == "put":
                    await store.put("k", b"data")
                assert await store.load("old") == Record("v", b"before")

        run(main())
        with contextlib.closing(sqlite3.connect(database)) as connection:
            names = connection.execute("SELECT migration_set, name FROM _sqlite_migrations").fetchall()
        assert names == [("tokensession", name) for name in ("m001_tokens", "m002_written", "m003_checksum")]


# A database that version 0.1.0 made, with the record of the key "k", compressed.
OF_VERSION_0_1_0 = (
    "eNrt299v0kAAB/Br6WQjAXwjxJfLLUtGtpEeFboRjYI2hljAIcTtwTSFFtPwa6NV5yPGR/8qX33cv+B/4YtH27gRZvTBh2m+"
    "n9yVXu+u9+vpruHlsekFLh3O5hM7oBq5S2SZPKaUECKLuEGuJERUrqUl8nsyKQ6kdOYTUdKXJGtmPqcvM68IAAAAAAAA/A0L"
    "KZHM5fPS4nVg98duMBu5Uz+6Kk86Rq1r0G6tbhqURQ8Z3U1RStnI/cBo1zjp0hedRrPWOaXPjdP9MOudO/e92TTObrVF7Jlm"
    "lOfYgc1o3WzXf2akCnvKndyjvES8qeNe+Odjsce07LfBLExbUbsWj36Xe8zNsOMP5WTO4tLifVjMcy4sK6478d7M7UB0wb+6"
    "tXw3sKb2xF0vlIjH2Ws1jnsGbbSeGieU/fEL2XJgtN2ibL24mC22UoPtUxZWKiy4lMxxLn1MhxN/Q1NrT+TVBbmxuXCWPYeJ"
    "YXSNZ0ZnfXlW+xMuUpQR9uta2j47G3uuY9lxqVQhvdzIZ78QEQAAAAAAAADg1nogbZCd7WZ0luL6y3Oaiary+JClpJYqB5wf"
    "lCqU61WtVC1rxSO1XOb391S1qqqpcP//jYgAAAAAAAAAAP+we8rO9tYvzgei7/9fiQgAAAAAAAAAcPtpkpJt7o50XT+sOENn"
    "oB/ZzuGg7HCtUtF1pz/oD7RhWZsNafx3DqoWefT9/zsRAQAAAAAAAAD+P0oiuzX6Adx960A="
)


def test_a_database_of_version_0_1_0_is_brought_up_to_date(path: Path) -> None:
    """Its record stays, and has the age 0, because nothing says when it was written."""
    path.write_bytes(zlib.decompress(base64.b64decode(OF_VERSION_0_1_0)))
    path.chmod(0o600)
    clock = FakeClock()

    async def main() -> None:
        async with SQLiteStore(path, clock=clock) as store:
            record = await newer(store, "k")
            assert record == Record("77786dfdc79ad8c5d136677dbcbc3f53", b"of version 0.1")
            assert record.age == 0
            committed = await (await claimed(store, "k", record.version)).commit(b"new")
            clock.advance(3)
            record = await newer(store, "k")
            assert (record, record.age) == (committed, 3)

    run(main())


def test_an_outdated_database_that_is_read_only_can_be_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read does not need the migrations, and a read-only database cannot have them."""
    create_without_migrations(path)
    path.chmod(0o400)
    if os.geteuid() == 0:  # root may write to it all the same
        monkeypatch.setattr(os, "access", lambda *_, **__: False)

    async def main() -> None:
        async with SQLiteStore(path) as store:
            assert await store.load("old") == Record("v", b"before")
            assert await store.keys() == ["old"]
            with pytest.raises(StoreUnavailable):
                await store.claim("old", seen="v", timeout=0)

    run(main())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert tables == [("tokens",)]


def test_a_table_of_migrations_that_cannot_be_read_leaves_no_connection_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_without_migrations(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE _sqlite_migrations (something_else TEXT)")
    opened, connect = list[sqlite3.Connection](), sqlite3.connect

    def remember(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    async def main() -> None:
        async with SQLiteStore(path) as store:
            with pytest.raises(StoreUnavailable):
                await store.load("old")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", remember)
        run(main())
    assert len(opened) == 1
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


def test_a_database_of_a_newer_version_is_an_error_and_stays_unchanged(path: Path) -> None:
    put(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('tokensession', 'm999')"
        )
        before = list(connection.iterdump())

    async def main() -> None:
        async with SQLiteStore(path) as store:
            for work in (store.load("k"), store.put("k", b"new"), store.claim("k", seen=None, timeout=0)):
                with pytest.raises(StoreCorrupt, match="newer version of tokensession"):
                    await work

    run(main())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert list(connection.iterdump()) == before


def test_a_table_that_was_dropped_is_created_again(path: Path) -> None:
    """Although the database still records its migration."""
    put(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE tokens")

    async def main() -> None:
        async with SQLiteStore(path) as store:
            assert await store.load("k") is None
            record = await store.put("k", b"again")
            assert await store.load("k") == record

    run(main())


def test_another_programs_user_version_and_migrations_are_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 7")
        sqlite_utils.Database(connection)["_sqlite_migrations"].insert(
            {"id": 1, "migration_set": "another program", "name": "m001", "applied_at": ""}, pk="id"
        )
    path.chmod(0o600)
    put(path)
    put(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchall() == [(7,)]
        sets = connection.execute("SELECT migration_set FROM _sqlite_migrations ORDER BY id").fetchall()
    assert sets == [("another program",), *[("tokensession",)] * 3]


def test_reading_creates_nothing(path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(path)
        assert await store.load("k") is None
        assert await store.keys() == []
        await store.aclose()

    run(main())
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("journal_mode", ["delete", "memory"])
def test_other_tables_in_the_database_are_left_alone(path: Path, journal_mode: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(
        f"PRAGMA journal_mode={journal_mode}; CREATE TABLE mine (a); INSERT INTO mine VALUES (7)"
    )
    connection.close()
    path.chmod(0o600)

    async def main() -> None:
        store = SQLiteStore(path)
        assert await store.load("k") is None
        record = await store.put("k", b"data")
        assert await store.load("k") == record
        await store.aclose()

    run(main())
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT a FROM mine").fetchall() == [(7,)]
    connection.close()


def test_deleted_or_replaced_data_is_in_no_file(path: Path) -> None:
    """It is gone from the database and its journal while the store is still open."""
    secret = b"s3cr3t-refresh-token"

    def found() -> list[str]:
        return [p.name for p in path.parent.iterdir() if p.is_file() and secret in p.read_bytes()]

    async def main() -> None:
        store = SQLiteStore(path)
        await store.put("another", b"stays")
        for forget in (lambda: store.delete("k"), lambda: store.put("k", b"signed out")):
            stored = await store.load("k")
            claim = await claimed(store, "k", stored.version if stored else None)
            await claim.commit(secret * 50)
            assert found()
            await forget()
            assert found() == []
        await store.aclose()

    run(main())


def test_no_other_program_writes_between_the_comparison_and_the_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction excludes other writers before it reads the version to compare."""
    refused = list[str]()

    def read(records: Any, connection: sqlite3.Connection, key: str) -> Record | None:
        other = sqlite3.connect(path, isolation_level=None, timeout=0)
        if connection.in_transaction:
            with pytest.raises(sqlite3.OperationalError) as caught:
                other.execute("DELETE FROM tokens")
            refused.append(str(caught.value))
        other.close()
        return original(records, connection, key)

    original = sqlite._Records._read

    async def main() -> None:
        async with SQLiteStore(path) as store:
            record = await store.put("k", b"1")
            monkeypatch.setattr(sqlite._Records, "_read", read)
            record = await store.put("k", b"2", expect=record.version)
            await store.delete("k", expect=record.version)

    run(main())
    assert refused == ["database is locked"] * 2


def test_writers_that_take_turns_do_not_count_as_one_that_keeps_the_database_locked(path: Path) -> None:
    """Each of their commits shows that no one is stuck."""

    async def main() -> None:
        clock = FakeClock()
        async with SQLiteStore(path, clock=clock) as store:
            await store.put("k", b"before")
            other = sqlite3.connect(path, isolation_level=None, timeout=30)
            other.execute("CREATE TABLE another (a)")
            other.execute("BEGIN IMMEDIATE")
            put = asyncio.ensure_future(store.put("k", b"after"))
            for _ in range(2):
                await store.load("k")
                await store.load("k")  # between these two, the put was tried
                clock.advance(3)
                other.execute("INSERT INTO another VALUES (1)")
                other.execute("COMMIT")
                other.execute("BEGIN IMMEDIATE")
            await store.load("k")
            await store.load("k")
            other.close()
            assert (await put).data == b"after"

    run(main())


def test_the_name_of_a_new_database_is_durable_before_its_first_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power failure could leave the provider with a rotated token, and you with no database."""

    def fail(directory: Path) -> None:
        assert directory == path.parent
        raise OSError(5, "Input/output error")

    async def main() -> None:
        async with SQLiteStore(path) as store:
            with monkeypatch.context() as patch:
                patch.setattr(database, "sync_directory", fail)
                for _ in range(2):  # the file is there now, and its name is still not durable
                    with pytest.raises(StoreUnavailable, match="Input/output error"):
                        await store.put("k", b"data")
            await store.put("k", b"data")

    run(main())


def test_no_transaction_stays_open_after_an_error(path: Path) -> None:
    """Another process can write right after a superseded put."""

    async def main() -> None:
        store, other = SQLiteStore(path), SQLiteStore(path)
        record = await store.put("k", b"1")
        with pytest.raises(Exception, match="newer record"):
            await store.put("k", b"2", expect="another")
        with pytest.raises(Exception, match="newer record"):
            await store.delete("k", expect="another")
        assert await other.load("k") == record
        await other.put("k", b"3")
        await store.aclose()
        await other.aclose()

    run(main())


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_file_that_is_not_a_database_is_corrupt(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)

    async def main() -> None:
        store = SQLiteStore(path)
        with pytest.raises(StoreCorrupt):
            await store.load("k")
        with pytest.raises(StoreCorrupt):
            await store.claim("k", seen=None, timeout=0)
        with pytest.raises(StoreCorrupt):
            await store.put("k", b"data")
        await store.aclose()

    run(main())
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE tokens SET data = 42",
        "UPDATE tokens SET data = 'text'",
        "UPDATE tokens SET version = 42.0 || x'ff'",
        "UPDATE tokens SET version = CAST(x'ff' AS TEXT)",
        "UPDATE tokens SET version = x'00'",
    ],
)
def test_a_row_of_the_wrong_type_is_corrupt_until_the_next_put(path: Path, damage: str) -> None:
    async def main() -> None:
        store = SQLiteStore(path)
        await store.put("k", b"data")
        connection = sqlite3.connect(path)
        connection.execute(damage)
        connection.commit()
        connection.close()
        with pytest.raises(StoreCorrupt):
            await store.load("k")
        record = await store.put("k", b"data")
        assert await store.load("k") == record
        await store.aclose()

    run(main())


def test_a_key_that_is_not_text_is_corrupt(path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(path)
        await store.put("k", b"data")
        connection = sqlite3.connect(path)
        connection.execute("UPDATE tokens SET key = x'00'")
        connection.commit()
        connection.close()
        with pytest.raises(StoreCorrupt, match="not text"):
            await store.keys()
        await store.aclose()

    run(main())


def test_no_write_goes_to_a_removed_or_replaced_database(path: Path) -> None:
    async def main() -> None:
        store, other = SQLiteStore(path), SQLiteStore(path)
        first = await store.put("k", b"1")
        await other.load("k")
        path.unlink()
        assert await store.load("k") is None
        second = await store.put("k", b"2", expect=None)
        assert await other.load("k") == second == await newer(other, "k", first.version)
        await other.aclose()
        assert await store.load("k") == second
        await store.aclose()
        third = SQLiteStore(path)
        assert await third.load("k") == second
        await third.aclose()

    run(main())


def test_an_open_database_is_not_used_after_its_mode_became_public(path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(path)
        await store.put("k", b"data")
        path.chmod(0o644)
        for work in (store.load("k"), store.keys(), store.put("k", b"data"), store.delete("k")):
            with pytest.raises(StoreInsecure, match="chmod 600"):
                await work
        await store.aclose()

    run(main())


FORKS = """
import asyncio, os, sys
from tokensession.stores import SQLiteStore
async def main():
    store = SQLiteStore(sys.argv[1])
    await store.put("k", b"parent")
    assert store._database._connection is not None
    child = os.fork()
    if child == 0:
        assert store._database._connection is None, "the child must not inherit a connection"
        asyncio.run(store.put("k", b"child"))
        asyncio.run(store.aclose())
        os._exit(0)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    record = await store.load("k")
    await store.aclose()
    print(os.waitstatus_to_exitcode(status), record.data)
asyncio.run(main())
"""


def test_a_forked_child_inherits_no_connection(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "0 b'child'\n", done.stderr


def test_a_connection_left_open_by_a_fork_is_neither_used_nor_closed_in_the_child(
    path: Path,
) -> None:
    """This is what happens if the fork did not wait; collecting the connection would close it."""

    async def main() -> None:
        store = SQLiteStore(path)
        await store.put("k", b"data")
        connection = store._database._connection
        assert connection is not None
        store._database.forget()
        store._database.forget()
        assert (await newer(store, "k")).data == b"data"
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
        await store.aclose()
        connection.close()

    run(main())


def test_making_a_store_without_flock_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ConfigurationError, match="SQLiteStore needs POSIX file locks"):
        SQLiteStore(path)


def test_a_read_only_database_fails_the_claim(path: Path) -> None:
    """Its own mode counts too, except for root, which can write it anyway."""

    async def main() -> None:
        store = SQLiteStore(path)
        record = await store.put("k", b"data")
        path.chmod(0o400)
        if os.geteuid() == 0:
            await (await claimed(store, "k", record.version)).abandon()
        else:
            with pytest.raises(StoreUnavailable, match="read-only"):
                await store.claim("k", seen=record.version, timeout=0)
        await store.aclose()

    run(main())


def test_an_unclosed_store_that_is_collected_causes_no_warning(tmp_path: Path) -> None:
    """For example the store in `AuthedSession(..., store=SQLiteStore(...))`."""

    async def use() -> None:
        await SQLiteStore(tmp_path / "tokens.db").put("key", b"data")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(use())
        gc.collect()
