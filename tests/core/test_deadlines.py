"""Every part of a refresh has a deadline, so a hanging transport or store does not hang the callers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from _rig import Rig, begun, let_tasks_run, run, seconds_until_done, success, took
from _scripted_store import Hanging, scripted

from tokensession import NotSent, OutcomeUnknown, SignInRequired, StoreUnavailable
from tokensession.providers.protocol import TokenRequest, TokenResponse

CALLER = 20
"""Seconds. `Policy.caller_timeout`: no caller waits longer, whatever hangs."""


async def never(_request: TokenRequest) -> TokenResponse:
    """Hangs."""
    await asyncio.Event().wait()
    raise AssertionError


async def cleans_up(_request: TokenRequest) -> TokenResponse:
    """Hangs, and when it is cancelled takes some turns of the event loop to close its connection."""
    try:
        await asyncio.Event().wait()
    finally:
        await let_tasks_run(10)
    raise AssertionError


async def fails_when_cancelled(_request: TokenRequest) -> TokenResponse:
    """Raises another exception when it is cancelled."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ConnectionResetError from None
    raise AssertionError


async def spins(_request: TokenRequest) -> TokenResponse:
    """Never ends, and never really waits."""
    while True:
        await asyncio.sleep(0)


async def ignores_cancellation(_request: TokenRequest) -> TokenResponse:
    """Goes on when it is cancelled, until its event loop ends."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    return await never(_request)


TRANSPORTS: list[Any] = [never, cleans_up, fails_when_cancelled, spins, ignores_cancellation]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=lambda transport: transport.__name__)
@pytest.mark.parametrize(("rotates", "limit"), [(False, 20), (True, 120)], ids=["permanent", "rotating"])
def test_f03_f10_the_token_request_is_over_by_its_deadline_whatever_the_transport_does(
    transport: Callable[..., Any], rotates: bool, limit: int
) -> None:
    """It ends after `request_timeout`, or `response_timeout` if its answer has the next refresh token.

    A transport that ignores its cancellation has two seconds to end, and is left alone then.
    """

    async def main() -> None:
        left_alone = 2 if transport is ignores_cancellation else 0
        rig = Rig(transport, success(2), rotates=rotates)
        callers = [rig.ask() for _ in range(10)]
        answers = asyncio.gather(*callers, return_exceptions=True)
        assert await seconds_until_done(answers, rig.clock) == CALLER
        assert {type(answer) for answer in await answers} == {OutcomeUnknown}
        assert CALLER + await took(rig.refreshed(), rig.clock) == limit + left_alone
        assert rig.transport.timeouts == [(5, limit)], "the transport gets the time-outs too"
        failures = (await rig.state()).failures
        assert failures is not None
        assert failures.unknown == int(rotates)
        rig.clock.advance(2)
        assert await rig.access() == "access-2"
        assert rig.token_requests == 2

    run(main)


@pytest.mark.parametrize("stubborn", [False, True], ids=["hangs", "ignores its cancellation"])
@pytest.mark.parametrize(
    ("where", "seconds", "answer"),
    [
        ("load", 10, StoreUnavailable),
        ("claim", CALLER, OutcomeUnknown),
        ("sending", CALLER, OutcomeUnknown),
        ("commit", 10, "access-1"),
        ("abandon", CALLER, OutcomeUnknown),  # the next attempt, after ten seconds, waits for the claim
    ],
)
def test_f03_a_store_that_hangs_anywhere_does_not_hold_up_the_callers(
    where: str, seconds: int, answer: Any, stubborn: bool
) -> None:
    """Each call of a store has a deadline. For a store that cannot be stopped, each caller has its own."""

    async def main() -> None:
        hanging = Hanging(stubborn=stubborn)
        rig, store, clock = scripted(
            NotSent("no route") if where == "abandon" else success(1),
            success(2),
            configured=None if where == "load" else "configured-token",
        )
        store.steps[where] = hanging
        caller = rig.ask()
        try:
            assert await seconds_until_done(caller, clock) == (CALLER if stubborn else seconds)
            result = (await asyncio.gather(caller, return_exceptions=True))[0]
            if stubborn:
                assert isinstance(result, OutcomeUnknown)
            else:
                assert result == answer or type(result) is answer
        finally:
            hanging.end.set()
            store.steps.clear()
        if where in ("load", "abandon"):  # there is nothing to sign in with; the claim stays held
            return
        await rig.source.aclose()
        clock.advance(60)
        assert await rig.access() in ("access-1", "access-2")

    run(main)


@pytest.mark.parametrize(("where", "seconds"), [("load", 12), ("claim", 42)])
def test_f03_a_store_call_that_never_returns_holds_up_no_later_caller(where: str, seconds: float) -> None:
    """Two seconds after the call's time-out its refresh is left alone, and the next caller starts another."""

    async def main() -> None:
        hanging = Hanging(stubborn=True)
        rig, store, clock = scripted(success(1), configured=None if where == "load" else "configured-token")
        store.steps[where] = hanging
        caller = await begun(rig.access())
        store.steps.clear()
        try:
            clock.advance(seconds + 0.1)
            await let_tasks_run()
            if where == "load":
                with pytest.raises(SignInRequired):
                    await rig.access()
            else:
                assert await rig.access() == "access-1"
        finally:
            hanging.end.set()
            await asyncio.gather(caller, return_exceptions=True)

    run(main)
