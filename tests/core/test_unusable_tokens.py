"""A response that brings a token which cannot be used: what it brought is stored first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from _moments import (
    beside,
    holding,
    keep_failing,
    let_pass,
    processes,
    refresh_token_in,
    refresh_tokens,
    refused,
    requests_of,
    state_in,
)
from _rig import LIFETIME, Rig, invalid_grant, run, success
from _scripted_store import fail, scripted

from tokensession import GrantRejected, InvalidTokenResponse, RateLimited, TokenSessionError
from tokensession.events import RefreshFailed, SaveFailed
from tokensession.providers.protocol import TokenResponse
from tokensession.testing import token_response


def unusable(number: int, **wrong: Any) -> TokenResponse:
    """A 2xx with `access-N` and `refresh-N`, and something wrong with it."""
    document = {
        "access_token": f"access-{number}",
        "refresh_token": f"refresh-{number}",
        "expires_in": LIFETIME,
    }
    return token_response(document | (wrong or {"token_type": "bot"}))


WRONG = pytest.mark.parametrize(
    "wrong",
    [
        {"token_type": "BearerToken"},
        {"token_type": "bot"},
        {"token_type": ["Bearer"]},
        {"error": "deprecated_client"},
        {"error": "temporarily_unavailable"},
        {"error": {"code": 0}},
        {"success": False},
        {"access_token": "with a blank"},
        {"access_token": 5},
        {"access_token": None},
    ],
    ids=str,
)


@WRONG
def test_f59_k07_the_new_refresh_token_is_stored_and_the_spent_one_is_never_sent_again(
    wrong: dict[str, Any],
) -> None:
    """The error names what is wrong, and the next request brings the new refresh token."""

    async def main() -> None:
        rig = await holding(unusable(2, **wrong), success(3), age=LIFETIME)
        error = await refused(InvalidTokenResponse, rig.access(), match="answered 200")
        assert error.granted
        assert await refresh_token_in(rig) == "refresh-2"
        assert (await state_in(rig)).servable is None
        rig.clock.advance(LIFETIME)
        restarted = beside(rig, transport=rig.transport)
        assert await restarted.access() == "access-3"
        assert refresh_tokens(rig) == ["configured-token", "refresh-1", "refresh-2"]

    run(main)


@WRONG
def test_f59_no_process_serves_it(wrong: dict[str, Any]) -> None:
    """All of them get the error, and together they make at most one request a minute."""

    async def main() -> None:
        rigs = processes(3, *(unusable(number, **wrong) for number in range(1, 20)))
        await keep_failing(TokenSessionError, *rigs, times=60, pause=1)
        assert requests_of(rigs) <= 2

    run(main)


def test_f59_k07_an_unusable_token_with_a_lifetime_causes_no_request_until_it_ends() -> None:
    """The server would answer the same again. A person has to look at it, and the error is repeated."""

    async def main() -> None:
        rigs = processes(2, unusable(1), success(2))
        await keep_failing(InvalidTokenResponse, *rigs, times=59, pause=60, match="not a bearer token")
        assert requests_of(rigs) == 1
        rigs[0].clock.advance(60)
        assert await rigs[0].access() == "access-2"

    run(main)


def test_f59_a_server_that_always_answers_so_is_asked_less_and_less_often() -> None:
    """Its complaint may be over soon, and each request spends the newest refresh token."""

    async def main() -> None:
        rig = Rig(*(unusable(number, error="deprecated_client") for number in range(1, 100)))
        await keep_failing(TokenSessionError, rig, times=6 * 60, pause=60)
        assert 5 <= rig.token_requests <= 12
        newest = [f"refresh-{number}" for number in range(1, rig.token_requests)]
        assert refresh_tokens(rig) == ["configured-token", *newest]

    run(main)


def test_f59_a_token_that_is_still_valid_is_used_to_its_end() -> None:
    """The new one cannot be used, and the old one still can."""

    async def main() -> None:
        rig = await holding(unusable(2), success(3), age=LIFETIME - 299)
        assert await rig.access() == "access-1"
        await rig.refreshed()
        rig.clock.advance(200)
        assert await rig.access() == "access-1"
        rig.clock.advance(99)
        await refused(InvalidTokenResponse, rig.access())
        assert isinstance(rig.events[-1], RefreshFailed)
        assert rig.token_requests == 2

    run(main)


@pytest.mark.parametrize(("way", "sent"), [("force", "refresh-1"), ("sign in", "of-a-person")])
def test_f59_a_forced_refresh_or_a_sign_in_replaces_it(way: str, sent: str) -> None:
    """After the server, or the strategy, was corrected: the new refresh token is sent, or a person's."""

    async def main() -> None:
        rig = Rig(unusable(1), success(2))
        await refused(InvalidTokenResponse, rig.access())
        await (rig.source.refresh(force=True) if way == "force" else rig.source.sign_in(refresh_token=sent))
        assert await rig.access() == "access-2"
        assert refresh_tokens(rig) == ["configured-token", sent]

    run(main)


