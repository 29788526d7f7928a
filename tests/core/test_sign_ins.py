"""Sign-ins that overlap with each other, with sign-outs, or with a failing store: the last call wins."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from _moments import let_pass, refused, state_in, under_way
from _rig import (
    LIFETIME,
    Rig,
    invalid_grant,
    let_tasks_run,
    run,
    seconds_until_done,
    state_of,
    success,
    until_sleeping,
)
from _scripted_store import Gate, ScriptedClaim, ScriptedStore, fail, scripted

from tokensession import (
    ClaimTimeout,
    GrantLost,
    GrantRejected,
    InvalidTokenResponse,
    NotSent,
    OutcomeUnknown,
    SignedOut,
    SignInRequired,
    StoreCorrupt,
    StoreUnavailable,
    Token,
    TokenSessionError,
    sign_out,
)
from tokensession.events import Saved, SaveFailed, SignedIn, SignInStarted
from tokensession.providers import OAuth2
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import FileStore, MemoryStore, Record, SQLiteStore
from tokensession.testing import FakeClock, Paused, ScriptedTransport, token_response
from tokensession.token import fingerprint


async def wait_in_vain_for_the_claim(clock: FakeClock, seconds: int = 5) -> None:
    """A sign-in waits `sign_in_wait` for a running refresh, and then does without the claim."""
    await let_tasks_run()
    assert seconds in clock.sleepers
    await let_pass(clock, seconds)


async def corrupt() -> None:
    """The record is damaged."""
    raise StoreCorrupt("The record is damaged.")


async def signed_in_unsaved(rig: Rig, store: ScriptedStore) -> None:
    """Sign in while the store fails. It works again when this returns, and the next try has not begun."""
    store.steps["put"] = fail
    await rig.source.sign_in(refresh_token="new")
    store.steps.clear()


def test_f20_f27_a_sign_in_that_is_stored_late_does_not_replace_a_later_one() -> None:
    """Another process has signed in while ours waited for the store, and its sign-in stays."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps["put"] = fail
        await rig.source.sign_in(refresh_token="one")
        store.steps.clear()
        other = Rig(success(2), store=store, clock=clock)
        await other.source.sign_in(refresh_token="two")
        await let_pass(clock, 1)
        assert await rig.stored_access() == "access-2"
        assert await rig.access() == "access-2"

    run(main)


def test_f20_f27_a_sign_in_that_is_stored_late_does_not_replace_a_later_one_of_its_own_process() -> None:
    """Its write is running when the second sign-in is stored."""

    async def main() -> None:
        rig, store, _ = scripted(success(1), success(2), success(3))
        store.steps["put"] = fail
        await rig.source.sign_in(refresh_token="one")
        gate = store.steps["put"] = Gate()
        caller = asyncio.create_task(rig.source.refresh())  # it saves first
        await gate.arrived.wait()
        store.steps.clear()
        await rig.source.sign_in(refresh_token="two")
        assert await rig.stored_access() == "access-2"
        gate.open.set()
        await asyncio.gather(caller, return_exceptions=True)
        await let_tasks_run()
        bodies = [request.body.decode() for request in rig.transport.requests]
        assert not [body for body in bodies if "refresh_token=refresh-1" in body]

    run(main)


def test_f20_f27_a_sign_in_that_was_stored_despite_an_error_does_not_replace_its_successor() -> None:
    """Another process has rotated its token, and the spent refresh token is not written over that."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps["stored"] = fail
        await rig.source.sign_in(refresh_token="one")
        store.steps.clear()
        assert (await rig.stored_access(), rig.source.snapshot().unsaved) == ("access-1", True)
        other = Rig(success(2), store=store, clock=clock)
        await other.source.refresh()
        assert "refresh-1" in other.sent()
        await let_pass(clock, 1)
        assert await rig.stored_access() == "access-2"
        assert (await rig.access(), rig.source.snapshot().unsaved) == ("access-2", False)

    run(main)


def test_f27_a_sign_in_that_was_stored_despite_an_error_is_found_and_not_written_again() -> None:
    """The next try finds its own record, so it is saved, and no other process is disturbed."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps["stored"] = fail
        await rig.source.sign_in(refresh_token="one")
        store.steps.clear()
        record = await store.load("account")
        await let_pass(clock, 1)
        assert await store.load("account") == record
        assert [type(event) for event in rig.events] == [SignInStarted, SaveFailed, SignedIn, Saved]
        assert not rig.source.snapshot().unsaved

    run(main)


