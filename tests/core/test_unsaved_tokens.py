"""The outcome of a token request is not lost if the store fails, or if you cancel, sign in or sign out."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

import pytest
from _moments import (
    beside,
    held_claim,
    let_pass,
    refresh_token_in,
    refused,
    reset,
    state_in,
    under_way,
    wait_in_vain_for_the_claim,
)
from _rig import (
    Rig,
    invalid_grant,
    let_tasks_run,
    run,
    run_in_every_turn,
    seconds_until_done,
    success,
    until_sleeping,
)
from _scripted_store import Gate, ScriptedStore, fail, hang, running_task, scripted

from tokensession import (
    ClaimTimeout,
    ConfigurationError,
    OutcomeUnknown,
    SignedOut,
    SignInRequired,
    StoreUnavailable,
    TokenUnavailable,
)
from tokensession._refresh.state import Now, TokenState, encode
from tokensession.clock import within
from tokensession.events import RefreshFailed, Saved
from tokensession.providers import OAuth2
from tokensession.testing import FakeClock, Paused, token_response


async def unsaved_and_claimed(*script: Any) -> tuple[Rig, ScriptedStore, FakeClock]:
    """A process whose token is not stored, so it holds the claim. Commits fail."""
    rig, store, clock = scripted(success(1), *script)
    store.steps["commit"] = fail
    assert await rig.access() == "access-1"
    return rig, store, clock


def test_f63_a_sign_in_that_relies_on_a_claim_that_ended_sends_nothing() -> None:
    """The lease of the unsaved token has ended. The holder of the claim may send the same refresh token."""

    async def main() -> None:
        rig, store, _ = await unsaved_and_claimed(success(2))
        store._holders.clear()  # as if its lease had ended
        others = await held_claim(store)
        await refused(StoreUnavailable, rig.source.sign_in(refresh_token="new"))
        assert rig.transport.sent == 1
        await others.abandon()
        assert (await rig.source.sign_in(refresh_token="new")).access_token == "access-2"

    run(main)


def test_f63_the_claim_that_a_sign_in_relies_on_does_not_end_as_the_unsaved_token_is_stored() -> None:
    """Otherwise another process could send the same refresh token at once. It ends with the sign-in."""

    async def main() -> None:
        paused = Paused(success(2))
        rig, store, clock = await unsaved_and_claimed(paused)
        signing_in = await under_way(rig.source.sign_in(refresh_token="new"), paused)
        store.steps.clear()
        await let_pass(clock, 60)
        assert (await rig.stored_access(), rig.source.snapshot().unsaved) == ("access-1", False)
        with pytest.raises(ClaimTimeout):
            await held_claim(store)
        paused.release()
        assert (await signing_in).access_token == "access-2"
        assert not store.has_claims()

    run(main)


def test_f41_a_sign_out_while_a_sign_in_releases_an_old_claim_is_not_undone() -> None:
    """A sign-out that comes while a sign-in cleans up wins, in the store and in memory."""

    async def main() -> None:
        rig, store, _ = scripted(success(1), success(2))
        store.steps["commit"] = fail
        assert await rig.access() == "access-1", "unsaved, and the claim stays held"
        gate = store.steps["abandon"] = Gate()
        signing_in = await under_way(rig.source.sign_in(refresh_token="new"), gate)
        signing_out = asyncio.create_task(rig.source.sign_out())
        await let_tasks_run()
        gate.open.set()
        await signing_out
        await refused(SignedOut, signing_in, rig.access())

    run(main)


@pytest.mark.parametrize(
    ("way", "step"),
    [("refresh", "request"), ("refresh", "committed"), ("sign in", "stored")],
    ids=["during the request", "after the commit", "after a sign-in was stored"],
)
def test_f41_what_a_sign_out_has_overtaken_is_not_served_after_it(way: str, step: str) -> None:
    """The sign-out returns first, and the stored record says which of the two was last."""

    async def main() -> None:
        paused, gate = Paused(success(1)), Gate()
        rig, store, _ = scripted(paused)
        if step != "request":
            store.steps[step] = gate
            paused.release()
        call = rig.source.token() if way == "refresh" else rig.source.sign_in(refresh_token="new")
        caller = await under_way(call, paused if step == "request" else gate)
        store.steps.clear()
        await rig.source.sign_out()
        paused.release()
        gate.open.set()
        await refused(SignedOut, caller, rig.access())
        assert (await state_in(rig)).signed_out
        assert rig.token_requests == 1

    run(main)


def test_f27_an_unsaved_sign_in_is_not_lost_to_a_refresh_that_saves_an_older_token() -> None:
    """The sign-in is served from the moment it returns, and stored over whatever the refresh has stored."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2), success(3))
        store.steps["commit"] = fail
        await rig.access()
        gate = store.steps["commit"] = Gate()
        caller = await under_way(rig.source.refresh(), gate)
        store.steps["put"] = fail
        assert (await rig.source.sign_in(refresh_token="new")).access_token == "access-2"
        store.steps.clear()
        gate.open.set()
        await asyncio.gather(caller, return_exceptions=True)
        assert await rig.access() == "access-2"
        await let_pass(clock, 1)
        assert (await rig.access(), await rig.stored_access()) == ("access-2", "access-2")
        assert not rig.source.snapshot().unsaved
        assert not store.has_claims()

    run(main)


