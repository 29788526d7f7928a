"""What the coordinator makes of a refresh, a sign-in, a sign-out and closing, one at a time.

The races are in tests/core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from _loop import iterations, run
from _source import KEY, Made, good

from tokensession.errors import GrantRejected, StoreUnavailable, TokenUnavailable
from tokensession.events import Adopted, Refreshed, RefreshHeld
from tokensession.providers.protocol import Credential, TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import ANY, AnyVersion, Claim, Record
from tokensession.testing import FakeClock, Paused, token_response

DEAD = token_response({"error": "invalid_grant"}, status=400)


class FullDisk(MemoryStore):
    """Writes fail as long as `full` is above zero; each counts it down."""

    full = 0

    def _check(self) -> None:
        if self.full > 0:
            self.full -= 1
            raise StoreUnavailable("The disk is full.")

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        self._check()
        return await super().put(key, data, expect=expect)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else FullDiskClaim(self, found)


class FullDiskClaim:
    def __init__(self, disk: FullDisk, claim: Claim) -> None:
        self._disk, self._claim = disk, claim
        self.current, self.interrupted, self.listening = claim.current, claim.interrupted, claim.listening

    async def commit(self, data: bytes) -> Record:
        self._disk._check()
        return await self._claim.commit(data)

    async def sending(self, *, listening: float = 0.0) -> None:
        await self._claim.sending(listening=listening)

    async def abandon(self) -> None:
        await self._claim.abandon()


def on_a_disk(*script: Any, **options: Any) -> tuple[Made, FullDisk]:
    clock = FakeClock()
    disk = FullDisk(clock=clock)
    return Made(*script, store=disk, clock=clock, **options), disk


# -- what a refresh leads to ------------------------------------------------------------------------------


def test_mutant_28_a_token_s_life_counts_from_when_its_request_left() -> None:
    """After a slow response it expires early, never late: on both clocks."""

    async def main() -> None:
        slow = Paused(good(1))
        made = Made(slow)
        began = made.clock.wall()
        waiting = asyncio.create_task(made.source.token())
        await slow.arrived.wait()
        made.clock.advance(15)
        slow.release()
        token = await waiting
        assert token.obtained_at == began
        assert made.source.snapshot().seconds_left == 3585
        made.clock.step_wall(-86_400)
        assert made.source.snapshot().seconds_left == 3585

    run(main())


def test_mutant_29_an_adopted_token_may_be_refreshed_at_once() -> None:
    """It may be due already. Only a token request has to be followed by a pause."""

    async def main() -> None:
        one = Made(good(1), good(3))
        await one.source.token()
        other = Made(good(2), store=one.store, clock=one.clock)
        one.clock.advance(3400)
        await other.source.token()
        await other.idle()
        assert other.reported()[:2] == ["RefreshStarted", "Adopted"], "it is due"
        assert (await other.source.token()).access_token == "at-1"
        await other.idle()
        assert other.transport.sent == 1, "in the same second"
        assert (await other.source.token()).access_token == "at-2"

    run(main())


def test_mutant_30_the_first_401_after_an_ordinary_refresh_is_answered_at_once() -> None:
    async def main() -> None:
        made = Made(good(1), good(2), good(3))
        await made.source.token()
        made.clock.advance(3400)
        await made.source.token()
        await made.idle()
        token = await made.source.token()
        assert token.access_token == "at-2"
        assert (await made.source.refresh(token)).access_token == "at-3"

    run(main())


@pytest.mark.parametrize(("age", "expected"), [(3400, "at-2"), (3550, "at-3"), (3600, "at-3")])
def test_mutant_31_a_newer_token_than_the_one_that_got_a_401_is_looked_at_before_it_is_returned(
    age: float, expected: str
) -> None:
    """It may be ending by now."""

    async def main() -> None:
        made = Made(good(1), good(2), good(3))
        old = await made.source.token()
        assert (await made.source.refresh(old)).access_token == "at-2"
        made.clock.advance(age)
        assert (await made.source.refresh(old)).access_token == expected

    run(main())


def test_mutant_32_only_another_process_s_token_is_reported_as_adopted() -> None:
    """Our own is reported as refreshed, and the same one again as held."""

    async def main() -> None:
        made = Made(good(1), good(2))
        token = await made.source.token()
        for _ in range(3):
            token = await made.source.refresh(token)
        ends = [event for event in made.events if isinstance(event, Refreshed | Adopted | RefreshHeld)]
        assert [type(event).__name__ for event in ends] == ["Refreshed", "Refreshed", "RefreshHeld"]
        other = Made(store=made.store, clock=made.clock)
        await other.source.token()
        assert other.reported() == ["RefreshStarted", "Adopted"]
        assert (made.source.snapshot().adopted, other.source.snapshot().adopted) == (0, 1)

    run(main())


def test_mutant_7_a_401_while_a_sign_in_is_running_gets_the_sign_in_s_token() -> None:
    """The token that got the 401 is of the sign-in before."""

    async def main() -> None:
        slow = Paused(good(2))
        made = Made(good(1), slow)
        old = await made.source.token()
        signing_in = asyncio.create_task(made.source.sign_in(refresh_token="rt-new"))
        await slow.arrived.wait()
        refreshing = asyncio.create_task(made.source.refresh(old))
        await iterations()
        slow.release()
        assert (await signing_in).access_token == "at-2"
        assert (await refreshing).access_token == "at-2"
        assert made.transport.sent == 2

    run(main())


# -- signing in and out -----------------------------------------------------------------------------------


def test_mutant_5_after_a_sign_out_that_could_not_be_stored_the_token_is_served_as_before() -> None:
    """Another process would not know of it, so it has not happened."""

    async def main() -> None:
        made, disk = on_a_disk(good(1))
        await made.source.token()
        disk.full = 1
        with pytest.raises(StoreUnavailable):
            await made.source.sign_out()
        assert made.source.snapshot().token is not None
        assert (await made.source.token()).access_token == "at-1"
        assert made.reported().count("RefreshStarted") == 1, "without another look"
        assert "SignOutStored" not in made.reported()
        await made.source.sign_out()
        assert made.source.snapshot().token is None
        assert made.reported()[-1] == "SignOutStored"

    run(main())


def test_mutant_9_a_sign_in_that_is_over_is_not_joined() -> None:
    """Only those that run at the same time are one."""

    async def main() -> None:
        made = Made(DEAD, DEAD, good(1))
        for _ in range(2):
            with pytest.raises(GrantRejected):
                await made.source.sign_in(refresh_token="rt-x")
        assert (await made.source.sign_in(refresh_token="rt-x")).access_token == "at-1"

    run(main())


def test_mutant_9_a_sign_in_that_a_closed_loop_has_left_behind_is_not_joined() -> None:
    """Nothing would ever end it."""
    slow = Paused(good(1))
    made = Made(slow, good(2))
    loop = asyncio.new_event_loop()

    async def begins() -> None:
        made.source._coordinator.sign_in(Credential("refresh_token", "rt-x"))
        await slow.arrived.wait()

    loop.run_until_complete(begins())
    tasks = asyncio.all_tasks(loop)
    loop.stop()
    loop.close()  # with its tasks in it, as a debugger or a crash in a callback leaves it

    async def main() -> None:
        again = asyncio.create_task(made.source.sign_in(refresh_token="rt-x"))
        while not again.done():  # first it waits: the request of the other one may still be on its way
            made.clock.advance(0.1)
            await asyncio.sleep(0)
        assert (await again).access_token == "at-2"

    run(main())
    for task in tasks:
        task.get_coro().close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]


# -- closing ----------------------------------------------------------------------------------------------


class Stubborn:
    """A transport that has its response when it is cancelled."""

    def __init__(self, response: TokenResponse) -> None:
        self.response = response
        self.arrived = asyncio.Event()

    async def send(
        self,
        request: TokenRequest,
        *,
        connect: float,
        total: float,
        on_sending: Callable[[], Awaitable[None]] | None = None,
    ) -> TokenResponse:
        assert on_sending is not None
        await on_sending()
        self.arrived.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return self.response
        raise AssertionError("unreachable")


@pytest.mark.parametrize(("full", "saved"), [(1, True), (9, False)])
def test_mutant_6_closing_tries_once_more_to_save_what_it_has_stopped(full: int, saved: bool) -> None:
    """A token that came at the last moment could not be stored at first."""

    async def main() -> None:
        transport = Stubborn(good(1))
        made, disk = on_a_disk(transport=transport)
        waiting = asyncio.create_task(made.source.token())
        await transport.arrived.wait()
        disk.full = full
        closing = asyncio.create_task(made.source.aclose())
        await iterations()
        made.clock.advance(20)
        await iterations()
        if saved:
            await closing
        else:
            with pytest.raises(StoreUnavailable, match="kept in memory"):
                await closing
        record = await made.store.load(KEY)
        assert (record is not None and b"at-1" in record.data) is saved
        with pytest.raises(TokenUnavailable):
            await waiting

    run(main())
