"""What is special about PostgresStore: outages, restarts, poolers, leases, and tables that are not ours."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import _postgres_server as postgres
import asyncpg
import pytest

from benchmarks.servers import PgBouncer, PostgresServer, free_port
from tokensession.errors import (
    ClaimTimeout,
    ConfigurationError,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
    Superseded,
)
from tokensession.stores import PostgresStore, open_store
from tokensession.stores._postgres import listener, schema
from tokensession.stores.postgres import _Rows
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import claimed, is_free, newer, started, ticks
from tokensession.testing.conformance.peer import Peer, peers

SECRET = b"s3cr3t-refresh-token"


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 100))


@pytest.fixture
def shared() -> PostgresServer:
    """A server that keeps running."""
    return postgres.shared_server()


@pytest.fixture(scope="module")
def lone() -> Iterator[PostgresServer]:
    """A server that the tests may stop, kill and freeze."""
    server = PostgresServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
def server(lone: PostgresServer) -> PostgresServer:
    lone.start()
    return lone


@pytest.fixture(params=["directly", "behind pgbouncer"])
def address(request: pytest.FixtureRequest, server: PostgresServer) -> Iterator[str]:
    """The URL of an empty store on `server`."""
    if request.param == "directly":
        yield server.url + postgres.options(postgres.new_table())
        return
    bouncer = PgBouncer(server)
    bouncer.start()
    yield bouncer.url + postgres.options(postgres.new_table())
    bouncer.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is to be notified does not give up listening because the machine is busy."""
    monkeypatch.setattr(listener, "_TRIAL", 60.0)


def url_of(
    server: PostgresServer, *, database: str = "postgres", user: str = "postgres", **more: object
) -> str:
    url = server.url.removesuffix("postgres") + database
    return url.replace("postgres:", f"{user}:", 1).replace("postgresql", "postgresql", 1) + postgres.options(
        postgres.new_table(), **more
    )


def table_of(store: Any) -> str:
    return f'"{store._table}"'


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def row_locked(server: PostgresServer, table: str) -> AsyncIterator[None]:
    """Another program has locked all rows of this table, and does not end its transaction."""
    connection = await asyncpg.connect(server.url)
    try:
        async with connection.transaction():
            await connection.execute(f"SELECT FROM {table} FOR UPDATE")
            yield
    finally:
        await connection.close()


# Restarts


@pytest.mark.parametrize("end", [PostgresServer.stop, PostgresServer.kill])
def test_a_claim_survives_a_restart_of_the_server(
    server: PostgresServer, address: str, end: Callable[[PostgresServer], None]
) -> None:
    async def promise() -> None:
        async with open_store(address) as store:
            before = await store.put("k", b"before")
            claim = await claimed(store, "k", before.version)
            await claim.sending(listening=60)
            await asyncio.to_thread(end, server)
            await asyncio.to_thread(server.start)
            record = await claim.commit(b"rotated")
            assert await store.load("k") == record
            assert await is_free(store, "k", record.version)

    run(promise())


def test_a_commit_that_begins_while_the_server_is_down_is_stored_when_it_is_back(
    server: PostgresServer, address: str
) -> None:
    async def promise() -> None:
        async with open_store(address) as store:
            claim = await claimed(store, "k")
            await asyncio.to_thread(server.kill)
            commit = await started(claim.commit(b"rotated"))
            assert not commit.done()
            await asyncio.to_thread(server.start)
            record = await commit
            assert await store.load("k") == record

    run(promise())


def test_waiters_outlive_a_restart_of_the_server(server: PostgresServer, address: str) -> None:
    async def promise() -> None:
        async with open_store(address) as store, open_store(address) as other:
            claim = await claimed(store, "k")
            waiters = [await started(newer(other, "k")) for _ in range(8)]
            await other.load("k")  # they are waiting
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            record = await claim.commit(b"rotated")
            assert await asyncio.gather(*waiters) == [record] * 8

    run(promise())


def test_what_was_acknowledged_survives_although_the_database_does_not_wait_for_its_disk(
    server: PostgresServer,
) -> None:
    server.sql(
        "DROP DATABASE IF EXISTS hasty",
    )
    server.sql("CREATE DATABASE hasty")
    server.sql("ALTER DATABASE hasty SET synchronous_commit = off")
    address = url_of(server, database="hasty")

    async def promise() -> None:
        async with open_store(address) as store:
            await store.put("k", b"before")
            claim = await claimed(store, "k", (await newer(store, "k")).version)
            for number in range(3):
                server.kill()
                server.start()
                record = await claim.commit(b"rotated")
                server.kill()
                server.start()
                assert await store.load("k") == record, number
                claim = await claimed(store, "k", record.version)

    run(promise())


# A server that does not answer


