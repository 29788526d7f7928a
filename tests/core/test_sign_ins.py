"""Sign-ins beside each other, beside sign-outs, and beside a store that fails: the last word counts."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from _rig import LIFE, Rig, invalid_grant, run, success, turns
from _scripted_store import Gate, OddStore, down, hang

from tokensession import SignedOut, StoreCorrupt, StoreUnavailable
from tokensession.stores import FileStore, Record, SQLiteStore
from tokensession.testing import FakeClock, Paused


def odd(*script: Any, **options: Any) -> tuple[Rig, OddStore, FakeClock]:
    clock = FakeClock(jitter=1.0)
    store = OddStore(clock=clock)
    return Rig(*script, store=store, clock=clock, **options), store, clock


async def corrupt() -> None:
    """The record is."""
    raise StoreCorrupt("The record is damaged.")


async def stored(rig: Rig) -> str | None:
    grant = await rig.stored()
    return grant.token.access_token if grant is not None and grant.token is not None else None


# -- a sign-in that is stored late ------------------------------------------------------------------


async def signed_in_unsaved(rig: Rig, store: OddStore) -> None:
    """Somebody has signed in while the store took nothing; now it does, and the next try will tell."""
    store.steps["put"] = down
    await rig.source.sign_in(refresh_token="new")
    store.steps.clear()


def test_f20_f27_a_sign_in_that_is_stored_late_does_not_replace_a_later_one() -> None:
    """Another process has signed in while ours waited for the store: the account is the other one's."""

    async def scene() -> None:
        rig, store, clock = odd(success(1))
        store.steps["put"] = down
        await rig.source.sign_in(refresh_token="one")
        store.steps.clear()
        other = Rig(success(2), store=store, clock=clock)
        await other.source.sign_in(refresh_token="two")
        clock.advance(1)
        await turns()
        assert await stored(rig) == "access-2"
        assert await rig.access() == "access-2"

    run(scene)


def test_f20_f27_a_sign_in_that_is_stored_late_does_not_replace_a_later_one_of_its_own_process() -> None:
    """Its save is on its way when the second sign-in is stored."""

    async def scene() -> None:
        rig, store, _ = odd(success(1), success(2), success(3))
        store.steps["put"] = down
        await rig.source.sign_in(refresh_token="one")
        gate = store.steps["put"] = Gate()
        asking = asyncio.create_task(rig.source.refresh())  # it saves first
        await gate.arrived.wait()
        store.steps.clear()
        await rig.source.sign_in(refresh_token="two")
        assert await stored(rig) == "access-2"
        gate.open.set()
        await asyncio.gather(asking, return_exceptions=True)
        await turns()
        bodies = [request.body.decode() for request in rig.transport.requests]
        assert not [body for body in bodies if "refresh_token=refresh-1" in body]

    run(scene)


def test_f20_f27_a_sign_in_whose_save_had_no_answer_does_not_replace_what_its_token_became() -> None:
    """It was stored, another process has rotated it, and the spent refresh token is not put over that."""

    async def scene() -> None:
        rig, store, clock = odd(success(1))
        store.steps["stored"] = down
        await rig.source.sign_in(refresh_token="one")
        store.steps.clear()
        assert (await stored(rig), rig.source.snapshot().unsaved) == ("access-1", True)
        other = Rig(success(2), store=store, clock=clock)
        await other.source.refresh()
        assert "refresh-1" in other.sent()
        clock.advance(1)
        await turns()
        assert await stored(rig) == "access-2"
        assert (await rig.access(), rig.source.snapshot().unsaved) == ("access-2", False)

    run(scene)


def test_f27_a_sign_in_that_is_stored_late_replaces_a_refresh_of_what_it_was_to_replace() -> None:
    """Somebody has signed in anew: what another process still gets by the old grant is the older one."""

    async def scene() -> None:
        rig, store, clock = odd(success(1), success(2))
        await rig.access()
        await signed_in_unsaved(rig, store)
        other = Rig(success(3), store=store, clock=clock)
        await other.source.refresh()
        assert await stored(rig) == "access-3"
        clock.advance(1)
        await turns()
        assert (await stored(rig), await rig.access()) == ("access-2", "access-2")

    run(scene)


