"""Closing a source or session: it waits for a running refresh, whatever cancels the code that closes it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from _rig import Rig, let_tasks_run, run, run_in_every_turn, success, until_sleeping
from _scripted_store import fail, hang, scripted
from _steps import Steps

from tokensession import AuthedSession, ManagedSource, Policy, StoreUnavailable, TokenUnavailable
from tokensession._refresh.state import decode
from tokensession.providers import Priava
from tokensession.stores import MemoryStore, Record, SQLiteStore
from tokensession.testing import FakeClock, Paused, PriavaServer

# -- what is running ---------------------------------------------------------------------------------


def test_f18_closing_waits_for_the_running_refresh() -> None:
    """The running refresh finishes and stores its token, which may be the only copy."""

    async def main() -> None:
        paused = Paused(success(1))
        rig = Rig(paused)
        caller = asyncio.create_task(rig.access())
        await paused.arrived.wait()
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()
        assert not closing.done()
        paused.release()
        await closing
        assert await caller == "access-1"
        assert (await rig.stored()) is not None

    run(main)


def test_closing_ends_after_the_close_timeout() -> None:
    """The outcome of a request that is still running is noted as unknown."""

    async def main() -> None:
        rig = Rig(Paused(success(1)), policy=Policy(close_timeout=5))
        caller = asyncio.create_task(rig.access())
        await until_sleeping(rig.clock, 20)
        closing = asyncio.create_task(rig.source.aclose())
        await until_sleeping(rig.clock, 5)
        rig.clock.advance(5)
        await closing
        with pytest.raises(TokenUnavailable, match="closing"):
            await caller
        stored = await rig.stored()
        assert stored is not None
        assert stored.attempt is not None

    run(main)


def test_f18_after_the_close_timeout_every_task_is_stopped() -> None:
    """A task that cannot be stopped does not prevent the others from being stopped."""

    async def main() -> None:
        first, second = Paused(success(1)), Paused(success(2))
        rig, store, clock = scripted(first, second)
        release = asyncio.Event()

        async def ignores_cancellation() -> None:
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        store.steps["commit"] = store.steps["put"] = ignores_cancellation
        caller = asyncio.create_task(rig.access())
        await first.arrived.wait()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="x"))
        await second.arrived.wait()
        first.release()
        second.release()
        await let_tasks_run()
        tasks = rig.source._coordinator._tasks.running
        assert len(tasks) == 2
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()
        clock.advance(25)
        await let_tasks_run()
        for task in tasks:
            assert task.done or (task._task is not None and task._task.cancelling())
        release.set()
        for _ in range(30):
            clock.advance(1)
            await let_tasks_run()
        await asyncio.gather(closing, caller, signing_in, return_exceptions=True)

    run(main)


def test_f02_a_claim_granted_at_the_end_of_the_close_timeout_is_released() -> None:
    """Another holder may abandon its claim at the very moment when closing gives up."""

    async def main(turn: int) -> None:
        clock = FakeClock(jitter=1.0)
        store = MemoryStore(clock=clock)
        other = await store.claim("account", seen=None, timeout=0)
        assert not isinstance(other, Record)
        rig = Rig(success(1), store=store, clock=clock)
        caller = asyncio.create_task(rig.access())
        await let_tasks_run()
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()
        clock.advance(25)
        for _ in range(turn):
            await asyncio.sleep(0)
        await other.abandon()
        await let_tasks_run()
        await asyncio.gather(closing, caller, return_exceptions=True)
        assert not store._holders, turn

    run_in_every_turn(main, 40)


def test_closing_succeeds_although_a_new_refresh_starts_during_it() -> None:
    """Closing raises nothing about a refresh that starts while it waits."""

    async def main() -> None:
        first, second = Paused(success(1)), Paused(success(2))
        rig, _, _ = scripted(first, second)
        caller = asyncio.create_task(rig.source.token())
        await first.arrived.wait()
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()

        async def go_on() -> None:
            await rig.source.token()
            await rig.source.refresh()

        other_caller = asyncio.create_task(go_on())
        await let_tasks_run()
        first.release()
        await second.arrived.wait()
        await let_tasks_run()
        second.release()
        await asyncio.gather(caller, other_caller, closing)

    run(main)


def test_cancelling_a_close_cancels_it_at_once_wherever_it_is() -> None:
    """Closing runs in its caller's task, whose time-outs count cancellations, so it defers none."""

    async def main() -> None:
        cut_short: list[int] = []
        for number in range(60):
            paused = Paused(success(1))
            rig, _, _ = scripted(paused)
            caller = asyncio.create_task(rig.source.token())
            await paused.arrived.wait()
            closed = asyncio.Event()

            async def close(rig: Rig = rig, closed: asyncio.Event = closed) -> None:
                await rig.source.aclose()
                closed.set()

            closing = asyncio.create_task(close())
            await asyncio.sleep(0)
            paused.release()
            await let_tasks_run(number)
            if closing.cancel():
                cut_short.append(number)
                await asyncio.wait([closing])
                assert (closed.is_set(), closing.cancelling()) == (False, 1)
            await caller
        assert len(cut_short) > 10

    run(main)


