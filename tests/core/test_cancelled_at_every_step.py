"""Cancel a caller, a waiter or the refresh itself at each suspension: nothing is lost or sent twice."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from _rig import LIFETIME, Rig, begun, let_tasks_run, run, success
from _shared_store import STORES, SharedStore
from _steps import REFRESH, Provider, Steps, run_at_every_step

from tokensession import ClaimTimeout, GrantLost, NotSent, Policy, SignInRequired
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores.protocol import Record
from tokensession.testing import FakeClock

LEAST = {"memory": 10, "file": 13, "sqlite": 13}
"""How many suspensions a refresh has at least. With fewer, these tests would test nothing."""


class Process:
    """One process: its own rig, over a shared store and a shared provider."""

    def __init__(self, shared: SharedStore, provider: Provider) -> None:
        self.store = shared.open()
        self.rig = Rig(transport=provider.transport(), store=self.store, clock=shared.clock, policy=Policy())

    async def prepare(self, earlier: bool) -> None:
        """Let it have a token that has just expired, or none."""
        if earlier:
            await self.rig.access()
            self.rig.clock.advance(LIFETIME)

    async def end(self) -> None:
        await self.rig.source.aclose()
        await self.store.aclose()

    async def token(self) -> str:
        """The access token that a caller gets, after any pause."""
        caller, clock = self.rig.ask(), self.rig.clock
        while not caller.done():
            await asyncio.sleep(0)
            if clock.sleepers and clock.sleepers[0] <= 2:  # no time-out is as short
                clock.advance(clock.sleepers[0])
        return await caller


async def finish(work: Coroutine[Any, Any, Any], clock: FakeClock, name: str = "") -> asyncio.Task[Any]:
    """Wait until it is done, and let time pass: it sleeps, or a store's thread waits for a claim."""
    task = asyncio.create_task(work, name=name)
    while not task.done():
        await asyncio.sleep(0)
        clock.advance(min([0.025, *clock.sleepers]))
    return task


def other_tasks() -> set[asyncio.Task[Any]]:
    """All tasks but the current one."""
    return asyncio.all_tasks() - {asyncio.current_task()}


EARLIER = pytest.mark.parametrize("earlier", [False, True], ids=["first token", "earlier one expired"])


@STORES
@EARLIER
@pytest.mark.parametrize("who", ["the first caller", "a waiter"])
def test_f01_f02_a_caller_may_be_cancelled_at_any_suspension_of_the_refresh(
    tmp_path: Path, kind: str, earlier: bool, who: str
) -> None:
    """Wherever the refresh is: one token request, stored, no lock left behind, and all others are served."""

    async def cancelled_at(k: int) -> bool:
        provider = Provider()
        shared = SharedStore(kind, tmp_path / str(k), FakeClock())
        process = Process(shared, provider)
        await process.prepare(earlier)
        refreshes = process.rig.source.snapshot().refreshes

        def cancel() -> None:
            callers[cancelled].cancel()
            callers.append(process.rig.ask())

        cancelled = 0 if who == "the first caller" else 1
        with Steps(at=k, then=cancel) as steps:
            callers = [process.rig.ask() for _ in range(4)]
            await asyncio.wait(callers)
            await asyncio.wait(callers)  # the one that came late, too
        number = provider.issued
        assert callers.pop(cancelled).cancelled() is steps.reached
        assert {await task for task in callers} == {f"access-{number}"}
        assert (len(provider.sent), number) == (1 + earlier, 1 + earlier)
        assert process.rig.source.snapshot().refreshes == refreshes + 1
        assert not process.rig.source.snapshot().refreshing
        assert other_tasks() == set()
        await process.end()
        stored = await shared.stored()
        assert stored is not None
        assert stored.token is not None
        assert stored.token.refresh_token == provider.valid
        assert await shared.interrupted() is None
        return steps.reached

    run_at_every_step(cancelled_at, LEAST[kind])


@STORES
@pytest.mark.parametrize("contended", [False, True], ids=["free", "contended"])
def test_f02_a_claim_that_is_cancelled_at_any_suspension_leaves_no_lock_behind(
    tmp_path: Path, kind: str, contended: bool
) -> None:
    """If the wait is cancelled just as a worker thread takes the lock, the lock is released."""

    async def cancelled_at(k: int) -> bool:
        clock = FakeClock()
        shared = SharedStore(kind, tmp_path / str(k), clock)
        store, holder = shared.open(), shared.open()
        held = [await holder.claim("account", seen=None, timeout=0)] if contended else []

        def cancel() -> None:
            (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "claimant")
            task.cancel()

        with Steps("claimant", at=k, then=cancel, children=False) as steps:
            claim = store.claim("account", seen=None, timeout=0.05)
            claimant = await finish(claim, clock, "claimant")  # until it times out
        if steps.reached:
            assert claimant.cancelled()
        elif contended:
            with pytest.raises(ClaimTimeout):
                await claimant
        else:
            held.append(await claimant)
        for other in held:
            assert not isinstance(other, Record)
            await other.abandon()
        # The other store's thread may still be releasing the lock, so this waits for it. Time stands still
        # meanwhile: it would be past the store's patience before that thread has run at all.
        after = await holder.claim("account", seen=None, timeout=60)
        assert not isinstance(after, Record)
        await after.abandon()
        await store.aclose()
        await holder.aclose()
        return steps.reached

    run_at_every_step(cancelled_at, 1 if contended or kind != "memory" else 0)


