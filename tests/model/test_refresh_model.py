"""The refresh against everything that can happen, in any order that hypothesis finds.

Several processes share one sign-in. Each step of a process waits until the machine decides how it ends: it
works, it fails, it works and the response is lost, or the process is killed there. Answers come late, leases
lapse, clocks are wrong, records disappear or go back, people sign in and out, another provider uses the same
key. After every step the promises are checked against what only the model knows. At the end the faults stop,
and every process must get a token, or an error that asks for a person and has a reason. If the newest refresh
token is still there, no person may be asked. The real `ManagedSource` and everything below it run in it.

    MODEL_EXAMPLES=5000 .venv/bin/pytest tests/model       # 5,000 histories, new ones each time
"""

from __future__ import annotations

import logging
import os

import pytest
from _flaws import FLAWS, Patch
from _machine import RefreshMachine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test as play

EXAMPLES = os.environ.get("MODEL_EXAMPLES")
FOUND_WITHIN = 2000
"""Most flaws are found in the first 20 histories, the rarest after some hundred."""
SHRINKS = [Phase.shrink] if os.environ.get("MODEL_SHRINKS") else []

HISTORIES = settings(
    max_examples=100,
    derandomize=True,
    stateful_step_count=60,
    deadline=None,
    database=None,
    phases=[Phase.generate, *SHRINKS],  # a failure prints its story, which says more than a shrunk example
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Do not log thousands of failed refreshes."""
    caplog.set_level(logging.CRITICAL + 1, "tokensession")


def test_f01_f08_f12_f17_f20_f21_f41_no_order_of_events_loses_a_sign_in() -> None:
    """Whatever is killed, lost, late or deleted: no healthy sign-in is lost, and no spent token is sent."""
    RefreshMachine.reached.clear()
    more = settings(HISTORIES, max_examples=int(EXAMPLES or 100), derandomize=not EXAMPLES)
    play(RefreshMachine, settings=more)
    print(dict(RefreshMachine.reached))
    missing = [each for each in REACHED if not RefreshMachine.reached[each]]
    assert not missing or int(EXAMPLES or 0) < 1000, f"the model has not reached {missing}"


REACHED = [
    "token requests",
    "unknown outcomes",
    "rejections",
    "reuse detected",
    "late answers",
    "claims that never ended",
    "losses of data",
    "tokens with a problem",
    "requests that arrived late",
    "writes that failed",
    "healthy at the end",
    "Refreshed",
    "Adopted",
    "RefreshHeld",
    "Restored",
    "SignedIn",
    "SignOutStored",
    "GrantRejected",
    "GrantLost",
    "ConfigurationError",
]


@pytest.mark.parametrize("flaw", FLAWS, ids=lambda flaw: flaw.__name__)
def test_each_flaw_is_found(flaw: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each promise of the store and the refresh is needed: the model notices if one is broken."""
    flaw(monkeypatch)
    with pytest.raises(AssertionError, match="The events that led to this"):
        play(RefreshMachine, settings=settings(HISTORIES, max_examples=FOUND_WITHIN))