# -- what could not be stored ------------------------------------------------------------------------


def test_f18_closing_saves_pending_writes_at_once() -> None:
    """The pause before the next try may be longer than `close_timeout`, and the store may work again."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps["commit"] = fail
        await rig.access()
        for pause in (1, 2, 4, 8, 16):
            await until_sleeping(clock, pause)
            clock.advance(pause)
            await let_tasks_run()
        await until_sleeping(clock, 30)
        store.steps.clear()
        await rig.source.aclose()
        assert await rig.stored_access() == "access-1"

    run(main)


def test_f18_closing_that_could_not_save_releases_its_claim() -> None:
    """Closing raises, and other processes can refresh."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps["commit"] = fail
        await rig.access()
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()
        clock.advance(25)
        with pytest.raises(StoreUnavailable, match="before the session closed"):
            await closing
        store.steps.clear()
        assert await Rig(success(2), store=store, clock=clock).access() == "access-2"

    run(main)


def test_f27_closing_raises_if_a_token_could_not_be_stored() -> None:
    """The old refresh token is spent, so closing without storing the new one is an error."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps |= {"commit": fail, "put": fail}
        await rig.access()
        closing = asyncio.create_task(rig.source.aclose())
        for _ in range(60):
            await let_tasks_run(20)
            clock.advance(1)
        with pytest.raises(StoreUnavailable, match="before the session closed"):
            await closing

    run(main)


def test_f18_closing_raises_if_a_hanging_store_has_not_stored_the_new_token() -> None:
    """A commit that never ends is not reported as a clean end."""

    async def main() -> None:
        paused = Paused(success(1))
        rig, store, clock = scripted(paused)
        store.steps["commit"] = hang
        caller = asyncio.create_task(rig.access())
        await paused.arrived.wait()
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()
        clock.advance(18)  # a slow token endpoint, within its time-out
        paused.release()
        await let_tasks_run()
        for _ in range(40):
            clock.advance(1)
            await let_tasks_run()
        with pytest.raises(StoreUnavailable, match="before the session closed"):
            await closing
        with pytest.raises(TokenUnavailable):
            await caller

    run(main)


def test_f18_a_sign_in_that_is_stopped_unsaved_releases_an_older_claim() -> None:
    """Two things are unsaved at the end, and no claim stays held."""

    async def main() -> None:
        paused, tries = Paused(success(2)), iter((hang, fail))

        async def put() -> None:
            await next(tries, fail)()

        rig, store, clock = scripted(success(1), paused)
        store.steps["commit"] = fail
        await rig.access()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await paused.arrived.wait()
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()
        clock.advance(19)
        await let_tasks_run()
        store.steps["put"] = put
        paused.release()
        await let_tasks_run()
        clock.advance(6)  # the close timeout is over
        await let_tasks_run(100)
        store.steps.pop("commit")
        while not (closing.done() and signing_in.done()):
            clock.advance(1)
            await let_tasks_run()
        await asyncio.gather(closing, signing_in, return_exceptions=True)
        assert not store._holders

    run(main)


# -- cancelled scopes --------------------------------------------------------------------------------

OWNERS = pytest.mark.parametrize("owner", ["session", "source"])


class Owner:
    """A session or source with a refresh that waits for its token response.

    It owns the SQLite store at `path`. Without a path, it uses a store that closes without a thread.
    """

    def __init__(self, owner: str, path: Path | None = None) -> None:
        self.threads = set(threading.enumerate())
        self.response = Paused(success(1))
        rig = Rig(self.response)
        self._path, self._memory = path, rig.store
        store = rig.store if path is None else path
        self.session: AuthedSession | None = None
        if owner == "session":
            self.session = AuthedSession(
                rig.provider, transport=rig.transport, store=store, key="account", clock=rig.clock
            )
            self.source = self.session.source
        else:
            self.source = ManagedSource(
                rig.provider, rig.transport, store=store, key="account", clock=rig.clock
            )

    @property
    def block(self) -> AbstractAsyncContextManager[object]:
        """For `async with`."""
        return self.session if self.session is not None else self.source

    async def close(self) -> None:
        await (self.session.close() if self.session is not None else self.source.aclose())

    async def refreshing(self) -> asyncio.Task[Any]:
        """Start a refresh, and return its caller once the token request has been sent."""
        if self.session is not None:
            assert not self.session.client.closed
        caller = asyncio.create_task(self.source.token())
        await self.response.arrived.wait()
        return caller

    async def check_closed(self) -> None:
        """The token is stored, and nothing is left running or open."""
        assert not self.source.snapshot().refreshing
        started = set(threading.enumerate()) - self.threads
        assert not [thread.name for thread in started if "tokensession" in thread.name]
        store = self._memory if self._path is None else SQLiteStore(self._path)
        record = await store.load("account")
        await store.aclose()
        assert record is not None
        token = decode(record.data).token
        assert token is not None
        assert token.refresh_token == "refresh-1"


Body = Callable[[], Awaitable[None]]


async def _in_timed_scope(body: Body, cancel: asyncio.Event) -> None:
    async def time_out(scope: anyio.CancelScope) -> None:
        await cancel.wait()
        scope.deadline = anyio.current_time()

    with anyio.move_on_after(3600) as scope:
        timer = asyncio.create_task(time_out(scope))
        await body()
    await timer


async def _in_task_group(body: Body, cancel: asyncio.Event) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(body)
        await cancel.wait()
        group.cancel_scope.cancel()


async def _in_timeout(body: Body, cancel: asyncio.Event) -> None:
    async def time_out(timeout: asyncio.Timeout) -> None:
        await cancel.wait()
        timeout.reschedule(asyncio.get_running_loop().time())

    timeout = asyncio.timeout(3600)
    timer = asyncio.create_task(time_out(timeout))
    with contextlib.suppress(TimeoutError):
        async with timeout:
            await body()
    assert timeout.expired()
    await timer


WAYS: dict[str, Callable[[Body, asyncio.Event], Awaitable[None]]] = {
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
        owned, cancel = Owner(owner), asyncio.Event()

        async def body() -> None:
            async with owned.block:
                await owned.refreshing()
                cancel.set()
                await asyncio.Event().wait()

        leaving = asyncio.ensure_future(WAYS[way](body, cancel))
        await owned.response.arrived.wait()
        await let_tasks_run()
        assert cancel.is_set()
        assert not leaving.done()
        owned.response.release()
        await leaving
        await owned.check_closed()

    run(main)


@OWNERS
def test_f18_a_scope_may_be_cancelled_at_any_step_of_closing(owner: str) -> None:
    """An anyio scope that is cancelled at any suspension of closing does not cut it short."""

    async def cancelled_at(k: int) -> bool:
        owned = Owner(owner)
        caller = await owned.refreshing()

        async def close() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await owned.close()

        scopes: list[anyio.CancelScope] = []
        with Steps("closing", at=k, then=lambda: scopes[0].cancel(), children=False) as steps:
            closing = asyncio.create_task(close(), name="closing")
            await let_tasks_run()
            owned.response.release()
            await closing
        assert not owned.source.snapshot().refreshing
        assert (await caller).access_token == "access-1"
        await owned.check_closed()
        return steps.reached

    async def main() -> None:
        k = 0
        while await cancelled_at(k):
            k += 1
        assert k >= 2, f"closing has only {k} suspensions"

    run(main)


# -- closing that is cut short, and called again -----------------------------------------------------


@OWNERS
@pytest.mark.parametrize("way", ["task.cancel", "wait_for", "timeout"])
def test_f18_closing_that_was_cut_short_continues_when_it_is_called_again(
    tmp_path: Path, owner: str, way: str
) -> None:
    """The second call waits for the same refresh, stores its token, and closes client and store."""

    async def main() -> None:
        owned = Owner(owner, tmp_path / "tokens.db")
        caller = await owned.refreshing()
        client = owned.session.client if owned.session is not None else None

        async def first() -> None:
            if way == "wait_for":
                await asyncio.wait_for(owned.close(), 3600)
            elif way == "timeout":
                async with asyncio.timeout(3600):
                    await owned.close()
            else:
                await owned.close()

        closing = asyncio.create_task(first())
        await let_tasks_run()
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        assert owned.source.snapshot().refreshing
        again = asyncio.create_task(owned.close())
        await let_tasks_run()
        assert not again.done()
        owned.response.release()
        await again
        assert (await caller).access_token == "access-1"
        assert owned.session is None or owned.session.closed
        assert client is None or client.closed
        await owned.check_closed()

    run(main)


@OWNERS
def test_f18_closing_may_be_cancelled_at_any_of_its_steps_and_called_again(
    tmp_path: Path, owner: str
) -> None:
    """Wherever closing is cut short, the second call leaves no task, no thread and no open client."""

    async def cancelled_at(k: int) -> bool:
        owned = Owner(owner, tmp_path / f"{k}.db")
        caller = await owned.refreshing()
        client = owned.session.client if owned.session is not None else None
        with Steps("closing", at=k, then=lambda: closing.cancel(), children=False) as steps:
            closing = asyncio.create_task(owned.close(), name="closing")
            await let_tasks_run()
            owned.response.release()
            await asyncio.wait([closing])
        await owned.close()
        assert (await caller).access_token == "access-1"
        assert client is None or client.closed
        await owned.check_closed()
        return steps.reached

    async def main() -> None:
        k = 0
        while await cancelled_at(k):
            k += 1
        assert k >= 2, f"closing has only {k} suspensions"

    run(main)


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


# -- a process that ends right after closing ---------------------------------------------------------

PROGRAM = """
import asyncio, contextlib, json, sys
import anyio
from tokensession import AuthedSession, ManagedSource, Policy, StoreUnavailable, TokenUnavailable
from tokensession.providers import Priava

