"""Compares this checkout with another one, in one run: `python -m benchmarks versus --base DIR`.

    git worktree add /tmp/base main && python -m benchmarks versus --base /tmp/base hot-path processes

Small versions of four benchmarks, in about three minutes. Each measurement is a process of its own that
imports one of the checkouts, and uses only names that exist in both. A round measures the base, this
checkout, and the base again, forwards and backwards in turn. "new / base" is the median of the ratios within
one round (with quartiles). "noise" is the same for the base against itself: a smaller difference means
nothing. All use the libraries and the token server of this checkout's environment. Nothing is saved.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

__all__ = ["MEASUREMENTS", "compare", "main"]

Figures = dict[str, float]
Credentials = dict[str, Any]

_DELAY = {"contention": 0.05, "processes": 0.15}  # seconds that a token request takes at the server
_PROCESSES, _LIFETIME, _BATCHES = 8, 3600, 9


# -- in a measuring process ---------------------------------------------------------------------------


def _source(credentials: Credentials, store: str, ahead: list[float] | None = None) -> tuple[Any, Any]:
    """A source, and its transport, which notes when its last response arrived. `ahead` moves its clock."""
    import tokensession
    from tokensession.clock import SystemClock
    from tokensession.providers import OAuth2

    library: Any = tokensession
    transport_type: Any = (
        getattr(library, "AiohttpTransport", None) or library.AiohttpEndpoint
    )  # its old name

    class Transport(transport_type):  # type: ignore[misc]
        arrived = 0.0

        async def send(self, *arguments: Any, **options: Any) -> Any:
            response = await super().send(*arguments, **options)
            self.arrived = time.monotonic()
            return response

    class Clock(SystemClock):
        wall = staticmethod(lambda: time.time() + sum(ahead or ()))
        boot = staticmethod(lambda: time.monotonic() + sum(ahead or ()))

    transport, clock = Transport(), None if ahead is None else Clock()
    opened: Any = tokensession.open_store(store)
    return tokensession.ManagedSource(OAuth2(**credentials), transport, store=opened, clock=clock), transport


@asynccontextmanager
async def _getting(
    credentials: Credentials, ahead: list[float] | None = None
) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """A function that makes this many GETs at once, on a session with a token and open connections."""
    from tokensession import AuthedSession

    source, _ = _source(credentials, "memory:", ahead)
    async with AuthedSession(source) as session:

        async def get() -> None:
            async with session.get("/ping") as response:
                await response.read()
                response.raise_for_status()

        async def gets(tasks: int) -> None:
            await asyncio.gather(*(get() for _ in range(tasks)))

        await gets(100)
        yield gets
    await source.aclose()


async def _timed(times: int, call: Callable[..., Awaitable[object]], *arguments: Any) -> float:
    """Seconds per call: the median of some batches."""
    figures = []
    for _ in range(_BATCHES):
        began = time.perf_counter()
        for _ in range(times):
            await call(*arguments)
        figures.append((time.perf_counter() - began) / times)
    return statistics.median(figures)


async def _hot_path(credentials: Credentials) -> Figures:
    source, _ = _source(credentials, "memory:")
    await source.token()
    figures = {"token(), ns": 1e9 * await _timed(100_000, source.token)}
    await source.aclose()
    return figures


async def _overhead(credentials: Credentials) -> Figures:
    async with _getting(credentials) as gets:
        began = time.process_time()
        sequential, many = await _timed(100, gets, 1), await _timed(3, gets, 100)
        used = (time.process_time() - began) / (_BATCHES * (100 + 3 * 100))
    return {"a GET alone, us": 1e6 * sequential, "100 GETs, us": 1e6 * many, "CPU of a GET, us": 1e6 * used}


async def _contention(credentials: Credentials) -> Figures:
    ahead = [0.0]
    async with _getting(credentials, ahead) as gets:

        async def expire() -> None:
            ahead[0] += 2 * _LIFETIME
            await gets(1000)

        return {"1000 tasks, ms": 1e3 * await _timed(1, expire)}


async def _processes(credentials: Credentials) -> Figures:
    context, medians, lasts = multiprocessing.get_context("fork"), [], []
    with tempfile.TemporaryDirectory() as directory:
        pipes = [context.Pipe() for _ in range(_PROCESSES)]
        for _, pipe in pipes:
            arguments = (pipe, credentials, f"sqlite:///{directory}/tokens.db")
            context.Process(target=_run_waiter, args=arguments, daemon=True).start()
        for _ in range(_BATCHES):
            for pipe, _ in pipes:
                pipe.send("expire")
            answers = [pipe.recv() for pipe, _ in pipes]
            arrived = max(mine for _, mine in answers)
            waits = [1e3 * (served - arrived) for served, mine in answers if mine != arrived]
            medians.append(statistics.median(waits))
            lasts.append(max(waits))
    return {"median waiter, ms": statistics.median(medians), "last waiter, ms": statistics.median(lasts)}


def _run_waiter(pipe: Any, credentials: Credentials, url: str) -> None:
    async def wait() -> None:
        ahead = [0.0]
        source, transport = _source(credentials, url, ahead)
        while await asyncio.to_thread(pipe.recv):
            ahead[0] += 2 * _LIFETIME
            await source.token()
            pipe.send((time.monotonic(), transport.arrived))

    asyncio.run(wait())


MEASUREMENTS: dict[str, Callable[[Credentials], Awaitable[Figures]]] = {
    "hot-path": _hot_path,
    "overhead": _overhead,
    "contention": _contention,
    "processes": _processes,
}


# -- in the comparing process -------------------------------------------------------------------------


def _measured(name: str, checkout: Path, credentials: Credentials) -> Figures:
    """The figures of one measurement, from a process that imports tokensession from this checkout."""
    command, env = [sys.executable, "-P", __file__, name], os.environ | {"PYTHONPATH": str(checkout)}
    settings = json.dumps({"checkout": str(checkout), "credentials": credentials})
    done = subprocess.run(command, input=settings, env=env, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{name} failed with {checkout}:\n{done.stderr}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


async def compare(base: Path, names: list[str], rounds: int) -> Any:
    """A `Result` with the figures of both checkouts."""
    from benchmarks.harness.results import Result, say
    from benchmarks.harness.rounds import ratios, spread
    from benchmarks.harness.server import Server

    checkouts = {"base": base, "new": Path(__file__).parents[1], "base again": base}
    result = Result("versus")
    for name in names:
        runs: dict[str, list[Figures]] = {arm: [] for arm in checkouts}
        async with Server(lifetime=_LIFETIME, auth="basic", delay=_DELAY.get(name, 0.0)) as server:
            for number in range(rounds):
                say(f"  {name}: round {number + 1} of {rounds}")
                for arm in checkouts if number % 2 == 0 else reversed(checkouts):
                    own = server.credentials | {"refresh_token": await server.new_credential()}
                    runs[arm].append(await asyncio.to_thread(_measured, name, checkouts[arm], own))
        for figure in runs["base"][0]:
            old, new, again = ([run[figure] for run in runs[arm]] for arm in checkouts)
            spreads = [spread(old + again), spread(new), ratios(new, old), ratios(again, old)]
            columns = zip(("base", "new", "new / base", "noise"), spreads, strict=True)
            result.rows.append({"": f"{name}: {figure}"} | {what: each.as_json() for what, each in columns})
    return result


def main(arguments: list[str]) -> int:
    """Measure and print."""
    parser = ArgumentParser("python -m benchmarks versus", description="Compare with another checkout.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)} (all)")
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help="the other checkout")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(MEASUREMENTS):
        parser.error(f"NAME must be one of {', '.join(MEASUREMENTS)}, not {', '.join(sorted(unknown))}")
    base = options.base.resolve()
    if not (base / "tokensession" / "__init__.py").is_file():
        parser.error(f"--base must be a checkout of tokensession, and {base} is not")
    asyncio.run(compare(base, options.names or list(MEASUREMENTS), max(1, options.rounds))).show()
    return 0


async def _measure() -> None:
    import tokensession

    settings = json.load(sys.stdin)
    if not Path(tokensession.__file__).is_relative_to(settings["checkout"]):
        sys.exit(f"tokensession was imported from {tokensession.__file__}")
    print(json.dumps(await MEASUREMENTS[sys.argv[1]](settings["credentials"])))


if __name__ == "__main__":
    asyncio.run(_measure())
