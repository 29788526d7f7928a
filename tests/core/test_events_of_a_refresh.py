"""The events: every operation starts once and ends once, and each failure is reported once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from _rig import IMPATIENT, LIFETIME, Rig, begun, invalid_grant, let_tasks_run, limited, run, success
from _scripted_store import ScriptedStore, fail, scripted
from hypothesis import given, settings
from hypothesis import strategies as st

import tokensession
from tokensession import (
    GrantRejected,
    NotSent,
    OutcomeUnknown,
    Policy,
    RateLimited,
    SignedOut,
    SignInRequired,
    StoreUnavailable,
    TokenSessionError,
    errors,
    events,
)
from tokensession._refresh.state import Now, TokenState, encode
from tokensession.events import (
    Adopted,
    AttemptFailed,
    Event,
    Refreshed,
    RefreshEnded,
    RefreshFailed,
    RefreshHeld,
    RefreshStarted,
    Restored,
    SignedIn,
    SignInEndsSoon,
    SignInFailed,
    SignInStarted,
    SignOutStored,
    TokenUnauthorized,
)
from tokensession.providers.protocol import TokenResponse
from tokensession.testing import FakeClock, Paused, token_response

DAY = 86400.0


def of(rig: Rig, *kinds: type[Event]) -> list[Any]:
    """The events of these kinds, in order."""
    return [event for event in rig.events if isinstance(event, kinds)]


def kinds(rig: Rig) -> list[type[Event]]:
    """What kinds of events there were, in order."""
    return [type(event) for event in rig.events]


def assert_paired(reported: list[Event]) -> None:
    """Every operation has one start and then one end with the same id, and what is in between has it too."""
    open_: dict[str, Event] = {}
    seen: set[str] = set()
    for event in reported:
        if isinstance(event, RefreshStarted | SignInStarted):
            assert event.id not in seen, "an id is used once"
            seen.add(event.id)
            open_[event.id] = event
        elif isinstance(event, RefreshEnded | SignedIn | SignInFailed):
            start = open_.pop(event.id)
            assert isinstance(start, RefreshStarted) is isinstance(event, RefreshEnded)
            assert event.duration >= 0
        elif isinstance(event, AttemptFailed):
            assert isinstance(open_[event.id], RefreshStarted)
    assert not open_, "everything that has started has ended"


def test_k28_each_way_a_refresh_can_end_has_the_id_of_its_start() -> None:
    """A new token, an adopted one, a failure, and a token that is held on to after a lost response."""

    async def main() -> None:
        script = [success(1), token_response({}, 500), OutcomeUnknown("lost"), OutcomeUnknown("lost")]
        rig = Rig(*script, clock=FakeClock(jitter=0.5))
        await rig.access()
        other = rig.peer()
        await other.access()
        rig.clock.advance(LIFETIME - 299)
        for _ in range(40):
            assert await rig.access() == "access-1"
            await rig.refreshed()
            rig.clock.advance(5)
        assert {type(event) for event in of(rig, RefreshEnded)} == {Refreshed, RefreshFailed, RefreshHeld}
        assert kinds(other) == [RefreshStarted, Adopted]
        assert_paired(rig.events)
        assert_paired(other.events)

    run(main)


def test_k28_an_events_duration_is_that_of_its_refresh() -> None:
    """From the start to the end, on the boot clock, waits included."""

    async def main() -> None:
        rig = Rig()
        paused, caller = await rig.in_flight(success(1))
        rig.clock.advance(7)
        rig.clock.step_wall(-1000)
        paused.release()
        await caller
        (refreshed,) = of(rig, Refreshed)
        assert refreshed.duration == 7

    run(main)


def test_k28_a_failures_event_has_both_pauses_and_the_time_left_by_name() -> None:
    """When callers may ask again, when the next request is made, and how long the token is still usable."""

    async def main() -> None:
        rig = Rig(success(1), limited(120), clock=FakeClock(jitter=0.5))
        await rig.access()
        await rig.refresh_when_due()
        (failed,) = of(rig, RefreshFailed)
        assert (failed.error, failed.still_usable, failed.next_attempt) == ("RateLimited", 239, 120)
        assert 0.5 <= failed.ask_again <= 1
        assert failed.message.startswith("oauth2: the token endpoint answered 429")
        assert rig.source.snapshot().retry_after == failed.next_attempt

    run(main)


OUTCOMES: dict[str, Callable[[int], Any]] = {
    "token": success,
    "short token": lambda number: success(number, expires_in=40),
    "500": lambda _: token_response({}, 500),
    "429": lambda _: limited(3),
    "lost": lambda _: OutcomeUnknown("lost"),
    "not sent": lambda _: NotSent("no route"),
    "rejected": lambda _: invalid_grant(),
    "client": lambda _: token_response({"error": "invalid_client"}, 401),
    "unusable type": lambda number: token_response(
        {"access_token": f"a-{number}", "token_type": "mac", "refresh_token": f"r-{number}"}
    ),
    "garbage": lambda _: token_response(b"<html>"),
    "broken transport": lambda _: ZeroDivisionError("a bug"),
    "cancels itself": lambda _: asyncio.CancelledError(),
    "hangs": lambda _: Paused(NotSent("never released")),
}


class Scenario:
    """One process, whatever happens to it."""

    def __init__(self, outcomes: list[str], policy: Policy) -> None:
        self.clock = FakeClock(jitter=0.5)
        self.store = ScriptedStore(clock=self.clock)
        script = [OUTCOMES[name](number) for number, name in enumerate(outcomes, 1)]
        script += [success(1000 + number) for number in range(200)]
        self.rig = Rig(*script, store=self.store, clock=self.clock, policy=policy)
        self.other = self.rig.peer(*[success(5000 + number) for number in range(200)])
        self.callers: list[asyncio.Task[Any]] = []
        self.codes = 0

    async def act(self, action: str) -> None:
        """Do this, and let the tasks run."""
        for _ in range(4 if action in TIMES else 0):
            self.clock.advance(TIMES[action] / 4)
            await let_tasks_run(30)
        if action in ACTIONS and (work := ACTIONS[action](self)) is not None:
            self.callers.append(asyncio.ensure_future(work))
        if action == "ask without waiting":
            await asyncio.sleep(0)
            self.callers[-1].cancel()
        await let_tasks_run(30)

    async def end(self) -> None:
        """Repair the store, close the processes, and let everything end."""
        self.store.steps.clear()
        for _ in range(2):  # a caller that asks while they close starts them again
            for source in (self.rig.source, self.other.source):
                self.callers.append(asyncio.ensure_future(source.aclose()))
            while not all(call.done() for call in self.callers):
                self.clock.advance(1)
                await let_tasks_run(30)

    def sign_in(self, by: str) -> Awaitable[Any]:
        """With another code or refresh token each time."""
        self.codes += 1
        return self.rig.source.sign_in(**{by: f"new-{self.codes}"})

    def unauthorized(self) -> Awaitable[Any] | None:
        """The API refuses the token that this process has."""
        token = self.rig.source._cache.token
        return None if token is None else self.rig.source.refresh(token)

    def cancel_callers(self) -> None:
        for caller in self.callers:
            caller.cancel()

    def restore_an_older_record(self) -> Awaitable[Any]:
        self.store.steps.pop("put", None)
        older = encode(TokenState(configured="somebody"), Now(self.clock.wall(), self.clock.boot()))
        return self.store.put("account", older)


def breaks(step: str) -> Callable[[Scenario], None]:
    """Let this step of the store fail."""
    return lambda scenario: scenario.store.steps.update({step: fail})


TIMES = {"a second": 1, "a minute": 60, "an hour": 3600}
ACTIONS: dict[str, Callable[[Scenario], Awaitable[Any] | None]] = {
    "ask": lambda scenario: scenario.rig.access(),
    "ask without waiting": lambda scenario: scenario.rig.access(),
    "401": Scenario.unauthorized,
    "refresh": lambda scenario: scenario.rig.source.refresh(),
    "force": lambda scenario: scenario.rig.source.refresh(force=True),
    "sign in": lambda scenario: scenario.sign_in("refresh_token"),
    "sign in with a code": lambda scenario: scenario.sign_in("code"),
    "sign out": lambda scenario: scenario.rig.source.sign_out(),
    "cancel callers": Scenario.cancel_callers,
    "close": lambda scenario: scenario.rig.source.aclose(),
    "delete the record": lambda scenario: scenario.store.delete("account"),
    "an older record": Scenario.restore_an_older_record,
    "another process refreshes": lambda scenario: scenario.other.source.refresh(),
    **{f"break {step}": breaks(step) for step in ("load", "claim", "sending", "commit", "put", "abandon")},
    "repair": lambda scenario: scenario.store.steps.clear(),
}


@pytest.mark.parametrize("policy", [IMPATIENT, Policy()], ids=["impatient", "patient"])
@settings(max_examples=120, deadline=None)
@given(
    outcomes=st.lists(st.sampled_from(sorted(OUTCOMES)), max_size=6),
    actions=st.lists(st.sampled_from(["ask", *TIMES, *ACTIONS]), min_size=1, max_size=12),
)
def test_k28_every_operation_that_starts_ends_exactly_once_whatever_happens(
    policy: Policy, outcomes: list[str], actions: list[str]
) -> None:
    """Server and store fail, callers are cancelled, someone signs in or out or closes, in any order."""

    async def main() -> None:
        scenario = Scenario(outcomes, policy)
        for action in actions:
            await scenario.act(action)
        await scenario.end()
        assert_paired(scenario.rig.events)
        assert not scenario.rig.source.snapshot().refreshing
        counters = scenario.rig.source.snapshot()
        assert counters.refreshes == len(of(scenario.rig, RefreshStarted))
        assert counters.failures == len(of(scenario.rig, RefreshFailed))
        assert counters.adopted == len(of(scenario.rig, Adopted))

    run(main)


@pytest.mark.parametrize("work", ["a refresh", "a sign-in"])
def test_f43_k28_what_its_closing_event_loop_stops_ends_with_an_event(work: str) -> None:
    """`asyncio.run` cancels what is still running."""
    rig = Rig(Paused(success(1)))

    async def main() -> None:
        calls = rig.source.refresh() if work == "a refresh" else rig.source.sign_in(refresh_token="new")
        asyncio.create_task(calls).add_done_callback(lambda task: task.cancelled() or task.exception())
        await let_tasks_run()

    asyncio.run(main())
    if work == "a refresh":
        assert kinds(rig) == [RefreshStarted, RefreshFailed]
    else:
        assert kinds(rig) == [SignInStarted, SignInFailed]
    assert_paired(rig.events)


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_f43_k28_a_refresh_that_ctrl_c_stops_ends_with_an_event(how: type[BaseException]) -> None:
    """Even if it is raised in the middle of the refresh."""
    rig = Rig(how())
    with pytest.raises(how):
        asyncio.run(rig.access())
    assert_paired(rig.events)


def test_k30_no_event_has_the_name_of_an_error() -> None:
    """`isinstance(event, tokensession.SignedOut)` would silently be false."""
    names = {name for name in events.__all__ if name not in ("Event", "Observer")}
    assert not names & set(errors.__all__)
    for name in names & set(tokensession.__all__):
        assert getattr(tokensession, name) is getattr(events, name)


@pytest.fixture
def warnings_logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What has been logged at WARNING or above, without its details."""
    caplog.set_level(logging.DEBUG, "tokensession")
    return lambda: [
        record.getMessage().split("(")[0] for record in caplog.records if record.levelno >= logging.WARNING
    ]