def test_f59_the_refresh_token_before_it_is_kept_until_the_new_one_has_worked() -> None:
    """A response that is wrong may have brought a wrong refresh token too: then the one before may work."""

    async def main() -> None:
        rig = await holding(unusable(2, error="odd"), invalid_grant(), success(3), age=LIFETIME)
        while rig.transport.left:
            try:
                assert await rig.access() == "access-3"
            except TokenSessionError:
                rig.clock.advance(60)
        assert refresh_tokens(rig) == ["configured-token", "refresh-1", "refresh-2", "refresh-1"]
        assert (await state_in(rig)).previous is None

    run(main)


def test_f59_if_the_refresh_token_before_it_is_rejected_too_a_person_has_to_sign_in() -> None:
    """Each of the two was sent once since, and neither is sent again."""

    async def main() -> None:
        rig = await holding(unusable(2, error="odd"), invalid_grant(), invalid_grant(), age=LIFETIME)
        await keep_failing(TokenSessionError, rig, times=100, pause=60)
        await refused(GrantRejected, rig.access())
        assert refresh_tokens(rig) == ["configured-token", "refresh-1", "refresh-2", "refresh-1"]

    run(main)


@pytest.mark.parametrize(
    ("error", "kind"), [("invalid_grant", GrantRejected), ("slow_down", RateLimited)], ids=str
)
def test_f59_a_known_refusal_in_a_2xx_brings_no_token(error: str, kind: type[TokenSessionError]) -> None:
    """It is judged as what it says, and what stands beside it is not stored."""

    async def main() -> None:
        rig = Rig(unusable(1, error=error), success(2))
        await refused(kind, rig.access())
        assert (await state_in(rig)).token is None
        rig.clock.advance(60)
        if kind is RateLimited:
            assert await rig.access() == "access-2"
        else:
            await refused(kind, rig.access())

    run(main)


def test_f59_what_cannot_be_stored_is_not_lost_with_the_error() -> None:
    """The store fails as well: the new refresh token is kept in memory, and stored later."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), unusable(2, error="odd"), success(3))
        await rig.access()
        clock.advance(LIFETIME)
        store.steps["commit"] = store.steps["put"] = fail
        await refused(InvalidTokenResponse, rig.access())
        assert rig.source.snapshot().unsaved
        assert any(isinstance(event, SaveFailed) for event in rig.events)
        store.steps.clear()
        await keep_failing(TokenSessionError, rig, times=1, pause=60)
        assert await rig.access() == "access-3"
        assert refresh_tokens(rig) == ["configured-token", "refresh-1", "refresh-2"]

    run(main)


def test_f59_a_sign_in_with_a_code_stores_what_it_brought() -> None:
    """The code is spent, and the refresh token beside the unusable token is its only result."""

    async def main() -> None:
        rig = Rig(unusable(1, error="odd"), success(2), configured=None)
        await refused(InvalidTokenResponse, rig.source.sign_in(code="once"))
        rig.clock.advance(60)
        assert await rig.access() == "access-2"
        assert "refresh_token=refresh-1" in rig.sent()

    run(main)


def test_f59_callers_at_once_share_the_error_and_the_one_request() -> None:
    async def main() -> None:
        rigs = processes(3, unusable(1))
        calls = [rig.access() for rig in rigs for _ in range(100)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in errors} == {InvalidTokenResponse}
        assert requests_of(rigs) == 1

    run(main)


def test_f59_a_token_that_cannot_be_used_and_is_stored_late_ends_no_valid_one() -> None:
    """Callers get the token before it to its end, as if it had been stored at once."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), unusable(2))
        await rig.access()
        store.steps["commit"] = fail
        await rig.refresh_when_due()
        store.steps.clear()
        while rig.source.snapshot().unsaved:
            await let_pass(clock, 1)
        assert await refresh_token_in(rig) == "refresh-2"
        assert await rig.access() == "access-1"

    run(main)
