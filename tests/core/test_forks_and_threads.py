"""A session and a source belong to one process and one event loop: forks, threads, pickles."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from _moments import refused
from _rig import LIFETIME, Rig, begun, failed_after, run, success, took

from tokensession import AuthedSession, BearerAuth, ManagedSource, OutcomeUnknown, Policy, SignedOut
from tokensession.providers import OAuth2, Oto
from tokensession.stores import MemoryStore
from tokensession.testing import (
    FakeClock,
    OAuth2Server,
    OtoServer,
    Paused,
    ScriptedTransport,
    token_response,
)

PRELUDE = """
import asyncio, concurrent.futures, json, logging, multiprocessing, os, sys, warnings
import aiohttp
from tokensession import AuthedSession, ManagedSource, Policy
from tokensession.errors import StoreUnavailable
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore, SQLiteStore
from tokensession.testing import token_response

warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12, for a process with threads that forks
provider, store = OAuth2(**json.loads(sys.argv[1])), SQLiteStore(sys.argv[2])
session = AuthedSession(provider, store=store)

async def use():
    async with session.get("/echo") as response:
        return (await response.json())["authorized"] and response.status

async def close():
    await session.close()
    return "closed"

async def close_and_use():
    await session.close()
    async with session:
        return await use()

async def enter():
    async with session:
        return await use()

async def refresh():
    await session.source.refresh()
    return await use()

def run_in_child(name):
    return asyncio.run(globals()[name]())

def report(who, function, *arguments):
    try:
        print(who, function(*arguments), flush=True)
    except BaseException as error:
        print(who, type(error).__name__, error, flush=True)

def forked(function, *arguments):
    pid = os.fork()
    if pid == 0:
        report("child", function, *arguments)
        os._exit(0)
    os.waitpid(pid, 0)

async def parent():
    async with asyncio.timeout(30):
        print("parent", await use(), await asyncio.to_thread(int, 7), flush=True)
"""


def printed(program: str, tmp_path: Path, *arguments: str) -> list[str]:
    """What this program prints, with an API in this process."""

    async def main() -> list[str]:
        async with OAuth2Server() as server:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-u",  # a forked child would print what the parent has in its buffer
                *("-c", PRELUDE + program, json.dumps(server.credentials), str(tmp_path / "tokens.db")),
                *arguments,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                out, err = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            assert server.stats.reuse_detections == 0
        assert not err, err.decode()
        return out.decode().splitlines()

    return run(main)


@pytest.mark.parametrize("loop", ["made in", "named"])
def test_a_blocking_callable_never_waits_for_the_event_loop_of_the_parent(tmp_path: Path, loop: str) -> None:
    """In the child it seems to run, and waking it would write to a socket of the parent's."""
    program = """
from tokensession import blocking_token_callable

async def own_loop():
    await session.source.check()
    return len(await asyncio.to_thread(get)) > 0

async def main():
    global get
    here, named = asyncio.get_running_loop(), sys.argv[3] == "named"
    get = blocking_token_callable(session.source, loop=here if named else None)
    asking = asyncio.create_task(session.source.token())
    await asyncio.sleep(0)  # now the source belongs to this loop
    wake, here._write_to_self = here._write_to_self, lambda: print("wrote")
    forked(get)
    here._write_to_self = wake
    if not named:
        forked(run_in_child, "own_loop")
    print("parent", bool(await asking) and len(await asyncio.to_thread(get)) > 0)
    await session.close()
    await store.aclose()

asyncio.run(main())
"""
    lines = printed(program, tmp_path, loop)
    assert lines[0].startswith("child RuntimeError There is no fresh token")
    assert lines[1:] == ["child True"] * (loop == "made in") + ["parent True"]


