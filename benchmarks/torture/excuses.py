"""Why a spent refresh token came again, and why a sign-in was lost. Pure.

These are the excuses. Nothing is judged by timing. (The *successor* of a refresh token came with the response
to it.)

*killed*: the process that redeemed it was killed, and its successor was lost with it. The record did not have
the successor once the process was reaped, it was never seen there or redeemed, and its access token was not
used (unless the killed process had reported that the store did not accept the token).
*store went back*: the store had its successor, and then the record was deleted, or an older one was put back.
The process that sent it had never seen its successor, nor any later one. Either no living worker had. Or
another one had, and had not looked at the store yet. Then it is told apart whether the sender had the spent
token from the store only, as after its start, or in memory.
*lapsed*: the process that redeemed it, or that sent it again, held the claim, and then it was stopped, or its
store was down, for longer than its lease lasts. Another one may have taken over by then.
*response lost*: the provider had rotated, a fault lost the response, and the provider takes a repetition for
theft (`--strict`).

Anything else counts as the library's fault until it is explained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import event_log

__all__ = ["GONE", "LAPSED", "LOST", "OTHER", "STALE", "UNSAVED", "UNSEEN", "WINDOW", "History"]

WINDOW = "the one process that had the response was killed"
UNSAVED = "killed while the store did not accept its token"
GONE = "store went back, no living worker had the newer token"
UNSEEN = "store went back, its sender knew only what was there"
STALE = "store went back, its sender remembered an older token"
LOST = "response lost by a fault (--strict)"
LAPSED = "stopped, or without its store, for longer than the lease"
OTHER = "no excuse found"


class Leases:
    """Who holds the claim, and who may have lost it unawares."""

    def __init__(self) -> None:
        self._holding: set[str] = set()
        self.lapsed: set[str] = set()

    def follow(self, entry: event_log.Entry) -> None:
        """Take one entry after the other."""
        match entry:
            case event_log.Claimed(worker):
                self._holding.add(worker)
                self.lapsed.discard(worker)
            case event_log.Released(worker):
                self._holding.discard(worker)
                self.lapsed.discard(worker)
            case event_log.Lapsed(worker) if worker in self._holding:
                self.lapsed.add(worker)


@dataclass(slots=True)
class History:
    """What the whole event log says about the workers and the refresh tokens."""

    killed: set[str] = field(default_factory=set)
    unsaved: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    redeemed: dict[str, event_log.Redeemed] = field(default_factory=dict)
    """By the refresh token that was spent: the last time that it was accepted."""
    used: set[str] = field(default_factory=set)
    reaped: dict[str, str | None] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    seen: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    knowing: set[tuple[str, str]] = field(default_factory=set)
    """A worker and a refresh token that it has sent, although it had seen a later one."""
    remembered: set[tuple[str, str]] = field(default_factory=set)
    """A worker and a refresh token that it had seen before the store went back."""
    followed: set[str] = field(default_factory=set)
    """The workers that read an older record than they knew, and sent a request or gave up on the sign-in
    before they wrote theirs back."""
    lapsed: set[int] = field(default_factory=set)
    """The token requests of processes that may have lost their claim unawares, by then or soon after."""
    stranded: dict[str, bool] = field(default_factory=dict)
    """The refresh tokens that were sent again after the store had lost their successor. Whether all workers
    who had seen a later one were dead by then."""

    @classmethod
    def read(cls, entries: Sequence[event_log.Entry]) -> History:
        history = cls()
        for entry in entries:
            if isinstance(entry, event_log.Redeemed):
                history.redeemed[entry.credential] = entry
        older: dict[str, bool] = {}  # whether a worker has just read an older record than it knew
        undone: set[str] = set()  # spent, and the store had their successor, and went back
        leases = Leases()
        requests: dict[str, int] = {}  # of each worker, the last one in its claim
        for entry in entries:
            leases.follow(entry)
            match entry:
                case event_log.Released(worker):
                    requests.pop(worker, None)
                case event_log.Lapsed(worker) if worker in leases.lapsed and worker in requests:
                    history.lapsed.add(requests[worker])
                case event_log.Arrived(number, worker):
                    requests[worker] = number
                    if worker in leases.lapsed:
                        history.lapsed.add(number)
                case event_log.Killed(worker):
                    history.killed.add(worker)
                case event_log.Unsaved(worker):
                    history.unsaved.add(worker)
                case event_log.Stored(credential):
                    history.stored.add(credential)
                case event_log.Used(access):
                    history.used.add(access)
                case event_log.Reaped(worker, stored):
                    history.reaped[worker] = stored
                case event_log.Lost(number, repeatable=False):
                    history.lost.add(number)
                case event_log.PutBack() | event_log.Deleted():
                    redeemed = history.redeemed.values()
                    undone |= {each.credential for each in redeemed if each.successor in history.stored}
                    history.remembered |= {
                        (worker, each) for worker, seen in history.seen.items() for each in seen
                    }
                case event_log.Seen(worker, credential):
                    older[worker] = bool(history.seen[worker] & history.later(credential))
                    history.seen[worker].add(credential)
                case event_log.Sent(worker, credential):
                    if history.seen[worker] & history.later(credential):
                        history.knowing.add((worker, credential))
                    if older.get(worker):
                        history.followed.add(worker)
                case event_log.SignInRequired(worker, repeated=False) if older.get(worker):
                    history.followed.add(worker)
                case event_log.Reused(credential=credential) if credential in undone:
                    history.stranded[credential] = history.is_gone(history.later(credential))
        return history

    def later(self, credential: str) -> set[str]:
        """The refresh tokens that have followed this one."""
        found: set[str] = set()
        while (redeemed := self.redeemed.get(credential)) is not None and redeemed.successor not in found:
            credential = redeemed.successor
            found.add(credential)
        return found

    def is_gone(self, credentials: set[str]) -> bool:
        """Whether no living worker has seen one of these, so far."""
        living = (seen for worker, seen in self.seen.items() if worker not in self.killed)
        return not any(seen & credentials for seen in living)

    def excuse(self, reuse: event_log.Reused) -> str:
        """Why this refresh token, which had been redeemed before, could be sent again."""
        first = self.redeemed.get(reuse.credential)
        if first is None:
            return OTHER
        if first.number in self.lost:
            return LOST
        if (killed := self.killed_with(first)) is not None:
            return killed
        if {first.number, reuse.number} & self.lapsed:
            return LAPSED
        if reuse.credential in self.stranded and (reuse.worker, reuse.credential) not in self.knowing:
            if self.stranded[reuse.credential]:
                return GONE
            return STALE if (reuse.worker, reuse.credential) in self.remembered else UNSEEN
        return OTHER

    def killed_with(self, redeemed: event_log.Redeemed) -> str | None:
        """The excuse that the response to this was lost with its process, or None."""
        lost = (
            redeemed.worker in self.killed
            and redeemed.worker in self.reaped
            and self.reaped[redeemed.worker] != redeemed.successor
            and redeemed.successor not in self.stored
            and redeemed.successor not in self.redeemed
        )
        if lost and redeemed.worker in self.unsaved:
            return UNSAVED
        return WINDOW if lost and redeemed.access not in self.used else None

    def why_forgotten(self, newest: str) -> str:
        """Why no one knew the newest refresh token of a sign-in that was not revoked."""
        for redeemed in self.redeemed.values():
            if redeemed.successor == newest and (killed := self.killed_with(redeemed)) is not None:
                return killed
        return GONE if self.is_gone({newest}) else OTHER
