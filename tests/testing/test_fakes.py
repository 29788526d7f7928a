"""FakeClock, ScriptedTransport, and the public names."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest
from _event_loop import in_event_loop

import tokensession.testing
from tokensession.errors import NotSent, OutcomeUnknown, StoreUnavailable
from tokensession.providers import TokenRequest, TokenResponse, TokenTransport
from tokensession.testing import FakeClock, Paused, ScriptedTransport, token_response

REQUEST = TokenRequest("https://example.com/token", (), b"secret body")


async def send(
    transport: TokenTransport, on_sending: Callable[[], Awaitable[None]] | None = None
) -> TokenResponse:
    return await transport.send(REQUEST, connect=5, total=20, on_sending=on_sending)


def test_the_clock_stands_still_until_you_move_it_and_a_step_moves_the_wall_clock_only() -> None:
    clock = FakeClock(wall=100.0, boot=7.0, jitter=0.25)
    assert (clock.wall(), clock.boot(), clock.jitter(), clock.jitter()) == (100.0, 7.0, 0.25, 0.25)
    clock.advance(3)
    clock.step_wall(-50)
    assert (clock.wall(), clock.boot()) == (53.0, 10.0)
    with pytest.raises(ValueError, match="step_wall"):
        clock.advance(-1)


@in_event_loop
async def test_sleepers_wake_when_their_time_has_come_in_that_order() -> None:
    clock = FakeClock()
    woken: list[float] = []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with asyncio.TaskGroup() as group:
        for seconds in (3, 1, 2):
            group.create_task(sleep(seconds))
        await clock.slept(3)
        assert clock.sleepers == (1, 2, 3)
        clock.step_wall(1000)
        clock.advance(2)
        assert clock.sleepers == (1,)
        clock.advance(1)
    assert woken == [1, 2, 3]
    assert clock.sleepers == ()


@in_event_loop
async def test_a_sleep_of_zero_only_yields_and_a_cancelled_sleep_leaves_nothing_behind() -> None:
    clock = FakeClock()
    await clock.sleep(0)
    await clock.sleep(-5)
    task = asyncio.ensure_future(clock.sleep(5))
    await clock.slept()
    task.cancel()
    await asyncio.wait([task])
    assert clock.sleepers == ()
    clock.advance(10)


@in_event_loop
async def test_waiting_for_sleepers_waits_until_there_are_enough() -> None:
    clock = FakeClock()
    waiter = asyncio.ensure_future(clock.slept(2))
    first = asyncio.ensure_future(clock.sleep(5))
    await clock.slept()
    assert not waiter.done()
    second = asyncio.ensure_future(clock.sleep(5))
    await waiter
    clock.advance(5)
    await asyncio.gather(first, second)


def test_a_draw_after_the_last_jitter_raises_an_assertion_error() -> None:
    clock = FakeClock(jitter=[0.1, 0.9])
    assert [clock.jitter(), clock.jitter()] == [0.1, 0.9]
    with pytest.raises(AssertionError, match="no number is left"):
        clock.jitter()


def test_the_clock_can_be_used_in_one_loop_after_another() -> None:
    clock = FakeClock()

    async def nap() -> None:
        task = asyncio.ensure_future(clock.sleep(1))
        await clock.slept()
        clock.advance(1)
        await task

    asyncio.run(nap())
    asyncio.run(nap())
    assert "0 asleep" in repr(clock)


@in_event_loop
async def test_the_transport_follows_its_script_and_records_the_requests() -> None:
    async def respond(request: TokenRequest) -> TokenResponse:
        return token_response(request.body)

    transport = ScriptedTransport(
        token_response({"a": "planted"}), NotSent("The network is down."), lambda _: token_response(b"x", 503)
    )
    transport.script(respond)
    assert "planted" not in repr(transport)
    assert (await send(transport)).body == b'{"a": "planted"}'
    with pytest.raises(NotSent, match="The network is down"):
        await send(transport)
    assert (await send(transport)).status == 503
    assert (await send(transport)).body == REQUEST.body
    assert transport.requests == [REQUEST] * 4
    assert (transport.timeouts[0], transport.left) == ((5, 20), 0)
    with pytest.raises(AssertionError, match="no line is left for request 5"):
        await send(transport)
    assert transport.unexpected_requests == 1


@in_event_loop
async def test_on_sending_is_awaited_once_for_each_request_that_leaves() -> None:
    """A `NotSent` says that it has not left. A `Paused` request has left before it arrives."""
    order: list[str] = []

    async def on_sending() -> None:
        order.append("sending")

    def respond(_: TokenRequest) -> TokenResponse:
        order.append("line")
        return token_response({})

    unreachable, paused = Paused(NotSent("No network.")), Paused(token_response({}))
    lost = OutcomeUnknown("Lost.")
    transport = ScriptedTransport(respond, NotSent("No network."), unreachable, lost, paused)
    await send(transport, on_sending)
    assert order == ["sending", "line"]
    unreachable.release()
    for error in (NotSent, NotSent, OutcomeUnknown):
        with pytest.raises(error):
            await send(transport, on_sending)
    assert (len(order), transport.sent) == (3, 2)
    arriving = asyncio.ensure_future(send(transport, on_sending))
    await paused.arrived.wait()
    assert (len(order), transport.sent) == (4, 3)
    paused.release()
    await arriving
    assert len(transport.requests) == 5


@in_event_loop
async def test_a_line_is_left_for_the_next_request_if_on_sending_raises() -> None:
    """Nothing was sent."""

    async def fails() -> None:
        raise StoreUnavailable("The disk is full.")

    transport = ScriptedTransport(token_response({"ok": True}))
    with pytest.raises(StoreUnavailable):
        await send(transport, fails)
    assert (transport.sent, transport.left, len(transport.requests)) == (0, 1, 1)
    assert (await send(transport)).body == b'{"ok": true}'
    assert transport.sent == 1


@pytest.mark.parametrize("failing", [True, False])
@in_event_loop
async def test_a_paused_line_waits_until_it_is_released(failing: bool) -> None:
    paused = Paused(NotSent("The network is down.") if failing else token_response({"ok": True}))
    assert "not reached yet" in repr(paused)
    task = asyncio.ensure_future(send(ScriptedTransport(paused)))
    await paused.arrived.wait()
    assert not task.done()
    assert "arrived" in repr(paused)
    paused.release()
    if failing:
        with pytest.raises(NotSent):
            await task
    else:
        assert (await task).status == 200


def test_the_module_lists_its_public_names_and_has_no_others() -> None:
    assert dir(tokensession.testing) == tokensession.testing.__all__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = tokensession.testing.Nothing


def test_importing_tokensession_testing_loads_neither_pytest_nor_a_server() -> None:
    program = (
        "import sys, tokensession.testing\n"
        "assert 'pytest' not in sys.modules and 'tokensession.testing.servers' not in sys.modules\n"
        "tokensession.testing.OtoServer\n"
        "assert 'pytest' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_without_pytest_the_conformance_suite_says_how_to_install_it() -> None:
    program = (
        "import sys\n"
        "sys.modules['pytest'] = None\n"
        "import tokensession.testing\n"
        "try: tokensession.testing.StoreConformance\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    printed = subprocess.check_output([sys.executable, "-c", program], timeout=60, text=True)
    assert printed == "StoreConformance needs pytest. Install it: pip install 'tokensession[testing]'\n"
