"""Sign-ins that overlap with each other, with sign-outs, or with a failing store: the last call wins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from _moments import (
    asking_after_a_killed_holder,
    beside,
    close,
    corrupt,
    held_claim,
    holding,
    keep_failing,
    killed,
    let_pass,
    refresh_token_in,
    refresh_tokens,
    refused,
    state_in,
    under_way,
    wait_in_vain_for_the_claim,
)
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, seconds_until_done, state_of, success
from _scripted_store import Gate, ScriptedStore, Step, fail, scripted

from tokensession import (
    ClaimTimeout,
    GrantLost,
    GrantRejected,
    InvalidTokenResponse,
    NotSent,
    OutcomeUnknown,
    SignedOut,
    SignInRequired,
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


class Processes:
    """Several processes over one store, which share the script of their token requests."""

    def __init__(self, *script: Any) -> None:
        self.clock = FakeClock()
        self.store = ScriptedStore(clock=self.clock)
        self.transport = ScriptedTransport(*script)

    def start(self, key: str | None = "account", **settings: Any) -> Rig:
        """A process with these settings. Its refresh tokens rotate, and the settings bring its credential."""
        usual = {"token_url": "https://id.example.com/token", "client_id": "client", "client_secret": "s"}
        provider = OAuth2(**usual | settings)
        return Rig(provider=provider, store=self.store, clock=self.clock, key=key, transport=self.transport)

    @property
    def sent(self) -> list[str]:
        """The codes and refresh tokens of the token requests, in order."""
        fields = [parse_qs(request.body.decode()) for request in self.transport.requests]
        return [(each.get("code") or each["refresh_token"])[0] for each in fields]


async def known(*rigs: Rig, **credential: str) -> None:
    """Each of these processes says that the credential was redeemed already."""
    for rig in rigs:
        await refused(SignInRequired, rig.source.sign_in(**credential), match="redeemed already")


async def signed_in_unsaved(rig: Rig, store: ScriptedStore, name: str = "new", at: str = "put") -> None:
    """Sign in while the store fails. It works again when this returns, and the next try has not begun."""
    store.steps[at] = fail
    await rig.source.sign_in(refresh_token=name)
    store.steps.clear()


@pytest.mark.parametrize("then", ["sign in", "sign out"])
@pytest.mark.parametrize("damage", [{}, {"load": corrupt}], ids=["sound", "damaged"])
def test_f20_f27_a_sign_in_that_is_stored_late_does_not_replace_a_later_change(
    damage: dict[str, Step], then: str
) -> None:
    """Another process signs in or out before it. A damaged record had no version to compare with."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps |= damage
        await signed_in_unsaved(rig, store)
        other = beside(rig, success(2)).source
        await (other.sign_in(refresh_token="two") if then == "sign in" else other.sign_out())
        await let_pass(clock, 1)
        if then == "sign in":
            assert (await rig.stored_access(), await rig.access()) == ("access-2", "access-2")
        else:
            assert (await state_in(rig)).signed_out
            await refused(SignedOut, rig.access())

    run(main)


def test_f20_f27_a_sign_in_that_is_stored_late_does_not_replace_a_later_one_of_its_own_process() -> None:
    """Its write is running when the second sign-in is stored."""

    async def main() -> None:
        rig, store, _ = scripted(success(1), success(2), success(3))
        await signed_in_unsaved(rig, store)
        gate = store.steps["put"] = Gate()
        caller = await under_way(rig.source.refresh(), gate)  # it saves first
        store.steps.clear()
        await rig.source.sign_in(refresh_token="two")
        assert await rig.stored_access() == "access-2"
        gate.open.set()
        await asyncio.gather(caller, return_exceptions=True)
        await let_tasks_run()
        assert "refresh-1" not in refresh_tokens(rig)

    run(main)