owner, way, url, credentials = sys.argv[1:]
provider = Priava(**json.loads(credentials))

async def work():
    if owner == "session":
        async with AuthedSession(provider, store=url) as session:
            await session.source.refresh()
    else:
        async with ManagedSource(provider, store=url) as source:
            await source.refresh()

async def cancel_on_command(cancel):
    await asyncio.to_thread(sys.stdin.readline)
    cancel()
    for _ in range(20_000):  # closing would end in far fewer turns if it did not wait for the refresh
        await asyncio.sleep(0)
    print("still closing", flush=True)

async def main():
    if way == "anyio":
        with anyio.move_on_after(3600) as scope:
            waiting = asyncio.create_task(cancel_on_command(scope.cancel))
            await work()
    else:
        timeout = asyncio.timeout(3600)
        now = asyncio.get_running_loop().time
        waiting = asyncio.create_task(cancel_on_command(lambda: timeout.reschedule(now())))
        with contextlib.suppress(TimeoutError):
            async with timeout:
                await work()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("owner", "way"), [("session", "anyio"), ("source", "anyio"), ("session", "asyncio")]
)
def test_f18_a_process_that_ends_in_a_cancelled_scope_stores_its_token_first(
    tmp_path: Path, owner: str, way: str
) -> None:
    """A real process whose scope is cancelled during a refresh ends without losing the token."""
    url = f"sqlite:///{tmp_path / 'tokens.db'}"

    async def get_echo(server: PriavaServer) -> int:
        async with AuthedSession(Priava(**server.credentials), store=url) as session:
            async with session.get("/echo") as response:
                return response.status

    async def main() -> None:
        async with PriavaServer(lifetime=3600) as server:
            assert await get_echo(server) == 200
            pipe = asyncio.subprocess.PIPE
            async with server.hold("after") as gate:
                child = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", PROGRAM, owner, way, url, json.dumps(server.credentials)),
                    stdin=pipe,
                    stdout=pipe,
                )
                assert child.stdin is not None
                assert child.stdout is not None
                try:
                    await gate.reached()
                    child.stdin.write(b"cancel\n")
                    assert await child.stdout.readline() == b"still closing\n"
                    gate.open()
                    assert await child.wait() == 0
                finally:
                    if child.returncode is None:
                        child.kill()
                        await child.wait()
                    child.stdin.close()
            server.revoke_access_tokens()  # the next process has to use the refresh token
            assert await get_echo(server) == 200
            assert (server.stats.token_requests, server.stats.reuse_detections) == (3, 0)
            assert server.stats.rejections == 0

    run(main)
