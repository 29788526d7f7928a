"""Closing a source or session: it waits for a running refresh, whatever cancels the code that closes it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest
from _rig import (
    Rig,
    begun,
    let_tasks_run,
    run,
    run_in_every_turn,
    seconds_until_done,
    state_of,
    success,
    took,
)
from _scripted_store import Hanging, scripted
from _shared_store import SharedStore
from _steps import Steps, run_at_every_step

from tokensession import (
    AuthedSession,
    ManagedSource,
    NotSent,
    OutcomeUnknown,
    Policy,
    StoreUnavailable,
    TokenUnavailable,
)
from tokensession.clock import SystemClock
from tokensession.providers import Priava
from tokensession.stores import SQLiteStore
from tokensession.testing import Paused, PriavaServer, token_response


@pytest.mark.parametrize("settings", [{}, {"orphan_wait": 0}], ids=["by default", "no orphan wait"])
def test_f18_k29_closing_ends_by_the_close_timeout_and_notes_what_it_cut_off(settings: Any) -> None:
    """The request that is still running has an unknown outcome. Closing has a number of its own for it."""

    async def main() -> None:
        rig = Rig(policy=Policy(retry_within=0, close_timeout=5, **settings))
        _, caller = await rig.in_flight(success(1))
        assert 2 <= await took(rig.source.aclose(), rig.clock) <= 5
        with pytest.raises(OutcomeUnknown, match="cut short"):
            await caller
        assert await rig.unknown_outcomes() == 1

    run(main)


def test_f55_closing_during_the_connect_notes_nothing() -> None:
    """Nothing has left, so the refresh token is not spent, and the next process is not delayed."""

    async def main() -> None:
        rig = Rig(policy=Policy(close_timeout=5))
        _, caller = await rig.in_flight(NotSent("never released"))
        await took(rig.source.aclose(), rig.clock)
        with pytest.raises(TokenUnavailable, match="closing") as caught:
            await caller
        assert not isinstance(caught.value, OutcomeUnknown)
        assert await rig.stored() is None
        assert await rig.peer(success(1)).access() == "access-1"

    run(main)


def test_a_sign_in_that_closing_stops_says_that_its_code_may_have_been_sent() -> None:
    async def main() -> None:
        sent = Paused(success(1))
        rig = Rig(sent, policy=Policy(close_timeout=5))
        signing_in = await begun(rig.source.sign_in(code="works-once"))
        await sent.arrived.wait()
        await took(rig.source.aclose(), rig.clock)
        with pytest.raises(OutcomeUnknown, match=r"sign-in was stopped.*not known.*you need a new one"):
            await signing_in

    run(main)


def test_f18_after_the_close_timeout_every_task_is_stopped() -> None:
    """A task that cannot be stopped does not prevent the others from being stopped."""

    async def main() -> None:
        rig, store, clock = scripted()
        hanging = Hanging(stubborn=True)
        store.steps |= {"commit": hanging, "put": hanging}
        paused, caller = await rig.in_flight(success(1))
        signing_in = await begun(rig.source.sign_in(refresh_token="x"))  # waits for the claim
        paused.release()
        await let_tasks_run()
        tasks = rig.source._coordinator._tasks.running
        assert len(tasks) == 2
        closing = asyncio.create_task(rig.source.aclose())
        try:
            assert await seconds_until_done(closing, clock) <= 25
            for task in tasks:
                assert task.done or (task._task is not None and task._task.cancelling())
            with pytest.raises(StoreUnavailable, match="before the session closed"):
                await closing
        finally:
            hanging.end.set()
        await asyncio.gather(caller, signing_in, return_exceptions=True)

    run(main)


def test_f02_a_claim_granted_at_the_end_of_the_close_timeout_is_released() -> None:
    """Another holder may abandon its claim at the very moment when closing gives up."""

    async def main(turn: int) -> None:
        rig, store, clock = scripted(success(1))
        other = await store.claim("account", seen=None, timeout=0)
        caller = await begun(rig.access())
        closing = await begun(rig.source.aclose())
        clock.advance(25)
        await let_tasks_run(turn)
        await other.abandon()
        await let_tasks_run()
        await asyncio.gather(closing, caller, return_exceptions=True)
        assert not store._holders, turn

    run_in_every_turn(main, 40)


def test_closing_succeeds_although_a_new_refresh_starts_during_it() -> None:
    """Closing raises nothing about a refresh that starts while it waits."""

    async def main() -> None:
        rig, _, _ = scripted()
        first, caller = await rig.in_flight(success(1))
        closing = await begun(rig.source.aclose())

        async def go_on() -> None:
            await rig.source.token()
            await rig.source.refresh()

        second = Paused(success(2))
        rig.transport.script(second)
        other_caller = await begun(go_on())
        first.release()
        await second.arrived.wait()
        await let_tasks_run()
        second.release()
        await asyncio.gather(caller, other_caller, closing)

    run(main)


def test_f18_f66_closing_does_not_wait_through_a_failure() -> None:
    """The callers get the error at once, and closing ends, without a pause and another request."""

    async def main() -> None:
        rig = Rig(policy=Policy())
        paused, caller = await rig.in_flight(token_response({}, 503))
        closing = await begun(rig.source.aclose())
        paused.release()
        assert await took(closing, rig.clock) == 0
        with pytest.raises(TokenUnavailable, match="503"):
            await caller
        assert rig.token_requests == 1

    run(main)


OWNERS = pytest.mark.parametrize("owner", ["session", "source"])


class Owner:
    """A session or source with a refresh that waits for its token response.

    It owns the SQLite store at `path`. Without a path, it uses a store that closes without a thread.
    """

    def __init__(self, owner: str, path: Path | None = None) -> None:
        self.threads = set(threading.enumerate())
        self.response = Paused(success(1))
        rig = Rig(self.response)
        self._path, self._memory, self._clock = path, rig.store, rig.clock
        options: Any = {"store": path or rig.store, "key": "account", "clock": rig.clock}
        self.block: AuthedSession | ManagedSource
        if owner == "session":
            self.block = AuthedSession(rig.provider, transport=rig.transport, **options)
            self.source, self.close = self.block.source, self.block.close
        else:
            self.block = self.source = ManagedSource(rig.provider, rig.transport, **options)
            self.close = self.source.aclose

    async def refreshing(self) -> asyncio.Task[Any]:
        """Start a refresh, and return its caller once the token request has been sent."""
        self.client = self.block.client if isinstance(self.block, AuthedSession) else None
        caller = asyncio.create_task(self.source.token())
        await self.response.arrived.wait()
        return caller

    async def check_closed(self) -> None:
        """The token is stored, and nothing is left running or open."""
        assert not self.source.snapshot().refreshing
        assert self.client is None or self.client.closed
        started = set(threading.enumerate()) - self.threads
        assert not [thread.name for thread in started if "tokensession" in thread.name]
        store = self._memory if self._path is None else SQLiteStore(self._path)
        record = await store.load("account")
        await store.aclose()
        assert record is not None
        token = state_of(record, self._clock).token
        assert token is not None
        assert token.refresh_token == "refresh-1"


Body = Callable[[Callable[[], None]], Coroutine[Any, Any, None]]
"""Runs in a cancel scope, and gets what cancels it."""


async def _in_timed_scope(body: Body) -> None:
    with anyio.move_on_after(3600) as scope:
        await body(lambda: setattr(scope, "deadline", anyio.current_time()))


async def _in_task_group(body: Body) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(body, group.cancel_scope.cancel)


async def _in_timeout(body: Body) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600) as timeout:
            await body(lambda: timeout.reschedule(asyncio.get_running_loop().time()))


WAYS: dict[str, Callable[[Body], Awaitable[None]]] = {
    "anyio.move_on_after": _in_timed_scope,
    "anyio task group": _in_task_group,
    "asyncio.timeout": _in_timeout,
}


@OWNERS
@pytest.mark.parametrize("way", WAYS)
def test_f18_leaving_the_block_in_a_cancelled_scope_waits_for_the_running_refresh(
    owner: str, way: str
) -> None:
    """In a cancelled scope, leaving `async with` waits for the running refresh and stores its token."""

    async def main() -> None:
        owned, cancelled = Owner(owner), asyncio.Event()

        async def body(cancel: Callable[[], None]) -> None:
            async with owned.block:
                await owned.refreshing()
                cancel()
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.set()

        leaving = asyncio.ensure_future(WAYS[way](body))
        await cancelled.wait()
        await let_tasks_run()
        assert not leaving.done()
        owned.response.release()
        await leaving
        await owned.check_closed()

    run(main)


@OWNERS
@pytest.mark.parametrize("what", ["its scope", "its task", "its task in timeout", "its task in wait_for"])
def test_f18_closing_may_be_cancelled_at_any_of_its_steps_and_called_again(
    tmp_path: Path, owner: str, what: str
) -> None:
    """A scope does not cut it short (F67). Its task ends at once, and a second call goes on waiting."""

    async def cancelled_at(k: int) -> bool:
        owned = Owner(owner, tmp_path / f"{k}.db")
        caller = await owned.refreshing()
        scope = anyio.CancelScope()

        async def close() -> None:
            work = asyncio.wait_for(owned.close(), 3600) if "wait_for" in what else owned.close()
            async with asyncio.timeout(3600 if "timeout" in what else None):
                with scope:
                    await work

        def cancel() -> None:
            scope.cancel() if what == "its scope" else closing.cancel()

        with Steps("closing", at=k, then=cancel, children=False) as steps:
            closing = asyncio.create_task(close(), name="closing")
            await let_tasks_run()
            assert owned.source.snapshot().refreshing
            again = await begun(owned.close()) if closing.cancelled() else None
            assert again is None or not again.done()
            owned.response.release()
            await asyncio.wait([closing])
        cut_short = steps.reached and what != "its scope"
        assert (closing.cancelled(), closing.cancelling()) == (cut_short, cut_short)
        assert cut_short or not owned.source.snapshot().refreshing
        if cut_short:
            await (again or owned.close())
        assert (await caller).access_token == "access-1"
        assert not isinstance(owned.block, AuthedSession) or owned.block.closed
        await owned.check_closed()
        return steps.reached

    run_at_every_step(cancelled_at, 1 if "wait_for" in what else 2)


@OWNERS
def test_f18_closing_twice_at_the_same_time_ends_both(tmp_path: Path, owner: str) -> None:
    """Both calls wait for the refresh, and close the store that they share."""

    async def main() -> None:
        owned = Owner(owner, tmp_path / "tokens.db")
        caller = await owned.refreshing()
        closing = [asyncio.create_task(owned.close()) for _ in range(2)]
        await let_tasks_run()
        assert not any(call.done() for call in closing)
        owned.response.release()
        async with asyncio.timeout(10):
            await asyncio.gather(*closing)
        assert (await caller).access_token == "access-1"
        await owned.check_closed()

    run(main)


PROGRAM = """
import asyncio, contextlib, json, os, signal, sys
import anyio
from tokensession import AuthedSession, ManagedSource
from tokensession.providers import Priava

