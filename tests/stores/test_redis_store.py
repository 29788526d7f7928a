"""RedisStore when its server, its connections or its processes fail. Real servers, real signals.

Where a test needs a time-out, the store's clock is moved by hand. The time of leases is the server's.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import platform
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import _redis_server
import pytest
from _store_helpers import run, source, success
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ResponseError

from benchmarks.servers import RedisServer, free_port
from tokensession.errors import ClaimTimeout, ConfigurationError, StoreCorrupt, StoreUnavailable, Superseded
from tokensession.stores import Record, RedisStore, Store, open_store
from tokensession.stores._redis import hashes
from tokensession.stores._redis import server as connections
from tokensession.stores._remote.operations import Grant, Held
from tokensession.testing import FakeClock, ScriptedTransport
from tokensession.testing.conformance.backend import (
    claimed,
    interruption,
    is_free,
    newer,
    outlast,
    started,
    stored,
    superseded,
    ticks,
)
from tokensession.testing.conformance.peer import peers


@pytest.fixture(scope="module", params=_redis_server.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    RedisServer.program(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind: str) -> Iterator[RedisServer]:
    """A server that tests may kill and restart, but whose configuration stays."""
    with RedisServer(kind) as started:
        yield started


@pytest.fixture
def own_server(kind: str) -> Iterator[RedisServer]:
    """A server for one test."""
    with RedisServer(kind) as started:
        yield started


def opened(server: RedisServer, clock: FakeClock | None = None, **options: object) -> RedisStore:
    store = open_store(server.url(**options), clock=clock)
    assert isinstance(store, RedisStore)
    return store


def url_of(store: RedisStore) -> str:
    """The URL with which another process opens the same records."""
    return f"{store._url}?prefix={prefix_of(store)}&lease={store._leases.lease}"


def prefix_of(store: RedisStore) -> str:
    return str(store._configuration["prefix"])


def name(store: RedisStore, key: str = "k") -> bytes:
    return store._hashes.name(key)


async def in_thread(work: Callable[[], object]) -> None:
    """Do it while the event loop goes on."""
    await asyncio.to_thread(work)


async def patiently(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def connected(server: RedisServer, kind: str) -> int:
    """The number of connections of this type."""
    return len(server.call("CLIENT", "LIST", "TYPE", kind).splitlines())


# The server restarts.


def test_a_restart_during_a_wait_serves_the_waiters_when_it_is_back(server: RedisServer) -> None:
    async def main() -> None:
        async with opened(server) as store, open_store(url_of(store)) as other:
            claim = await claimed(store, "k")
            waiters = [await started(newer(each, "k")) for each in (store, other) * 4]
            await patiently(lambda: connected(server, "pubsub") == 2)
            await in_thread(server.restart)
            record = await claim.commit(b"data")
            assert await asyncio.gather(*waiters) == [record] * 8

    run(main())


def test_a_restart_takes_no_claim_away(server: RedisServer) -> None:
    """The holder may send and commit, and until then there is no other holder."""

    async def main() -> None:
        async with opened(server) as store:
            claim = await claimed(store, "k")
            await in_thread(server.restart)
            assert not await is_free(store, "k")
            await claim.sending()
            await in_thread(server.restart)
            record = await claim.commit(b"data")
            assert await interruption(store, record.version) is None

    run(main())


def test_a_commit_to_a_server_that_is_down_is_stored_when_it_is_back(server: RedisServer) -> None:
    async def main() -> None:
        async with opened(server) as store:
            claim = await claimed(store, "k")
            await in_thread(server.kill)
            commit = await started(claim.commit(b"data"))
            await in_thread(server.start)
            assert await commit == await store.load("k")

    run(main())


# The server hangs, or cannot be reached.


def test_a_frozen_server_is_an_error_and_not_a_hang(server: RedisServer) -> None:
    """For every call, by time-outs of the store's clock. Afterwards, everything works again."""

    async def main() -> None:
        clock = FakeClock()
        async with opened(server, clock) as store:
            record = await store.put("k", b"data")
            claim = await claimed(store, "k", record.version)
            with server.frozen():
                for call in (
                    store.load("k"),
                    store.claim("j", seen=None, timeout=3600),
                    store.keys(),
                    store.put("k", b"other"),
                    store.delete("j"),
                    claim.sending(),
                    claim.commit(b"new"),
                    claim.abandon(),
                ):
                    before = clock.boot()
                    with pytest.raises(StoreUnavailable, match="did not answer in time"):
                        await outlast(clock, call)
                    assert clock.boot() - before < 9
                await outlast(clock, store.aclose())
            assert (await store.put("k", b"thawed")).data == b"thawed"

    run(main())


