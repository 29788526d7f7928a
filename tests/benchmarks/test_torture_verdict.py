"""The verdict on the event log: every broken promise is found, and every excuse is checked."""

from __future__ import annotations

from collections import Counter

import _torture_runs  # noqa: F401 - makes `benchmarks` importable
import pytest

from benchmarks.torture import event_log, excuses, verdict
from benchmarks.torture.event_log import Entry
from benchmarks.torture.plan import Plan
from benchmarks.torture.report import Report
from tokensession.testing import ServerStats

REFRESH = [  # one refresh that goes well: r1 for r2
    event_log.Claimed("1.1"),
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
    event_log.Claimed("1.1"),
    event_log.Sent("1.1", "r1"),
    event_log.Arrived(1, "1.1", "r1"),
    event_log.Redeemed(1, "1.1", "r1", "r2", "a2"),
    event_log.Killed("1.1", "kill rotated"),
    event_log.Reaped("1.1", "r1"),
    event_log.Answered(1),
]

REPLAYED = [
    event_log.Claimed("2.1"),
    event_log.Sent("2.1", "r1"),
    event_log.Arrived(2, "2.1", "r1"),
    event_log.Reused(2, "2.1", "r1"),
    event_log.Answered(2),
    event_log.Finished("2.1", "r1", 400),
]

SIGNED_IN = [event_log.SignInRequired("2.1", "GrantRejected"), event_log.SignedIn(1, 0, "r2")]


def broken(*entries: Entry) -> str:
    return "\n".join(verdict.examine(entries).broken)


def without(entries: list[Entry], kind: type[Entry]) -> list[Entry]:
    return [entry for entry in entries if not isinstance(entry, kind)]


def test_a_run_without_accidents_breaks_no_promise() -> None:
    assert broken(*REFRESH) == ""


# -- spent refresh tokens that come again ---------------------------------------------------------------


def test_a_kill_between_rotation_and_save_excuses_the_reuse() -> None:
    """The reuse and the sign-in that it costs are counted with this reason."""
    found = verdict.examine([*KILLED_IN_THE_WINDOW, *REPLAYED, *SIGNED_IN])
    assert found.broken == []
    assert found.by_kind["reuse detections"] == Counter({excuses.WINDOW: 1})
    assert found.by_kind["sign-ins lost"] == Counter({excuses.WINDOW: 1})


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
        pytest.param(
            [*REFRESH, event_log.Deleted(), event_log.Seen("2.1", "r2"), *REPLAYED],
            id="the record was deleted, and the sender knew the successor",
        ),
        pytest.param(
            [
                *REFRESH,
                event_log.Redeemed(3, "3.1", "r2", "r3", "a3"),
                event_log.Seen("2.1", "r3"),
                event_log.PutBack("r1", "a1"),
                *REPLAYED,
            ],
            id="an older record was put back, and the sender knew a later successor",
        ),
        pytest.param(
            [
                *without(REFRESH, event_log.Stored),
                event_log.PutBack("r1", "a1"),
                *REPLAYED,
            ],
            id="an older record was put back before the successor was stored",
        ),
        pytest.param([event_log.Deleted(), *REFRESH, *REPLAYED], id="the record was deleted before"),
    ],
)
def test_a_reuse_without_an_excuse_is_found(story: list[Entry]) -> None:
    """Each of these lacks one part of the excuse."""
    found = verdict.examine([*story, *SIGNED_IN])
    assert found.promises["reuse detections without excuse"] == 1
    assert found.promises["sign-ins lost without excuse"] == 1
    assert "reuse detections without excuse: 1" in found.broken


def test_a_token_that_was_served_unsaved_is_excused_only_if_its_process_reported_it() -> None:
    """It was used, and its process was killed while the store did not accept it."""
    story = [*KILLED_IN_THE_WINDOW, event_log.Used("a2"), *REPLAYED, *SIGNED_IN]
    assert "without excuse" in broken(*story)
    found = verdict.examine([event_log.Unsaved("1.1"), *story])
    assert (found.broken, found.by_kind["reuse detections"]) == ([], Counter({excuses.UNSAVED: 1}))


