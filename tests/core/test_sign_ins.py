"""Sign-ins that overlap with each other, with sign-outs, or with a failing store: the last call wins."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, success
from _scripted_store import Gate, ScriptedStore, fail, scripted

from tokensession import SignedOut, StoreCorrupt, StoreUnavailable
from tokensession.stores import FileStore, Record, SQLiteStore
from tokensession.testing import FakeClock, Paused


async def corrupt() -> None:
    """The record is damaged."""
    raise StoreCorrupt("The record is damaged.")


# -- a sign-in that is stored late -------------------------------------------------------------------


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
        clock.advance(1)
        await let_tasks_run()
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
        clock.advance(1)
        await let_tasks_run()
        assert await rig.stored_access() == "access-2"
        assert (await rig.access(), rig.source.snapshot().unsaved) == ("access-2", False)

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
        clock.advance(1)
        await let_tasks_run()
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
        clock.advance(1)
        await let_tasks_run()
        state = await rig.stored()
        assert state is not None
        assert (await rig.stored_access(), state.signed_out) == (
            ("access-2", False) if then == "sign in" else (None, True)
        )

    run(main)


def test_f27_a_sign_in_that_is_stored_late_does_not_restore_a_deleted_key() -> None:
    """The record that it was to replace has been deleted, so nothing is stored."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        await rig.access()
        await signed_in_unsaved(rig, store)
        await store.delete(rig.source.key)
        clock.advance(1)
        await let_tasks_run()
        assert (await rig.stored(), rig.source.snapshot().unsaved) == (None, False)

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
        clock.advance(1)
        await let_tasks_run()
        assert (await rig.stored_access(), await rig.access()) == ("access-2", "access-2")
        assert not rig.source.snapshot().unsaved

    run(main)


@pytest.mark.parametrize("first", ["refresh", "sign in"])
def test_f27_an_unsaved_refresh_holds_its_claim_until_the_sign_in_after_it_is_stored(first: str) -> None:
    """The stored refresh token is spent, so no other process may send it."""

    async def main() -> None:
        paused = Paused(success(2))
        rig, store, clock = scripted(success(1), paused, success(3))
        await rig.access()
        caller = asyncio.create_task(rig.source.refresh())
        await paused.arrived.wait()
        store.steps |= {"put": fail, "commit": fail}
        if first == "refresh":
            paused.release()
            await caller
        await rig.source.sign_in(refresh_token="new")
        paused.release()
        await asyncio.gather(caller, return_exceptions=True)
        assert (await rig.stored_access(), rig.source.snapshot().unsaved) == ("access-1", True)
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
        response = Paused(success(2, expires_in=1))
        rig, store, clock = scripted(success(1), response, success(3))
        await rig.access()
        clock.advance(LIFETIME)
        claim_gate = store.steps["claim"] = Gate()
        caller = asyncio.create_task(rig.source.token())
        await claim_gate.arrived.wait()
        stored_gate = store.steps["stored"] = Gate()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await response.arrived.wait()
        response.release()
        await stored_gate.arrived.wait()  # stored, but the sign-in does not know it yet
        clock.advance(1)
        commit_gate = Gate()

        async def commit() -> None:
            await commit_gate()
            await fail()

        store.steps["commit"] = commit
        claim_gate.open.set()
        await commit_gate.arrived.wait()
        stored_gate.open.set()
        await signing_in
        commit_gate.open.set()
        await asyncio.gather(caller, return_exceptions=True)
        store.steps.clear()
        await rig.source.aclose()
        state = await rig.stored()
        assert state is not None
        assert state.token is not None
        assert (state.token.refresh_token, store.has_claims()) == ("refresh-3", False)

    run(main)


# -- calls that overlap ------------------------------------------------------------------------------


def test_f41_a_sign_in_that_was_stored_before_a_sign_out_is_not_served_after_it() -> None:
    """The sign-out returns first, and the stored record says which of the two was last."""

    async def main() -> None:
        rig, store, _ = scripted(success(1))
        gate = store.steps["stored"] = Gate()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await gate.arrived.wait()
        store.steps.clear()
        await rig.source.sign_out()
        gate.open.set()
        await signing_in
        with pytest.raises(SignedOut):
            await rig.access()

    run(main)


@pytest.mark.parametrize("again", ["A", "B"])
def test_a_code_is_redeemed_once_even_with_another_code_in_between(again: str) -> None:
    """A server may revoke a code's token if the code arrives a second time (RFC 6749, 4.1.2)."""

    async def main() -> None:
        responses = {"A": Paused(success(1)), "B": Paused(success(2))}
        rig, _, _ = scripted(*responses.values(), invalid_grant())
        calls = []
        for code, response in responses.items():
            calls.append(asyncio.create_task(rig.source.sign_in(code=code)))
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
        paused = Paused(success(2))
        rig, store, clock = scripted(success(1), paused, success(3))
        unauthorized = await rig.source.token()
        clock.advance(1000)
        caller = asyncio.create_task(rig.source.refresh(unauthorized))
        await paused.arrived.wait()
        store.steps["put"] = fail
        await rig.source.sign_in(refresh_token="new")
        paused.release()
        assert (await caller).access_token == "access-3"

    run(main)


# -- a commit that fails after its time-out ----------------------------------------------------------


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
        records = ours._claims._records = HangingRecords(ours._claims._records)  # type: ignore[assignment]
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
