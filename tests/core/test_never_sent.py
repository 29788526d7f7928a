"""A token request that never left has spent nothing: nothing is noted, however often it happens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from _moments import (
    asking_after_a_killed_holder,
    beside,
    holding,
    keep_failing,
    killed,
    refused,
    state_in,
    under_way,
)
from _rig import LIFETIME, Rig, invalid_grant, run, seconds_until_done, success
from _scripted_store import fail, scripted

from tokensession import GrantLost, NotSent, OutcomeUnknown, StoreUnavailable, TokenUnavailable
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.testing import Paused


def connecting() -> Paused:
    """A token request that hangs while the connection is opened."""
    return Paused(NotSent("The proxy closed the connection."))


def never_sent(times: int) -> list[NotSent]:
    """So many connections that could not be opened."""
    return [NotSent("The proxy closed the connection.") for _ in range(times)]


@pytest.mark.parametrize("times", [1, 2, 40])
def test_f55_k01_any_number_of_connections_that_fail_note_nothing(times: int) -> None:
    """A proxy that drops each CONNECT, a renewed certificate: the next request that leaves succeeds."""

    async def main() -> None:
        rig = await holding(*never_sent(times), success(2), age=LIFETIME)
        before = await rig.store.load("account")
        await keep_failing(NotSent, rig, times=times, pause=30, match="unchanged")
        assert await rig.store.load("account") == before
        assert await rig.access() == "access-2"

    run(main)


def test_f55_k01_a_first_request_that_is_never_sent_leaves_no_record() -> None:
    """Neither a note nor a claim: another process sends its own request at once."""

    async def main() -> None:
        rig = Rig(*never_sent(1))
        await refused(NotSent, rig.access())
        assert await rig.store.load("account") is None
        assert await beside(rig, success(1)).access() == "access-1"
        rig.clock.advance(1)
        assert await rig.access() == "access-1"

    run(main)


def test_f55_k01_one_process_without_a_network_does_not_silence_the_others() -> None:
    """Its pause is its own. While it waits, it looks at the store, and adopts what another one gets."""

    async def main() -> None:
        cut_off = await holding(*never_sent(30), age=LIFETIME)
        await keep_failing(NotSent, cut_off, times=20, pause=5)
        assert await beside(cut_off, success(2)).access() == "access-2"
        cut_off.clock.advance(1)
        assert await cut_off.access() == "access-2"

    run(main)


@pytest.mark.parametrize(
    "end", [killed, lambda *call: asyncio.run(under_way(*call))], ids=["SIGKILL", "Ctrl-C"]
)
@pytest.mark.parametrize("times", [1, 2, 5])
def test_f55_k02_a_process_that_ends_while_it_connects_leaves_nothing_behind(end: Any, times: int) -> None:
    """However often: the next process waits for nothing, and knows of nothing lost."""

    async def main() -> None:
        before = await holding(age=LIFETIME)
        for _ in range(times):
            paused = connecting()
            dying = beside(before, paused)
            await asyncio.to_thread(end, dying.access(), paused)
        rig = beside(before, success(2))
        assert await rig.access() == "access-2"  # without the pause after a killed holder
        assert await quiet(rig)

    run(main)


async def quiet(rig: Rig) -> bool:
    """Whether the stored state has no note of anything that went wrong."""
    state = await state_in(rig)
    return state.failures is None and not state.rejections


def test_f55_k02_closing_while_the_connection_is_opened_notes_nothing() -> None:
    """The host answers no SYN, and the session is closed: the request is stopped before anything has left."""

    async def main() -> None:
        paused = connecting()
        rig = await holding(paused, success(2), age=LIFETIME)
        before = await rig.store.load("account")
        caller = await under_way(rig.access(), paused)
        closing = asyncio.create_task(rig.source.aclose())
        await seconds_until_done(closing, rig.clock)
        await closing
        await refused(TokenUnavailable, caller)
        assert await rig.store.load("account") == before
        assert await beside(rig, success(2)).access() == "access-2"

    run(main)


def test_f55_a_connection_that_is_never_opened_ends_with_the_request_and_notes_nothing() -> None:
    """If the transport has no time-out of its own, the request's counts."""

    async def main() -> None:
        paused = connecting()
        rig = await holding(paused, success(2), age=LIFETIME)
        caller = await under_way(rig.access(), paused)
        rig.clock.advance(20)
        await refused(TokenUnavailable, caller)
        rig.clock.advance(100)
        await rig.refreshed()
        assert await quiet(rig)
        assert rig.source.snapshot().last_error == "NotSent"
        rig.clock.advance(1)
        assert await rig.access() == "access-2"

    run(main)


def test_f55_if_the_mark_cannot_be_left_nothing_is_sent() -> None:
    """A crash after it would look as if nothing had been sent, and the store could not take the token."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        await rig.access()
        clock.advance(LIFETIME)
        before = await store.load("account")
        store.steps["sending"] = fail
        await keep_failing(StoreUnavailable, rig, times=3, pause=60)
        assert (rig.transport.sent, store.has_claims()) == (1, False)
        assert await store.load("account") == before
        del store.steps["sending"]
        assert await rig.access() == "access-2"

    run(main)


class WithoutHook:
    """A transport of your own, which does not say when a request leaves."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        """Hang, perhaps after the request has left."""
        self.arrived.set()
        await asyncio.Event().wait()
        raise AssertionError


async def killed_without_hook(rig: Rig) -> None:
    """A process beside this one that is killed during a token request of such a transport."""
    transport: Any = WithoutHook()  # the type of a transport has the hook
    await asyncio.to_thread(killed, beside(rig, transport=transport).access(), transport)


def test_f55_a_request_that_is_never_sent_does_not_make_an_earlier_lost_one_forgotten() -> None:
    """A killed process may have sent one, the next finds no connection: the one after that still knows."""

    async def main() -> None:
        rig = Rig(*never_sent(2), invalid_grant())
        await killed_without_hook(rig)
        for expected, said in ((NotSent, None), (NotSent, None), (GrantLost, "Its process ended")):
            await refused(expected, await asking_after_a_killed_holder(rig), match=said)
            rig.clock.advance(10)

    run(main)


def test_f55_a_lost_answer_stays_known_through_requests_that_are_never_sent() -> None:
    """Its note is in the store, and a connection that cannot be opened changes nothing about it."""

    async def main() -> None:
        rig = Rig(OutcomeUnknown("got no answer"), *never_sent(3), invalid_grant())
        for expected in (OutcomeUnknown, NotSent, NotSent, NotSent, GrantLost):
            await refused(expected, rig.access())
            rig.clock.advance(10)

    run(main)
