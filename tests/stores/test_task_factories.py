"""Stores in an event loop whose tasks are made by another tool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import _postgres_server as postgres
import pytest
from _store_helpers import run

from benchmarks.servers import RedisServer
from tokensession.stores import open_store
from tokensession.testing.conformance.backend import claimed


@pytest.fixture(params=["redis", "postgres", "encrypted"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "redis":
        with RedisServer("redis") as server:
            yield server.url()
    elif request.param == "postgres":
        yield postgres.shared_server().store_url()
    else:
        monkeypatch.setenv("STORE_KEY", "A" * 43)
        yield "encrypted+memory:?key_env=STORE_KEY"


def wrapping(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    """Awaits each coroutine in one of its own, as the task factory of sentry-sdk does."""

    async def wrapped() -> Any:
        return await work

    return asyncio.Task(wrapped(), loop=loop, **options)


def test_a_task_factory_that_wraps_coroutines_stops_no_call(url: str) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(wrapping)
        async with open_store(url) as store:
            record = await store.put("k", b"put")
            claim = await claimed(store, "k", record.version)
            await claim.sending()
            assert await claim.commit(b"committed") == await store.load("k")

    run(main())
