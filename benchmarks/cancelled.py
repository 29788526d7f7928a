"""The caller that started the refresh is cancelled in the middle of it, while others wait.

The token looks expired. A first task makes a GET and so starts a token request. The server carries it out
and does not answer yet: the refresh token is spent. Twenty more tasks make a GET. The first is cancelled;
then the server answers. Counted: how many of the twenty fail, and the token requests. Afterwards the token
expires once more, and one more GET shows whether the grant is lost: refresh tokens rotate, and sending one
twice revokes everything, as RFC 9700 says.

Series: {"x": [name, ...], "failed": [...], "token requests": [...], "lost": [bool, ...]}.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from .harness import command
from .harness.results import Goal, Result, say
from .harness.server import Server
from .peers import Peer, Tokensession
from .peers.common import PATH, Tally, contestants, primed, settle, worst

WAITING = 20
_LIMIT = 30.0  # seconds for one cancellation


@dataclass(frozen=True, slots=True)
class Outcome:
    """One cancellation: the waiting tasks, token requests, and the GET after the next expiry."""

    waiting: Tally
    token_requests: int
    after: Tally


async def cancel_first(kind: type[Peer], server: Server, waiting: int = WAITING) -> Outcome:
    """One cancellation. Returns its outcome."""
    async with primed(kind, server) as peer:
        await peer.get(PATH)
        before = (await server.stats())["token_requests"]
        peer.expire()
        await server.hold()
        first = asyncio.ensure_future(peer.get(PATH))
        await server.reached()
        others = [asyncio.ensure_future(peer.get(PATH)) for _ in range(waiting)]
        await settle()
        first.cancel()
        await settle()  # a waiter may send a token request too; it is held as well
        await server.release()
        tally, after = Tally(), Tally()
        for result in await asyncio.gather(*others, return_exceptions=True):
            tally.add(result)
        await asyncio.gather(first, return_exceptions=True)
        requests = (await server.stats())["token_requests"] - before
        peer.expire()
        for result in await asyncio.gather(peer.get(PATH), return_exceptions=True):
            after.add(result)
        return Outcome(tally, requests, after)


async def measure(rounds: int = 3, *, only: Sequence[str] = ()) -> Result:
    """All contestants, this many rounds each."""
    able, excused = contestants("cancelled", only)
    result = Result("cancelled")
    async with Server(auth="post") as server:
        for kind in able:
            say(f"  cancelled: {kind.name}")
            outcomes = []
            for _ in range(rounds):
                async with asyncio.timeout(_LIMIT):
                    outcomes.append(await cancel_first(kind, server))
            result.rows.append(_row(kind.name, outcomes))
    result.goals = [
        Goal(
            "failed waiters, token requests, grant",
            "0, 1, kept",
            f"{row['failed']}, {row['token requests']}, {row['grant']}",
            (row["failed"], row["token requests"], row["grant"]) == (0, 1, "kept"),
        )
        for row in result.rows
        if row["contestant"] == Tokensession.name
    ]
    result.series = {
        "x": [row["contestant"] for row in result.rows],
        "failed": [row["failed"] for row in result.rows],
        "token requests": [row["token requests"] for row in result.rows],
        "lost": [row["grant"] != "kept" for row in result.rows],
    }
    result.rows += [{"contestant": name, "remark": f"cannot: {reason}"} for name, reason in excused]
    result.notes.append(
        f"{WAITING} tasks wait; {rounds} rounds, a range where they differ. "
        "A lost grant: a person must sign in again."
    )
    return result


def _row(name: str, outcomes: Sequence[Outcome]) -> dict[str, object]:
    lost = sum(found.after.served == 0 for found in outcomes)
    remarks = dict.fromkeys(str(found.waiting) for found in outcomes if found.waiting.failed)
    return {
        "contestant": name,
        "waiting": WAITING,
        "failed": worst(found.waiting.failed for found in outcomes),
        "token requests": worst(found.token_requests for found in outcomes),
        "grant": {0: "kept", len(outcomes): "lost"}.get(lost, f"lost in {lost} of {len(outcomes)}"),
        "remark": "; ".join(remarks) or None,
    }


def main(arguments: list[str]) -> int:
    """Measure, print, save. Returns 1 if a waiter failed, or tokensession asked twice or lost the grant."""
    parser = command.parser("cancelled", __doc__, only=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    result = asyncio.run(measure(1 if options.quick else options.rounds, only=options.only))
    command.finish(result, arguments, quick=options.quick)
    return int(bool(result.missed))
