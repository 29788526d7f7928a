"""Moments that many tests begin at or wait for: a token that has aged, a request on its way, a refusal."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, TypeVar

import pytest
from _rig import Rig, let_tasks_run, success, until_sleeping
from _scripted_store import Gate
from _shared_store import SharedStore

from tokensession import OutcomeUnknown, StoreCorrupt
from tokensession._refresh.state import TokenState
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores.protocol import Claim, Record, Store
from tokensession.testing import FakeClock, Paused

Error = TypeVar("Error", bound=BaseException)


def beside(rig: Rig, *script: Any, **options: Any) -> Rig:
    """Another process, on the store of this one."""
    return Rig(*script, store=rig.store, clock=rig.clock, **options)


def processes(count: int, *script: Any, **options: Any) -> list[Rig]:
    """So many processes on one store, each with this script."""
    first = Rig(*script, **options)
    return [first, *(beside(first, *script, **options) for _ in range(count - 1))]


def process(shared: SharedStore, *script: Any, **options: Any) -> Rig:
    """A process that opens this store for itself."""
    return Rig(*script, store=shared.open(), clock=shared.clock, **options)


def lost(_request: TokenRequest) -> TokenResponse:
    """A line of a script: the answer to this request gets lost."""
    raise OutcomeUnknown("The token request got no whole answer.")


async def reset() -> None:
    """A step of a store: an error that its driver raises."""
    raise ConnectionResetError("by peer")


async def corrupt() -> None:
    """A step of a store: the record is damaged."""
    raise StoreCorrupt("The record is damaged.")


async def holding(*rest: Any, age: float = 0, **options: Any) -> Rig:
    """A process that has had `access-1` for `age` seconds. The rest of its script follows."""
    rig = Rig(success(1), *rest, **options)
    await rig.access()
    rig.clock.advance(age)
    return rig


async def under_way(call: Coroutine[Any, Any, Any], gate: Paused | Gate) -> asyncio.Task[Any]:
    """A task with this call, which has arrived at the gate."""
    task = asyncio.create_task(call)
    await gate.arrived.wait()
    return task


async def held_claim(store: Store) -> Claim:
    """The claim of another holder, which is in the way of everyone else."""
    record = await store.load("account")
    claim = await store.claim("account", seen=record.version if record else None, timeout=0)
    assert not isinstance(claim, Record)
    return claim


def killed(call: Coroutine[Any, Any, Any], gate: Paused | Gate) -> None:
    """Run it in an event loop that ends when it arrives at the gate, without a word to its tasks."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending!" is the point here
    task = loop.run_until_complete(under_way(call, gate))
    assert not task.done()
    loop.close()
    del task
    gc.collect()


async def asking_after_a_killed_holder(rig: Rig) -> asyncio.Task[str]:
    """A caller whose refresh has waited for what a killed holder may have sent."""
    caller = asyncio.create_task(rig.access())
    await until_sleeping(rig.clock, 2)  # orphan_wait
    rig.clock.advance(2)
    return caller


async def refused(
    kind: type[Error] | tuple[type[Error], ...], *calls: Awaitable[object], match: str | None = None
) -> Error:
    """Each of these calls, one after the other, gets this error. Returns the last one."""
    for call in calls:
        with pytest.raises(kind, match=match) as caught:
            await call
    return caught.value


async def keep_failing(
    kind: type[BaseException] | tuple[type[BaseException], ...],
    *rigs: Rig,
    times: int = 1,
    pause: float = 0,
    match: str | None = None,
) -> None:
    """Each process asks so often, with this pause after each round, and gets this error each time."""
    for _ in range(times):
        await refused(kind, *(rig.access() for rig in rigs), match=match)
        rigs[0].clock.advance(pause)


async def let_pass(clock: FakeClock, seconds: float) -> None:
    """Let time pass, and let what that wakes run."""
    clock.advance(seconds)
    await let_tasks_run()


async def wait_in_vain_for_the_claim(clock: FakeClock, seconds: int = 5) -> None:
    """A sign-in waits `sign_in_wait` for a running refresh, and then does without the claim."""
    await let_tasks_run()
    assert seconds in clock.sleepers
    await let_pass(clock, seconds)


def requests_of(rigs: Iterable[Rig]) -> int:
    """How many token requests these processes have sent."""
    return sum(rig.token_requests for rig in rigs)


async def state_in(place: Rig | SharedStore) -> TokenState:
    """The state that is stored there."""
    state = await place.stored()
    assert state is not None
    return state


async def refresh_token_in(place: Rig | SharedStore) -> str | None:
    """The refresh token that is stored there."""
    token = (await state_in(place)).token
    assert token is not None
    return token.refresh_token


def refresh_tokens(rig: Rig) -> list[str]:
    """The refresh tokens that this process has sent, in order."""
    return [rig.sent(index).split("refresh_token=")[1] for index in range(rig.token_requests)]


async def close(*rigs: Rig) -> None:
    """Close these processes and their stores."""
    for rig in rigs:
        await rig.source.aclose()
        await rig.store.aclose()
