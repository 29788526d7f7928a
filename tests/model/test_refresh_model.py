"""The refresh transaction against everything that can happen, in any order that hypothesis finds.

Several processes share one sign-in. Each step of a process waits until the machine decides how it ends: it
works, it fails, it works and the response is lost, or the process is killed there. Leases lapse, clocks are
wrong, people sign in and out. After every step the invariants are checked against the provider's own
records. At the end the faults stop, and every process must get a token, or an error that says to sign in.
The real `ManagedSource` and `transaction.py` run in it.

    MODEL_EXAMPLES=5000 .venv/bin/pytest tests/model       # 5,000 histories, new ones each time
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
    phases=[Phase.generate],  # a failure prints its story, which says more than a shrunk example
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.fixture(autouse=True)
def no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Do not log thousands of failed refreshes."""
    caplog.set_level(logging.CRITICAL + 1, "tokensession")


def test_f01_f08_f12_f17_f20_f21_f41_no_order_of_events_loses_a_sign_in() -> None:
    """Whatever is killed or lost, received tokens are stored, and refresh tokens replayed at most once."""
    RefreshMachine.reached.clear()
    play(RefreshMachine, settings=HISTORIES)
    print(dict(RefreshMachine.reached))
    assert all(RefreshMachine.reached.values()), "the model has not reached everything that it counts"


def both_refresh_at_once(m: RefreshMachine) -> None:
    m.refreshes_up_to(0, "send")
    m.refreshes_up_to(1, "send")
    m.all_processes_continue(6)


def a_person_signs_out_while_a_refresh_is_saved(m: RefreshMachine) -> None:
    m.refreshes_up_to(0, "commit")
    m.a_person_signs("out", 1)
    m.a_process_continues(1, 2)
    m.a_process_continues(0, 2)


def a_holder_is_killed_before_it_saves_the_new_token(m: RefreshMachine) -> None:
    m.a_fault_hits_a_refresh(0, "commit", 6, True)
    m.refreshes_up_to(1, "claim")
    m.all_processes_continue(2)
    m.time_passes(2.0)
    m.all_processes_continue(6)


def a_response_is_lost(m: RefreshMachine) -> None:
    m.a_fault_hits_a_refresh(0, "response", 0, True)
    m.all_processes_continue(2)
    m.refreshes_up_to(1, "response")


def a_lease_lapses_before_its_holder_saves(m: RefreshMachine) -> None:
    m.refreshes_up_to(0, "commit")
    m.all_processes_continue(3)
    m.refreshes_up_to(0, "commit", spent=True)
    m.a_lease_lapses()
    m.refreshes_up_to(1, "claim")
    m.a_process_continues(1, 1)
    m.time_passes(2.0)
    m.a_process_continues(1, 1)
    m.a_process_continues(0, 3)


def a_request_of_a_killed_process_arrives_late(m: RefreshMachine) -> None:
    m.a_fault_hits_a_refresh(0, "send", 6, True)
    m.refreshes_up_to(1, "claim")
    m.a_process_continues(1, 8)
    if m.world.wire:
        m.a_request_or_write_arrives_late()
    m.time_passes(2.0)
    m.all_processes_continue(6)


STORIES = {
    "claims are not exclusive": both_refresh_at_once,
    "commits compare nothing": a_person_signs_out_while_a_refresh_is_saved,
    "a killed holder leaves no mark": a_holder_is_killed_before_it_saves_the_new_token,
    "a note is not stored": a_response_is_lost,
    "a late token gives way to a note": a_lease_lapses_before_its_holder_saves,
    "no wait for requests of killed processes": a_request_of_a_killed_process_arrives_late,
}


def play_story(story: Callable[[RefreshMachine], None], deliberate: frozenset[str]) -> None:
    """Play a story to its end, and check the invariants after each step."""

    class CheckedMachine(RefreshMachine):
        flaws = deliberate

        def _do(self, act: Callable[[], Any]) -> None:
            super()._do(act)
            self.what_must_hold()

    machine = CheckedMachine()
    try:
        story(machine)
    finally:
        machine.teardown()


@pytest.mark.parametrize("flaw", STORIES)
def test_each_flaw_is_found_by_its_story(flaw: str) -> None:
    """Each promise of the store and the refresh is needed, and a broken one is found."""
    play_story(STORIES[flaw], frozenset())
    with pytest.raises(AssertionError, match="The events that led to this"):
        play_story(STORIES[flaw], frozenset({flaw}))