@pytest.mark.parametrize("newer", ["a sign-in", "another process"])
def test_f20_without_rotation_a_late_refresh_does_not_replace_a_newer_token(newer: str) -> None:
    """Old and new tokens have the same refresh token then, and the newer access token still stays."""

    async def main() -> None:
        paused = Paused(success(1, refresh=None))
        rig = Rig(paused, success(2, refresh=None), rotates=False)
        caller = await under_way(rig.access(), paused)
        if newer == "a sign-in":
            signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="configured-token"))
            await wait_in_vain_for_the_claim(rig.clock)
            await signing_in
        else:
            rig.store._holders.clear()  # as if its lease had lapsed
            other = beside(rig, success(2, refresh=None), rotates=False)
            assert await other.access() == "access-2"
        paused.release()
        await asyncio.gather(caller, return_exceptions=True)
        assert await rig.stored_access() == "access-2"
        assert await rig.access() == "access-2"

    run(main)


def test_f02_a_claim_granted_to_a_cancelled_refresh_is_released() -> None:
    """In whichever turn of the event loop the refresh is cancelled, its claim does not stay held."""

    async def main(turn: int) -> None:
        rig = Rig(success(1))
        caller = asyncio.create_task(rig.access())
        await let_tasks_run(turn + 1)
        if rig.source._coordinator._tasks.running:
            running_task(rig).cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await let_tasks_run()
        assert not rig.store._holders, turn

    run_in_every_turn(main, 60)


def test_f01_a_response_that_has_arrived_is_stored_although_the_refresh_is_cancelled() -> None:
    """In whichever turn after the response's arrival the refresh is cancelled, the token is stored."""

    async def main(turn: int) -> None:
        paused = Paused(success(1))
        rig, store, _ = scripted(paused)
        store.steps["commit"] = partial(let_tasks_run, 3)
        caller = await under_way(rig.access(), paused)
        paused.release()
        await let_tasks_run(turn + 2)  # by then the transport has it
        if rig.source._coordinator._tasks.running:
            running_task(rig).cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await let_tasks_run()
        assert await rig.stored_access() == "access-1", turn

    run_in_every_turn(main, 40)


def test_f01_a_write_that_is_cancelled_twice_leaves_the_mark_of_its_claim() -> None:
    """If a new token cannot be stored before the end, the claim's mark stays behind."""

    async def main(turn: int) -> None:
        rig, store, clock = scripted(success(1))
        gate = store.steps["commit"] = Gate()
        caller = await under_way(rig.access(), gate)
        task = running_task(rig)
        task.cancel()
        await let_tasks_run(turn + 1)
        task.cancel()
        await let_tasks_run()
        clock.advance(10)  # store_timeout, in case the second cancellation came before the second try
        await asyncio.gather(caller, return_exceptions=True)
        assert await rig.stored_access() is not None or store.has_claims(), turn
        assert rig.source.snapshot().unsaved, "closing must raise"

    run_in_every_turn(main, 12)


def test_f01_a_cancelled_request_whose_note_is_superseded_is_not_repeated() -> None:
    """A refresh that is stopped stays stopped, whatever it finds in the store."""

    async def main() -> None:
        paused = Paused(success(1))
        rig = Rig(paused, success(2))
        caller = await under_way(rig.access(), paused)
        assert rig.provider.credential is not None
        newer = TokenState(number=1, configured=rig.provider.credential.fingerprint)
        await rig.store.put("account", encode(newer, Now(rig.clock.wall(), rig.clock.boot())))
        running_task(rig).cancel()
        await refused(TokenUnavailable, caller)
        assert rig.token_requests == 1

    run(main)


def test_f01_a_code_whose_note_is_cut_short_is_not_sent_again_after_a_loss_of_data() -> None:
    """What this process has sent it remembers from the moment of the answer, whatever the store does."""

    async def main() -> None:
        code = OAuth2(token_url="https://id.example.com/token", client_id="c", client_secret="s", code="code")
        paused = Paused(invalid_grant())
        rig, store, clock = scripted(paused, success(2), provider=code)
        caller = await under_way(rig.access(), paused)
        store.steps["put"] = Gate()
        paused.release()
        await let_tasks_run()
        running_task(rig).cancel()
        await asyncio.gather(caller, return_exceptions=True)
        store.steps.clear()
        await store.delete("account")
        clock.advance(2)
        await refused(SignInRequired, rig.access())
        assert rig.token_requests == 1

    run(main)