def test_f27_a_sign_in_that_is_stored_late_replaces_a_refresh_of_the_old_sign_in() -> None:
    """What another process has got with the old refresh token is older than the new sign-in."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        await rig.access()
        await signed_in_unsaved(rig, store)
        other = Rig(success(3), store=store, clock=clock)
        await other.source.refresh()
        assert await rig.stored_access() == "access-3"
        await let_pass(clock, 1)
        assert (await rig.stored_access(), await rig.access()) == ("access-2", "access-2")

    run(main)


@pytest.mark.parametrize("then", ["sign in", "sign out"])
def test_f20_f27_a_late_sign_in_over_a_damaged_record_does_not_replace_a_later_change(then: str) -> None:
    """The damaged record had no version to compare with, but what has been stored since has one."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps = {"load": corrupt, "put": fail}
        await rig.source.sign_in(refresh_token="one")
        store.steps.clear()
        other = Rig(success(2), store=store, clock=clock)
        await (other.source.sign_in(refresh_token="two") if then == "sign in" else other.source.sign_out())
        await let_pass(clock, 1)
        state = await state_in(rig)
        assert (await rig.stored_access(), state.signed_out) == (
            ("access-2", False) if then == "sign in" else (None, True)
        )

    run(main)


def test_f27_f52_a_sign_in_that_is_stored_late_is_stored_although_the_record_is_gone() -> None:
    """A missing record is a loss of data: a sign-out would have left a tombstone."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        await rig.access()
        await signed_in_unsaved(rig, store)
        await store.delete(rig.source.key)
        await let_pass(clock, 1)
        assert (await rig.stored_access(), rig.source.snapshot().unsaved) == ("access-2", False)

    run(main)


def test_f27_of_two_sign_ins_that_are_stored_late_the_second_stays() -> None:
    """Whenever the first one's write ends, the second one replaces it."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        store.steps["put"] = fail
        await rig.source.sign_in(refresh_token="one")
        await rig.source.sign_in(refresh_token="two")
        gate = store.steps["put"] = Gate()
        clock.advance(1)
        await gate.arrived.wait()
        gate.open.set()
        await let_pass(clock, 1)
        assert (await rig.stored_access(), await rig.access()) == ("access-2", "access-2")
        assert not rig.source.snapshot().unsaved

    run(main)


@pytest.mark.parametrize("first", ["refresh", "sign in"])
def test_f27_an_unsaved_refresh_holds_its_claim_until_the_sign_in_after_it_is_stored(first: str) -> None:
    """The stored refresh token is spent, so no other process may send it."""

    async def main() -> None:
        paused, response = Paused(success(2)), Paused(success(3))
        rig, store, clock = scripted(success(1), paused, response)
        await rig.access()
        caller = await under_way(rig.source.refresh(), paused)
        if first == "refresh":
            store.steps["commit"] = fail
            paused.release()
            await caller
        signing_in = asyncio.create_task(rig.source.sign_in(code="new"))
        if first == "sign in":
            await wait_in_vain_for_the_claim(clock)
        await response.arrived.wait()
        noted = await store.load("account")
        store.steps |= {"put": fail, "commit": fail}
        response.release()
        await signing_in
        paused.release()
        await asyncio.gather(caller, return_exceptions=True)
        assert (await store.load("account"), rig.source.snapshot().unsaved) == (noted, True)
        other = Rig(invalid_grant(), store=store, clock=clock)
        waiting = asyncio.create_task(other.source.refresh())
        await let_tasks_run()
        assert (other.token_requests, waiting.done()) == (0, False)
        store.steps.clear()
        await rig.source.aclose()
        assert (await waiting).access_token in ("access-2", "access-3")  # whichever was stored first
        assert (await rig.stored_access(), other.token_requests, store.has_claims()) == ("access-3", 0, False)

    run(main)


def test_f27_an_unsaved_refresh_of_the_new_sign_in_is_not_given_up() -> None:
    """It began before the sign-in returned, and its token is the only copy."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2, expires_in=1), success(3), rotates=False)
        await rig.access()
        record = await store.load("account")
        assert record is not None
        others = await store.claim("account", seen=record.version, timeout=0)
        assert isinstance(others, ScriptedClaim)
        stored = store.steps["stored"] = Gate()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await wait_in_vain_for_the_claim(clock, 5)
        await stored.arrived.wait()  # stored, but the sign-in does not know it yet
        await others.abandon()
        clock.advance(LIFETIME)
        store.steps["commit"] = fail
        assert await rig.access() == "access-3"
        stored.open.set()
        await signing_in
        store.steps.clear()
        await rig.source.aclose()
        state = await state_in(rig)
        assert state.token is not None
        assert (state.token.refresh_token, store.has_claims()) == ("refresh-3", False)

    run(main)


def test_f63_a_refresh_token_that_works_once_is_not_sent_without_the_claim() -> None:
    """Another process may wait to send the same one. After two minutes the person is told to try again."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        await rig.access()
        record = await store.load("account")
        assert record is not None
        others = await store.claim("account", seen=record.version, timeout=0)
        assert isinstance(others, ScriptedClaim)
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await wait_in_vain_for_the_claim(clock, 120)
        await refused(ClaimTimeout, signing_in)
        await others.abandon()
        assert (await rig.source.sign_in(refresh_token="new")).access_token == "access-2"
        assert rig.token_requests == 2

    run(main)