def test_f20_f27_a_sign_in_that_was_stored_despite_an_error_does_not_replace_its_successor() -> None:
    """Another process has rotated its token, and the spent refresh token is not written over that."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        await signed_in_unsaved(rig, store, at="stored")
        assert (await rig.stored_access(), rig.source.snapshot().unsaved) == ("access-1", True)
        other = beside(rig, success(2))
        await other.source.refresh()
        assert refresh_tokens(other) == ["refresh-1"]
        await let_pass(clock, 1)
        assert await rig.stored_access() == "access-2"
        assert (await rig.access(), rig.source.snapshot().unsaved) == ("access-2", False)

    run(main)


def test_f27_a_sign_in_that_was_stored_despite_an_error_is_found_and_not_written_again() -> None:
    """The next try finds its own record, so it is saved, and no other process is disturbed."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        await signed_in_unsaved(rig, store, at="stored")
        record = await store.load("account")
        await let_pass(clock, 1)
        assert await store.load("account") == record
        assert [type(event) for event in rig.events] == [SignInStarted, SaveFailed, SignedIn, Saved]
        assert not rig.source.snapshot().unsaved

    run(main)


@pytest.mark.parametrize("lost", [False, True], ids=["an older sign-in", "nothing"])
def test_f27_f52_a_sign_in_that_is_stored_late_replaces_what_is_older_and_a_loss(lost: bool) -> None:
    """A refresh of the sign-in before is older. A missing record is no sign-out, which leaves a tombstone."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        await rig.access()
        await signed_in_unsaved(rig, store)
        if lost:
            await store.delete("account")
        else:
            await beside(rig, success(3)).source.refresh()
        assert await rig.stored_access() == (None if lost else "access-3")
        await let_pass(clock, 1)
        assert (await rig.stored_access(), await rig.access()) == ("access-2", "access-2")
        assert not rig.source.snapshot().unsaved

    run(main)


def test_f27_of_two_sign_ins_that_are_stored_late_the_second_stays() -> None:
    """Whenever the first one's write ends, the second one replaces it."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        for name in ("one", "two"):
            await signed_in_unsaved(rig, store, name)
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
        other = beside(rig, invalid_grant())
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
        others = await held_claim(store)
        stored = store.steps["stored"] = Gate()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await wait_in_vain_for_the_claim(clock)
        await stored.arrived.wait()  # stored, but the sign-in does not know it yet
        await others.abandon()
        clock.advance(LIFETIME)
        store.steps["commit"] = fail
        assert await rig.access() == "access-3"
        stored.open.set()
        await signing_in
        store.steps.clear()
        await rig.source.aclose()
        assert (await refresh_token_in(rig), store.has_claims()) == ("refresh-3", False)

    run(main)


def test_f63_a_refresh_token_that_works_once_is_not_sent_without_the_claim() -> None:
    """Another process may wait to send the same one. After two minutes the person is told to try again."""

    async def main() -> None:
        rig = await holding(success(2))
        others = await held_claim(rig.store)
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await wait_in_vain_for_the_claim(rig.clock, 120)
        await refused(ClaimTimeout, signing_in)
        await others.abandon()
        assert (await rig.source.sign_in(refresh_token="new")).access_token == "access-2"
        assert rig.token_requests == 2

    run(main)


def test_f41_f52_an_operator_signs_a_key_out_and_no_process_brings_it_back() -> None:
    """Without a provider. The configured credential counts as known, so a restart does not sign in either."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        ours = processes.start(refresh_token="configured")
        assert not await sign_out(processes.store, "account"), "there is nothing yet"
        await ours.access()
        assert await sign_out(processes.store, "account")
        assert not await sign_out(processes.store, "account"), "it is signed out already"
        processes.clock.advance(LIFETIME)
        await refused(SignedOut, ours.access(), processes.start(refresh_token="configured").access())
        await known(ours, refresh_token="configured")
        assert (await ours.source.sign_in(refresh_token="new")).access_token == "access-2"
        assert processes.sent == ["configured", "new"]

    run(main)


@pytest.mark.parametrize("late", [False, True], ids=["the refresh first", "the sign-out first"])
def test_f20_an_operators_sign_out_wins_against_a_refresh_that_is_running(late: bool) -> None:
    """The refresh is stored between its look and its write, or comes after it."""

    async def main() -> None:
        paused = Paused(success(2))
        rig, store, clock = scripted(success(1), paused)
        await rig.access()
        refreshing = await under_way(rig.source.refresh(), paused)
        gate = store.steps["put"] = Gate()
        signing_out = await under_way(sign_out(store, "account"), gate)
        store.steps.clear()
        for step in (gate.open.set, paused.release) if late else (paused.release, gate.open.set):
            step()
            await let_tasks_run()
        assert await signing_out
        await asyncio.wait([refreshing])
        clock.advance(LIFETIME)
        await refused(SignedOut, rig.access())

    run(main)


@pytest.mark.parametrize("credential", [{"refresh_token": "new"}, {"code": "new"}], ids=["token", "code"])
def test_f41_f63_a_credential_that_a_sign_out_overtook_is_not_sent_again(credential: dict[str, str]) -> None:
    """It has been redeemed, and the sign-out wins. In another process it would be a reuse."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(paused, success(2))
        ours, other = processes.start(), processes.start()
        signing_in = await under_way(ours.source.sign_in(**credential), paused)
        await other.source.sign_out()
        paused.release()
        await refused(SignedOut, signing_in)
        for rig in (other, ours, processes.start()):
            await known(rig, **credential)
            await refused(SignedOut, rig.access())
        assert processes.sent == ["new"]

    run(main)


