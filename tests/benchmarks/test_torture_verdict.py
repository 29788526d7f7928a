"""The verdict on the event log: every broken promise is found, and every excuse is checked."""

from __future__ import annotations

from collections import Counter

import _torture_runs  # noqa: F401 - makes `benchmarks` importable
import pytest

from benchmarks.torture import event_log, verdict
from benchmarks.torture.event_log import Entry
from benchmarks.torture.plan import Plan
from benchmarks.torture.report import Report
from tokensession.testing import ServerStats

REFRESH = [  # one refresh that goes well: r1 for r2
    event_log.Claimed("1.1", "r1"),
    event_log.Sent("1.1", "r1"),
    event_log.Arrived(1, "1.1", "r1"),
    event_log.Redeemed(1, "1.1", "r1", "r2", "a2"),
    event_log.Answered(1),
    event_log.Finished("1.1", "r1", 200),
    event_log.Stored("r2"),
    event_log.Released("1.1"),
    event_log.Used("a2"),
    event_log.Recovered("1.1"),
]

KILLED_IN_THE_WINDOW = [
    event_log.Claimed("1.1", "r1"),
    event_log.Sent("1.1", "r1"),
    event_log.Arrived(1, "1.1", "r1"),
    event_log.Redeemed(1, "1.1", "r1", "r2", "a2"),
    event_log.Killed("1.1", "kill rotated"),
    event_log.Reaped("1.1", "r1"),
    event_log.Answered(1),
]

REPLAYED = [
    event_log.Claimed("2.1", "r1"),
    event_log.Sent("2.1", "r1"),
    event_log.Arrived(2, "2.1", "r1"),
    event_log.Reused(2, "2.1", "r1"),
    event_log.Answered(2),
    event_log.Finished("2.1", "r1", 400),
]

SIGNED_IN = [event_log.SignInRequired("2.1", "GrantRejected"), event_log.SignedIn("r1")]


def broken(*entries: Entry) -> str:
    return "\n".join(verdict.examine(list(entries)).broken)


def lost(worker: str, number: int) -> list[Entry]:
    return [
        event_log.Claimed(worker, "r1"),
        event_log.Sent(worker, "r1"),
        event_log.Arrived(number, worker, "r1"),
        event_log.Fault("reset"),
        event_log.Answered(number),
        event_log.Finished(worker, "r1", "OutcomeUnknown"),
        event_log.Released(worker),
    ]


def test_a_run_without_accidents_breaks_no_promise() -> None:
    assert broken(*REFRESH) == ""


def test_a_kill_between_rotation_and_save_excuses_the_reuse() -> None:
    """The reuse and the sign-in that it costs are counted as excused."""
    found = verdict.examine([*KILLED_IN_THE_WINDOW, *REPLAYED, *SIGNED_IN])
    assert found.broken == []
    assert found.counts["reuse detections, excused"] == 1
    assert found.by_kind["sign-ins lost"] == Counter({verdict.WINDOW: 1})


def without(entries: list[Entry], kind: type[Entry]) -> list[Entry]:
    return [entry for entry in entries if not isinstance(entry, kind)]


@pytest.mark.parametrize(
    "story",
    [
        pytest.param([*REFRESH, *REPLAYED], id="not killed"),
        pytest.param([*without(KILLED_IN_THE_WINDOW, event_log.Killed), *REPLAYED], id="it ended by itself"),
        pytest.param([*without(KILLED_IN_THE_WINDOW, event_log.Reaped), *REPLAYED], id="record not read"),
        pytest.param(
            [
                *without(KILLED_IN_THE_WINDOW, event_log.Reaped),
                event_log.Reaped("1.1", "r2"),
                *REPLAYED,
            ],
            id="the successor was in the record",
        ),
        pytest.param(
            [*KILLED_IN_THE_WINDOW, event_log.Stored("r2"), *REPLAYED], id="it was seen in the record"
        ),
        pytest.param([*KILLED_IN_THE_WINDOW, event_log.Used("a2"), *REPLAYED], id="its token was used"),
        pytest.param(
            [*KILLED_IN_THE_WINDOW, event_log.Redeemed(3, "3.1", "r2", "r3", "a3"), *REPLAYED],
            id="it was redeemed",
        ),
        pytest.param(
            [
                *without(KILLED_IN_THE_WINDOW, event_log.Killed),
                event_log.Killed("9.1", "at random"),
                *REPLAYED,
            ],
            id="another worker was killed",
        ),
    ],
)
def test_a_reuse_without_an_excuse_is_found(story: list[Entry]) -> None:
    """Each of these lacks one part of the excuse."""
    found = verdict.examine([*story, *SIGNED_IN])
    assert "1 times a spent refresh token was sent again without excuse." in found.broken
    assert found.counts["reuse detections otherwise"] == 1
    assert "1 sign-ins were lost without an excuse." in found.broken


def test_a_token_that_was_served_unsaved_is_excused_only_if_its_process_reported_it() -> None:
    """It was used, and its process was killed while the store did not accept it."""
    story = [*KILLED_IN_THE_WINDOW, event_log.Used("a2"), *REPLAYED, *SIGNED_IN]
    assert "without excuse" in broken(*story)
    found = verdict.examine([event_log.Unsaved("1.1"), *story])
    assert (found.broken, found.by_kind["reuse detections"]) == ([], Counter({verdict.UNSAVED: 1}))