owner, way, url, credentials = sys.argv[1:]
provider = Priava(**json.loads(credentials))

async def work():
    block = {"session": AuthedSession, "source": ManagedSource}[owner]
    async with block(provider, store=url, key="account") as entered:
        await getattr(entered, "source", entered).refresh()

async def cancel_on_command(cancel):
    turns = 20_000  # closing would end in far fewer turns if it did not wait for the refresh
    while await asyncio.to_thread(sys.stdin.readline):
        cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        turns *= 20  # then the store's thread still has a note to write, on a disk that may be busy
        print("still closing", flush=True)

async def main():
    if way == "anyio":
        with anyio.move_on_after(3600) as scope:
            waiting = asyncio.create_task(cancel_on_command(scope.cancel))
            await work()
    elif way == "asyncio":
        timeout = asyncio.timeout(3600)
        now = asyncio.get_running_loop().time
        waiting = asyncio.create_task(cancel_on_command(lambda: timeout.reschedule(now())))
        with contextlib.suppress(TimeoutError):
            async with timeout:
                await work()
    else:
        waiting = asyncio.create_task(cancel_on_command(lambda: os.kill(os.getpid(), signal.SIGINT)))
        await work()

with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def child_process(owner: str, way: str, url: str, server: PriavaServer) -> AsyncIterator[Process]:
    """A process that refreshes and closes, and is cancelled in this way when it is told to."""
    arguments = (owner, way, url, json.dumps(server.credentials))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, *arguments, stdin=PIPE, stdout=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await end(process)


