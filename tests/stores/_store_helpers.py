"""Helpers for tests of the file store and the SQLite store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from tokensession import ManagedSource
from tokensession.clock import Clock
from tokensession.providers import OAuth2
from tokensession.stores import FileStore, SQLiteStore, Store, open_store
from tokensession.testing import ScriptedTransport, token_response
from tokensession.testing.conformance.backend import Backend

Local = FileStore | SQLiteStore


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


def success(number: int) -> Any:
    """The response with the tokens `access-N` and `refresh-N`."""
    return token_response(
        {"access_token": f"access-{number}", "refresh_token": f"refresh-{number}", "expires_in": 3600}
    )


def source(store: Store, transport: ScriptedTransport, clock: Clock | None = None) -> ManagedSource:
    """A source with rotating refresh tokens, over this store, under the key "k"."""
    provider = OAuth2(
        token_url="https://id.example.com/token",
        client_id="client",
        client_secret="client-secret",
        refresh_token="configured",
        rotates=True,
    )
    return ManagedSource(provider, transport, store=store, key="k", clock=clock)


@contextlib.asynccontextmanager
async def opened(backend: Backend) -> AsyncIterator[Any]:
    """A store object, opened by its URL."""
    assert backend.url is not None
    store = open_store(backend.url)
    try:
        yield store
    finally:
        await store.aclose()


async def descriptors(store: Local) -> int:
    """The number of open descriptors of this process while the store's thread does nothing else."""
    return await store._worker.run(lambda: len(list(Path("/proc/self/fd").iterdir())))


def files(backend: Backend) -> list[Path]:
    """The directory of the store and everything in it."""
    assert backend.root is not None
    return [backend.root, *backend.root.rglob("*")]
