"""The token endpoint is down, and callers keep asking: how many token requests it gets, and what callers pay.

Four parts:

- a simulated minute: the token has expired, 10,000 callers come in 200 waves, and every token request fails.
  tokensession's clock is moved by hand and its transport is scripted, so the minute takes a second. Counted:
  its token requests, over many draws of the back-off's jitter, next to the most that the policy allows, and
  next to a program in which each caller asks for itself (`naive`). Callers get the error at once
  (`Policy.retry_within=0`): those that wait for the next try would be fewer;
- the cool-down: what it costs to get the remembered error, in nanoseconds per call, next to an empty
  `async def`, one that raises an exception, and the same source with a fresh token;
- the contestants, in real time: the token endpoint answers 500 to each request, and 100 callers come in two
  waves, one after the other. Counted: token requests, and whether it recovers when the outage is over.
  (tokensession's back-off starts at a second, of which it waits half at least; the waves take less than
  that, or it asks once more.)
- processes that share a store, in real time: one and sixteen of them, in an outage of ten seconds of each
  kind. Counted: the token requests that reach the server, calls that failed, and how long after the end each
  process is served. A request that is swallowed (read, and never answered) holds up the next one for
  `Policy.response_timeout`, so that kind may end that much late.

Series: {"minute": {"x": [trouble, ...], "token requests": [[least, median, most], ...], "bound": [...],
"callers": 10000}, "cool-down": {"x": [what, ...], "ns": [[q1, median, q3], ...]}, "peers": {"x": [name, ...],
"token requests": [...], "callers": 100}}.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tokensession import ManagedSource, NotSent, Policy, TokenUnavailable
from tokensession.policy import SHORTEST_DRAW
from tokensession.providers import OAuth2
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, ScriptedTransport, token_response

from .harness import command
from .harness.results import Goal, Result, say
from .harness.rounds import interleaved, spread
from .harness.server import OUTAGES as KINDS
from .harness.server import Server
from .outage_processes.experiment import LONG, OUTAGES, QUICK, Outage
from .outage_processes.experiment import measure as measure_processes
from .peers import Peer, Tokensession
from .peers.common import PATH, at_once, contestants, primed

MINUTE = 60.0
WAVES, EACH = 200, 50
CALLS = 20_000  # per turn of the cool-down
PEER_WAVES, PEER_EACH = 2, 50
_LIMIT = 20.0  # seconds for one contestant
_TRIES = 25  # requests after the outage, a tenth of a second apart

TROUBLES: dict[str, Callable[[], TokenResponse]] = {
    "no connection": lambda: _no_connection(),
    "500": lambda: token_response({}, 500),
    "503": lambda: token_response(b"", 503),
}


def _no_connection() -> TokenResponse:
    raise NotSent("The token endpoint cannot be reached.")


def _provider() -> OAuth2:
    return OAuth2(
        token_url="https://id.example.com/token",
        client_id="client",
        client_secret="client-secret",
        refresh_token="configured",
    )


def _source(
    respond: Callable[[TokenRequest], TokenResponse],
    requests: int,
    policy: Mapping[str, float] | None = None,
    **options: Any,
) -> Any:
    """A source and its transport. Callers do not wait for the next try."""
    transport = ScriptedTransport(*[respond] * requests)
    store = MemoryStore(clock=options.get("clock"))
    rules = Policy(retry_within=0, **(policy or {}))
    return ManagedSource(_provider(), transport, store=store, policy=rules, **options), transport


async def _unavailable(source: ManagedSource) -> bool:
    """Whether this caller got `TokenUnavailable`."""
    try:
        await source.token()
    except TokenUnavailable:
        return True
    return False


async def minute(trouble: str, seed: int, waves: int = WAVES, each: int = EACH) -> tuple[int, int]:
    """Token requests in a simulated minute, and how many callers got `TokenUnavailable`."""
    chance = random.Random(seed)
    clock = FakeClock(jitter=iter(chance.random, None))
    source, transport = _source(lambda _: TROUBLES[trouble](), waves, clock=clock)
    unavailable = 0
    for _ in range(waves):
        unavailable += sum(await asyncio.gather(*(_unavailable(source) for _ in range(each))))
        clock.advance(MINUTE / waves)
    await source.aclose()
    return len(transport.requests), unavailable


def bound(waves: int = WAVES) -> int:
    """The most token requests in a minute that the policy allows, with the shortest jitter each time."""
    policy = Policy()
    moment, requests = 0.0, 0
    while moment < MINUTE and requests < waves:
        pause = max(policy.waiting_back_off, moment * policy.waiting_back_off_fraction)
        moment += SHORTEST_DRAW * min(pause, policy.waiting_back_off_max)
        requests += 1
    return requests


async def naive(waves: int = WAVES, each: int = EACH) -> int:
    """Token requests in the same minute if every caller asks for itself."""
    transport = ScriptedTransport(*[lambda _: TROUBLES["500"]()] * (waves * each))
    provider, expires_at = _provider(), 0.0
    assert provider.credential is not None
    request = provider.request(provider.credential)

    async def token() -> None:
        if expires_at <= time.time():
            await transport.send(request, connect=5, total=20)

    for _ in range(waves):
        await asyncio.gather(*(token() for _ in range(each)))
    return len(transport.requests)


# -- the cool-down ------------------------------------------------------------------------------


async def _empty() -> None:
    pass


async def _raising() -> None:
    raise RuntimeError("down")


async def _timed(call: Callable[[], Awaitable[Any]], errors: type[Exception], calls: int) -> float:
    """Nanoseconds per call."""
    begun = time.perf_counter_ns()
    for _ in range(calls):
        with suppress(errors):
            await call()
    return (time.perf_counter_ns() - begun) / calls


async def cool_down(calls: int, rounds: int) -> dict[str, list[float]]:
    """What each call costs, in nanoseconds."""
    # The pause is an hour at least, so that none of the calls below asks again.
    patient = {"waiting_back_off": 36_000, "waiting_back_off_max": 36_000}
    down, transport = _source(lambda _: _no_connection(), 1, policy=patient)
    document = {
        "access_token": "access",
        "token_type": "Bearer",
        "expires_in": 36_000,
        "refresh_token": "next",
    }
    up, _ = _source(lambda _: token_response(document), 1)
    await asyncio.gather(_unavailable(down), _unavailable(up))
    figures = await interleaved(
        {
            "empty async def": lambda: _timed(_empty, RuntimeError, calls),
            "async def that raises": lambda: _timed(_raising, RuntimeError, calls),
            "token(), fresh": lambda: _timed(up.token, TokenUnavailable, calls),
            "token(), in the outage": lambda: _timed(down.token, TokenUnavailable, calls),
        },
        rounds,
    )
    assert len(transport.requests) == 1
    await asyncio.gather(up.aclose(), down.aclose())
    return figures


# -- the contestants ----------------------------------------------------------------------------


async def fail_and_recover(kind: type[Peer], waves: int = PEER_WAVES) -> dict[str, Any]:
    """One contestant whose token endpoint fails. Returns its row."""
    callers, remark = 0, None
    async with Server(auth="post") as server, primed(kind, server) as peer:
        await peer.get(PATH)
        peer.expire()
        await server.fail()
        before, begun = (await server.stats())["token_requests"], time.perf_counter()
        try:
            async with asyncio.timeout(_LIMIT):
                for _ in range(waves):
                    tally = await at_once(peer, PEER_EACH)
                    callers += PEER_EACH
                    remark = str(tally)
        except TimeoutError:
            remark = f"stopped after {_LIMIT:.0f} s, in the wave after these callers"
        took = time.perf_counter() - begun
        requests = (await server.stats())["token_requests"] - before
        await server.recover()
        recovers = await _recovers(peer)
    return {
        "what": kind.name,
        "callers": callers,
        "token requests": requests,
        "seconds": took,
        "recovers": "yes" if recovers else "no",
        "remark": remark,
    }


async def _recovers(peer: Peer) -> bool:
    """Whether it gets a 200 soon after the outage. So early, the pauses are about a second."""
    for _ in range(_TRIES):
        if (await at_once(peer, 1)).served:
            return True
        await asyncio.sleep(0.1)
    return False


async def measure(
    draws: int = 50,
    *,
    calls: int = CALLS,
    rounds: int = 15,
    waves: int = PEER_WAVES,
    only: Sequence[str] = (),
    outages: Sequence[Outage] = OUTAGES,
    judged: bool = True,
) -> Result:
    """All four parts."""
    logging.getLogger("tokensession").addHandler(logging.NullHandler())  # it logs each failure
    result = Result("outage")
    say("  outage: a simulated minute")
    result.series["minute"] = await _minutes(result, draws)
    say("  outage: the cool-down")
    figures = await cool_down(calls, rounds)
    found = {name: spread(line) for name, line in figures.items()}
    for name, line in found.items():
        result.rows.append({"what": name, "ns per call": line.as_json()})
    result.series["cool-down"] = {
        "x": list(found),
        "ns": [[line.q1, line.median, line.q3] for line in found.values()],
    }
    able, excused = contestants("outage", only)
    rows = []
    for kind in able:
        say(f"  outage: {kind.name}")
        rows.append(await fail_and_recover(kind, waves))
    result.series["peers"] = {
        "x": [row["what"] for row in rows],
        "token requests": [row["token requests"] for row in rows],
        "callers": waves * PEER_EACH,
    }
    result.rows += rows + [{"what": name, "remark": f"cannot: {reason}"} for name, reason in excused]
    result.notes += [
        f"The minute: {WAVES * EACH:,} callers in {WAVES} waves, {draws} draws of the jitter: least, median, "
        "most. The bound takes the shortest jitter each time.",
        "httpx-auth and mcp give up the grant at the first failure: httpx-auth asks with its password, "
        "mcp needs a person at a browser. google-auth asks three times for each refresh, with pauses.",
        f"The contestants: {waves} waves of {PEER_EACH} callers, each right after the one before.",
    ]
    await measure_processes(result, outages, judged=judged)
    return result


async def measure_kinds(outages: Sequence[Outage]) -> Result:
    """The processes alone."""
    result = Result("outage")
    await measure_processes(result, outages)
    return result


async def _minutes(result: Result, draws: int) -> dict[str, Any]:
    """The first part. Adds its rows and goals, and returns its series."""
    series: dict[str, Any] = {"x": [], "token requests": [], "bound": [], "callers": WAVES * EACH}
    for trouble in TROUBLES:
        found = [await minute(trouble, seed) for seed in range(draws)]
        posts, most = spread([requests for requests, _ in found]), bound()
        complete = all(unavailable == WAVES * EACH for _, unavailable in found)
        result.rows.append(
            {
                "what": f"{Tokensession.name}, {trouble}",
                "callers": WAVES * EACH,
                "token requests": f"{posts.least:.0f}, {posts.median:.0f}, {posts.most:.0f}",
                "bound": most,
            }
        )
        result.goals.append(
            Goal(
                f"token requests in a minute, {trouble}",
                f"<= {most}, and an error for every caller",
                f"at most {posts.most:.0f}",
                posts.most <= most and complete,
            )
        )
        series["x"].append(trouble)
        series["token requests"].append([posts.least, posts.median, posts.most])
        series["bound"].append(most)
    requests = await naive()
    result.rows.append({"what": "naive, any trouble", "callers": WAVES * EACH, "token requests": requests})
    return series


def main(arguments: list[str]) -> int:
    """Measure, print, save. Returns 1 if a goal was missed."""
    parser = command.parser("outage", __doc__, only=True)
    parser.add_argument("--draws", type=int, default=50, help="of the jitter, for the simulated minute")
    parser.add_argument("--long", action="store_true", help="an outage of five minutes, too")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="only the processes, in these; not saved")
    options = parser.parse_args(arguments)
    outages = (*OUTAGES, *(LONG if options.long else ()))
    if options.kinds:
        result = asyncio.run(measure_kinds([each for each in outages if each.kind in options.kinds]))
    elif options.quick:
        trial = {"calls": 2000, "rounds": 3, "waves": 1}
        result = asyncio.run(measure(2, only=options.only, outages=QUICK, judged=False, **trial))
    else:
        result = asyncio.run(measure(options.draws, only=options.only, outages=outages))
    command.finish(result, arguments, quick=options.quick or bool(options.kinds))
    return int(bool(result.missed))
