"""Latency under constant load while tokens expire and are replaced: `python -m benchmarks steady`.

200 GETs a second through two sessions: one's tokens live for two seconds and are replaced some fifty times
during the run, the other's never expires. They take turns, in windows of some seconds, in one process and
against two servers of the same kind, each in its own process.

The load is open: a request is due every five milliseconds, whether or not the earlier ones have been
answered, and its latency counts from the moment at which it was due. So anything that delays all requests (a
wait for the token, work on the event loop) shows in all latencies.

A request waits for a token if `source.token()` suspends, even once. That is counted exactly, by stepping its
coroutine, and must never happen: the refresh ahead of the expiry is there for it.

The session whose token never expires is there twice. The difference between the two is the noise of the run.

Before each window of the expiring session its token is requested once, unmeasured: it was idle while the
other session was measured, so the token may have expired.

The policy is the default except for the lead: DUE at 60 % of the life before its end, so that two seconds
leave room for fifty refreshes in a run of reasonable length. With an hour's token there would be fifty
refreshes in 36 million requests; here about every two-hundredth request meets one. So the ratio of p99 is
harsher than in production.

`series`: {"unit": "ms", "names": [...], "percent": [...], "lines": {name: [latency at each percent]},
"refreshes": {"seconds": [...], "p99_near": ms, "p99_far": ms}}: the distribution of each, and the latencies
of the requests that were due within 20 ms of a refresh against the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from tokensession import AiohttpTransport, AuthedSession, Event, ManagedSource, Policy, Token
from tokensession.events import RefreshFailed, RefreshStarted
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore

from .harness import command
from .harness.results import Goal, Result, progress, say
from .harness.rounds import percentile, ratios, spread
from .harness.server import Server

__all__ = ["Load", "main", "measure"]

EXPIRING, LASTING, AGAIN = "expires every 2 s", "never expires", "never expires, another"
GOAL = 1.05
_RATE = 200  # requests a second
_LIFE = 2  # seconds
_LONG_LIFE = 30 * 24 * 3600
_AT_MOST = 140  # seconds in total, on a busy machine
_NEAR = 0.02  # seconds
_SPIN = (
    0.0015  # seconds before a request is due, when waiting becomes polling: timers are a millisecond coarse
)
_PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100)


@dataclass(frozen=True, slots=True)
class Load:
    """How many refreshes to wait for, and the length of a window in seconds."""

    refreshes: int = 50
    window: float = 3.0


class _WatchedSource(ManagedSource):
    """Counts the calls of `token` that did not return at once."""

    __slots__ = ("waits",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.waits = 0

    async def token(self) -> Token:
        return await _Stepped(self)


class _Stepped:
    """`ManagedSource.token`, counted if it suspends."""

    __slots__ = ("_source",)

    def __init__(self, source: _WatchedSource) -> None:
        self._source = source

    def __await__(self) -> Generator[Any, Any, Token]:
        steps = ManagedSource.token(self._source).__await__()
        try:
            first = next(steps)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        self._source.waits += 1
        yield first
        return (yield from steps)


@dataclass(slots=True)
class _Arm:
    """One session and its figures."""

    source: _WatchedSource
    session: AuthedSession
    latencies: list[float] = field(default_factory=list)
    due: list[float] = field(default_factory=list)
    windows: list[tuple[float, float]] = field(default_factory=list)
    """p50 and p99 of each window."""
    waits: int = 0
    refreshes: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    latest: float = 0.0
    """How late a request was sent, at most: the longest pause of the machine or of this event loop."""
    measuring: bool = False

    def observe(self, event: Event) -> None:
        if self.measuring and isinstance(event, RefreshStarted):
            self.refreshes.append(time.perf_counter())
        if isinstance(event, RefreshFailed):
            self.failed.append(event.message)

    async def _get(self, due: float) -> None:
        async with self.session.get("/ping") as response:
            await response.read()
            if response.status != 200:
                self.failed.append(f"answered {response.status}")
        self.latencies.append(time.perf_counter() - due)
        self.due.append(due)

    async def window(self, seconds: float) -> None:
        """Load for this long."""
        await self.source.token()
        await self._get(time.perf_counter())  # reopens an idle connection
        self.latencies.pop(), self.due.pop()
        before, first = self.source.waits, len(self.latencies)
        self.measuring = True
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(seconds * _RATE)):
                due = start + number / _RATE
                await _until(due)
                self.latest = max(self.latest, time.perf_counter() - due)
                group.create_task(self._get(due))
        self.measuring = False
        self.waits += self.source.waits - before
        found = self.latencies[first:]
        self.windows.append((percentile(found, 50), percentile(found, 99)))


async def _until(moment: float) -> None:
    """Wait until that moment of `perf_counter`: sleep, then poll, letting other tasks run."""
    if (left := moment - time.perf_counter()) > _SPIN:
        await asyncio.sleep(left - _SPIN)
    while time.perf_counter() < moment:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)


async def _arm(stack: AsyncExitStack, lifetime: int) -> _Arm:
    server = await stack.enter_async_context(Server(lifetime=lifetime))
    made: list[_Arm] = []
    source = _WatchedSource(
        OAuth2(**server.credentials),
        AiohttpTransport(),
        store=MemoryStore(),
        policy=Policy(due_fraction=0.6),
        observer=lambda event: made[0].observe(event) if made else None,
    )
    stack.push_async_callback(source.aclose)
    arm = _Arm(source, await stack.enter_async_context(AuthedSession(source)))
    made.append(arm)
    return arm


async def measure(load: Load) -> Result:
    """Windows of all in turn, until there were enough refreshes under load."""
    async with AsyncExitStack() as stack:
        lives = {EXPIRING: _LIFE, LASTING: _LONG_LIFE, AGAIN: _LONG_LIFE}
        arms = {name: await _arm(stack, life) for name, life in lives.items()}
        show, wanted = progress("steady"), load.refreshes
        pairs = 0
        end = time.perf_counter() + _AT_MOST
        while len(arms[EXPIRING].refreshes) < wanted and time.perf_counter() < end:
            order = list(arms.values()) if pairs % 2 == 0 else list(reversed(arms.values()))
            for arm in order:
                await arm.window(load.window)
            pairs += 1
            show(min(len(arms[EXPIRING].refreshes), wanted), wanted)
    return _result(arms, load)


def _near(arm: _Arm) -> tuple[list[float], list[float]]:
    """The latencies of the requests that were due near a refresh, and of the others."""
    near: list[float] = []
    far: list[float] = []
    for due, latency in zip(arm.due, arm.latencies, strict=True):
        (near if any(abs(due - at) < _NEAR for at in arm.refreshes) else far).append(latency)
    return near, far


def _result(arms: dict[str, _Arm], load: Load) -> Result:
    result = Result("steady")
    for name, arm in arms.items():
        result.rows.append(
            {
                "token": name,
                "requests": len(arm.latencies),
                "refreshes": len(arm.refreshes),
                "waited for a token": arm.waits,
                "failed": len(arm.failed),
                "p50 ms": percentile(arm.latencies, 50) * 1000,
                "p99 ms": percentile(arm.latencies, 99) * 1000,
                "p99.9 ms": percentile(arm.latencies, 99.9) * 1000,
                "longest ms": max(arm.latencies) * 1000,
                "p99 ms by window": spread([p99 * 1000 for _, p99 in arm.windows]).as_json(),
            }
        )
    ours, base = arms[EXPIRING], arms[LASTING]
    again = [ratios([w[p] for w in arms[AGAIN].windows], [w[p] for w in base.windows]) for p in (0, 1)]
    for place, percent in enumerate((50, 99)):
        whole = percentile(ours.latencies, percent) / percentile(base.latencies, percent)
        paired = ratios([each[place] for each in ours.windows], [each[place] for each in base.windows])
        result.goals.append(
            Goal(
                f"p{percent}, against a token that never expires",
                f"at most {GOAL} times",
                f"{whole:.3f} times (by windows: {paired})",
                whole <= GOAL,
            )
        )
    result.goals.append(
        Goal("requests that waited for a token", "0", str(ours.waits), ours.waits == 0 and not ours.failed)
    )
    if len(ours.refreshes) < load.refreshes:
        result.notes.append(
            f"Stopped after {_AT_MOST} s: {len(ours.refreshes)} refreshes of {load.refreshes}."
        )
    if (paused := max(arm.latest for arm in arms.values())) > 1.0:
        result.notes.append(f"The machine paused for {paused:.1f} s: do not use this run.")
    result.notes.append(
        f"Two sessions whose tokens never expire, by windows: p50 {again[0]} times, p99 {again[1]} times."
    )
    near, far = _near(ours)
    result.series = {
        "unit": "ms",
        "names": list(arms),
        "percent": list(_PERCENTS),
        "lines": {
            name: [percentile(arm.latencies, each) * 1000 for each in _PERCENTS] for name, arm in arms.items()
        },
        "refreshes": {
            "seconds": [at - ours.due[0] for at in ours.refreshes],
            "p99_near": percentile(near, 99) * 1000 if near else None,
            "p99_far": percentile(far, 99) * 1000 if far else None,
        },
    }
    result.notes.append(
        f"{_RATE} requests a second, windows of {load.window:g} s in turn, tokens of {_LIFE} s that are DUE "
        f"early; {len(near)} of {len(ours.latencies)} requests were due within {_NEAR * 1000:.0f} ms of a "
        "refresh."
    )
    if near:
        result.notes.append(
            f"Those near a refresh: p50 {percentile(near, 50) * 1000:.3g} ms; the others: "
            f"p50 {percentile(far, 50) * 1000:.3g} ms."
        )
    return result


def main(arguments: list[str]) -> int:
    """Measure, print, save. Returns 1 if a request waited for a token, or failed."""
    parser = command.parser("steady", __doc__)
    parser.add_argument("--refreshes", type=int, default=50, help="under load (default: %(default)s)")
    options = parser.parse_args(arguments)
    load = Load(refreshes=2, window=0.8) if options.quick else Load(refreshes=options.refreshes)
    say(f"steady: {_RATE} requests a second, until there were {load.refreshes} refreshes under load")
    result = asyncio.run(measure(load))
    command.finish(result, arguments, quick=options.quick)
    waited = sum(row["waited for a token"] + row["failed"] for row in result.rows)
    return 1 if waited else 0
