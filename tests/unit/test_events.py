"""Events are frozen and contain no secret, and an observer cannot break anything."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
from typing import Any

import pytest

import tokensession
from tokensession import ManagedSource, Policy, errors, events
from tokensession.errors import OutcomeUnknown, TokenSessionError
from tokensession.events import Event, Refreshed, RefreshFailed, emit
from tokensession.providers import OAuth2
from tokensession.providers.protocol import TokenResponse
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, ScriptedTransport, token_response

FAMILY = [
    value
    for name in events.__all__
    if inspect.isclass(value := getattr(events, name)) and issubclass(value, Event)
]
SAMPLES: dict[str, Any] = {
    "bool": False,
    "float": 1.5,
    "float | None": None,
    "int": 1,
    "str": "text",
    "str | None": None,
}
every_event = pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)


def made(kind: type[Event], **changes: Any) -> Event:
    values = {field.name: SAMPLES[str(field.type)] for field in dataclasses.fields(kind)}
    return kind(**values | changes)


def failed(**changes: Any) -> Event:
    return made(RefreshFailed, **changes)


@every_event
def test_an_event_is_frozen_and_names_its_key(kind: type[Event]) -> None:
    event = made(kind)
    assert event.key == "text"
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.key = "other"  # type: ignore[misc]
    assert not hasattr(event, "__dict__")
    assert kind.__doc__


@every_event
def test_f45_an_event_has_no_field_that_could_hold_a_token(kind: type[Event]) -> None:
    """Only events are logged, and no event has a field that could contain a token."""
    texts = {"key", "id", "reason", "token", "error", "message", "note", "found"}
    numbers = {"duration", "lifetime", "still_usable", "ask_again", "next_attempt", "repeated", "tries"}
    assert {field.name for field in dataclasses.fields(kind)} <= texts | numbers | {"limit", "seconds"}
    for field in dataclasses.fields(kind):
        assert ("str" in str(field.type)) is (field.name in texts)


@every_event
def test_k30_no_event_has_the_name_of_an_error(kind: type[Event]) -> None:
    """Otherwise a `case` with the top-level name never matches, and nothing says so."""
    assert kind.__name__ not in errors.__all__
    assert getattr(tokensession, kind.__name__, kind) is kind


@every_event
def test_an_event_is_logged_at_its_level_under_the_package_s_name(
    kind: type[Event], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="tokensession")
    event = made(kind)
    emit(None, event)
    assert [(record.name, record.levelno) for record in caplog.records] == [("tokensession", event.level)]
    assert caplog.records[0].getMessage() == str(event)


LEVELS = {
    "AttemptFailed": logging.INFO,
    "Refreshed": logging.INFO,
    "RefreshFailed": logging.WARNING,
    "RequestLimitReached": logging.ERROR,
    "Restored": logging.WARNING,
    "SaveFailed": logging.ERROR,
    "Saved": logging.WARNING,
    "SignInEndsSoon": logging.WARNING,
    "SignInFailed": logging.WARNING,
    "SignOutStored": logging.INFO,
    "SignedIn": logging.INFO,
    "TokenUnauthorized": logging.INFO,
    "UnexpectedResponse": logging.WARNING,
}


@every_event
def test_what_needs_a_person_is_a_warning_or_an_error(kind: type[Event]) -> None:
    """What changes a token is INFO, and what happens all the time is DEBUG."""
    assert made(kind).level == LEVELS.get(kind.__name__, logging.DEBUG)


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, logging.WARNING),
        ({"error": "GrantRejected"}, logging.WARNING),
        ({"repeated": True}, logging.DEBUG),
        ({"error": "SignedOut"}, logging.DEBUG),
    ],
)
def test_a_failure_that_says_nothing_new_is_not_a_warning(changes: dict[str, Any], level: int) -> None:
    """A signed-out account that is asked each second does not fill the log."""
    assert failed(**changes).level == level


# -- operations -------------------------------------------------------------------------------------------

OPERATIONS: dict[type[Event], list[type[Event]]] = {
    events.RefreshStarted: [events.Refreshed, events.Adopted, events.RefreshHeld, RefreshFailed],
    events.SignInStarted: [events.SignedIn, events.SignInFailed],
}


def names(kind: type[Event]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("start", OPERATIONS, ids=lambda kind: kind.__name__)
def test_an_operation_has_an_id_and_each_way_to_end_has_it_too_and_a_duration(start: type[Event]) -> None:
    assert "id" in names(start)
    assert all({"id", "duration"} <= names(end) for end in OPERATIONS[start])


def test_every_event_with_a_duration_ends_an_operation() -> None:
    ends = {end for group in OPERATIONS.values() for end in group}
    assert {kind for kind in FAMILY if "duration" in names(kind)} == ends | {events.RefreshEnded}
    assert {kind for kind in FAMILY if issubclass(kind, events.RefreshEnded)} == {
        events.RefreshEnded,
        *OPERATIONS[events.RefreshStarted],
    }


def test_a_failure_names_both_pauses() -> None:
    """K28: until callers may ask again, and until the next token request."""
    assert {"ask_again", "next_attempt"} <= names(RefreshFailed)
    assert "retry_after" not in names(RefreshFailed)


Script = list[TokenResponse | Exception]
GOOD = token_response({"access_token": "at-1", "refresh_token": "rt-1", "expires_in": 3600})
OTHER = token_response({"access_token": "at-2", "refresh_token": "rt-2", "expires_in": 3600})
DEAD = token_response({"error": "invalid_grant"}, status=400)
BUSY = token_response({}, status=500)
LOST = OutcomeUnknown("It was reset.")


async def first(source: ManagedSource, _clock: FakeClock) -> None:
    await source.token()


async def until_due(source: ManagedSource, clock: FakeClock) -> None:
    await source.token()
    clock.advance(3400)
    await source.token()
    while source.snapshot().refreshing:
        await asyncio.sleep(0)


async def after_a_401(source: ManagedSource, _clock: FakeClock) -> None:
    unauthorized = await source.token()
    for _ in range(2):
        unauthorized = await source.refresh(unauthorized)


async def signed_in(source: ManagedSource, _clock: FakeClock) -> None:
    await source.sign_in(refresh_token="rt-brought")


async def signed_out(source: ManagedSource, _clock: FakeClock) -> None:
    await source.sign_out()
    await source.token()


@pytest.mark.parametrize(
    ("happens", "script", "ends"),
    [
        (first, [GOOD], ["Refreshed"]),
        (first, [DEAD], ["RefreshFailed"]),
        (first, [BUSY], ["RefreshFailed"]),
        (first, [LOST], ["RefreshFailed"]),
        (first, [RuntimeError("a bug")], ["RefreshFailed"]),
        (until_due, [GOOD, OTHER], ["Refreshed", "Refreshed"]),
        (until_due, [GOOD, LOST], ["Refreshed", "RefreshFailed"]),
        (until_due, [GOOD, BUSY], ["Refreshed", "RefreshFailed"]),
        (after_a_401, [GOOD, OTHER], ["Refreshed", "Refreshed", "RefreshHeld"]),
        (signed_in, [GOOD], ["SignedIn"]),
        (signed_in, [DEAD], ["SignInFailed"]),
        (signed_in, [LOST], ["SignInFailed"]),
        (signed_in, [RuntimeError("a bug")], ["SignInFailed"]),
        (signed_out, [], ["RefreshFailed"]),
    ],
)
def test_k28_every_operation_that_starts_ends_once(happens: Any, script: Script, ends: list[str]) -> None:
    """With the id that it started with, whatever becomes of it."""
    seen: list[Event] = []

    async def main() -> None:
        clock = FakeClock()
        source = ManagedSource(
            OAuth2(
                token_url="https://id.example.com/token",
                client_id="client-1",
                client_secret="secret",
                refresh_token="rt-0",
            ),
            ScriptedTransport(*script),
            store=MemoryStore(clock=clock),
            key="account",
            policy=Policy(retry_within=0),
            clock=clock,
            observer=seen.append,
        )
        with contextlib.suppress(TokenSessionError):
            await happens(source, clock)
        await source.aclose()

    asyncio.run(main())
    started = [event for event in seen if type(event) in OPERATIONS]
    ended = [event for event in seen if "duration" in names(type(event))]
    assert [type(event).__name__ for event in ended] == ends
    assert [event.id for event in started] == [event.id for event in ended]  # type: ignore[attr-defined]
    assert len({event.id for event in started}) == len(started)  # type: ignore[attr-defined]
    for start, end in zip(started, ended, strict=True):
        assert seen.index(start) < seen.index(end)


# -- observers and logs -----------------------------------------------------------------------------------


def test_the_observer_receives_the_event_even_if_it_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="tokensession")
    seen: list[Event] = []
    event = made(Refreshed)
    emit(seen.append, event)
    assert len(seen) == 1
    assert seen[0] is event
    assert caplog.records == []


def test_an_observer_that_raises_is_logged_and_otherwise_ignored(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __call__(self, _event: Event, /) -> None:
            raise LookupError("in the observer")

        def __repr__(self) -> str:
            return "<Broken>"

    emit(Broken(), failed())
    reports = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in reports] == ["observer <Broken> raised on RefreshFailed"]
    assert reports[0].exc_info is not None
    assert reports[0].exc_info[0] is LookupError


def test_a_log_handler_that_raises_breaks_nothing() -> None:
    """A refresh that reports its new token must not lose it."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ConnectionError("the log server is away")

    def raising(_event: Event, /) -> None:
        raise LookupError("in the observer")

    logger, handler, seen = logging.getLogger("tokensession"), Broken(), list[Event]()
    logger.addHandler(handler)
    try:
        event = failed()
        emit(seen.append, event)
        emit(raising, event)
        assert seen == [event]
    finally:
        logger.removeHandler(handler)


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupted(_event: Event, /) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        emit(interrupted, made(Refreshed))


def test_every_event_of_the_module_is_public() -> None:
    defined = {
        name
        for name, value in inspect.getmembers(events, inspect.isclass)
        if issubclass(value, Event) and value.__module__ == events.__name__
    }
    assert defined <= set(events.__all__)
