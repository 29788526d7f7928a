"""What the SQLite store does beyond the contract: its schema, its settings, its errors."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import os
import sqlite3
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils
from _store_helpers import printed, private, run, sql

from tokensession.errors import StoreCorrupt, StoreUnavailable, Superseded
from tokensession.stores import Record, SQLiteStore, sqlite
from tokensession.stores._local import database
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import claimed, newer


@pytest.fixture
def store(path: Path, clock: FakeClock) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path, clock=clock)
    yield store
    run(store.aclose())


def connection_of(store: SQLiteStore) -> sqlite3.Connection:
    assert store._database._connection is not None
    return store._database._connection


def test_the_schema_is_as_documented_and_sqlite_utils_reads_it(path: Path, store: SQLiteStore) -> None:
    """It is a rowid table; the first start and the second use the same settings."""
    names = ("journal_mode", "synchronous", "secure_delete", "busy_timeout", "recursive_triggers")
    for _ in range(2):
        run(store.put("k", b"data"))
        settings = [connection_of(store).execute(f"PRAGMA {name}").fetchone()[0] for name in names]
        assert settings == ["truncate", 3, 1, 0, 0]
        run(store.aclose())
    with contextlib.closing(sqlite3.connect(path)) as connection:
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
    assert [printed(SECOND_START, path) for _ in range(2)] == ["True\n", "False\n"]


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


def test_a_database_of_version_0_1_0_is_brought_up_to_date(
    path: Path, clock: FakeClock, store: SQLiteStore
) -> None:
    """Its record stays, and has the age 0, because nothing says when it was written."""
    path.touch(mode=0o600)
    path.write_bytes(zlib.decompress(base64.b64decode(OF_VERSION_0_1_0)))
    record = run(newer(store, "k"))
    assert record == Record("77786dfdc79ad8c5d136677dbcbc3f53", b"of version 0.1")
    assert record.age == 0
    committed = run(run(claimed(store, "k", record.version)).commit(b"new"))
    clock.advance(3)
    record = run(newer(store, "k"))
    assert (record, record.age) == (committed, 3)


def test_a_database_of_a_newer_version_is_an_error_and_stays_unchanged(
    path: Path, store: SQLiteStore
) -> None:
    run(store.put("k", b"data"))
    run(store.aclose())
    sql(path, "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('tokensession', 'm999')")
    before = path.read_bytes()
    for work in (store.load("k"), store.put("k", b"new"), store.claim("k", seen=None, timeout=0)):
        with pytest.raises(StoreCorrupt, match="newer version of tokensession"):
            run(work)
    run(store.aclose())
    assert path.read_bytes() == before


def test_a_table_that_was_dropped_is_created_again(path: Path, store: SQLiteStore) -> None:
    """Although the database still records its migration."""
    run(store.put("k", b"data"))
    run(store.aclose())
    sql(path, "DROP TABLE tokens")
    assert run(store.load("k")) is None
    record = run(store.put("k", b"again"))
    assert run(store.load("k")) == record


def test_another_programs_tables_user_version_and_migrations_are_left_alone(
    path: Path, store: SQLiteStore
) -> None:
    private(path, "PRAGMA user_version = 7; CREATE TABLE mine (a); INSERT INTO mine VALUES (7)")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        sqlite_utils.Database(connection)["_sqlite_migrations"].insert(
            {"id": 1, "migration_set": "another program", "name": "m001", "applied_at": ""}, pk="id"
        )
    assert run(store.load("k")) is None
    for _ in range(2):
        record = run(store.put("k", b"data"))
        assert run(store.load("k")) == record
        run(store.aclose())
    assert sql(path, "PRAGMA user_version") == sql(path, "SELECT a FROM mine") == [(7,)]
    sets = sql(path, "SELECT migration_set FROM _sqlite_migrations ORDER BY id")
    assert sets == [("another program",), *[("tokensession",)] * 3]


def test_deleted_or_replaced_data_is_in_no_file(path: Path, store: SQLiteStore) -> None:
    """It is gone from the database and its journal while the store is still open."""
    secret = b"s3cr3t-refresh-token"

    def found() -> list[str]:
        return [p.name for p in path.parent.iterdir() if p.is_file() and secret in p.read_bytes()]

    run(store.put("another", b"stays"))
    for forget in (lambda: store.delete("k"), lambda: store.put("k", b"signed out")):
        stored = run(store.load("k"))
        run(run(claimed(store, "k", stored.version if stored else None)).commit(secret * 50))
        assert found()
        run(forget())
        assert found() == []


def test_no_other_program_writes_between_the_comparison_and_the_write(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
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
    record = run(store.put("k", b"1"))
    monkeypatch.setattr(sqlite._Records, "_read", read)
    record = run(store.put("k", b"2", expect=record.version))
    run(store.delete("k", expect=record.version))
    assert refused == ["database is locked"] * 2


def test_writers_that_take_turns_do_not_count_as_one_that_keeps_the_database_locked(
    path: Path, clock: FakeClock, store: SQLiteStore
) -> None:
    """Each of their commits shows that no one is stuck."""
    run(store.put("k", b"before"))
    other = sqlite3.connect(path, isolation_level=None, timeout=30)
    other.execute("CREATE TABLE another (a)")
    other.execute("BEGIN IMMEDIATE")
    put = run.start(store.put("k", b"after"))
    for turn in range(3):
        run(store.load("k"))
        run(store.load("k"))  # between these two, the put was tried
        if turn < 2:
            clock.advance(3)
            other.execute("INSERT INTO another VALUES (1)")
            other.execute("COMMIT")
            other.execute("BEGIN IMMEDIATE")
    other.close()
    assert run(put).data == b"after"


def test_the_name_of_a_new_database_is_durable_before_its_first_record(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power failure could leave the provider with a rotated token, and you with no database."""

    def fail(directory: Path) -> None:
        assert directory == path.parent
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(database, "sync_directory", fail)
        for _ in range(2):  # the file is there now, and its name is still not durable
            with pytest.raises(StoreUnavailable, match="Input/output error"):
                run(store.put("k", b"data"))
    run(store.put("k", b"data"))