@pytest.mark.parametrize("back", [event_log.Deleted(), event_log.PutBack("r1", "a1")], ids=repr)
@pytest.mark.parametrize("others_live", [True, False])
def test_a_store_that_went_back_excuses_a_sender_that_never_knew_the_successor(
    back: Entry, others_live: bool
) -> None:
    """Whether another living process knew it is told apart."""
    known = [event_log.Seen("1.1", "r2"), back]
    end = [] if others_live else [event_log.Killed("1.1", "at random"), event_log.Reaped("1.1", "r1")]
    found = verdict.examine([*REFRESH, *known, *end, *REPLAYED, *SIGNED_IN])
    assert found.broken == []
    kind = excuses.UNSEEN if others_live else excuses.GONE
    assert found.by_kind["sign-ins lost"] == Counter({kind: 1})


def test_a_response_that_a_fault_has_lost_excuses_the_reuse_of_that_request_only() -> None:
    """And not if the provider accepts the refresh token once more."""
    story = [*without(REFRESH, event_log.Finished), *REPLAYED, *SIGNED_IN]
    found = verdict.examine([event_log.Lost(1, repeatable=False), *story])
    assert (found.broken, found.by_kind["sign-ins lost"]) == ([], Counter({excuses.LOST: 1}))
    assert "without excuse" in broken(event_log.Lost(2, repeatable=False), *story)
    assert "without excuse" in broken(event_log.Lost(1, repeatable=True), *story)


@pytest.mark.parametrize(
    "errors", [[], [event_log.SignInRequired("2.1", "TokenUnavailable")]], ids=["nothing", "try later"]
)
def test_a_reuse_without_a_clear_sign_in_error_is_found(errors: list[Entry]) -> None:
    """An excused reuse must still end in "sign in again"."""
    story = [
        *KILLED_IN_THE_WINDOW,
        *REPLAYED,
        *errors,
        event_log.SignedIn(1, 0, "r2"),
        event_log.SignInRequired("2.1", "GrantRejected"),
    ]
    assert broken(*story) == "reuse detections without a sign-in error: 1"


def test_a_sign_in_error_that_repeats_an_earlier_one_tells_of_the_reuse() -> None:
    """A process that has had no token since an earlier loss. It is not told so anew for what it knows."""
    repeated = event_log.SignInRequired("2.1", "GrantRejected", repeated=True)
    assert broken(*KILLED_IN_THE_WINDOW, *REPLAYED, repeated, event_log.SignedIn(1, 0, "r2")) == ""
    assert broken(*REFRESH, event_log.Seen("2.1", "r2"), repeated) == ""


# -- lost sign-ins ----------------------------------------------------------------------------------------


def test_a_sign_in_that_no_living_process_knows_is_excused_only_if_its_processes_were_killed() -> None:
    """The provider has not revoked it: the record was deleted, and those who remembered it were killed."""
    story = [*REFRESH, event_log.Seen("1.1", "r2"), event_log.Deleted()]
    killed = [event_log.Killed("1.1", "at random"), event_log.Reaped("1.1", None)]
    found = verdict.examine([*story, *killed, *SIGNED_IN])
    assert (found.broken, found.by_kind["sign-ins lost"]) == ([], Counter({excuses.GONE: 1}))
    assert broken(*story, *SIGNED_IN) == "sign-ins lost without excuse: 1"


def test_a_process_that_is_told_to_sign_in_while_it_knows_a_healthy_sign_in_is_found() -> None:
    """Not one that knows an older sign-in, or whose sign-in is revoked."""
    required = event_log.SignInRequired("1.1", "GrantRejected")
    healthy = [*REFRESH, event_log.Seen("1.1", "r2")]
    assert "told to sign in" in broken(*healthy, required)
    assert broken(*healthy, event_log.SignedIn(1, 0, "r2"), required) == "sign-ins lost without excuse: 1"
    assert "told to sign in" not in broken(*healthy, *REPLAYED, required)
    assert broken(*REFRESH, required) == ""


