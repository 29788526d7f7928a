"""The regression guard: what a request costs, in things that can be counted.

Calls, suspensions, bytes, instructions and modules: never seconds, which are for `python -m benchmarks`. A
bound leaves a little room, and its message has the exact number.
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
from benchmarks.harness.server import Server
from tokensession import AuthedSession, ManagedSource
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore
from tokensession.testing import Paused, ScriptedTransport, token_response

T = TypeVar("T")

PACKAGE = Path(tokensession.__file__).parent
TOKEN = token_response({"access_token": "access", "token_type": "Bearer", "expires_in": 36_000})

CALLS_OF_A_GET = 16
"""Python functions that a GET calls beyond raw aiohttp's; five are aiohttp's own, for any one middleware."""
INSTRUCTIONS = 2.5
"""Of `await source.token()`, in those of an empty coroutine function that is awaited."""
BYTES_OF_A_CALL = 1024
"""What `source.token()` may have allocated at one time: a coroutine, and what two clocks say."""
OWN_MODULES = 40
"""Those of this package that `import tokensession` loads."""
ON_MENTION = (
    "tokensession.cli",
    "tokensession.testing",
    "tokensession.stores.file",
    "tokensession.stores.sqlite",
)
"""Those that it must not load, nor anything below them."""


def run(scene: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await scene()

    return asyncio.run(bounded())


def source_of(*script: Any) -> ManagedSource:
    """A source whose token requests are answered from a script."""
    provider = OAuth2(
        token_url="https://id.example.com/token", client_id="c", client_secret="s", refresh_token="r"
    )
    return ManagedSource(provider, ScriptedTransport(*script), store=MemoryStore())


async def fresh() -> ManagedSource:
    """A source that has a fresh token."""
    source = source_of(TOKEN)
    await source.token()
    return source


def suspensions(awaitable: Awaitable[Any]) -> int:
    """How often it gives up the processor, up to once: nothing is there that could wake it."""
    try:
        next(awaitable.__await__())
    except StopIteration:
        return 0
    return 1


# -- token requests ----------------------------------------------------------------------------------


def test_a_burst_of_a_thousand_callers_makes_one_token_request() -> None:
    """All of them ask before the answer is there. One flight, too: the claim alone would queue a thousand."""

    async def scene() -> None:
        held = Paused(TOKEN)
        transport = ScriptedTransport(held)
        provider = OAuth2(
            token_url="https://id.example.com/token", client_id="c", client_secret="s", refresh_token="r"
        )
        source = ManagedSource(provider, transport, store=MemoryStore())
        callers = [asyncio.create_task(source.token()) for _ in range(1000)]
        await held.arrived.wait()
        held.release()
        tokens = await asyncio.gather(*callers)
        assert {token.access_token for token in tokens} == {"access"}
        assert (len(transport.requests), transport.overasked, source.snapshot().refreshes) == (1, 0, 1)

    run(scene)


# -- the hot path ------------------------------------------------------------------------------------


def test_a_fresh_token_is_had_without_giving_up_the_processor() -> None:
    """No lock, no checkpoint, no task: not one suspension between the call and the token."""
    source = run(fresh)
    assert suspensions(source.token()) == 0


def test_a_fresh_token_is_had_by_one_python_call() -> None:
    """`token` itself, and no helper: each would cost about as much as all that it does.

    Now and then a call may look at more than that (at another clock, say): it is the least of many.
    """

    async def scene() -> Counter[str]:
        source = await fresh()
        return await least_of(source.token)

    calls = run(scene)
    assert calls.total() == 1, f"{calls.total()} Python calls: {dict(calls)}"


def test_asking_for_a_fresh_token_keeps_no_memory_and_needs_little() -> None:
    """A thousand calls leave nothing behind, and one needs a coroutine and two floats while it lasts."""
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
        kept = kept_by(1000, before, tracemalloc.take_snapshot())
        peak = min(peak_of(ask) for _ in range(10))
    finally:
        gc.enable()
        tracemalloc.stop()
    assert kept == {}, f"kept after 1,000 calls: {kept}"
    assert peak <= BYTES_OF_A_CALL, f"a call had {peak} bytes at one time, of {BYTES_OF_A_CALL}"


@pytest.mark.skipif(
    not (shutil.which("valgrind") and shutil.which("callgrind_control")), reason="valgrind is not installed"
)
def test_a_fresh_token_costs_few_instructions_more_than_an_empty_coroutine(tmp_path: Path) -> None:
    """Counted by callgrind: a thousand awaits of either, in one process, after all is warm."""
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
    assert empty > 100_000, f"callgrind has counted {empty} instructions for 1,000 awaits: not the loop"
    assert token <= INSTRUCTIONS * empty, (
        f"{token / 1000:.0f} instructions against {empty / 1000:.0f}: {token / empty:.2f} times"
    )


# -- a request ---------------------------------------------------------------------------------------


def test_a_get_calls_few_python_functions_beyond_raw_aiohttps() -> None:
    """The same GET to the same server, in another process, by either client of one connection each."""

    async def scene() -> tuple[Counter[str], Counter[str]]:
        async with (
            Server() as server,
            AuthedSession(OAuth2(**server.credentials), store=MemoryStore()) as session,
        ):
            headers = {"Authorization": (await session.source.token()).authorization}
            url = server.credentials["base_url"] + "/ping"
            async with aiohttp.ClientSession(headers=headers) as client:
                return await least_of(lambda: got(session.get("/ping"))), await least_of(
                    lambda: got(client.get(url))
                )

    ours, raw = run(scene)
    extra = ours.total() - raw.total()
    assert extra <= CALLS_OF_A_GET, (
        f"{ours.total()} Python calls a GET against {raw.total()}: {extra} more, of {CALLS_OF_A_GET}: "
        f"{dict(ours - raw)}"
    )


def test_requests_keep_no_memory() -> None:
    """Two hundred GETs leave nothing behind that this package has allocated."""

    async def scene() -> dict[str, int]:
        async with (
            Server() as server,
            AuthedSession(OAuth2(**server.credentials), store=MemoryStore()) as session,
        ):
            tracemalloc.start()
            try:
                for _ in range(50):
                    await got(session.get("/ping"))
                gc.collect()
                before = tracemalloc.take_snapshot()
                for _ in range(200):
                    await got(session.get("/ping"))
                gc.collect()
                return kept_by(200, before, tracemalloc.take_snapshot())
            finally:
                tracemalloc.stop()

    kept = run(scene)
    assert kept == {}, f"kept after 200 requests: {kept}"


# -- the import --------------------------------------------------------------------------------------


def test_importing_the_package_loads_no_more_of_it_than_a_session_needs() -> None:
    """No command line, no servers for tests, no store that needs a driver; and not many modules in all."""
    program = "import json, sys, tokensession; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    loaded = set(json.loads(done.stdout))
    unwanted = {name for name in loaded if name.startswith(ON_MENTION)}
    unwanted |= loaded & {
        "sqlite3",
        "sqlite_utils",
        "click",
        "rich",
        "pytest",
        "aiohttp.web",
        "importlib.metadata",
    }
    alone = subprocess.run(
        [sys.executable, "-c", program.replace("tokensession", "aiohttp, msgpack")],
        check=True,
        capture_output=True,
        text=True,
    )
    unwanted -= set(json.loads(alone.stdout))
    assert unwanted == set()
    own = [name for name in loaded if name.partition(".")[0] == "tokensession"]
    assert len(own) <= OWN_MODULES, f"{len(own)} modules of our own, of {OWN_MODULES}: {sorted(own)}"


# -- counting ----------------------------------------------------------------------------------------


async def calls_of(call: Callable[[], Awaitable[Any]]) -> Counter[str]:
    """The Python functions that are entered, coroutines at each resumption too, by name."""
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
    """Of many: a timer that happens to run, or a read that comes in two pieces, is not the call's own."""
    for _ in range(10):
        await call()
    return min([await calls_of(call) for _ in range(30)], key=Counter.total)


async def got(opening: Any) -> None:
    async with opening as response:
        assert response.status == 200
        await response.read()


def peak_of(call: Callable[[], None]) -> int:
    """Bytes that it has allocated at one time."""
    tracemalloc.reset_peak()
    now = tracemalloc.get_traced_memory()[0]
    call()
    return tracemalloc.get_traced_memory()[1] - now


def kept_by(calls: int, before: tracemalloc.Snapshot, after: tracemalloc.Snapshot) -> dict[str, int]:
    """Blocks that this package's lines have allocated in so many calls, and that are still there. By line.

    Of something that calls keep there is one for each of them, or for some. One that is replaced now and
    then, such as the moment of the next look at the wall clock, is none of them.
    """
    ours = [tracemalloc.Filter(True, f"{PACKAGE}/*")]
    found = after.filter_traces(ours).compare_to(before.filter_traces(ours), "lineno")
    return {str(each.traceback): each.count_diff for each in found if each.count_diff > calls // 20}


def summary(path: Path) -> int:
    """The instructions in one of callgrind's files."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(("summary:", "totals:")))