async def unreachable(_request: TokenRequest) -> TokenResponse:
    """Fails after some turns of the event loop, like a connection that is refused."""
    for _ in range(3):
        await asyncio.sleep(0)
    raise NotSent("no route")


def test_f04_a_caller_may_arrive_at_any_suspension_of_a_failing_refresh() -> None:
    """A caller that joins a failing refresh shares its error; one that arrives later starts a new refresh."""
    shared: list[bool] = []

    async def arrives_at(k: int) -> bool:
        rig = Rig(unreachable, success(1))
        late: list[asyncio.Task[str]] = []

        async def call() -> str:
            shared.append(rig.source.snapshot().failures == 0)
            if not shared[-1]:
                rig.clock.advance(1)  # until then the failure is remembered
            return await rig.access()

        with Steps(at=k, then=lambda: late.append(asyncio.create_task(call()))) as steps:
            leader = rig.ask()
            await asyncio.wait([leader])
            await asyncio.gather(*late, return_exceptions=True)
        error = leader.exception()
        assert isinstance(error, NotSent)
        if late and shared[-1]:
            its_error = late[0].exception()
            assert isinstance(its_error, NotSent)
            assert its_error is not error
            assert its_error.__cause__ is error.__cause__, "the failure of this refresh"
            assert rig.token_requests == 1
        elif late:
            assert await late[0] == "access-1"
            assert rig.token_requests == 2
        rig.clock.advance(1)
        assert await rig.access() == "access-1", "a later caller does not get the error"
        assert other_tasks() == set()
        return steps.reached

    assert run_at_every_step(arrives_at, 4) == len(shared)
    assert any(shared)


def test_f09_no_other_process_gets_the_claim_between_the_second_look_and_the_commit() -> None:
    """Tried at each suspension, the claim is free, then held without a gap until the new record is there."""
    seen: list[str] = []

    async def main() -> None:
        rig = Rig(transport=Provider().transport())
        await rig.access()
        rig.clock.advance(LIFETIME)
        record = await rig.store.load("account")
        assert record is not None

        def tries() -> None:
            try:
                rig.store.claim("account", seen=record.version, timeout=0).send(None)
            except StopIteration as done:
                seen.append("newer record" if isinstance(done.value, Record) else "free")
                if seen[-1] == "free":
                    with pytest.raises(StopIteration):
                        done.value.abandon().send(None)
            except ClaimTimeout:
                seen.append("held")
            else:
                raise AssertionError("claim(timeout=0) waits")

        tries()
        with Steps(then=tries):
            assert await rig.access() == "access-2"
        tries()

    run(main)
    assert [state for state, _ in itertools.groupby(seen)] == ["free", "held", "newer record"]
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
        again = await begun(rig.access())
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

    async def next_process(shared: SharedStore, provider: Provider) -> str:
        sent = len(provider.sent)
        left, spent = sent > earlier, provider.issued > earlier
        stored, interrupted = await shared.stored(), await shared.interrupted()
        token = stored.token.access_token if stored is not None and stored.token is not None else None
        failures = stored.failures if stored is not None else None
        if not left:
            assert failures is None
            assert interrupted is None
        elif token != f"access-{1 + earlier}":
            assert interrupted is not None or (failures is not None and failures.unknown == 1)
        process = Process(shared, provider)
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

    async def third_process(shared: SharedStore, provider: Provider, end: str) -> None:
        sent = len(provider.sent)
        process = Process(shared, provider)
        if end == "sign in":
            with pytest.raises(SignInRequired, match="Sign in again"):
                await process.token()
        else:
            assert await process.token() == f"access-{provider.issued}"
        assert len(provider.sent) == sent
        await process.end()

    async def stopped_at(k: int) -> bool:
        shared, provider = SharedStore(kind, tmp_path / str(k), FakeClock()), Provider()
        process = Process(shared, provider)
        await process.prepare(earlier)

        def stop() -> None:
            stopped = asyncio.all_tasks() - {this_task} if which == "all tasks" else {steps.root}
            for task in stopped:
                assert task is not None
                task.cancel()

        this_task = asyncio.current_task()
        with Steps(at=k, then=stop) as steps:
            await asyncio.wait([process.rig.ask()])
            await asyncio.gather(*other_tasks(), return_exceptions=True)
        await process.end()
        ends.add(end := await next_process(shared, provider))
        await third_process(shared, provider, end)
        return steps.reached

    run_at_every_step(stopped_at, LEAST[kind])
    assert ends == {"redeemed", "repeated", "sign in", "served"}