@pytest.mark.parametrize("then", ["sign in", "sign out"])
def test_f20_f27_a_sign_in_over_a_damaged_record_is_no_stronger_when_it_is_stored_late(then: str) -> None:
    """What was damaged had no version to compare with; what somebody has stored since has one."""

    async def scene() -> None:
        rig, store, clock = odd(success(1))
        store.steps = {"load": corrupt, "put": down}
        await rig.source.sign_in(refresh_token="one")
        store.steps.clear()
        other = Rig(success(2), store=store, clock=clock)
        await (other.source.sign_in(refresh_token="two") if then == "sign in" else other.source.sign_out())
        clock.advance(1)
        await turns()
        grant = await rig.stored()
        assert grant is not None
        assert (await stored(rig), grant.signed_out) == (
            ("access-2", False) if then == "sign in" else (None, True)
        )

    run(scene)


def test_f27_a_sign_in_that_is_stored_late_does_not_bring_back_a_key_that_was_deleted() -> None:
    """An operator has deleted what it was to replace. Where nothing was, it is stored."""

    async def scene() -> None:
        rig, store, clock = odd(success(1), success(2))
        await rig.access()
        await signed_in_unsaved(rig, store)
        await store.delete(rig.source.key)
        clock.advance(1)
        await turns()
        assert (await rig.stored(), rig.source.snapshot().unsaved) == (None, False)

    run(scene)


def test_f27_of_two_sign_ins_that_are_stored_late_the_second_stays() -> None:
    """The first one's write may land at any time: the second knows of it, and goes over it."""

    async def scene() -> None:
        rig, store, clock = odd(success(1), success(2))
        store.steps["put"] = down
        await rig.source.sign_in(refresh_token="one")
        await rig.source.sign_in(refresh_token="two")
        gate = store.steps["put"] = Gate()
        clock.advance(1)
        await gate.arrived.wait()
        gate.open.set()
        clock.advance(1)
        await turns()
        assert (await stored(rig), await rig.access()) == ("access-2", "access-2")
        assert not rig.source.snapshot().unsaved

    run(scene)


@pytest.mark.parametrize("first", ["refresh", "sign in"])
def test_f27_an_unsaved_refresh_holds_its_claim_until_the_sign_in_after_it_is_stored(first: str) -> None:
    """Its refresh token is spent, and is what the store still has: nobody may send it."""

    async def scene() -> None:
        held = Paused(success(2))
        rig, store, clock = odd(success(1), held, success(3))
        await rig.access()
        asking = asyncio.create_task(rig.source.refresh())
        await held.arrived.wait()
        store.steps |= {"put": down, "commit": down}
        if first == "refresh":
            held.release()
            await asking
        await rig.source.sign_in(refresh_token="new")
        held.release()
        await asyncio.gather(asking, return_exceptions=True)
        assert (await stored(rig), rig.source.snapshot().unsaved) == ("access-1", True)
        other = Rig(invalid_grant(), store=store, clock=clock)
        waiting = asyncio.create_task(other.source.refresh())
        await turns()
        assert (other.posts, waiting.done()) == (0, False)
        store.steps.clear()
        await rig.source.aclose()
        assert (await waiting).access_token in ("access-2", "access-3")  # whichever was stored first
        assert (await stored(rig), other.posts, store.held()) == ("access-3", 0, False)

    run(scene)