@pytest.mark.parametrize(
    ("what", "result"),
    [("use", "200"), ("close", "closed"), ("close_and_use", "200"), ("enter", "200"), ("refresh", "200")],
)
@pytest.mark.parametrize("how", ["os.fork", "Process", "ProcessPoolExecutor"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_k39_a_forked_child_may_use_and_close_a_session_and_the_parent_goes_on(
    tmp_path: Path, what: str, result: str, how: str, loop: str
) -> None:
    """They share an epoll descriptor: closing the parent's client in the child would stop the parent."""
    program = """
how, what, loop = sys.argv[3:]
fork = multiprocessing.get_context("fork")

async def main():
    print("parent", await use())
    if how == "os.fork":
        forked(run_in_child, what)
    elif how == "Process":
        process = fork.Process(target=report, args=("child", run_in_child, what))
        process.start()
        process.join()
    else:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fork) as pool:
            report("child", pool.submit(run_in_child, what).result)
    for _ in range(3):
        await parent()
    await session.close()
    await store.aclose()

factory = None if loop == "asyncio" else __import__("uvloop").new_event_loop
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""
    lines = printed(program, tmp_path, how, what, loop)
    assert lines == ["parent 200", f"child {result}", *["parent 200 7"] * 3]


def test_k39_a_child_that_goes_on_in_its_parent_s_running_loop_is_told_so(tmp_path: Path) -> None:
    """Whatever it does there would be done in the parent too."""
    program = """
async def tell(call):
    try:
        await call()
    except RuntimeError as error:
        print("child", error)

async def main():
    print("parent", await use())
    pid = os.fork()
    if pid == 0:
        for call in (use, close, enter, refresh, session.source.aclose, session.source.check):
            await tell(call)
        print("child", session.closed, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    await parent()
    await session.close()
    await store.aclose()

asyncio.run(main())
"""
    first, *told, closed, last = printed(program, tmp_path)
    assert (first, closed, last) == ("parent 200", "child False", "parent 200 7")
    assert len(told) == 6
    assert all("This process was forked" in line and "asyncio.run" in line for line in told)


def test_f73_a_child_that_runs_the_loop_object_of_its_parent_is_told_so(tmp_path: Path) -> None:
    """It did not run at the fork, so asyncio does not notice."""
    program = """
loop = asyncio.new_event_loop()
print("parent", loop.run_until_complete(use()))
for work in (use, close, enter, session.source.refresh):
    forked(lambda: loop.run_until_complete(work()))
loop.run_until_complete(parent())
loop.run_until_complete(close())
loop.run_until_complete(store.aclose())
loop.close()
"""
    first, *told, last = printed(program, tmp_path)
    assert (first, last) == ("parent 200", "parent 200 7")
    assert len(told) == 4
    assert all("RuntimeError This process was forked" in line for line in told)


def test_f73_a_client_that_you_passed_is_not_used_in_a_forked_child(tmp_path: Path) -> None:
    """The child cannot make one with your settings. It may still close the session."""
    program = """
async def main():
    global session
    async with aiohttp.ClientSession() as client:
        session = AuthedSession(provider, store=store, client=client)
        print("parent", await use())
        for what in ("use", "enter", "close"):
            forked(run_in_child, what)
        await parent()
        await session.close()
    await store.aclose()

asyncio.run(main())
"""
    first, use, enter, close, last = printed(program, tmp_path)
    assert (first, close, last) == ("parent 200", "child closed", "parent 200 7")
    for line in (use, enter):
        assert "RuntimeError The client that you passed" in line
        assert "Make a ClientSession" in line


def test_f73_what_the_parent_has_not_saved_is_forgotten_in_the_child(tmp_path: Path) -> None:
    """The parent saves it. The child neither saves it nor waits for it at closing."""
    program = """
logging.disable()

class Failing(SQLiteStore):
    fails = False
    async def claim(self, *args, **kwargs):
        claim = await super().claim(*args, **kwargs)
        commit = claim.commit
        async def failing(data):
            if Failing.fails:
                raise StoreUnavailable("The disk is full.")
            return await commit(data)
        object.__setattr__(claim, "commit", failing)
        return claim
    async def put(self, *args, **kwargs):
        if Failing.fails:
            raise StoreUnavailable("The disk is full.")
        return await super().put(*args, **kwargs)

async def child(source):
    print("child", source.snapshot().unsaved, source.snapshot().token_requests, flush=True)
    await source.aclose()
    return "closed"

async def main():
    failing = Failing(sys.argv[2])
    source = ManagedSource(provider, store=failing)
    await source.token()
    Failing.fails = True
    await source.refresh()
    print("parent", source.snapshot().unsaved, source.snapshot().token_requests, flush=True)
    forked(lambda: asyncio.run(child(source)))
    Failing.fails = False
    await source.aclose()
    print("parent", source.snapshot().unsaved)
    await failing.aclose()

asyncio.run(main())
"""
    lines = printed(program, tmp_path)
    assert lines == ["parent True 2", "child False 0", "child closed", "parent False"]


def test_a_child_forked_during_a_refresh_gets_the_parents_token_and_can_close(tmp_path: Path) -> None:
    """The inherited refresh cannot finish in the child, so the child waits for the parent's claim instead."""
    program = """
class Transport:
    def __init__(self):
        self.process, self.arrived, self.answer = os.getpid(), asyncio.Event(), asyncio.Event()

    async def send(self, request, *, connect, total):
        assert os.getpid() == self.process, "a second token request"
        self.arrived.set()
        await self.answer.wait()
        return token_response({"access_token": "the-one-token", "expires_in": 3600})

async def token(source):
    token = (await source.token()).access_token
    await source.aclose()
    return token

async def main():
    transport = Transport()
    source = ManagedSource(provider, transport, store=store)
    caller = asyncio.create_task(token(source))
    await transport.arrived.wait()
    pid = os.fork()
    if pid == 0:
        report("child", lambda: asyncio.run(token(source)))
        os._exit(0)
    transport.answer.set()
    await caller
    await asyncio.to_thread(os.waitpid, pid, 0)
    print("parent", caller.result())
    await store.aclose()

asyncio.run(main())
"""
    assert printed(program, tmp_path) == ["child the-one-token", "parent the-one-token"]


def in_a_thread(work: Callable[[], Awaitable[Any]]) -> Any:
    """The result or error of this in a second thread with an event loop of its own, while this one runs."""

    async def main() -> Any:
        return await work()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(asyncio.run, main())
        return done.exception() or done.result()


def assert_refused(work: Callable[[], Awaitable[Any]], *words: str) -> None:
    """It is a RuntimeError with these words in a second thread."""
    error = in_a_thread(work)
    assert isinstance(error, RuntimeError), error
    assert all(each in str(error) for each in words)


@pytest.mark.parametrize("used", ["used", "only entered"])
def test_k39_a_second_thread_can_neither_use_nor_close_a_session(used: str) -> None:
    async def scene() -> None:
        async with OtoServer() as server, AuthedSession(Oto(**server.credentials)) as session:
            if used == "used":
                async with session.get("/echo") as response:
                    assert response.status == 200

            requests = (lambda: session.get("/echo"), lambda: session.ws_connect("/ws"))
            for work in (*requests, session.close, session.__aenter__):
                assert_refused(work, "another running event loop", "SQLiteStore")
            assert not session.closed
            async with session.get("/echo") as response:
                assert response.status == 200
            assert not session.client.closed

    run(scene)


def test_k39_a_second_thread_can_neither_use_nor_close_a_source() -> None:
    async def scene() -> None:
        rig = Rig(success(1), success(2))
        source = rig.source
        await source.token()
        with_arguments = (lambda: source.sign_in(refresh_token="new"), lambda: source.refresh(force=True))
        without = (source.refresh, source.check, source.sign_out, source.aclose, source.__aenter__)
        for work in (*with_arguments, *without):
            assert_refused(work, "another running event loop")
        assert rig.token_requests == 1
        rig.clock.advance(3600)
        assert_refused(source.token, "another running event loop")
        assert await rig.access() == "access-2"

    run(scene)


def test_f73_a_fresh_token_is_returned_in_any_thread() -> None:
    """That is a look at the clock, and nothing else."""

    async def scene() -> None:
        rig = Rig(success(1), clock=FakeClock(boot_counts_sleep=True))
        token = await rig.source.token()
        assert in_a_thread(rig.source.token) == token

    run(scene)


def test_f73_the_next_loop_may_use_what_another_has_closed_or_left() -> None:
    """Also in another thread."""

    async def scene() -> None:
        rig = Rig(success(1), success(2), success(3))
        await rig.source.token()
        await rig.source.aclose()
        token = in_a_thread(rig.source.refresh)
        assert token.access_token == "access-2"
        assert (await rig.source.refresh()).access_token == "access-3"  # that thread's loop is over

    run(scene)


@pytest.mark.parametrize("left", ["on the wire", "late", "paused"])
@pytest.mark.parametrize("call", ["sign_out", "sign_in", "refresh", "aclose"])
def test_f73_the_next_loop_is_not_disturbed_by_a_refresh_that_a_closed_one_has_left(
    call: str, left: str
) -> None:
    """`loop.run_until_complete(...)`, then `loop.close()`: no one has told its tasks that it ends."""
    rig = Rig(
        success(1), token_response({}, 500) if left == "paused" else Paused(success(2)), policy=Policy()
    )
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending!" is the point here

    async def first() -> asyncio.Task[str]:
        await rig.access()
        rig.clock.advance(LIFETIME)
        caller = await begun(rig.access())
        if left == "late":
            await failed_after(OutcomeUnknown, caller, rig.clock)
        return caller

    async def second() -> None:
        rig.transport.script(success(3))
        with_what = {"refresh_token": "new"} if call == "sign_in" else {}
        await took(getattr(rig.source, call)(**with_what), rig.clock)
        if call == "sign_out":
            await refused(SignedOut, rig.access())
        elif call != "aclose":
            assert await rig.access() == "access-3"

    caller = loop.run_until_complete(first())
    loop.close()
    run(second)
    assert caller.done() is (left == "late")


def test_f73_a_client_of_another_loop_is_refused_before_it_hangs() -> None:
    async def scene() -> None:
        async with OtoServer() as server, aiohttp.ClientSession() as client:
            session = AuthedSession(Oto(**server.credentials), client=client)

            for work in (lambda: session.get("/echo"), session.__aenter__):
                assert_refused(work, "The client that you passed")
            async with session.get("/echo") as response:
                assert response.status == 200

    run(scene)


def test_f73_a_session_is_not_taken_from_a_loop_that_is_only_stopped() -> None:
    """Its connections wait there."""
    session = AuthedSession(Oto(refresh_token="r"))
    one, other = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def client() -> aiohttp.ClientSession:
        return session.client

    opened = one.run_until_complete(client())
    with pytest.raises(RuntimeError, match="open in another event loop"):
        other.run_until_complete(client())
    assert one.run_until_complete(client()) is opened
    one.run_until_complete(session.close())
    for loop in (one, other):
        loop.close()


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy])
def test_f73_sessions_sources_and_middlewares_cannot_be_pickled_or_copied(how: Callable[[Any], Any]) -> None:
    """Two of them would each spend the refresh token that is in memory."""
    provider = OAuth2(
        token_url="https://a.example/t", client_id="c", client_secret="hunter2", refresh_token="r"
    )
    transport = ScriptedTransport(token_response({"access_token": "hunter2"}))
    source = ManagedSource(provider, transport, store=MemoryStore())
    for each in (AuthedSession(source), source, BearerAuth(source, origins=["https://a.example"])):
        with pytest.raises(TypeError, match=r"cannot be pickled or copied.*provider and the store") as caught:
            how(each)
        assert type(each).__name__ in str(caught.value)
        assert "hunter2" not in str(caught.value)
