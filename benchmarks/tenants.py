"""One process serves many tenants: what each costs, and whether their number makes the rest slower.

For 1 ... 100,000 keys, all of which have a record in one SQLite store:

* `bytes per source`: the memory of a `ManagedSource` for each key once it has its token and is idle. By
  tracemalloc, so Python's own memory, including the token and the key; the provider, the store and the
  transport are shared. At most 1,000 of them have a token. That their number does not matter is what
  `bytes, no token` shows: it counts a source for each key before any has been asked.
* `first token`: from a new source to its token, which is in the store: the median of keys drawn at random.
* `load`: `await store.load(key)`, the same way.
* `look-up`: finding one source among all in a dict by its key, and its token: the hot path. Next to it, in
  turn, the same with objects that do nothing: a dict of a hundred thousand of anything is slower than one of
  ten, because the processor's caches hold ten.

SQL inserts the records in one transaction, in the form in which the library would store them; one by one,
durably, they would take minutes. Not measured: 100,000 tokens that expire at once, which depends on how many
claims a store holds at a time.

`series`: {"x": [keys], "lines": {"first token": [...], "load": [...], "look-up": [...], "look-up, of
nothing": [...]}, "unit": "us", "bytes": {"with a token": [...], "without": [...]}}, medians.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokensession import AiohttpTransport, ManagedSource, Token
from tokensession._refresh.state import Now, TokenState, encode
from tokensession.clock import SystemClock
from tokensession.providers import OAuth2
from tokensession.stores import SQLiteStore
from tokensession.stores.protocol import Record, new_version

from .harness import command
from .harness.results import Goal, Result, say
from .harness.rounds import spread

LIMIT = 2560  # bytes of one idle source
FLAT = 1.5  # how many times the figure of the smallest number that of the largest may be

_WITH_TOKEN = 1000  # sources that get their token, at most
_SAMPLES = 300


def _key(number: int) -> str:
    return f"tenant-{number:06}"


def _state(number: int, now: Now) -> TokenState:
    """A state whose tokens are as long as most providers'."""
    token = Token(
        access_token=f"access-{number:06}-" + "a" * 40,
        obtained_at=now.wall,
        lifetime=86_400.0,
        refresh_token=f"refresh-{number:06}-" + "r" * 40,
    )
    return TokenState(token=token, obtained=now.boot)


async def _filled(path: Path, keys: int) -> SQLiteStore:
    """A store with this many records."""
    store = SQLiteStore(path)
    now = Now(SystemClock.wall(), SystemClock.boot())
    await store.put(_key(0), encode(_state(0, now), now))  # creates the table

    def fill() -> None:
        with store._database.writing() as connection:
            for number in range(1, keys):
                record = Record(new_version(), encode(_state(number, now), now))
                store._records.insert(connection, _key(number), record)

    await store._worker.run(fill)
    return store


def _maker(store: SQLiteStore) -> Callable[[str], ManagedSource]:
    provider = OAuth2(
        token_url="https://auth.example/token",  # nothing is sent there
        client_id="bench",
        client_secret="not-a-secret",
        base_url="https://api.example",
    )
    transport = AiohttpTransport()
    return lambda key: ManagedSource(provider, transport, store=store, key=key)


async def _memory(make: Callable[[str], ManagedSource], keys: int) -> tuple[float, float]:
    """Bytes per source: without a token, and with one."""
    with_token = min(keys, _WITH_TOKEN)
    await make(_key(0)).token()  # allocates what all share
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    sources = [make(_key(number)) for number in range(keys)]
    gc.collect()
    made = tracemalloc.get_traced_memory()[0]
    for source in sources[:with_token]:
        await source.token()
    await asyncio.sleep(0)
    gc.collect()
    served = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    idle = (made - before) / keys
    return idle, idle + (served - made) / with_token


async def _first_tokens(make: Callable[[str], ManagedSource], drawn: Iterable[str]) -> list[float]:
    seconds = []
    for key in drawn:
        began = time.perf_counter()
        await make(key).token()
        seconds.append(time.perf_counter() - began)
    return seconds


