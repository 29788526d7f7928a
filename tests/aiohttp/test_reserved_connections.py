"""A bound on the connections to one origin, for all transports of an event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from _api import rounds
from _event_loop import in_event_loop

from tokensession import AiohttpTransport
from tokensession import transport as transport_module

HERE, THERE = "https://id.example.com/token", "https://id.example.org/token"


@pytest.fixture
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "MAX_CONNECTIONS", 2)


async def settled(*tasks: asyncio.Task[Any]) -> list[bool]:
    """Which tasks are done when no task has anything left to do."""
    await rounds()
    return [task.done() for task in tasks]


def reserving(url: str = HERE) -> asyncio.Task[Callable[[], None]]:
    """By a transport of its own: they all count together."""
    return asyncio.create_task(AiohttpTransport().reserve(url))


@pytest.mark.usefixtures("two_at_once")
@in_event_loop
async def test_a_reservation_waits_for_a_free_connection_to_its_origin_and_delays_no_other() -> None:
    """(K31, rule 31)."""
    first, second, third, fourth = (reserving(f"{HERE}/{number}") for number in range(4))
    assert await settled(first, second, third, fourth) == [True, True, False, False]
    origins = THERE, "http://id.example.com/token", HERE.replace("com/", "com:8443/")
    others = [reserving(url) for url in origins]
    assert await settled(*others) == [True] * 3
    first.result()()
    assert await settled(third, fourth) == [True, False]
    first.result()()  # releasing it again frees no other
    assert await settled(fourth) == [False]
    second.result()()
    assert await settled(fourth) == [True]
    for task in (third, fourth, *others):
        task.result()()
    assert not transport_module._free[asyncio.get_running_loop()]


@pytest.mark.usefixtures("two_at_once")
@pytest.mark.parametrize("order", ["cancelled, then freed", "freed, then cancelled", "freed"])
@in_event_loop
async def test_a_cancelled_reservation_takes_no_connection(order: str) -> None:
    """Even if it is freed in the same moment."""
    held, also, waiting, next_one = (reserving() for _ in range(4))
    await settled(held, also)
    if order == "freed":
        held.result()()
        assert await settled(waiting, next_one) == [True, False]
        waiting.result()()
    elif order == "cancelled, then freed":
        waiting.cancel()
        held.result()()
    else:
        held.result()()
        waiting.cancel()
    assert await settled(next_one) == [True]
    also.result()()
    next_one.result()()
    del held, also, waiting, next_one
    gc.collect()
    assert not transport_module._free[asyncio.get_running_loop()]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.usefixtures("two_at_once")
def test_event_loops_have_reservations_of_their_own_and_leave_none_behind(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """A transport is bound to none. One that ends while it holds or waits leaves nothing, too."""
    transport = AiohttpTransport()

    async def hold() -> None:
        releases = [await transport.reserve(HERE) for _ in range(2)]
        waiting = asyncio.create_task(transport.reserve(HERE))
        assert await settled(waiting) == [False]
        assert len(releases) == 2

    known = len(transport_module._free)
    for _ in range(2):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(hold())
    del runner
    gc.collect()
    assert len(transport_module._free) <= known


@in_event_loop
async def test_a_hundred_connections_to_one_origin_is_the_bound() -> None:
    tasks = [reserving() for _ in range(101)]
    assert await settled(*tasks) == [True] * 100 + [False]
    tasks[0].result()()
    for task in tasks[1:]:
        (await task)()
