"""Replies that are lost, grants that are refused, seeds that change, sign-ins and sign-outs."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest
from _rig import LIFE, Rig, asleep, invalid_grant, run, success, turns

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


def lost() -> OutcomeUnknown:
    return OutcomeUnknown("The token request got no whole answer.")


def test_after_a_lost_reply_the_token_is_used_to_its_end_then_one_replay() -> None:
    """The refresh token may be spent: it is left alone while the access token lives."""

    async def scene() -> None:
        rig = Rig(success(1), lost(), success(2))
        await rig.access()
        rig.clock.advance(LIFE - 299)
        await rig.access()
        await rig.landed()
        for _ in range(3):
            rig.clock.advance(60)
            assert await rig.access() == "access-1"
            await rig.landed()
        assert rig.posts == 2
        rig.clock.advance(60)
        assert await rig.access() == "access-2"
        assert rig.posts == 3

    run(scene)


def test_f17_a_second_lost_reply_ends_in_a_request_to_sign_in_and_no_third_attempt() -> None:
    """After a lost reply there is one replay at most, in whatever process; then a clear "Sign in again"."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        rig = Rig(success(1), lost(), lost(), store=store, clock=clock)
        await rig.access()
        clock.advance(LIFE)
        for _ in range(2):
            with pytest.raises(OutcomeUnknown):
                await rig.access()
            clock.advance(60)
        with pytest.raises(GrantLost, match="Sign in again"):
            await rig.access()
        other = Rig(store=store, clock=clock)
        with pytest.raises(GrantLost):
            await other.access()
        assert (rig.posts, other.posts) == (3, 0)

    run(scene)


def test_inside_a_documented_leeway_the_replay_is_immediate() -> None:
    """The provider says that the same refresh token may be sent again: nobody waits for the token to die."""

    async def scene() -> None:
        rig = Rig(success(1), lost(), success(2), leeway=10)
        await rig.access()
        rig.clock.advance(LIFE)
        assert await rig.access() == "access-2"
        assert rig.posts == 3

    run(scene)


def test_where_refresh_tokens_do_not_rotate_a_lost_reply_is_a_passing_trouble() -> None:
    """Tried again after the back-off, as often as it takes."""

    async def scene() -> None:
        rig = Rig(lost(), lost(), lost(), success(1), rotates=False)
        for _ in range(3):
            with pytest.raises(OutcomeUnknown):
                await rig.access()
            rig.clock.advance(30)
        assert await rig.access() == "access-1"

    run(scene)


def test_f17_a_holder_that_was_killed_in_mid_refresh_leaves_one_replay() -> None:
    """The next holder lets things settle, notes what it knows, and sends the refresh token once more."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        killed = await interrupted_claim(store)
        rig = Rig(success(1), store=store, clock=clock)
        caller = asyncio.create_task(rig.access())
        await asleep(clock, 2)  # the settling pause
        assert rig.posts == 0
        clock.advance(2)
        assert await caller == "access-1"
        assert rig.posts == 1
        del killed

    run(scene)


def test_f17_two_holders_killed_one_after_the_other_end_in_a_request_to_sign_in() -> None:
    """The second one killed may have sent the replay: nothing more is sent, and somebody must sign in."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        rig = Rig(lost(), store=store, clock=clock)
        with pytest.raises(OutcomeUnknown):
            await rig.access()
        await interrupted_claim(store)
        clock.advance(60)
        with pytest.raises(GrantLost):
            await rig.access()
        assert rig.posts == 1

    run(scene)


def test_f17_a_refusal_after_a_killed_holder_says_what_may_have_happened() -> None:
    """Else nobody would know why a refresh token that has never been answered is refused."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        await interrupted_claim(store)
        rig = Rig(token_response({"error": "invalid_grant"}, status=400), store=store, clock=clock)
        caller = asyncio.create_task(rig.access())
        await asleep(clock, 2)
        clock.advance(2)
        with pytest.raises(GrantRejected, match=r"invalid_grant.* its process was killed"):
            await caller

    run(scene)


async def interrupted_claim(store: MemoryStore) -> object:
    """A claim whose holder's event loop is gone."""
    seen = await store.load("account")

    async def take() -> object:
        return await store.claim("account", seen=seen.version if seen else None, timeout=1)

    return await asyncio.to_thread(asyncio.run, take())


