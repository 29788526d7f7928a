"""Regression guards: what a request costs, in calls, suspensions, bytes, instructions and modules.

Never in seconds, which are for `python -m benchmarks`. A bound leaves some room, and its message has the
exact number.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

import tokensession
from benchmarks.cold_path import LIMITS, refreshes
from benchmarks.harness.server import Server
from tokensession import AuthedSession, ManagedSource
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore
from tokensession.testing import Paused, ScriptedTransport, token_response

T = TypeVar("T")

PACKAGE = Path(tokensession.__file__).parent
TOKEN = token_response({"access_token": "access", "token_type": "Bearer", "expires_in": 36_000})

CALLS_OF_A_GET = 3
"""Python functions that a GET calls beyond raw aiohttp's. Three are aiohttp's own, for any middleware."""
INSTRUCTIONS = 2.3
"""Of `await source.token()`, as a multiple of awaiting an empty coroutine function."""
BYTES_OF_A_CALL = 1152
"""What `source.token()` may allocate at one time: a coroutine, two values of clocks, a frame for coverage."""
OWN_MODULES = 22
"""Modules of this package that `import tokensession` imports."""
_LATER = ("_refresh", "cli", "events", "providers.oauth2", "stores.file", "stores.sqlite", "testing")
ON_FIRST_USE = tuple(f"tokensession.{name}" for name in _LATER)
"""Modules that it must not import, nor their submodules."""
UNWANTED = {"sqlite3", "sqlite_utils", "click", "rich", "pytest", "aiohttp.web", "importlib.metadata"}
"""Modules of others that it must not import, unless what it needs imports them."""


def run(scene: Callable[[], Awaitable[T]]) -> T:
    return asyncio.run(asyncio.wait_for(scene(), 60))


def source_over(transport: ScriptedTransport) -> ManagedSource:
    provider = OAuth2(
        token_url="https://id.example.com/token", client_id="c", client_secret="s", refresh_token="r"
    )
    return ManagedSource(provider, transport, store=MemoryStore())


def session_to(server: Server) -> AuthedSession:
    return AuthedSession(OAuth2(**server.credentials), store=MemoryStore())


async def fresh() -> ManagedSource:
    """A source that has a fresh token."""
    source = source_over(ScriptedTransport(TOKEN))
    await source.token()
    return source


def suspensions(awaitable: Awaitable[Any]) -> int:
    """Whether it suspends: 0 or 1, because nothing here could resume it."""
    try:
        next(awaitable.__await__())
    except StopIteration:
        return 0
    return 1


def test_a_burst_of_a_thousand_callers_makes_one_token_request() -> None:
    """All ask before the response arrives, and share one refresh."""

    async def scene() -> None:
        paused = Paused(TOKEN)
        transport = ScriptedTransport(paused)
        source = source_over(transport)
        callers = [asyncio.create_task(source.token()) for _ in range(1000)]
        await paused.arrived.wait()
        paused.release()
        tokens = await asyncio.gather(*callers)
        assert {token.access_token for token in tokens} == {"access"}
        assert len(transport.requests) == source.snapshot().refreshes == 1
        assert transport.unexpected_requests == 0

    run(scene)


def test_getting_a_fresh_token_does_not_suspend() -> None:
    """No lock, no checkpoint, no task."""
    source = run(fresh)
    assert suspensions(source.token()) == 0


def test_getting_a_fresh_token_is_one_python_call() -> None:
    """`token` itself, and no helper. Some calls also read the wall clock, so this takes the least."""

    async def scene() -> Counter[str]:
        return await least_of((await fresh()).token)

    calls = run(scene)
    assert calls.total() == 1, f"{calls.total()} Python calls: {dict(calls)}"


def test_getting_a_fresh_token_keeps_no_memory_and_needs_little() -> None:
    """A thousand calls leave nothing behind, and one needs a coroutine and two floats."""
    source = run(fresh)

    def ask() -> None:
        assert suspensions(source.token()) == 0

    tracemalloc.start()
    gc.disable()
    try:
        for _ in repeat(None, 20):
            ask()
        before = tracemalloc.take_snapshot()
        for _ in repeat(None, 1000):
            ask()
        leaked = leaked_by(1000, before, tracemalloc.take_snapshot())
        peak = min(peak_of(ask) for _ in range(10))
    finally:
        gc.enable()
        tracemalloc.stop()
    assert leaked == {}, f"left after 1,000 calls: {leaked}"
    assert peak <= BYTES_OF_A_CALL, f"a call allocated {peak} bytes, of {BYTES_OF_A_CALL} allowed"


@pytest.mark.skipif(
    not (shutil.which("valgrind") and shutil.which("callgrind_control")), reason="valgrind is not installed"
)
def test_a_fresh_token_costs_few_instructions_more_than_an_empty_coroutine(tmp_path: Path) -> None:
    """Counted by callgrind: a thousand awaits of each, in one process, after a warm-up."""
    out = tmp_path / "callgrind"
    options = ["--tool=callgrind", "--instr-atstart=no", "--dump-before=getloadavg"]
    program = [sys.executable, str(Path(__file__).with_name("_counted_instructions.py")), str(PACKAGE)]
    done = subprocess.run(
        ["valgrind", *options, f"--callgrind-out-file={out}", *program],
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    empty, token = (summary(Path(f"{out}.{part}")) for part in (2, 3))
    assert empty > 100_000, f"callgrind counted {empty} instructions for 1,000 awaits: not the loop"
    assert token <= INSTRUCTIONS * empty, (
        f"{token / 1000:.0f} instructions against {empty / 1000:.0f}: {token / empty:.2f} times"
    )


def test_a_cold_refresh_costs_no_more_than_its_limits() -> None:
    """Tasks, hand-overs to a thread, fsyncs, commits, store calls and token requests, through each store."""
    found = run(lambda: refreshes(*LIMITS))
    counts = [(name, what, found[name].counts[what]) for name, limits in LIMITS.items() for what in limits]
    excess = [(name, what, count) for name, what, count in counts if count > LIMITS[name][what]]
    assert not excess, f"{excess}, of {LIMITS}"
    assert all(refresh.counts["token requests"] == 1 for refresh in found.values())


def test_a_get_calls_few_python_functions_beyond_raw_aiohttps() -> None:
    """The same GET to the same server, by both clients, with one connection each."""

    async def scene() -> tuple[Counter[str], Counter[str]]:
        async with Server() as server, session_to(server) as session:
            headers = {"Authorization": (await session.source.token()).authorization}
            url = server.credentials["base_url"] + "/ping"
            async with aiohttp.ClientSession(headers=headers) as client:
                ours = await least_of(lambda: read_body(session.get("/ping")))
                return ours, await least_of(lambda: read_body(client.get(url)))

    ours, raw = run(scene)
    extra = ours.total() - raw.total()
    assert extra <= CALLS_OF_A_GET, (
        f"{ours.total()} Python calls a GET against {raw.total()}: {extra} more, of {CALLS_OF_A_GET} "
        f"allowed: {dict(ours - raw)}"
    )


def test_requests_keep_no_memory() -> None:
    """Two hundred GETs leave nothing behind that this package has allocated."""

    async def scene() -> dict[str, int]:
        async with Server() as server, session_to(server) as session:
            tracemalloc.start()
            try:
                for _ in range(50):
                    await read_body(session.get("/ping"))
                gc.collect()
                before = tracemalloc.take_snapshot()
                for _ in range(200):
                    await read_body(session.get("/ping"))
                gc.collect()
                return leaked_by(200, before, tracemalloc.take_snapshot())
            finally:
                tracemalloc.stop()

    leaked = run(scene)
    assert leaked == {}, f"left after 200 requests: {leaked}"


def test_importing_the_package_imports_no_more_than_a_session_needs() -> None:
    """No command line, no servers for tests, no store that needs a driver."""
    loaded = imported_by("tokensession")
    unwanted = {name for name in loaded if name.startswith(ON_FIRST_USE)} | (loaded & UNWANTED)
    assert unwanted - imported_by("aiohttp, anyio, msgpack") == set()
    own = [name for name in loaded if name.partition(".")[0] == "tokensession"]
    assert len(own) <= OWN_MODULES, f"{len(own)} modules of our own, of {OWN_MODULES} allowed: {sorted(own)}"


def imported_by(names: str) -> set[str]:
    """All modules that are loaded once these are imported."""
    program = f"import json, sys, {names}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout))


async def calls_of(call: Callable[[], Awaitable[Any]]) -> Counter[str]:
    """The Python calls by name. Each resumption of a coroutine counts."""
    calls: Counter[str] = Counter()

    def note(frame: Any, event: str, _argument: Any) -> None:
        if event == "call":
            calls[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"] += 1

    sys.setprofile(note)
    try:
        await call()
    finally:
        sys.setprofile(None)
    return calls


async def least_of(call: Callable[[], Awaitable[Any]]) -> Counter[str]:
    """The least of many, without a timer that happens to run or a read that comes in two pieces."""
    for _ in range(10):
        await call()
    return min([await calls_of(call) for _ in range(30)], key=Counter.total)


async def read_body(opening: Any) -> None:
    async with opening as response:
        assert response.status == 200
        await response.read()


def peak_of(call: Callable[[], None]) -> int:
    """The most bytes that it has allocated at one time."""
    tracemalloc.reset_peak()
    now = tracemalloc.get_traced_memory()[0]
    call()
    return tracemalloc.get_traced_memory()[1] - now


def leaked_by(calls: int, before: tracemalloc.Snapshot, after: tracemalloc.Snapshot) -> dict[str, int]:
    """Blocks that this package has allocated in this many calls and that are still there, by line.

    A leak leaves a block for each call, or for some. A block that is replaced now and then, such as the time
    of the next check of the wall clock, is not a leak.
    """
    ours = [tracemalloc.Filter(True, f"{PACKAGE}/*")]
    found = after.filter_traces(ours).compare_to(before.filter_traces(ours), "lineno")
    return {str(each.traceback): each.count_diff for each in found if each.count_diff > calls // 20}


def summary(path: Path) -> int:
    """The instructions in one of callgrind's files."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(("summary:", "totals:")))
