"""A 401 on a token that looked good: judged by which token was rejected."""

from __future__ import annotations

import asyncio

from _rig import LIFE, Rig, run, success

from tokensession.events import TokenUnauthorized


def test_f32_a_hundred_rejections_of_one_token_cause_one_refresh() -> None:
    """A hundred 401s on one token that looks valid share one refresh, those that come late included."""

    async def scene() -> None:
        rig = Rig(success(1), success(2))
        token = await rig.source.token()
        fresh = await asyncio.gather(*(rig.source.refresh(token) for _ in range(100)))
        late = await rig.source.refresh(token)
        assert {t.access_token for t in [*fresh, late]} == {"access-2"}
        assert rig.posts == 2
        assert sum(isinstance(event, TokenUnauthorized) for event in rig.events) == 1

    run(scene)


def test_f33_an_api_that_simply_says_no_causes_no_refresh_per_request() -> None:
    """A 401 on the token that a 401 has just brought forces nothing more: the same token comes back."""

    async def scene() -> None:
        rig = Rig(success(1), success(2))
        first = await rig.source.token()
        second = await rig.source.refresh(first)
        for _ in range(100):
            assert await rig.source.refresh(second) == second
        assert rig.posts == 2

    run(scene)


def test_f33_an_api_that_goes_on_saying_no_is_tried_ever_more_rarely() -> None:
    """An hour of 401s, one every ten seconds, causes a handful of refreshes."""

    async def scene() -> None:
        rig = Rig(*(success(number, life=100_000) for number in range(1, 20)))
        token = await rig.source.token()
        for _ in range(360):
            rig.clock.advance(10)
            token = await rig.source.refresh(token)
        assert 3 <= rig.posts <= 9

    run(scene)


def test_tokens_that_die_early_but_work_meanwhile_are_replaced_each_time() -> None:
    """A server that states no life at all: every ten minutes a 401, every ten minutes a new token."""

    async def scene() -> None:
        rig = Rig(*(success(number, life=None) for number in range(1, 50)))
        token = await rig.source.token()
        for number in range(2, 49):
            rig.clock.advance(600)
            token = await rig.source.refresh(token)
            assert token.access_token == f"access-{number}"

    run(scene)


def test_f32_a_rejected_token_that_the_store_has_already_replaced_costs_no_request() -> None:
    """A 401 on a token that another process has replaced meanwhile is answered from the store."""

    async def scene() -> None:
        one = Rig(success(1), success(2))
        other = Rig(store=one.store, clock=one.clock)
        token = await one.source.token()
        await other.access()
        await one.source.refresh(token)
        assert (await other.source.refresh(token)).access_token == "access-2"
        assert other.posts == 0

    run(scene)


def test_f32_a_rejection_of_a_token_that_is_no_longer_served_is_no_news() -> None:
    """A 401 is judged by the token that was rejected: if another is served by now, that one is used."""

    async def scene() -> None:
        rig = Rig(success(1), success(2))
        old = await rig.source.token()
        rig.clock.advance(LIFE)
        await rig.access()
        assert (await rig.source.refresh(old)).access_token == "access-2"
        assert rig.posts == 2

    run(scene)


def test_a_rejection_that_a_starting_process_meets_is_answered_by_a_request() -> None:
    """It finds the rejected token in the store, which is no help, and asks for another."""

    async def scene() -> None:
        one = Rig(success(1))
        token = await one.source.token()
        other = Rig(success(2), store=one.store, clock=one.clock)
        assert (await other.source.refresh(token)).access_token == "access-2"

    run(scene)
