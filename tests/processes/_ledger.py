"""What lies in a store that processes share, looked at and changed from outside."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from tokensession import open_store
from tokensession._refresh.state import TokenState, decode, encode
from tokensession.stores import Record, Store


@contextlib.asynccontextmanager
async def opened(where: str) -> AsyncIterator[Store]:
    """The store, for a moment."""
    store = open_store(where)
    try:
        yield store
    finally:
        await store.aclose()


async def the_record(store: Store) -> tuple[str, Record]:
    """The only key, and its record."""
    [key] = await store.keys()
    record = await store.load(key)
    assert record is not None
    return key, record


async def the_grant(where: str) -> TokenState:
    """What is stored under the only key."""
    async with opened(where) as store:
        return decode((await the_record(store))[1].data)


async def expire(where: str) -> None:
    """Make the stored access token a day older than it is."""
    async with opened(where) as store:
        key, record = await the_record(store)
        grant = decode(record.data)
        assert grant.token is not None
        token = replace(grant.token, obtained_at=grant.token.obtained_at - 86_400)
        await store.put(key, encode(replace(grant, token=token)))
