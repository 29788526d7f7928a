"""The verdict on the event log: every broken promise is found, and every excuse is checked."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.torture import event_log as log
from benchmarks.torture import excuses, verdict
from benchmarks.torture.event_log import Entry
from benchmarks.torture.plan import Plan
from benchmarks.torture.report import Report
from tokensession.testing import ServerStats

REFRESH = [  # one refresh that goes well: r1 for r2
    log.Claimed("1.1"),
    log.Sent("1.1", "r1"),
    log.Arrived(1, "1.1", "r1"),
    log.Redeemed(1, "1.1", "r1", "r2", "a2"),
    log.Answered(1),
    log.Finished("1.1", "r1", 200),
    log.Stored("r2"),
    log.Released("1.1"),
    log.Used("a2"),
    log.Recovered("1.1"),
]

KILLED_IN_THE_WINDOW = [
    *REFRESH[:4],
    log.Killed("1.1", "kill rotated"),
    log.Reaped("1.1", "r1"),
    log.Answered(1),
]

REPLAYED = [
    log.Claimed("2.1"),
    log.Sent("2.1", "r1"),
    log.Arrived(2, "2.1", "r1"),
    log.Reused(2, "2.1", "r1"),
    log.Answered(2),
    log.Finished("2.1", "r1", 400),
]

SIGNED_IN = [log.SignInRequired("2.1", "GrantRejected"), log.SignedIn(1, 0, "r2")]


def broken(*entries: Entry) -> str:
    return "\n".join(verdict.examine(entries).broken)


def without(entries: list[Entry], kind: type[Entry]) -> list[Entry]:
    return [entry for entry in entries if not isinstance(entry, kind)]


def test_a_run_without_accidents_breaks_no_promise() -> None:
    assert broken(*REFRESH) == ""


def test_a_kill_between_rotation_and_save_excuses_the_reuse() -> None:
    """The reuse and the sign-in that it costs are counted with this reason."""
    found = verdict.examine([*KILLED_IN_THE_WINDOW, *REPLAYED, *SIGNED_IN])
    assert found.broken == []
    assert found.by_kind["reuse detections"] == Counter({excuses.WINDOW: 1})
    assert found.by_kind["sign-ins lost"] == Counter({excuses.WINDOW: 1})


NOT_EXCUSED = {
    "not killed": REFRESH,
    "it ended by itself": without(KILLED_IN_THE_WINDOW, log.Killed),
    "record not read": without(KILLED_IN_THE_WINDOW, log.Reaped),
    "the successor was in the record": [
        *without(KILLED_IN_THE_WINDOW, log.Reaped),
        log.Reaped("1.1", "r2"),
    ],
    "it was seen in the record": [*KILLED_IN_THE_WINDOW, log.Stored("r2")],
    "its token was used": [*KILLED_IN_THE_WINDOW, log.Used("a2")],
    "it was redeemed": [*KILLED_IN_THE_WINDOW, log.Redeemed(3, "3.1", "r2", "r3", "a3")],
    "another worker was killed": [
        *without(KILLED_IN_THE_WINDOW, log.Killed),
        log.Killed("9.1", "at random"),
    ],
    "the record was deleted, and the sender knew the successor": [
        *REFRESH,
        log.Deleted(),
        log.Seen("2.1", "r2"),
    ],
    "an older record was put back, and the sender knew a later successor": [
        *REFRESH,
        log.Redeemed(3, "3.1", "r2", "r3", "a3"),
        log.Seen("2.1", "r3"),
        log.PutBack("r1", "a1"),
    ],
    "an older record was put back before the successor was stored": [
        *without(REFRESH, log.Stored),
        log.PutBack("r1", "a1"),
    ],
    "the record was deleted before": [log.Deleted(), *REFRESH],
}
"""Each lacks one part of the excuse."""


@pytest.mark.parametrize("story", NOT_EXCUSED.values(), ids=NOT_EXCUSED)
def test_a_reuse_without_an_excuse_is_found(story: list[Entry]) -> None:
    found = verdict.examine([*story, *REPLAYED, *SIGNED_IN])
    assert found.promises["reuse detections without excuse"] == 1
    assert found.promises["sign-ins lost without excuse"] == 1
    assert "reuse detections without excuse: 1" in found.broken


def test_a_token_that_was_served_unsaved_is_excused_only_if_its_process_reported_it() -> None:
    """It was used, and its process was killed while the store did not accept it."""
    story = [*KILLED_IN_THE_WINDOW, log.Used("a2"), *REPLAYED, *SIGNED_IN]
    assert "without excuse" in broken(*story)
    found = verdict.examine([log.Unsaved("1.1"), *story])
    assert (found.broken, found.by_kind["reuse detections"]) == ([], Counter({excuses.UNSAVED: 1}))


@pytest.mark.parametrize("back", [log.Deleted(), log.PutBack("r1", "a1")], ids=repr)
@pytest.mark.parametrize("others_live", [True, False])
def test_a_store_that_went_back_excuses_a_sender_that_never_knew_the_successor(
    back: Entry, others_live: bool
) -> None:
    """Whether another living process knew it is told apart."""
    known = [log.Seen("1.1", "r2"), back]
    end = [] if others_live else [log.Killed("1.1", "at random"), log.Reaped("1.1", "r1")]
    found = verdict.examine([*REFRESH, *known, *end, *REPLAYED, *SIGNED_IN])
    assert found.broken == []
    kind = excuses.UNSEEN if others_live else excuses.GONE
    assert found.by_kind["sign-ins lost"] == Counter({kind: 1})


def test_a_response_that_a_fault_has_lost_excuses_the_reuse_of_that_request_only() -> None:
    """And not if the provider accepts the refresh token once more."""
    story = [*without(REFRESH, log.Finished), *REPLAYED, *SIGNED_IN]
    found = verdict.examine([log.Lost(1, repeatable=False), *story])
    assert (found.broken, found.by_kind["sign-ins lost"]) == ([], Counter({excuses.LOST: 1}))
    assert "without excuse" in broken(log.Lost(2, repeatable=False), *story)
    assert "without excuse" in broken(log.Lost(1, repeatable=True), *story)


@pytest.mark.parametrize(
    "errors", [[], [log.SignInRequired("2.1", "TokenUnavailable")]], ids=["nothing", "try later"]
)
def test_a_reuse_without_a_clear_sign_in_error_is_found(errors: list[Entry]) -> None:
    """An excused reuse must still end in "sign in again"."""
    story = [
        *KILLED_IN_THE_WINDOW,
        *REPLAYED,
        *errors,
        log.SignedIn(1, 0, "r2"),
        log.SignInRequired("2.1", "GrantRejected"),
    ]
    assert broken(*story) == "reuse detections without a sign-in error: 1"


def test_a_sign_in_error_that_repeats_an_earlier_one_tells_of_the_reuse() -> None:
    """A process that has had no token since an earlier loss. It is not told so anew for what it knows."""
    repeated = log.SignInRequired("2.1", "GrantRejected", repeated=True)
    assert broken(*KILLED_IN_THE_WINDOW, *REPLAYED, repeated, log.SignedIn(1, 0, "r2")) == ""
    assert broken(*REFRESH, log.Seen("2.1", "r2"), repeated) == ""


def test_a_sign_in_that_no_living_process_knows_is_excused_only_if_its_processes_were_killed() -> None:
    """The provider has not revoked it: the record was deleted, and those who remembered it were killed."""
    story = [*REFRESH, log.Seen("1.1", "r2"), log.Deleted()]
    killed = [log.Killed("1.1", "at random"), log.Reaped("1.1", None)]
    found = verdict.examine([*story, *killed, *SIGNED_IN])
    assert (found.broken, found.by_kind["sign-ins lost"]) == ([], Counter({excuses.GONE: 1}))
    assert broken(*story, *SIGNED_IN) == "sign-ins lost without excuse: 1"


def test_a_process_that_is_told_to_sign_in_while_it_knows_a_healthy_sign_in_is_found() -> None:
    """Not one that knows an older sign-in, or whose sign-in is revoked."""
    required = log.SignInRequired("1.1", "GrantRejected")
    healthy = [*REFRESH, log.Seen("1.1", "r2")]
    assert "told to sign in" in broken(*healthy, required)
    assert broken(*healthy, log.SignedIn(1, 0, "r2"), required) == "sign-ins lost without excuse: 1"
    assert "told to sign in" not in broken(*healthy, *REPLAYED, required)
    assert broken(*REFRESH, required) == ""


@pytest.mark.parametrize("act", [log.Sent("2.1", "r1"), log.SignInRequired("2.1", "GrantLost")], ids=repr)
def test_a_process_that_follows_the_store_back_is_found(act: Entry) -> None:
    """It must write back what it knows first."""
    story = [
        *REFRESH,
        log.Seen("2.1", "r2"),
        log.PutBack("r1", "a1"),
        log.Seen("2.1", "r1"),
    ]
    assert "processes that followed the store back: 1: 2.1" in broken(*story, act)
    assert "followed" not in broken(*story, log.Seen("2.1", "r2"), act)


def test_two_token_requests_at_once_are_found() -> None:
    """The second comes before the first is answered. One whose client has gone does not count."""
    both = [
        log.Arrived(1, "1.1", "r1"),
        log.Arrived(2, "2.1", "r1"),
        log.Answered(1),
        log.Answered(2),
    ]
    assert "concurrent token requests, at most: 2" in broken(*both)
    assert broken(both[0], log.Disconnected(1), *both[1:]) == ""
    assert broken(both[0], log.Answered(1), both[1], log.Answered(2)) == ""


TAKEN_OVER = [  # 1.1 has sent, and is stopped; 2.1 sends the same refresh token
    *REFRESH[:3],
    log.Stopped("1.1", 0.0, "stop refreshing"),
    log.Lapsed("1.1"),
    *REPLAYED[:3],
]


def test_a_request_beside_one_whose_lease_has_ended_is_counted_apart() -> None:
    found = verdict.examine(TAKEN_OVER)
    assert found.promises["concurrent token requests, at most"] == 1
    assert found.counts["token requests beside one whose lease had ended"] == 1
    assert found.counts["holders that may have lost their lease"] == 1


@pytest.mark.parametrize("kind", [log.Lapsed, log.Claimed])
def test_only_a_holder_whose_lease_has_ended_is_counted_apart(kind: type[Entry]) -> None:
    assert "concurrent token requests, at most: 2" in broken(*without(TAKEN_OVER, kind))


def test_a_lease_that_was_ended_in_time_is_no_excuse() -> None:
    released = [*TAKEN_OVER[:3], log.Released("1.1"), *TAKEN_OVER[3:]]
    assert "concurrent token requests, at most: 2" in broken(*released)


def test_a_reuse_after_a_lease_has_ended_is_excused_and_counted_apart() -> None:
    redeemed = [*REFRESH[:4], *TAKEN_OVER[3:5], *REPLAYED, log.Continued("1.1", 9.0), *SIGNED_IN]
    found = verdict.examine(redeemed)
    assert found.by_kind["reuse detections"] == {excuses.LAPSED: 1}
    assert found.by_kind["sign-ins lost"][excuses.LAPSED] == 1
    assert "without excuse" in broken(*without(redeemed, log.Lapsed))


def test_a_token_request_that_overlaps_a_killed_clients_is_found() -> None:
    """It is not a second holder, but it came too early."""
    found = broken(
        log.Arrived(1, "1.1", "r1"),
        log.Killed("1.1", "kill late"),
        log.Reaped("1.1", "r1"),
        log.Arrived(2, "2.1", "r1"),
    )
    assert found == "token requests that met a dead client's: 1"


def test_the_token_requests_of_an_outage_are_counted_together() -> None:
    """Those before and after it do not count. Each kill allows one more."""
    requests = [log.Arrived(number, f"{number}.1", "r1") for number in range(1, 6)]
    answered = [log.Answered(number) for number in range(1, 6)]
    exchanges = [entry for pair in zip(requests, answered, strict=True) for entry in pair]
    began, ended = log.OutageBegan("503"), log.OutageEnded(4.0, 3)
    story = [*exchanges[:2], began, *exchanges[2:8], ended, *exchanges[8:]]
    found = verdict.examine(story)
    assert (found.broken, found.counts["token requests in outages"]) == ([], 3)
    more = [began, *exchanges[:8], ended]
    assert broken(*more) == "outages with too many token requests: 1: 4 in 4.0 s, and 3 are allowed"
    assert broken(began, log.Killed("9.1", "at random"), *more[1:]) == ""


def test_repetitions_after_lost_responses_are_counted() -> None:
    """By an error, or by a kill."""

    def sent(worker: str, *ends: Entry) -> list[Entry]:
        return [log.Sent(worker, "r1"), *ends]

    lost = log.Finished("1.1", "r1", "OutcomeUnknown")
    killed = [log.Killed("2.1", "at random"), log.Reaped("2.1", "r1")]
    failed = log.Finished("3.1", "r1", 500)
    found = verdict.examine([*sent("1.1", lost), *sent("2.1", *killed), *sent("3.1", failed)])
    assert found.counts["repetitions after a lost response"] == 2
    assert found.counts["lost responses to one refresh token, at most"] == 2


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (log.Corrupt("It is not msgpack."), "corrupt records: 1: It is not msgpack."),
        (log.Leaked("Held."), "leaked locks: 1: Held."),
        (log.Exited("1.1", "Traceback"), "workers that ended by themselves: 1: Traceback"),
        (log.NotRecovered("1.1"), "workers that did not recover: 1: 1.1"),
        (log.Unauthorized("1.1", "expired"), "401s that callers got without explanation: 1: expired"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Entry) else "",
)
def test_each_other_broken_promise_is_found(entry: Entry, sentence: str) -> None:
    """One entry is enough."""
    assert broken(*REFRESH, entry) == sentence


def test_a_401_that_chaos_explains_breaks_no_promise() -> None:
    found = verdict.examine([*REFRESH, log.Unauthorized("1.1", "revoked early")])
    assert (found.broken, found.counts["401s that callers got"]) == ([], 1)


def report(**changes: object) -> Report:
    whole: dict[str, object] = {
        "plan": Plan(store="memory:", seed=1),
        "seconds": 1.0,
        "entries": list(REFRESH),
        "lines": [],
        "stats": ServerStats(),
        "invalid_requests": [],
        "requests": 10,
        "failures": Counter({"GrantRejected": 1, "RateLimited": 2, "status 401": 1}),
        "unauthorized": Counter({"expired": 3}),
        "reads": 1,
        "failed_reads": 0,
    }
    return Report(**(whole | changes))  # type: ignore[arg-type]


def test_expected_errors_break_no_promise() -> None:
    """Callers may get errors that say to try later or to sign in again."""
    assert report().findings().broken == []


@pytest.mark.parametrize(
    "changes",
    [
        {"requests": 0},
        {"failures": Counter({"StoreCorrupt": 1})},
        {"failures": Counter({"TokenSessionError": 1})},
        {"failures": Counter({"KeyError": 1})},
        {"failures": Counter({"status 500": 1})},
        {"unauthorized": Counter({"no token": 1})},
        {"unauthorized": Counter({"unknown token": 1})},
        {"unauthorized": Counter({"valid token": 1})},
        {"invalid_requests": ["the URL has a query"]},
    ],
    ids=str,
)
def test_the_counters_are_judged_too(changes: dict[str, object]) -> None:
    """Each of these is one broken promise."""
    assert len(report(**changes).findings().broken) == 1
