"""Lost responses, rejected credentials, changed configurations, sign-ins and sign-outs."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, success, until_sleeping

from tokensession import (
    ConfigurationError,
    GrantLost,
    GrantRejected,
    InvalidTokenResponse,
    OutcomeUnknown,
    SignedOut,
)
from tokensession._refresh.state import TokenState, encode
from tokensession.errors import Superseded
from tokensession.events import RefreshFailed
from tokensession.providers.protocol import Credential
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, Paused, token_response


def lost_response() -> OutcomeUnknown:
    return OutcomeUnknown("The token request got no whole answer.")


def test_after_a_lost_response_the_token_is_used_to_its_end_then_one_replay() -> None:
    """The refresh token may be spent, so it is not sent while the access token is valid."""

    async def main() -> None:
        rig = Rig(success(1), lost_response(), success(2))
        await rig.access()
        rig.clock.advance(LIFETIME - 299)
        await rig.access()
        await rig.refreshed()
        for _ in range(3):
            rig.clock.advance(60)
            assert await rig.access() == "access-1"
            await rig.refreshed()
        assert rig.token_requests == 2
        rig.clock.advance(60)
        assert await rig.access() == "access-2"
        assert rig.token_requests == 3

    run(main)


def test_f17_after_a_second_lost_response_the_error_says_to_sign_in_again() -> None:
    """After a lost response there is at most one replay, in any process, and no third attempt."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        rig = Rig(success(1), lost_response(), lost_response(), store=store, clock=clock)
        await rig.access()
        clock.advance(LIFETIME)
        for _ in range(2):
            with pytest.raises(OutcomeUnknown):
                await rig.access()
            clock.advance(60)
        with pytest.raises(GrantLost, match="Sign in again"):
            await rig.access()
        other = Rig(store=store, clock=clock)
        with pytest.raises(GrantLost):
            await other.access()
        assert (rig.token_requests, other.token_requests) == (3, 0)

    run(main)


def test_inside_a_documented_leeway_the_replay_is_immediate() -> None:
    """The provider permits sending the same refresh token again, so the caller gets a token at once."""

    async def main() -> None:
        rig = Rig(success(1), lost_response(), success(2), leeway=10)
        await rig.access()
        rig.clock.advance(LIFETIME)
        assert await rig.access() == "access-2"
        assert rig.token_requests == 3

    run(main)


def test_without_rotation_a_lost_response_is_retried() -> None:
    """It is retried after each back-off, as often as necessary."""

    async def main() -> None:
        rig = Rig(lost_response(), lost_response(), lost_response(), success(1), rotates=False)
        for _ in range(3):
            with pytest.raises(OutcomeUnknown):
                await rig.access()
            rig.clock.advance(30)
        assert await rig.access() == "access-1"

    run(main)


def test_f17_a_holder_killed_during_a_refresh_leaves_one_replay() -> None:
    """The next holder waits for `orphan_wait`, notes what it knows, and sends the refresh token once more."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        killed_claim = await interrupted_claim(store)
        rig = Rig(success(1), store=store, clock=clock)
        caller = asyncio.create_task(rig.access())
        await until_sleeping(clock, 2)  # orphan_wait
        assert rig.token_requests == 0
        clock.advance(2)
        assert await caller == "access-1"
        assert rig.token_requests == 1
        del killed_claim

    run(main)


def test_f17_after_two_killed_holders_the_error_says_to_sign_in_again() -> None:
    """The second one may have sent the replay, so nothing more is sent."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        rig = Rig(lost_response(), store=store, clock=clock)
        with pytest.raises(OutcomeUnknown):
            await rig.access()
        await interrupted_claim(store)
        clock.advance(60)
        with pytest.raises(GrantLost):
            await rig.access()
        assert rig.token_requests == 1

    run(main)


def test_f17_a_rejection_after_a_killed_holder_says_what_may_have_happened() -> None:
    """The error says that the killed process may have spent the refresh token."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        await interrupted_claim(store)
        rig = Rig(token_response({"error": "invalid_grant"}, status=400), store=store, clock=clock)
        caller = asyncio.create_task(rig.access())
        await until_sleeping(clock, 2)
        clock.advance(2)
        with pytest.raises(GrantRejected, match=r"invalid_grant.* its process was killed"):
            await caller

    run(main)


async def interrupted_claim(store: MemoryStore) -> object:
    """A claim whose holder's event loop is gone."""
    seen = await store.load("account")

    async def take() -> object:
        return await store.claim("account", seen=seen.version if seen else None, timeout=1)

    return await asyncio.to_thread(asyncio.run, take())