def test_a_frozen_server_is_an_error_and_nothing_is_lost(server: PostgresServer, address: str) -> None:
    async def promise() -> None:
        async with open_store(address) as store:
            before = await store.put("k", b"before")
            claim = await claimed(store, "k", before.version)
            with server.frozen():
                for call in (
                    partial(store.load, "k"),
                    partial(store.claim, "other", seen=None, timeout=3600),
                    partial(store.put, "other", b"data"),
                    claim.sending,
                    partial(claim.commit, b"rotated"),
                ):
                    with pytest.raises(StoreUnavailable, match="answer"):
                        await call()
            record = await claim.commit(b"rotated")
            assert await store.load("k") == record

    run(promise())


def test_a_store_can_be_closed_while_its_server_is_frozen(server: PostgresServer, address: str) -> None:
    async def promise() -> None:
        before = asyncio.all_tasks()
        store = open_store(address)
        claim = await claimed(store, "k")
        waiter = await started(store.claim("k", seen=None, timeout=3600))
        with server.frozen():
            waiter.cancel()
            await store.aclose()
        assert (await claim.commit(b"data")).data == b"data"
        await store.aclose()
        assert asyncio.all_tasks() == before

    run(promise())


def test_a_claim_that_timed_out_is_not_granted_later(server: PostgresServer) -> None:
    """The server carries out what it had received when it goes on. Its owner is gone, and gives it up."""
    address = url_of(server, lease=600)

    async def promise() -> None:
        async with open_store(address) as store, open_store(address) as other:
            for warm in (store, other):
                await (await claimed(warm, "warm")).abandon()
            with server.frozen():
                with pytest.raises(StoreUnavailable):
                    await store.claim("k", seen=None, timeout=3600)
            await (await claimed(other, "k")).abandon()

    run(promise())


@pytest.mark.usefixtures("patient")
def test_connections_that_are_cut_are_replaced(shared: PostgresServer) -> None:
    address = url_of(shared)

    async def promise() -> None:
        async with open_store(address) as store, open_store(address) as other:
            claim = await claimed(store, "k")
            waiter = await started(newer(other, "k"))
            await until(lambda: other._server.listener.live)  # type: ignore[attr-defined]
            await asyncio.to_thread(shared.cut)
            assert await store.load("k") is None
            await until(lambda: other._server.listener.live)  # type: ignore[attr-defined]
            record = await claim.commit(b"data")
            assert await waiter == record

    run(promise())


# Notifications


@pytest.mark.usefixtures("patient")
def test_waiters_are_notified(shared: PostgresServer) -> None:
    """Of an abandoned claim, a sign-in and a commit, and with no look in between."""
    backend = postgres.backend(shared, lease=3600)

    async def notified(store: Any) -> None:
        """Its waiters have no other reason to look."""
        store._leases._recheck = 3600.0
        await until(lambda: store._server.listener.live and store._server.listener._timer is None)
        await store.load("k")  # after their last look
        await ticks()

    async def promise() -> None:
        async with open_store(backend.url) as store, open_store(backend.url) as other:
            claim = await claimed(store, "k")
            waiter: asyncio.Future[Any] = await started(claimed(other, "k"))
            await notified(other)
            await claim.abandon()
            claim = await waiter
            waiter = await started(newer(store, "k"))
            await notified(store)
            record = await other.put("k", b"signed in")
            assert await waiter == record
            await claim.abandon()
            claim = await claimed(store, "k", record.version)
            waiter = await started(newer(other, "k", record.version))
            await notified(other)
            record = await claim.commit(b"refreshed")
            assert await waiter == record

    run(promise())


@pytest.mark.usefixtures("patient")
def test_a_waiter_that_is_not_notified_finds_the_record(shared: PostgresServer) -> None:
    table = postgres.new_table()
    listening = shared.url + postgres.options(table)
    silent = shared.url + postgres.options(table, listen="false")

    async def promise() -> None:
        async with open_store(silent) as store, open_store(listening) as other:
            claim = await claimed(store, "k")
            waiter = await started(newer(other, "k"))
            await until(lambda: other._server.listener.live)  # type: ignore[attr-defined]
            record = await claim.commit(b"data")
            assert await waiter == record

    run(promise())


