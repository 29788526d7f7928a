"""What a store promises whose records several processes share. A part of `StoreConformance`.

Real processes, really killed and stopped: see `tokensession.testing.conformance.peer`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from ...clock import SystemClock
from ...stores.protocol import Store
from ..clock import FakeClock
from .backend import Backend, claimed, is_free, needs, newer, ticks
from .peer import is_whole

__all__ = ["ProcessPromises"]


class ProcessPromises:
    """Exclusion, crashes, pauses and forks."""

    def test_a_reader_never_sees_half_a_record_though_writers_are_killed(self, backend: Backend) -> None:
        """Old or new, never half; never older than what a writer was told is stored."""
        with backend.peers(8) as writers:

            async def promise(store: Store) -> None:
                start = 0
                for count, writer in enumerate(writers):
                    writer.send("churn", key="k", start=start)
                    for _ in range(3 * count + 1):
                        stored = writer.read()["stored"]
                    writer.kill()  # wherever it is in its next write
                    record = await store.load("k")
                    assert record is not None
                    number = is_whole(record.data)
                    assert number >= stored, "what was said to be stored is lost"
                    start = number + 1

            backend.run(promise)

    def test_a_reader_never_sees_a_torn_record(self, backend: Backend) -> None:
        """Reading on until thirty different ones have been seen; and they never go back."""
        with backend.peers() as [writer]:

            async def promise(store: Store) -> None:
                writer.send("churn", key="k", start=0)
                writer.read()
                numbers: list[int] = []
                while len(set(numbers)) < 30:
                    record = await store.load("k")
                    assert record is not None
                    numbers.append(is_whole(record.data))
                assert numbers == sorted(numbers)

            backend.run(promise)

    def test_what_is_stored_outlives_its_writer(self, backend: Backend) -> None:
        """It is there when `put` and `commit` return, though the process is killed right then."""
        with backend.peers(2) as [first, second]:

            async def promise(store: Store) -> None:
                put = first.ask("put", key="k", data="put")
                first.kill()
                record = await store.load("k")
                assert record is not None
                assert (record.version, record.data) == (put["version"], b"put")
                second.ask("claim", key="k", seen=record.version)
                committed = second.ask("commit", data="committed")
                second.kill()
                record = await store.load("k")
                assert record is not None
                assert (record.version, record.data) == (committed["version"], b"committed")
                claim = await claimed(store, "k", record.version)
                assert claim.interrupted is None, "it had committed"
                await claim.abandon()

            backend.run(promise)

    def test_one_process_at_a_time_holds_the_claim(self, backend: Backend, tmp_path: Path) -> None:
        """Of eight that contend for it, two hundred times."""
        with backend.peers(8) as contenders:
            for contender in contenders:
                contender.send("contend", key="k", times=25, arena=str(tmp_path / "arena"))
            for contender in contenders:
                assert contender.read() == {"granted": 25, "overlaps": 0}

    def test_all_processes_that_wait_are_served_by_one_commit(self, backend: Backend) -> None:
        """Each gets the record, and none a claim."""
        with backend.peers(6) as waiters:

            async def promise(store: Store) -> None:
                claim = await claimed(store, "k")
                for waiter in waiters:
                    waiter.ask("begin_claim", key="k", seen=None)
                record = await claim.commit(b"data")
                for waiter in waiters:
                    assert waiter.ask("granted") == {"version": record.version, "data": "data"}
                assert await is_free(store, "k", record.version)

            backend.run(promise)

    def test_a_hundred_keys_of_others_can_be_waited_for_at_once(self, backend: Backend) -> None:
        """Each of them twice, in one process; and still another key is there for the taking."""
        with backend.peers(2) as holders:
            keys = [[f"{number}-{n}" for n in range(50)] for number in range(2)]
            for holder, some in zip(holders, keys, strict=True):
                assert holder.ask("claim_all", keys=some) == 50

            async def promise(store: Store) -> None:
                wanted = [*keys[0], *keys[1]] * 2
                waiters = [asyncio.ensure_future(newer(store, key)) for key in wanted]
                await ticks()
                assert await is_free(store, "another")
                assert not any(waiter.done() for waiter in waiters)
                versions = holders[0].ask("commit_all") | holders[1].ask("commit_all")
                served = [record.version for record in await asyncio.gather(*waiters)]
                assert served == [versions[key] for key in wanted]

            backend.run(promise)

    def test_a_commit_is_noticed_though_its_process_is_killed_right_then(self, backend: Backend) -> None:
        """Nobody waits for a word that a dead process cannot send."""
        with backend.peers(2) as [holder, waiter]:
            holder.ask("claim", key="k", seen=None)
            waiter.ask("begin_claim", key="k", seen=None)
            committed = holder.ask("commit", data="data")
            holder.kill()
            assert waiter.ask("granted")["version"] == committed["version"]

    def test_a_killed_holder_gives_way_and_the_next_one_is_told(self, backend: Backend) -> None:
        """To one who waits already. Its request may still be on the wire, so that must be known."""
        with backend.peers(2) as [holder, waiter]:
            assert holder.ask("claim", key="k", seen=None) == {"current": None, "interrupted": None}
            waiter.ask("begin_claim", key="k", seen=None)
            holder.kill()
            told = waiter.ask("granted")
            assert told["current"] is None
            assert told["interrupted"] is not None
            assert 0 <= told["interrupted"] < backend.patience
            waiter.ask("abandon")

            async def promise(store: Store) -> None:
                claim = await claimed(store, "k")
                assert claim.interrupted is not None, "the one who was told abandoned, and changed nothing"
                record = await claim.commit(b"data")
                claim = await claimed(store, "k", record.version)
                assert claim.interrupted is None
                await claim.abandon()

            backend.run(promise)

    def test_a_killed_waiter_held_nothing(self, backend: Backend) -> None:
        """Its end is no interruption, and it takes nothing with it."""
        with backend.peers() as [waiter]:

            async def promise(store: Store) -> None:
                claim = await claimed(store, "k")
                waiter.ask("begin_claim", key="k", seen=None)
                waiter.kill()
                await claim.abandon()
                claim = await claimed(store, "k")
                assert claim.interrupted is None
                await claim.abandon()

            backend.run(promise)

    def test_a_clock_that_was_reset_makes_an_interruption_old(self, backend: Backend) -> None:
        """A holder that began "in the future" began before a reboot; no age is ever negative."""
        needs(backend.takes_clock or None, "told the time by its opener")
        with backend.peers(2) as [first, second]:

            async def rebooted(store: Store) -> None:
                claim = await claimed(store, "k")
                assert claim.interrupted is not None
                assert claim.interrupted >= 3600
                await claim.commit(b"data")

            async def later(store: Store) -> None:
                record = await newer(store, "k")
                claim = await claimed(store, "k", record.version)
                assert claim.interrupted is not None
                assert 1000 <= claim.interrupted < 1000 + 2 * backend.patience
                await claim.abandon()

            first.ask("claim", key="k", seen=None)
            first.kill()
            backend.run(rebooted, store=backend.open(clock=FakeClock(wall=0.0, boot=1.0)))
            second.ask("claim", key="k", seen=second.ask("load", key="k")["version"])
            second.kill()
            # The wall clock, an hour behind by now, does not count.
            clock = FakeClock(wall=SystemClock.wall() - 3600, boot=SystemClock.boot() + 1000)
            backend.run(later, store=backend.open(clock=clock))

    def test_a_paused_holder_overwrites_nothing_newer(self, backend: Backend) -> None:
        """SIGSTOP, a sign-in meanwhile, SIGCONT: it is superseded, and the data is untouched."""
        with backend.peers() as [holder]:

            async def promise(store: Store) -> None:
                holder.ask("claim", key="k", seen=None)
                holder.stop()
                assert await store.load("k") is None
                record = await store.put("k", b"signed in")
                assert (await store.put("other", b"not blocked")).data == b"not blocked"
                holder.resume()
                answer = holder.ask("commit", data="late")
                assert answer == {
                    "error": "Superseded",
                    "record": {"version": record.version, "data": "signed in"},
                }
                assert await store.load("k") == record
                assert await is_free(store, "k", record.version)

            backend.run(promise)

    def test_a_paused_holder_is_heard_if_nobody_was_faster(self, backend: Backend) -> None:
        """SIGSTOP, SIGCONT, and then its commit, which is kept."""
        with backend.peers() as [holder]:

            async def promise(store: Store) -> None:
                holder.ask("claim", key="k", seen=None)
                holder.stop()
                holder.resume()
                committed = holder.ask("commit", data="late")
                record = await store.load("k")
                assert record is not None
                assert record.version == committed["version"]

            backend.run(promise)

    def test_a_holder_whose_event_loop_was_blocked_is_heard_if_nobody_was_faster(
        self, backend: Backend
    ) -> None:
        """It could renew no lease meanwhile; its commit is kept, and others were not kept waiting."""
        with backend.peers() as [holder]:

            async def promise(store: Store) -> None:
                holder.ask("claim", key="k", seen=None)
                assert holder.ask("block") == "blocked"
                assert (await store.put("other", b"not blocked")).data == b"not blocked"
                assert await store.load("k") is None
                holder.send("commit", data="late")
                assert holder.read() == "unblocked"
                committed = holder.read()
                record = await store.load("k")
                assert record is not None
                assert record.version == committed["version"]

            backend.run(promise)

    def test_sixteen_processes_may_start_at_once(self, backend: Backend) -> None:
        """Where there was nothing yet: each of them writes, and nothing is lost."""
        with backend.peers(16) as starters:
            for number, starter in enumerate(starters):
                starter.send("put", key=f"key-{number}", data="data")
            for starter in starters:
                assert starter.read().get("data") == "data"

            async def promise(store: Store) -> None:
                assert await store.keys() == sorted(f"key-{number}" for number in range(16))

            backend.run(promise)

    def test_a_forked_child_keeps_no_claim_alive(self, backend: Backend) -> None:
        """The parent is killed while the child lives on: the next one gets the claim."""
        with backend.peers() as [holder]:
            holder.ask("claim", key="k", seen=None)
            child = holder.ask("fork")
            try:
                holder.kill()

                async def promise(store: Store) -> None:
                    claim = await claimed(store, "k", timeout=backend.patience / 2)
                    assert claim.interrupted is not None
                    await claim.abandon()

                backend.run(promise)
            finally:
                os.kill(child, signal.SIGKILL)

    def test_a_forked_child_may_use_the_store_it_inherited(self, backend: Backend) -> None:
        """With a thread and a connection of its own; the parent's claim outlives the child."""
        with backend.peers() as [holder]:

            async def promise(store: Store) -> None:
                holder.ask("put", key="other", data="by the parent")
                holder.ask("claim", key="k", seen=None)
                assert holder.ask("fork_and_put", key="other", data="by the child") == 0
                record = await store.load("other")
                assert record is not None
                assert record.data == b"by the child"
                assert not await is_free(store, "k")
                committed = holder.ask("commit", data="data")
                assert (await newer(store, "k")).version == committed["version"]

            backend.run(promise)

    def test_what_a_killed_writer_leaves_is_swept_by_the_next(self, backend: Backend) -> None:
        """No half-written copy of a token lies about for ever."""
        with backend.peers(12) as [tidy, *writers]:
            tidy.ask("put", key="k", data="data")
            tidy.ask("claim", key="k", seen=tidy.ask("load", key="k")["version"])
            tidy.ask("commit", data="data")
            tidy.ask("aclose")
            before = backend.names()
            for count, writer in enumerate(writers):
                writer.send("churn", key="k", start=4080)  # the largest
                for _ in range(count):
                    writer.read()
                writer.kill()
                if not backend.names() <= before:  # this one did leave something
                    break

            async def promise(store: Store) -> None:
                await store.put("k", b"data")

            backend.run(promise)
            assert backend.names() <= before

    def test_waiting_for_another_process_blocks_no_event_loop(self, backend: Backend) -> None:
        """Other tasks run on while a claim is waited for."""
        with backend.peers() as [holder]:

            async def promise(store: Store) -> None:
                holder.ask("claim", key="k", seen=None)
                waiter = asyncio.ensure_future(newer(store, "k"))
                for number in range(20):  # the waiter looks again and again meanwhile
                    await store.put("other", b"%d" % number)
                assert not waiter.done()
                committed = holder.ask("commit", data="data")
                assert (await waiter).version == committed["version"]

            backend.run(promise)