def test_f27_a_refresh_of_the_new_sign_in_that_is_unsaved_is_not_given_up() -> None:
    """It began before the sign-in had returned, and found that one's record: its token is the only copy."""

    async def scene() -> None:
        sending = Paused(success(2, life=1))
        rig, store, clock = odd(success(1), sending, success(3))
        await rig.access()
        clock.advance(LIFE)
        claiming = store.steps["claim"] = Gate()
        asking = asyncio.create_task(rig.source.token())
        await claiming.arrived.wait()
        telling = store.steps["stored"] = Gate()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await sending.arrived.wait()
        sending.release()
        await telling.arrived.wait()  # stored, and the sign-in does not know it
        clock.advance(1)
        committing = Gate()

        async def commit() -> None:
            await committing()
            await down()

        store.steps["commit"] = commit
        claiming.open.set()
        await committing.arrived.wait()
        telling.open.set()
        await signing_in
        committing.open.set()
        await asyncio.gather(asking, return_exceptions=True)
        store.steps.clear()
        await rig.source.aclose()
        grant = await rig.stored()
        assert grant is not None
        assert grant.token is not None
        assert (grant.token.refresh_token, store.held()) == ("refresh-3", False)

    run(scene)


# -- one after the other, or nearly -----------------------------------------------------------------


def test_f41_a_sign_in_that_was_stored_before_a_sign_out_is_not_served_after_it() -> None:
    """The store answers the sign-out first: then its record says who was the last."""

    async def scene() -> None:
        rig, store, _ = odd(success(1))
        gate = store.steps["stored"] = Gate()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await gate.arrived.wait()
        store.steps.clear()
        await rig.source.sign_out()
        gate.open.set()
        await signing_in
        with pytest.raises(SignedOut):
            await rig.access()

    run(scene)


@pytest.mark.parametrize("again", ["A", "B"])
def test_a_code_is_redeemed_once_whatever_other_code_comes_between(again: str) -> None:
    """A server may revoke what a code has brought when it comes a second time (RFC 6749, 4.1.2)."""

    async def scene() -> None:
        responses = {"A": Paused(success(1)), "B": Paused(success(2))}
        rig, _, _ = odd(*responses.values(), invalid_grant())
        calls = []
        for code, token_response in responses.items():
            calls.append(asyncio.create_task(rig.source.sign_in(code=code)))
            await token_response.arrived.wait()
        if again == "B":
            responses.pop("A").release()
            await calls[0]
        calls.append(asyncio.create_task(rig.source.sign_in(code=again)))
        await turns()
        for token_response in responses.values():
            token_response.release()
        await asyncio.gather(*calls)
        assert sum(f"code={again}" in request.body.decode() for request in rig.transport.requests) == 1

    run(scene)


def test_f41_a_401_while_a_sign_in_waits_for_the_store_is_answered_by_its_token() -> None:
    """The refresh fails, for the sign-in must be stored first; but there is a newer token."""

    async def scene() -> None:
        held = Paused(success(2))
        rig, store, clock = odd(success(1), held, success(3))
        rejected = await rig.source.token()
        clock.advance(1000)
        asking = asyncio.create_task(rig.source.refresh(rejected))
        await held.arrived.wait()
        store.steps["put"] = down
        await rig.source.sign_in(refresh_token="new")
        held.release()
        assert (await asking).access_token == "access-3"

    run(scene)


# -- closing ----------------------------------------------------------------------------------------


def test_closing_reports_no_trouble_when_somebody_asks_for_a_token_meanwhile() -> None:
    """A refresh that starts after what was under way has ended is not what closing waits for."""

    async def scene() -> None:
        first, second = Paused(success(1)), Paused(success(2))
        rig, _, _ = odd(first, second)
        asking = asyncio.create_task(rig.source.token())
        await first.arrived.wait()
        closing = asyncio.create_task(rig.source.aclose())
        await turns()

        async def busy() -> None:
            await rig.source.token()
            await rig.source.refresh()

        going_on = asyncio.create_task(busy())
        await turns()
        first.release()
        await second.arrived.wait()
        await turns()
        second.release()
        await asyncio.gather(asking, going_on, closing)

    run(scene)