def test_f20_a_rejection_that_arrives_after_a_sign_in_changes_nothing() -> None:
    """After invalid_grant for an older version, the newer record is used and not deleted."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        paused = Paused(invalid_grant())
        rig = Rig(success(1), paused, store=store, clock=clock)
        other = Rig(success(7), store=store, clock=clock)
        await rig.access()
        clock.advance(LIFETIME)
        caller = asyncio.create_task(rig.access())
        await paused.arrived.wait()
        await other.source.sign_in(refresh_token="brand-new")
        paused.release()
        assert await caller == "access-7"
        assert await rig.access() == "access-7"

    run(main)


@pytest.mark.parametrize("failure", [invalid_grant, lost_response], ids=["rejected", "lost"])
def test_f49_a_failure_of_an_old_configuration_does_not_undo_the_new_sign_in(failure: Any) -> None:
    """A rejection or lost response of the old credential leaves the record of the new one valid."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        new = Rig(success(1), store=store, clock=clock, configured="new-credential")
        old = Rig(failure(), store=store, clock=clock, configured="old-credential")
        await new.access()
        with pytest.raises((GrantRejected, OutcomeUnknown)):
            await old.access()
        again = Rig(store=store, clock=clock, configured="new-credential")
        assert await again.access() == "access-1"

    run(main)


def test_f21_the_rejection_of_an_old_configuration_is_remembered() -> None:
    """However often a process with an old configuration asks, its rejected credential is sent once."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        await Rig(success(1), store=store, clock=clock, configured="new-credential").access()
        old = Rig(invalid_grant(), store=store, clock=clock, configured="old-credential")
        for _ in range(5):
            with pytest.raises(GrantRejected):
                await old.access()
            clock.advance(60)
        assert old.token_requests == 1

    run(main)


@pytest.mark.parametrize(("began", "pause"), [(0.0, 2.0), (15.0, 2.0), (21.0, 1.0), (22.0, 0.0), (1e6, 0.0)])
def test_the_pause_after_a_killed_holder_lasts_until_its_request_must_be_over(
    began: float, pause: float
) -> None:
    """It may have been killed late in a slow request, so the end of that request's time-out counts."""
    assert Rig().source._transaction._orphan_wait(began) == pause


def test_f19_after_a_restart_the_rotated_refresh_token_is_used() -> None:
    """The stored refresh token is sent, and not the configured one, which is spent."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        await Rig(success(1), store=store, clock=clock).access()
        clock.advance(LIFETIME)
        rig = Rig(success(2), store=store, clock=clock)
        await rig.access()
        assert "refresh_token=refresh-1" in rig.sent()

    run(main)


def test_f49_f21_a_new_configured_credential_wins_over_the_stored_state() -> None:
    """Configuring another refresh token is a sign-in, so it wins over the stored token and rejection."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        with pytest.raises(GrantRejected):
            await Rig(invalid_grant(), store=store, clock=clock).access()
        rig = Rig(success(5), store=store, clock=clock, configured="another-credential")
        assert await rig.access() == "access-5"
        assert "refresh_token=another-credential" in rig.sent()

    run(main)


def test_f41_a_sign_out_is_not_undone_by_a_running_refresh() -> None:
    """A refresh that ends after a sign-out stores no token and serves none."""

    async def main() -> None:
        paused = Paused(success(2))
        rig = Rig(success(1), paused)
        await rig.access()
        rig.clock.advance(LIFETIME)
        caller = asyncio.create_task(rig.access())
        await paused.arrived.wait()
        await rig.source.sign_out()
        paused.release()
        with pytest.raises(SignedOut):
            await caller
        rig.clock.advance(10)
        with pytest.raises(SignedOut):
            await rig.access()
        stored = await rig.stored()
        assert stored is not None
        assert stored.signed_out
        assert stored.token is None

    run(main)


