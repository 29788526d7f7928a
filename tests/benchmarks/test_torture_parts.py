"""The parts of the torture that judge nothing, and on which the judgement rests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import _torture_runs  # noqa: F401 - makes `benchmarks` importable

from benchmarks.torture import event_log
from benchmarks.torture.chaos import AIMED, Ordeals, timetable
from benchmarks.torture.plan import KEY, Plan
from benchmarks.torture.watch import Watch, gone
from tokensession import Token
from tokensession._refresh.state import Attempt, Rejection, TokenState, encode
from tokensession.stores import FileStore, Record
from tokensession.token import fingerprint

PLAN = Plan(store="memory:", seed=1, seconds=600)
GRANT = TokenState(token=Token("a1", obtained_at=0.0, lifetime=3.0, refresh_token="r1"))


def test_the_same_seed_does_the_same_at_the_same_moments() -> None:
    """And another does something else; in ten minutes there is some of everything."""
    acts = list(timetable(PLAN))
    assert acts == list(timetable(PLAN))
    assert acts != list(timetable(replace(PLAN, seed=2)))
    assert {act.what for act in acts} == {*AIMED, "kill", "stop", "step", "revoke"}
    assert [act.at for act in acts] == sorted(act.at for act in acts)


def test_an_ordeal_meets_one_token_request() -> None:
    """None of a kind waits twice, and what is cleared never comes."""
    ordeals = Ordeals()
    act = next(act for act in timetable(PLAN) if act.what in AIMED)
    ordeals.aim(replace(act, who=1.0))  # one that does not spare the next request
    ordeals.aim(act)
    assert ordeals.next() == replace(act, who=1.0)
    assert ordeals.next() is None
    ordeals.aim(act)
    ordeals.clear()
    assert ordeals.next() is None


def test_a_key_that_is_still_claimed_is_a_leaked_lock(tmp_path: Path) -> None:
    """The watch does not wait for it, and a free key is none."""

    async def scene() -> list[event_log.Entry]:
        log, holder, own = (
            event_log.EventLog(),
            FileStore(tmp_path / "tokens"),
            FileStore(tmp_path / "tokens"),
        )
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

    assert [type(entry) for entry in asyncio.run(scene())] == [event_log.Leaked]


def test_a_record_that_cannot_be_decoded_is_found(tmp_path: Path) -> None:
    """Whole bytes are a sound record to the store; what they mean is looked at too."""

    async def scene() -> tuple[list[event_log.Entry], str | None]:
        log, store = event_log.EventLog(), FileStore(tmp_path / "tokens")
        watch = Watch(store, log)
        await store.put(KEY, encode(GRANT))
        stored = await watch.stored()
        await store.put(KEY, encode(GRANT)[:-1])
        await watch.look()
        await store.aclose()
        return log.entries, stored

    entries, stored = asyncio.run(scene())
    assert stored == fingerprint("r1")
    assert [type(entry) for entry in entries] == [event_log.Stored, event_log.Corrupt]


def test_a_grant_is_gone_when_its_record_says_so() -> None:
    """Refused, or replayed in vain; and only for the credential that counts."""
    name = fingerprint("r1")
    assert gone(None, "seed") is None
    assert gone(GRANT, "seed") is None
    assert gone(replace(GRANT, rejection=Rejection(name, "invalid_grant")), "seed") == name
    assert gone(replace(GRANT, rejection=Rejection("another", "invalid_grant")), "seed") is None
    assert gone(replace(GRANT, attempt=Attempt(name, 0.0)), "seed") is None
    assert gone(replace(GRANT, attempt=Attempt(name, 0.0, replays=1)), "seed") == name
    assert gone(TokenState(rejection=Rejection("seed", "invalid_grant")), "seed") == "seed"
