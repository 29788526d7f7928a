"""The limit of token requests in an hour: servers ban addresses and lock accounts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from _moments import beside, keep_failing, refused
from _rig import LIFETIME, Rig, run, success

from tokensession import Policy, RateLimited, TokenUnavailable
from tokensession.events import RequestLimitReached
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, token_response

HOUR = 3600
FEW = Policy(retry_within=0, requests_per_hour=10)


class Server:
    """Answers every token request of its processes, which share a store, and notes when it came."""

    def __init__(self, lifetime: float = LIFETIME) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)
        self.lifetime = lifetime
        self.moments: list[float] = []

    def __call__(self, _request: TokenRequest) -> TokenResponse:
        self.moments.append(self.clock.boot())
        return success(len(self.moments), expires_in=self.lifetime)

    def process(self, **options: Any) -> Rig:
        """One more process."""
        return Rig(*[self] * 8000, store=self.store, clock=self.clock, **options)

    def most_in_an_hour(self) -> int:
        """The most token requests in any hour."""
        return max(sum(0 <= each - start < HOUR for each in self.moments) for start in self.moments)


def limits(rig: Rig) -> list[RequestLimitReached]:
    """The events that say that the limit was reached."""
    return [event for event in rig.events if isinstance(event, RequestLimitReached)]


async def refresh(*rigs: Rig, times: int, pause: float = 0) -> None:
    """Each process asks for a new token so often, with pauses. The limit may refuse it."""
    for _ in range(times):
        for rig in rigs:
            with contextlib.suppress(RateLimited):
                await rig.source.refresh()
        rigs[0].clock.advance(pause)


@pytest.mark.parametrize("processes", [1, 3])
def test_callers_who_refresh_all_the_time_make_no_more_than_300_requests_an_hour(processes: int) -> None:
    """The count is in the store, so any number of processes share the limit."""

    async def main() -> None:
        server = Server()
        rigs = [server.process() for _ in range(processes)]
        await refresh(*rigs, times=HOUR // 3, pause=5)
        assert 200 <= server.most_in_an_hour() <= 300
        assert all(limits(rig) for rig in rigs)

    run(main)


def test_the_limit_is_an_event_and_an_error_that_say_what_to_do() -> None:
    """Callers still get the token that is valid. Without one, they get a rate limit and when it ends."""

    async def main() -> None:
        rig = Server().process(policy=FEW)
        await rig.access()
        await refresh(rig, times=20)
        error = await refused(RateLimited, rig.source.refresh(), match="More than 10 .* within an hour")
        assert "requests_per_hour" in str(error)
        event = limits(rig)[0]
        assert (event.key, event.limit, event.seconds) == ("account", 10, error.retry_after)
        served = await rig.access()
        assert served == f"access-{rig.token_requests}"
        assert error.retry_after is not None
        rig.clock.advance(error.retry_after)
        await rig.source.refresh()
        assert await rig.access() != served
        await refresh(rig, times=20)
        rig.clock.advance(LIFETIME)
        assert await rig.access() == f"access-{rig.token_requests}"

    run(main)


def test_the_limit_that_lasts_is_reported_once_and_not_each_second() -> None:
    """It is logged as an error, and would fill the log for an hour."""

    async def main() -> None:
        rig = Server().process(policy=FEW)
        await rig.access()
        await refresh(rig, times=600, pause=1)
        assert 1 <= len(limits(rig)) <= 3

    run(main)


def test_requests_that_fail_count_too() -> None:
    """A server that refuses each request is asked no more often than the limit says, by any process."""

    async def main() -> None:
        rig = Rig(*[token_response(b"", status=500)] * 20, policy=FEW)
        for _ in range(HOUR // 10):  # a service that is restarted every ten seconds
            rig = beside(rig, transport=rig.transport, policy=FEW)
            await keep_failing(TokenUnavailable, rig, pause=10)
        assert 5 <= rig.token_requests <= 10

    run(main)


@pytest.mark.parametrize("lifetime", [2, 5, 30, 60])
def test_a_short_lived_token_gets_as_many_requests_as_it_needs(lifetime: float) -> None:
    """The limit is against loops, and not against a server with short lifetimes."""

    async def main() -> None:
        server = Server(lifetime)
        rigs = [server.process() for _ in range(2)]
        for _ in range(HOUR):
            await asyncio.gather(*(rig.access() for rig in rigs))
            server.clock.advance(1)
        assert [limits(rig) for rig in rigs] == [[], []]
        assert len(server.moments) >= HOUR / lifetime - 1

    run(main)


def test_a_short_lived_token_is_limited_too_if_it_is_refreshed_without_need() -> None:
    """A loop of refreshes makes no more than eight requests for each lifetime."""

    async def main() -> None:
        server = Server(30)
        rig = server.process()
        await refresh(rig, times=HOUR, pause=1)
        assert server.most_in_an_hour() <= 8 * HOUR / 30
        assert limits(rig)

    run(main)


def test_a_sign_in_is_not_limited() -> None:
    """A person is waiting, and a sign-in is no loop."""

    async def main() -> None:
        rig = Server().process(policy=FEW)
        await refresh(rig, times=20)
        before = rig.token_requests
        await rig.source.sign_in(refresh_token="of-a-person")
        assert rig.token_requests == before + 1
        assert await rig.access() == f"access-{before + 1}"

    run(main)
