"""Stores on servers in an `asyncio.run` that forgets to close them: nothing is lost.

(The local stores write in a thread of their own, which does not end with the event loop.)
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import _postgres_server as postgres
import pytest

from benchmarks.servers import RedisServer
from tokensession.stores import EncryptedStore, Keys, Store, open_store


@pytest.fixture(scope="module", params=["redis", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "postgres":
        yield postgres.shared_server().store_url()
    else:
        with RedisServer("redis") as server:
            yield server.url()


@pytest.fixture(params=["plain", "key in the environment", "key in a file"])
def opened(
    url: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Store]:
    """Opens the store, as it is or encrypted."""
    gc.collect()  # what other tests have left is not logged in this one
    path, text = tmp_path / "key", EncryptedStore.new_key()
    path.write_text(text)
    monkeypatch.setenv("STORE_KEY", text)

    def open_() -> Store:
        store = open_store(url)
        if request.param == "plain":
            return store
        keys = Keys.env("STORE_KEY") if request.param == "key in the environment" else Keys.file(path)
        return EncryptedStore(store, keys)

    return open_


async def read(store: Store, key: str) -> bytes | None:
    record = await store.load(key)
    await store.aclose()
    return None if record is None else record.data


# If you forget to close a store, its driver may warn (ResourceWarning).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_first_write_finishes_although_the_event_loop_ends(
    opened: Callable[[], Store], caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it is: before its first step, while it reads a key or connects, or at the server."""
    for count in range(15):
        data = b"%d" % count

        async def begin(count: int = count, data: bytes = data) -> None:
            put = asyncio.ensure_future(opened().put("k", data))
            for _ in range(count):
                await asyncio.sleep(0)
            put.add_done_callback(lambda _: None)  # it is referenced until here

        asyncio.run(begin())
        gc.collect()
        assert asyncio.run(read(opened(), "k")) == data
        assert caplog.records == []