def test_f41_f63_a_configured_credential_that_a_sign_out_overtook_is_not_sent_again() -> None:
    """Not even when the sign-in after it dies, and the configured credential is all that is left."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(paused, success(2), invalid_grant(), success(3))
        ours, other = processes.start(refresh_token="configured"), processes.start()
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
        restarted = processes.start(refresh_token="configured")
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


@pytest.mark.parametrize("first", ["token", "sign_in"])
def test_f63_k14_a_code_that_token_and_sign_in_bring_at_once_is_sent_once(first: str) -> None:
    """The configured code is brought to `sign_in` too, as by a callback: both get the one token."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(paused)
        rig = processes.start(code="code-1")
        ways = WAYS if first == "token" else WAYS[::-1]
        tasks = [asyncio.create_task(bring(rig, way)) for way in ways]
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
        first = processes.start()
        await first.source.sign_in(code="once")
        if refreshed:
            await first.source.refresh()
        again = first if process == "the same" else processes.start()
        token = await again.source.sign_in(code="once")
        assert token.access_token == ("access-2" if refreshed else "access-1")
        assert processes.sent == ["once", "refresh-1"][: 1 + refreshed]

    run(main)


@pytest.mark.parametrize("later", [None, "here", "elsewhere"], ids=lambda later: f"sign-in since: {later}")
def test_f41_f63_a_credential_whose_token_is_not_stored_yet_is_not_sent_again(later: str | None) -> None:
    """The person brings the refresh token again: it has been redeemed. The next sign-in remembers that."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        ours, other = processes.start(), processes.start()
        await signed_in_unsaved(ours, processes.store)
        if later:
            await (ours if later == "here" else other).source.sign_in(refresh_token="newer")
        processes.store.steps["put"] = fail
        if later:
            await known(ours, refresh_token="new")
        else:
            assert (await ours.source.sign_in(refresh_token="new")).access_token == "access-1"
        processes.store.steps.clear()
        if later == "here":
            await known(ours, processes.start(), refresh_token="new")
        assert processes.sent == ["new", "newer"][: 1 + bool(later)]
        await ours.source.aclose()

    run(main)


def test_f41_a_sign_in_never_returns_an_older_token_than_a_caller_has_got() -> None:
    """The code is brought again, and while its claim ends, another caller finds that there was a refresh."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        other, ours = processes.start(), processes.start()
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
        rig = Rig(success(1), success(2), configured=None)
        await rig.source.sign_in(**{credential: "once"})
        await (rig.source.sign_out() if then == "a sign-out" else rig.source.sign_in(code="another"))
        before = await rig.store.load("account"), rig.token_requests
        await known(rig, **{credential: "once"})
        assert (await rig.store.load("account"), rig.token_requests) == before

    run(main)


def test_f63_an_explicit_sign_in_with_what_can_be_used_again_is_always_sent() -> None:
    """A refresh token that does not rotate may be brought back as often as you like."""

    async def main() -> None:
        rig = Rig(*(success(number, refresh=None) for number in range(1, 5)), configured="A", rotates=False)
        await rig.access()
        for name in "BAA":
            await rig.source.sign_in(refresh_token=name)
        assert refresh_tokens(rig) == ["A", "B", "A", "A"]
        assert await rig.stored_access() == "access-4"

    run(main)


