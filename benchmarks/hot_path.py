"""What it costs to get a fresh token: `python -m benchmarks hot-path`.

Nanoseconds per call of `await source.token()`, the call that every request makes, next to

- an empty `async def`, awaited: the least that anything awaitable costs;
- an `asyncio.Lock`, acquired and released: the least that a source with a lock costs;
- what other libraries do on each request to have a valid token, called as they call it themselves.

All in one process and one event loop, without any network. A round calls each contestant some thousand times
in a loop, forwards and backwards in turn; a ratio is taken within one round. The cost of the loop itself
(about 10 ns) is in every figure, including the empty `async def`. The first contestants run under uvloop as
well, if it is installed: none of them reaches the event loop, so it should make no difference.

The others' calls do not all do the same. Some also put the header on a request, which the middleware does
here. google-auth's static credentials never expire. singleflight-auth reads no clock, but waits for the 401.
The column "does" says so.

Not measured: what a request costs. Next to a request, even over loopback, all of this is small; see
`overhead`.

`series`: {"unit": "ns", "names": [...], "median": [...], "q1": [...], "q3": [...]}, one entry a row.
"""

from __future__ import annotations

import asyncio
import datetime
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import repeat
from typing import Any

from tokensession import ManagedSource
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore
from tokensession.testing import ScriptedTransport, token_response

from .harness import command
from .harness.results import Goal, Result, progress, say
from .harness.rounds import interleaved, ratios, spread

__all__ = ["main", "measure"]

Call = Callable[[], Awaitable[object]]

EMPTY, OURS, LOCK = "empty async def", "tokensession", "asyncio.Lock"
GOAL = 2.3
_LIFE = 36_000


async def _empty() -> None:
    pass


def _lock() -> Call:
    lock = asyncio.Lock()

    async def locked() -> None:
        async with lock:
            pass

    return locked


async def _source() -> ManagedSource:
    """A source with a fresh token from a scripted transport."""
    provider = OAuth2(
        token_url="https://id.example.com/token", client_id="c", client_secret="s", refresh_token="r"
    )
    response = token_response({"access_token": "access", "expires_in": _LIFE, "token_type": "Bearer"})
    source = ManagedSource(provider, ScriptedTransport(response), store=MemoryStore())
    await source.token()
    return source


# -- the others, each by its documented call --------------------------------------------------------


def _aiobotocore() -> Call:
    from aiobotocore.credentials import AioRefreshableCredentials

    async def refresh() -> dict[str, str]:
        raise AssertionError("it is fresh")

    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=_LIFE)
    return AioRefreshableCredentials(  # type: ignore[no-any-return]
        "access", "secret", "token", expires, refresh, "benchmark"
    ).get_frozen_credentials


def _botocore() -> Call:
    from botocore.credentials import RefreshableCredentials

    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=_LIFE)
    credentials = RefreshableCredentials("access", "secret", "token", expires, dict, "benchmark")

    async def frozen() -> object:
        return credentials.get_frozen_credentials()

    return frozen


def _google_static() -> Call:
    from google.auth.aio.credentials import StaticCredentials

    credentials, headers = StaticCredentials("access"), dict[str, str]()
    return lambda: credentials.before_request(None, "GET", "https://api.example.com/", headers)


def _google_user() -> Any:
    from google.oauth2.credentials import Credentials

    expires = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=_LIFE)
    return Credentials(  # type: ignore[no-untyped-call]
        "access",
        refresh_token="r",
        token_uri="https://id.example.com/token",
        client_id="c",
        client_secret="s",
        expiry=expires,
    )


def _google_sync() -> Call:
    credentials, headers = _google_user(), dict[str, str]()

    async def before() -> None:
        credentials.before_request(None, "GET", "https://api.example.com/", headers)

    return before


def _google_session() -> Call:
    from google.auth.aio.transport.sessions import _SyncCredentialsAdapter

    adapter, headers = _SyncCredentialsAdapter(_google_user()), dict[str, str]()  # type: ignore[no-untyped-call]
    return lambda: adapter.before_request(None, "GET", "https://api.example.com/", headers)


def _singleflight() -> Call:
    import httpx
    from singleflight_auth import AsyncSingleFlightAuth

    async def refresh() -> str:
        raise AssertionError("it is fresh")

    auth = AsyncSingleFlightAuth(get_token=lambda: "access", refresh=refresh)
    request, answer = httpx.Request("GET", "https://api.example.com/"), httpx.Response(200)

    async def flow() -> None:
        steps = auth.async_auth_flow(request)  # as httpx drives it
        await anext(steps)
        with suppress(StopAsyncIteration):
            await steps.asend(answer)

    return flow


def _authlib() -> Call:
    from authlib.integrations.httpx_client import AsyncOAuth2Client

    token = {"access_token": "access", "expires_at": int(time.time()) + _LIFE, "refresh_token": "r"}
    client = AsyncOAuth2Client("c", "s", token=token, token_endpoint="https://id.example.com/token")
    return lambda: client.ensure_active_token(client.token)


def _oauth2_client() -> Call:
    from aiohttp_oauth2_client.grant.client_credentials import ClientCredentialsGrant

    grant = ClientCredentialsGrant(
        "https://id.example.com/token",
        client_id="c",
        client_secret="s",
        token={"access_token": "access", "token_type": "Bearer", "expires_in": _LIFE},
    )
    asyncio.get_running_loop().create_task(grant.close())  # it opens a session that is not needed here
    return grant.prepare_headers


