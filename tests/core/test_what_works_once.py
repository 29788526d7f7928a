"""Codes, and refresh tokens that work once: whatever happens, they are sent once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from _moments import (
    asking_after_a_killed_holder,
    beside,
    held_claim,
    holding,
    keep_failing,
    killed,
    refresh_tokens,
    refused,
    state_in,
    under_way,
    wait_in_vain_for_the_claim,
)
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, seconds_until_done, success
from _scripted_store import Gate, fail, scripted
from _several import Processes, known, signed_in_unsaved

from tokensession import (
    ClientRejected,
    GrantLost,
    InvalidTokenResponse,
    NotSent,
    OutcomeUnknown,
    SignInRequired,
    Token,
    TokenSessionError,
    TokenUnavailable,
)
from tokensession.testing import FakeClock, Paused, token_response
from tokensession.token import fingerprint


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


@pytest.mark.parametrize("expires_in", [0, -1, "-5"])
def test_f63_a_sign_in_whose_token_is_over_at_once_returns_it(expires_in: Any) -> None:
    """Its code is spent, and it may have brought no refresh token to get another one with."""

    async def main() -> None:
        processes = Processes(token_response({"access_token": "access-1", "expires_in": expires_in}))
        token = await processes.start().source.sign_in(code="once")
        assert token.access_token == "access-1"
        assert processes.sent == ["once"]

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


@pytest.mark.parametrize("failure", ["429", "503", "invalid_client"])
@pytest.mark.parametrize("looks", ["same", "other"])
def test_f63_a_code_that_was_not_redeemed_is_sent_again_by_the_one_that_saw_its_note(
    looks: str, failure: str
) -> None:
    """A caller asks for a token, in this process or another, while the code is on its way."""

    async def main() -> None:
        paused = Paused(LINES[failure])
        processes = Processes(paused, success(1))
        first = processes.start()
        again = first if looks == "same" else processes.start()
        signing_in = await under_way(first.source.sign_in(code="once"), paused)
        await refused(SignInRequired, again.access())
        paused.release()
        await refused((TokenUnavailable, ClientRejected), signing_in)
        assert (await again.source.sign_in(code="once")).access_token == "access-1"

    run(main)


@pytest.mark.parametrize("failure", ["429", "503", "invalid_client"])
def test_f63_a_configured_code_that_was_not_redeemed_is_sent_again_by_two_several(
    failure: str,
) -> None:
    """The second has seen the note of the first, and then that it was taken back."""

    async def main() -> None:
        paused = Paused(LINES[failure])
        processes = Processes(paused, success(1))
        first, second = (processes.start(code="code-1") for _ in range(2))
        callers = [await under_way(first.access(), paused), asyncio.create_task(second.access())]
        await let_tasks_run()
        paused.release()
        await asyncio.gather(*callers, return_exceptions=True)
        processes.clock.advance(60)
        assert [await first.access(), await second.access()] == ["access-1"] * 2
        assert processes.sent == ["code-1"] * 2

    run(main)


def test_f63_the_note_of_a_code_that_was_not_redeemed_is_taken_back_from_a_later_record() -> None:
    """The sign-in went on without the claim, and then the refresh that held it was stored over the note."""

    async def main() -> None:
        answer = Paused(success(2))
        rig = await holding(answer, age=LIFETIME)
        caller = await under_way(rig.access(), answer)
        code = Paused(token_response({}, 503))
        other = beside(rig, code, success(3))
        signing_in = asyncio.create_task(other.source.sign_in(code="once"))
        await wait_in_vain_for_the_claim(rig.clock)
        await code.arrived.wait()
        answer.release()
        assert await caller == "access-2"
        code.release()
        await refused(TokenUnavailable, signing_in)
        assert (await other.source.sign_in(code="once")).access_token == "access-3"

    run(main)


def test_f63_the_note_of_a_code_that_was_not_redeemed_is_taken_back_from_a_sign_out() -> None:
    """It comes between the look and the write that take the note back."""

    async def main() -> None:
        code = Paused(token_response({}, 503))
        processes = Processes(code, success(1))
        first, second, gate = processes.start(), processes.start(), Gate()
        signing_in = await under_way(first.source.sign_in(code="once"), code)
        processes.store.steps["put"] = gate
        code.release()
        await gate.arrived.wait()
        processes.store.steps.clear()
        await second.source.sign_out()
        gate.open.set()
        await refused(TokenUnavailable, signing_in)
        assert (await second.source.sign_in(code="once")).access_token == "access-1"

    run(main)


def test_f63_what_a_sign_in_sees_as_it_takes_its_note_back_is_known_if_the_store_loses_it() -> None:
    """Another process has redeemed a code, and the record is gone when the person brings that code here."""

    async def main() -> None:
        code = Paused(token_response({}, 503))
        processes = Processes(code, success(1), success(2))
        first, second = processes.start(), processes.start()
        signing_in = await under_way(first.source.sign_in(code="once"), code)
        elsewhere = asyncio.create_task(second.source.sign_in(code="new"))
        await wait_in_vain_for_the_claim(processes.clock)
        await elsewhere
        code.release()
        await refused(TokenUnavailable, signing_in)
        await processes.store.delete("account")
        assert (await first.source.sign_in(code="new")).access_token == "access-1"
        assert processes.sent == ["once", "new"]

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


def test_f52_f63_what_a_replaced_record_had_redeemed_is_not_sent_after_an_older_record_comes_back() -> None:
    """Our record has taken the note over. A store that goes back loses it; this process does not."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        await rig.source.sign_in(refresh_token="one")
        ours = await store.load("account")
        assert ours is not None
        await store.delete("account")
        earlier = FakeClock(wall=clock.wall() - 200)
        await Rig(success(2), store=store, clock=earlier).source.sign_in(refresh_token="two")
        await rig.source.refresh()
        assert await rig.stored_access() == "access-1", "ours is the later sign-in, and was written back"
        await store.put("account", ours.data)
        await rig.source.check()
        await known(rig, refresh_token="two")

    run(main)