def test_closing_that_is_cut_off_says_so_at_once_wherever_it_stands() -> None:
    """It runs in the task of its caller, whose time-outs count cancellations: none is kept for later."""

    async def scene() -> None:
        cut_off: list[int] = []
        for number in range(60):
            held = Paused(success(1))
            rig, _, _ = odd(held)
            asking = asyncio.create_task(rig.source.token())
            await held.arrived.wait()
            closed = asyncio.Event()

            async def close(rig: Rig = rig, closed: asyncio.Event = closed) -> None:
                await rig.source.aclose()
                closed.set()

            closing = asyncio.create_task(close())
            await asyncio.sleep(0)
            held.release()
            await turns(number)
            if closing.cancel():
                cut_off.append(number)
                await asyncio.wait([closing])
                assert (closed.is_set(), closing.cancelling()) == (False, 1)
            await asking
        assert len(cut_off) > 10

    run(scene)


def test_f18_a_sign_in_that_is_stopped_unsaved_lets_go_of_an_older_claim() -> None:
    """Two things are unsaved at the end: the claim of the older one would be held by nobody."""

    async def scene() -> None:
        held, tries = Paused(success(2)), iter((hang, down))

        async def put() -> None:
            await next(tries, down)()

        rig, store, clock = odd(success(1), held)
        store.steps["commit"] = down
        await rig.access()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await held.arrived.wait()
        closing = asyncio.create_task(rig.source.aclose())
        await turns()
        clock.advance(19)
        await turns()
        store.steps["put"] = put
        held.release()
        await turns()
        clock.advance(6)  # the grace period is over
        await turns(100)
        store.steps.pop("commit")
        while not (closing.done() and signing_in.done()):
            clock.advance(1)
            await turns()
        await asyncio.gather(closing, signing_in, return_exceptions=True)
        assert not store._holders

    run(scene)


# -- a commit that runs out of time -----------------------------------------------------------------


class Stuck:
    """A medium whose writes stand still until they are let go, and then fail; later ones do not."""

    def __init__(self, medium: Any) -> None:
        self._medium = medium
        self.arrived, self.go, self.failing = threading.Event(), threading.Event(), True

    def write(self, key: str, record: Record, expect: str | None) -> Record:
        if self.failing:
            self.arrived.set()
            self.go.wait(30)
            raise StoreUnavailable("The disk is full.")
        written: Record = self._medium.write(key, record, expect)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._medium, name)


@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
def test_f27_a_commit_that_fails_after_its_time_is_over_keeps_the_claim(
    kind: type[FileStore | SQLiteStore], tmp_path: Path
) -> None:
    """Nobody waits for it any more; but its refresh token is spent, and must be sent by nobody else."""

    async def scene() -> None:
        clock = FakeClock(jitter=1.0)
        ours, theirs = (kind(tmp_path / "tokens", clock=clock) for _ in range(2))
        medium = ours._claims._medium = Stuck(ours._claims._medium)  # type: ignore[assignment]
        rig = Rig(success(1), store=ours, clock=clock)
        asking = asyncio.create_task(rig.access())
        await asyncio.to_thread(medium.arrived.wait, 30)
        await turns()
        clock.advance(10)  # the time that a store has
        await turns()
        clock.advance(2)
        assert await asking == "access-1"
        medium.go.set()
        await ours.load(rig.source.key)  # behind the write, and what comes of it
        await ours.load(rig.source.key)
        other = Rig(success(2), store=theirs, clock=clock)
        waiting = asyncio.create_task(other.access())
        await theirs.load(rig.source.key)
        await theirs.load(rig.source.key)
        await turns()
        assert (other.posts, waiting.done()) == (0, False)
        medium.failing = False
        await rig.source.aclose()  # stores it
        while not waiting.done():
            clock.advance(0.01)
            await theirs.load(rig.source.key)
        assert (await waiting, other.posts) == ("access-1", 0)
        await other.source.aclose()
        await ours.aclose()
        await theirs.aclose()

    run(scene)