async def goes_on_closing(child: Process) -> bool:
    """Cancel it, and wait until it says that it is still closing. False if it ends instead."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"cancel\n")
    return await child.stdout.readline() == b"still closing\n"


async def end(child: Process) -> int:
    """Tell it nothing more, and wait for its exit status."""
    assert child.stdin is not None
    child.stdin.close()
    return await child.wait()


async def get_echo(server: PriavaServer, url: str) -> int:
    """A request by this process, over the same store."""
    async with AuthedSession(Priava(**server.credentials), store=url, key="account") as session:
        async with session.get("/echo") as response:
            return response.status


@pytest.mark.parametrize(
    ("owner", "way"),
    [("session", "anyio"), ("source", "anyio"), ("session", "asyncio"), ("session", "Ctrl-C")],
)
def test_f18_f67_k11_a_process_that_ends_in_a_cancelled_scope_stores_its_token_first(
    tmp_path: Path, owner: str, way: str
) -> None:
    """A real process whose scope is cancelled during a refresh ends without losing the token."""
    url = f"sqlite:///{tmp_path / 'tokens.db'}"

    async def main() -> None:
        async with PriavaServer(lifetime=3600) as server:
            assert await get_echo(server, url) == 200
            async with server.hold("after") as gate, child_process(owner, way, url, server) as child:
                await gate.reached()
                assert await goes_on_closing(child)
                gate.open()
                assert await end(child) == 0
            server.revoke_access_tokens()  # the next process has to use the refresh token
            assert await get_echo(server, url) == 200
            assert (server.stats.token_requests, server.stats.reuse_detections) == (3, 0)
            assert server.stats.rejections == 0

    run(main)


def test_f18_a_second_ctrl_c_ends_closing_at_once_and_notes_the_lost_answer(tmp_path: Path) -> None:
    """The person who waits decides. The store says what has happened, and no lock stays behind."""

    async def main() -> None:
        shared = SharedStore("sqlite", tmp_path, SystemClock())
        url = f"sqlite:///{tmp_path / 'tokens.db'}"
        async with PriavaServer(lifetime=3600) as server, server.hold("before") as gate:
            async with child_process("session", "Ctrl-C", url, server) as child:
                await gate.reached()
                assert await goes_on_closing(child)
                assert not await goes_on_closing(child)
                assert await end(child) == 0
            stored = await shared.stored()
            assert stored is not None
            assert stored.failures is not None
            assert stored.failures.unknown == 1
            assert await shared.interrupted() is None

    run(main)
