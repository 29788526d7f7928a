"""Cancel a caller, a waiter or the refresh itself at each suspension: nothing is lost or sent twice."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _rig import LIFETIME, Rig, let_tasks_run, run, success
from _shared_store import STORES, SharedStore
from _steps import REFRESH, Provider, Steps

from tokensession import ClaimTimeout, GrantLost, NotSent, Policy, SignInRequired
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import Record
from tokensession.testing import FakeClock

LEAST = {"memory": 10, "file": 13, "sqlite": 13}
"""How many suspensions a refresh has at least. With fewer, these tests would test nothing."""


class Process:
    """One process: its own rig, over a shared store and a shared provider."""

    def __init__(self, shared: SharedStore, provider: Provider, clock: FakeClock) -> None:
        self.store = shared.open()
        self.rig = Rig(transport=provider.transport(), store=self.store, clock=clock, policy=Policy())

    async def end(self) -> None:
        await self.rig.source.aclose()
        await self.store.aclose()

    async def token(self) -> str:
        """The access token that a caller gets, after any pause."""
        caller, clock = asyncio.create_task(self.rig.access()), self.rig.clock
        while not caller.done():
            await asyncio.sleep(0)
            if clock.sleepers and clock.sleepers[0] <= 2:  # no time-out is as short
                clock.advance(clock.sleepers[0])
        return await caller


def count_steps(once: Callable[[int], bool], least: int) -> int:
    """Call `once` for k = 0, 1, 2, ... until there is no step k. Returns the number, at least `least`."""
    for k in itertools.count():
        if not once(k):
            assert k >= least, f"only {k} steps were found"
            return k
    raise AssertionError


async def prepared(shared: SharedStore, provider: Provider, clock: FakeClock, *, earlier: bool) -> Process:
    """A process that has no token yet, or whose token has just expired."""
    process = Process(shared, provider, clock)
    if earlier:
        await process.rig.access()
        clock.advance(LIFETIME)
    return process


async def finish(task: asyncio.Task[Any], clock: FakeClock) -> None:
    """Wait until the task is done, and let time pass: it sleeps, or a store's thread waits for a claim."""
    while not task.done():
        await asyncio.sleep(0)
        clock.advance(min([0.025, *clock.sleepers]))


def other_tasks() -> set[asyncio.Task[Any]]:
    """All tasks but the current one."""
    return asyncio.all_tasks() - {asyncio.current_task()}


EARLIER = pytest.mark.parametrize("earlier", [False, True], ids=["first token", "earlier one expired"])


@STORES
@EARLIER
def test_f01_the_first_caller_may_be_cancelled_at_any_suspension_of_the_refresh(
    tmp_path: Path, kind: str, earlier: bool
) -> None:
    """Wherever the refresh is when its caller is cancelled: one token request, stored, and others served."""

    def once(k: int) -> bool:
        reached: list[bool] = []

        async def main() -> None:
            clock, provider = FakeClock(), Provider()
            shared = SharedStore(kind, tmp_path / str(k), clock)
            process = await prepared(shared, provider, clock, earlier=earlier)
            late: list[asyncio.Task[str]] = []

            def cancel() -> None:
                leader.cancel()
                late.append(asyncio.create_task(process.rig.access()))

            with Steps(at=k, then=cancel) as steps:
                leader = asyncio.create_task(process.rig.access())
                others = [asyncio.create_task(process.rig.access()) for _ in range(3)]
                await asyncio.wait([leader, *others])
                if late:
                    await asyncio.wait(late)
            reached.append(steps.reached)
            number = provider.issued
            assert leader.cancelled() is steps.reached
            assert {await task for task in others + late} == {f"access-{number}"}
            assert (len(provider.sent), number) == (1 + earlier, 1 + earlier)
            assert not process.rig.source.snapshot().refreshing
            assert other_tasks() == set()
            await process.end()
            stored = await shared.stored()
            assert stored is not None
            assert stored.token is not None
            assert stored.token.refresh_token == provider.valid
            assert await shared.interrupted() is None

        run(main)
        return reached[0]

    count_steps(once, LEAST[kind])


@STORES
@EARLIER
def test_f02_a_waiter_may_be_cancelled_at_any_suspension_of_the_refresh(
    tmp_path: Path, kind: str, earlier: bool
) -> None:
    """Wherever a waiter is cancelled: no second refresh, no lock left behind, and the others are served."""

    def once(k: int) -> bool:
        reached: list[bool] = []

        async def main() -> None:
            clock, provider = FakeClock(), Provider()
            shared = SharedStore(kind, tmp_path / str(k), clock)
            process = await prepared(shared, provider, clock, earlier=earlier)
            refreshes = process.rig.source.snapshot().refreshes
            with Steps(at=k, then=lambda: waiter.cancel()) as steps:
                leader = asyncio.create_task(process.rig.access())
                waiter = asyncio.create_task(process.rig.access())
                await asyncio.wait([leader, waiter])
            reached.append(steps.reached)
            assert waiter.cancelled() is steps.reached
            assert await leader == f"access-{provider.issued}"
            assert process.rig.source.snapshot().refreshes == refreshes + 1
            assert len(provider.sent) == 1 + earlier
            await process.end()
            assert await shared.interrupted() is None

        run(main)
        return reached[0]

    count_steps(once, LEAST[kind])


