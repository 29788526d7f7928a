"""Events are frozen and contain no secret, and an observer cannot break anything."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from typing import Any

import pytest

from tokensession import events
from tokensession.events import (
    Adopted,
    Event,
    Refreshed,
    RefreshEnded,
    RefreshFailed,
    RefreshHeld,
    SignedIn,
    SignInFailed,
)
from tokensession.observer import emit

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


def made(kind: type[Event]) -> Event:
    return kind(**{field.name: SAMPLES[str(field.type)] for field in dataclasses.fields(kind)})


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


LEVELS = {
    logging.INFO: {
        "AttemptFailed",
        "Refreshed",
        "Revoked",
        "SignOutStored",
        "SignedIn",
        "TokenUnauthorized",
    },
    logging.WARNING: {
        "RefreshFailed",
        "Restored",
        "RevocationFailed",
        "Saved",
        "SignInEndsSoon",
        "SignInFailed",
        "UnexpectedResponse",
    },
    logging.ERROR: {"RequestLimitReached", "SaveFailed"},
}


@every_event
def test_an_event_that_needs_a_person_is_logged_as_a_warning_or_an_error(
    kind: type[Event], caplog: pytest.LogCaptureFixture
) -> None:
    """What changes a token is INFO, and what happens all the time is DEBUG."""
    caplog.set_level(logging.DEBUG, logger="tokensession")
    event = made(kind)
    emit(None, event)
    level = next((level for level, names in LEVELS.items() if kind.__name__ in names), logging.DEBUG)
    found = [record for record in caplog.record_tuples if record[2] == str(event)]
    assert found == [("tokensession", level, str(event))]


def test_only_the_end_of_an_operation_has_a_duration() -> None:
    refreshes = {RefreshEnded, Refreshed, Adopted, RefreshHeld, RefreshFailed}
    assert {kind for kind in FAMILY if issubclass(kind, RefreshEnded)} == refreshes
    lasting = {kind for kind in FAMILY if "duration" in {field.name for field in dataclasses.fields(kind)}}
    assert lasting == refreshes | {SignedIn, SignInFailed}


def test_an_observer_that_raises_is_logged_and_otherwise_ignored(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __call__(self, _event: Event, /) -> None:
            raise LookupError("in the observer")

        def __repr__(self) -> str:
            return "<Broken>"

    emit(Broken(), made(RefreshFailed))
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
        event = made(RefreshFailed)
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
