"""What the event log shows. Pure: a list of entries in, counts and broken promises out.

Nothing here is judged by timing. If a spent refresh token is sent again, there are three excuses, by what
happened to the process that redeemed it before:

*kill in the window*: it was killed, and its successor was lost with it. The record did not have the successor
once the process was reaped, it was never seen there or redeemed, and its access token was not used (unless
the killed process had reported that the store did not accept the token).
*response lost on purpose*: the provider had rotated and withheld the response (`--lose-responses`).
*timeout*: the provider had rotated, and the client had timed out by then (a slow machine).

Anything else counts as the library's fault until it is explained.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from . import event_log

__all__ = ["BY_DESIGN", "Findings", "examine"]

WINDOW = "kill in the window between rotation and save"
UNSAVED = "kill of a process whose token the store did not accept"
WITHHELD = "response lost after the rotation (--lose-responses)"
TIMED_OUT = "timeout of a client that the provider was too slow for"
TWICE = "two lost attempts in a row"
OTHER = "no excuse found"
BY_DESIGN = (WINDOW, UNSAVED, WITHHELD, TIMED_OUT, TWICE)

_CLEAR = ("GrantRejected", "GrantLost")


@dataclass(slots=True)
class Findings:
    """Counters of everything, and one sentence for each broken promise."""

    counts: dict[str, int] = field(default_factory=dict)
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def must(self, holds: bool, sentence: str) -> None:
        """Note the sentence if the promise does not hold."""
        if not holds:
            self.broken.append(sentence)


def examine(entries: list[event_log.Entry]) -> Findings:
    """Judge the whole event log."""
    found = Findings()
    _count(entries, found)
    _concurrency(entries, found)
    _reuses(entries, found)
    _sign_ins(entries, found)
    _attempts(entries, found)
    _record_and_lock(entries, found)
    _ends(entries, found)
    return found


def _all(entries: list[event_log.Entry], kind: type[Any]) -> list[Any]:
    return [entry for entry in entries if type(entry) is kind]


def _count(entries: list[event_log.Entry], found: Findings) -> None:
    kinds = Counter(type(entry) for entry in entries)
    found.counts |= {
        "token requests": kinds[event_log.Arrived],
        "kills": kinds[event_log.Killed],
        "stops": kinds[event_log.Stopped],
        "faults": kinds[event_log.Fault],
        "clock steps": kinds[event_log.Stepped],
        "access tokens revoked early": kinds[event_log.Revoked],
        "tokens the store did not accept at first": kinds[event_log.Unsaved],
    }
    found.by_kind |= {
        "kills": Counter(entry.aim for entry in _all(entries, event_log.Killed)),
        "stops": Counter(entry.aim for entry in _all(entries, event_log.Stopped)),
        "faults": Counter(entry.kind for entry in _all(entries, event_log.Fault)),
    }


def _concurrency(entries: list[event_log.Entry], found: Findings) -> None:
    """How many token requests of live clients were at the provider at once, and how many met a dead one's.

    A request is over when its client has closed the connection, or when its response is being written. A
    killed client's request is not a second holder's. But none may come while the provider still works on it.
    """
    at_once: dict[int, str] = {}
    dead: set[str] = set()
    most = met = 0
    for entry in entries:
        match entry:
            case event_log.Killed(worker):
                dead.add(worker)
            case event_log.Arrived(number, worker):
                met += any(other in dead for other in at_once.values())
                at_once[number] = worker
                most = max(most, sum(other not in dead for other in at_once.values()))
            case event_log.Disconnected(number) | event_log.Answered(number):
                at_once.pop(number, None)
    found.counts["concurrent token requests, at most"] = most
    found.counts["token requests that met a dead client's"] = met
    found.must(most <= 1, f"{most} token requests were under way at once.")
    found.must(met == 0, f"{met} token requests came while that of a killed client was still worked on.")


@dataclass(slots=True)
class _History:
    """What the whole event log says about the workers and the refresh tokens."""

    killed: set[str]
    unsaved: set[str]
    stored: set[str]
    redeemed: dict[str, event_log.Redeemed]
    used: set[str]
    reaped: dict[str, str | None]
    timed_out: set[int]

    @classmethod
    def read(cls, entries: list[event_log.Entry]) -> _History:
        reaped = {entry.worker: entry.stored for entry in _all(entries, event_log.Reaped)}
        return cls(
            killed={entry.worker for entry in _all(entries, event_log.Killed)},
            unsaved={entry.worker for entry in _all(entries, event_log.Unsaved)},
            stored={entry.credential for entry in _all(entries, event_log.Stored)},
            redeemed={entry.credential: entry for entry in _all(entries, event_log.Redeemed)},
            used={entry.access for entry in _all(entries, event_log.Used)},
            reaped=reaped,
            timed_out={entry.number for entry in _all(entries, event_log.TimedOut)},
        )

    def excuse(self, credential: str) -> str:
        """Why this refresh token, which had been redeemed before, could be sent again."""
        first = self.redeemed.get(credential)
        if first is None:
            return OTHER
        if first.withheld:
            return WITHHELD
        if first.number in self.timed_out:
            return TIMED_OUT
        lost = (
            first.worker in self.killed
            and first.worker in self.reaped
            and self.reaped[first.worker] != first.successor
            and first.successor not in self.stored
            and first.successor not in self.redeemed
        )
        if lost and first.worker in self.unsaved:
            return UNSAVED
        return WINDOW if lost and first.access not in self.used else OTHER


def _reuses(entries: list[event_log.Entry], found: Findings) -> None:
    history = _History.read(entries)
    reuses = [(place, entry) for place, entry in enumerate(entries) if isinstance(entry, event_log.Reused)]
    excuses = Counter(history.excuse(entry.credential) for _, entry in reuses)
    found.by_kind["reuse detections"] = excuses
    found.counts["reuse detections, excused"] = excuses.total() - excuses[OTHER]
    found.counts["reuse detections otherwise"] = excuses[OTHER]
    found.must(
        excuses[OTHER] == 0, f"{excuses[OTHER]} times a spent refresh token was sent again without excuse."
    )
    silent = sum(not _reported_after(entries, place) for place, _ in reuses)
    found.counts["reuse detections without a sign-in error"] = silent
    found.must(silent == 0, f"{silent} reuse detections were not followed by a clear 'sign in again'.")


def _reported_after(entries: list[event_log.Entry], place: int) -> bool:
    """Whether callers got a clear sign-in error before the next sign-in."""
    for entry in entries[place:]:
        if isinstance(entry, event_log.SignInRequired) and entry.error in _CLEAR:
            return True
        if isinstance(entry, event_log.SignedIn):
            return False
    return False


def _sign_ins(entries: list[event_log.Entry], found: Findings) -> None:
    """Why each sign-in was lost."""
    history, causes = _History.read(entries), Counter[str]()
    lost = _lost_attempts(entries)
    reused = {entry.credential for entry in _all(entries, event_log.Reused)}
    for entry in _all(entries, event_log.SignedIn):
        if entry.credential in reused:
            causes[history.excuse(entry.credential)] += 1
        else:
            causes[TWICE if lost[entry.credential] >= 2 else OTHER] += 1
    found.by_kind["sign-ins lost"] = causes
    found.counts["sign-ins lost, by design"] = causes.total() - causes[OTHER]
    found.counts["sign-ins lost otherwise"] = causes[OTHER]
    found.must(causes[OTHER] == 0, f"{causes[OTHER]} sign-ins were lost without an excuse.")


def _lost_attempts(entries: list[event_log.Entry]) -> Counter[str]:
    """For each refresh token: how many claims to redeem it ended in a lost response or in a kill."""
    lost: Counter[str] = Counter()
    holding: dict[str, str] = {}
    for entry in entries:
        match entry:
            case event_log.Claimed(worker, credential):
                holding[worker] = credential
            case event_log.Finished(worker, credential, "OutcomeUnknown"):
                lost[credential] += 1
                holding.pop(worker, None)
            case event_log.Released(worker):
                holding.pop(worker, None)
            case event_log.Reaped(worker):
                if worker in holding:
                    lost[holding.pop(worker)] += 1
    return lost


def _attempts(entries: list[event_log.Entry], found: Findings) -> None:
    """How often a refresh token was sent again after its response had been lost, for any reason."""
    open_: dict[str, str] = {}
    unknown: Counter[str] = Counter()
    replays = 0
    for entry in entries:
        match entry:
            case event_log.Sent(worker, credential):
                replays += unknown[credential] > 0
                open_[worker] = credential
            case event_log.Finished(worker, credential, outcome):
                open_.pop(worker, None)
                unknown[credential] += outcome == "OutcomeUnknown"
            case event_log.Reaped(worker):
                if worker in open_:
                    unknown[open_.pop(worker)] += 1
    worst = max(unknown.values(), default=0)
    found.counts["replays"] = replays
    found.counts["lost responses to one refresh token, at most"] = worst
    found.must(
        worst <= 2, f"A refresh token was sent {worst} times without a response: one replay is allowed."
    )


def _record_and_lock(entries: list[event_log.Entry], found: Findings) -> None:
    corrupt, leaked = _all(entries, event_log.Corrupt), _all(entries, event_log.Leaked)
    found.counts["corrupt records"] = len(corrupt)
    found.counts["leaked locks"] = len(leaked)
    found.must(not corrupt, f"The record could not be read {len(corrupt)} times: {_first(corrupt)}")
    found.must(not leaked, f"The key was still claimed when all workers had ended: {_first(leaked)}")


def _first(entries: list[Any]) -> str:
    return entries[0].what if entries else ""


_EXPLAINED = (
    "revoked early",
    "grant revoked",
    "expired, but valid by the client's wrong clock",
    "expired while its client was stopped",
    "expired while its refresher was stopped",
    "expired on the way",
)


def _ends(entries: list[event_log.Entry], found: Findings) -> None:
    unauthorized = Counter(entry.why for entry in _all(entries, event_log.Unauthorized))
    exited, not_recovered = _all(entries, event_log.Exited), _all(entries, event_log.NotRecovered)
    unexplained = sum(count for why, count in unauthorized.items() if why not in _EXPLAINED)
    found.by_kind["401s that callers got"] = unauthorized
    found.counts |= {
        "401s that callers got, explained": unauthorized.total() - unexplained,
        "401s that callers got otherwise": unexplained,
        "workers that ended by themselves": len(exited),
        "workers that recovered": len(_all(entries, event_log.Recovered)),
        "workers that did not recover": len(not_recovered),
    }
    found.must(unexplained == 0, f"{unexplained} times a caller got a 401 without an explanation.")
    reason = exited[0].reason if exited else ""
    found.must(not exited, f"{len(exited)} workers ended by themselves: {reason}")
    found.must(not not_recovered, f"{len(not_recovered)} workers got no new token after chaos had ended.")