@STORES
@pytest.mark.parametrize("contended", [False, True], ids=["free", "contended"])
def test_f02_a_claim_that_is_cancelled_at_any_suspension_leaves_no_lock_behind(
    tmp_path: Path, kind: str, contended: bool
) -> None:
    """If the wait is cancelled just as a worker thread takes the lock, the lock is released."""

    def once(k: int) -> bool:
        reached: list[bool] = []

        async def main() -> None:
            clock = FakeClock()
            shared = SharedStore(kind, tmp_path / str(k), clock)
            store, holder = shared.open(), shared.open()
            other_claim = await holder.claim("account", seen=None, timeout=0) if contended else None
            with Steps("claimant", at=k, then=lambda: claimant.cancel(), children=False) as steps:
                claimant = asyncio.create_task(
                    store.claim("account", seen=None, timeout=0.05), name="claimant"
                )
                await finish(claimant, clock)  # until it times out
            reached.append(steps.reached)
            if other_claim is not None:
                assert not isinstance(other_claim, Record)
                await other_claim.abandon()
            if not steps.reached and not contended:
                claim = await claimant
                assert not isinstance(claim, Record)
                await claim.abandon()
            elif not steps.reached:
                with pytest.raises(ClaimTimeout):
                    await claimant
            else:
                assert claimant.cancelled()
            # The other store's thread may still be releasing the lock, so this waits for it.
            again = asyncio.create_task(holder.claim("account", seen=None, timeout=60))
            await finish(again, clock)
            claim = await again
            assert not isinstance(claim, Record)
            await claim.abandon()
            await store.aclose()
            await holder.aclose()

        run(main)
        return reached[0]

    least = {"memory": (0, 1), "file": (1, 1), "sqlite": (1, 1)}[kind]
    count_steps(once, least[contended])


async def unreachable(_request: TokenRequest) -> TokenResponse:
    """Fails after some turns of the event loop, like a connection that is refused."""
    for _ in range(3):
        await asyncio.sleep(0)
    raise NotSent("no route")


def test_f04_a_caller_may_arrive_at_any_suspension_of_a_failing_refresh() -> None:
    """A caller that joins a failing refresh shares its error; one that arrives later starts a new refresh."""
    shared: list[int] = []
    own: list[int] = []

    def once(k: int) -> bool:
        reached: list[bool] = []

        async def main() -> None:
            rig = Rig(unreachable, success(1))
            late: list[asyncio.Task[str]] = []
            joined: list[bool] = []

            async def call() -> str:
                joined.append(rig.source.snapshot().refreshing)
                if not joined[-1]:
                    rig.clock.advance(1)  # until then the failure is remembered
                return await rig.access()

            def arrive() -> None:
                late.append(asyncio.create_task(call()))

            with Steps(at=k, then=arrive) as steps:
                leader = asyncio.create_task(rig.access())
                await asyncio.wait([leader])
                if late:
                    await asyncio.wait(late)
            reached.append(steps.reached)
            error = leader.exception()
            assert isinstance(error, NotSent)
            if late and joined[0]:
                its_error = late[0].exception()
                assert isinstance(its_error, NotSent)
                assert its_error is not error
                assert its_error.__cause__ is error.__cause__, "the failure of this refresh"
                assert rig.token_requests == 1
                shared.append(k)
            elif late:
                assert await late[0] == "access-1"
                assert rig.token_requests == 2
                own.append(k)
            rig.clock.advance(1)
            assert await rig.access() == "access-1", "a later caller does not get the error"
            assert other_tasks() == set()

        run(main)
        return reached[0]

    found = count_steps(once, 4)
    assert len(shared) + len(own) == found
    assert shared


def test_f04_no_caller_gets_the_error_of_a_refresh_that_is_over() -> None:
    """Of callers in every turn of the event loop, each shares the running refresh or starts a new one."""

    async def main() -> None:
        rig = Rig(unreachable, success(1))
        callers: list[asyncio.Task[str]] = []
        in_time: list[bool] = []

        async def call() -> str:
            in_time.append(rig.source.snapshot().failures == 0)
            if not in_time[-1]:
                rig.clock.advance(1)
            return await rig.access()

        leader = asyncio.create_task(rig.access())
        while not leader.done() or len(callers) < 20:
            callers.append(asyncio.create_task(call()))
            await asyncio.sleep(0)
        answers = await asyncio.gather(*callers, return_exceptions=True)
        for early, answer in zip(in_time, answers, strict=True):
            assert isinstance(answer, NotSent) if early else answer == "access-1"
        assert True in in_time
        assert False in in_time
        assert rig.token_requests == 2

    run(main)


