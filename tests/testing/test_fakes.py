"""FakeClock, ScriptedTransport, and the package's door."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from _exchange import run

import tokensession.testing
from tokensession.clock import Clock
from tokensession.errors import NotSent
from tokensession.providers import TokenRequest, TokenResponse, TokenTransport
from tokensession.testing import FakeClock, Paused, ScriptedTransport, servers, token_response

REQUEST = TokenRequest("https://example.com/token", (), b"secret body")


async def ask(transport: TokenTransport) -> TokenResponse:
    return await transport.send(REQUEST, connect=5, total=20)


def test_the_clock_stands_still_until_it_is_moved() -> None:
    clock: Clock = FakeClock(wall=100.0, boot=7.0, jitter=0.25)
    assert (clock.wall(), clock.boot(), clock.jitter(), clock.jitter()) == (100.0, 7.0, 0.25, 0.25)


def test_advancing_moves_both_clocks_and_a_step_only_the_wall() -> None:
    clock = FakeClock(wall=100.0, boot=7.0)
    clock.advance(3)
    clock.step_wall(-50)
    assert (clock.wall(), clock.boot()) == (53.0, 10.0)
    with pytest.raises(ValueError, match="step_wall"):
        clock.advance(-1)


def test_sleepers_wake_in_the_order_of_their_time_when_it_has_come() -> None:
    async def main() -> None:
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

    run(main)


def test_a_sleep_of_nothing_only_yields_and_a_cancelled_one_leaves_nothing_behind() -> None:
    async def main() -> None:
        clock = FakeClock()
        await clock.sleep(0)
        await clock.sleep(-5)
        task = asyncio.ensure_future(clock.sleep(5))
        await clock.slept()
        task.cancel()
        await asyncio.wait([task])
        assert clock.sleepers == ()
        clock.advance(10)

    run(main)


def test_waiting_for_sleepers_waits_until_there_are_enough() -> None:
    async def main() -> None:
        clock = FakeClock()
        waiter = asyncio.ensure_future(clock.slept(2))
        first = asyncio.ensure_future(clock.sleep(5))
        await clock.slept()
        assert not waiter.done()
        second = asyncio.ensure_future(clock.sleep(5))
        await waiter
        clock.advance(5)
        await asyncio.gather(first, second)

    run(main)


def test_a_script_of_jitter_ends_with_an_assertion() -> None:
    clock = FakeClock(jitter=[0.1, 0.9])
    assert [clock.jitter(), clock.jitter()] == [0.1, 0.9]
    with pytest.raises(AssertionError, match="more often"):
        clock.jitter()


def test_the_clock_can_be_used_in_one_loop_after_another() -> None:
    clock = FakeClock()

    async def nap() -> None:
        task = asyncio.ensure_future(clock.sleep(1))
        await clock.slept()
        clock.advance(1)
        await task

    run(nap)
    run(nap)
    assert "0 asleep" in repr(clock)


def test_the_endpoint_answers_by_its_script_and_keeps_what_it_was_asked() -> None:
    async def main() -> None:
        async def late(request: TokenRequest) -> TokenResponse:
            return token_response(request.body)

        transport = ScriptedTransport(
            token_response({"ok": True}), NotSent("It rained."), lambda _: token_response(b"x", 503)
        )
        transport.script(late)
        assert (await ask(transport)).body == b'{"ok": true}'
        with pytest.raises(NotSent, match="It rained"):
            await ask(transport)
        assert (await ask(transport)).status == 503
        assert (await ask(transport)).body == REQUEST.body
        assert transport.requests == [REQUEST] * 4
        assert transport.timeouts[0] == (5, 20)
        assert transport.left == 0

    run(main)


def test_a_request_after_the_last_line_is_one_too_many() -> None:
    async def main() -> None:
        transport = ScriptedTransport()
        with pytest.raises(AssertionError, match="one too many"):
            await ask(transport)
        assert transport.overasked == 1

    run(main)


@pytest.mark.parametrize("failing", [True, False])
def test_a_held_line_is_answered_when_it_is_released(failing: bool) -> None:
    async def main() -> None:
        held = Paused(NotSent("It rained.") if failing else token_response({"ok": True}))
        assert "not asked" in repr(held)
        task = asyncio.ensure_future(ask(ScriptedTransport(held)))
        await held.arrived.wait()
        assert not task.done()
        assert "arrived" in repr(held)
        held.release()
        if failing:
            with pytest.raises(NotSent):
                await task
        else:
            assert (await task).status == 200

    run(main)


def test_the_fakes_show_no_secrets() -> None:
    transport = ScriptedTransport(token_response({"access_token": "planted"}))
    assert "planted" not in repr(transport)


def test_the_door_is_sorted_and_every_name_opens() -> None:
    for door in (tokensession.testing, servers):
        assert list(door.__all__) == sorted(door.__all__)
        for name in door.__all__:
            assert getattr(door, name) is not None
    assert dir(tokensession.testing) == tokensession.testing.__all__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = tokensession.testing.Nothing


def test_importing_the_door_loads_neither_pytest_nor_a_server() -> None:
    program = (
        "import sys, tokensession.testing\n"
        "assert 'pytest' not in sys.modules and 'tokensession.testing.servers' not in sys.modules\n"
        "tokensession.testing.OtoServer\n"
        "assert 'pytest' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_without_pytest_the_conformance_suite_says_how_to_get_it() -> None:
    program = (
        "import sys\n"
        "sys.modules['pytest'] = None\n"
        "import tokensession.testing\n"
        "try: tokensession.testing.StoreConformance\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == "StoreConformance needs pytest. Install it: pip install 'tokensession[test]'\n"
