"""The server revokes the access token early, and a hundred requests get a 401 at once.

Every contestant has a token that looks valid. The server revokes all access tokens (refresh tokens stay
valid), and then 100 tasks make one GET each. A token request takes 50 ms at the server, so all of them get
their 401 before there is a new token. Counted: how many get a 200 in the end, and the token requests. Refresh
tokens rotate, with reuse detection.

Series: {"x": [name, ...], "served": [...], "token requests": [...]}.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .harness import command
from .harness.results import Goal, Result, say
from .harness.server import Server
from .peers import Peer, Tokensession
from .peers.common import PATH, Tally, at_once, contestants, primed, worst

REQUESTS = 100
LATENCY = 0.05  # seconds that a token request takes at the server
_LIMIT = 30.0  # seconds for one round


async def revoke(kind: type[Peer], server: Server, requests: int = REQUESTS) -> tuple[Tally, int]:
    """One round. Returns the tally of the requests, and the token requests."""
    async with primed(kind, server) as peer:
        await peer.get(PATH)
        before = (await server.stats())["token_requests"]
        await server.revoke_access_tokens()
        tally = await at_once(peer, requests)
        return tally, (await server.stats())["token_requests"] - before


async def measure(rounds: int = 3, *, only: Sequence[str] = ()) -> Result:
    """All contestants, this many rounds each."""
    able, excused = contestants("revoked", only)
    result = Result("revoked")
    async with Server(auth="post", delay=LATENCY) as server:
        for kind in able:
            say(f"  revoked: {kind.name}")
            found = []
            for _ in range(rounds):
                async with asyncio.timeout(_LIMIT):
                    found.append(await revoke(kind, server))
            result.rows.append(
                {
                    "contestant": kind.name,
                    "requests": REQUESTS,
                    "served": worst(tally.served for tally, _ in found),
                    "token requests": worst(requests for _, requests in found),
                    "remark": "; ".join(dict.fromkeys(str(tally) for tally, _ in found if tally.failed))
                    or None,
                }
            )
    result.goals = [
        Goal(
            "token requests, served",
            f"1, {REQUESTS}",
            f"{row['token requests']}, {row['served']}",
            (row["token requests"], row["served"]) == (1, REQUESTS),
        )
        for row in result.rows
        if row["contestant"] == Tokensession.name
    ]
    result.series = {
        "x": [row["contestant"] for row in result.rows],
        "served": [row["served"] for row in result.rows],
        "token requests": [row["token requests"] for row in result.rows],
    }
    result.rows += [{"contestant": name, "remark": f"cannot: {reason}"} for name, reason in excused]
    result.notes.append(
        f"{rounds} rounds, a range where they differ. aiohttp-oauth2-client, Authlib and httpx-auth do not "
        "look at a 401: callers get it until the token expires."
    )
    return result


def main(arguments: list[str]) -> int:
    """Measure, print, save. Returns 1 unless tokensession asked once and failed no request."""
    parser = command.parser("revoked", __doc__, only=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    result = asyncio.run(measure(1 if options.quick else options.rounds, only=options.only))
    command.finish(result, arguments, quick=options.quick)
    return int(bool(result.missed))
