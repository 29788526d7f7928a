"""Which credential counts: after a sign-in, a sign-out, a restart, and with another configuration."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, success

from tokensession import ConfigurationError, GrantRejected, OutcomeUnknown, Policy, SignedOut
from tokensession.events import SignInFailed
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, Paused


def lost_response() -> OutcomeUnknown:
    return OutcomeUnknown("The token request got no whole answer.")


def test_f20_a_rejection_that_arrives_after_a_sign_in_changes_nothing() -> None:
    """After invalid_grant for an older version, the newer record is used and not deleted."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        paused = Paused(invalid_grant())
        rig = Rig(success(1), paused, store=store, clock=clock)
        at_once = Policy(retry_within=0, sign_in_wait=0)  # the running request holds the claim
        other = Rig(success(7), store=store, clock=clock, policy=at_once)
        await rig.access()
        clock.advance(LIFETIME)
        caller = asyncio.create_task(rig.access())
        await paused.arrived.wait()
        await other.source.sign_in(code="brand-new")
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
    """The refresh holds the claim, so the sign-in does without. It replaces the rotated old sign-in."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        refreshing, signing = Paused(success(2)), Paused(success(9))
        at_once = Policy(retry_within=0, sign_in_wait=0)
        one = Rig(success(1), refreshing, store=store, clock=clock)
        other = Rig(signing, store=store, clock=clock, policy=at_once)
        await one.access()
        refresh = asyncio.create_task(one.source.refresh())
        await refreshing.arrived.wait()
        signing_in = asyncio.create_task(other.source.sign_in(code="new"))
        await signing.arrived.wait()
        refreshing.release()
        assert (await refresh).access_token == "access-2"
        signing.release()
        assert (await signing_in).access_token == "access-9"
        assert await other.stored_access() == "access-9"
        clock.advance(LIFETIME - 299)
        await one.access()
        await one.refreshed()
        assert await one.access() == "access-9"

    run(main)


def test_a_refresh_waits_for_a_sign_in_and_adopts_its_token() -> None:
    """A sign-in holds the claim, so that nothing is redeemed beside it."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        signing = Paused(success(9))
        one, other = Rig(success(1), store=store, clock=clock), Rig(signing, store=store, clock=clock)
        await one.access()
        signing_in = asyncio.create_task(other.source.sign_in(code="new"))
        await signing.arrived.wait()
        refresh = asyncio.create_task(one.source.refresh())
        await let_tasks_run()
        signing.release()
        assert (await refresh).access_token == (await signing_in).access_token == "access-9"
        assert one.token_requests == 1

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
        assert isinstance(rig.events[-1], SignInFailed)

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