def test_a_listening_connection_that_died_silently_is_replaced(shared: PostgresServer) -> None:
    """Its process at the server is stopped: it answers nothing, and the connection stays open."""
    table = postgres.new_table()
    listening = f"{shared.url}?sslmode=disable&application_name=listens"

    async def promise() -> None:
        clock = FakeClock()
        store = PostgresStore.connect(shared.url, table=table, listen=listening, clock=clock)
        async with store, PostgresStore.connect(shared.url, table=table) as other:
            listener, seen = store._server.listener, None

            async def process() -> int:
                """The one that listens, once it does."""
                await until(lambda: listener.live)
                found = await asyncio.to_thread(
                    shared.sql,
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'listens'"
                    " ORDER BY backend_start DESC LIMIT 1",
                )
                return int(found)

            async def silence() -> None:
                """The time until the connection is tried is over."""
                clock.advance(max(clock.sleepers))
                await clock.slept()

            async def waited_for() -> None:
                """A waiter is notified: by its clock, it never looks."""
                nonlocal seen
                claim = await claimed(other, "k", seen)
                waiter = await started(newer(store, "k", seen))
                await process()
                record = await claim.commit(b"data")
                assert await waiter == record
                seen = record.version
                await ticks()

            await waited_for()
            first = await process()
            assert max(clock.sleepers) == 15
            await silence()
            await until(lambda: clock.sleepers == (15.0,))  # it has answered
            await waited_for()
            os.kill(first, signal.SIGSTOP)
            try:
                await silence()
                await silence()  # that of the answer
                await silence()  # the pause before the next connection
                await waited_for()
                assert await process() != first
            finally:
                os.kill(first, signal.SIGCONT)

    run(promise())