def test_another_process_notices_a_sign_out_when_it_next_looks() -> None:
    """Its background refresh finds the sign-out, and the token is dropped although it is valid."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        one, other = Rig(success(1), store=store, clock=clock), Rig(store=store, clock=clock)
        await one.access()
        await other.access()
        await one.source.sign_out()
        clock.advance(LIFETIME - 299)
        await other.access()
        await other.refreshed()
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
        await rig.source.sign_out()
        await rig.source.sign_in(refresh_token="newer")
        assert await rig.access() == "access-2"
        stored = await rig.stored()
        assert stored is not None
        assert stored.token is not None
        assert stored.token.refresh_token == "refresh-2"

    run(main)


def test_a_sign_in_survives_a_restart_with_the_old_configuration() -> None:
    """The sign-in descends from the configured credential, so the stored state wins."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        rig = Rig(success(1), store=store, clock=clock)
        await rig.source.sign_in(code="new-code")
        again = Rig(store=store, clock=clock)
        assert await again.access() == "access-1"

    run(main)


def test_a_sign_in_finishes_although_its_caller_is_cancelled() -> None:
    """A code works once, so its token must not be lost with the web request that brought the code."""

    async def main() -> None:
        paused = Paused(success(1))
        rig = Rig(paused)
        caller = asyncio.create_task(rig.source.sign_in(code="once"))
        await paused.arrived.wait()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        paused.release()
        await rig.source.aclose()
        assert await rig.access() == "access-1"
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


def test_a_code_that_got_no_response_is_sent_once_more() -> None:
    """A code is spent by its use, even where refresh tokens do not rotate."""

    async def main() -> None:
        rig = Rig(lost_response(), lost_response(), rotates=False)
        rig.provider.credential = Credential("authorization_code", "the-code")
        for expected in (OutcomeUnknown, OutcomeUnknown, GrantLost):
            with pytest.raises(expected):
                await rig.access()
            rig.clock.advance(60)
        assert rig.token_requests == 2

    run(main)


def test_f12_a_late_commit_is_stored_if_nothing_newer_is() -> None:
    """A commit compares versions, not claims: a late result is stored unless a newer generation is there."""

    async def main() -> None:
        store = MemoryStore()
        claim = await store.claim("account", seen=None, timeout=1)
        await claim.abandon()  # type: ignore[union-attr]
        record = await claim.commit(encode(TokenState(configured="late")))  # type: ignore[union-attr]
        assert await store.load("account") == record
        await store.put("account", b"newer")
        with pytest.raises(Superseded):
            await claim.commit(encode(TokenState(configured="later")))  # type: ignore[union-attr]

    run(main)


def test_a_forced_refresh_returns_a_new_token_although_the_old_one_is_valid() -> None:
    """Many calls of `source.refresh()` at once share one token request."""

    async def main() -> None:
        rig = Rig(success(1), success(2))
        await rig.access()
        tokens = await asyncio.gather(*(rig.source.refresh() for _ in range(10)))
        assert {token.access_token for token in tokens} == {"access-2"}
        assert rig.token_requests == 2
        await let_tasks_run()

    run(main)


@pytest.mark.parametrize(
    "unreadable",
    [
        {"token_type": "Bearer"},
        b'{"access_token": "a", "access_token": "b"}',
        b'["access_token", "a"]',
        b"access_token=a&expires_in=3600",
        b"<OAuth><access_token>a</access_token></OAuth>",
        gzip.compress(b'{"access_token": "a"}'),
    ],
    ids=["no token", "a repeated key", "a list", "a form", "XML", "compressed"],
)
def test_an_unreadable_success_is_treated_as_a_lost_response(unreadable: Any) -> None:
    """The provider has rotated, so the refresh token is not sent while the access token is valid."""

    async def main() -> None:
        rig = Rig(success(1), token_response(unreadable), success(2))
        await rig.access()
        rig.clock.advance(LIFETIME - 299)
        await rig.access()
        await rig.refreshed()
        rig.clock.advance(120)
        assert await rig.access() == "access-1"
        await rig.refreshed()
        assert rig.token_requests == 2
        rig.clock.advance(180)
        assert await rig.access() == "access-2"

    run(main)


@pytest.mark.parametrize(
    "page",
    [
        b"<html>Please log in</html>",
        b"\n<!-- portal --><HTML>",
        b'<?xml version="1.0"?><!DOCTYPE html>',
        b"\xef\xbb\xbf<!doctype html>",
        "<html>Please log in</html>".encode("utf-16"),
    ],
    ids=["html", "a comment first", "XHTML", "a byte order mark first", "UTF-16"],
)
def test_an_html_page_instead_of_a_token_response_spends_nothing(page: bytes) -> None:
    """A captive portal answers 200 to everything, and the provider has seen no request."""

    async def main() -> None:
        rig = Rig(*(token_response(page) for _ in range(3)), success(1))
        for _ in range(3):
            with pytest.raises(InvalidTokenResponse):
                await rig.access()
            rig.clock.advance(60)
        assert await rig.access() == "access-1"

    run(main)