def test_k30_a_sign_out_is_an_event_and_no_warning(warnings_logged: Callable[[], list[str]]) -> None:
    """One event. SignedOut is what the callers get: no failure, however often and wherever they ask."""

    async def main() -> None:
        rig = Rig(success(1))
        await rig.access()
        await rig.source.sign_out()
        assert len(of(rig, SignOutStored)) == 1
        other = rig.peer()
        for _ in range(10):
            for process in (rig, other):
                with pytest.raises(SignedOut):
                    await process.access()
            rig.clock.advance(2)

    run(main)
    assert warnings_logged() == []


def test_a_user_who_has_not_signed_in_is_no_warning(warnings_logged: Callable[[], list[str]]) -> None:
    """A web application has a key for each user, and asks for it at each visit."""

    async def main() -> None:
        rig = Rig(configured=None)
        with pytest.raises(SignInRequired):
            await rig.access()
        [failed] = of(rig, RefreshFailed)
        assert (failed.error, failed.level) == ("SignInRequired", logging.INFO)

    run(main)
    assert warnings_logged() == []


@pytest.mark.parametrize(
    ("answer", "kind", "shared"),
    [
        (invalid_grant(), GrantRejected, True),
        (limited(600), RateLimited, True),
        (token_response({"error": "invalid_client"}, 401), TokenSessionError, False),
    ],
    ids=["rejected", "limited", "client"],
)
def test_a_failure_that_lasts_is_logged_once(
    warnings_logged: Callable[[], list[str]], answer: Any, kind: type[TokenSessionError], shared: bool
) -> None:
    """Callers ask every second for half a minute: one WARNING in this process, and one in another."""

    async def main() -> None:
        rig = Rig(answer)
        for number, process in enumerate([rig, rig.peer()] if shared else [rig], 1):
            for _ in range(30):
                with pytest.raises(kind):
                    await process.access()
                rig.clock.advance(1)
            assert warnings_logged() == ["RefreshFailed"] * number
        assert rig.token_requests == 1

    run(main)