def test_f41_a_sign_in_that_was_stored_before_a_sign_out_is_not_served_after_it() -> None:
    """The sign-out returns first, and the stored record says which of the two was last."""

    async def main() -> None:
        rig, store, _ = scripted(success(1))
        gate = store.steps["stored"] = Gate()
        signing_in = await under_way(rig.source.sign_in(refresh_token="new"), gate)
        store.steps.clear()
        await rig.source.sign_out()
        gate.open.set()
        for late in (signing_in, rig.access()):
            await refused(SignedOut, late)

    run(main)


def test_f41_f52_an_operator_signs_a_key_out_and_no_process_brings_it_back() -> None:
    """Without a provider. The configured credential counts as known, so a restart does not sign in either."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        ours = processes.start(code=None, refresh_token="configured")
        assert not await sign_out(processes.store, "account"), "there is nothing yet"
        await ours.access()
        assert await sign_out(processes.store, "account")
        assert not await sign_out(processes.store, "account"), "it is signed out already"
        processes.clock.advance(LIFETIME)
        for process in (ours, processes.start(code=None, refresh_token="configured")):
            await refused(SignedOut, process.access())
        await refused(
            SignInRequired, ours.source.sign_in(refresh_token="configured"), match="redeemed already"
        )
        assert (await ours.source.sign_in(refresh_token="new")).access_token == "access-2"
        assert processes.sent == ["configured", "new"]

    run(main)


def test_f20_an_operators_sign_out_wins_against_a_refresh_that_is_running() -> None:
    """The refresh is stored between its look and its write, or comes after it."""

    async def main() -> None:
        for late in (False, True):
            paused = Paused(success(2))
            processes = Processes(success(1), paused)
            ours = processes.start(code=None, refresh_token="configured")
            await ours.access()
            refreshing = await under_way(ours.source.refresh(), paused)
            gate = processes.store.steps["put"] = Gate()
            signing_out = await under_way(sign_out(processes.store, "account"), gate)
            processes.store.steps.clear()
            for step in (gate.open.set, paused.release) if late else (paused.release, gate.open.set):
                step()
                await let_tasks_run()
            assert await signing_out
            await asyncio.wait([refreshing])
            processes.clock.advance(LIFETIME)
            await refused(SignedOut, ours.access())

    run(main)


@pytest.mark.parametrize("credential", [{"refresh_token": "new"}, {"code": "new"}], ids=["token", "code"])
def test_f41_f63_a_credential_that_a_sign_out_overtook_is_not_sent_again(credential: dict[str, str]) -> None:
    """It has been redeemed, and the sign-out wins. In another process it would be a reuse."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(paused, success(2))
        ours, other = processes.start(code=None), processes.start(code=None)
        signing_in = await under_way(ours.source.sign_in(**credential), paused)
        await other.source.sign_out()
        paused.release()
        await refused(SignedOut, signing_in)
        for process in (other, ours, processes.start(code=None)):
            await refused(SignInRequired, process.source.sign_in(**credential), match="redeemed already")
            await refused(SignedOut, process.access())
        assert processes.sent == ["new"]

    run(main)


def test_f41_f63_a_configured_credential_that_a_sign_out_overtook_is_not_sent_again() -> None:
    """Not even when the sign-in after it dies, and the configured credential is all that is left."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(paused, success(2), invalid_grant(), success(3))
        ours, other = processes.start(code=None, refresh_token="configured"), processes.start(code=None)
        caller = await under_way(ours.access(), paused)
        await other.source.sign_out()
        noted = list[bool]()

        async def look() -> None:
            record = await MemoryStore.load(processes.store, "account")
            assert record is not None
            noted.append(state_of(record, processes.clock).has_redeemed(fingerprint("configured")))

        processes.store.steps["abandon"] = look
        paused.release()
        await refused(SignedOut, caller)
        assert noted == [True], "before another process can have the claim"
        processes.store.steps.clear()
        await other.source.sign_in(refresh_token="newer")
        processes.clock.advance(LIFETIME)
        restarted = processes.start(code=None, refresh_token="configured")
        await refused(GrantRejected, ours.access(), other.access(), restarted.access())
        assert processes.sent == ["configured", "newer", "refresh-2"]

    run(main)


@pytest.mark.parametrize("again", ["A", "B"])
def test_f63_a_code_is_redeemed_once_even_with_another_code_in_between(again: str) -> None:
    """A server may revoke a code's token if the code arrives a second time (RFC 6749, 4.1.2)."""

    async def main() -> None:
        responses = {"A": Paused(success(1)), "B": Paused(success(2))}
        rig, _, clock = scripted(*responses.values(), invalid_grant())
        calls = [asyncio.create_task(rig.source.sign_in(code=code)) for code in responses]
        await wait_in_vain_for_the_claim(clock)
        for response in responses.values():
            await response.arrived.wait()
        if again == "B":
            responses.pop("A").release()
            await calls[0]
        calls.append(asyncio.create_task(rig.source.sign_in(code=again)))
        await let_tasks_run()
        for response in responses.values():
            response.release()
        await asyncio.gather(*calls)
        assert sum(f"code={again}" in request.body.decode() for request in rig.transport.requests) == 1

    run(main)


