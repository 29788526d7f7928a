"""The limit of token requests in an hour: servers ban addresses and lock accounts."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from _moments import refused
from _rig import LIFETIME, Rig, run, success

from tokensession import Policy, RateLimited, TokenSessionError, TokenUnavailable
from tokensession.events import RequestLimitReached
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, token_response

HOUR = 3600
FEW = Policy(retry_within=0, requests_per_hour=10)


class Server:
    """Answers every token request, and notes when it came."""

    def __init__(self, clock: FakeClock, lifetime: float = LIFETIME) -> None:
        self.clock = clock
        self.lifetime = lifetime
        self.moments: list[float] = []

    def __call__(self, _request: TokenRequest) -> TokenResponse:
        self.moments.append(self.clock.boot())
        return success(len(self.moments), expires_in=self.lifetime)

    def most_in_an_hour(self) -> int:
        """The most token requests in any hour."""
        return max(sum(0 <= each - start < HOUR for each in self.moments) for start in self.moments)


def limits(rig: Rig) -> list[RequestLimitReached]:
    """The events that say that the limit was reached."""
    return [event for event in rig.events if isinstance(event, RequestLimitReached)]


@pytest.mark.parametrize("processes", [1, 3])
def test_callers_who_refresh_all_the_time_make_no_more_than_300_requests_an_hour(processes: int) -> None:
    """The count is in the store, so any number of processes share the limit."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        server = Server(clock)
        rigs = [Rig(*[server] * 1000, store=store, clock=clock) for _ in range(processes)]
        for _ in range(HOUR // 3):
            for rig in rigs:
                with contextlib.suppress(RateLimited):
                    await rig.source.refresh()
            clock.advance(5)
        assert 200 <= server.most_in_an_hour() <= 300
        assert all(limits(rig) for rig in rigs)

    run(main)


def test_the_limit_is_an_event_and_an_error_that_say_what_to_do() -> None:
    """Callers still get the token that is valid. Without one, they get a rate limit and when it ends."""

    async def main() -> None:
        clock = FakeClock()
        rig = Rig(*[Server(clock)] * 50, clock=clock, policy=FEW)
        await rig.access()
        for _ in range(20):
            with contextlib.suppress(RateLimited):
                await rig.source.refresh()
        caught = await refused(RateLimited, rig.source.refresh(), match=r"More than 10 .* within an hour")
        assert "requests_per_hour" in str(caught)
        event = limits(rig)[0]
        assert (event.key, event.limit, event.seconds) == ("account", 10, caught.retry_after)
        served = await rig.access()
        assert served == f"access-{rig.token_requests}"
        assert caught.retry_after is not None
        clock.advance(caught.retry_after)
        await rig.source.refresh()
        assert await rig.access() != served

    run(main)


def test_the_limit_that_lasts_is_reported_once_and_not_each_second() -> None:
    """It is logged as an error, and would fill the log for an hour."""

    async def main() -> None:
        clock = FakeClock()
        rig = Rig(*[Server(clock)] * 50, clock=clock, policy=FEW)
        await rig.access()
        for _ in range(600):
            with contextlib.suppress(RateLimited):
                await rig.source.refresh()
            clock.advance(1)
        assert 1 <= len(limits(rig)) <= 3

    run(main)


def test_requests_that_fail_count_too() -> None:
    """A server that refuses each request is asked no more often than the limit says, by any process."""

    async def main() -> None:
        requests = 0
        for _ in range(HOUR // 10):  # a service that is restarted every ten seconds
            rig = Rig(token_response(b"", status=500), policy=FEW)
            await refused(TokenUnavailable, rig.access())
            requests += rig.token_requests
            rig.clock.advance(10)
        assert 5 <= requests <= 10

    run(main)


def test_the_limit_ends_by_itself() -> None:
    """A token is there again as soon as the limit permits a request."""

    async def main() -> None:
        clock = FakeClock()
        server = Server(clock)
        rig = Rig(*[server] * 500, clock=clock, policy=FEW)
        for _ in range(30):
            with contextlib.suppress(TokenSessionError):
                await rig.source.refresh()
        clock.advance(LIFETIME)
        assert await rig.access() == f"access-{rig.token_requests}"

    run(main)


@pytest.mark.parametrize("lifetime", [2, 5, 30, 60])
def test_a_short_lived_token_gets_as_many_requests_as_it_needs(lifetime: float) -> None:
    """The limit is against loops, and not against a server with short lifetimes."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        server = Server(clock, lifetime)
        rigs = [Rig(*[server] * 4000, store=store, clock=clock) for _ in range(2)]
        for _ in range(HOUR):
            await asyncio.gather(*(rig.access() for rig in rigs))
            clock.advance(1)
        assert [limits(rig) for rig in rigs] == [[], []]
        assert len(server.moments) >= HOUR / lifetime - 1

    run(main)


def test_a_short_lived_token_is_limited_too_if_it_is_refreshed_without_need() -> None:
    """A loop of refreshes makes no more than eight requests for each lifetime."""

    async def main() -> None:
        clock = FakeClock()
        server = Server(clock, 30)
        rig = Rig(*[server] * 8000, clock=clock)
        for _ in range(HOUR):
            with contextlib.suppress(RateLimited):
                await rig.source.refresh()
            clock.advance(1)
        assert server.most_in_an_hour() <= 8 * HOUR / 30
        assert limits(rig)

    run(main)


def test_a_sign_in_is_not_limited() -> None:
    """A person is waiting, and a sign-in is no loop."""

    async def main() -> None:
        clock = FakeClock()
        server = Server(clock)
        rig = Rig(*[server] * 50, clock=clock, policy=FEW)
        for _ in range(20):
            with contextlib.suppress(RateLimited):
                await rig.source.refresh()
        before = len(server.moments)
        await rig.source.sign_in(refresh_token="of-a-person")
        assert len(server.moments) == before + 1
        assert await rig.access() == f"access-{before + 1}"

    run(main)