def test_f63_a_code_is_remembered_for_a_day() -> None:
    """Codes live for minutes. After a day its fingerprint makes place for others."""

    async def main() -> None:
        rig = Rig(*(success(number) for number in range(1, 5)), configured=None)
        await rig.source.sign_in(code="once")
        rig.clock.advance(23 * 3600)
        await rig.source.sign_in(code="second")
        await known(rig, code="once")
        rig.clock.advance(3600)
        await rig.source.sign_in(code="third")
        state = await state_in(rig)
        remembered = [name for name in ("once", "second", "third") if state.has_redeemed(fingerprint(name))]
        assert remembered == ["second", "third"]

    run(main)


WAYS = ("configured", "sign_in")
BOTH_WAYS = pytest.mark.parametrize("way", WAYS)


def start(processes: Processes, way: str, **settings: Any) -> Rig:
    """A process that has the code in its configuration, or waits for a sign-in."""
    return processes.start(code="code-1" if way == "configured" else None, **settings)


def bring(rig: Rig, way: str) -> Coroutine[Any, Any, Token]:
    """The call that brings the code."""
    return rig.source.token() if way == "configured" else rig.source.sign_in(code="code-1")


LINES: dict[str, Any] = {
    "lost": OutcomeUnknown("lost"),
    "502": token_response(b"", 502),
    "not sent": NotSent("no route"),
    "429": token_response({}, 429),
    "500": token_response({}, 500),
    "503": token_response({}, 503),
    "invalid_client": token_response({"error": "invalid_client"}, 401),
    "rejected": invalid_grant(),
}


def test_f63_a_process_that_comes_too_late_with_a_code_leaves_the_note_of_the_first() -> None:
    """Two bring it at once, while a refresh holds the claim. The second takes back no note but its own."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(paused, success(2))
        held = await held_claim(processes.store)
        sources = [processes.start().source for _ in range(2)]
        first, second = (asyncio.create_task(source.sign_in(code="once")) for source in sources)
        await wait_in_vain_for_the_claim(processes.clock)
        await paused.arrived.wait()
        await held.abandon()
        await refused(SignInRequired, second, match="redeemed already")
        await known(processes.start(), code="once")
        paused.release()
        assert (await first).access_token == "access-1"

    run(main)


@BOTH_WAYS
@pytest.mark.parametrize("failure", ["not sent", "429", "500", "503", "invalid_client"])
def test_f63_a_code_that_was_not_redeemed_is_sent_again(failure: str, way: str) -> None:
    """No connection, a 429, a 5xx or a wrong secret: the server has kept the code, so it still works."""

    async def main() -> None:
        processes = Processes(LINES[failure], success(1))
        rig = start(processes, way)
        error = await refused(TokenSessionError, bring(rig, way))
        assert not isinstance(error, SignInRequired)
        assert not processes.store.has_claims()
        processes.clock.advance(60)
        assert (await bring(rig, way)).access_token == "access-1"
        assert processes.sent == ["code-1"] * 2

    run(main)


@BOTH_WAYS
@pytest.mark.parametrize("failure", ["lost", "502"])
def test_f63_a_code_whose_answer_was_lost_is_sent_once_more_at_once(failure: str, way: str) -> None:
    """Servers accept that for a moment, if the first request did not reach them; later it is no use."""

    async def main() -> None:
        processes = Processes(LINES[failure], success(1))
        assert (await bring(start(processes, way), way)).access_token == "access-1"
        assert processes.sent == ["code-1"] * 2

    run(main)


@BOTH_WAYS
@pytest.mark.parametrize("rotates", [True, False], ids=["rotates", "does not rotate"])
@pytest.mark.parametrize("second", ["lost", "not sent", "429", "500", "rejected"])
def test_f63_a_code_whose_answer_was_lost_is_never_sent_a_third_time(
    second: str, rotates: bool, way: str
) -> None:
    """Whatever comes of the repetition: the first request may have redeemed it (RFC 6749, 4.1.2)."""

    async def main() -> None:
        processes = Processes(LINES["lost"], LINES[second])
        rig, restarted = (start(processes, way, rotates=rotates) for _ in range(2))
        await refused(GrantLost if second == "rejected" else TokenSessionError, bring(rig, way))
        for process in (rig, restarted, rig):
            processes.clock.advance(60)
            error = await refused(GrantLost if way == "configured" else SignInRequired, bring(process, way))
            assert second == "rejected" or "rejected" not in str(error)  # no one has said so
        assert processes.sent == ["code-1"] * 2

    run(main)


@pytest.mark.parametrize("before", [[], [OutcomeUnknown("lost")]], ids=["first", "repetition"])
def test_f63_a_code_whose_request_was_cut_short_is_not_sent_again(before: list[Any]) -> None:
    """Its process closed while it was on the way, and it may have been redeemed."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(*before, paused, success(2))
        rig = processes.start(code="code-1")
        caller = await under_way(rig.access(), paused)
        closing = asyncio.create_task(rig.source.aclose())
        await seconds_until_done(closing, processes.clock)
        await refused(TokenSessionError, caller)
        for process in (rig, processes.start(code="code-1")):
            processes.clock.advance(60)
            await refused(GrantLost, process.access())
        assert processes.sent == ["code-1"] * (len(before) + 1)

    run(main)


