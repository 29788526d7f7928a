"""What the experiments with contestants share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ..harness.server import Server
from . import PEERS, Peer, excuse

__all__ = ["Tally", "at_once", "contestants", "primed", "settle", "worst"]

PATH = "/ping"


def contestants(experiment: str, only: Sequence[str] = ()) -> tuple[list[type[Peer]], list[tuple[str, str]]]:
    """Those that take part, and those that cannot with the reason. `only`: parts of names."""
    wanted = [peer for peer in PEERS if not only or any(part in peer.name for part in only)]
    excused = [(peer.name, reason) for peer in wanted if (reason := excuse(peer, experiment))]
    return [peer for peer in wanted if excuse(peer, experiment) is None], excused


@asynccontextmanager
async def primed(kind: type[Peer], server: Server) -> AsyncIterator[Peer]:
    """A contestant that has a token, from its own grant."""
    async with kind(server.credentials | {"refresh_token": await server.new_credential()}) as peer:
        await peer.prime()
        yield peer


@dataclass(slots=True)
class Tally:
    """The outcomes of some requests."""

    served: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """How many did not get a 200."""
        return self.failures.total()

    def add(self, outcome: Any) -> None:
        """Count one outcome: a status or an exception."""
        if outcome == 200:
            self.served += 1
        else:
            kind = type(outcome).__name__ if isinstance(outcome, BaseException) else f"status {outcome}"
            self.failures[kind] += 1

    def __str__(self) -> str:
        return ", ".join(f"{count} x {kind}" for kind, count in self.failures.most_common(2))


async def at_once(peer: Peer, count: int) -> Tally:
    """Run this many tasks with one GET each."""
    tally = Tally()
    for outcome in await asyncio.gather(*(peer.get(PATH) for _ in range(count)), return_exceptions=True):
        tally.add(outcome)
    return tally


async def settle(seconds: float = 0.05) -> None:
    """Give tasks, threads and sockets time to get to where they wait."""
    await asyncio.sleep(seconds)


def worst(figures: Iterable[int]) -> int | str:
    """A count that should be the same in every round. Its range, if it is not."""
    ordered = sorted(figures)
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]}-{ordered[-1]}"
