"""A 401 for a token that looked valid. What happens depends on which token was unauthorized."""

from __future__ import annotations

import asyncio

import pytest
from _moments import beside, holding, processes, refused, requests_of
from _rig import LIFETIME, Rig, let_tasks_run, run, success

from tokensession import NotSent, OutcomeUnknown
from tokensession.events import Adopted, RefreshHeld, TokenUnauthorized
from tokensession.testing import token_response


def test_f32_a_hundred_401s_for_one_token_cause_one_refresh() -> None:
    """A 401 that arrives after the refresh, or after the next one, gets the token that is served by then."""

    async def main() -> None:
        rig = await holding(success(2), success(3))
        token = await rig.source.token()
        tokens = await asyncio.gather(*(rig.source.refresh(token) for _ in range(100)))
        late = await rig.source.refresh(token)
        assert {t.access_token for t in [*tokens, late]} == {"access-2"}
        assert rig.token_requests == 2
        assert sum(isinstance(event, TokenUnauthorized) for event in rig.events) == 1
        rig.clock.advance(LIFETIME)
        assert await rig.access() == "access-3"
        assert (await rig.source.refresh(token)).access_token == "access-3"
        assert rig.token_requests == 3

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


def test_a_401_in_a_process_that_has_just_started_causes_a_token_request() -> None:
    """The store has only the unauthorized token."""

    async def main() -> None:
        one = await holding()
        other = beside(one, success(2))
        assert (await other.source.refresh(await one.source.token())).access_token == "access-2"

    run(main)


@pytest.mark.parametrize("count", [1, 4])
def test_f33_ten_minutes_of_401s_cost_six_requests_with_one_process_or_four(count: int) -> None:
    """The pace is in the store: the processes share it, and a token that is adopted inherits it."""

    async def main() -> None:
        rigs = processes(count, *(success(number) for number in range(1, 20)))
        tokens = await asyncio.gather(*(rig.source.token() for rig in rigs))
        for _ in range(600):
            rigs[0].clock.advance(1)
            tokens = await asyncio.gather(
                *(rig.source.refresh(token) for rig, token in zip(rigs, tokens, strict=True))
            )
        assert requests_of(rigs) == 6

    run(main)


def test_f33_a_process_that_restarts_keeps_to_the_pace() -> None:
    """A service that is restarted after each 401 causes no more token requests than one that runs on."""

    async def main() -> None:
        rig = Rig(*(success(number) for number in range(1, 100)))
        for _ in range(60):
            rig = beside(rig, transport=rig.transport)
            await rig.source.refresh(await rig.source.token())
            rig.clock.advance(10)
        assert rig.token_requests == 6

    run(main)


def test_f33_a_token_that_has_served_for_a_while_ends_the_pacing() -> None:
    """After an API that was in trouble, the next 401 is believed at once."""

    async def main() -> None:
        rig = Rig(*(success(number) for number in range(1, 7)))
        token = await rig.source.token()
        for number, pause in enumerate((0, 30, 60, 240, 30), 2):  # 240 s are twice the spacing by then
            rig.clock.advance(pause)
            token = await rig.source.refresh(token)
            assert token.access_token == f"access-{number}"
        rig.clock.advance(29)
        assert await rig.source.refresh(token) == token

    run(main)


def test_f32_a_newer_token_is_adopted_although_requests_are_paced() -> None:
    """A server that ends the old token at each refresh: a process looks at the store after every 401."""

    async def main() -> None:
        one = await holding(success(2), success(3))
        other = beside(one)
        first = await other.source.token()
        second = await one.source.refresh(first)
        assert second.access_token == "access-2"
        assert await other.source.refresh(first) == second
        await one.source.refresh()  # a moment later, for a reason of its own
        assert (await other.source.refresh(second)).access_token == "access-3"
        assert other.token_requests == 0
        assert isinstance(other.events[-1], Adopted)

    run(main)


def test_f33_an_api_that_rejects_every_token_causes_no_refresh_and_no_look_for_each_401() -> None:
    """A thousand 401s on a token that a 401 has brought: it is returned again, with one event."""

    async def main() -> None:
        rig = await holding(success(2))
        token = await rig.source.refresh(await rig.source.token())
        for _ in range(10):
            tokens = await asyncio.gather(*(rig.source.refresh(token) for _ in range(100)))
            assert set(tokens) == {token}
        assert rig.token_requests == 2
        held = [event for event in rig.events if isinstance(event, RefreshHeld)]
        assert [event.token for event in held] == [token.fingerprint]

    run(main)


def test_a_401_on_a_token_with_another_end_but_the_same_bytes_needs_other_bytes() -> None:
    """After a 401, a higher generation with the same bytes does not help, so a request is made (rule 15)."""

    async def main() -> None:
        same = token_response({"access_token": "the-same", "token_type": "Bearer", "expires_in": LIFETIME})
        one = Rig(same, same, rotates=False)
        await one.access()
        other = beside(one, success(7), rotates=False)
        token = await other.source.token()
        one.clock.advance(60)
        await one.source.refresh()
        assert (await other.source.refresh(token)).access_token == "access-7"

    run(main)


def test_after_a_401_a_lost_answer_does_not_hold_back_the_next_request() -> None:
    """The access token is dead already, so waiting for its end would protect nothing."""

    async def main() -> None:
        rig = Rig(success(1), OutcomeUnknown("got no answer"), success(2))
        token = await rig.source.token()
        await refused(OutcomeUnknown, rig.source.refresh(token))
        rig.clock.advance(2)
        assert (await rig.source.refresh(token)).access_token == "access-2"
        assert rig.token_requests == 3

    run(main)


def test_a_401_while_the_token_server_is_down_is_answered_after_each_pause() -> None:
    """The caller gets the failure, and each pause ends in one token request, however many ask."""

    async def main() -> None:
        rig = await holding(*[NotSent("no route")] * 50)
        token = await rig.source.token()
        for _ in range(60):
            await refused(NotSent, *(rig.source.refresh(token) for _ in range(5)))
            rig.clock.advance(1)
        await let_tasks_run()
        assert 2 <= rig.token_requests <= 40  # 300 calls

    run(main)