def test_f63_a_code_is_not_repeated_after_a_response_that_cannot_be_read() -> None:
    """There was an answer, and it may have had the token: a repetition would only revoke it."""

    async def main() -> None:
        processes = Processes(token_response(b"<html>"))
        rig = processes.start(code="code-1")
        await refused((InvalidTokenResponse, GrantLost), rig.access())
        processes.clock.advance(60)
        await keep_failing(GrantLost, rig, times=2, pause=60)
        assert processes.sent == ["code-1"]

    run(main)


def test_f63_a_rejected_code_is_sent_once() -> None:
    """In this process and in another, and the stored sign-in stays as it is."""

    async def main() -> None:
        processes = Processes(success(1), invalid_grant(), success(2))
        rigs = processes.start(), processes.start()
        await rigs[0].source.sign_in(code="once")
        await refused(SignInRequired, *(rig.source.sign_in(code="bad") for rig in rigs))
        assert processes.sent == ["once", "bad"]
        processes.clock.advance(LIFETIME)
        assert await rigs[0].access() == "access-2"

    run(main)


@BOTH_WAYS
def test_f17_f63_a_code_that_was_being_sent_when_its_process_was_killed_is_not_sent_again(way: str) -> None:
    """The note is there before the code leaves, so the next process knows, and says to sign in again."""
    paused = Paused(success(1))
    processes = Processes(paused, success(2))
    killed(bring(start(processes, way), way), paused)

    async def main() -> None:
        rig = start(processes, way)
        if way == "configured":
            caller = await asking_after_a_killed_holder(rig)
            await refused(GrantLost, caller, match="Sign in again")
        else:
            await refused(SignInRequired, bring(rig, way), match="Sign in again")
        assert processes.sent == ["code-1"]
        assert (await rig.source.sign_in(code="new")).access_token == "access-2"

    run(main)


def test_f42_f63_a_sign_in_that_a_closed_event_loop_has_left_behind_holds_up_no_other() -> None:
    """The same code, in the next event loop, does not wait for the dead task."""
    paused = Paused(success(1))
    rig = Rig(paused, success(2), configured=None)
    killed(rig.source.sign_in(code="once"), paused)

    async def main() -> None:
        await known(rig, code="once")
        assert (await rig.source.sign_in(code="new")).access_token == "access-2"
        assert len(rig.source._coordinator._signing_in) == 0

    run(main)


class Deployment(Processes):
    """Processes of a server whose refresh tokens do not rotate, and can be revoked."""

    def __init__(self, *valid: str) -> None:
        super().__init__(*[self.answer] * 50)
        self.valid = set(valid)

    def answer(self, request: TokenRequest) -> TokenResponse:
        (name,) = parse_qs(request.body.decode())["refresh_token"]
        if name not in self.valid:
            return invalid_grant()
        return token_response({"access_token": f"{name}-{len(self.sent)}", "expires_in": LIFETIME})

    def start_with(self, secret: str) -> Rig:
        """A process that is configured with this refresh token."""
        return self.start(refresh_token=secret, rotates=False)


