"""`Waiters`: callers that wait for one piece of work, each for a bounded time, with one timer for all."""

from __future__ import annotations

import asyncio

import pytest
from _loop import iterations, run

from tokensession._refresh.single_flight import Waiters
from tokensession.testing import FakeClock

BOUND = 20.0


class Crowd:
    """Waiters on a clock of the test's, and what each of them got: True, False, or "cancelled"."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.waiters = Waiters(self.clock, BOUND)
        self.got: dict[str, bool | str] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def join(self, name: str) -> None:
        async def wait() -> None:
            try:
                self.got[name] = await self.waiters.join(patient=False)
            except asyncio.CancelledError:
                self.got[name] = "cancelled"

        self.tasks[name] = asyncio.create_task(wait())
        await iterations()

    async def after(self, seconds: float) -> dict[str, bool | str]:
        self.clock.advance(seconds)
        await iterations()
        return self.got


def test_each_waiter_waits_for_at_most_its_bound_from_when_it_joined() -> None:
    async def main() -> None:
        crowd = Crowd()
        await crowd.join("first")
        await crowd.after(5)
        await crowd.join("second")
        assert await crowd.after(14.999) == {}
        assert await crowd.after(0.001) == {"first": False}
        assert await crowd.after(4.999) == {"first": False}
        assert await crowd.after(0.001) == {"first": False, "second": False}
        assert crowd.clock.sleepers == ()
        await crowd.join("third")
        await crowd.after(BOUND)
        assert crowd.got["third"] is False

    run(main())


def test_f31_one_timer_serves_ten_thousand_waiters() -> None:
    """Each joins at a moment of its own, and none waits behind another."""

    async def main() -> None:
        crowd, tasks = Crowd(), list[asyncio.Future[bool]]()
        for number in range(10_000):
            tasks.append(crowd.waiters.join(patient=False))
            if number % 1000 == 999:
                await asyncio.sleep(0)
                crowd.clock.advance(1)
        assert len(crowd.clock.sleepers) == 1
        await crowd.after(BOUND - 10)
        assert sum(task.done() for task in tasks) == 1000, "those of the first second"
        assert len(crowd.clock.sleepers) == 1
        crowd.waiters.release()
        results = await asyncio.gather(*tasks)
        assert [results.count(False), results.count(True)] == [1000, 9000]
        assert not crowd.clock.sleepers

    run(main())


def test_a_crowd_wakes_a_hundred_in_each_turn_of_the_loop() -> None:
    """In the order in which they came. Those that are cancelled meanwhile hold up none of the others."""

    async def main() -> None:
        crowd = Crowd()
        waiting = [crowd.waiters.join(patient=False) for _ in range(250)]
        crowd.waiters.release()
        assert [future.done() for future in waiting] == [True] * 100 + [False] * 150
        waiting[220].cancel()
        await asyncio.sleep(0)
        assert [future.done() for future in waiting[100:]] == [True] * 100 + [False] * 20 + [True] + [
            False
        ] * 29
        await asyncio.sleep(0)
        assert all(future.done() for future in waiting)
        assert sum(not future.cancelled() and future.result() for future in waiting) == 249

    run(main())


@pytest.mark.parametrize("gone", [["first"], ["second"], ["third"], ["first", "second"], ["second", "third"]])
def test_f02_a_cancelled_waiter_delays_no_other_one(gone: list[str]) -> None:
    """Wherever it stands among them."""

    async def main() -> None:
        crowd = Crowd()
        for name in ("first", "second", "third"):
            await crowd.join(name)
            await crowd.after(1)
        for name in gone:
            crowd.tasks[name].cancel()
        await iterations()
        assert crowd.got == dict.fromkeys(gone, "cancelled")
        for name, left in (("first", 17), ("second", 1), ("third", 1)):
            await crowd.after(left)
            assert crowd.got[name] == ("cancelled" if name in gone else False)
        assert crowd.clock.sleepers == ()

    run(main())


def test_f02_if_all_waiters_are_cancelled_nothing_is_left_when_their_time_is_up() -> None:
    """Their timer is the last thing that remembers them."""

    async def main() -> None:
        crowd = Crowd()
        for number in range(100):
            await crowd.join(str(number))
        for task in crowd.tasks.values():
            task.cancel()
        await crowd.after(BOUND)
        assert crowd.clock.sleepers == ()
        await crowd.join("later")
        assert (await crowd.after(BOUND))["later"] is False

    run(main())


@pytest.mark.parametrize("queue", [0, 5, 19, 100, 120])
def test_k31_the_time_of_waiters_does_not_run_while_the_work_is_queued(queue: float) -> None:
    """It waits for its turn then, and not for an answer."""

    async def main() -> None:
        crowd = Crowd()
        await crowd.join("before")
        await crowd.after(15)
        with crowd.waiters.queued():
            await crowd.join("in the queue")
            assert await crowd.after(queue) == {}
            assert len(crowd.clock.sleepers) == 1
        await crowd.join("after")
        assert await crowd.after(4.999) == {}
        assert await crowd.after(0.001) == {"before": False}
        assert await crowd.after(15) == {"before": False, "in the queue": False, "after": False}

    run(main())


def test_a_queue_stops_the_time_for_two_minutes_at_most() -> None:
    """A transport of your own may never give a connection. Its callers get their error all the same."""

    async def main() -> None:
        crowd = Crowd()
        await crowd.join("first")
        await crowd.after(15)
        with crowd.waiters.queued():
            assert await crowd.after(124.999) == {}
            assert await crowd.after(0.001) == {"first": False}
            await crowd.join("second")
            assert await crowd.after(BOUND) == {"first": False, "second": False}

    run(main())


def test_two_queues_in_a_row_both_stop_the_time() -> None:
    async def main() -> None:
        crowd = Crowd()
        await crowd.join("first")
        for _ in range(2):
            await crowd.after(5)
            with crowd.waiters.queued():
                await crowd.after(30)
        assert await crowd.after(9.999) == {}
        assert await crowd.after(0.001) == {"first": False}

    run(main())


@pytest.mark.parametrize("left", [20.0, 0.002])
def test_a_queue_wakes_nothing_up(left: float) -> None:
    """However little time a waiter has left: its timer is not set again and again."""

    async def main() -> None:
        crowd = Crowd()
        await crowd.join("first")
        await crowd.after(BOUND - left)
        with crowd.waiters.queued():
            await crowd.after(left)
            assert crowd.clock.sleepers[0] > 100
        assert crowd.clock.sleepers[0] == pytest.approx(left)

    run(main())


def test_f42_a_queue_in_a_loop_that_is_thrown_away_reports_nothing() -> None:
    """The loop is closed without cancelling its tasks."""
    loop, clock = asyncio.new_event_loop(), FakeClock()
    waiters = Waiters(clock, BOUND)

    async def work() -> None:
        with waiters.queued():
            await asyncio.Event().wait()

    async def main() -> None:
        kept.append(waiters.join(patient=False))
        working.send(None)

    kept: list[asyncio.Future[bool]] = []
    working = work()
    loop.run_until_complete(main())
    loop.close()
    working.close()
