"""The token as a callable: in coroutines, in threads of others, and in the event loop's own thread."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from _event_loop import in_event_loop
from _rig import LIFETIME, Rig, expired, invalid_grant, let_tasks_run, success

from tokensession import (
    ConfigurationError,
    GrantRejected,
    Token,
    TokenUnavailable,
    blocking_token_callable,
    token_callable,
)
from tokensession.testing import Paused

pytestmark = pytest.mark.filterwarnings("error")

WORKERS = 8


class Own:
    """A source of your own, in a few lines. It waits for `gate`, if there is one."""

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        self.gate = gate
        self.asked: list[threading.Thread] = []

    async def token(self) -> Token:
        self.asked.append(threading.current_thread())
        if self.gate is not None:
            await self.gate.wait()
        return Token("own", obtained_at=0.0)


async def in_thread(call: Callable[[], Any]) -> Any:
    """What it returns or raises in a thread that is not one of the event loop's pool."""
    with ThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(call))


def blocked_by(call: Callable[[], Any]) -> Any:
    """What it returns or raises in another thread, while this one, the event loop's, waits for it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@in_event_loop
async def test_the_async_callable_returns_the_text_of_the_token_that_the_source_has() -> None:
    rig = Rig(success(1), success(2))
    get = token_callable(rig.source)
    assert inspect.iscoroutinefunction(get)
    assert await get() == await get() == "access-1"
    rig.clock.advance(LIFETIME)
    assert await get() == "access-2"
    assert rig.token_requests == 2


@in_event_loop
async def test_the_async_callable_raises_what_the_source_raises() -> None:
    rig = Rig(invalid_grant())
    with pytest.raises(GrantRejected):
        await token_callable(rig.source)()


@in_event_loop
async def test_threads_that_ask_at_the_same_time_share_one_token_request() -> None:
    rig = Rig()
    paused = Paused(success(1))
    rig.transport.script(paused)
    get = blocking_token_callable(rig.source)
    ready = threading.Barrier(WORKERS)

    def call() -> str:
        ready.wait()
        return get()

    with ThreadPoolExecutor(WORKERS) as pool:
        answers = [asyncio.wrap_future(pool.submit(call)) for _ in range(WORKERS)]
        await paused.arrived.wait()
        paused.release()
        assert set(await asyncio.gather(*answers)) == {"access-1"}
    assert rig.token_requests == 1


@in_event_loop
async def test_a_thread_gets_the_error_of_the_source() -> None:
    rig = Rig(invalid_grant())
    with pytest.raises(GrantRejected):
        await in_thread(blocking_token_callable(rig.source))


@in_event_loop
async def test_a_fresh_token_needs_no_event_loop_that_runs() -> None:
    """The event loop is blocked, by a thread that it waits for."""
    rig = Rig(success(1))
    await rig.access()
    assert blocked_by(blocking_token_callable(rig.source)) == "access-1"


@in_event_loop
async def test_a_token_that_is_due_is_refreshed_by_a_thread_too() -> None:
    rig = Rig(success(1), success(2))
    await rig.access()
    rig.clock.advance(LIFETIME - 299)
    get = blocking_token_callable(rig.source)
    assert await in_thread(get) == "access-1"
    await rig.refreshed()
    assert await in_thread(get) == "access-2"


@in_event_loop
async def test_in_the_event_loops_own_thread_a_call_never_waits() -> None:
    """It would stop the refresh that it waits for. It starts one, says so, and works afterwards."""
    rig = Rig(success(1))
    get = blocking_token_callable(rig.source)
    with pytest.raises(
        RuntimeError, match=r"no valid token, and this call would have to wait .* Await source"
    ):
        get()
    await rig.refreshed()
    assert get() == "access-1"
    assert rig.token_requests == 1


@pytest.mark.parametrize(("left", "freshness"), [(299, "due"), (30, "ending")])
@in_event_loop
async def test_in_the_event_loops_own_thread_a_valid_token_is_used_to_its_end(
    left: float, freshness: str
) -> None:
    rig = Rig(success(1), success(2))
    await rig.access()
    rig.clock.advance(LIFETIME - left)
    assert rig.source.snapshot().freshness.value == freshness
    get = blocking_token_callable(rig.source)
    assert get() == get() == "access-1"
    await rig.refreshed()
    assert get() == "access-2"
    assert rig.token_requests == 2


@in_event_loop
async def test_in_the_event_loops_own_thread_an_expired_token_is_refused() -> None:
    rig = await expired(success(2))
    get = blocking_token_callable(rig.source)
    with pytest.raises(RuntimeError, match="would have to wait"):
        get()
    await rig.refreshed()
    assert get() == "access-2"


@in_event_loop
async def test_in_the_event_loops_own_thread_a_remembered_error_is_raised() -> None:
    rig = Rig(invalid_grant())
    with pytest.raises(GrantRejected):
        await rig.access()
    with pytest.raises(GrantRejected):
        blocking_token_callable(rig.source)()


@in_event_loop
async def test_a_wait_ends_although_the_event_loop_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, waits, result = Rig(success(1)), list[float | None](), Future.result

    def noted(future: Future[Any], timeout: float | None = None) -> Any:
        waits.append(timeout)
        return result(future, timeout)

    get = blocking_token_callable(rig.source, timeout=0.01)
    monkeypatch.setattr(Future, "result", noted)
    with pytest.raises(TokenUnavailable, match=r"no token for this thread within 0\.01 s"):
        blocked_by(get)
    assert [timeout for timeout in waits if timeout is not None] == [0.01]
    assert await rig.access() == "access-1"


@in_event_loop
async def test_a_thread_that_has_given_up_does_not_disturb_the_refresh() -> None:
    rig = Rig()
    paused, caller = await rig.in_flight(success(1))
    with pytest.raises(TokenUnavailable, match="within"):
        await in_thread(blocking_token_callable(rig.source, timeout=0.01))
    await let_tasks_run()
    paused.release()
    assert await caller == "access-1"
    assert rig.token_requests == 1


def test_an_event_loop_that_ends_lets_the_waiting_thread_go() -> None:
    """`asyncio.run` cancels what is left."""
    asked, answers = threading.Event(), list[Any]()

    async def main() -> threading.Thread:
        source = Own(asyncio.Event())
        get = blocking_token_callable(source)

        def call() -> None:
            try:
                answers.append(get())
            except BaseException as error:  # noqa: BLE001 - it is compared below
                answers.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        while not source.asked:
            await asyncio.sleep(0)
        asked.set()
        return thread

    asyncio.run(main()).join()
    (error,) = answers
    assert isinstance(error, TokenUnavailable)
    assert "event loop ended" in str(error)


def test_without_an_event_loop_that_runs_a_call_says_so_at_once() -> None:
    """A loop that never runs again would be waited for in vain."""
    source = Own()
    get = blocking_token_callable(source)
    with pytest.raises(RuntimeError, match="Make the function in the event loop"):
        get()

    async def main() -> Callable[[], str]:
        return blocking_token_callable(source)

    with pytest.raises(RuntimeError, match="event loop that could get one does not run"):
        asyncio.run(main())()
    assert source.asked == []


def test_a_managed_source_is_asked_in_the_event_loop_that_uses_it() -> None:
    """The function can be made before there is an event loop, as engines and channels are."""
    rig = Rig(success(1), success(2))
    get = blocking_token_callable(rig.source)

    async def first() -> None:
        await rig.access()
        rig.clock.advance(LIFETIME)
        assert await in_thread(get) == "access-2"

    asyncio.run(first())
    assert get() == "access-2"  # fresh: no loop is needed
    rig.clock.advance(LIFETIME)
    with pytest.raises(RuntimeError, match="does not run"):
        get()
    rig.transport.script(success(3))

    async def second() -> None:
        await rig.source.check()
        assert await in_thread(get) == "access-3"

    asyncio.run(second())


@in_event_loop
async def test_a_source_of_your_own_is_asked_in_its_event_loop() -> None:
    source = Own()
    get = blocking_token_callable(source)
    assert get() == await in_thread(get) == "own"
    assert source.asked == [threading.current_thread()] * 2


@in_event_loop
async def test_a_source_of_your_own_that_waits_is_not_waited_for_in_its_event_loop() -> None:
    gate = asyncio.Event()
    get = blocking_token_callable(Own(gate))
    with pytest.raises(RuntimeError, match="would have to wait"):
        get()
    thread = asyncio.ensure_future(in_thread(get))
    await let_tasks_run()
    gate.set()
    assert await thread == "own"


@in_event_loop
async def test_a_thread_with_an_event_loop_of_its_own_is_a_thread_like_others() -> None:
    rig = Rig(success(1))
    get = blocking_token_callable(rig.source, loop=asyncio.get_running_loop())

    async def elsewhere() -> str:
        return get()

    assert await in_thread(lambda: asyncio.run(elsewhere())) == "access-1"


@in_event_loop
async def test_a_source_of_your_own_may_raise_a_timeout_of_its_own() -> None:
    class Late:
        async def token(self) -> Token:
            raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await in_thread(blocking_token_callable(Late()))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"source": None}, r"source must have a token\(\) method, and None has none"),
        ({"source": Own}, "the class Own has none"),
        ({"source": Own(), "timeout": 0}, "timeout must be a number of seconds above 0, not an int"),
        ({"source": Own(), "timeout": float("inf")}, "timeout must be"),
        ({"source": Own(), "timeout": None}, "timeout must be .*, not None"),
        ({"source": Own(), "timeout": True}, "timeout must be .*, not a bool"),
        ({"source": Own(), "loop": "loop"}, "loop must be an asyncio event loop, not a string"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_cannot_work_are_an_error_at_once(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        blocking_token_callable(**wrong)
    with pytest.raises(ConfigurationError):
        token_callable(wrong["source"] if len(wrong) == 1 else None)