def test_a_withheld_response_excuses_the_reuse() -> None:
    """--lose-responses: the provider has rotated and not answered."""
    redeemed = event_log.Redeemed(1, "1.1", "r1", "r2", "a2", withheld=True)
    story = [event_log.Arrived(1, "1.1", "r1"), redeemed, event_log.Answered(1), *REPLAYED, *SIGNED_IN]
    assert verdict.examine(story).by_kind["sign-ins lost"] == Counter({verdict.WITHHELD: 1})
    assert broken(*story) == ""


def test_a_timeout_excuses_the_reuse_of_that_request_only() -> None:
    """The client had disconnected before the response was ready."""
    redeemed = event_log.Redeemed(1, "1.1", "r1", "r2", "a2")
    story = [event_log.Arrived(1, "1.1", "r1"), redeemed, event_log.Answered(1), *REPLAYED, *SIGNED_IN]
    assert broken(event_log.TimedOut(1), *story) == ""
    assert "without excuse" in broken(event_log.TimedOut(2), *story)


@pytest.mark.parametrize(
    "errors", [[], [event_log.SignInRequired("2.1", "TokenUnavailable")]], ids=["nothing", "try later"]
)
def test_a_reuse_without_a_clear_sign_in_error_is_found(errors: list[Entry]) -> None:
    """An excused reuse must still end in "sign in again"."""
    story = [
        *KILLED_IN_THE_WINDOW,
        *REPLAYED,
        *errors,
        event_log.SignedIn("r1"),
        event_log.SignInRequired("2.1", "GrantRejected"),
    ]
    assert "not followed by a clear" in broken(*story)


def test_two_token_requests_at_once_are_found() -> None:
    """The second comes before the first is answered."""
    both = [
        event_log.Arrived(1, "1.1", "r1"),
        event_log.Arrived(2, "2.1", "r1"),
        event_log.Answered(1),
        event_log.Answered(2),
    ]
    assert "2 token requests were under way at once." in broken(*both)
    assert broken(both[0], event_log.Disconnected(1), *both[1:]) == ""
    assert broken(both[0], event_log.Answered(1), both[1], event_log.Answered(2)) == ""


def test_a_token_request_that_overlaps_a_killed_clients_is_found() -> None:
    """It is not a second holder, but it came too early."""
    found = broken(
        event_log.Arrived(1, "1.1", "r1"),
        event_log.Killed("1.1", "kill late"),
        event_log.Reaped("1.1", "r1"),
        event_log.Arrived(2, "2.1", "r1"),
    )
    assert found == "1 token requests came while that of a killed client was still worked on."


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (event_log.Corrupt("It is not msgpack."), "The record could not be read 1 times: It is not msgpack."),
        (event_log.Leaked("Held."), "The key was still claimed when all workers had ended: Held."),
        (event_log.Exited("1.1", "Traceback"), "1 workers ended by themselves: Traceback"),
        (event_log.NotRecovered("1.1"), "1 workers got no new token after chaos had ended."),
        (event_log.Unauthorized("1.1", "expired"), "1 times a caller got a 401 without an explanation."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Entry) else "",
)
def test_each_other_broken_promise_is_found(entry: Entry, sentence: str) -> None:
    """One entry is enough."""
    assert broken(*REFRESH, entry) == sentence


def test_a_401_that_chaos_explains_breaks_no_promise() -> None:
    found = verdict.examine([*REFRESH, event_log.Unauthorized("1.1", "revoked early")])
    assert (found.broken, found.counts["401s that callers got, explained"]) == ([], 1)


def test_a_sign_in_may_be_lost_to_two_lost_attempts_and_not_to_one() -> None:
    """A refresh token is sent once more after a lost response, and never again."""
    end = [event_log.SignInRequired("2.1", "GrantLost"), event_log.SignedIn("r1")]
    assert broken(*lost("1.1", 1), *lost("2.1", 2), *end) == ""
    assert broken(*lost("1.1", 1), *end) == "1 sign-ins were lost without an excuse."


def test_a_holder_that_was_killed_counts_as_a_lost_attempt() -> None:
    """It may have sent the request."""
    killed = [
        event_log.Claimed("2.1", "r1"),
        event_log.Killed("2.1", "at random"),
        event_log.Reaped("2.1", "r1"),
    ]
    end = [event_log.SignInRequired("3.1", "GrantLost"), event_log.SignedIn("r1")]
    assert broken(*lost("1.1", 1), *killed, *end) == ""
    released = [killed[0], event_log.Released("2.1"), *killed[1:]]
    assert broken(*lost("1.1", 1), *released, *end) == "1 sign-ins were lost without an excuse."


def test_a_second_replay_is_found() -> None:
    twice = [*lost("1.1", 1), *lost("2.1", 2)]
    assert broken(*twice) == ""
    assert "sent 3 times without a response" in broken(*twice, *lost("3.1", 3))


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
