"""The parts of the torture that the verdict relies on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import _torture_runs  # noqa: F401 - makes `benchmarks` importable
import anyio

from benchmarks.torture import event_log
from benchmarks.torture.chaos import AIMED, AimedActs, timetable
from benchmarks.torture.plan import KEY, Plan
from benchmarks.torture.watch import Watch, lost_credential
from tokensession import Token
from tokensession._refresh.state import Attempt, Rejection, TokenState, encode
from tokensession.stores import FileStore, Record
from tokensession.token import fingerprint

PLAN = Plan(store="memory:", seed=1, seconds=600)
STATE = TokenState(token=Token("a1", obtained_at=0.0, lifetime=3.0, refresh_token="r1"))


def test_the_same_seed_does_the_same_at_the_same_moments() -> None:
    """Another seed does something else, and ten minutes have some of everything."""
    acts = list(timetable(PLAN))
    assert acts == list(timetable(PLAN))
    assert acts != list(timetable(replace(PLAN, seed=2)))
    assert {act.what for act in acts} == {*AIMED, "kill", "stop", "step", "revoke"}
    assert [act.at for act in acts] == sorted(act.at for act in acts)


def test_an_aimed_act_hits_one_token_request() -> None:
    """At most one of a kind waits, and cleared acts never happen."""
    acts = AimedActs()
    act = next(act for act in timetable(PLAN) if act.what in AIMED)
    acts.aim(replace(act, which=1.0))  # one that does not spare the next request
    acts.aim(act)
    assert acts.next() == replace(act, which=1.0)
    assert acts.next() is None
    acts.aim(act)
    acts.clear()
    assert acts.next() is None


def test_a_key_that_is_still_claimed_is_a_leaked_lock(tmp_path: Path) -> None:
    """The watch does not wait for it, and does not report a free key."""

    async def run() -> list[event_log.Entry]:
        log = event_log.EventLog()
        holder, own = FileStore(tmp_path / "tokens"), FileStore(tmp_path / "tokens")
        watch = Watch(own, log)
        await watch.claim()
        assert log.entries == []
        claim = await holder.claim(KEY, seen=None, timeout=0)
        assert not isinstance(claim, Record)
        await watch.claim()
        await claim.abandon()
        await holder.aclose()
        await own.aclose()
        return log.entries

    assert [type(entry) for entry in anyio.run(run)] == [event_log.Leaked]


def test_a_record_that_cannot_be_decoded_is_found(tmp_path: Path) -> None:
    """The store does not decode its bytes, so the watch does."""

    async def run() -> tuple[list[event_log.Entry], str | None]:
        log, store = event_log.EventLog(), FileStore(tmp_path / "tokens")
        watch = Watch(store, log)
        await store.put(KEY, encode(STATE))
        stored = await watch.stored()
        await store.put(KEY, encode(STATE)[:-1])
        await watch.look()
        await store.aclose()
        return log.entries, stored

    entries, stored = anyio.run(run)
    assert stored == fingerprint("r1")
    assert [type(entry) for entry in entries] == [event_log.Stored, event_log.Corrupt]


def test_a_credential_is_lost_when_its_record_says_so() -> None:
    """Rejected, or replayed already. Only the current credential counts."""
    name = fingerprint("r1")
    assert lost_credential(None, "configured") is None
    assert lost_credential(STATE, "configured") is None
    assert lost_credential(replace(STATE, rejection=Rejection(name, "invalid_grant")), "configured") == name
    assert (
        lost_credential(replace(STATE, rejection=Rejection("another", "invalid_grant")), "configured") is None
    )
    assert lost_credential(replace(STATE, attempt=Attempt(name, 0.0)), "configured") is None
    assert lost_credential(replace(STATE, attempt=Attempt(name, 0.0, replays=1)), "configured") == name
    assert (
        lost_credential(TokenState(rejection=Rejection("configured", "invalid_grant")), "configured")
        == "configured"
    )