def test_a_pooler_that_swallows_notifications_is_noticed(
    shared: PostgresServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning, and waiters are served all the same. The URL of the server itself helps."""
    bouncer = postgres.shared_bouncer()
    table = postgres.new_table()
    address = bouncer.url + postgres.options(table)
    direct = bouncer.url + postgres.options(
        table, listen=shared.url.replace("://", "%3A//") + "?sslmode%3Ddisable"
    )

    async def promise() -> None:
        async with open_store(address) as store, open_store(address) as other, open_store(direct) as third:
            for _ in range(2):
                seen = await store.load("k")
                version = None if seen is None else seen.version
                claim = await claimed(store, "k", version)
                monkeypatch.setattr(listener, "_TRIAL", 60.0)  # although the machine may be busy
                waiters = [await started(newer(third, "k", version))]
                await until(lambda: third._server.listener.live)  # type: ignore[attr-defined]
                monkeypatch.setattr(listener, "_TRIAL", 1.0)
                waiters += [await started(newer(other, "k", version)) for _ in range(2)]
                await until(lambda: "Notifications of Postgres do not arrive" in caplog.text)
                assert not other._server.listener.live  # type: ignore[attr-defined]
                record = await claim.commit(b"data")
                assert await asyncio.gather(*waiters) == [record] * 3

    with caplog.at_level(logging.WARNING, "tokensession.stores"):
        run(promise())
    assert len(caplog.records) == 1
    assert PostgresServer.PASSWORD not in caplog.text


def test_notifications_show_neither_key_nor_data(shared: PostgresServer) -> None:
    address = url_of(shared)
    heard: list[str] = []

    async def promise() -> None:
        async with open_store(address) as store:
            listener = await asyncpg.connect(shared.url)
            await listener.add_listener(store._table, lambda *parts: heard.append(str(parts[-1])))  # type: ignore[attr-defined]
            claim = await claimed(store, "the key")
            await claim.commit(SECRET)
            await until(lambda: bool(heard))
            await listener.close()

    run(promise())
    assert heard
    assert not any("the key" in text or SECRET.decode() in text or SECRET.hex() in text for text in heard)


# Leases


def test_a_holder_stopped_past_its_lease_is_taken_over_and_superseded(shared: PostgresServer) -> None:
    address = url_of(shared)
    with Peer(address) as holder:

        async def promise() -> None:
            async with open_store(address) as store:
                holder.ask("claim", key="k", seen=None)
                holder.ask("sending", listening=30)
                holder.stop()
                claim = await claimed(store, "k")
                assert claim.interrupted is not None
                assert 0 < claim.listening <= 30
                record = await claim.commit(b"newer")
                holder.resume()
                late = holder.ask("commit", data="late")
                assert late == {
                    "error": "Superseded",
                    "record": {"version": record.version, "data": "newer"},
                }
                assert await store.load("k") == record

        run(promise())


def test_a_holder_stopped_past_its_lease_commits_if_nothing_newer_is_stored(shared: PostgresServer) -> None:
    """The one that has taken over learns of it, and keeps its claim."""
    address = url_of(shared)
    with Peer(address) as holder:

        async def promise() -> None:
            async with open_store(address) as store:
                holder.ask("claim", key="k", seen=None)
                holder.ask("sending", listening=30)
                holder.stop()
                claim = await claimed(store, "k")
                holder.resume()
                assert holder.ask("sending")["error"] == "StoreUnavailable", "the other may be sending"
                late = holder.ask("commit", data="late")
                assert late["data"] == "late"
                assert not await is_free(store, "k", late["version"])
                with pytest.raises(Superseded) as caught:
                    await claim.commit(b"data")
                assert caught.value.record.version == late["version"]
                await claim.abandon()
                claim = await claimed(store, "k", late["version"])
                assert claim.interrupted is None, "its request was answered: that is what it has committed"
                await claim.abandon()

        run(promise())


def test_a_holder_whose_event_loop_is_blocked_past_its_lease_is_taken_over(shared: PostgresServer) -> None:
    address = url_of(shared)
    with Peer(address) as holder:

        async def promise() -> None:
            async with open_store(address) as store:
                holder.ask("claim", key="k", seen=None)
                assert holder.ask("block") == "blocked"
                claim = await claimed(store, "k")
                assert claim.interrupted is None, "it had sent nothing"
                await claim.sending()
                holder.send("sending")
                assert holder.read() == "unblocked"
                assert holder.read()["error"] == "StoreUnavailable"
                record = await claim.commit(b"data")
                assert holder.ask("commit", data="late")["error"] == "Superseded"
                assert await store.load("k") == record

        run(promise())


def test_a_claim_is_renewed_as_long_as_its_holder_runs(shared: PostgresServer) -> None:
    """Each time a third of its lease is over, by its clock."""
    clock, address = FakeClock(), url_of(shared, lease=60)

    async def promise() -> None:
        async with open_store(address, clock=clock) as store, open_store(address) as other:
            claim = await claimed(store, "k")
            ends = f"SELECT lease_end FROM {table_of(store)}"
            for _ in range(3):
                await until(lambda: 20 in clock.sleepers)  # it has the answer to the last renewal
                before = await asyncio.to_thread(shared.sql, ends)
                clock.advance(20)
                while (renewed := await asyncio.to_thread(shared.sql, ends)) == before:
                    assert not await is_free(other, "k")
                assert renewed > before
            await claim.abandon()

    run(promise())


def test_no_one_waits_longer_than_a_lease_although_the_servers_clock_goes_back(
    shared: PostgresServer,
) -> None:
    """Neither for the claim of a holder that is gone, nor for the response to its request."""
    address = url_of(shared)

    async def promise() -> None:
        async with open_store(address) as store, open_store(address) as other:
            claim = await claimed(store, "k")
            await claim.sending(listening=30)
            claim._stop_renewing()  # type: ignore[attr-defined]
            later = ", ".join(
                f"{column} = {column} + interval '1 hour'"
                for column in ("since", "lease_end", "sent", "listens_until")
            )
            await asyncio.to_thread(shared.sql, f"UPDATE {table_of(store)} SET {later}")
            with pytest.raises(ClaimTimeout):
                await other.claim("k", seen=None, timeout=0)
            ends = f"SELECT lease_end <= clock_timestamp() + lease FROM {table_of(store)}"
            assert await asyncio.to_thread(shared.sql, ends) == "t"
            claim = await claimed(other, "k")
            assert claim.interrupted == 0
            assert claim.listening == pytest.approx(30)
            await claim.abandon()

    run(promise())


def test_a_claim_that_has_ended_leaves_no_mark(shared: PostgresServer) -> None:
    """Neither its own nor that of a holder before it."""
    address = url_of(shared)

    async def promise() -> None:
        async with open_store(address) as store:
            marks = (
                f"SELECT owner, sent, listens_until, interrupted, interrupted_until FROM {table_of(store)}"
            )
            for superseded in (False, True):
                claim = await claimed(store, "k", None)
                await claim.sending(listening=30)
                await claim.let_lapse()  # type: ignore[attr-defined]
                claim = await claimed(store, "k", None)
                assert claim.interrupted is not None
                await claim.sending(listening=30)
                if superseded:
                    await store.put("k", b"newer")
                    with pytest.raises(Superseded):
                        await claim.commit(b"data")
                    await claim.abandon()
                else:
                    await claim.commit(b"data")
                assert await asyncio.to_thread(shared.sql, marks) == "||||"
                await store.delete("k")

    run(promise())


def test_waiting_changes_and_locks_nothing(shared: PostgresServer) -> None:
    """A row lock would be written to the row's xmax, and to the log, by every waiter at every look."""
    address = url_of(shared)

    async def promise() -> None:
        async with open_store(address) as store, open_store(address) as other:
            record = await store.put("k", b"data")
            claim = await claimed(store, "k", record.version)
            row = f"SELECT ctid, xmin, xmax FROM {table_of(store)}"
            connection = await asyncpg.connect(shared.url)
            while True:
                before = (
                    await connection.fetch(row),
                    await connection.fetch(f"SELECT lease_end FROM {table_of(store)}"),
                )
                for _ in range(5):
                    with pytest.raises(ClaimTimeout):
                        await other.claim("k", seen=record.version, timeout=0)
                    assert (await newer(other, "k")) == record
                after = (
                    await connection.fetch(row),
                    await connection.fetch(f"SELECT lease_end FROM {table_of(store)}"),
                )
                if before[1] == after[1]:  # not renewed in between
                    break
            assert before[0] == after[0]
            await connection.close()
            await claim.abandon()

    run(promise())


def test_only_the_winner_of_a_race_for_a_claim_waits_for_the_disk() -> None:
    """The losers would, one after another, and keep the winner from its row."""
    # Who waits for the disk waits for a standby, too, and there is none.
    server = PostgresServer(settings="synchronous_standby_names = 'nobody'\nsynchronous_commit = local")
    server.start()
    address = url_of(server, lease=600)
    awaiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"

    async def promise() -> None:
        async with open_store(address) as store:
            await store.put("k", b"data")
        server.sql("ALTER DATABASE postgres SET synchronous_commit = on")
        async with open_store(address) as store:
            version = (await newer(store, "k")).version
            connection = await asyncpg.connect(server.url)
            async with connection.transaction():
                await connection.execute(
                    f"UPDATE {table_of(store)} SET owner = 'x 1 winner', since = now(), lease = '1 hour',"
                    " lease_end = now() + interval '1 hour'"
                )
                await connection.execute("SET LOCAL synchronous_commit = off")
                loser = await started(store.claim("k", seen=version, timeout=0))
                await until(lambda: bool(server.sql("SELECT 1 FROM pg_locks WHERE NOT granted")))
            with pytest.raises(ClaimTimeout, match="winner"):
                await loser
            await connection.close()
            winner = await started(claimed(store, "j"))
            await until(lambda: bool(server.sql(f"SELECT pg_cancel_backend(pid) {awaiting}")))
            assert (await winner).current is None

    try:
        run(promise())
    finally:
        server.close()


def test_one_waiter_looks_for_all_of_its_key(shared: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the one that was to look is cancelled. Once it finds a record, the others get it at once."""
    address, looks, clock = url_of(shared, listen="false"), 0, FakeClock()
    try_claim = _Rows.try_claim

    async def counted(self: _Rows, key: str, seen: str | None, owner: str) -> Any:
        nonlocal looks
        found = await try_claim(self, key, seen, owner)
        looks += 1
        return found

    async def promise() -> None:
        nonlocal looks
        async with open_store(address, clock=clock) as store, open_store(address) as other:
            before = (await other.put("k", b"data")).version
            claim = await claimed(other, "k", before)
            monkeypatch.setattr(_Rows, "try_claim", counted)
            waiters = [await started(store.claim("k", seen=before, timeout=3600)) for _ in range(100)]
            await until(lambda: looks == 100)
            await ticks()
            looks = 0
            clock.advance(0.05)
            await until(lambda: looks > 0)
            await asyncio.sleep(0)
            assert looks == 1
            clock.advance(0.05)
            await ticks(1)
            for waiter in waiters[::2]:
                waiter.cancel()
            record = await claim.commit(b"new")
            others = asyncio.gather(*waiters[1::2])
            while not others.done():  # the one that looked instead may not have begun to wait again
                clock.advance(0.05)
                await asyncio.sleep(0.01)
            assert others.result() == [record] * 50

    run(promise())


def test_one_holder_at_a_time_under_a_stricter_isolation(shared: PostgresServer, tmp_path: Path) -> None:
    """In such a database the loser of a race gets an error of the server, and tries again."""
    name = f"strict_{os.getpid()}"
    shared.sql(f"CREATE DATABASE {name}")
    shared.sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    with peers(4, url_of(shared, database=name)) as contenders:
        for contender in contenders:
            contender.send("contend", key="k", times=10, arena=str(tmp_path / "arena"))
        for contender in contenders:
            assert contender.read() == {"granted": 10, "overlaps": 0}


# The pool


def test_a_borrowed_pool_is_shared_and_stays_open(shared: PostgresServer) -> None:
    """One connection is enough for any number of claims, because none is held during a request."""
    table = postgres.new_table()

    async def promise() -> None:
        async with asyncpg.create_pool(shared.url, min_size=0, max_size=1) as pool:
            async with PostgresStore(pool, table=table) as store:
                claims = [await claimed(store, f"key-{number}") for number in range(10)]
                waiter = await started(newer(store, "key-0"))
                assert await pool.fetchval("SELECT 1") == 1
                for claim in claims:
                    await claim.sending()
                records = [await claim.commit(b"data") for claim in claims]
                assert await waiter == records[0]
                with pytest.raises(TypeError, match="borrows a pool"):
                    pickle.dumps(store)
            assert await pool.fetchval("SELECT 1") == 1
            assert (await store.load("key-0")) == records[0]
            await store.aclose()

    run(promise())


def test_a_borrowed_pool_belongs_to_its_event_loop(shared: PostgresServer) -> None:
    """In another one the driver would fail somehow, and disturb the first."""

    async def promise() -> None:
        async with asyncpg.create_pool(shared.url, min_size=0) as pool:
            async with PostgresStore(pool, table=postgres.new_table()) as store:
                record = await store.put("k", b"data")
                assert "belongs to another" in await asyncio.to_thread(run, refusal(store))
                assert await store.load("k") == record

    run(promise())


def test_two_threads_do_not_share_the_connections_of_one_store(shared: PostgresServer) -> None:
    """The second one gets an error, and the first one is not disturbed."""

    async def promise() -> None:
        async with open_store(url_of(shared)) as store:
            claim = await claimed(store, "k")
            assert "Another thread" in await asyncio.to_thread(run, refusal(store))
            record = await claim.commit(b"data")
            assert await store.load("k") == record
        assert await store.load("k") == record, "it was closed, and is opened again"
        await store.aclose()

    run(promise())


@pytest.mark.usefixtures("patient")
def test_a_borrowed_pool_works_behind_a_pooler(shared: PostgresServer) -> None:
    bouncer, table = postgres.shared_bouncer(), postgres.new_table()

    async def promise() -> None:
        async with asyncpg.create_pool(bouncer.url, min_size=2, max_size=2, statement_cache_size=0) as pool:
            listen = shared.url + "?sslmode=disable"
            async with PostgresStore(pool, table=table, listen=listen) as store:
                claim = await claimed(store, "k")
                waiter = await started(newer(store, "k"))
                await until(lambda: store._server.listener.live)
                assert await waiter_gets(waiter, claim.commit(b"data"))

    async def waiter_gets(waiter: Awaitable[Any], commit: Awaitable[Any]) -> bool:
        record = await commit
        return bool(await waiter == record)

    run(promise())


def test_a_pool_without_a_free_connection_is_an_error(shared: PostgresServer) -> None:
    async def promise() -> None:
        async with asyncpg.create_pool(shared.url, min_size=0, max_size=1) as pool:
            async with PostgresStore(pool, table=postgres.new_table()) as store:
                async with pool.acquire():
                    with pytest.raises(StoreUnavailable, match="free connection"):
                        await store.load("k")
                assert await store.load("k") is None

    run(promise())


# Refused before a refresh token is spent


async def refusal(store: Any, kind: type[StoreError] = StoreUnavailable) -> str:
    """The error of a claim."""
    async with store:
        with pytest.raises(kind) as caught:
            await store.claim("k", seen=None, timeout=0)
    for secret in (PostgresServer.PASSWORD, "other-password"):
        assert secret not in str(caught.value)
        assert secret not in repr(caught.value.__cause__)
    return str(caught.value)


def test_an_unreachable_server_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    message = run(refusal(open_store(f"postgresql://me:{PostgresServer.PASSWORD}@{address}/tokens")))
    assert f"{address}/tokens cannot be reached" in message


def test_a_host_that_no_server_can_have_is_named() -> None:
    """A part of its name is missing, as a template leaves it whose variable is empty."""
    message = run(refusal(open_store(f"postgresql://me:{PostgresServer.PASSWORD}@db..example.com/tokens")))
    assert "db..example.com/tokens has an impossible host name" in message


def test_a_wrong_password_is_an_error() -> None:
    server = PostgresServer(auth="scram-sha-256")
    server.start()
    try:
        assert "rejected the password" in run(
            refusal(open_store(server.url.replace(PostgresServer.PASSWORD, "other-password")))
        )
        assert "no such database" in run(refusal(open_store(server.url + "_other")))

        async def works() -> None:
            async with open_store(server.url) as store:
                assert await store.load("k") is None

        run(works())
    finally:
        server.close()


def test_a_read_only_server_fails_the_claim_and_can_be_read(shared: PostgresServer) -> None:
    name = f"standby_{os.getpid()}"
    shared.sql(f"CREATE DATABASE {name}")
    address = url_of(shared, database=name)

    async def promise() -> None:
        async with open_store(address) as store:
            record = await store.put("k", b"data")
        shared.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        async with open_store(address) as store:
            assert await store.load("k") == record
            with pytest.raises(StoreUnavailable, match="read-only"):
                await store.claim("k", seen=record.version, timeout=0)
        assert "read-only" in await refusal(open_store(url_of(shared, database=name))), (
            "there is no table yet"
        )

    run(promise())


def test_a_former_primary_is_left_for_its_successor(shared: PostgresServer) -> None:
    """Its sessions stay read-only and open. New ones, to the same address, are writable."""
    name = f"former_{os.getpid()}"
    shared.sql(f"CREATE DATABASE {name}")
    address = url_of(shared, database=name)

    async def promise() -> None:
        async with open_store(address) as store:
            record = await store.put("k", b"data")
        shared.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        async with open_store(address) as store:
            await asyncio.gather(*(store.load("k") for _ in range(10)))
            shared.sql(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            with pytest.raises(StoreUnavailable, match="read-only"):
                await store.claim("k", seen=record.version, timeout=0)
            assert await is_free(store, "k", record.version)

    run(promise())


async def claim_new_keys(store: Any) -> None:
    for number in range(1000):
        await store.claim(f"new-{number}", seen=None, timeout=0)


def test_a_full_disk_fails_the_claim(server: PostgresServer, tmp_path: Path) -> None:
    disk = server.directory / "small"
    disk.mkdir()
    owner = server.directory.stat()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=1m,uid={owner.st_uid},gid={owner.st_gid}", "tmpfs", str(disk)],
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("this user cannot mount a file system")
    try:
        server.sql(f"CREATE TABLESPACE small LOCATION '{disk}'")
        server.sql("CREATE DATABASE small")
        server.sql("ALTER DATABASE small SET default_tablespace = small")
        address = url_of(server, database="small")

        async def promise() -> None:
            async with open_store(address) as store:
                record = await store.put("k", b"data")
                with contextlib.suppress(StoreUnavailable):
                    for number in range(1000):
                        await store.put(f"fill-{number}", os.urandom(1500))
                with pytest.raises(StoreUnavailable, match="no space left"):
                    await claim_new_keys(store)
                assert await store.load("k") == record
                claim = await claimed(store, "k", record.version)
                assert (await claim.commit(b"more")).data == b"more", "it replaces a row of the same page"

        run(promise())
    finally:
        server.kill()
        subprocess.run(["umount", str(disk)], check=True)
        server.close()


def test_a_server_that_is_too_old_is_refused(shared: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "OLDEST_SERVER", 990_000)
    assert "too old. What is stored has not changed. Use version 99" in run(
        refusal(open_store(url_of(shared)))
    )


@pytest.mark.parametrize(
    "made",
    [
        "CREATE TABLE {0} (id int, key text, version text)",
        "CREATE VIEW {0} AS SELECT 1 AS id",
        "CREATE SEQUENCE {0}",
        "CREATE TABLE {0} ()",
    ],
)
def test_the_table_of_another_program_is_left_alone(shared: PostgresServer, made: str) -> None:
    store = open_store(url_of(shared))
    shared.sql(made.format(table_of(store)))
    described = (
        f"SELECT relkind, relnatts, obj_description(oid) FROM pg_class WHERE relname = '{store._table}'"  # type: ignore[attr-defined]
    )
    before = shared.sql(described)
    message = run(refusal(store))
    assert "not one of tokensession's" in message
    assert "table=" in message
    assert shared.sql(described) == before


def test_the_table_of_a_newer_version_is_left_alone(shared: PostgresServer) -> None:
    store = open_store(url_of(shared))

    async def promise() -> None:
        async with store:
            await store.put("k", b"data")
            shared.sql(f"COMMENT ON TABLE {table_of(store)} IS 'tokensession 99: from the future'")
        assert "newer version" in await refusal(store, StoreCorrupt)

    run(promise())


def test_an_administrator_can_make_the_table(shared: PostgresServer) -> None:
    """The user of the store needs no right to create one. Without the table, the error says what to do."""
    name = f"limited_{os.getpid()}"
    shared.sql(f"CREATE ROLE {name} LOGIN")
    shared.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    store = open_store(url_of(shared, user=name))
    table: str = store._table  # type: ignore[attr-defined]

    async def promise() -> None:
        message = await refusal(store)
        assert "does not permit" in message
        assert "PostgresStore.schema()" in message
        shared.sql(PostgresStore.schema(table))
        assert "does not permit" in await refusal(store)
        shared.sql(f"GRANT SELECT, INSERT, UPDATE ON {table} TO {name}")
        async with store:
            claim = await claimed(store, "k")
            await claim.sending()
            record = await claim.commit(b"data")
            assert await store.keys() == ["k"]
            assert await store.delete("k", expect=record.version)

    run(promise())


def test_a_table_in_another_schema_is_made_there(shared: PostgresServer) -> None:
    name = f"auth_{os.getpid()}"
    shared.sql(f"CREATE SCHEMA {name}")

    async def promise() -> None:
        async with PostgresStore.connect(shared.url, table=f"{name}.Tokens", lease=postgres.LEASE) as store:
            claim = await claimed(store, "k")
            waiter = await started(newer(store, "k"))
            await until(lambda: store._server.listener.live)
            record = await claim.commit(b"data")
            assert await waiter == record
            assert shared.sql(f'SELECT count(*) FROM {name}."Tokens"') == "1"

    run(promise())


def test_sixteen_processes_make_the_table_at_once(shared: PostgresServer) -> None:
    for _ in range(3):
        with peers(16, url_of(shared)) as starters:
            for starter in starters:
                starter.send("load", key="k")
            assert [starter.read() for starter in starters] == [None] * 16


def test_a_table_that_was_dropped_is_made_again(shared: PostgresServer) -> None:
    async def promise() -> None:
        async with open_store(url_of(shared)) as store:
            await store.put("k", b"data")
            claim = await claimed(store, "other")
            shared.sql(f"DROP TABLE {table_of(store)}")
            assert await store.load("k") is None
            record = await claim.commit(b"rotated")
            assert await store.load("other") == record, "it may be the only copy"

    run(promise())


def test_a_row_that_another_program_locks_is_an_error(shared: PostgresServer) -> None:
    """Before a refresh token is spent. Reading works, and what has failed is not carried out later."""

    async def promise() -> None:
        async with open_store(url_of(shared)) as store:
            record = await store.put("k", b"data")
            async with row_locked(shared, table_of(store)):
                for call in (
                    partial(store.claim, "k", seen=record.version, timeout=3600),
                    partial(store.put, "k", b"other"),
                    partial(store.delete, "k"),
                ):
                    with pytest.raises(StoreUnavailable, match="locked"):
                        await call()
                assert await store.load("k") == record
            assert await is_free(store, "k", record.version)
            claim = await claimed(store, "k", record.version)
            async with row_locked(shared, table_of(store)):
                with pytest.raises(StoreUnavailable, match="locked"):
                    await claim.commit(b"rotated")
                assert not await is_free(store, "k", record.version)
            assert (await claim.commit(b"rotated")).data == b"rotated"

    run(promise())


# What is shown


def test_an_error_of_the_server_shows_no_token(shared: PostgresServer) -> None:
    """Postgres puts the whole row into the details of some errors."""

    async def promise() -> None:
        async with open_store(url_of(shared)) as store:
            await store.load("k")
            shared.sql(f"ALTER TABLE {table_of(store)} ADD CHECK (length(data) < 3)")
            with pytest.raises(StoreUnavailable, match="CheckViolation") as caught:
                await store.put("k", SECRET)
            error: BaseException | None = caught.value
            while error is not None:
                assert SECRET.hex() not in f"{error} {error!r} {vars(error)}"
                error = error.__cause__ or error.__context__

    run(promise())


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/db?password=ab&s3cr3t",
        "postgresql://me:s3cr3t@host:99999/db",
        "postgresql://me:s3cr3t@one:5432,two:0/db",
        "postgresql://me:s3cr3t@one:5432,two,/db",
        "postgresql://me:s3cr3t@host/db#x",
        "postgresql://me:begin@s3cr3t@host/db",
        "postgresql://me:s3cr3t@host/db?lease=0",
        "postgresql://me:s3cr3t@host/db?lease=soon",
        "postgresql://me:s3cr3t@host/db?lease=nan",
        "postgresql://me:s3cr3t@host/db?table=a.b.c",
        "postgresql://me:s3cr3t@host/db?table=a%22b",
        "postgresql://me:s3cr3t@host/db?table=",
        "postgresql://me:s3cr3t@host/db?listen=no",
    ],
)
def test_a_wrong_url_is_a_configuration_error_and_shows_no_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert "s3cr3t" not in str(caught.value)


def test_the_repr_shows_no_password_and_a_pickle_is_the_configuration() -> None:
    store = open_store(
        "postgresql://me:s3cr3t@host:5433/db?sslmode=require&table=auth.tokens&lease=30&listen=false"
    )
    for each in (store, pickle.loads(pickle.dumps(store))):
        assert repr(each) == "<PostgresStore host:5433/db auth.tokens closed>"
        assert each._dsn == "postgresql://me:s3cr3t@host:5433/db?sslmode=require"
        assert each._leases.lease == 30
        assert each._listen is False


def test_without_the_driver_the_error_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['asyncpg'] = None\n"
        "from tokensession.stores import PostgresStore\n"
        "PostgresStore.schema()\n"
        "PostgresStore.connect('postgresql://host/db')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ConfigurationError" in done.stderr
    assert "pip install 'tokensession[postgres]'" in done.stderr


def test_the_driver_is_imported_when_a_store_is_made() -> None:
    program = (
        "import sys; from tokensession.stores import PostgresStore; assert 'asyncpg' not in sys.modules\n"
        "PostgresStore.connect('postgresql://host/db'); assert 'asyncpg' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
