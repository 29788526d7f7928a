"""What the event log shows. Pure: a list of entries in, counts and broken promises out.

A spent refresh token that is sent again, and a lost sign-in, have a reason in `excuses.py`, or count as the
library's fault until they are explained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from . import event_log
from .excuses import OTHER, History, Leases

__all__ = ["Findings", "examine"]

_CLEAR = ("GrantRejected", "GrantLost")


@dataclass(slots=True)
class Findings:
    """Counters of everything, and one sentence for each broken promise.

    `promises` are the counters that must be 0, or 1 for "at once".
    """

    counts: dict[str, int] = field(default_factory=dict)
    promises: dict[str, int] = field(default_factory=dict)
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def promise(self, name: str, count: int, *details: str, most: int = 0) -> None:
        """Add a counter that must not be higher than this. `details` say more."""
        self.promises[name] = count
        if count > most:
            self.broken.append(": ".join([f"{name}: {count}", *details[:1]]))

    def count(self, name: str, kinds: Counter[str]) -> None:
        """Add a counter, and what it is made of."""
        self.counts[name] = kinds.total()
        self.by_kind[name] = kinds


def examine(entries: Sequence[event_log.Entry]) -> Findings:
    """Judge the whole event log."""
    found, history = Findings(), History.read(entries)
    _count(entries, found)
    _outages(entries, found)
    _attempts(entries, found)
    _concurrency(entries, found)
    _reuses(entries, history, found)
    _sign_ins(entries, history, found)
    found.promise("processes that followed the store back", len(history.followed), *sorted(history.followed))
    _record_and_lock(entries, found)
    _ends(entries, found)
    return found


def _all(entries: Sequence[event_log.Entry], kind: type[Any]) -> list[Any]:
    return [entry for entry in entries if type(entry) is kind]


def _count(entries: Sequence[event_log.Entry], found: Findings) -> None:
    kinds = Counter(type(entry) for entry in entries)
    found.count("kills", Counter(entry.aim for entry in _all(entries, event_log.Killed)))
    found.count("stops", Counter(entry.aim for entry in _all(entries, event_log.Stopped)))
    found.count("faults", Counter(entry.kind for entry in _all(entries, event_log.Fault)))
    found.count(
        "ends of the store's server", Counter(entry.how for entry in _all(entries, event_log.StoreEnded))
    )
    found.count("outages", Counter(entry.kind for entry in _all(entries, event_log.OutageBegan)))
    found.counts |= {
        "clock steps": kinds[event_log.Stepped],
        "holders that may have lost their lease": _lapses(entries),
        "access tokens revoked early": kinds[event_log.Revoked],
        "older records put back": kinds[event_log.PutBack],
        "records deleted": kinds[event_log.Deleted],
    }
    found.count("records restored", Counter(entry.found for entry in _all(entries, event_log.Restored)))
    found.counts |= {
        "token requests": kinds[event_log.Arrived],
        "tokens the store did not accept at first": kinds[event_log.Unsaved],
    }


def _lapses(entries: Sequence[event_log.Entry]) -> int:
    leases, lapses = Leases(), 0
    for entry in entries:
        leases.follow(entry)
        lapses += isinstance(entry, event_log.Lapsed) and entry.worker in leases.lapsed
    return lapses


def _outages(entries: Sequence[event_log.Entry], found: Findings) -> None:
    """The token requests of all processes together while the provider gives no tokens.

    A process that is killed cannot say that its request failed, so the next one makes one more.
    """
    during = kills = total = over = 0
    most = 0
    worst = ""
    for entry in entries:
        match entry:
            case event_log.OutageBegan():
                during = kills = 0
            case event_log.Arrived():
                during += 1
            case event_log.Killed():
                kills += 1
            case event_log.OutageEnded(seconds, allowed):
                total, most = total + during, max(most, during)
                if during > allowed + kills:
                    over += 1
                    worst = f"{during} in {seconds:.1f} s, and {allowed + kills} are allowed"
    found.counts["token requests in outages"] = total
    found.counts["token requests in one outage, at most"] = most
    found.promise("outages with too many token requests", over, worst)


def _attempts(entries: Sequence[event_log.Entry], found: Findings) -> None:
    """How often a refresh token was sent again after its response had been lost, for any reason."""
    open_: dict[str, str] = {}
    unknown: Counter[str] = Counter()
    repetitions = 0
    for entry in entries:
        match entry:
            case event_log.Sent(worker, credential):
                repetitions += unknown[credential] > 0
                open_[worker] = credential
            case event_log.Finished(worker, credential, outcome):
                open_.pop(worker, None)
                unknown[credential] += outcome == "OutcomeUnknown"
            case event_log.Reaped(worker):
                if worker in open_:
                    unknown[open_.pop(worker)] += 1
    found.counts["repetitions after a lost response"] = repetitions
    found.counts["lost responses to one refresh token, at most"] = max(unknown.values(), default=0)


def _concurrency(entries: Sequence[event_log.Entry], found: Findings) -> None:
    """How many token requests of live clients were at the provider at once, and how many met a dead one's.

    A request is over when its client has closed the connection, or when its response is being written. A
    killed client's request is not a second holder's. But none may come while the provider still works on it.
    Those of a client that may have lost its lease unawares are counted apart.
    """
    at_once: dict[int, str] = {}
    dead: set[str] = set()
    leases = Leases()
    most = met = beside = 0
    for entry in entries:
        leases.follow(entry)
        match entry:
            case event_log.Killed(worker):
                dead.add(worker)
            case event_log.Arrived(number, worker):
                met += any(other in dead for other in at_once.values())
                at_once[number] = worker
                live = [other for other in at_once.values() if other not in dead]
                most = max(most, sum(other not in leases.lapsed for other in live))
                beside += len(live) > 1 and any(other in leases.lapsed for other in live)
            case event_log.Disconnected(number) | event_log.Answered(number):
                at_once.pop(number, None)
    found.promise("concurrent token requests, at most", most, most=1)
    found.counts["token requests beside one whose lease had ended"] = beside
    found.promise("token requests that met a dead client's", met)


def _reuses(entries: Sequence[event_log.Entry], history: History, found: Findings) -> None:
    reuses = [(place, entry) for place, entry in enumerate(entries) if isinstance(entry, event_log.Reused)]
    excuses = Counter(history.excuse(entry) for _, entry in reuses)
    found.count("reuse detections", excuses)
    found.promise("reuse detections without excuse", excuses[OTHER])
    silent = sum(not _reported_after(entries, place) for place, _ in reuses)
    found.promise("reuse detections without a sign-in error", silent)


def _reported_after(entries: Sequence[event_log.Entry], place: int) -> bool:
    """Whether callers got a clear sign-in error before the next sign-in."""
    for entry in entries[place:]:
        if isinstance(entry, event_log.SignInRequired) and entry.error in _CLEAR:
            return True
        if isinstance(entry, event_log.SignedIn):
            return False
    return False


def _sign_ins(entries: Sequence[event_log.Entry], history: History, found: Findings) -> None:
    """Why each sign-in was lost, and who was told so although it was not."""
    causes = Counter[str]()
    dead: dict[int, event_log.Reused] = {}
    sign_ins = {entry.successor: entry.sign_in for entry in history.redeemed.values()}
    known: dict[str, int] = {}
    number = false = 0
    for entry in entries:
        match entry:
            case event_log.Reused(sign_in=sign_in):
                dead.setdefault(sign_in, entry)
            case event_log.Seen(worker, credential):
                known[worker] = max(known.get(worker, -1), sign_ins.get(credential, -1))
            case event_log.SignInRequired(worker, repeated=False):
                false += known.get(worker) == number and number not in dead
            case event_log.SignedIn(number, lost, credential):
                reuse = dead.get(lost)
                causes[history.excuse(reuse) if reuse else history.why_forgotten(credential)] += 1
    found.count("sign-ins lost", causes)
    found.promise("sign-ins lost without excuse", causes[OTHER])
    found.promise("processes told to sign in while they knew a healthy sign-in", false)


def _record_and_lock(entries: Sequence[event_log.Entry], found: Findings) -> None:
    corrupt, leaked = _all(entries, event_log.Corrupt), _all(entries, event_log.Leaked)
    found.promise("corrupt records", len(corrupt), *(entry.what for entry in corrupt))
    found.promise("leaked locks", len(leaked), *(entry.what for entry in leaked))


_EXPLAINED = (
    "revoked early",
    "grant revoked",
    "expired, but valid by the client's wrong clock",
    "expired, in a record that was put back",
    "expired while its client was stopped",
    "expired while its refresher was stopped",
    "expired on the way",
)


def _ends(entries: Sequence[event_log.Entry], found: Findings) -> None:
    unauthorized = Counter(entry.why for entry in _all(entries, event_log.Unauthorized))
    exited, not_recovered = _all(entries, event_log.Exited), _all(entries, event_log.NotRecovered)
    unexplained = [why for why in unauthorized.elements() if why not in _EXPLAINED]
    found.count("401s that callers got", unauthorized)
    found.counts["workers that recovered"] = len(_all(entries, event_log.Recovered))
    found.promise("401s that callers got without explanation", len(unexplained), *unexplained)
    found.promise("workers that ended by themselves", len(exited), *(entry.reason for entry in exited))
    found.promise(
        "workers that did not recover", len(not_recovered), *(entry.worker for entry in not_recovered)
    )