_OTHERS: dict[str, tuple[Callable[[], Call], str]] = {
    "singleflight-auth": (_singleflight, "header, 401 check; no clock"),
    "google-auth aio, static": (_google_static, "header; no clock"),
    "google-auth, user credentials": (_google_sync, "clock, header; not awaitable by itself"),
    "google-auth aio session, user credentials": (_google_session, "clock, header, in a thread"),
    "Authlib ensure_active_token": (_authlib, "lock, clock"),
    "aiohttp-oauth2-client prepare_headers": (_oauth2_client, "two locks, clock, header"),
    "botocore get_frozen_credentials": (_botocore, "clock, twice; not awaitable by itself"),
    "aiobotocore get_frozen_credentials": (_aiobotocore, "clock"),
}


def _others() -> Iterator[tuple[str, Call | str, str]]:
    """The name of each, with its call, or the reason why it cannot be called."""
    for name, (make, does) in _OTHERS.items():
        try:
            yield name, make(), does
        except (ImportError, AttributeError, TypeError) as error:  # another version has it elsewhere
            yield name, f"{type(error).__name__}: {error}", does


# -- measuring ---------------------------------------------------------------------------------------


async def _nanoseconds(call: Call, times: int) -> float:
    """Per call, without the garbage collector, which would hit a contestant at random."""
    gc.disable()
    try:
        start = time.perf_counter_ns()
        for _ in repeat(None, times):
            await call()
        return (time.perf_counter_ns() - start) / times
    finally:
        gc.enable()


async def _contestant(call: Call, seconds: float) -> Callable[[], Awaitable[float]]:
    """A function that runs one round of about this length."""
    for _ in range(50):
        await call()
    times = max(20, int(seconds * 1e9 / await _nanoseconds(call, 200)))
    return lambda: _nanoseconds(call, times)


async def _figures(calls: dict[str, Call], rounds: int, seconds: float, name: str) -> dict[str, list[float]]:
    contestants = {title: await _contestant(call, seconds) for title, call in calls.items()}
    return await interleaved(contestants, rounds, progress=_every_tenth(name))


def _every_tenth(name: str) -> Callable[[int, int], None]:
    show = progress(name)
    return lambda done, total: show(done, total) if done and (done % 10 == 0 or done == total) else None


def _ours_and_floor(source: ManagedSource) -> dict[str, Call]:
    return {EMPTY: _empty, OURS: source.token, LOCK: _lock()}


async def _under_uvloop(rounds: int, seconds: float) -> dict[str, list[float]]:
    return await _figures(_ours_and_floor(await _source()), rounds, seconds, "hot-path, uvloop")


def measure(rounds: int, seconds: float) -> Result:
    """All contestants, under asyncio and then some under uvloop."""
    result = Result("hot-path")
    does = {
        EMPTY: "nothing",
        OURS: "clock",
        LOCK: "lock",
    } | {name: what for name, (_, what) in _OTHERS.items()}
    reasons: dict[str, str] = {}

    async def all_of_them() -> dict[str, list[float]]:
        calls = _ours_and_floor(await _source())
        for name, call, _what in _others():
            if isinstance(call, str):
                reasons[name] = call
            else:
                calls[name] = call
        await asyncio.sleep(0)
        return await _figures(calls, rounds, seconds, "hot-path")

    runs = {"asyncio": asyncio.run(all_of_them())}
    try:
        import uvloop
    except ImportError:
        result.notes.append("uvloop is not installed: asyncio only.")
    else:
        runs["uvloop"] = uvloop.run(_under_uvloop(rounds, seconds))
    series: dict[str, list[Any]] = {"names": [], "median": [], "q1": [], "q3": []}
    for loop, figures in runs.items():
        for name, nanoseconds in figures.items():
            took, ratio = spread(nanoseconds), ratios(nanoseconds, figures[EMPTY])
            title = name if loop == "asyncio" else f"{name} ({loop})"
            result.rows.append(
                {
                    "call": title,
                    "does": does[name],
                    "ns": took.as_json(),
                    "times the empty one": ratio.as_json(),
                }
            )
            for key, value in zip(series, (title, took.median, took.q1, took.q3), strict=True):
                series[key].append(value)
            if name == OURS:
                result.goals.append(_goal(loop, ratio.median))
    for name, reason in reasons.items():
        result.rows.append({"call": name, "does": f"cannot: {reason}", "ns": None})
    result.series = {"unit": "ns", **series}
    result.notes.append(f"Median (quartiles) of {rounds} rounds of about {seconds * 1000:.0f} ms each.")
    return result


def _goal(loop: str, ratio: float) -> Goal:
    return Goal(
        f"fresh token, {loop}",
        f"at most {GOAL} times an empty async def",
        f"{ratio:.2f} times",
        ratio <= GOAL,
    )


def main(arguments: list[str]) -> int:
    """Measure, print, save."""
    parser = command.parser("hot-path", __doc__)
    parser.add_argument("--rounds", type=int, default=61, help="default: %(default)s")
    options = parser.parse_args(arguments)
    say("hot-path: fresh tokens, no network")
    result = measure(
        5 if options.quick else options.rounds,
        0.004 if options.quick else 0.02,
    )
    command.finish(result, arguments, quick=options.quick)
    return 0