def test_f41_a_401_during_an_unsaved_sign_in_returns_the_new_token() -> None:
    """The refresh fails, because the sign-in must be stored first; but there is a newer token."""

    async def main() -> None:
        paused, response = Paused(success(2)), Paused(success(3))
        rig, store, clock = scripted(success(1), paused, response)
        unauthorized = await rig.source.token()
        clock.advance(1000)
        caller = await under_way(rig.source.refresh(unauthorized), paused)
        signing_in = asyncio.create_task(rig.source.sign_in(code="new"))
        await wait_in_vain_for_the_claim(clock)
        await response.arrived.wait()
        store.steps["put"] = fail
        response.release()
        await signing_in
        assert rig.source.snapshot().unsaved
        paused.release()
        assert (await caller).access_token == "access-3"

    run(main)


def configured_with(**changes: Any) -> OAuth2:
    """A client that rotates its refresh tokens, with the code "code-1"."""
    settings: dict[str, Any] = {
        "token_url": "https://id.example.com/token",
        "client_id": "client",
        "client_secret": "client-secret",
        "code": None if "refresh_token" in changes else "code-1",
    }
    return OAuth2(**(settings | changes))


class Processes:
    """Several processes over one store, which share the script of their token requests."""

    def __init__(self, *script: Any) -> None:
        self.clock = FakeClock()
        self.store = ScriptedStore(clock=self.clock)
        self.transport = ScriptedTransport(*script)

    def start(self, key: str | None = "account", **changes: Any) -> Rig:
        """A process with this configuration."""
        provider = configured_with(**changes)
        return Rig(provider=provider, store=self.store, clock=self.clock, key=key, transport=self.transport)

    @property
    def sent(self) -> list[str]:
        """The codes and refresh tokens of the token requests, in order."""
        fields = [parse_qs(request.body.decode()) for request in self.transport.requests]
        return [(each.get("code") or each["refresh_token"])[0] for each in fields]


@pytest.mark.parametrize("first", ["token", "sign_in"])
def test_f63_k14_a_code_that_token_and_sign_in_bring_at_once_is_sent_once(first: str) -> None:
    """The configured code is brought to `sign_in` too, as by a callback: both get the one token."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(paused)
        source = processes.start().source
        calls: list[Callable[[], Coroutine[Any, Any, Token]]]
        calls = [source.token, partial(source.sign_in, code="code-1")]
        tasks = [asyncio.create_task(call()) for call in (calls if first == "token" else calls[::-1])]
        await paused.arrived.wait()
        await let_tasks_run()
        paused.release()
        assert [token.access_token for token in await asyncio.gather(*tasks)] == ["access-1"] * 2
        assert processes.sent == ["code-1"]

    run(main)


@pytest.mark.parametrize("refreshed", [False, True])
@pytest.mark.parametrize("process", ["the same", "another"])
def test_f63_k14_a_code_that_is_brought_again_gets_the_token_and_is_not_sent_again(
    process: str, refreshed: bool
) -> None:
    """A browser reloads the callback: the person is signed in, and the sign-in is not revoked."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        first = processes.start(code=None)
        await first.source.sign_in(code="once")
        if refreshed:
            await first.source.refresh()
        again = first if process == "the same" else processes.start(code=None)
        token = await again.source.sign_in(code="once")
        assert token.access_token == ("access-2" if refreshed else "access-1")
        assert processes.sent == ["once", "refresh-1"][: 1 + refreshed]

    run(main)


