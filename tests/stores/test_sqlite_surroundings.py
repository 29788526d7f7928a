"""What happens around a database: backups, other programs, other names, other users, older versions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _store_helpers import printed, private, run, sql

from tokensession.errors import ConfigurationError, StoreCorrupt, StoreInsecure, StoreUnavailable
from tokensession.stores import Record, SQLiteStore, sqlite
from tokensession.stores._local.surroundings import mount_points
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import claimed

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")


class Hurried(FakeClock):
    """A clock that is ten seconds ahead at each look: whatever is busy gives up after its second try."""

    def boot(self) -> float:
        self.advance(10)
        return super().boot()


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path)
    yield store
    run(store.aclose())


async def use(store: SQLiteStore) -> None:
    """Read, write, claim and list."""
    await store.load("k")
    record = await store.put("k", b"data")
    await (await claimed(store, "k", record.version)).commit(b"more")
    assert await store.keys() == ["k"]


ACTIONS: dict[str, Callable[[SQLiteStore], Any]] = {
    "load": lambda store: store.load("k"),
    "put": lambda store: store.put("k", b"new"),
    "claim": lambda store: store.claim("k", seen=None, timeout=0),
    "delete": lambda store: store.delete("k"),
    "keys": lambda store: store.keys(),
}


async def refuses(path: Path, error: type[Exception], words: str) -> None:
    """Each call raises this, and names the file."""
    for action in ACTIONS.values():
        async with SQLiteStore(path, clock=Hurried()) as store:
            with pytest.raises(error, match=words) as caught:
                await action(store)
            assert str(path.parent) in str(caught.value)


def in_another_process(path: Path, action: str) -> str:
    """What this call of a store prints in another process."""
    program = f"""
        import asyncio, sys
        sys.path[:0] = {sys.path!r}
        from test_sqlite_surroundings import ACTIONS, Hurried
        from tokensession.stores import SQLiteStore
        async def main():
            async with SQLiteStore({str(path)!r}, clock=Hurried()) as store:
                try:
                    print(await ACTIONS[{action!r}](store))
                except Exception as error:
                    print(type(error).__name__)
        asyncio.run(main())
    """
    return printed(textwrap.dedent(program)).strip()


def test_k34_a_backup_in_the_services_own_process_loses_no_commit(path: Path, store: SQLiteStore) -> None:
    """It opens and closes the file, and SQLite's locks are gone. Then another process comes and goes."""
    first = run(store.put("k", b"first"))
    shutil.copy(path, path.with_name("backup.db"))
    assert in_another_process(path, "keys") == "['k']"
    claim = run(claimed(store, "k", first.version))
    shutil.copy(path, path.with_name("backup.db"))
    second = run(claim.commit(b"second"))
    run(store.aclose())
    assert run(store.load("k")) == second


