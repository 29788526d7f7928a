"""A sign-out is stored first, and then the token is revoked where there is an endpoint (RFC 7009)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import pytest
from _moments import beside, holding, let_pass, refused, under_way, wait_in_vain_for_the_claim
from _rig import LIFETIME, Rig, begun, failed_after, invalid_grant, let_tasks_run, run, success, took
from _scripted_store import Gate, ScriptedStore, fail

from tokensession import NotSent, OutcomeUnknown, Policy, SignedOut, StoreUnavailable, events
from tokensession.providers import Credential, OAuth2, Strategy, StrategyProvider
from tokensession.testing import FakeClock, Paused, ScriptedTransport, token_response


def provider(**changes: Any) -> OAuth2:
    settings: dict[str, Any] = {
        "token_url": "https://id.example.com/token",
        "revocation_url": "https://id.example.com/revoke?x=1",
        "client_id": "client",
        "client_secret": "client-secret",
        "refresh_token": "configured-token",
    }
    return OAuth2(**settings | changes)


def sent(rig: Rig) -> dict[str, str]:
    return dict(parse_qsl(rig.sent()))


DONE = token_response(b"", 200)


class Crowded(ScriptedTransport):
    """A transport whose connections are all in use, until the gate opens."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    async def reserve(self, _url: str) -> Callable[[], None]:
        await self._gate()
        return lambda: None


def test_the_tombstone_is_stored_before_the_refresh_token_is_revoked() -> None:
    async def main() -> None:
        paused = Paused(DONE)
        rig = Rig(success(1), paused, provider=provider())
        await rig.access()
        ending = asyncio.create_task(rig.source.sign_out())
        await paused.arrived.wait()
        assert (await rig.state()).signed_out
        await refused(SignedOut, rig.access())
        assert rig.transport.requests[-1].url == "https://id.example.com/revoke?x=1"
        assert sent(rig) == {"token": "refresh-1", "token_type_hint": "refresh_token"}
        assert "Authorization" in dict(rig.transport.requests[-1].headers)
        paused.release()
        await ending
        kinds = [type(each) for each in rig.events]
        assert kinds.index(events.SignOutStored) < kinds.index(events.Revoked)

    run(main)


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        (token_response({"error": "unsupported_token_type"}, 400), "TokenUnavailable", "answered 400"),
        (token_response(b"refresh-1 is odd", 503), "TokenUnavailable", "answered 503"),
        (NotSent("No connection."), "NotSent", "No connection"),
        (RuntimeError("bug"), "TokenUnavailable", "RuntimeError"),
    ],
)
def test_a_revocation_that_fails_is_an_event_and_undoes_nothing(line: Any, error: str, says: str) -> None:
    async def main() -> None:
        rig = Rig(success(1), line, provider=provider())
        await rig.access()
        await rig.source.sign_out()
        (failed,) = [each for each in rig.events if isinstance(each, events.RevocationFailed)]
        assert failed.error == error
        assert says in failed.message
        assert "refresh-1" not in failed.message
        await refused(SignedOut, rig.access())

    run(main)


def test_without_a_refresh_token_the_access_token_is_revoked() -> None:
    async def main() -> None:
        rig = Rig(success(1, refresh=None), DONE, provider=provider(code="co-1", refresh_token=None))
        await rig.access()
        await rig.source.sign_out()
        assert sent(rig) == {"token": "access-1", "token_type_hint": "access_token"}

    run(main)


def test_a_client_that_authenticates_by_its_strategys_fields_does_so_to_revoke() -> None:
    """RFC 7009, 2.1: with the names of the standard, whatever they are in token requests."""

    async def main() -> None:
        names = ("grant_type", "client_id", "client_secret", "refresh_token")
        strategy = Strategy(name="acme", grants={"refresh_token": names}, rename={"client_id": "appId"})
        own = StrategyProvider(
            strategy,
            identity="x",
            base_url="https://id.example.com",
            token_url="https://id.example.com/token",
            values={"client_id": "client", "client_secret": "client-secret"},
            credential=Credential("refresh_token", "configured-token"),
            revocation_url="https://id.example.com/revoke",
        )
        rig = Rig(success(1), DONE, provider=own)
        await rig.access()
        assert "appId=client" in rig.sent()
        await rig.source.sign_out()
        client = {"client_id": "client", "client_secret": "client-secret"}
        assert sent(rig) == {"token": "refresh-1", "token_type_hint": "refresh_token", **client}

    run(main)