def test_no_transaction_stays_open_after_an_error(path: Path, store: SQLiteStore) -> None:
    """Another process can write right after a superseded put."""
    record = run(store.put("k", b"1"))
    for work in (store.put("k", b"2", expect="another"), store.delete("k", expect="another")):
        with pytest.raises(Superseded):
            run(work)
    other = SQLiteStore(path)
    assert run(other.load("k")) == record
    run(other.put("k", b"3"))
    run(other.aclose())


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_file_that_is_not_a_database_is_corrupt(content: bytes, path: Path, store: SQLiteStore) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
    for work in (store.load("k"), store.claim("k", seen=None, timeout=0), store.put("k", b"data")):
        with pytest.raises(StoreCorrupt):
            run(work)
    assert path.read_bytes() == content


def test_a_key_that_is_not_text_is_corrupt(path: Path, store: SQLiteStore) -> None:
    run(store.put("k", b"data"))
    sql(path, "UPDATE tokens SET key = x'00'")
    with pytest.raises(StoreCorrupt, match="not text"):
        run(store.keys())


def test_no_write_goes_to_a_removed_or_replaced_database(path: Path, store: SQLiteStore) -> None:
    other = SQLiteStore(path)
    first = run(store.put("k", b"1"))
    run(other.load("k"))
    path.unlink()
    assert run(store.load("k")) is None
    second = run(store.put("k", b"2", expect=None))
    assert run(other.load("k")) == second == run(newer(other, "k", first.version))
    run(other.aclose())
    assert run(store.load("k")) == second
    run(store.aclose())
    third = SQLiteStore(path)
    assert run(third.load("k")) == second
    run(third.aclose())


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
    assert printed(FORKS, path) == "0 b'child'\n"


def test_a_connection_left_open_by_a_fork_is_neither_used_nor_closed_in_the_child(store: SQLiteStore) -> None:
    """This is what happens if the fork did not wait; collecting the connection would close it."""
    run(store.put("k", b"data"))
    connection = connection_of(store)
    store._database.forget()
    store._database.forget()
    assert run(newer(store, "k")).data == b"data"
    assert connection.execute("SELECT 1").fetchall() == [(1,)]
    run(store.aclose())
    connection.close()


def test_a_read_only_database_fails_the_claim(path: Path, store: SQLiteStore) -> None:
    """Its own mode counts too, except for root, which can write it anyway."""
    record = run(store.put("k", b"data"))
    path.chmod(0o400)
    if os.geteuid() == 0:
        assert run(claimed(store, "k", record.version))
    else:
        with pytest.raises(StoreUnavailable, match="read-only"):
            run(store.claim("k", seen=record.version, timeout=0))


def test_an_unclosed_store_that_is_collected_causes_no_warning(path: Path) -> None:
    """For example the store in `AuthedSession(..., store=SQLiteStore(...))`."""

    async def use() -> None:
        await SQLiteStore(path).put("key", b"data")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(use())
        gc.collect()