def test_f21_a_rejection_without_a_message_is_remembered() -> None:
    """A provider of your own may raise a GrantRejected without a message, after a replay too."""

    class Silent(GrantRejected):
        def __init__(self) -> None:
            self.args, self.code = (), "gone"

        def __str__(self) -> str:
            return "no"

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        await interrupted_claim(store)
        rig = Rig(Silent(), store=store, clock=clock)
        caller = asyncio.create_task(rig.access())
        await until_sleeping(clock, 2)
        clock.advance(2)
        with pytest.raises(GrantRejected):
            await caller
        state = await rig.stored()
        assert state is not None
        assert state.rejection is not None

    run(main)


def test_f41_a_later_sign_out_wins_over_a_running_sign_in() -> None:
    """The last call wins: a sign-in that is running when you sign out ends in SignedOut."""

    async def main() -> None:
        paused = Paused(success(2))
        rig = Rig(success(1), paused)
        await rig.access()
        signing_in = asyncio.create_task(rig.source.sign_in(code="new-code"))
        await paused.arrived.wait()
        await rig.source.sign_out()
        paused.release()
        with pytest.raises(SignedOut):
            await signing_in
        with pytest.raises(SignedOut):
            await rig.access()

    run(main)


def test_a_sign_in_replaces_the_token_of_a_refresh_that_ends_during_it() -> None:
    """The new sign-in replaces the rotated old one."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        paused = Paused(success(9))
        one = Rig(success(1), success(2), store=store, clock=clock)
        other = Rig(paused, store=store, clock=clock)
        await one.access()
        signing_in = asyncio.create_task(other.source.sign_in(code="new"))
        await paused.arrived.wait()
        await one.source.refresh()
        paused.release()
        assert (await signing_in).access_token == "access-9"
        stored = await other.stored()
        assert stored is not None
        assert stored.token is not None
        assert stored.token.access_token == "access-9"

    run(main)


def test_two_sign_ins_with_the_same_code_share_one_token_request() -> None:
    """After a double click, sending the code twice would revoke its token."""

    async def main() -> None:
        paused = Paused(success(1))
        rig = Rig(paused)
        both = [asyncio.create_task(rig.source.sign_in(code="once")) for _ in range(2)]
        await paused.arrived.wait()
        paused.release()
        assert {token.access_token for token in await asyncio.gather(*both)} == {"access-1"}
        assert rig.token_requests == 1

    run(main)


def test_a_sign_in_that_fails_after_its_caller_was_cancelled_is_an_event() -> None:
    """No caller is left to get the error."""

    async def main() -> None:
        paused = Paused(invalid_grant())
        rig = Rig(paused)
        caller = asyncio.create_task(rig.source.sign_in(code="invalid"))
        await paused.arrived.wait()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        paused.release()
        await rig.source.aclose()
        assert isinstance(rig.events[-1], RefreshFailed)

    run(main)


def test_f49_a_process_with_the_old_configuration_adopts_the_token_of_the_new_one() -> None:
    """During a rolling deployment the old process adopts it, and sends its spent credential no more."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        old = Rig(success(1), store=store, clock=clock, configured="old-credential")
        await old.access()
        new = Rig(success(2), store=store, clock=clock, configured="new-credential")
        await new.access()
        clock.advance(LIFETIME - 299)
        await old.access()
        await old.refreshed()
        assert await old.access() == "access-2"
        assert old.token_requests == 1

    run(main)


def test_f17_any_unexpected_error_of_a_transport_may_have_spent_the_refresh_token() -> None:
    """Such an error says nothing about what was sent, so there is at most one replay."""

    async def main() -> None:
        rig = Rig(ConnectionResetError("by peer"), KeyError("status"), success(3))
        for _ in range(2):
            with pytest.raises(OutcomeUnknown, match="unexpectedly"):
                await rig.access()
            rig.clock.advance(1)
        with pytest.raises(GrantLost):
            await rig.access()
        assert rig.token_requests == 2

    run(main)
