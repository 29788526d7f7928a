"""A refresh, a sign-in and a sign-out in the coordinator, one at a time. The races are in tests/core."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from _loop import iterations, run

from tokensession import ManagedSource, Policy
from tokensession.errors import StoreUnavailable
from tokensession.events import Event
from tokensession.providers import OAuth2
from tokensession.providers.protocol import TokenResponse
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import ANY, AnyVersion, Record
from tokensession.testing import FakeClock, Paused, ScriptedTransport, token_response


class FullDisk(MemoryStore):
    """Its next write fails if it is `full`."""

    full = False

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        if self.full:
            self.full = False
            raise StoreUnavailable("The disk is full.")
        return await super().put(key, data, expect=expect)


class Made:
    """A source with a scripted transport, and all that it works with. Callers get the first failure."""

    def __init__(self, *script: Any, beside: Made | None = None) -> None:
        self.clock = beside.clock if beside else FakeClock()
        self.disk = beside.disk if beside else FullDisk(clock=self.clock)
        self.transport = ScriptedTransport(*script)
        self.events: list[Event] = []
        self.source = ManagedSource(
            OAuth2(
                token_url="https://id.example.com/token",
                client_id="client-1",
                client_secret="secret",
                refresh_token="rt-0",
            ),
            self.transport,
            store=self.disk,
            key="account",
            policy=Policy(retry_within=0),
            clock=self.clock,
            observer=self.events.append,
        )

    def reported(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    async def idle(self) -> None:
        """Wait until no refresh is running."""
        while self.source.snapshot().refreshing:
            await asyncio.sleep(0)


def good(number: int) -> TokenResponse:
    """A response with the token `at-N` and the refresh token `rt-N`."""
    return token_response(
        {"access_token": f"at-{number}", "refresh_token": f"rt-{number}", "expires_in": 3600}
    )


def test_mutant_29_an_adopted_token_may_be_refreshed_at_once() -> None:
    """It may be due already. Only a token request has to be followed by a pause."""

    async def main() -> None:
        one = Made(good(1))
        await one.source.token()
        other = Made(good(2), beside=one)
        one.clock.advance(3400)
        await other.source.token()
        await other.idle()
        assert other.reported()[:2] == ["RefreshStarted", "Adopted"], "it is due"
        assert (await other.source.token()).access_token == "at-1"
        await other.idle()
        assert other.transport.sent == 1, "in the same second"
        assert (await other.source.token()).access_token == "at-2"

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


def test_mutant_5_after_a_sign_out_that_could_not_be_stored_the_token_is_served_as_before() -> None:
    """Another process would not know of it, so it has not happened."""

    async def main() -> None:
        made = Made(good(1))
        await made.source.token()
        made.disk.full = True
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
