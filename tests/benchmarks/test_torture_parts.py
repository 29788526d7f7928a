"""The parts of the torture that the verdict relies on."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from benchmarks.torture import event_log
from benchmarks.torture.chaos import AIMED, OUTAGES, Act, AimedActs, timetable
from benchmarks.torture.event_log import Entry, EventLog
from benchmarks.torture.instrumented import WORKER
from benchmarks.torture.plan import KEY, POLICY, Plan
from benchmarks.torture.provider import Provider
from benchmarks.torture.watch import Watch
from tokensession import AiohttpTransport, OutcomeUnknown, Token
from tokensession._refresh.state import Now, TokenState, encode
from tokensession.providers import OAuth2
from tokensession.providers.protocol import Credential, TokenRequest
from tokensession.stores import FileStore, Record
from tokensession.token import fingerprint

PLAN = Plan(store="memory:", seed=1, seconds=600, latency=0.0)


def record(number: int) -> bytes:
    """A record with the refresh token rN."""
    token = Token(f"a{number}", obtained_at=0.0, lifetime=3.0, refresh_token=f"r{number}")
    return encode(TokenState(token=token), Now(0.0, 0.0))


def watched(directory: Path, work: Callable[[Watch, FileStore], Awaitable[object]]) -> list[Entry]:
    """What a watch over a file store has logged."""

    async def run() -> list[Entry]:
        log, store = EventLog(), FileStore(directory / "tokens")
        await work(Watch(store, log), store)
        await store.aclose()
        return log.entries

    return anyio.run(run)


def test_the_same_seed_does_the_same_at_the_same_moments() -> None:
    """Another seed does something else, and ten minutes have some of everything."""
    acts = list(timetable(PLAN))
    assert acts == list(timetable(PLAN))
    assert acts != list(timetable(replace(PLAN, seed=2)))
    done = {"kill", "stop", "step", "revoke", "put back", "delete", "outage"}
    assert {act.what for act in acts} == {*AIMED, *done}
    assert [act.at for act in acts] == sorted(act.at for act in acts)
    assert {act.outage for act in acts} == set(OUTAGES)


def test_a_frozen_server_answers_after_the_callers_bound_and_perhaps_never() -> None:
    """Some of the times are longer than a process listens."""
    seconds = [act.freeze_seconds for act in timetable(PLAN)]
    assert min(seconds) > POLICY.caller_timeout
    assert max(seconds) > POLICY.response_timeout


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


def test_an_outage_allows_what_one_process_sends_and_one_request_more_of_each() -> None:
    """One process sends at once, and then at most every half second."""
    few, many = replace(PLAN, processes=1), replace(PLAN, processes=8)
    assert few.allowed(0.4) == 2
    assert few.allowed(1.2) == 4
    assert many.allowed(1.2) == 3 + 8


class Unharmed:
    """A `WorkerControl` that does nothing."""

    async def kill(self, worker: str, aim: str) -> None:
        raise AssertionError(f"{worker} {aim}")

    def stop(self, worker: str, seconds: float, aim: str) -> None:
        raise AssertionError(f"{worker} {seconds} {aim}")

    def killed(self, worker: str) -> bool:
        return False


async def redeem(provider: Provider, secret: str) -> int:
    """One token request of worker 1.1: the status of its response."""
    request = OAuth2(**provider.credentials).request(Credential("refresh_token", secret))
    marked = TokenRequest(request.url, (*request.headers, (WORKER, "1.1")), request.body, request.secrets)
    response = await AiohttpTransport().send(marked, connect=5, total=5)
    return response.status


def provided(plan: Plan, acts: AimedActs, work: Callable[[Provider], Awaitable[object]]) -> list[Entry]:
    """What a provider has logged."""

    async def run() -> list[Entry]:
        log = EventLog()
        async with Provider(plan, log, acts, Unharmed()) as provider:
            await work(provider)
        return log.entries

    return anyio.run(run)


def aimed(what: str, *, coin: float = 0.0) -> AimedActs:
    acts = AimedActs()
    acts.aim(Act(0.0, what, which=1.0, much=0.0, coin=coin))
    return acts


def test_a_refresh_token_whose_response_a_fault_has_lost_is_accepted_once_more() -> None:
    """A third time is a reuse."""

    async def work(provider: Provider) -> None:
        secret = provider.refresh_token
        assert await redeem(provider, secret) == 502
        assert provider.redeemable == {fingerprint(secret), provider.newest}
        assert await redeem(provider, secret) == 200
        assert await redeem(provider, secret) == 400
        assert provider.dead

    entries = provided(PLAN, aimed("502"), work)
    first, second = (entry for entry in entries if isinstance(entry, event_log.Redeemed))
    assert (first.credential, first.number, second.number) == (second.credential, 1, 2)
    assert [entry for entry in entries if isinstance(entry, event_log.Lost)] == [event_log.Lost(1, True)]
    assert sum(isinstance(entry, event_log.Reused) for entry in entries) == 1


async def fail(provider: Provider, fault: str) -> None:
    """A token request that this fault hits."""
    if fault in ("reset", "truncate"):
        with pytest.raises(OutcomeUnknown):
            await redeem(provider, provider.refresh_token)
    else:
        assert await redeem(provider, provider.refresh_token) == int(fault)


@pytest.mark.parametrize("fault", ["502", "reset", "truncate"])
def test_a_strict_provider_takes_the_repetition_of_a_lost_response_for_theft(fault: str) -> None:
    """`--strict`."""

    async def work(provider: Provider) -> None:
        await fail(provider, fault)
        assert await redeem(provider, provider.refresh_token) == 400

    entries = provided(replace(PLAN, leeway=0.0), aimed(fault), work)
    assert [entry for entry in entries if isinstance(entry, event_log.Lost)] == [event_log.Lost(1, False)]
    assert sum(isinstance(entry, event_log.Reused) for entry in entries) == 1


@pytest.mark.parametrize("fault", ["500", "429", "reset", "truncate"])
def test_a_fault_before_the_grant_is_spent_costs_nothing(fault: str) -> None:
    """The same refresh token works afterwards."""

    async def work(provider: Provider) -> None:
        await fail(provider, fault)
        assert await redeem(provider, provider.refresh_token) == 200

    entries = provided(replace(PLAN, leeway=0.0), aimed(fault, coin=1.0), work)
    assert not any(isinstance(entry, event_log.Lost | event_log.Reused) for entry in entries)


def test_a_fault_does_not_hide_a_rejection() -> None:
    """Otherwise the verdict would miss the error that says to sign in again."""
    acts = AimedActs()

    async def work(provider: Provider) -> None:
        assert await redeem(provider, provider.refresh_token) == 200
        acts.aim(Act(0.0, "502", which=1.0, much=0.0, coin=0.0))
        assert await redeem(provider, provider.refresh_token) == 400

    provided(PLAN, acts, work)


def test_an_outage_hits_every_token_request_and_then_ends() -> None:
    """The grant is not spent."""

    async def work(provider: Provider) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(provider.outage, "503", 3600)
            await anyio.wait_all_tasks_blocked()
            assert await redeem(provider, provider.refresh_token) == 503
            group.cancel_scope.cancel()
        assert await redeem(provider, provider.refresh_token) == 200

    entries = provided(PLAN, AimedActs(), work)
    kinds = [type(entry) for entry in entries]
    assert kinds.index(event_log.OutageBegan) < kinds.index(event_log.Fault)
    assert kinds.index(event_log.OutageEnded) < kinds.index(event_log.Redeemed)


def test_a_key_that_is_still_claimed_is_a_leaked_lock(tmp_path: Path) -> None:
    """The watch does not wait for it, and does not report a free key."""

    async def work(watch: Watch, _: FileStore) -> None:
        await watch.claim()
        async with contextlib.aclosing(FileStore(tmp_path / "tokens")) as holder:
            claim = await holder.claim(KEY, seen=None, timeout=0)
            assert not isinstance(claim, Record)
            await watch.claim()
            await claim.abandon()

    assert [type(entry) for entry in watched(tmp_path, work)] == [event_log.Leaked]


def test_a_record_that_cannot_be_decoded_is_found(tmp_path: Path) -> None:
    """The store does not decode its bytes, so the watch does."""

    async def work(watch: Watch, store: FileStore) -> None:
        await store.put(KEY, record(1))
        assert await watch.stored() == fingerprint("r1")
        await store.put(KEY, record(1)[:-1])
        assert await watch.stored() is None

    entries = watched(tmp_path, work)
    assert [type(entry) for entry in entries] == [event_log.Stored, event_log.Corrupt]


def test_an_older_record_is_put_back_and_the_record_is_deleted(tmp_path: Path) -> None:
    """Never the one that is stored."""

    async def work(watch: Watch, store: FileStore) -> None:
        await store.put(KEY, record(1))
        assert await watch.put_back(0.0) is None
        await store.put(KEY, record(2))
        assert await watch.put_back(0.99) == fingerprint("a1")
        assert await watch.stored() == fingerprint("r1")
        await watch.delete()
        assert await store.load(KEY) is None
        await watch.delete()

    entries = watched(tmp_path, work)
    assert [entry for entry in entries if not isinstance(entry, event_log.Stored)] == [
        event_log.PutBack(fingerprint("r1"), fingerprint("a1")),
        event_log.Deleted(),
    ]