def test_a_write_that_is_repeated_because_its_answer_got_lost_is_done_once(server: RedisServer) -> None:
    """The server does the first try when it thaws, and then finds that the second one is done."""

    async def main() -> None:
        clock = FakeClock()

        async def repeated(write: Awaitable[Record]) -> Record:
            with server.frozen():
                task = await started(write)
                await asyncio.sleep(0.05)  # it is on its way to the server
                clock.advance(2.5)  # it has timed out
                await ticks()
                clock.advance(0.1)  # it is tried again
                await ticks()
                assert not task.done()
            return await task

        async with opened(server, clock) as store:
            claim = await claimed(store, "k")
            record = await repeated(claim.commit(b"committed"))
            assert record == await store.load("k")
            assert await is_free(store, "k", record.version)
            record = await repeated(store.put("k", b"put", expect=record.version))
            assert record == await store.load("k")

    run(main())


def test_every_step_of_a_claim_may_be_repeated(server: RedisServer) -> None:
    """The answer may have been lost. Then the same is answered again, and nothing else has changed."""

    async def main() -> None:
        async with opened(server, lease=2) as store:
            with peers(1, url_of(store)) as [lost]:
                lost.ask("claim", key="k", seen=None)
                lost.ask("sending", listening=60)
                lost.kill()
                await (await claimed(store, "k")).abandon()
            hashes = store._hashes
            grants = [await hashes.try_claim("k", None, "me 1 here") for _ in range(2)]
            assert all(isinstance(grant, Grant) and grant.interrupted is not None for grant in grants)
            for _ in range(2):
                assert await hashes.sending("k", "me 1 here", 1)
                assert await hashes.renew("k", "me 1 here", 60)
            assert isinstance(await hashes.try_claim("k", None, "other 2 here"), Held)
            first = await hashes.commit("k", "me 1 here", None, "a-version", b"data")
            assert await hashes.commit("k", "me 1 here", None, "a-version", b"data") == first
            assert isinstance(await hashes.try_claim("k", "a-version", "other 2 here"), Grant)
            assert await hashes.commit("k", "me 1 here", None, "a-version", b"data") == first
            await hashes.abandon("k", "me 1 here")
            assert not await is_free(store, "k", "a-version")
            await hashes.abandon("k", "other 2 here")
            await hashes.abandon("k", "other 2 here")
            assert await is_free(store, "k", "a-version")

    run(main())


def test_an_unreachable_server_fails_the_claim(tmp_path: Path) -> None:
    async def main() -> None:
        clock = FakeClock()
        store = open_store(f"redis://user:s3cret@127.0.0.1:{free_port()}", clock=clock)
        async with store:  # type: ignore[attr-defined]
            with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
                await outlast(clock, store.claim("k", seen=None, timeout=3600))
            assert "s3cret" not in str(caught.value) + repr(store)

    run(main())


# Wake-ups.


def test_a_message_wakes_a_waiter_in_another_process(server: RedisServer) -> None:
    """Its clock stands still, so it does not look by itself."""

    async def main() -> None:
        async with opened(server, FakeClock()) as store:
            with peers(1, url_of(store)) as [holder]:
                holder.ask("claim", key="k", seen=None)
                waiter = await started(newer(store, "k"))
                await patiently(lambda: connected(server, "pubsub") == 1)
                await store.load("k")  # the confirmation of the subscription has arrived
                committed = holder.ask("commit", data="data")
                assert (await waiter).version == committed["version"]
                holder.ask("claim", key="k", seen=committed["version"])
                waiter = await started(claimed(store, "k", committed["version"]))
                await asyncio.sleep(0.05)
                holder.ask("abandon")
                await (await waiter).abandon()

    run(main())


def test_a_waiter_that_gets_no_message_looks_by_itself(own_server: RedisServer) -> None:
    """The server's user may not use any channel, so there is no message at all."""
    own_server.call("ACL", "SETUSER", "default", "resetchannels")

    async def main() -> None:
        async with opened(own_server) as store:
            with peers(1, url_of(store)) as [holder]:
                holder.ask("claim", key="k", seen=None)
                waiter = await started(newer(store, "k", timeout=3600))
                await asyncio.sleep(0.05)
                committed = holder.ask("commit", data="data")
                assert (await waiter).version == committed["version"]

    run(main())


