"""Events are frozen and contain no secret, and an observer cannot break anything."""

from __future__ import annotations

import dataclasses
import inspect
import logging

import pytest

from tokensession import events
from tokensession.events import Event, Refreshed, RefreshFailed, RefreshStarted, emit

FAMILY = [
    value
    for name in events.__all__
    if inspect.isclass(value := getattr(events, name)) and issubclass(value, Event)
]
SAMPLES = {"float": 1.5, "float | None": None, "int": 1, "str": "text", "str | None": None}
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
    allowed = {"key", "reason", "token", "lifetime", "error", "message", "still_usable", "retry_after"}
    assert {field.name for field in dataclasses.fields(kind)} <= allowed | {"note", "tries"}


@every_event
def test_an_event_is_logged_at_its_level_under_the_package_s_name(
    kind: type[Event], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="tokensession")
    event = made(kind)
    emit(None, event)
    assert [(record.name, record.levelno) for record in caplog.records] == [("tokensession", kind.level)]
    assert caplog.records[0].getMessage() == str(event)


def test_only_failures_are_warnings_or_errors() -> None:
    loud = {kind.__name__ for kind in FAMILY if kind.level >= logging.WARNING}
    assert loud == {"RefreshFailed", "SaveFailed", "Saved", "UnexpectedResponse"}
    assert events.SaveFailed.level == logging.ERROR
    assert RefreshStarted.level == logging.DEBUG


def test_the_observer_receives_the_event_even_if_it_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="tokensession")
    seen: list[Event] = []
    event = Refreshed("k", "fingerprint", 3600)
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

    emit(Broken(), RefreshFailed("k", "NotSent", "x", 1.0, None))
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
        event = RefreshFailed("k", "NotSent", "x", 1.0, None)
        emit(seen.append, event)
        emit(raising, event)
        assert seen == [event]
    finally:
        logger.removeHandler(handler)


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupted(_event: Event, /) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        emit(interrupted, Refreshed("k", "fingerprint", None))


def test_every_event_of_the_module_is_public() -> None:
    defined = {
        name
        for name, value in inspect.getmembers(events, inspect.isclass)
        if issubclass(value, Event) and value.__module__ == events.__name__
    }
    assert defined <= set(events.__all__)
