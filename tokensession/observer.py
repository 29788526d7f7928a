"""`Event` and `Observer`: what every event is, and who receives it. `events.py` has the events themselves."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import ClassVar, Protocol

__all__ = ["Event", "Observer", "emit"]

_log = logging.getLogger("tokensession")


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to the token under `key`."""

    key: str
    level: ClassVar[int] = logging.DEBUG
    """The level at which it is logged."""


class Observer(Protocol):
    """Receives every event, in the event loop, as it happens. Must return at once."""

    def __call__(self, event: Event, /) -> None:
        """Handle the event."""
        ...


def emit(observer: Observer | None, event: Event) -> None:
    """Log the event to the logger "tokensession", and hand it to the observer.

    An observer that raises is logged and otherwise ignored: it cannot break a refresh.
    """
    with contextlib.suppress(Exception):  # your log handler or filter may raise anything
        if _log.isEnabledFor(event.level):
            _log.log(event.level, "%s", event)
    if observer is not None:
        try:
            observer(event)
        except Exception:  # noqa: BLE001 - your observer may raise anything
            with contextlib.suppress(Exception):
                _log.exception("observer %r raised on %s", observer, type(event).__name__)