def test_f41_f63_a_credential_of_an_unsaved_sign_in_is_not_sent_again_after_the_next_one() -> None:
    """The sign-in that replaces it remembers what it has redeemed."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        ours = processes.start(code=None)
        processes.store.steps["put"] = fail
        await ours.source.sign_in(refresh_token="new")
        processes.store.steps.clear()
        await ours.source.sign_in(refresh_token="newer")
        for process in (ours, processes.start(code=None)):
            await refused(
                SignInRequired, process.source.sign_in(refresh_token="new"), match="redeemed already"
            )
        assert processes.sent == ["new", "newer"]

    run(main)


@pytest.mark.parametrize("later", [False, True], ids=["unsaved", "another sign-in since"])
def test_f41_f63_a_credential_whose_token_is_not_stored_yet_is_not_sent_again(later: bool) -> None:
    """The store fails, and the person brings the refresh token again: it has been redeemed."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        ours, other = processes.start(code=None), processes.start(code=None)
        processes.store.steps["put"] = fail
        await ours.source.sign_in(refresh_token="new")
        if later:
            processes.store.steps.clear()
            await other.source.sign_in(refresh_token="newer")
            processes.store.steps["put"] = fail
            await refused(SignInRequired, ours.source.sign_in(refresh_token="new"), match="redeemed already")
        else:
            assert (await ours.source.sign_in(refresh_token="new")).access_token == "access-1"
        assert processes.sent == ["new", "newer"][: 1 + later]
        processes.store.steps.clear()
        await ours.source.aclose()

    run(main)


def test_f41_a_sign_in_never_returns_an_older_token_than_a_caller_has_got() -> None:
    """The code is brought again, and while its claim ends, another caller finds that there was a refresh."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        other, ours = processes.start(code=None), processes.start(code=None)
        await other.source.sign_in(code="once")
        gate = processes.store.steps["abandoned"] = Gate()
        again = await under_way(ours.source.sign_in(code="once"), gate)
        processes.store.steps.clear()
        await other.source.refresh()
        assert await ours.access() == "access-2"
        gate.open.set()
        assert (await again).access_token == "access-2"

    run(main)


@pytest.mark.parametrize("credential", ["code", "refresh_token"])
@pytest.mark.parametrize("then", ["another sign-in", "a sign-out"])
def test_f63_what_works_once_is_an_error_after_another_sign_in(credential: str, then: str) -> None:
    """Its own sign-in is over. It is not sent again, and what is stored stays."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        rig = processes.start(code=None)
        await rig.source.sign_in(**{credential: "once"})
        if then == "a sign-out":
            await rig.source.sign_out()
        else:
            await rig.source.sign_in(code="another")
        before = await rig.store.load("account")
        requests = len(processes.sent)
        await refused(SignInRequired, rig.source.sign_in(**{credential: "once"}), match="redeemed already")
        assert await rig.store.load("account") == before
        assert len(processes.sent) == requests

    run(main)


def test_f63_an_explicit_sign_in_with_what_can_be_used_again_is_always_sent() -> None:
    """A refresh token that does not rotate may be brought back as often as you like."""

    async def main() -> None:
        processes = Processes(*(success(number, refresh=None) for number in range(1, 5)))
        rig = processes.start(refresh_token="A", rotates=False)
        await rig.access()
        for name in "BAA":
            await rig.source.sign_in(refresh_token=name)
        assert processes.sent == ["A", "B", "A", "A"]
        assert await rig.stored_access() == "access-4"

    run(main)


def test_f63_a_code_is_remembered_for_a_day() -> None:
    """Codes live for minutes. After a day its fingerprint makes place for others."""

    async def main() -> None:
        processes = Processes(*(success(number) for number in range(1, 5)))
        rig = processes.start(code=None)
        await rig.source.sign_in(code="once")
        processes.clock.advance(23 * 3600)
        await rig.source.sign_in(code="second")
        await refused(SignInRequired, rig.source.sign_in(code="once"))
        processes.clock.advance(3600)
        await rig.source.sign_in(code="third")
        state = await state_in(rig)
        assert [state.has_redeemed(fingerprint(name)) for name in ("once", "second", "third")] == [
            False,
            True,
            True,
        ]

    run(main)


UNSENT: dict[str, Any] = {
    "not sent": NotSent("no route"),
    "429": token_response({}, 429),
    "500": token_response({}, 500),
    "503": token_response({}, 503),
    "invalid_client": token_response({"error": "invalid_client"}, 401),
}


