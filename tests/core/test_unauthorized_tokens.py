"""A 401 for a token that looked valid. What happens depends on which token was unauthorized."""

from __future__ import annotations

import asyncio

from _rig import LIFETIME, Rig, run, success

from tokensession.events import TokenUnauthorized


def test_f32_a_hundred_401s_for_one_token_cause_one_refresh() -> None:
    """A 401 that arrives after the refresh shares its token too."""

    async def main() -> None:
        rig = Rig(success(1), success(2))
        token = await rig.source.token()
        tokens = await asyncio.gather(*(rig.source.refresh(token) for _ in range(100)))
        late = await rig.source.refresh(token)
        assert {t.access_token for t in [*tokens, late]} == {"access-2"}
        assert rig.token_requests == 2
        assert sum(isinstance(event, TokenUnauthorized) for event in rig.events) == 1

    run(main)


def test_f33_an_api_that_rejects_every_token_causes_no_refresh_per_request() -> None:
    """If a token is the result of a 401, another 401 forces no refresh: you get the same token back."""

    async def main() -> None:
        rig = Rig(success(1), success(2))
        first = await rig.source.token()
        second = await rig.source.refresh(first)
        for _ in range(100):
            assert await rig.source.refresh(second) == second
        assert rig.token_requests == 2

    run(main)


def test_f33_an_api_that_keeps_answering_401_causes_fewer_and_fewer_refreshes() -> None:
    """An hour of 401s, one every ten seconds, causes a handful of refreshes."""

    async def main() -> None:
        rig = Rig(*(success(number, expires_in=100_000) for number in range(1, 20)))
        token = await rig.source.token()
        for _ in range(360):
            rig.clock.advance(10)
            token = await rig.source.refresh(token)
        assert 3 <= rig.token_requests <= 9

    run(main)


def test_tokens_that_are_revoked_early_are_replaced_each_time() -> None:
    """A server that states no lifetime: every ten minutes a 401, every ten minutes a new token."""

    async def main() -> None:
        rig = Rig(*(success(number, expires_in=None) for number in range(1, 50)))
        token = await rig.source.token()
        for number in range(2, 49):
            rig.clock.advance(600)
            token = await rig.source.refresh(token)
            assert token.access_token == f"access-{number}"

    run(main)


def test_f32_an_unauthorized_token_that_the_store_has_replaced_costs_no_request() -> None:
    """After a 401, a newer token that another process has stored is used."""

    async def main() -> None:
        one = Rig(success(1), success(2))
        other = Rig(store=one.store, clock=one.clock)
        token = await one.source.token()
        await other.access()
        await one.source.refresh(token)
        assert (await other.source.refresh(token)).access_token == "access-2"
        assert other.token_requests == 0

    run(main)


def test_f32_a_401_for_a_token_that_is_no_longer_served_causes_no_refresh() -> None:
    """You get the newer token that is served by now."""

    async def main() -> None:
        rig = Rig(success(1), success(2))
        old = await rig.source.token()
        rig.clock.advance(LIFETIME)
        await rig.access()
        assert (await rig.source.refresh(old)).access_token == "access-2"
        assert rig.token_requests == 2

    run(main)


def test_a_401_in_a_process_that_has_just_started_causes_a_token_request() -> None:
    """The store has only the unauthorized token."""

    async def main() -> None:
        one = Rig(success(1))
        token = await one.source.token()
        other = Rig(success(2), store=one.store, clock=one.clock)
        assert (await other.source.refresh(token)).access_token == "access-2"

    run(main)