async def _loads(store: SQLiteStore, drawn: Iterable[str]) -> list[float]:
    seconds = []
    for key in drawn:
        began = time.perf_counter()
        await store.load(key)
        seconds.append(time.perf_counter() - began)
    return seconds


class _Placeholder:
    """The least that a look-up can find."""

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        self.value = value

    async def token(self) -> str:
        return self.value


async def _look_ups(
    make: Callable[[str], ManagedSource], keys: int, drawn: list[str]
) -> tuple[list[float], list[float]]:
    sources = {_key(number): make(_key(number)) for number in range(keys)}
    placeholders = {_key(number): _Placeholder(f"{number}") for number in range(keys)}
    for key in drawn:
        await sources[key].token()
    ours, theirs = [], []
    for key in drawn:
        began = time.perf_counter()
        await sources[key].token()
        ours.append(time.perf_counter() - began)
    for key in drawn:
        began = time.perf_counter()
        await placeholders[key].token()
        theirs.append(time.perf_counter() - began)
    return ours, theirs


async def _row(keys: int, samples: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        store = await _filled(Path(directory) / "tokens.db", keys)
        say(f"  tenants: {keys:,} keys stored in {time.perf_counter() - began:.1f} s")
        make = _maker(store)
        drawn = [_key(random.randrange(keys)) for _ in range(samples)]
        try:
            without, with_one = await _memory(make, keys)
            await _loads(store, drawn)  # afterwards the file is in the page cache
            first, loads = await _first_tokens(make, drawn), await _loads(store, drawn)
            look_ups, placeholders = await _look_ups(make, keys, drawn)
            return {
                "keys": keys,
                "bytes, no token": without,
                "bytes per source": with_one,
                "first token us": _us(first),
                "load us": _us(loads),
                "look-up us": _us(look_ups),
                "look-up, of nothing us": _us(placeholders),
            }
        finally:
            await store.aclose()


def _us(seconds: list[float]) -> dict[str, float]:
    return spread([1e6 * second for second in seconds]).as_json()


async def measure(sizes: list[int], samples: int) -> Result:
    """One row for each number of keys."""
    result = Result("tenants", rows=[await _row(keys, samples) for keys in sizes])
    timed = ("first token", "load", "look-up", "look-up, of nothing")
    result.series = {
        "x": sizes,
        "lines": {what: [row[f"{what} us"]["median"] for row in result.rows] for what in timed},
        "unit": "us",
        "bytes": {
            "with a token": [row["bytes per source"] for row in result.rows],
            "without": [row["bytes, no token"] for row in result.rows],
        },
    }
    # With few sources, other allocations dominate: only larger numbers are judged.
    many = [row["bytes per source"] for row in result.rows if row["keys"] >= 100]
    if many:
        result.goals.append(
            Goal("bytes per idle source", f"<= {LIMIT:,}", f"{max(many):,.0f}", max(many) <= LIMIT)
        )
    lines = result.series["lines"]
    result.goals.extend(_flat(what, lines[what]) for what in ("first token", "load"))
    ratios = [ours / theirs for ours, theirs in zip(lines["look-up"], lines[timed[-1]], strict=True)]
    result.goals.append(_flat("look-up, next to that of nothing", ratios))
    result.notes = [
        "Bytes by tracemalloc: a source, its key and its token; provider, store and transport are shared.",
        f"Times are medians of {samples} keys drawn at random, each after a first load.",
    ]
    return result


def _flat(what: str, medians: list[float]) -> Goal:
    times = medians[-1] / medians[0]
    must, found = f"most keys <= {FLAT} x fewest", f"{times:.2f} x"
    return Goal(f"{what}: flat", must, found, times <= FLAT)


def main(arguments: list[str]) -> int:
    """Measure, print, save."""
    parser = command.parser("tenants", __doc__)
    parser.add_argument(
        "--keys", type=int, nargs="+", default=[1, 10, 100, 1000, 10_000, 100_000], metavar="N"
    )
    parser.add_argument("--samples", type=int, default=_SAMPLES, help="keys drawn for each time")
    options = parser.parse_args(arguments)
    if options.quick:
        options.keys, options.samples = [1, 100], 20
    result = asyncio.run(measure(options.keys, options.samples))
    command.finish(result, arguments, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