@pytest.mark.parametrize(
    "act", [event_log.Sent("2.1", "r1"), event_log.SignInRequired("2.1", "GrantLost")], ids=repr
)
def test_a_process_that_follows_the_store_back_is_found(act: Entry) -> None:
    """It must write back what it knows first."""
    story = [
        *REFRESH,
        event_log.Seen("2.1", "r2"),
        event_log.PutBack("r1", "a1"),
        event_log.Seen("2.1", "r1"),
    ]
    assert "processes that followed the store back: 1: 2.1" in broken(*story, act)
    assert "followed" not in broken(*story, event_log.Seen("2.1", "r2"), act)


# -- token requests ---------------------------------------------------------------------------------------


def test_two_token_requests_at_once_are_found() -> None:
    """The second comes before the first is answered. One whose client has gone does not count."""
    both = [
        event_log.Arrived(1, "1.1", "r1"),
        event_log.Arrived(2, "2.1", "r1"),
        event_log.Answered(1),
        event_log.Answered(2),
    ]
    assert "concurrent token requests, at most: 2" in broken(*both)
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
    assert found == "token requests that met a dead client's: 1"


def test_the_token_requests_of_an_outage_are_counted_together() -> None:
    """Those before and after it do not count. Each kill allows one more."""
    requests = [event_log.Arrived(number, f"{number}.1", "r1") for number in range(1, 6)]
    answered = [event_log.Answered(number) for number in range(1, 6)]
    exchanges = [entry for pair in zip(requests, answered, strict=True) for entry in pair]
    began, ended = event_log.OutageBegan("503"), event_log.OutageEnded(4.0, 3)
    story = [*exchanges[:2], began, *exchanges[2:8], ended, *exchanges[8:]]
    found = verdict.examine(story)
    assert (found.broken, found.counts["token requests in outages"]) == ([], 3)
    more = [began, *exchanges[:8], ended]
    assert broken(*more) == "outages with too many token requests: 1: 4 in 4.0 s, and 3 are allowed"
    assert broken(began, event_log.Killed("9.1", "at random"), *more[1:]) == ""


def test_repetitions_after_lost_responses_are_counted() -> None:
    """By an error, or by a kill."""

    def sent(worker: str, *ends: Entry) -> list[Entry]:
        return [event_log.Sent(worker, "r1"), *ends]

    lost = event_log.Finished("1.1", "r1", "OutcomeUnknown")
    killed = [event_log.Killed("2.1", "at random"), event_log.Reaped("2.1", "r1")]
    failed = event_log.Finished("3.1", "r1", 500)
    found = verdict.examine([*sent("1.1", lost), *sent("2.1", *killed), *sent("3.1", failed)])
    assert found.counts["repetitions after a lost response"] == 2
    assert found.counts["lost responses to one refresh token, at most"] == 2


# -- everything else --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (event_log.Corrupt("It is not msgpack."), "corrupt records: 1: It is not msgpack."),
        (event_log.Leaked("Held."), "leaked locks: 1: Held."),
        (event_log.Exited("1.1", "Traceback"), "workers that ended by themselves: 1: Traceback"),
        (event_log.NotRecovered("1.1"), "workers that did not recover: 1: 1.1"),
        (event_log.Unauthorized("1.1", "expired"), "401s that callers got without explanation: 1: expired"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Entry) else "",
)
def test_each_other_broken_promise_is_found(entry: Entry, sentence: str) -> None:
    """One entry is enough."""
    assert broken(*REFRESH, entry) == sentence


def test_a_401_that_chaos_explains_breaks_no_promise() -> None:
    found = verdict.examine([*REFRESH, event_log.Unauthorized("1.1", "revoked early")])
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
