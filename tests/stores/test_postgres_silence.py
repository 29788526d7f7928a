"""A Postgres server that is reached and says nothing, as one is whose network is cut or whose disk hangs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import _postgres_server as postgres
import asyncpg
import pytest

from tokensession.errors import StoreUnavailable
from tokensession.stores import open_store
from tokensession.stores._postgres import server
from tokensession.stores._postgres.schema import LOCK
from tokensession.testing.conformance.backend import claimed

CANCEL_REQUEST = (80877102).to_bytes(4, "big")
"""What a connection begins with that asks the server to cancel the statement of another one."""


class Relay:
    """Leads to the shared server. Once a client sends `until`, nothing is passed on to the server."""

    def __init__(self) -> None:
        self.until = b"never"
        self.silent = asyncio.Event()
        self.cancel_requests = 0
        self._served: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def url(self) -> AsyncIterator[str]:
        """The URL of an empty store behind it. The store must be closed when this ends."""
        server = await asyncio.start_server(self._accept, "127.0.0.1")
        async with server:
            port = server.sockets[0].getsockname()[1]
            shared = postgres.shared_server()
            yield shared.url.replace(str(shared.port), str(port)) + postgres.options(postgres.new_table())
            await asyncio.gather(*self._served)

    def speak(self) -> None:
        """Pass on what is sent from now on."""
        self.until = b"never"
        self.silent.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._served.add(asyncio.ensure_future(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", postgres.shared_server().port)
        answers = asyncio.ensure_future(self._pass_on(there, writer))
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                self.cancel_requests += data[4:8] == CANCEL_REQUEST
                if self.until in data:
                    self.silent.set()
                if not self.silent.is_set():
                    to_there.write(data)
        to_there.close()
        await answers
        with contextlib.suppress(OSError):
            await to_there.wait_closed()

    async def _pass_on(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await there.read(65_536):
                writer.write(data)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 100))


@pytest.mark.parametrize("until", [b"BEGIN", LOCK.encode(), b"CREATE TABLE", b"COMMIT"])
def test_a_server_that_falls_silent_while_the_table_is_made_is_an_error(until: bytes) -> None:
    """At each step, within some seconds. The next call makes the table."""

    async def promise() -> None:
        relay = Relay()
        async with relay.url() as url, open_store(url) as store:
            relay.until = until
            with pytest.raises(StoreUnavailable):
                await store.load("k")
            assert relay.silent.is_set()
            relay.speak()
            record = await store.put("k", b"data")
            assert await store.load("k") == record
        assert relay.cancel_requests == 0

    run(promise())


def test_a_server_that_does_not_answer_is_not_asked_to_cancel() -> None:
    """pgbouncer 1.18 ends itself if a cancel request is given up before it is through (its issue 801)."""

    async def promise() -> None:
        relay = Relay()
        async with relay.url() as url, open_store(url) as store:
            held = await claimed(store, "held")
            relay.until = b""
            for call in (store.load("k"), store.claim("k", seen=None, timeout=3600), held.commit(b"data")):
                with pytest.raises(StoreUnavailable, match="answer"):
                    await call
            relay.speak()
            record = await held.commit(b"data")
            assert await store.load("held") == record
        assert relay.cancel_requests == 0

    run(promise())


def test_the_end_of_the_event_loop_asks_no_server_to_cancel() -> None:
    """It cancels a commit that is under way, which is then made once more, over another connection."""
    relay = Relay()

    async def ends_too_early(url: str) -> None:
        store = open_store(url)
        held = await claimed(store, "held")
        relay.until = b""
        begun = asyncio.ensure_future(held.commit(b"data"))
        await relay.silent.wait()
        relay.speak()
        begun.cancel()

    async def promise() -> None:
        async with relay.url() as url:
            await asyncio.to_thread(run, ends_too_early(url))
            async with open_store(url) as store:
                record = await store.load("held")
                assert record is not None
                assert record.data == b"data"
        assert relay.cancel_requests == 0

    run(promise())


def test_a_call_that_gets_no_connection_in_time_does_not_cost_the_others_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls of a crowd wait for each other. Connecting anew would make that worse."""
    monkeypatch.setattr(server, "_CONNECTIONS", 1)

    async def promise() -> None:
        url = postgres.shared_server().url
        gate = await asyncpg.connect(url)
        try:
            await gate.execute("SELECT pg_advisory_lock(8)")
            async with open_store(url + postgres.options(postgres.new_table())) as store:
                await store.load("k")
                statement = "SELECT pg_advisory_lock(8), pg_backend_pid() AS pid"
                slow = asyncio.ensure_future(store._server.fetch(statement))
                while not await gate.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    pass
                with monkeypatch.context() as impatient:
                    impatient.setattr(server, "_CONNECT", 0.001)
                    with pytest.raises(StoreUnavailable, match="no free connection"):
                        await store.load("k")
                await gate.execute("SELECT pg_advisory_unlock(8)")
                [before] = await slow
                [after] = await store._server.fetch("SELECT pg_backend_pid() AS pid")
                assert after["pid"] == before["pid"]
        finally:
            await gate.close()

    run(promise())