def test_f63_a_process_that_comes_too_late_with_a_code_leaves_the_note_of_the_first() -> None:
    """Two bring it at once, while a refresh holds the claim. The second takes back no note but its own."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(paused, success(2))
        held = await processes.store.claim("account", seen=None, timeout=0)
        sources = [processes.start(code=None).source for _ in range(2)]
        first, second = (asyncio.create_task(source.sign_in(code="once")) for source in sources)
        await wait_in_vain_for_the_claim(processes.clock)
        await paused.arrived.wait()
        await held.abandon()
        await refused(SignInRequired, second, match="redeemed already")
        await refused(
            SignInRequired, processes.start(code=None).source.sign_in(code="once"), match="redeemed already"
        )
        paused.release()
        assert (await first).access_token == "access-1"

    run(main)


@pytest.mark.parametrize("way", ["configured", "sign_in"])
@pytest.mark.parametrize("failure", UNSENT)
def test_f63_a_code_that_was_not_redeemed_is_sent_again(failure: str, way: str) -> None:
    """No connection, a 429, a 5xx or a wrong secret: the server has kept the code, so it still works."""

    async def main() -> None:
        processes = Processes(UNSENT[failure], success(1))
        rig = processes.start(code="code-1" if way == "configured" else None)

        def call() -> Coroutine[Any, Any, Token]:
            return rig.source.token() if way == "configured" else rig.source.sign_in(code="code-1")

        caught = await refused(TokenSessionError, call())
        assert not isinstance(caught, SignInRequired)
        assert not processes.store.has_claims()
        processes.clock.advance(60)
        assert (await call()).access_token == "access-1"
        assert processes.sent == ["code-1"] * 2

    run(main)


@pytest.mark.parametrize("way", ["configured", "sign_in"])
@pytest.mark.parametrize("lost", [OutcomeUnknown("lost"), token_response(b"", 502)], ids=["reset", "502"])
def test_f63_a_code_whose_answer_was_lost_is_sent_once_more_at_once(lost: Any, way: str) -> None:
    """Servers accept that for a moment, if the first request did not reach them; later it is no use."""

    async def main() -> None:
        processes = Processes(lost, success(1))
        source = processes.start(code="code-1" if way == "configured" else None).source
        token = await (source.token() if way == "configured" else source.sign_in(code="code-1"))
        assert token.access_token == "access-1"
        assert processes.sent == ["code-1"] * 2

    run(main)


SECOND: dict[str, Any] = {
    "lost": OutcomeUnknown("lost"),
    "not sent": NotSent("no route"),
    "429": token_response({}, 429),
    "500": token_response({}, 500),
    "rejected": invalid_grant(),
}


@pytest.mark.parametrize("way", ["configured", "sign_in"])
@pytest.mark.parametrize("second", SECOND)
def test_f63_a_code_whose_answer_was_lost_is_never_sent_a_third_time(second: str, way: str) -> None:
    """Whatever comes of the repetition: the first request may have redeemed it (RFC 6749, 4.1.2)."""

    async def main() -> None:
        processes = Processes(OutcomeUnknown("lost"), SECOND[second])
        rig = processes.start(code="code-1" if way == "configured" else None)
        restarted = processes.start(code="code-1" if way == "configured" else None)
        errors = []
        for process in (rig, rig, restarted, rig):
            caught = await refused(
                TokenSessionError,
                (process.access() if way == "configured" else process.source.sign_in(code="code-1")),
            )
            errors.append(caught)
            processes.clock.advance(60)
        assert processes.sent == ["code-1"] * 2
        assert all(isinstance(error, SignInRequired) for error in errors[1:])
        if way == "configured":
            assert all(isinstance(error, GrantLost) for error in errors[1:])
        if second == "rejected":
            assert isinstance(errors[0], GrantLost)

    run(main)


@pytest.mark.parametrize("before", [[], [OutcomeUnknown("lost")]], ids=["first", "repetition"])
def test_f63_a_code_whose_request_was_cut_short_is_not_sent_again(before: list[Any]) -> None:
    """Its process closed while it was on the way, and it may have been redeemed."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(*before, paused, success(2))
        rig = processes.start()
        caller = await under_way(rig.access(), paused)
        closing = asyncio.create_task(rig.source.aclose())
        await seconds_until_done(closing, processes.clock)
        await refused(TokenSessionError, caller)
        for process in (rig, processes.start()):
            processes.clock.advance(60)
            await refused(GrantLost, process.access())
        assert processes.sent == ["code-1"] * (len(before) + 1)

    run(main)


def test_f63_a_code_is_not_repeated_after_a_response_that_cannot_be_read() -> None:
    """There was an answer, and it may have had the token: a repetition would only revoke it."""

    async def main() -> None:
        processes = Processes(token_response(b"<html>"))
        rig = processes.start()
        for kinds in ((InvalidTokenResponse, GrantLost), GrantLost, GrantLost):
            await refused(kinds, rig.access())
            processes.clock.advance(60)
        assert processes.sent == ["code-1"]

    run(main)


