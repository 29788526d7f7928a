"""The verdict, the numbers and the display, without a process."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from tokensession.cli.display import Display, LiveDisplay, PlainDisplay
from tokensession.cli.latency import Latencies
from tokensession.cli.report import Plan, Progress, Report, Row, as_json, problems

PLAN = Plan(expiries=6)
GOOD = Row(requests=100, expiries=6, token_requests=6, p50=1.5, p99=9.0)
BAD = Row(requests=100, failures=80, expiries=2, token_requests=300, reuse_detections=1, p50=1, p99=2)


def report(**changed: Row) -> Report:
    shared = {"oto": GOOD, "priava": GOOD} | changed
    numbers = {"shared": shared, "baseline": {"oto": BAD, "priava": BAD}}
    return Report(PLAN, numbers, {"shared": 8.0, "baseline": 5.0}, 15.0)


@pytest.mark.parametrize("row", [GOOD, replace(GOOD, expiries=7, token_requests=7)])
def test_one_request_for_each_of_the_planned_expiries_or_more_is_no_problem(row: Row) -> None:
    assert problems(report(oto=row)) == []


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (replace(GOOD, token_requests=7), "priava: 7 token requests for 6 expiries."),
        (replace(GOOD, token_requests=5), "priava: 5 token requests for 6 expiries."),
        (
            replace(GOOD, failures=3, reasons=(("ClientError", 2), ("status 401", 1))),
            "priava: 3 requests failed (2 ClientError, 1 status 401).",
        ),
        (replace(GOOD, reuse_detections=1), "priava: a spent refresh token was sent again."),
        (replace(GOOD, invalid_requests=2), "priava: 2 token requests were invalid."),
        (replace(GOOD, requests=0), "priava: no requests were made."),
        (replace(GOOD, expiries=4, token_requests=4), "priava: only 4 of 6 expiries were reached."),
    ],
)
def test_everything_else_is_a_problem_with_a_sentence(row: Row, says: str) -> None:
    assert problems(report(priava=row)) == [says]


def test_the_json_has_the_promised_keys_and_numbers() -> None:
    document = json.loads(as_json(report()))
    assert document["oto"] == {
        "requests": 100,
        "failures": 0,
        "expiries": 6,
        "token_requests": 6,
        "reuse_detections": 0,
        "latency_ms": {"p50": 1.5, "p99": 9.0},
    }
    assert document["baseline"]["priava"]["reuse_detections"] == 1
    assert document["run"] == {
        "processes": 4,
        "tasks": 800,
        "lifetime": 2,
        "load_seconds": {"shared": 8.0, "baseline": 5.0},
        "seconds": 15.0,
    }
    assert document["problems"] == []


def test_the_numbers_of_all_processes_and_servers_are_added_up() -> None:
    def tally(*seconds: float, **reasons: int) -> dict[str, object]:
        latencies = Latencies()
        for one in seconds:
            latencies.add(one)
        return {"requests": len(seconds), "reasons": reasons, "latencies": latencies.bins()}

    progress = Progress()
    assert progress.expiries("shared") == 0
    progress.tallies["shared", 0] = {"oto": tally(0.001)}
    progress.tallies["shared", 0] = {"oto": tally(0.001, 0.001), "priava": tally()}
    progress.tallies["shared", 1] = {"oto": tally(0.1, Boom=1)}
    progress.tallies["baseline", 1] = {"oto": tally(5.0)}
    progress.servers = {"shared": {"oto": {"expiries": 3, "token_requests": 4}, "priava": {"expiries": 2}}}
    row = progress.rows()["shared"]["oto"]
    assert (row.requests, row.failures, row.expiries, row.token_requests) == (3, 1, 3, 4)
    assert row.reasons == (("Boom", 1),)
    assert row.p50 == pytest.approx(1.0, rel=0.02)
    assert row.p99 == pytest.approx(100.0, rel=0.02)
    assert progress.expiries("shared") == 2
    assert progress.rows()["baseline"]["oto"].requests == 1


def test_latencies_without_a_request_are_zero_and_the_smallest_do_not_fail() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.99) == 0.0
    latencies.add(0.0)
    assert latencies.quantile(0.5) == pytest.approx(0.001, rel=0.02)


def test_the_plain_display_prints_a_line_per_second_without_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = PlainDisplay()
    display.begin(PLAN)
    for seconds in (0.0, 0.5, 0.9, 1.1, 1.2):
        display.update("shared", seconds, report().rows)
    display.end(report(oto=replace(GOOD, token_requests=9)))
    out = capsys.readouterr().out
    assert out.count("\ntokensession  ") == 2
    assert "oto: 9 token requests for 6 expiries." in out
    assert "\x1b" not in out


def test_the_live_display_shows_the_table_and_ends_with_the_verdict() -> None:
    output = io.StringIO()
    display = LiveDisplay(Console(file=output, force_terminal=True, width=100, highlight=False))
    display.begin(PLAN)
    display.update("baseline", 1.5, report().rows)
    assert "every task for itself: 1.5 s" in output.getvalue()
    display.end(report())
    assert "\x1b" in output.getvalue()
    assert "Every expiry took one token request" in output.getvalue()


def test_a_silent_display_and_an_interrupted_one_print_nothing_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    silent = Display()
    silent.begin(PLAN)
    silent.update("shared", 1.0, report().rows)
    silent.end(report())
    assert capsys.readouterr().out == ""
    plain = PlainDisplay()
    plain.begin(PLAN)
    capsys.readouterr()
    plain.end(None)
    assert capsys.readouterr().out == ""