def test_a_store_that_stays_down_is_logged_once(warnings_logged: Callable[[], list[str]]) -> None:
    """The first look that fails is a WARNING, and so is the first one after it has worked again."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        for _ in range(2):
            store.steps |= {"load": fail, "claim": fail}
            for _ in range(10):
                with pytest.raises(StoreUnavailable):
                    await rig.access()
                clock.advance(2)
            store.steps.clear()
            await rig.access()
            clock.advance(LIFETIME)
        assert [event.repeated for event in of(rig, RefreshFailed)] == ([False] + [True] * 9) * 2

    run(main)
    assert warnings_logged() == ["RefreshFailed"] * 2


@pytest.mark.parametrize("last", [success(1), limited(60)], ids=["a token", "another failure"])
def test_a_failure_that_is_waited_through_is_an_attempt_and_only_the_last_one_a_warning(
    warnings_logged: Callable[[], list[str]], last: TokenResponse
) -> None:
    """If callers get their token, no one has to do anything. One failure is one event."""

    async def main() -> None:
        rig = Rig(token_response({}, 500), last, policy=Policy())
        caller = await begun(rig.access())
        rig.clock.advance(1)
        (answer,) = await asyncio.gather(caller, return_exceptions=True)
        (attempt,) = of(rig, AttemptFailed)
        assert (attempt.level, attempt.error) == (logging.INFO, "TokenUnavailable")
        if last.status == 200:
            assert answer == "access-1"
            assert kinds(rig) == [RefreshStarted, AttemptFailed, Refreshed]
            assert warnings_logged() == []
        else:
            assert isinstance(answer, RateLimited)
            assert kinds(rig) == [RefreshStarted, AttemptFailed, RefreshFailed]
            assert of(rig, RefreshFailed)[0].error == "RateLimited"

    run(main)


def test_a_401_is_an_event_with_the_tokens_fingerprint() -> None:
    """And the refresh that it starts says so."""

    async def main() -> None:
        rig = Rig(success(1), success(2))
        token = await rig.source.token()
        rig.clock.advance(LIFETIME / 2)
        await rig.source.refresh(token)
        (unauthorized,) = of(rig, TokenUnauthorized)
        assert unauthorized.token == token.fingerprint
        assert [event.reason for event in of(rig, RefreshStarted)] == ["expired", "unauthorized"]

    run(main)


def ending(number: int, days: float) -> Any:
    """A token whose sign-in ends after so many days, as several servers say it."""
    return token_response(
        {
            "access_token": f"access-{number}",
            "expires_in": LIFETIME,
            "refresh_token": f"refresh-{number}",
            "refresh_token_expires_in": days * DAY,
        }
    )


def test_a_sign_in_that_ends_soon_is_an_event_with_the_seconds_left() -> None:
    """Once for each new token of it, from three days before its end, in every process that serves it."""

    async def main() -> None:
        rig = Rig(ending(1, 90), ending(2, 4), ending(3, 2.5))
        await rig.access()
        rig.clock.advance(LIFETIME)
        await rig.access()
        assert not of(rig, SignInEndsSoon)
        rig.clock.advance(DAY + LIFETIME)
        await rig.access()
        for _ in range(5):
            await rig.access()
        other = rig.peer()
        rig.clock.advance(60)
        await other.access()
        assert [event.seconds for event in of(rig, SignInEndsSoon)] == [2.5 * DAY]
        assert [event.seconds for event in of(other, SignInEndsSoon)] == [2.5 * DAY - 60]
        assert of(rig, SignInEndsSoon)[0].level == logging.WARNING

    run(main)


def test_a_sign_in_that_never_lasts_long_is_no_warning_at_each_refresh() -> None:
    """A refresh token of 24 h that is renewed each time does not "end soon": a tenth of its life counts."""

    async def main() -> None:
        rig = Rig(*(ending(number, 1) for number in range(10)))
        for _ in range(10):
            await rig.access()
            rig.clock.advance(LIFETIME)
        assert not of(rig, SignInEndsSoon)

    run(main)


def test_the_snapshot_has_the_end_of_the_sign_in_if_the_provider_has_said_it() -> None:
    """In seconds from now, in another process too, and after a refresh that does not say it again."""

    async def main() -> None:
        rig = Rig(ending(1, 30), success(2, refresh="refresh-1"), success(3))
        assert rig.source.snapshot().sign_in_ends is None
        await rig.access()
        assert rig.source.snapshot().sign_in_ends == 30 * DAY
        rig.clock.advance(LIFETIME)
        other = rig.peer()
        await other.source.check()
        assert other.source.snapshot().sign_in_ends == 30 * DAY - LIFETIME
        await rig.access()  # the same refresh token, and not a word about its end
        assert rig.source.snapshot().sign_in_ends == 30 * DAY - LIFETIME
        rig.clock.advance(LIFETIME)
        await rig.access()  # another refresh token: its end is not known
        assert rig.source.snapshot().sign_in_ends is None

    run(main)


@pytest.mark.parametrize("found", ["nothing", "an older record"])
def test_f51_f52_what_is_written_back_is_an_event(found: str) -> None:
    """One WARNING that says what was found instead."""

    async def main() -> None:
        rig = Rig(success(1), success(2), success(3))
        await rig.access()
        before = await rig.store.load("account")
        assert before is not None
        await rig.source.refresh()
        if found == "nothing":
            await rig.store.delete("account")
        else:
            await rig.store.put("account", before.data)
        await rig.refresh_when_due()
        assert [event.found for event in of(rig, Restored)] == [found]
        assert of(rig, Restored)[0].level == logging.WARNING

    run(main)
