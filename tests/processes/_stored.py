"""The stored state of processes that share a store, read and changed from outside."""

from __future__ import annotations

import time
from dataclasses import replace

from tokensession import open_store
from tokensession._refresh.state import Now, TokenState, decode, encode
from tokensession.stores import Record, Store


async def only_record(store: Store) -> tuple[str, Record]:
    """The only key, and its record."""
    [key] = await store.keys()
    return key, await store.load(key)


async def stored_state(where: str) -> TokenState:
    """The state that is stored under the only key."""
    async with open_store(where) as store:
        record = (await only_record(store))[1]
        return decode(record.data, now(), age=record.age)


async def stored_token(where: str) -> list[str]:
    """The fingerprint of the stored token, as a worker answers with it."""
    state = await stored_state(where)
    return [state.token.fingerprint]


async def stored_record(where: str) -> tuple[str, bytes]:
    """The version and the bytes of what is stored under the only key."""
    async with open_store(where) as store:
        record = (await only_record(store))[1]
        return record.version, record.data


async def expire(where: str) -> None:
    """Make the stored access token a day older."""
    async with open_store(where) as store:
        key, record = await only_record(store)
        state = decode(record.data, now(), age=record.age)
        await store.put(key, encode(replace(state, obtained=state.obtained - 86_400), now()))


def now() -> Now:
    """What the clocks say."""
    return Now(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))
