"""The refresh transaction against everything that can happen, in any order, found by hypothesis.

Several processes share one grant. Each step of each of them waits until the machine decides what becomes
of it: it works, it fails, it works and the answer is lost, or the process is killed there. Leases lapse,
clocks are wrong, people sign in and out. After every step the invariants are checked against the
provider's own books; at the end the faults stop, and everybody must get a token, or a clear request to
sign in. The real `ManagedSource` and `transaction.py` run in it.

    MODEL_EXAMPLES=5000 .venv/bin/pytest tests/model       # so many histories, other ones each time
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import pytest
from _machine import RefreshMachine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test as play

EXAMPLES = os.environ.get("MODEL_EXAMPLES")

HISTORIES = settings(
    max_examples=int(EXAMPLES or 100),
    derandomize=EXAMPLES is None,
    stateful_step_count=60,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # the story that comes with a failure says more than a shorter one
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.fixture(autouse=True)
def no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of refreshes that go wrong need not be told."""
    caplog.set_level(logging.CRITICAL + 1, "tokensession")


def test_f01_f08_f12_f17_f20_f21_f41_no_order_of_events_loses_a_sign_in() -> None:
    """Killed, cut off, signed out or unlucky: no token is lost, none is sent twice, and all ends well."""
    RefreshMachine.reached.clear()
    play(RefreshMachine, settings=HISTORIES)
    print(dict(RefreshMachine.reached))
    assert all(RefreshMachine.reached.values()), "the model does not get to where it hurts"


def both_refresh_at_once(m: RefreshMachine) -> None:
    m.gets_as_far_as(0, "send")
    m.gets_as_far_as(1, "send")
    m.everybody_goes_on(6)


def somebody_signs_out_as_a_refresh_is_saved(m: RefreshMachine) -> None:
    m.gets_as_far_as(0, "commit")
    m.somebody_signs("out", 1)
    m.a_process_goes_on(1, 2)
    m.a_process_goes_on(0, 2)


def a_holder_is_killed_with_the_new_token_in_its_hands(m: RefreshMachine) -> None:
    m.trouble_comes_in_mid_refresh(0, "commit", 6, True)
    m.gets_as_far_as(1, "claim")
    m.everybody_goes_on(2)
    m.time_goes_by(2.0)
    m.everybody_goes_on(6)


def an_answer_is_lost(m: RefreshMachine) -> None:
    m.trouble_comes_in_mid_refresh(0, "reply", 0, True)
    m.everybody_goes_on(2)
    m.gets_as_far_as(1, "reply")


def a_holder_is_taken_for_dead_before_it_saves(m: RefreshMachine) -> None:
    m.gets_as_far_as(0, "commit")
    m.everybody_goes_on(3)
    m.gets_as_far_as(0, "commit", spent=True)
    m.a_lease_lapses()
    m.gets_as_far_as(1, "claim")
    m.a_process_goes_on(1, 1)
    m.time_goes_by(2.0)
    m.a_process_goes_on(1, 1)
    m.a_process_goes_on(0, 3)


def a_request_of_the_dead_arrives_late(m: RefreshMachine) -> None:
    m.trouble_comes_in_mid_refresh(0, "send", 6, True)
    m.gets_as_far_as(1, "claim")
    m.a_process_goes_on(1, 8)
    if m.world.wire:
        m.something_lands_late()
    m.time_goes_by(2.0)
    m.everybody_goes_on(6)


STORIES = {
    "claims exclude nobody": both_refresh_at_once,
    "commits compare nothing": somebody_signs_out_as_a_refresh_is_saved,
    "a killed holder is not told of": a_holder_is_killed_with_the_new_token_in_its_hands,
    "a note is not stored": an_answer_is_lost,
    "a late token gives way to a note": a_holder_is_taken_for_dead_before_it_saves,
    "nobody waits for the requests of the dead": a_request_of_the_dead_arrives_late,
}


def told(story: Callable[[RefreshMachine], None], wrong: frozenset[str]) -> None:
    """Play a story to its end, and look at it after each of its steps."""

    class Watched(RefreshMachine):
        flaws = wrong

        def _do(self, act: Callable[[], Any]) -> None:
            super()._do(act)
            self.what_must_hold()

    machine = Watched()
    try:
        story(machine)
    finally:
        machine.teardown()


@pytest.mark.parametrize("flaw", STORIES)
def test_a_story_that_ends_well_does_not_if_there_is_a_flaw(flaw: str) -> None:
    """Each promise of the store and of the refresh is needed, and that it is broken is noticed."""
    told(STORIES[flaw], frozenset())
    with pytest.raises(AssertionError, match="This is how it came to it"):
        told(STORIES[flaw], frozenset({flaw}))