def test_a_silent_subscription_is_tried_and_kept(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_SILENCE", 0.01)

    def subscription() -> bytes:
        """Its id."""
        found = re.search(rb"\bid=(\d+) ", server.call("CLIENT", "LIST", "TYPE", "pubsub"))
        return found[1] if found else b""

    def tries() -> int:
        return int(server.call("INFO", "commandstats").get("cmdstat_ping", {"calls": 0})["calls"])

    async def main() -> None:
        async with opened(server) as store:
            claim = await claimed(store, "k")
            waiter = await started(newer(store, "k"))
            await patiently(subscription)
            first, before = subscription(), tries()
            await patiently(lambda: tries() >= before + 10)
            assert subscription() == first
            await claim.commit(b"data")
            await waiter

    run(main())


def test_cut_connections_are_replaced(server: RedisServer) -> None:
    """Those of waiters and holders alike."""

    async def main() -> None:
        async with opened(server) as store:
            with peers(1, url_of(store)) as [holder]:
                holder.ask("claim", key="k", seen=None)
                waiter = await started(newer(store, "k"))
                await patiently(lambda: connected(server, "pubsub") == 1)
                server.call("CLIENT", "KILL", "TYPE", "pubsub")
                server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await patiently(lambda: connected(server, "pubsub") == 1)
                assert await store.load("k") is None
                holder.ask("sending")
                committed = holder.ask("commit", data="data")
                assert (await waiter).version == committed["version"]

    run(main())


def test_scripts_that_the_server_has_forgotten_are_sent_again(server: RedisServer) -> None:
    async def main() -> None:
        async with opened(server) as store:

            def forget() -> None:
                server.call("SCRIPT", "FLUSH")

            forget()
            record = await store.put("k", b"data")
            forget()
            claim = await claimed(store, "k", record.version)
            forget()
            await claim.sending()
            forget()
            assert await claim.commit(b"new") == await store.load("k")
            forget()
            await (await claimed(store, "j")).abandon()
            forget()
            assert await store.delete("k")

    run(main())


# Leases.


def test_a_held_claim_is_renewed(server: RedisServer) -> None:
    async def main() -> None:
        clock = FakeClock()
        async with opened(server, clock, lease=60) as store:

            def ends() -> int:
                return int(server.call("HGET", name(store), "e"))

            claim = await claimed(store, "k")
            for _ in range(3):
                await patiently(lambda: 20 in clock.sleepers)  # the client has the answer to the last renewal
                before = ends()
                clock.advance(20)
                await patiently(lambda before=before: ends() > before)
            await claim.abandon()

    run(main())


def test_a_claim_that_no_one_has_any_more_is_not_renewed(server: RedisServer) -> None:
    async def main() -> None:
        async with opened(server, lease=1) as store:
            await claimed(store, "k")
            await (await claimed(store, "k")).abandon()

    run(main())


def test_a_store_that_closes_when_a_renewal_is_due_renews_no_more(server: RedisServer) -> None:
    """Otherwise it would open again, and the claim would last as long as the program."""

    async def main() -> None:
        clock = FakeClock()
        store = opened(server, clock, lease=60)
        claim = await claimed(store, "k")
        clock.advance(20)  # its timer runs out in the next turn of the loop
        await store.aclose()
        assert (store._hashes.open, clock.sleepers) == (False, ())
        async with opened(server) as other:
            await (await claimed(other, "k")).abandon()
        await claim.abandon()
        await store.aclose()

    run(main())


class InterruptedClock(FakeClock):
    """A clock that is read when a signal arrives whose handler ends the program."""

    interrupts = False

    def boot(self) -> float:
        if self.interrupts:
            self.interrupts = False
            raise SystemExit
        return super().boot()


def test_a_store_closes_after_a_signal_that_came_as_an_operation_began(server: RedisServer) -> None:
    clock = InterruptedClock()
    store = opened(server, clock)

    async def main() -> None:
        await store.load("k")
        clock.interrupts = True
        await store.put("k", b"data")

    with asyncio.Runner() as runner:
        with pytest.raises(SystemExit):
            runner.run(main())
        runner.run(asyncio.wait_for(store.aclose(), 30))
    assert not store._hashes.open


def test_a_claim_whose_commit_failed_and_that_no_one_has_is_gone_at_once(server: RedisServer) -> None:
    """Not when the garbage collector runs: until then it would be renewed."""

    async def main() -> None:
        async with opened(server, lease=60) as store:
            for leaves in (False, True):
                key = f"a caller that leaves: {leaves}"
                claim = await claimed(store, key)
                await store.put(key, b"newer")
                commit = asyncio.create_task(claim.commit(b"data"))
                if leaves:
                    await ticks(2)
                    commit.cancel()
                with pytest.raises(asyncio.CancelledError if leaves else Superseded):
                    await commit
                await store._leases.settle()
                del claim, commit
                await asyncio.sleep(0)
                assert list(store._leases.renewed) == []

    gc.collect()
    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_a_connection_is_checked_first_if_the_url_asks_for_it(server: RedisServer) -> None:
    """With `health_check_interval`, the driver sends a PING over one that has been idle for so long."""

    def pings() -> int:
        return int(server.call("INFO", "commandstats").get("cmdstat_ping", {"calls": 0})["calls"])

    async def main() -> None:
        async with opened(server, health_check_interval=3600) as store:
            await store.put("k", b"data")
            assert store._hashes._server is not None
            [connection] = store._hashes._server.client.connection_pool._available_connections
            connection.next_health_check = 0  # as if it had been idle
            before = pings()
            assert (await stored(store, "k")).data == b"data"
            assert pings() == before + 1

    run(main())


def test_a_url_with_another_encoding_reads_the_same_records(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gets the same messages, also if writes wait for a replica, and whatever the host is called."""
    monkeypatch.setattr(platform, "node", lambda: "bücher")

    async def main(primary: RedisServer) -> None:
        url = primary.url(prefix="clé:", durability="replica")
        clock = FakeClock()  # no look of a waiter is due
        async with open_store(url) as store, open_store(f"{url}&encoding=latin-1", clock=clock) as other:
            claim = await claimed(store, "é")
            waiting = asyncio.ensure_future(newer(other, "é"))
            await patiently(lambda: connected(primary, "PUBSUB"))
            await claim.sending()
            record = await claim.commit(b"data")
            assert await waiting == record
            claim = await claimed(other, "é", record.version)
            await claim.sending()
            await claim.commit(b"more")

    with _redis_server.pair(kind) as (primary, _):
        run(main(primary))


def test_a_holder_whose_event_loop_was_blocked_past_its_lease_sends_nothing(server: RedisServer) -> None:
    """Another holder may be sending. Its commit counts if it comes first."""

    async def main() -> None:
        async with opened(server, lease=1) as store:
            with peers(1, url_of(store)) as [other]:
                claim = await claimed(store, "k")
                await claim.sending(listening=60)
                granted = other.ask("claim", key="k", seen=None)  # blocks the loop until the lease has ended
                assert granted["interrupted"] is not None
                assert granted["listening"] > 0
                with pytest.raises(StoreUnavailable, match="lease ran out"):
                    await claim.sending()
                record = await claim.commit(b"late")
                assert other.ask("commit", data="too late")["record"]["version"] == record.version

    run(main())


def test_a_process_stopped_past_its_lease_overwrites_nothing(server: RedisServer) -> None:
    async def main() -> None:
        async with opened(server, lease=1) as store:
            with peers(1, url_of(store)) as [holder]:
                holder.ask("claim", key="k", seen=None)
                holder.ask("sending", listening=60)
                holder.stop()
                claim = await claimed(store, "k")
                assert claim.interrupted is not None
                assert 0 < claim.listening < 60
                record = await claim.commit(b"data")
                holder.resume()
                answer = holder.ask("commit", data="late")
                assert answer["record"] == {"version": record.version, "data": "data"}
                assert "error" in holder.ask("sending")
                holder.ask("abandon")
                assert await store.load("k") == record

    run(main())


def test_no_one_waits_longer_than_a_lease_although_the_servers_clock_goes_back(server: RedisServer) -> None:
    """Neither for the claim of a holder that is gone, nor for the response to its request."""

    async def main() -> None:
        async with opened(server, lease=1) as store, open_store(url_of(store)) as other:
            claim = await claimed(store, "k")
            await claim.sending(listening=30)
            claim._stop_renewing()  # type: ignore[attr-defined]
            for field in "ebs":
                server.call("HINCRBY", name(store), field, 3_600_000_000)
            with pytest.raises(ClaimTimeout):
                await other.claim("k", seen=None, timeout=0)
            seconds, microseconds = server.call("TIME")
            ends = int(server.call("HGET", name(store), "e"))
            assert ends <= int(seconds) * 1_000_000 + int(microseconds) + 1_000_000
            claim = await claimed(other, "k")
            assert claim.interrupted == 0
            assert claim.listening == pytest.approx(30)
            await claim.abandon()

    run(main())


def test_a_claim_that_met_a_frozen_server_does_not_block_the_key(server: RedisServer) -> None:
    """The server grants it when it thaws. Whoever asked for it has gone, and gives it up."""

    async def main() -> None:
        async with opened(server, lease=600) as store, open_store(url_of(store)) as other:
            for warm in (store, other):
                await (await claimed(warm, "warm")).abandon()
            with server.frozen():
                with pytest.raises(StoreUnavailable):
                    await store.claim("k", seen=None, timeout=0)
            await (await claimed(other, "k")).abandon()

    run(main())


def test_a_cancelled_claim_that_met_a_frozen_server_does_not_block_the_key(server: RedisServer) -> None:
    """No one waits for it when its last try fails, and the server grants it when it thaws."""

    async def main() -> None:
        clock = FakeClock()
        async with opened(server, clock, lease=600) as store, open_store(url_of(store)) as other:
            for warm in (store, other):
                await (await claimed(warm, "warm")).abandon()
            with server.frozen():
                claim = await started(store.claim("k", seen=None, timeout=0))
                claim.cancel()
                await asyncio.wait([claim])
                await patiently(lambda: clock.advance(0.1) or not store._leases._tasks)
            waiter = asyncio.ensure_future(claimed(other, "k"))
            await patiently(lambda: clock.advance(0.01) or waiter.done())
            await (await waiter).abandon()

    run(main())


def test_the_keys_are_found_among_a_crowd_of_other_keys(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round trip has a bound, and not all of them together."""
    monkeypatch.setattr(hashes, "_BATCH", 10)
    clock = FakeClock()

    async def main() -> None:
        async with opened(server, clock) as store:
            await store.put("k", b"data")
            others = [f"{prefix_of(store)}other-{number}" for number in range(300)]
            server.call("MSET", *(word for name in others for word in (name, "")))
            client = store._hashes._connected().client
            send = client.execute_command

            async def send_slowly(*command: Any, **options: Any) -> Any:
                answer = await send(*command, **options)
                clock.advance(1)
                await ticks()
                return answer

            monkeypatch.setattr(client, "execute_command", send_slowly)
            assert await store.keys() == ["k"]

    run(main())


def test_two_threads_do_not_share_the_connections_of_one_store(server: RedisServer) -> None:
    """The second one gets an error, and the first one is not disturbed."""

    async def refused(store: RedisStore) -> None:
        with pytest.raises(StoreUnavailable, match="Another thread"):
            await store.load("k")

    async def main() -> None:
        async with opened(server) as store:
            claim = await claimed(store, "k")
            await asyncio.to_thread(asyncio.run, refused(store))
            assert await claim.commit(b"data") == await store.load("k")

    run(main())


def test_a_commit_finishes_although_its_event_loop_ends(server: RedisServer) -> None:
    """`asyncio.run` cancels all tasks at its end, also after Ctrl-C. It is waited for."""
    store = opened(server)

    async def begin() -> None:
        claim = await claimed(store, "k")
        with server.frozen():
            commit = asyncio.ensure_future(claim.commit(b"rotated"))
            await asyncio.sleep(0.05)
            assert not commit.done()

    async def look() -> None:
        assert (await stored(store, "k")).data == b"rotated"
        await store.aclose()

    run(begin())
    run(look())


# A server that loses data.


def test_a_failover_that_lost_a_commit_is_repaired_by_the_process_that_knows_it(kind: str) -> None:
    """Its token is of a higher order than the one that the new primary has."""

    async def main(primary: RedisServer, replica: RedisServer) -> None:
        transport = ScriptedTransport(success(1), success(2))
        async with opened(primary) as store, source(store, transport) as knowing:
            await knowing.token()
            before = await stored(store, "k")
            _redis_server.until(lambda: replica.call("EXISTS", name(store)))
            replica.call("REPLICAOF", "NO", "ONE")  # it loses the connection, before
            token = await knowing.refresh()
            assert (await stored(store, "k")).version != before.version
            _redis_server.fail_over(primary, replica)
            assert await store.load("k") == before
            restored = await knowing.refresh(force=False)
            assert restored.access_token == token.access_token
            async with source(store, ScriptedTransport()) as fresh:
                assert (await fresh.token()).access_token == token.access_token

    with _redis_server.pair(kind) as (primary, replica):
        run(main(primary, replica))


def test_a_primary_that_became_a_replica_is_left_for_its_successor(kind: str) -> None:
    """It closes no connection, and refuses every write. Its address leads to the new primary."""

    async def main(primary: RedisServer, replica: RedisServer) -> None:
        async with opened(primary) as store:
            claim = await claimed(store, "k")
            await claim.sending()
            _redis_server.until(lambda: replica.call("HEXISTS", name(store), "s"))
            _redis_server.switch_over(primary, replica)
            with pytest.raises(StoreUnavailable, match="is a replica"):
                await claim.commit(b"rotated")
            record = await claim.commit(b"rotated")
            assert await store.load("k") == record
            assert await is_free(store, "k", record.version)

    with _redis_server.pair(kind) as (primary, replica):
        run(main(primary, replica))


def test_with_durability_replica_a_write_that_no_replica_has_is_an_error(kind: str) -> None:
    """`sending` fails too, before a refresh token is spent. Once a replica is back, a commit succeeds."""

    async def main(primary: RedisServer, replica: RedisServer) -> None:
        async with opened(primary, durability="replica") as store:
            record = await store.put("k", b"data")
            claim = await claimed(store, "k", record.version)
            await claim.sending()
            with replica.frozen():
                for write in (claim.sending(), claim.commit(b"new")):
                    with pytest.raises(StoreUnavailable, match="no replica has confirmed") as caught:
                        await write
                    assert "failover" in str(caught.value)
            record = await claim.commit(b"new")
            _redis_server.fail_over(primary, replica)
            assert await store.load("k") == record

    with _redis_server.pair(kind) as (primary, replica):
        run(main(primary, replica))


def test_durability_fsync_waits_for_the_disk_or_says_that_the_server_is_too_old(
    own_server: RedisServer,
) -> None:
    async def main() -> None:
        own_server.call("CONFIG", "SET", "appendfsync", "always")
        async with opened(own_server, durability="fsync") as store:
            version = own_server.call("INFO", "server")["redis_version"]
            if tuple(map(int, version.split(".")[:2])) < (7, 2):
                with pytest.raises(StoreUnavailable, match=r"7\.2 is needed"):
                    await store.claim("k", seen=None, timeout=0)
                return
            claim = await claimed(store, "k")
            await claim.sending()
            assert await claim.commit(b"data") == await store.load("k")

    run(main())


def test_an_evicted_record_is_as_good_as_a_deleted_one(own_server: RedisServer) -> None:
    """The claim is gone with it. A commit does not bring it back, and tells so."""

    async def main() -> None:
        async with opened(own_server) as store:
            record = await store.put("k", b"data")
            claim = await claimed(store, "k", record.version)
            own_server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
            own_server.call("CONFIG", "SET", "maxmemory", "3mb")
            number = 0
            while own_server.call("EXISTS", name(store)):
                own_server.call("SET", f"filler-{number}", b"x" * 50_000)
                number += 1
            assert await superseded(claim.commit(b"new")) is None
            with pytest.raises(StoreUnavailable, match="ended"):
                await claim.sending()
            assert await store.load("k") is None

    run(main())


def test_a_server_that_may_evict_tokens_is_warned_about(
    own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(*settings: str) -> list[str]:
        own_server.call("CONFIG", "SET", "maxmemory-policy", settings[0])
        own_server.call("CONFIG", "SET", "maxmemory", settings[1])
        caplog.clear()
        async with opened(own_server) as store:
            await store.load("k")
            await store.load("k")
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    [warning] = run(main("allkeys-lru", "100mb"))
    assert "allkeys-lru" in warning
    assert run(main("volatile-lru", "100mb")) == []  # no token has a time to live
    assert run(main("allkeys-lru", "0")) == []


# A server that takes no data.


def test_a_full_server_fails_the_claim_and_no_commit(own_server: RedisServer) -> None:
    """A token that was fetched is stored, whatever the limit."""

    async def main() -> None:
        async with opened(own_server) as store:
            record = await store.put("k", b"data")
            claim = await claimed(store, "k", record.version)
            await claim.sending()
            own_server.call("CONFIG", "SET", "maxmemory", "1mb")
            for call in (store.claim("j", seen=None, timeout=0), claim.sending()):
                with pytest.raises(StoreUnavailable, match="is full"):
                    await call
            assert await store.load("k") == record
            committed = await claim.commit(b"new")
            assert await store.load("k") == committed
            with pytest.raises(StoreUnavailable, match="is full"):
                await store.claim("k", seen=committed.version, timeout=0)
            own_server.call("CONFIG", "SET", "maxmemory", "0")
            assert await interruption(store, committed.version) is None

    run(main())


def test_a_replica_fails_the_claim_and_can_be_read(kind: str) -> None:
    async def main(primary: RedisServer, replica: RedisServer) -> None:
        async with opened(primary) as store:
            record = await store.put("k", b"data")
            _redis_server.until(lambda: replica.call("EXISTS", name(store)))
            async with RedisStore.connect(f"redis://{replica.address}", prefix=prefix_of(store)) as other:
                assert await other.load("k") == record
                with pytest.raises(StoreUnavailable, match="replica"):
                    await other.claim("k", seen=record.version, timeout=0)

    with _redis_server.pair(kind) as (primary, replica):
        run(main(primary, replica))


def test_a_database_that_is_not_there_fails_the_claim(server: RedisServer) -> None:
    async def main() -> None:
        async with RedisStore.connect(f"redis://{server.address}/99") as store:
            with pytest.raises(StoreUnavailable, match=r"no database of this number\. .* Correct the number"):
                await store.claim("k", seen=None, timeout=0)

    run(main())


@pytest.mark.parametrize(
    ("user", "problem"),
    [
        ("", "wants a password"),
        ("unknown:s3cret@", "rejected the user name or password"),
        ("default:s3cret@", "rejected the user name or password"),
    ],
)
def test_a_wrong_password_fails_the_claim_and_is_not_shown(
    own_server: RedisServer, user: str, problem: str
) -> None:
    own_server.call("CONFIG", "SET", "requirepass", "the right one")

    async def main() -> None:
        async with RedisStore.connect(f"redis://{user}{own_server.address}") as store:
            with pytest.raises(StoreUnavailable, match=problem) as caught:
                await store.claim("k", seen=None, timeout=0)
            assert "s3cret" not in f"{caught.value} {caught.value.__cause__} {store!r}"

    run(main())


def test_a_user_with_the_documented_rights_can_use_the_store(own_server: RedisServer) -> None:
    """And one without a right that it needs is told so, whether the store or a script misses it."""
    page = (Path(__file__).parents[2] / "docs/reference/stores.md").read_text()
    [rights] = re.findall(r"(?m)^user app .*$", page)
    own_server.call("ACL", "SETUSER", *rights.replace("a-long-password", "pw").split()[1:])
    own_server.call("ACL", "SETUSER", "no", "on", ">pw", "~tokensession:*", "+hget")
    own_server.call("ACL", "SETUSER", "reader", "on", ">pw", "~tokensession:*", "+@all", "-hset")
    own_server.call("ACL", "SETUSER", "other", "on", ">pw", "~other:*", "+@all")

    async def main() -> None:
        async with RedisStore.connect(f"redis://app:pw@{own_server.address}") as store:
            claim = await claimed(store, "k")
            waiter = await started(newer(store, "k"))
            await patiently(lambda: connected(own_server, "pubsub") == 1)
            assert await claim.commit(b"data") == await waiter
            assert await store.keys() == ["k"]
        for user in ("no", "reader", "other"):
            async with RedisStore.connect(f"redis://{user}:pw@{own_server.address}") as store:
                with pytest.raises(StoreUnavailable, match=r"does not permit .* Extend the user's rights"):
                    await store.claim("new", seen=None, timeout=0)

    run(main())


def test_a_server_that_is_too_old_fails_the_claim(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_OLDEST", (99, 0))

    async def main() -> None:
        async with opened(server) as store:
            with pytest.raises(StoreUnavailable, match=r"runs version .*99\.0 is needed"):
                await store.claim("k", seen=None, timeout=0)

    run(main())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-READONLY You can't write against a read only replica.", "is a replica"),
        ("-OOM command not allowed when used memory > 'maxmemory'.", "is full"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "another program's data"),
        ("The user executing the script can't run this command or subcommand", "does not permit"),
    ],
)
def test_what_version_6_says_of_a_script_means_the_same(
    server: RedisServer, text: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place comes first. The connections to a former primary are left then, too."""

    async def refuse(*_: object) -> None:
        raise ResponseError(
            f"Error running script (call to f_0d85): @user_script:25: @user_script: 25: {text}"
        )

    async def main() -> None:
        async with opened(server) as store:
            await store.put("k", b"data")
            monkeypatch.setattr(connections.Server, "_run", refuse)
            with pytest.raises(StoreUnavailable, match=says):
                await store.load("k")
            await patiently(lambda: connected(server, "normal") == (1 if says == "is a replica" else 2))

    run(main())


def test_another_programs_data_is_left_alone(server: RedisServer) -> None:
    async def main() -> None:
        async with opened(server) as store:
            server.call("SET", name(store), "theirs")
            for call in (store.load("k"), store.claim("k", seen=None, timeout=0), store.put("k", b"data")):
                with pytest.raises(StoreUnavailable, match="another program's"):
                    await call
            assert await store.keys() == []
            assert server.call("GET", name(store)) == b"theirs"

    run(main())


def test_a_record_without_a_part_is_corrupt(server: RedisServer) -> None:
    async def main() -> None:
        async with opened(server) as store:
            for field, value in (("d", None), ("w", "yesterday"), ("c", None), ("v", b"\xff")):
                await store.put("k", b"data")
                if value is None:
                    server.call("HDEL", name(store), field)
                else:
                    server.call("HSET", name(store), field, value)
                with pytest.raises(StoreCorrupt):
                    await store.load("k")

    run(main())


# Clients, processes and configuration.


def test_a_borrowed_client_is_used_and_not_closed(server: RedisServer) -> None:
    """Whether or not it decodes responses."""

    async def main(**options: Any) -> None:
        async with Redis(port=server.port, **options) as client:
            store = RedisStore(client, prefix=prefix_of(opened(server)))
            data = bytes(range(256))
            async with store:
                claim = await claimed(store, "k")
                waiter = await started(newer(store, "k"))
                await patiently(lambda: connected(server, "pubsub") == 1)
                record = await claim.commit(data)
                assert await waiter == record == await store.load("k")
                assert await store.keys() == ["k"]
                with pytest.raises(TypeError, match="borrowed"):
                    pickle.dumps(store)
            assert await client.ping()

    run(main())
    run(main(decode_responses=True, protocol=2))


def test_a_borrowed_client_belongs_to_its_event_loop(server: RedisServer) -> None:
    async def use(store: Store) -> None:
        await store.load("k")

    async def main() -> None:
        async with Redis(port=server.port) as client:
            store = RedisStore(client)
            await use(store)
            thread: list[BaseException] = []

            def elsewhere() -> None:
                try:
                    asyncio.run(use(store))
                except StoreUnavailable as error:
                    thread.append(error)

            await in_thread(elsewhere)
            assert "event loop" in str(thread[0])
            await store.aclose()

    run(main())


def test_a_borrowed_client_is_not_used_in_a_forked_child(server: RedisServer) -> None:
    url = server.url()
    with peers(1, url, opener="_redis_server:borrowing") as [parent]:
        parent.ask("put", key="k", data="the parent's")
        assert parent.ask("fork_and_put", key="k", data="the child's") != 0
        assert parent.ask("load", key="k")["data"] == "the parent's"


def test_it_works_in_a_cluster(kind: str) -> None:
    """One of a single node. Names are hash-tagged."""

    async def main(node: RedisServer) -> None:
        async with RedisCluster(host="127.0.0.1", port=node.port) as client:
            async with RedisStore(client) as store:
                claim = await claimed(store, "k")
                waiter = await started(newer(store, "k"))
                await claim.sending()
                assert await claim.commit(b"data") == await waiter
                assert await store.keys() == ["k"]
                assert await store.delete("k")
            with pytest.raises(ConfigurationError, match="cluster"):
                RedisStore(client, durability="replica")

    port = str(free_port())  # the default is not free, or too high
    with RedisServer(kind, "--cluster-enabled", "yes", "--cluster-port", port) as node:
        node.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        _redis_server.until(lambda: b"cluster_state:ok" in node.call("CLUSTER", "INFO"))
        run(main(node))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "redis://user:s3cret@localhost:7000/3",
            "<RedisStore redis://localhost:7000/3 tokensession: closed>",
        ),
        ("rediss://h?ssl_cert_reqs=none", "<RedisStore rediss://h:6379 tokensession: closed>"),
        ("valkey://h?prefix=app:&lease=5&durability=replica", "<RedisStore valkey://h:6379 app: closed>"),
        ("valkeys://h", "<RedisStore valkeys://h:6379 tokensession: closed>"),
    ],
)
def test_a_url_names_a_server_and_opening_it_does_no_io(url: str, shown: str) -> None:
    store = open_store(url)
    assert isinstance(store, RedisStore)
    assert repr(store) == shown
    copied = pickle.loads(pickle.dumps(store))
    assert repr(copied) == shown
    assert copied._configuration["durability"] == store._configuration["durability"]


@pytest.mark.parametrize(
    "url",
    [
        "redis:",
        "redis:host",
        "redis://u:s3cret@h:port",
        "redis://h?s3cret=1",
        "redis://h?lease=s3cret",
        "redis://h?lease=0",
        "redis://h?lease=nan",
        "redis://h?durability=s3cret1",
        "redis://h?prefix=",
        "redis://h?prefix={s3cret",
        "redis://u:s3cret@[h",
        "redis://h?protocol=9",
        "rediss://h?ssl_cert_reqs=CERT_s3cret",
    ],
)
def test_an_invalid_url_is_an_error_that_never_repeats_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_without_the_driver_an_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tokensession\[redis\]'"):
        open_store("redis://localhost")