def test_f09_no_other_process_gets_the_claim_between_the_second_look_and_the_commit() -> None:
    """Tried at each suspension, the claim is free, then held without a gap until the new record is there."""
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
        clock.advance(LIFETIME)
        record = await store.load("account")
        assert record is not None
        version = record.version
        tries()
        with Steps(then=tries):
            assert await rig.access() == "access-2"
        tries()

    run(refresh)
    order = [state for state, _ in itertools.groupby(seen)]
    assert order == ["free", "held", "newer record"]
    assert seen.count("held") >= 4, "from before the request until after its response"


@pytest.mark.parametrize("which", ["the refresh", "all tasks"])
def test_f03_f04_a_refresh_cancelled_before_its_first_step_is_over(which: str) -> None:
    """No caller waits for a refresh that was cancelled before it began, and the next one starts another."""

    async def main() -> None:
        rig = Rig(success(1))
        caller = asyncio.create_task(rig.access())
        await asyncio.sleep(0)
        refreshes = {task for task in other_tasks() if task.get_name().startswith(REFRESH)}
        assert len(refreshes) == 1
        for task in other_tasks() if which == "all tasks" else refreshes:
            task.cancel()
        await let_tasks_run()
        assert caller.done(), "it waits for a refresh that cannot finish"
        again = asyncio.create_task(rig.access())
        await let_tasks_run()
        assert again.done(), "it has joined a refresh that cannot finish"
        assert again.result() == "access-1"
        assert rig.token_requests == 1

    run(main)


@STORES
@EARLIER
@pytest.mark.parametrize(
    "which",
    [
        "the refresh",  # as closing does after its time-out
        "all tasks",  # as asyncio.run does at its end
    ],
)
def test_f17_f55_a_refresh_stopped_at_any_suspension_leaves_a_new_token_or_a_note_or_has_sent_nothing(
    tmp_path: Path, kind: str, earlier: bool, which: str
) -> None:
    """If the request had not left, nothing is noted. Otherwise the next process repeats it at most once."""
    ends: set[str] = set()

    def once(k: int) -> bool:
        clock, provider = FakeClock(), Provider()
        shared = SharedStore(kind, tmp_path / str(k), clock)
        reached: list[bool] = []

        async def stopped_process() -> None:
            process = await prepared(shared, provider, clock, earlier=earlier)

            def stop() -> None:
                stopped = asyncio.all_tasks() - {this_task} if which == "all tasks" else {steps.root}
                for task in stopped:
                    assert task is not None
                    task.cancel()

            this_task = asyncio.current_task()
            with Steps(at=k, then=stop) as steps:
                caller = asyncio.create_task(process.rig.access())
                await asyncio.wait([caller])
                await asyncio.gather(*other_tasks(), return_exceptions=True)
            reached.append(steps.reached)
            await process.end()

        async def next_process() -> str:
            left, spent = len(provider.sent) > earlier, provider.issued > earlier
            stored, interrupted = await shared.stored(), await shared.interrupted()
            token = stored.token.access_token if stored is not None and stored.token is not None else None
            failures = stored.failures if stored is not None else None
            if not left:
                assert failures is None
                assert interrupted is None
            elif token != f"access-{1 + earlier}":
                assert interrupted is not None or (failures is not None and failures.unknown == 1)
            process = Process(shared, provider, clock)
            sent = len(provider.sent)
            try:
                assert await process.token() == f"access-{provider.issued}"
                end = "served" if len(provider.sent) == sent else "repeated" if left else "redeemed"
            except GrantLost:
                assert spent, "a healthy sign-in is given up"
                end = "sign in"
            assert len(provider.sent) - sent <= 1
            assert provider.reused <= 1
            await process.end()
            return end

        async def third_process(end: str) -> None:
            sent = len(provider.sent)
            process = Process(shared, provider, clock)
            if end == "sign in":
                with pytest.raises(SignInRequired, match="Sign in again"):
                    await process.token()
            else:
                assert await process.token() == f"access-{provider.issued}"
            assert len(provider.sent) == sent
            await process.end()

        run(stopped_process)
        ended: list[str] = []

        async def follow() -> None:
            ended.append(await next_process())

        run(follow)
        run(lambda: third_process(ended[0]))
        ends.add(ended[0])
        return reached[0]

    count_steps(once, LEAST[kind])
    assert ends == {"redeemed", "repeated", "sign in", "served"}