def test_without_an_endpoint_or_a_token_nothing_is_sent() -> None:
    async def main() -> None:
        rig = Rig(success(1), provider=provider(revocation_url=None))
        await rig.access()
        await rig.source.sign_out()
        assert rig.token_requests == 1
        empty = Rig(provider=provider())
        await empty.source.sign_out()
        assert empty.token_requests == 0

    run(main)


def test_a_process_that_has_just_started_revokes_what_is_stored() -> None:
    async def main() -> None:
        rig = Rig(success(1), provider=provider())
        await rig.access()
        other = beside(rig, DONE, provider=provider())
        await other.source.sign_out()
        assert sent(other)["token"] == "refresh-1"

    run(main)


def test_another_providers_token_under_the_same_key_is_never_sent() -> None:
    async def main() -> None:
        rig = Rig(success(1), provider=provider(client_id="another"))
        await rig.access()
        other = beside(rig, provider=provider())
        await other.source.sign_out()
        assert other.token_requests == 0
        assert (await rig.state()).signed_out

    run(main)


def test_a_sign_out_that_cannot_be_stored_revokes_nothing() -> None:
    async def main() -> None:
        store = ScriptedStore()
        rig = Rig(success(1), provider=provider(), store=store)
        await rig.access()
        store.steps["put"] = fail
        await refused(StoreUnavailable, rig.source.sign_out())
        assert rig.token_requests == 1

    run(main)


def revoked(rig: Rig) -> list[str]:
    """The tokens that this process has revoked, in order."""
    sent = [dict(parse_qsl(rig.sent(index))) for index in range(rig.token_requests)]
    return [form["token"] for form in sent if "token" in form]


def warned(rig: Rig) -> list[str]:
    """What was reported about tokens that are not revoked."""
    return [each.message for each in rig.events if isinstance(each, events.RevocationFailed)]


async def until_revoked(rig: Rig, *tokens: str) -> None:
    while rig.source._coordinator._tasks.running:
        await let_tasks_run()
    assert revoked(rig) == list(tokens)


def test_a_refresh_that_ends_after_another_process_signed_out_revokes_its_new_token() -> None:
    async def main() -> None:
        rig = await holding(age=LIFETIME, provider=provider())
        paused, caller = await rig.in_flight(success(2))
        other = beside(rig, DONE, provider=provider())
        await other.source.sign_out()
        assert revoked(other) == ["refresh-1"]
        rig.transport.script(DONE)
        paused.release()
        await refused(SignedOut, caller)
        await until_revoked(rig, "refresh-2")
        assert any(isinstance(each, events.Revoked) for each in rig.events)
        assert (await rig.state()).signed_out

    run(main)


def test_the_answer_to_a_request_is_revoked_that_was_on_its_way_when_this_process_signed_out() -> None:
    """Its callers have their error at once. The request goes on without them."""

    async def main() -> None:
        rig = await holding(age=LIFETIME, provider=provider())
        paused, caller = await rig.in_flight(success(2))
        rig.transport.script(DONE, DONE)
        await rig.source.sign_out()
        await refused(SignedOut, caller, rig.access())
        assert revoked(rig) == ["refresh-1"]
        paused.release()
        await until_revoked(rig, "refresh-1", "refresh-2")
        assert (await rig.state()).signed_out
        await refused(SignedOut, rig.access())

    run(main)


def test_closing_revokes_an_unsaved_token_that_another_process_has_signed_out() -> None:
    """It is to be stored before the session closes, and finds the sign-out then."""

    async def main() -> None:
        store = ScriptedStore()
        rig = await holding(success(2), age=LIFETIME, provider=provider(), store=store)
        store.steps["commit"] = fail
        assert await rig.access() == "access-2"
        store.steps.clear()
        await beside(rig, DONE, provider=provider()).source.sign_out()
        rig.transport.script(DONE)
        await rig.source.aclose()
        assert revoked(rig) == ["refresh-2"]

    run(main)