def test_f20_a_refusal_that_comes_after_somebody_signed_in_changes_nothing() -> None:
    """invalid_grant for a version that has moved on: the newer record is used, and not deleted."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        held = Paused(invalid_grant())
        rig = Rig(success(1), held, store=store, clock=clock)
        other = Rig(success(7), store=store, clock=clock)
        await rig.access()
        clock.advance(LIFE)
        caller = asyncio.create_task(rig.access())
        await held.arrived.wait()
        await other.source.sign_in(refresh_token="brand-new")
        held.release()
        assert await caller == "access-7"
        assert await rig.access() == "access-7"

    run(scene)


@pytest.mark.parametrize("trouble", [invalid_grant, lost], ids=["error_response", "lost"])
def test_f49_trouble_with_an_old_configuration_does_not_undo_the_new_sign_in(trouble: Any) -> None:
    """A refusal or lost reply of the old configuration leaves the record of the new one good."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        new = Rig(success(1), store=store, clock=clock, seed="new-seed")
        old = Rig(trouble(), store=store, clock=clock, seed="old-seed")
        await new.access()
        with pytest.raises((GrantRejected, OutcomeUnknown)):
            await old.access()
        again = Rig(store=store, clock=clock, seed="new-seed")
        assert await again.access() == "access-1"

    run(scene)


def test_f21_the_refusal_of_an_old_configuration_is_remembered_as_well() -> None:
    """However often a process with an old configuration asks, its dead seed is sent once."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        await Rig(success(1), store=store, clock=clock, seed="new-seed").access()
        old = Rig(invalid_grant(), store=store, clock=clock, seed="old-seed")
        for _ in range(5):
            with pytest.raises(GrantRejected):
                await old.access()
            clock.advance(60)
        assert old.posts == 1

    run(scene)


@pytest.mark.parametrize(("began", "pause"), [(0.0, 2.0), (15.0, 2.0), (21.0, 1.0), (22.0, 0.0), (1e6, 0.0)])
def test_the_pause_after_a_killed_holder_lasts_until_its_request_must_be_over(
    began: float, pause: float
) -> None:
    """It may have been killed late in a slow request: what counts is when that would have timed out."""
    assert Rig().source._transaction._orphan_wait(began) == pause


def test_f19_the_same_seed_after_a_restart_uses_what_the_store_has_rotated_since() -> None:
    """After a restart the rotated refresh token is sent, and not the configured one, which is spent."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        await Rig(success(1), store=store, clock=clock).access()
        clock.advance(LIFE)
        rig = Rig(success(2), store=store, clock=clock)
        await rig.access()
        assert "refresh_token=refresh-1" in rig.sent()

    run(scene)


def test_f49_f21_another_seed_in_the_configuration_wins_over_what_is_stored() -> None:
    """An operator who configures another refresh token has signed in: it wins over token and refusal."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        with pytest.raises(GrantRejected):
            await Rig(invalid_grant(), store=store, clock=clock).access()
        rig = Rig(success(5), store=store, clock=clock, seed="another-seed")
        assert await rig.access() == "access-5"
        assert "refresh_token=another-seed" in rig.sent()

    run(scene)


def test_f41_a_sign_out_is_not_undone_by_a_refresh_that_was_under_way() -> None:
    """A refresh that ends after a sign-out resurrects nothing, neither stored nor in memory."""

    async def scene() -> None:
        held = Paused(success(2))
        rig = Rig(success(1), held)
        await rig.access()
        rig.clock.advance(LIFE)
        caller = asyncio.create_task(rig.access())
        await held.arrived.wait()
        await rig.source.sign_out()
        held.release()
        with pytest.raises(SignedOut):
            await caller
        rig.clock.advance(10)
        with pytest.raises(SignedOut):
            await rig.access()
        stored = await rig.stored()
        assert stored is not None
        assert stored.signed_out
        assert stored.token is None

    run(scene)


def test_another_process_stops_when_it_next_looks() -> None:
    """The sign-out is found with the refresh ahead, and the token is dropped although it is good."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        one, other = Rig(success(1), store=store, clock=clock), Rig(store=store, clock=clock)
        await one.access()
        await other.access()
        await one.source.sign_out()
        clock.advance(LIFE - 299)
        await other.access()
        await other.landed()
        with pytest.raises(SignedOut):
            await other.access()
        assert other.posts == 0

    run(scene)