def test_f49_f63_k15_in_a_rolling_deployment_the_newer_configuration_wins() -> None:
    """A process of the old deployment that starts late uses the new secret's token, and starts nothing."""

    async def main() -> None:
        processes = Deployment("OLD", "NEW")
        old = processes.start_with("OLD")
        assert await old.access() == "OLD-1"
        new = processes.start_with("NEW")
        assert await new.access() == "NEW-2"
        late = processes.start_with("OLD")
        assert await late.access() == "NEW-2"
        for _ in range(3):
            processes.clock.advance(LIFETIME)
            assert {(await rig.access()).split("-")[0] for rig in (new, old, late)} == {"NEW"}
        processes.valid.discard("OLD")
        processes.clock.advance(LIFETIME)
        rigs = late, new, old, processes.start_with("NEW")
        assert {(await rig.access()).split("-")[0] for rig in rigs} == {"NEW"}
        assert processes.sent.count("OLD") == 1

    run(main)


def test_f49_f63_k15_a_configuration_that_was_rolled_back_is_used_if_the_newer_one_is_rejected() -> None:
    """The new secret was wrong, and the operator goes back to the old one."""

    async def main() -> None:
        processes = Deployment("OLD", "NEW")
        old = processes.start_with("OLD")
        await old.access()
        new = processes.start_with("NEW")
        await new.access()
        processes.valid.discard("NEW")
        processes.clock.advance(LIFETIME)
        await refused(GrantRejected, new.access())
        back = processes.start_with("OLD")
        for rig in (back, old, new):
            assert (await rig.access()).startswith("OLD")
            processes.clock.advance(1)
        assert processes.sent.count("NEW") == 2

    run(main)


def test_f49_f63_a_new_secret_that_was_rejected_at_once_disturbs_no_running_process() -> None:
    """The process with the wrong secret is told, and those with the right one go on."""

    async def main() -> None:
        processes = Deployment("OLD")
        old, wrong = processes.start_with("OLD"), processes.start_with("WRONG")
        for _ in range(3):
            assert (await old.access()).startswith("OLD")
            await refused(GrantRejected, wrong.access())
            processes.clock.advance(LIFETIME)
        assert (await old.access()).startswith("OLD")
        assert processes.sent.count("WRONG") == 1

    run(main)


def test_f49_f63_the_last_sixteen_configurations_are_remembered() -> None:
    """A process of any of them that starts late does not end the newest one's sign-in."""

    async def main() -> None:
        names = [f"secret-{number}" for number in range(17)]
        processes = Deployment(*names)
        for name in names:
            newest = await processes.start_with(name).access()
        for name in names[:-1]:
            assert await processes.start_with(name).access() == newest
        assert processes.sent == names
        assert len((await state_in(processes.start_with(names[0]))).superseded) == 16

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


@pytest.mark.parametrize("credential", ["code", "refresh_token"])
def test_f40_k27_with_the_default_key_another_credential_is_another_record(credential: str) -> None:
    """The key contains the credential, so the running service does not learn of it: name your keys."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        for number in (1, 2):
            rig = processes.start(key=None, **{credential: f"credential-{number}"})
            assert await rig.access() == f"access-{number}"
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
        rig, other = (Rig(success(1), store=store, clock=clock) for store in (ours, theirs))
        caller = asyncio.create_task(rig.access())
        await asyncio.to_thread(records.arrived.wait, 30)
        await let_tasks_run()
        await let_pass(clock, 10)  # store_timeout
        clock.advance(2)
        assert await caller == "access-1"
        records.go.set()
        for _ in range(2):  # runs after the write, and after what follows it
            await ours.load("account")
        waiting = asyncio.create_task(other.access())
        for _ in range(2):
            await theirs.load("account")
        await let_tasks_run()
        assert (other.token_requests, waiting.done()) == (0, False)
        records.failing = False
        await rig.source.aclose()  # this stores it
        while not waiting.done():
            clock.advance(0.01)
            await theirs.load("account")
        assert (await waiting, other.token_requests) == ("access-1", 0)
        await close(rig, other)

    run(main)
