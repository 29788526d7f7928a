"""A running operation: for whom it goes on, and how it is woken and stopped."""

from __future__ import annotations

import asyncio

import pytest
from _loop import iterations, run

from tokensession._refresh.operation import Operation
from tokensession.policy import Policy
from tokensession.testing import FakeClock


async def joined(operation: Operation, *, patient: bool = True) -> asyncio.Future[bool]:
    """A caller that waits for it."""
    waiting = operation.waiters.join(patient=patient)
    await iterations()
    return waiting


@pytest.mark.parametrize(
    ("retry_within", "caller_timeout", "reach"),
    [(20, 20, 19), (20, 60, 19), (60, 20, 19), (5, 20, 4.5), (0, 20, 0), (100, 100, 99)],
)
def test_f66_an_attempt_is_worth_waiting_for_if_it_is_within_reach_of_the_last_caller(
    retry_within: float, caller_timeout: float, reach: float
) -> None:
    """A little before its time is up: an attempt takes time, too."""

    async def main() -> None:
        clock = FakeClock()
        policy = Policy(retry_within=retry_within, caller_timeout=caller_timeout)
        operation = Operation(clock, policy)
        assert not operation.worth_waiting(clock.boot()), "no one is waiting"
        impatient = await joined(operation, patient=False)
        assert not operation.worth_waiting(clock.boot())
        clock.advance(1)
        patient = await joined(operation)
        now = clock.boot()
        assert operation.worth_waiting(now + reach)
        assert not operation.worth_waiting(now + reach + 0.01)
        clock.advance(0.5)
        assert not operation.worth_waiting(now + reach + 0.01), "the last caller counts, not this moment"
        operation.closing = True
        assert not operation.worth_waiting(clock.boot())
        operation.waiters.release()
        await asyncio.gather(impatient, patient)

    run(main())


def test_a_pause_ends_with_its_time_or_if_there_is_something_new() -> None:
    async def main() -> None:
        clock = FakeClock()
        operation = Operation(clock, Policy())
        operation.look()  # before any pause: nothing happens
        for over in (True, False):
            pausing = asyncio.create_task(operation.pause(10))
            await clock.slept()
            clock.advance(0)
            await iterations()
            assert not pausing.done()
            clock.advance(10) if over else operation.look()
            await pausing
            assert clock.sleepers == ()

    run(main())