def test_f21_f41_signing_in_again_ends_a_sign_out_and_a_refusal() -> None:
    """A new sign-in, by code or refresh token, clears a remembered refusal and a sign-out, and is stored."""

    async def scene() -> None:
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

    run(scene)


def test_a_sign_in_survives_a_restart_with_the_old_configuration() -> None:
    """What was signed in at run time descends from the configured seed, so the store wins."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        rig = Rig(success(1), store=store, clock=clock)
        await rig.source.sign_in(code="new-code")
        again = Rig(store=store, clock=clock)
        assert await again.access() == "access-1"

    run(scene)


def test_a_sign_in_is_finished_although_its_caller_was_cancelled() -> None:
    """A code works once: its token must not be lost with the web request that brought it."""

    async def scene() -> None:
        held = Paused(success(1))
        rig = Rig(held)
        caller = asyncio.create_task(rig.source.sign_in(code="once"))
        await held.arrived.wait()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        held.release()
        await rig.source.aclose()
        assert await rig.access() == "access-1"
        assert rig.posts == 1

    run(scene)


@pytest.mark.parametrize("wrong", [{}, {"code": "a", "refresh_token": "b"}, {"code": ""}, {"code": " a\n"}])
def test_a_sign_in_with_nonsense_is_refused_before_anything_is_sent(wrong: dict[str, str]) -> None:
    """One of code and refresh_token, without stray white space."""

    async def scene() -> None:
        rig = Rig()
        with pytest.raises(ConfigurationError):
            await rig.source.sign_in(**wrong)
        assert rig.posts == 0

    run(scene)


def test_a_code_without_an_answer_is_sent_once_more_only() -> None:
    """A code is spent by its use, whatever the provider says of its refresh tokens."""

    async def scene() -> None:
        rig = Rig(lost(), lost(), rotates=False)
        rig.provider.credential = Credential("authorization_code", "the-code")
        for expected in (OutcomeUnknown, OutcomeUnknown, GrantLost):
            with pytest.raises(expected):
                await rig.access()
            rig.clock.advance(60)
        assert rig.posts == 2

    run(scene)


def test_f12_a_result_that_comes_late_is_kept_if_nothing_newer_is_there() -> None:
    """Commit compares versions, not claims: a late result is stored unless a newer generation is there."""

    async def scene() -> None:
        store = MemoryStore()
        claim = await store.claim("account", seen=None, timeout=1)
        await claim.abandon()  # type: ignore[union-attr]
        record = await claim.commit(encode(TokenState(configured="late")))  # type: ignore[union-attr]
        assert await store.load("account") == record
        await store.put("account", b"newer")
        with pytest.raises(Superseded):
            await claim.commit(encode(TokenState(configured="later")))  # type: ignore[union-attr]

    run(scene)


def test_a_refresh_that_is_asked_for_gives_a_new_token_although_the_old_one_is_good() -> None:
    """`await source.refresh()`; asked for by many at once it is one request."""

    async def scene() -> None:
        rig = Rig(success(1), success(2))
        await rig.access()
        tokens = await asyncio.gather(*(rig.source.refresh() for _ in range(10)))
        assert {token.access_token for token in tokens} == {"access-2"}
        assert rig.posts == 2
        await turns()

    run(scene)


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
    ids=["no token", "a key twice", "a list", "a form", "XML", "compressed"],
)
def test_a_success_that_cannot_be_read_is_taken_for_a_lost_reply(unreadable: Any) -> None:
    """The provider has rotated: the refresh token is left alone while the access token lives."""

    async def scene() -> None:
        rig = Rig(success(1), token_response(unreadable), success(2))
        await rig.access()
        rig.clock.advance(LIFE - 299)
        await rig.access()
        await rig.landed()
        rig.clock.advance(120)
        assert await rig.access() == "access-1"
        await rig.landed()
        assert rig.posts == 2
        rig.clock.advance(180)
        assert await rig.access() == "access-2"

    run(scene)


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
def test_a_page_in_place_of_a_reply_spends_nothing(page: bytes) -> None:
    """A captive portal says 200 to everything; the provider has seen nothing."""

    async def scene() -> None:
        rig = Rig(*(token_response(page) for _ in range(3)), success(1))
        for _ in range(3):
            with pytest.raises(InvalidTokenResponse):
                await rig.access()
            rig.clock.advance(60)
        assert await rig.access() == "access-1"

    run(scene)


def test_f21_a_refusal_without_words_is_remembered_as_well() -> None:
    """A provider of somebody's own may raise a GrantRejected that says nothing, after a replay too."""

    class Wordless(GrantRejected):
        def __init__(self) -> None:
            self.args, self.code = (), "gone"

        def __str__(self) -> str:
            return "no"

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        await interrupted_claim(store)
        rig = Rig(Wordless(), store=store, clock=clock)
        caller = asyncio.create_task(rig.access())
        await asleep(clock, 2)
        clock.advance(2)
        with pytest.raises(GrantRejected):
            await caller
        grant = await rig.stored()
        assert grant is not None
        assert grant.rejection is not None

    run(scene)