def test_closing_after_a_sign_out_waits_for_the_answer_that_is_to_be_revoked() -> None:
    async def main() -> None:
        rig = await holding(age=LIFETIME, provider=provider())
        paused, caller = await rig.in_flight(success(2))
        rig.transport.script(DONE, DONE)
        await rig.source.sign_out()
        await refused(SignedOut, caller)
        closing = await begun(rig.source.aclose())
        paused.release()
        await closing
        assert revoked(rig) == ["refresh-1", "refresh-2"]

    run(main)


def test_signing_in_again_does_not_wait_for_an_answer_that_is_to_be_revoked() -> None:
    async def main() -> None:
        rig = await holding(age=LIFETIME, provider=provider())
        _, caller = await rig.in_flight(success(2))
        rig.transport.script(DONE, success(3))
        await rig.source.sign_out()
        await refused(SignedOut, caller)
        assert await took(rig.source.sign_in(refresh_token="another"), rig.clock) == 0
        assert await rig.access() == "access-3"
        assert revoked(rig) == ["refresh-1"]
        (message,) = warned(rig)  # what that refresh may have brought stays valid
        assert "end the old sign-in at the provider" in message

    run(main)


@pytest.mark.parametrize(
    ("answer", "warnings"),
    [(OutcomeUnknown("cut"), 1), (token_response(b"", 200), 1), (invalid_grant(), 0), (success(2), 0)],
)
def test_an_answer_that_may_have_been_lost_with_its_token_is_reported(answer: Any, warnings: int) -> None:
    """It can never be revoked. A refusal brought none."""

    async def main() -> None:
        rig = await holding(age=LIFETIME, provider=provider())
        paused, caller = await rig.in_flight(answer)
        rig.transport.script(DONE, DONE)
        await rig.source.sign_out()
        await refused(SignedOut, caller)
        paused.release()
        await until_revoked(rig, "refresh-1", *["refresh-2"] * (answer == success(2)))
        assert len(warned(rig)) == warnings

    run(main)


def test_a_sign_out_that_ends_the_wait_for_a_late_answer_says_that_it_is_not_revoked() -> None:
    """However long the store takes for the sign-out."""

    async def main() -> None:
        clock, gate = FakeClock(jitter=0.0), Gate()
        store = ScriptedStore(clock=clock)
        rig = await holding(age=LIFETIME, provider=provider(), store=store, clock=clock)
        _, caller = await rig.in_flight(success(2))
        await failed_after(OutcomeUnknown, caller, clock)
        rig.transport.script(DONE)
        store.steps["put"] = gate
        signing_out = await begun(rig.source.sign_out())
        gate.open.set()
        await signing_out
        await until_revoked(rig, "refresh-1")
        assert len(warned(rig)) == 1

    run(main)


def test_a_sign_out_that_cannot_be_stored_loses_no_late_answer() -> None:
    """It has the only copy of the next refresh token."""

    async def main() -> None:
        clock = FakeClock(jitter=0.0)
        store = ScriptedStore(clock=clock)
        rig = await holding(age=LIFETIME, provider=provider(), store=store, clock=clock)
        paused, caller = await rig.in_flight(success(2))
        await failed_after(OutcomeUnknown, caller, clock)
        store.steps["put"] = fail
        await refused(StoreUnavailable, rig.source.sign_out())
        paused.release()
        await rig.refreshed()
        assert await rig.access() == "access-2"
        assert rig.token_requests == 2

    run(main)


def test_without_an_endpoint_nothing_is_reported_about_revoking() -> None:
    async def main() -> None:
        rig = await holding(age=LIFETIME, provider=provider(revocation_url=None))
        _, caller = await rig.in_flight(success(2))
        await rig.source.sign_out()
        await refused(SignedOut, caller)
        assert warned(rig) == []

    run(main)


