"""The refresh, stopped at each of its suspensions in turn: whoever dies there, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _rig import LIFE, Rig, run, success, turns
from _shared_store import STORES, Shelf
from _steps import REFRESH, Provider, Steps

from tokensession import ClaimTimeout, NotSent, Policy, SignInRequired
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import Record
from tokensession.testing import FakeClock

LEAST = {"memory": 8, "file": 10, "sqlite": 10}
"""Suspensions that a refresh has at least: with fewer, the stepping would have found nothing to stand at."""


class Life:
    """One process: a rig of its own over the shelf, in front of a provider that others share."""

    def __init__(self, shelf: Shelf, provider: Provider) -> None:
        self.store = shelf.open()
        self.rig = Rig(*[provider.answer] * 9, store=self.store, clock=shelf.clock)

    async def end(self) -> None:
        await self.rig.source.aclose()
        await self.store.aclose()

    async def token(self) -> str:
        """The access token that a caller gets, once what an earlier holder sent has settled."""
        caller = asyncio.create_task(self.rig.access())
        while not caller.done():
            await asyncio.sleep(0)
            if self.rig.clock.sleepers[:1] == (2.0,):
                self.rig.clock.advance(2.0)
        return await caller


def points(once: Callable[[int], bool], least: int) -> int:
    """Call `once` for k = 0, 1, 2, ... until it never came to a k-th point; at least so many it must be."""
    for k in itertools.count():
        if not once(k):
            assert k >= least, f"only {k} points were found"
            return k
    raise AssertionError


async def prepared(shelf: Shelf, provider: Provider, *, earlier: bool) -> Life:
    """A process that has no token yet, or whose token has just expired."""
    life = Life(shelf, provider)
    if earlier:
        await life.rig.access()
        shelf.clock.advance(LIFE)
    return life


async def over(task: asyncio.Task[Any], clock: FakeClock) -> None:
    """Wait until it is done; whenever somebody sleeps, so much time passes."""
    while not task.done():
        await asyncio.sleep(0)
        if clock.sleepers:
            clock.advance(min(0.025, clock.sleepers[0]))


def strangers() -> set[asyncio.Task[Any]]:
    """Tasks that are left over."""
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


EARLIER = pytest.mark.parametrize("earlier", [False, True], ids=["first token", "earlier one expired"])


@STORES
@EARLIER
def test_f01_the_first_caller_may_be_cancelled_at_any_suspension_of_the_refresh(
    tmp_path: Path, kind: str, earlier: bool
) -> None:
    """Wherever the refresh stands when its caller is cancelled: one POST, the token stored, others served."""

    def once(k: int) -> bool:
        reached: list[bool] = []

        async def scene() -> None:
            shelf, provider = Shelf(kind, tmp_path / str(k), FakeClock()), Provider()
            life = await prepared(shelf, provider, earlier=earlier)
            late: list[asyncio.Task[str]] = []

            def cancel() -> None:
                leader.cancel()
                late.append(asyncio.create_task(life.rig.access()))

            with Steps(at=k, then=cancel) as steps:
                leader = asyncio.create_task(life.rig.access())
                others = [asyncio.create_task(life.rig.access()) for _ in range(3)]
                await asyncio.wait([leader, *others])
                if late:
                    await asyncio.wait(late)
            reached.append(steps.reached)
            number = provider.issued
            assert leader.cancelled() is steps.reached
            assert {await task for task in others + late} == {f"access-{number}"}
            assert (len(provider.sent), number) == (1 + earlier, 1 + earlier)
            assert not life.rig.source.snapshot().refreshing
            assert strangers() == set()
            await life.end()
            stored = await shelf.stored()
            assert stored is not None
            assert stored.token is not None
            assert stored.token.refresh_token == provider.good
            assert await shelf.mark() is None

        run(scene)
        return reached[0]

    points(once, LEAST[kind])


@STORES
@EARLIER
def test_f02_a_waiter_may_be_cancelled_at_any_suspension_of_the_refresh(
    tmp_path: Path, kind: str, earlier: bool
) -> None:
    """Wherever a waiter is cancelled: no second flight, no lock left behind, and the others are served."""

    def once(k: int) -> bool:
        reached: list[bool] = []

        async def scene() -> None:
            shelf, provider = Shelf(kind, tmp_path / str(k), FakeClock()), Provider()
            life = await prepared(shelf, provider, earlier=earlier)
            flights = life.rig.source.snapshot().refreshes
            with Steps(at=k, then=lambda: waiter.cancel()) as steps:
                leader = asyncio.create_task(life.rig.access())
                waiter = asyncio.create_task(life.rig.access())
                await asyncio.wait([leader, waiter])
            reached.append(steps.reached)
            assert waiter.cancelled() is steps.reached
            assert await leader == f"access-{provider.issued}"
            assert life.rig.source.snapshot().refreshes == flights + 1
            assert len(provider.sent) == 1 + earlier
            await life.end()
            assert await shelf.mark() is None

        run(scene)
        return reached[0]

    points(once, LEAST[kind])


@STORES
@pytest.mark.parametrize("contended", [False, True], ids=["free", "contended"])
def test_f02_a_claim_that_is_cancelled_at_any_suspension_leaves_no_lock_behind(
    tmp_path: Path, kind: str, contended: bool
) -> None:
    """A wait for the claim that is cancelled as a worker thread takes the lock locks nobody out."""

    def once(k: int) -> bool:
        reached: list[bool] = []

        async def scene() -> None:
            clock = FakeClock()
            shelf = Shelf(kind, tmp_path / str(k), clock)
            store, holder = shelf.open(), shelf.open()
            held = await holder.claim("account", seen=None, timeout=0) if contended else None
            with Steps("claimant", at=k, then=lambda: claimant.cancel(), children=False) as steps:
                claimant = asyncio.create_task(
                    store.claim("account", seen=None, timeout=0.05), name="claimant"
                )
                await over(claimant, clock)  # by and by its time is up
            reached.append(steps.reached)
            if held is not None:
                assert not isinstance(held, Record)
                await held.abandon()
            if not steps.reached and not contended:
                claim = await claimant
                assert not isinstance(claim, Record)
                await claim.abandon()
            elif not steps.reached:
                with pytest.raises(ClaimTimeout):
                    await claimant
            else:
                assert claimant.cancelled()
            # A lock that is just being let go of, in the other store's thread, is tried again.
            again = asyncio.create_task(holder.claim("account", seen=None, timeout=60))
            await over(again, clock)
            claim = await again
            assert not isinstance(claim, Record)
            await claim.abandon()
            await store.aclose()
            await holder.aclose()

        run(scene)
        return reached[0]

    least = {"memory": (0, 1), "file": (1, 2), "sqlite": (1, 2)}[kind]
    points(once, least[contended])


async def unreachable(_request: TokenRequest) -> TokenResponse:
    """Some turns of the loop, as a connection takes that is refused."""
    for _ in range(3):
        await asyncio.sleep(0)
    raise NotSent("no route")


def test_f04_a_caller_that_comes_at_any_suspension_of_a_dying_flight_gets_a_sound_answer() -> None:
    """Who joins a failing flight shares its failure; who comes when it has landed gets one of his own."""
    shared: list[int] = []
    own: list[int] = []

    def once(k: int) -> bool:
        reached: list[bool] = []

        async def scene() -> None:
            rig = Rig(unreachable, success(1), policy=Policy(waiting_back_off=0))
            late: list[asyncio.Task[str]] = []
            joined: list[bool] = []

            async def comes() -> str:
                joined.append(rig.source.snapshot().refreshing)
                return await rig.access()

            def arrive() -> None:
                late.append(asyncio.create_task(comes()))

            with Steps(at=k, then=arrive) as steps:
                leader = asyncio.create_task(rig.access())
                await asyncio.wait([leader])
                if late:
                    await asyncio.wait(late)
            reached.append(steps.reached)
            error = leader.exception()
            assert isinstance(error, NotSent)
            if late and joined[0]:
                mine = late[0].exception()
                assert isinstance(mine, NotSent)
                assert mine is not error
                assert mine.__cause__ is error.__cause__, "the flight's own failure, and no other"
                assert rig.posts == 1
                shared.append(k)
            elif late:
                assert await late[0] == "access-1"
                assert rig.posts == 2
                own.append(k)
            assert await rig.access() == "access-1", "and nobody after that is told of it"
            assert strangers() == set()

        run(scene)
        return reached[0]

    found = points(once, 8)
    assert len(shared) + len(own) == found
    assert shared


def test_f04_in_no_turn_of_the_loop_is_a_caller_given_a_dead_flights_error() -> None:
    """Callers come in every turn while a flight dies: each shares its error or starts anew; none hangs."""

    async def scene() -> None:
        rig = Rig(unreachable, success(1), policy=Policy(waiting_back_off=0))
        callers: list[asyncio.Task[str]] = []
        in_time: list[bool] = []

        async def comes() -> str:
            in_time.append(rig.source.snapshot().refreshes <= 1 and rig.posts <= 1 and not failed())
            return await rig.access()

        def failed() -> bool:
            return rig.source.snapshot().failures > 0

        leader = asyncio.create_task(rig.access())
        while not leader.done() or len(callers) < 20:
            callers.append(asyncio.create_task(comes()))
            await asyncio.sleep(0)
        answers = await asyncio.gather(*callers, return_exceptions=True)
        for early, answer in zip(in_time, answers, strict=True):
            assert isinstance(answer, NotSent) if early else answer == "access-1"
        assert True in in_time
        assert False in in_time
        assert rig.posts == 2

    run(scene)


def test_f09_from_the_second_look_to_the_commit_nobody_else_gets_the_claim() -> None:
    """Tried at each suspension, the claim is free, then held until the new record is there, and no gap."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    seen: list[str] = []

    def tries() -> None:
        coroutine = store.claim("account", seen=version, timeout=0)
        try:
            coroutine.send(None)
        except StopIteration as done:
            if isinstance(done.value, Record):
                seen.append("newer record")
            else:
                seen.append("free")
                with pytest.raises(StopIteration):
                    done.value.abandon().send(None)
        except ClaimTimeout:
            seen.append("held")
        else:
            raise AssertionError("claim(timeout=0) waits")

    version: str | None = None

    async def refresh() -> None:
        nonlocal version
        provider = Provider()
        rig = Rig(*[provider.answer] * 2, store=store, clock=clock)
        await rig.access()
        clock.advance(LIFE)
        record = await store.load("account")
        assert record is not None
        version = record.version
        with Steps(then=tries):
            assert await rig.access() == "access-2"
        tries()

    run(refresh)
    order = [state for state, _ in itertools.groupby(seen)]
    assert order == ["free", "held", "newer record"]
    assert seen.count("held") >= 4, "from before the request until after its answer"