def test_f41_a_sign_out_that_is_asked_for_later_wins_over_a_sign_in_on_its_way() -> None:
    """Whoever asked last is right: a sign-in on its way when somebody signs out ends in SignedOut."""

    async def scene() -> None:
        held = Paused(success(2))
        rig = Rig(success(1), held)
        await rig.access()
        signing_in = asyncio.create_task(rig.source.sign_in(code="slow"))
        await held.arrived.wait()
        await rig.source.sign_out()
        held.release()
        with pytest.raises(SignedOut):
            await signing_in
        with pytest.raises(SignedOut):
            await rig.access()

    run(scene)


def test_a_refresh_that_ends_during_a_sign_in_gives_way_to_it() -> None:
    """The new grant replaces the rotated old one."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        held = Paused(success(9))
        one = Rig(success(1), success(2), store=store, clock=clock)
        other = Rig(held, store=store, clock=clock)
        await one.access()
        signing_in = asyncio.create_task(other.source.sign_in(code="new"))
        await held.arrived.wait()
        await one.source.refresh()
        held.release()
        assert (await signing_in).access_token == "access-9"
        stored = await other.stored()
        assert stored is not None
        assert stored.token is not None
        assert stored.token.access_token == "access-9"

    run(scene)


def test_two_who_bring_the_same_code_share_one_sign_in() -> None:
    """A double click: a code that is sent twice revokes what it has brought."""

    async def scene() -> None:
        held = Paused(success(1))
        rig = Rig(held)
        both = [asyncio.create_task(rig.source.sign_in(code="once")) for _ in range(2)]
        await held.arrived.wait()
        held.release()
        assert {token.access_token for token in await asyncio.gather(*both)} == {"access-1"}
        assert rig.posts == 1

    run(scene)


def test_a_sign_in_that_fails_unheard_is_told_in_an_event() -> None:
    """Its caller was cancelled; somebody should know all the same."""

    async def scene() -> None:
        held = Paused(invalid_grant())
        rig = Rig(held)
        caller = asyncio.create_task(rig.source.sign_in(code="wrong"))
        await held.arrived.wait()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        held.release()
        await rig.source.aclose()
        assert isinstance(rig.events[-1], RefreshFailed)

    run(scene)


def test_f49_a_process_that_has_had_a_token_adopts_a_newer_sign_in_under_another_seed() -> None:
    """While a deployment rolls, the old process takes the new sign-in, and sends its spent seed no more."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        old = Rig(success(1), store=store, clock=clock, seed="old-seed")
        await old.access()
        new = Rig(success(2), store=store, clock=clock, seed="new-seed")
        await new.access()
        clock.advance(LIFE - 299)
        await old.access()
        await old.landed()
        assert await old.access() == "access-2"
        assert old.posts == 1

    run(scene)


def test_f17_whatever_a_foreign_endpoint_raises_may_have_spent_the_refresh_token() -> None:
    """An endpoint of somebody's that raises what it may not has sent who knows what: one replay at most."""

    async def scene() -> None:
        rig = Rig(ConnectionResetError("by peer"), KeyError("status"), success(3))
        for _ in range(2):
            with pytest.raises(OutcomeUnknown, match="unexpectedly"):
                await rig.access()
            rig.clock.advance(1)
        with pytest.raises(GrantLost):
            await rig.access()
        assert rig.posts == 2

    run(scene)