@pytest.mark.parametrize("action", ACTIONS)
def test_k34_a_backup_during_a_commit_lets_no_other_process_in(
    action: str, path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's locks are gone in the middle of a transaction. Others would roll its journal back."""
    seen = list[str]()

    def read(records: Any, connection: sqlite3.Connection, key: str) -> Record | None:
        if connection.in_transaction and not seen:
            connection.execute("CREATE TABLE half_done (a)")
            shutil.copy(path, path.with_name("backup.db"))
            seen.append(in_another_process(path, action))
        return original(records, connection, key)

    original = sqlite._Records._read
    record = run(store.put("k", b"before"))
    monkeypatch.setattr(sqlite._Records, "_read", read)
    record = run(store.put("k", b"after", expect=record.version))
    assert seen == ["StoreUnavailable"]
    assert run(store.load("k")) == record


def test_k34_k36_there_is_no_log_and_no_shared_memory(path: Path, store: SQLiteStore) -> None:
    """One file that a program can copy, and none that is mapped into memory."""
    run(use(store))
    names = {each.name for each in path.parent.iterdir()}
    assert names == {"tokens.db", "tokens.db-journal", "tokens.db.locks"}
    assert path.with_name("tokens.db-journal").read_bytes() == b""


def test_a_long_reader_is_found_out_before_a_refresh_token_is_spent(path: Path) -> None:
    """Another program reads and does not end: a commit would have to wait for it."""
    store = SQLiteStore(path, clock=Hurried())
    record = run(store.put("k", b"data"))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM tokens").fetchall()
        assert run(store.load("k")) == record
        with pytest.raises(StoreUnavailable, match="locked"):
            run(store.claim("k", seen=record.version, timeout=0))
    run(run(claimed(store, "k", record.version)).commit(b"more"))
    run(store.aclose())


def test_a_journal_that_another_program_has_removed_is_there_again_at_the_claim(
    path: Path, store: SQLiteStore
) -> None:
    """So that a commit needs no inode."""
    record = run(store.put("k", b"data"))
    journal = path.with_name("tokens.db-journal")
    journal.unlink()
    claim = run(claimed(store, "k", record.version))
    assert (journal.stat().st_size, journal.stat().st_mode & 0o777) == (0, 0o600)
    run(claim.commit(b"more"))


def a_public_file(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


def a_link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


def a_directory(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


def another_users(path: Path) -> None:
    path.touch(0o600)
    os.chown(path, 65534, 65534)


PLANTED = [a_public_file, a_link, a_directory, a_pipe, pytest.param(another_users, marks=needs_root)]


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
def test_k16_a_planted_side_file_is_not_used(
    suffix: str, plant: Callable[[Path], None], when: str, path: Path, store: SQLiteStore
) -> None:
    """SQLite would read it, or write tokens into it."""
    run(store.put("k", b"s3cr3t"))
    if when == "before it is opened":
        run(store.aclose())
    side = path.with_name(path.name + suffix)
    side.unlink(missing_ok=True)
    plant(side)
    before = path.read_bytes()
    for action in ACTIONS.values():
        with pytest.raises(StoreInsecure, match=suffix):
            run(action(store))
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o733])
def test_k16_a_directory_that_others_can_write_to_is_refused(mode: int, path: Path) -> None:
    """The sticky bit does not help: it keeps no one from creating a file."""
    path.parent.chmod(mode)
    private(path, "CREATE TABLE other (a)")
    run(refuses(path, StoreInsecure, f"mode {mode:o}"))
    assert not path.with_name("tokens.db-journal").exists()


@pytest.mark.parametrize("call", ["claim", "put"])
def test_nothing_is_left_in_a_directory_that_is_refused(call: str, path: Path, store: SQLiteStore) -> None:
    path.parent.chmod(0o1777)
    with pytest.raises(StoreInsecure, match="Nothing was read or written"):
        run(ACTIONS[call](store))
    assert list(path.parent.iterdir()) == []


@needs_root
@pytest.mark.parametrize(("group", "refused"), [(33, True), (54321, False), (0, False)])
def test_k16_k45_a_directory_of_a_group_is_refused_if_the_group_has_other_users(
    group: int, refused: bool, path: Path, store: SQLiteStore
) -> None:
    """www-data has one. The group of a Kubernetes volume has no name, and that of root no other user."""
    os.chown(path.parent, 0, group)
    path.parent.chmod(0o2775)
    private(path, "CREATE TABLE other (a)")
    run(refuses(path, StoreInsecure, "mode 2775") if refused else use(store))


@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
def test_f69_k35_a_database_with_two_names_is_refused(when: str, path: Path, store: SQLiteStore) -> None:
    """Each name has its own lock files and journal, so two processes would refresh at once."""
    run(store.put("k", b"data"))
    if when == "before it is opened":
        run(store.aclose())
    other = path.with_name("other.db")
    os.link(path, other)
    for action in ACTIONS.values():
        with pytest.raises(StoreUnavailable, match="2 names"):
            run(action(store))
    other.unlink()
    assert run(store.load("k")) is not None


def test_k35_a_claim_that_is_held_can_be_committed_all_the_same(path: Path, store: SQLiteStore) -> None:
    """A snapshot by hard links during a refresh: the new token has no other copy."""
    claim = run(claimed(store, "k"))
    os.link(path, path.with_name("snapshot.db"))
    record = run(claim.commit(b"data"))
    path.with_name("snapshot.db").unlink()
    assert run(store.load("k")) == record


def test_k35_a_database_that_is_mounted_by_itself_is_refused(path: Path, store: SQLiteStore) -> None:
    """As a container's single-file volume. With its directory, it works."""
    run(use(store))
    program = [sys.executable, "-c", "from test_sqlite_surroundings import mounted; mounted()", str(path)]
    done = subprocess.run(
        ["unshare", "--mount", *program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this process may not mount")
    assert done.stdout.splitlines() == ["mount point", "b'more'"], done.stderr


def mounted() -> None:
    """In a process with mounts of its own: try both ways."""
    path = Path(sys.argv[1])
    there, here = path.with_name("a name with spaces"), path.with_name("directory")
    there.touch(0o600)
    here.mkdir()
    subprocess.run(["mount", "--bind", path, there], check=True)
    subprocess.run(["mount", "--bind", path.parent, here], check=True)

    async def main() -> None:
        for name in (there, here / path.name):
            async with SQLiteStore(name) as store:
                try:
                    record = await store.load("k")
                    print(record and record.data)
                except StoreUnavailable as error:
                    print("mount point" if "mount point" in str(error) else error)

    asyncio.run(main())


def test_mount_points_are_read_from_any_text() -> None:
    line = rb"36 35 98:0 /mnt1 /a\040b\134c rw,noatime master:1 - ext3 /dev/root rw" + b"\n"
    assert mount_points(line + b"\n" + b"36 35 98:0 /x\n" + line.replace(b"/a", b"/d")) == {
        b"/a b\\c",
        b"/d b\\c",
    }
    assert mount_points(b"") == mount_points(b"nonsense\xff") == set()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("data = (SELECT data FROM tokens WHERE key = 'bob') WHERE key = 'alice'", "damaged"),
        ("version = 'another', checksum = x'00'", "damaged"),
        ("written_wall = written_wall + 1", "damaged"),
        ("written_boot = NULL", "damaged"),
        ("checksum = CAST(checksum AS TEXT)", "damaged"),
        ("key = 'alice' WHERE key = 'bob'", "damaged"),
        ("data = 42", "wrong type"),
        ("data = 'text'", "wrong type"),
        ("version = 42.0 || x'ff'", "damaged"),
        ("version = CAST(x'ff' AS TEXT)", "damaged"),
        ("version = x'00'", "wrong type"),
    ],
)
def test_k37_a_record_that_is_not_whole_is_not_read(
    damage: str, words: str, path: Path, store: SQLiteStore
) -> None:
    """Pages of two databases may have come together. Only a new sign-in replaces such a record."""
    for name in ("alice", "bob"):
        run(store.put(name, name.encode()))
    sql(path, f"UPDATE OR REPLACE tokens SET {damage}")
    with pytest.raises(StoreCorrupt, match=words):
        run(store.load("alice"))
    for work in (store.claim("alice", seen=None, timeout=0), store.put("alice", b"new", expect="v")):
        with pytest.raises(StoreCorrupt):
            run(work)
    record = run(store.put("alice", b"signed in"))
    assert run(store.load("alice")) == record


def test_k37_a_database_that_is_moved_over_another_does_not_get_its_log(path: Path) -> None:
    """SQLite reads a write-ahead log that lies beside a database, also another program's."""
    theirs, ours, log = path.with_name("theirs.db"), path.with_name("ours.db"), Path(f"{path}-wal")
    private(theirs, "PRAGMA journal_mode = WAL; CREATE TABLE t (a)")
    with contextlib.closing(sqlite3.connect(theirs, isolation_level=None)) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        content = Path(f"{theirs}-wal").read_bytes()
    log.touch(0o600)
    log.write_bytes(content)
    run(use(SQLiteStore(ours)))
    ours.rename(path)
    run(refuses(path, StoreUnavailable, "log .* another database"))
    assert log.read_bytes() == content
    log.unlink()
    run(use(SQLiteStore(path)))


KILLED_IN_A_COMMIT = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE tokens SET version = 'half'")
for number in range(50):
    connection.execute("INSERT INTO tokens (key, version, data) VALUES (?, '', zeroblob(4000))", (number,))
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_in_a_commit(path: Path) -> None:
    """Another process is killed while it writes, and leaves a journal that must be rolled back."""
    subprocess.run([sys.executable, "-c", KILLED_IN_A_COMMIT, str(path)], timeout=60, check=False)
    assert path.with_name(path.name + "-journal").stat().st_size > 0


async def alice_and_bob(path: Path) -> tuple[Path, Record]:
    """Alice's database, and bob's, whose path and record are returned. Both have the same key."""
    theirs = path.with_name("bob.db")
    async with SQLiteStore(path) as alice, SQLiteStore(theirs) as bob:
        await alice.put("account", b"alice's token")
        return theirs, await bob.put("account", b"bob's token")


def test_a_commit_that_was_killed_is_rolled_back(path: Path, store: SQLiteStore) -> None:
    record = run(store.put("k", b"data"))
    killed_in_a_commit(path)
    assert run(store.load("k")) == record
    run(use(store))


def test_f69_k37_a_database_that_is_moved_over_another_does_not_get_its_records(
    path: Path, store: SQLiteStore
) -> None:
    """SQLite rolls the journal of the old one back into the new one: alice's record comes with it."""
    theirs, record = run(alice_and_bob(path))
    killed_in_a_commit(path)
    theirs.rename(path)
    run(refuses(path, StoreUnavailable, "journal"))
    path.with_name("tokens.db-journal").unlink()
    assert run(store.load("account")) == record


def test_k37_a_record_that_sqlite_brings_back_from_another_database_is_not_read(
    path: Path, store: SQLiteStore
) -> None:
    """The other database was copied over this one, so the file is the same one, and so is its journal."""
    theirs, _ = run(alice_and_bob(path))
    killed_in_a_commit(path)
    path.write_bytes(theirs.read_bytes())
    with pytest.raises(StoreCorrupt):
        run(store.load("account"))
    record = run(store.put("account", b"bob has signed in"))
    assert run(store.load("account")) == record


def test_k37_an_open_store_reads_a_database_that_was_copied_over_its_own(
    path: Path, store: SQLiteStore
) -> None:
    """And what it writes then can be read by others."""
    theirs, record = run(alice_and_bob(path))
    run(store.load("account"))
    path.write_bytes(theirs.read_bytes())
    assert run(store.load("account")) == record
    record = run(store.put("account", b"bob's next token"))
    run(store.aclose())
    assert run(store.load("account")) == record


def test_f51_a_backup_that_is_copied_back_is_read_although_it_looks_the_same(
    path: Path, store: SQLiteStore
) -> None:
    """SQLite compares a counter to know whether its pages are current. The backup comes to the same count."""
    other = SQLiteStore(path)
    old = run(store.put("k", b"backed up"))
    backup = path.read_bytes()
    run(store.put("k", b"after the backup"))
    run(other.load("k"))
    path.write_bytes(backup)
    run(store.put("j", b"after the restore"))
    assert run(other.load("k")) == old
    run(other.put("i", b"data"))
    assert run(store.keys()) == ["i", "j", "k"]
    run(other.aclose())


def test_a_write_that_the_database_ignores_is_an_error(path: Path, store: SQLiteStore) -> None:
    run(store.put("k", b"data"))
    sql(path, "CREATE TRIGGER t BEFORE INSERT ON tokens BEGIN SELECT RAISE(IGNORE); END")
    with pytest.raises(StoreUnavailable, match="ignored"):
        run(store.put("k", b"new"))


KEY = "key TEXT PRIMARY KEY, version TEXT NOT NULL, data BLOB NOT NULL"
FOREIGN = {
    "other columns": "CREATE TABLE tokens (id INTEGER PRIMARY KEY, token TEXT)",
    "upper case": "CREATE TABLE TOKENS (id INTEGER PRIMARY KEY, token TEXT)",
    "no version": "CREATE TABLE tokens (key TEXT PRIMARY KEY, data TEXT)",
    "no primary key": "CREATE TABLE tokens (key TEXT, version TEXT, data BLOB)",
    "two primary keys": "CREATE TABLE tokens (key TEXT, version TEXT, data BLOB, PRIMARY KEY (key, version))",
    "one more that must be given": f"CREATE TABLE tokens ({KEY}, note TEXT NOT NULL)",
    "a view": f"CREATE TABLE t ({KEY}); CREATE VIEW tokens AS SELECT * FROM t",
    "wal": "PRAGMA journal_mode = WAL; CREATE TABLE users (id INTEGER PRIMARY KEY)",
    "wal, beside ours": f"PRAGMA journal_mode = WAL; CREATE TABLE users (id); CREATE TABLE tokens ({KEY})",
}


@pytest.mark.parametrize("script", FOREIGN.values(), ids=FOREIGN)
def test_k44_another_programs_database_is_refused_and_not_changed(script: str, path: Path) -> None:
    content = private(path, script)
    run(refuses(path, StoreUnavailable, "database of their own"))
    assert path.read_bytes() == content
    found = {each.name for each in path.parent.iterdir()}
    assert found <= {"tokens.db", "tokens.db.locks", "tokens.db-journal"}


SHARED = {
    "other tables": "CREATE TABLE users (id INTEGER PRIMARY KEY)",
    "large pages and UTF-16": "PRAGMA encoding = 'UTF-16'; PRAGMA page_size = 65536; CREATE TABLE x (a)",
    "auto_vacuum": "PRAGMA auto_vacuum = INCREMENTAL; CREATE TABLE x (a)",
    "upper case": f"CREATE TABLE Tokens ({KEY})",
    "one more column": f"CREATE TABLE tokens ({KEY}, note TEXT, more TEXT NOT NULL DEFAULT '')",
    "strict": f"CREATE TABLE tokens ({KEY}) STRICT, WITHOUT ROWID",
}


@pytest.mark.parametrize("script", SHARED.values(), ids=SHARED)
def test_k44_a_database_that_can_be_shared_works(script: str, path: Path) -> None:
    private(path, script)
    run(use(SQLiteStore(path)))


@pytest.mark.parametrize("length", [503, 504, 513, 4000])
def test_k44_a_path_that_sqlite_cannot_use_is_an_error_at_once(length: int, tmp_path: Path) -> None:
    directory = tmp_path
    while len(str(directory)) + 210 < length:
        directory /= "d" * 200
    directory /= "d" * (length - len(str(directory)) - 11)
    path = directory / "tokens.db"
    assert len(str(path)) == length
    if length > 503:
        with pytest.raises(ConfigurationError, match=f"{length} bytes"):
            SQLiteStore(path)
    else:
        directory.mkdir(parents=True)
        run(use(SQLiteStore(path)))


# Both are in WAL mode, as versions before this one made them.
BEFORE_MIGRATIONS = f"""
PRAGMA journal_mode = WAL;
CREATE TABLE tokens ({KEY});
INSERT INTO tokens VALUES ('k', 'v', x'64617461');
"""
OLDER = f"""
PRAGMA journal_mode = WAL;
CREATE TABLE tokens ({KEY}, written_wall FLOAT, written_boot FLOAT);
INSERT INTO tokens VALUES ('k', 'v', x'64617461', 1.0, 1.0);
CREATE TABLE tokensession_store (one INTEGER PRIMARY KEY, id TEXT NOT NULL, inode INTEGER NOT NULL);
CREATE TABLE _sqlite_migrations (id INTEGER PRIMARY KEY, migration_set TEXT, name TEXT, applied_at TEXT);
INSERT INTO _sqlite_migrations VALUES (1, 'tokensession', 'm001_tokens', '');
INSERT INTO _sqlite_migrations VALUES (2, 'tokensession', 'm002_written', '');
"""
RECORD = Record("v", b"data")

older = pytest.mark.parametrize("script", [BEFORE_MIGRATIONS, OLDER], ids=["before migrations", "older"])


def journal_mode(path: Path) -> str:
    return str(sql(path, "PRAGMA journal_mode")[0][0])


@older
@pytest.mark.parametrize("first", ["load", "put", "claim"])
def test_k34_a_database_of_an_older_version_leaves_wal_mode(
    first: str, script: str, path: Path, store: SQLiteStore
) -> None:
    """Its records stay, and get a checksum."""
    private(path, script)
    if first == "claim":
        run(run(claimed(store, "k", "v")).abandon())
    elif first == "put":
        run(store.put("another", b"data"))
    assert run(store.load("k")) == RECORD
    run(store.aclose())
    sql(path, "UPDATE tokens SET data = x'00' WHERE key = 'k'")
    with pytest.raises(StoreCorrupt):
        run(store.load("k"))
    assert journal_mode(path) == "delete"
    assert not Path(f"{path}-wal").exists()
    made = sql(path, "SELECT migration_set, name FROM _sqlite_migrations")
    assert made == [("tokensession", name) for name in ("m001_tokens", "m002_written", "m003_checksum")]


def test_k34_a_database_that_is_open_elsewhere_stays_in_wal_mode_until_the_next_start(
    path: Path, store: SQLiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then it works, and you are told once."""
    private(path, OLDER)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("SELECT * FROM tokens").fetchall()
        assert run(store.load("k")) == RECORD
        run(store.put("k", b"new"))
        run(store.aclose())
        run(use(store))
        assert journal_mode(path) == "wal"
        assert [each.levelno for each in caplog.records] == [logging.WARNING]
        assert "still in WAL mode" in caplog.text
    restarted = SQLiteStore(path)
    run(restarted.load("k"))
    run(restarted.aclose())
    assert journal_mode(path) == "delete"


OLDER_VERSION = (
    "INSERT INTO tokens (key, version, data, written_wall, written_boot) VALUES (?, ?, ?, 1.0, 1.0)"
    " ON CONFLICT (key) DO UPDATE SET version = excluded.version, data = excluded.data,"
    " written_wall = excluded.written_wall, written_boot = excluded.written_boot"
)


def test_a_record_that_an_older_version_stores_after_the_upgrade_is_read(
    path: Path, store: SQLiteStore
) -> None:
    """It has the database open, and knows no checksum. It may have the only copy of a refresh token."""
    private(path, OLDER)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as older:
        older.execute("SELECT * FROM tokens").fetchall()
        run(store.load("k"))
        for key in ("k", "new"):
            older.execute(OLDER_VERSION, (key, "of the older version", b"data"))
            assert run(store.load(key)) == Record("of the older version", b"data")
        record = run(store.put("k", b"ours"))
        assert run(store.load("k")) == record


def test_k34_processes_that_start_at_once_leave_wal_mode(path: Path) -> None:
    """None of them keeps the others from it, because none keeps a connection in WAL mode open."""
    private(path, OLDER)
    stores = [SQLiteStore(path) for _ in range(6)]
    for _ in range(2):
        run(asyncio.gather(*[run.start(store.load("k")) for store in stores]))
    assert journal_mode(path) == "delete"
    for store in stores:
        run(store.aclose())


@older
def test_k34_a_read_only_database_of_an_older_version_can_be_read(
    script: str, path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not converted, because that would be a write."""
    private(path, script)
    tables = sql(path, "SELECT sql FROM sqlite_master")
    path.chmod(0o400)
    if os.geteuid() == 0:  # root may write to it all the same
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert run(store.load("k")) == RECORD
    assert run(store.keys()) == ["k"]
    with pytest.raises(StoreUnavailable):
        run(store.claim("k", seen="v", timeout=0))
    run(store.aclose())
    assert journal_mode(path) == "wal"
    assert sql(path, "SELECT sql FROM sqlite_master") == tables


def test_a_table_of_migrations_that_cannot_be_read_leaves_no_connection_open(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    private(path, BEFORE_MIGRATIONS + "CREATE TABLE _sqlite_migrations (something_else TEXT);")
    opened, connect = list[sqlite3.Connection](), sqlite3.connect

    def remember(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", remember)
    with pytest.raises(StoreUnavailable):
        run(store.load("k"))
    assert len(opened) == 1
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")
