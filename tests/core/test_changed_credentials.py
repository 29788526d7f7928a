"""Which credential counts: after a sign-in, a sign-out, a restart, and with another configuration."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from _moments import beside, holding, wait_in_vain_for_the_claim
from _rig import LIFETIME, Rig, begun, expired, invalid_grant, limited, run, success
from _scripted_store import fail, scripted

from tokensession import (
    ConfigurationError,
    GrantRejected,
    OutcomeUnknown,
    Policy,
    RateLimited,
    SignedOut,
    SignInRequired,
    TokenUnavailable,
)
from tokensession.events import SignInFailed
from tokensession.providers.protocol import TokenResponse
from tokensession.testing import Paused, token_response

WITHOUT_THE_CLAIM = Policy(retry_within=0, sign_in_wait=0)
"""A sign-in goes on at once while a running request holds the claim."""


def test_f20_a_rejection_that_arrives_after_a_sign_in_changes_nothing() -> None:
    """After invalid_grant for an older version, the newer record is used and not deleted."""

    async def main() -> None:
        rig = await expired()
        paused, caller = await rig.in_flight(invalid_grant())
        await rig.peer(success(7), policy=WITHOUT_THE_CLAIM).source.sign_in(code="brand-new")
        paused.release()
        assert [await caller, await rig.access()] == ["access-7"] * 2

    run(main)


@pytest.mark.parametrize(
    "failure", [invalid_grant(), OutcomeUnknown("no whole answer")], ids=["rejected", "lost"]
)
def test_f21_f49_a_failure_of_an_old_configuration_does_not_undo_the_new_sign_in(failure: Any) -> None:
    """The record of the new one stays valid. However often the old one is asked for, it is rejected once."""

    async def main() -> None:
        new = Rig(success(1), configured="new-credential")
        await new.access()
        old = new.peer(*[failure] * 5, configured="old-credential")
        for _ in range(5):
            with pytest.raises((GrantRejected, OutcomeUnknown)):
                await old.access()
            new.clock.advance(60)
        if isinstance(failure, TokenResponse):
            assert old.token_requests == 1
        assert await new.peer(configured="new-credential").access() == "access-1"

    run(main)


def test_f21_f49_a_sign_in_after_a_rejection_counts_although_no_one_could_note_the_rejection() -> None:
    """The process that met it remembers it, and goes on with the newer sign-in."""

    async def main() -> None:
        new, store, _ = scripted(success(1), success(2), configured="new-credential")
        await new.access()
        old = new.peer(invalid_grant(), configured="old-credential")
        store.steps["commit"] = fail
        with pytest.raises(GrantRejected):
            await old.access()
        del store.steps["commit"]
        await new.source.sign_in(code="brand-new")
        new.clock.advance(60)
        assert await old.access() == "access-2"

    run(main)


@pytest.mark.parametrize("way", ["sign_in", "configured"])
def test_f23_f49_a_pause_of_an_old_configuration_outlives_another_lineage(way: str) -> None:
    """The server has asked for 30 s, and a sign-in with another credential says nothing about that."""

    async def main() -> None:
        new = Rig(success(1), success(2), configured="new-credential")
        await new.access()
        old = new.peer(limited(30), success(5), configured="old-credential")
        with pytest.raises(RateLimited):
            await old.access()
        if way == "sign_in":
            await new.source.sign_in(code="brand-new")
        else:
            await new.peer(success(3), configured="third-credential").access()
        new.clock.advance(2)
        with pytest.raises(RateLimited):
            await old.access()
        assert old.token_requests == 1
        new.clock.advance(28)
        assert await old.access() == "access-5"

    run(main)


def test_f49_f21_a_new_configured_credential_wins_over_the_stored_state() -> None:
    """Configuring another refresh token is a sign-in, so it wins over the stored token and rejection."""

    async def main() -> None:
        rejected = Rig(invalid_grant())
        with pytest.raises(GrantRejected):
            await rejected.access()
        rig = rejected.peer(success(5), configured="another-credential")
        assert await rig.access() == "access-5"
        assert "refresh_token=another-credential" in rig.sent()

    run(main)


@pytest.mark.parametrize("running", ["refresh", "sign-in"])
def test_f41_a_sign_out_is_not_undone_by_a_running_refresh_or_sign_in(running: str) -> None:
    """The last call wins: what ends after a sign-out stores no token and serves none."""

    async def main() -> None:
        rig = await expired()
        work = rig.access() if running == "refresh" else rig.source.sign_in(code="new-code")
        paused, caller = await rig.in_flight(success(2), work)
        await rig.source.sign_out()
        paused.release()
        with pytest.raises(SignedOut):
            await caller
        rig.clock.advance(10)
        with pytest.raises(SignedOut):
            await rig.access()
        state = await rig.state()
        assert (state.signed_out, state.token) == (True, None)

    run(main)


def test_another_process_notices_a_sign_out_when_it_next_looks() -> None:
    """Its background refresh finds the sign-out, and the token is dropped although it is valid."""

    async def main() -> None:
        one = Rig(success(1))
        other = one.peer()
        assert await one.access() == await other.access()
        await one.source.sign_out()
        await other.refresh_when_due()
        with pytest.raises(SignedOut):
            await other.access()
        assert other.token_requests == 0

    run(main)


def test_f21_f41_signing_in_again_ends_a_sign_out_and_a_rejection() -> None:
    """A new sign-in, by code or refresh token, clears a rejection and a sign-out, and is stored."""

    async def main() -> None:
        rig = Rig(invalid_grant(), success(1), success(2))
        with pytest.raises(GrantRejected):
            await rig.access()
        assert (await rig.source.sign_in(code="new-code")).access_token == "access-1"
        assert "grant_type=authorization_code&code=new-code" in rig.sent()
        assert await rig.peer().access() == "access-1", "a restart with the old configuration"
        await rig.source.sign_out()
        await rig.source.sign_in(refresh_token="newer")
        assert await rig.access() == "access-2"
        token = (await rig.state()).token
        assert token is not None
        assert token.refresh_token == "refresh-2"

    run(main)


@pytest.mark.parametrize("answer", [success(1), invalid_grant()], ids=["a token", "a rejection"])
def test_a_sign_in_finishes_although_its_caller_is_cancelled(answer: TokenResponse) -> None:
    """A code works once, so its token must not be lost with the web request. A failure is an event."""

    async def main() -> None:
        rig = Rig()
        paused, caller = await rig.in_flight(answer, rig.source.sign_in(code="once"))
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        paused.release()
        await rig.source.aclose()
        if answer.status == 200:
            assert await rig.access() == "access-1"
        else:
            assert isinstance(rig.events[-1], SignInFailed)
        assert rig.token_requests == 1

    run(main)


@pytest.mark.parametrize(
    "arguments", [{}, {"code": "a", "refresh_token": "b"}, {"code": ""}, {"code": " a\n"}]
)
def test_a_sign_in_with_invalid_arguments_sends_nothing(arguments: dict[str, str]) -> None:
    """It takes exactly one of code and refresh_token, without surrounding white space."""

    async def main() -> None:
        rig = Rig()
        with pytest.raises(ConfigurationError):
            await rig.source.sign_in(**arguments)
        assert rig.token_requests == 0

    run(main)


def test_a_sign_in_replaces_the_token_of_a_refresh_that_ends_during_it() -> None:
    """The refresh holds the claim, so the sign-in does without. It replaces the rotated old sign-in."""

    async def main() -> None:
        one = Rig(success(1))
        other = one.peer(policy=WITHOUT_THE_CLAIM)
        await one.access()
        refreshing, refresh = await one.in_flight(success(2), one.source.refresh())
        signing, signing_in = await other.in_flight(success(9), other.source.sign_in(code="new"))
        refreshing.release()
        assert (await refresh).access_token == "access-2"
        signing.release()
        assert (await signing_in).access_token == "access-9"
        assert await other.stored_access() == "access-9"
        await one.refresh_when_due()
        assert await one.access() == "access-9"

    run(main)


def test_a_refresh_waits_for_a_sign_in_and_adopts_its_token() -> None:
    """A sign-in holds the claim, so that nothing is redeemed beside it."""

    async def main() -> None:
        one = Rig(success(1))
        other = one.peer()
        await one.access()
        signing, signing_in = await other.in_flight(success(9), other.source.sign_in(code="new"))
        refresh = await begun(one.source.refresh())
        signing.release()
        assert (await refresh).access_token == (await signing_in).access_token == "access-9"
        assert one.token_requests == 1

    run(main)


def test_two_sign_ins_with_the_same_code_share_one_token_request() -> None:
    """After a double click, sending the code twice would revoke its token."""

    async def main() -> None:
        rig = Rig()
        second = asyncio.create_task(rig.source.sign_in(code="once"))
        paused, first = await rig.in_flight(success(1), rig.source.sign_in(code="once"))
        paused.release()
        assert (await first).access_token == (await second).access_token == "access-1"
        assert rig.token_requests == 1

    run(main)


def test_a_code_that_another_process_has_noted_is_not_sent_after_our_commit_over_its_note() -> None:
    """The note came while our refresh was on its way. Its process may be dead, and its request arrived."""

    async def main() -> None:
        rig = await holding(age=LIFETIME)
        answer, caller = await rig.in_flight(success(2))
        sent = Paused(success(3))
        other = beside(rig, sent)
        signing_in = await begun(other.source.sign_in(code="new"))
        await wait_in_vain_for_the_claim(rig.clock)
        await sent.arrived.wait()
        answer.release()
        await caller
        before = rig.token_requests
        with pytest.raises(SignInRequired, match="redeemed already"):
            await rig.source.sign_in(code="new")
        assert rig.token_requests == before
        signing_in.cancel()

    run(main)


def test_a_process_remembers_the_codes_that_it_has_sent_although_the_record_is_lost() -> None:
    """The first answer was lost, and the repetition was rejected: the code is spent."""

    async def main() -> None:
        rig = Rig(token_response(b"", 502), invalid_grant(), configured=None)
        with pytest.raises(GrantRejected):
            await rig.source.sign_in(code="once")
        await rig.store.delete("account")
        with pytest.raises(SignInRequired, match="redeemed already"):
            await rig.source.sign_in(code="once")
        assert rig.token_requests == 2

    run(main)


def test_a_code_that_the_server_has_not_redeemed_may_be_sent_again() -> None:
    async def main() -> None:
        rig = Rig(token_response(b"", 503), success(1), configured=None)
        with pytest.raises(TokenUnavailable):
            await rig.source.sign_in(code="once")
        rig.clock.advance(60)
        assert (await rig.source.sign_in(code="once")).access_token == "access-1"

    run(main)