NOTED: dict[str, Any] = {
    "lost": OutcomeUnknown("lost"),
    "500": token_response({}, 500),
    "rejected": invalid_grant(),
}


@pytest.mark.parametrize("credential", ["refresh token", "code"])
@pytest.mark.parametrize("answer", NOTED)
def test_f20_a_note_never_replaces_what_another_process_has_stored(answer: str, credential: str) -> None:
    """The failure is about an older state, so the newer one stays as it is, and its token is served."""

    async def main() -> None:
        paused = Paused(NOTED[answer])
        code = OAuth2(token_url="https://id.example.com/token", client_id="c", client_secret="s", code="code")
        more = [OutcomeUnknown("lost")] if (answer, credential) == ("lost", "code") else []
        rig = Rig(paused, *more, provider=code if credential == "code" else None)
        caller = await under_way(rig.access(), paused)
        other = beside(rig, success(9), provider=rig.provider)
        signing_in = asyncio.create_task(other.source.sign_in(code="new"))
        await wait_in_vain_for_the_claim(rig.clock)
        await signing_in
        record = await rig.store.load("account")
        paused.release()
        await asyncio.gather(caller, return_exceptions=True)
        await rig.refreshed()
        assert await rig.store.load("account") == record
        assert await rig.access() == "access-9"
        assert rig.token_requests == 1 + len(more)

    run(main)


def test_f43_a_sign_in_that_is_stopped_as_the_store_fails_is_still_pending() -> None:
    """Its caller gets an error that says it was stopped, and its token is unsaved until closing stores it."""

    async def main() -> None:
        rig, store, _ = scripted(success(1))
        gate = Gate()

        async def put() -> None:
            try:
                await gate()
            finally:
                store.steps["put"] = fail

        store.steps["put"] = put
        signing_in = await under_way(rig.source.sign_in(refresh_token="x"), gate)
        running_task(rig).cancel()
        await refused(TokenUnavailable, signing_in, match="stopped")
        assert rig.source.snapshot().unsaved
        store.steps.clear()
        await rig.source.aclose()
        assert await rig.stored_access() == "access-1"

    run(main)


def test_f03_a_deadline_that_is_cancelled_twice_leaves_no_timer() -> None:
    async def main() -> None:
        clock, release = FakeClock(), asyncio.Event()

        async def ignores_cancellation() -> None:
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        task = asyncio.create_task(within(clock, 30, ignores_cancellation()))
        await let_tasks_run()
        for _ in range(2):
            task.cancel()
            await let_tasks_run()
        assert task.done()
        assert not clock.sleepers
        release.set()
        await let_tasks_run()

    run(main)


async def cancels_itself() -> None:
    """As a driver does whose connection pool is being closed."""
    raise asyncio.CancelledError


async def misconfigured() -> None:
    """As an encrypting store without its key does."""
    raise ConfigurationError("No key to encrypt with.")


@pytest.mark.parametrize("problem", [cancels_itself, misconfigured, reset, hang])
def test_f27_whatever_a_third_party_store_does_a_rotated_token_is_served_and_saved(problem: Any) -> None:
    """A commit that raises an unexpected exception, or hangs, has failed, and the token is saved again."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps["commit"] = problem
        caller = asyncio.create_task(rig.access())
        assert await seconds_until_done(caller, clock) == (10 if problem is hang else 0)
        assert await caller == "access-1"
        assert rig.source.snapshot().unsaved
        store.steps.clear()
        clock.advance(31)
        while rig.source.snapshot().unsaved:
            await let_tasks_run()
        assert await refresh_token_in(rig) == "refresh-1"

    run(main)


def test_f43_a_transport_that_cancels_itself_has_failed() -> None:
    """It is an event and is remembered for the back-off, because no one has cancelled the refresh."""

    async def main() -> None:
        rig = Rig(asyncio.CancelledError(), clock=FakeClock(jitter=1.0))
        await refused(TokenUnavailable, rig.access())
        assert any(isinstance(event, RefreshFailed) for event in rig.events)
        assert rig.source.snapshot().last_error == "OutcomeUnknown"

    run(main)


def test_two_tasks_that_save_the_same_token_report_it_once() -> None:
    """The next refresh saves first, while a try in the background is running."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        store.steps["commit"] = fail
        await rig.access()
        gate = store.steps["commit"] = Gate()
        await until_sleeping(clock, 1)
        clock.advance(1)
        await gate.arrived.wait()
        caller = asyncio.create_task(rig.source.refresh())
        await let_tasks_run()
        store.steps.clear()
        gate.open.set()
        await caller
        await let_tasks_run()
        assert sum(isinstance(event, Saved) for event in rig.events) == 1

    run(main)