def test_f63_a_rejected_code_is_sent_once() -> None:
    """In this process and in another, and the stored sign-in stays as it is."""

    async def main() -> None:
        processes = Processes(success(1), invalid_grant(), success(2))
        rig = processes.start(code=None)
        await rig.source.sign_in(code="once")
        for process in (rig, processes.start(code=None)):
            await refused(SignInRequired, process.source.sign_in(code="bad"))
        assert processes.sent == ["once", "bad"]
        processes.clock.advance(LIFETIME)
        assert await rig.access() == "access-2"

    run(main)


@pytest.mark.parametrize("way", ["configured", "sign_in"])
def test_f17_f63_a_code_that_was_being_sent_when_its_process_was_killed_is_not_sent_again(way: str) -> None:
    """The note is there before the code leaves, so the next process knows, and says to sign in again."""
    paused = Paused(success(1))
    processes = Processes(paused, success(2))
    killed = processes.start(code="code-1" if way == "configured" else None)
    call = killed.access() if way == "configured" else killed.source.sign_in(code="code-1")
    kill_while_it_waits(call, paused)

    async def main() -> None:
        rig = processes.start(code="code-1" if way == "configured" else None)
        caller: asyncio.Task[Any]
        if way == "configured":
            caller = asyncio.create_task(rig.access())
            await until_sleeping(processes.clock, 2)  # orphan_wait
            processes.clock.advance(2)
        else:
            caller = asyncio.create_task(rig.source.sign_in(code="code-1"))
        await refused(GrantLost if way == "configured" else SignInRequired, caller, match="Sign in again")
        assert processes.sent == ["code-1"]
        assert (await rig.source.sign_in(code="new")).access_token == "access-2"

    run(main)


def test_f42_f63_a_sign_in_that_a_closed_event_loop_has_left_behind_holds_up_no_other() -> None:
    """The same code, in the next event loop, does not wait for the dead task."""
    paused = Paused(success(1))
    processes = Processes(paused, success(2))
    rig = processes.start(code=None)
    kill_while_it_waits(rig.source.sign_in(code="once"), paused)

    async def main() -> None:
        await refused(SignInRequired, rig.source.sign_in(code="once"), match="redeemed already")
        assert (await rig.source.sign_in(code="new")).access_token == "access-2"
        assert len(rig.source._coordinator._signing_in) == 0

    run(main)


def kill_while_it_waits(call: Coroutine[Any, Any, Any], paused: Paused) -> None:
    """Run it in an event loop that ends while its token request waits, without a word to its tasks."""

    async def until_sent() -> None:
        await paused.arrived.wait()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending!" is the point here
    task = loop.create_task(call)
    loop.run_until_complete(until_sent())
    assert not task.done()
    loop.close()
    del task
    gc.collect()


class Secrets:
    """A server whose refresh tokens do not rotate, and can be revoked."""

    def __init__(self, *valid: str) -> None:
        self.valid = set(valid)
        self.issued = 0

    def __call__(self, request: TokenRequest) -> TokenResponse:
        (name,) = parse_qs(request.body.decode())["refresh_token"]
        if name not in self.valid:
            return invalid_grant()
        self.issued += 1
        return token_response({"access_token": f"{name}-{self.issued}", "expires_in": LIFETIME})


def rolling(*valid: str) -> tuple[Processes, Secrets]:
    """Processes over one store and one server that accepts these refresh tokens."""
    server = Secrets(*valid)
    return Processes(*[server] * 50), server


def test_f49_f63_k15_in_a_rolling_deployment_the_newer_configuration_wins() -> None:
    """A process of the old deployment that starts late uses the new secret's token, and starts nothing."""

    async def main() -> None:
        processes, server = rolling("OLD", "NEW")

        def start(name: str) -> Rig:
            return processes.start(refresh_token=name, rotates=False)

        old = start("OLD")
        assert await old.access() == "OLD-1"
        new = start("NEW")
        assert await new.access() == "NEW-2"
        late = start("OLD")
        assert await late.access() == "NEW-2"
        for _ in range(3):
            processes.clock.advance(LIFETIME)
            assert {(await rig.access()).split("-")[0] for rig in (new, old, late)} == {"NEW"}
        server.valid.discard("OLD")
        processes.clock.advance(LIFETIME)
        assert {(await rig.access()).split("-")[0] for rig in (late, new, old, start("NEW"))} == {"NEW"}
        assert processes.sent.count("OLD") == 1

    run(main)