@pytest.mark.parametrize("answered", [True, False])
def test_an_answer_to_be_revoked_does_not_end_what_another_process_has_signed_in(answered: bool) -> None:
    """Whether it comes after that or never. Some servers end all of a client's tokens with one of them, so
    what has lost to a sign-in is not revoked.
    """

    async def main() -> None:
        rig = await holding(age=LIFETIME, provider=provider())
        paused, caller = await rig.in_flight(success(2))
        rig.transport.script(DONE)
        await rig.source.sign_out()
        await refused(SignedOut, caller)
        other = beside(rig, success(3), provider=provider())
        signing_in = await begun(other.source.sign_in(code="new"))
        await wait_in_vain_for_the_claim(rig.clock)
        await signing_in
        assert await rig.access() == "access-3"
        if answered:
            paused.release()
        else:
            await let_pass(rig.clock, 20)
        await until_revoked(rig, "refresh-1")
        assert len(warned(rig)) == 1
        assert await rig.access() == "access-3"
        assert rig.source.snapshot().last_error is None

    run(main)


def test_an_old_refresh_does_not_end_the_sign_in_after_a_sign_out() -> None:
    """It was stopped for that sign-in, and the store is slow to note how it ended."""

    async def main() -> None:
        noting, clock = Gate(), FakeClock(jitter=0.0)
        store = ScriptedStore(clock=clock)
        rig = await holding(age=LIFETIME, provider=provider(), store=store, clock=clock)
        _, caller = await rig.in_flight(success(2))
        rig.transport.script(DONE, success(3))
        await rig.source.sign_out()
        store.steps["commit"] = noting
        signing_in = await begun(rig.source.sign_in(code="new"))
        await noting.arrived.wait()
        await wait_in_vain_for_the_claim(rig.clock)
        await signing_in
        noting.open.set()
        await refused(SignedOut, caller)
        await until_revoked(rig, "refresh-1")
        assert rig.source.snapshot().last_error is None
        assert await rig.access() == "access-3"

    run(main)


@pytest.mark.parametrize("where", ["here", "in another process"])
@pytest.mark.parametrize("credential", ["code", "refresh_token"])
def test_a_sign_out_also_ends_a_sign_in_that_has_not_been_sent(credential: str, where: str) -> None:
    """It waits for the claim of a refresh. What it brings is not spent, so it works after the sign-out."""

    async def main() -> None:
        rig = await holding(age=LIFETIME, provider=provider())
        paused, caller = await rig.in_flight(success(2))
        signing_in = await begun(rig.source.sign_in(**{credential: "new"}))
        by = rig if where == "here" else beside(rig, DONE, provider=provider())
        rig.transport.script(*[DONE] * (2 if by is rig else 1))
        await by.source.sign_out()
        paused.release()
        await refused(SignedOut, caller, signing_in, rig.access())
        await until_revoked(rig, *["refresh-1"] * (by is rig), "refresh-2")
        rig.transport.script(success(3))
        await rig.source.sign_in(**{credential: "new"})
        assert await rig.access() == "access-3"

    run(main)


@pytest.mark.parametrize("waits_for", ["a connection", "the store"])
def test_a_sign_out_ends_a_sign_in_that_has_only_begun(waits_for: str) -> None:
    """The last call wins, also if the sign-in has not looked at the store yet. Its credential is not sent."""

    async def main() -> None:
        clock, gate = FakeClock(), Gate()
        store = ScriptedStore(clock=clock)
        rig = await holding(store=store, clock=clock)
        if waits_for == "the store":
            store.steps["load"] = gate
        else:
            rig.transport = Crowded(gate)
            rig.source._record.requests.transport = rig.transport
        signing_in = await under_way(rig.source.sign_in(refresh_token="new"), gate)
        store.steps.clear()
        await rig.source.sign_out()
        gate.open.set()
        await refused(SignedOut, signing_in, rig.access())
        rig.transport.script(success(2))
        await rig.source.sign_in(refresh_token="new")
        assert await rig.access() == "access-2"
        assert rig.transport.left == 0

    run(main)


def test_a_sign_out_ends_what_may_have_come_of_a_lost_answer() -> None:
    """Another process was given a new credential. Its request arrived, and then came the sign-out."""

    async def main() -> None:
        rig = await holding(provider=provider(revocation_url=None))
        changed = provider(revocation_url=None, refresh_token="deployed")
        lost = OutcomeUnknown("The connection was cut.")
        other = beside(rig, lost, provider=changed, policy=Policy(retry_within=0))
        await refused(OutcomeUnknown, other.access())
        await rig.source.sign_out()
        rig.clock.advance(60)
        for process in (other, beside(rig, provider=changed)):
            await refused(SignedOut, process.access())

    run(main)
