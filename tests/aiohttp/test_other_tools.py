"""Tools beside a session: the task factory of AWS X-Ray, and blockbuster, which finds blocking calls.

Without X-Ray installed, its test is skipped. Its factory is emulated as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blockbuster
import pytest
from _api import session_of, status
from _event_loop import in_event_loop
from _processes import finish, running
from blockbuster import blockbuster as detector

from tokensession import AuthedSession, SignedOut
from tokensession.stores import open_store
from tokensession.testing import OAuth2Server

STORES = {"memory": "memory:", "file": "file://{}/tokens", "sqlite": "sqlite:///{}/tokens.db"}


Segment = Callable[[str], AbstractAsyncContextManager[None]]
"""Trace what runs inside of it, under this name. Fails at its end if another name is traced by then."""


def _factory(loop: asyncio.AbstractEventLoop, coro: Any) -> asyncio.Task[Any]:
    """As `aws_xray_sdk.core.async_context.task_factory`: two arguments, and tasks inherit by an attribute."""
    task: Any = asyncio.Task(coro, loop=loop)
    if task._source_traceback:
        del task._source_traceback[-1]
    current: Any = asyncio.current_task(loop)
    if hasattr(current, "context"):
        task.context = current.context | {"entities": [*current.context["entities"]]}
    return task


def _emulated() -> Segment:
    asyncio.get_running_loop().set_task_factory(_factory)

    @contextlib.asynccontextmanager
    async def segment(name: str) -> AsyncIterator[None]:
        current: Any = asyncio.current_task()
        current.context = {"entities": [name]}
        yield
        assert current.context == {"entities": [name]}
        del current.context

    return segment


def _installed() -> Segment:
    context = pytest.importorskip("aws_xray_sdk.core.async_context")
    recorder = pytest.importorskip("aws_xray_sdk.core.async_recorder").AsyncAWSXRayRecorder()
    recorder.emitter._socket.close()  # it has no other way to close it
    nowhere = SimpleNamespace(send_entity=lambda _: None)
    recorder.configure(service="test", context=context.AsyncContext(), sampling=False, emitter=nowhere)

    @contextlib.asynccontextmanager
    async def segment(name: str) -> AsyncIterator[None]:
        async with recorder.in_segment_async(name):
            yield
            assert recorder.current_segment().name == name

    return segment


XRAY = {"emulated": _emulated, "aws-xray-sdk": _installed}


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("xray", XRAY)
@in_event_loop
async def test_k38_a_session_works_with_the_task_factory_of_x_ray(
    xray: str, debug: bool, tmp_path: Path
) -> None:
    """Callers in segments of their own share each refresh, and stay in their segments."""
    loop = asyncio.get_running_loop()
    loop.set_debug(debug)
    segment = XRAY[xray]()
    factory = loop.get_task_factory()
    assert factory is not None

    async def traced(session: AuthedSession, name: str) -> int:
        async with segment(name):
            return await status(session.get("/echo"))

    async def crowd(session: AuthedSession) -> set[int]:
        return set(await asyncio.gather(*(traced(session, f"caller-{number}") for number in range(10))))

    async with OAuth2Server() as server:
        async with session_of(server, store=STORES["sqlite"].format(tmp_path)) as session:
            assert await crowd(session) == {200}
            server.revoke_access_tokens()
            assert await crowd(session) == {200}
            async with segment("one"):
                await session.source.sign_in(refresh_token=server.new_credential())
                await session.source.refresh()
                async with session.ws_connect("/ws"):
                    pass
            assert await status(session.get("/echo")) == 200  # outside of any segment
        assert server.stats.token_requests == 4
        assert loop.get_task_factory() is factory


Watch = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def nothing_blocks(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Inside of it, no call may block the event loop: not one of ours, of aiohttp's, or of the test server's.

    The error of such a call may be caught on its way, so they are counted where they are made.
    """
    monkeypatch.setattr(logging.getLogger("tokensession"), "disabled", True)  # a handler may write to a file
    blocking = list[str]()

    class Found(blockbuster.BlockingError):
        def __init__(self, function: str) -> None:
            super().__init__(function)
            blocking.append(f"{function}\n{''.join(traceback.format_stack(limit=12))}")

    monkeypatch.setattr(detector, "BlockingError", Found)

    @contextlib.contextmanager
    def watch() -> Iterator[None]:
        with blockbuster.blockbuster_ctx():
            yield
        assert not blocking, "\n".join(blocking)

    return watch


@pytest.mark.parametrize("kind", STORES)
@in_event_loop
async def test_k46_a_session_makes_no_blocking_call_in_the_event_loop(
    kind: str, tmp_path: Path, nothing_blocks: Watch
) -> None:
    """Signing in and out, requests, a 401, a websocket, closing during a refresh, and being entered again."""
    async with OAuth2Server() as server:
        with nothing_blocks():
            async with session_of(server, store=STORES[kind].format(tmp_path)) as session:
                assert await status(session.get("/echo")) == 200
                await session.source.refresh()
                server.revoke_access_tokens()
                requests = (status(session.get("/echo")) for _ in range(5))
                assert set(await asyncio.gather(*requests)) == {200}
                async with session.ws_connect("/ws"):
                    pass
                await session.source.sign_out()
                with pytest.raises(SignedOut):
                    await status(session.get("/echo"))
                await session.source.sign_in(refresh_token=server.new_credential())
                await session.source.check()
                async with server.hold("after") as gate:
                    refresh = asyncio.ensure_future(session.source.refresh())
                    await gate.reached()
                    closing = asyncio.ensure_future(session.close())
                    await asyncio.sleep(0)
                    gate.open()
                    await closing
                token = await refresh
                async with session:
                    assert await session.source.token() == token
                    assert await status(session.get("/echo")) == 200


OTHER_PROCESS = """
import asyncio, json, sys
from tokensession import AuthedSession
from tokensession.providers import OAuth2

async def main():
    async with AuthedSession(OAuth2(**json.loads(sys.argv[1])), store=sys.argv[2]) as session:
        print((await session.source.refresh()).fingerprint)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["file", "sqlite"])
@in_event_loop
async def test_k46_a_session_that_waits_for_another_process_makes_no_blocking_call(
    kind: str, tmp_path: Path, nothing_blocks: Watch
) -> None:
    """The other process holds the claim during its refresh. One of the waiting callers is cancelled."""
    url = STORES[kind].format(tmp_path)
    async with OAuth2Server() as server, open_store(url) as store, session_of(server, store=store) as session:
        assert await status(session.get("/echo")) == 200
        arguments = ("-c", OTHER_PROCESS, json.dumps(server.credentials), url)
        async with server.hold("before") as gate:
            with running(*arguments, tmp=tmp_path) as other:
                await gate.reached()
                server.revoke_access_tokens()
                with nothing_blocks():
                    callers = [asyncio.ensure_future(status(session.get("/echo"))) for _ in range(5)]
                    while not store._worker._waiting:
                        assert not any(caller.done() for caller in callers)
                        await asyncio.sleep(0)
                    callers.pop().cancel()
                    gate.open()
                    assert set(await asyncio.gather(*callers)) == {200}
                    token = await session.source.token()
                    await session.close()
                    await store.aclose()
                assert await asyncio.to_thread(finish, other) == (0, f"{token.fingerprint}\n", "")
        assert server.stats.token_requests == 2