@pytest.mark.parametrize("whom", ["the flight", "everybody"])
def test_f03_f04_a_flight_cancelled_before_its_first_step_is_not_joined_for_ever(whom: str) -> None:
    """A refresh that is cancelled before it has begun lands: nobody waits for it, the next one starts."""

    async def scene() -> None:
        rig = Rig(success(1))
        caller = asyncio.create_task(rig.access())
        await asyncio.sleep(0)
        (flight,) = (task for task in strangers() if task.get_name().startswith(REFRESH))
        for task in strangers() if whom == "everybody" else {flight}:
            task.cancel()
        await turns()
        assert caller.done(), "it waits for a flight that cannot land"
        again = asyncio.create_task(rig.access())
        await turns()
        assert again.done(), "it has joined a flight that cannot land"
        assert again.result() == "access-1"
        assert rig.posts == 1

    run(scene)


@STORES
@EARLIER
@pytest.mark.parametrize(
    "whom",
    [
        "the flight",  # as a session does that closes, after its grace period
        "all tasks",  # as an event loop does that closes
    ],
)
def test_f17_a_refresh_that_dies_at_any_suspension_is_never_lost_in_silence(
    tmp_path: Path, kind: str, earlier: bool, whom: str
) -> None:
    """Ended wherever it stands: the record is new, or old with the attempt known, for one replay at most."""
    ends: set[str] = set()

    def once(k: int) -> bool:
        clock, provider = FakeClock(), Provider()
        shelf = Shelf(kind, tmp_path / str(k), clock)
        reached: list[bool] = []

        async def dies() -> None:
            life = await prepared(shelf, provider, earlier=earlier)

            def kill() -> None:
                doomed = asyncio.all_tasks() - {main} if whom == "all tasks" else {steps.root}
                for task in doomed:
                    assert task is not None
                    task.cancel()

            main = asyncio.current_task()
            with Steps(at=k, then=kill) as steps:
                caller = asyncio.create_task(life.rig.access())
                await asyncio.wait([caller])
                await asyncio.gather(*strangers(), return_exceptions=True)
            reached.append(steps.reached)
            await life.end()

        async def next_process() -> str:
            stored, mark = await shelf.stored(), await shelf.mark()
            spent = len(provider.sent) == 1 + earlier
            new = stored is not None and stored.token is not None
            new = new and stored.token.access_token == f"access-{1 + earlier}"  # type: ignore[union-attr]
            if spent and not new:
                attempt = stored.attempt if stored is not None else None
                assert attempt is not None or mark is not None, "a spent refresh token, and no word of it"
            life = Life(shelf, provider)
            sent = len(provider.sent)
            try:
                token = await life.token()
                end = "served" if len(provider.sent) == sent else "replayed" if spent else "redeemed"
                assert token == f"access-{provider.issued}"
            except SignInRequired:
                end = "sign in"
            assert len(provider.sent) - sent <= 1
            assert provider.reused <= 1, "one replay at most"
            await life.end()
            return end

        async def and_the_one_after(end: str) -> None:
            sent = len(provider.sent)
            life = Life(shelf, provider)
            if end == "sign in":
                with pytest.raises(SignInRequired, match="Sign in again"):
                    await life.token()
            else:
                assert await life.token() == f"access-{provider.issued}"
            assert len(provider.sent) == sent
            await life.end()

        run(dies)
        ended: list[str] = []

        async def follow() -> None:
            ended.append(await next_process())

        run(follow)
        run(lambda: and_the_one_after(ended[0]))
        ends.add(ended[0])
        return reached[0]

    points(once, LEAST[kind])
    assert ends >= {"redeemed", "replayed", "sign in", "served"}, ends