def test_f49_f63_k15_a_configuration_that_was_rolled_back_is_used_if_the_newer_one_is_rejected() -> None:
    """The new secret was wrong, and the operator goes back to the old one."""

    async def main() -> None:
        processes, server = rolling("OLD", "NEW")
        old = processes.start(refresh_token="OLD", rotates=False)
        await old.access()
        new = processes.start(refresh_token="NEW", rotates=False)
        await new.access()
        server.valid.discard("NEW")
        processes.clock.advance(LIFETIME)
        await refused(GrantRejected, new.access())
        back = processes.start(refresh_token="OLD", rotates=False)
        assert (await back.access()).startswith("OLD")
        for rig in (back, old, new):
            processes.clock.advance(1)
            assert (await rig.access()).startswith("OLD")
        assert processes.sent.count("NEW") == 2

    run(main)


def test_f49_f63_a_new_secret_that_was_rejected_at_once_disturbs_no_running_process() -> None:
    """The process with the wrong secret is told, and those with the right one go on."""

    async def main() -> None:
        processes, _ = rolling("OLD")
        old = processes.start(refresh_token="OLD", rotates=False)
        await old.access()
        wrong = processes.start(refresh_token="WRONG", rotates=False)
        for _ in range(3):
            await refused(GrantRejected, wrong.access())
            processes.clock.advance(LIFETIME)
            assert (await old.access()).startswith("OLD")
        assert processes.sent.count("WRONG") == 1

    run(main)


def test_f49_f63_the_last_sixteen_configurations_are_remembered() -> None:
    """A process of any of them that starts late does not end the newest one's sign-in."""

    async def main() -> None:
        names = [f"secret-{number}" for number in range(17)]
        processes, _ = rolling(*names)
        for name in names:
            newest = await processes.start(refresh_token=name, rotates=False).access()
        for name in names[:-1]:
            assert await processes.start(refresh_token=name, rotates=False).access() == newest
        assert processes.sent == names
        state = await state_in(processes.start(refresh_token=names[0], rotates=False))
        assert len(state.superseded) == 16

    run(main)


def test_f49_k27_a_new_code_under_a_named_key_ends_the_refusal_of_the_running_service() -> None:
    """The worker that was restarted with it signs in, and within a second the others have its token."""

    async def main() -> None:
        processes = Processes(success(1), invalid_grant(), success(2))
        running = processes.start(code="code-1")
        await running.access()
        processes.clock.advance(LIFETIME)
        await refused(GrantRejected, running.access())
        assert await processes.start(code="code-2").access() == "access-2"
        processes.clock.advance(1)
        assert await running.access() == "access-2"
        assert processes.sent == ["code-1", "refresh-1", "code-2"]

    run(main)


def test_f40_k27_with_the_default_key_another_code_is_another_record() -> None:
    """The key contains the credential, so the running service does not learn of it: name your keys."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        assert await processes.start(key=None, code="code-1").access() == "access-1"
        assert await processes.start(key=None, code="code-2").access() == "access-2"
        assert len(await processes.store.keys()) == 2

    run(main)


class HangingRecords:
    """Records whose writes hang until `go` is set, and then fail until `failing` is false."""

    def __init__(self, records: Any) -> None:
        self._records = records
        self.arrived, self.go, self.failing = threading.Event(), threading.Event(), True

    def write(self, key: str, record: Record, expect: str | None) -> Record:
        if self.failing:
            self.arrived.set()
            self.go.wait(30)
            raise StoreUnavailable("The disk is full.")
        written: Record = self._records.write(key, record, expect)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)


@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
def test_f27_a_commit_that_fails_after_its_time_out_keeps_the_claim(
    kind: type[FileStore | SQLiteStore], tmp_path: Path
) -> None:
    """Its refresh token is spent, so no other process may send it."""

    async def main() -> None:
        clock = FakeClock(jitter=1.0)
        ours, theirs = (kind(tmp_path / "tokens", clock=clock) for _ in range(2))
        records = ours._claims._records = HangingRecords(ours._claims._records)
        rig = Rig(success(1), store=ours, clock=clock)
        caller = asyncio.create_task(rig.access())
        await asyncio.to_thread(records.arrived.wait, 30)
        await let_tasks_run()
        clock.advance(10)  # store_timeout
        await let_tasks_run()
        clock.advance(2)
        assert await caller == "access-1"
        records.go.set()
        await ours.load(rig.source.key)  # runs after the write, and after what follows it
        await ours.load(rig.source.key)
        other = Rig(success(2), store=theirs, clock=clock)
        waiting = asyncio.create_task(other.access())
        await theirs.load(rig.source.key)
        await theirs.load(rig.source.key)
        await let_tasks_run()
        assert (other.token_requests, waiting.done()) == (0, False)
        records.failing = False
        await rig.source.aclose()  # this stores it
        while not waiting.done():
            clock.advance(0.01)
            await theirs.load(rig.source.key)
        assert (await waiting, other.token_requests) == ("access-1", 0)
        await other.source.aclose()
        await ours.aclose()
        await theirs.aclose()

    run(main)
