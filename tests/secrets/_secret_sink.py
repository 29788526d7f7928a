"""Collects what a scene emits: logs, warnings, output, events, and objects and errors as they are shown."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import logging
import pprint
import reprlib
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from _secret_vault import Vault
from _shown import attributes, chain
from rich.pretty import pretty_repr

from tokensession.events import Event

GUARD = 60.0  # seconds until a scene counts as hung


class Sink(logging.Handler):
    """Everything that was emitted, each text with a label. `assert_no_leaks` searches it."""

    def __init__(self, vault: Vault) -> None:
        super().__init__(logging.DEBUG)
        self.vault = vault
        self.texts: list[tuple[str, str]] = []
        self.kinds: set[type[Event]] = set()
        self.setFormatter(logging.Formatter("%(name)s %(threadName)s %(taskName)s %(message)s"))

    def add(self, label: str, text: str) -> None:
        self.texts.append((label, text))

    def emit(self, record: logging.LogRecord) -> None:
        """A log record, as it is formatted, and each part of it, as JSON formatters do."""
        record.__dict__.setdefault("taskName", None)  # Python 3.12 has it
        self.add(f"log of {record.name}", self.format(record) + repr(record.__dict__))
        if record.exc_info and record.exc_info[1] is not None:
            self.error(record.exc_info[1])

    def event(self, event: Event) -> None:
        """An observer."""
        self.kinds.add(type(event))
        self.show(event)
        self.add("event as JSON", json.dumps(dataclasses.asdict(event)))

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The event loop's exception handler."""
        self.add("exception handler", repr(context))
        loop.default_exception_handler(context)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Collect logs of every logger at DEBUG, warnings, and what is printed."""
        root, printed = logging.getLogger(), io.StringIO()
        levels = {
            logger: logger.level for logger in (root, *map(logging.getLogger, ("tokensession", "asyncio")))
        }
        for logger in levels:
            logger.setLevel(logging.DEBUG)
        root.addHandler(self)
        try:
            with warnings.catch_warnings(record=True, action="always") as warned:
                with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                    yield
        finally:
            root.removeHandler(self)
            for logger, level in levels.items():
                logger.setLevel(level)
            self.add("printed", printed.getvalue())
            for warning in warned:
                self.add("warning", f"{warning.message!r} {warning}")

    def run(self, scene: Callable[[], Awaitable[None]]) -> None:
        """Run a scene in an event loop in debug mode that reports every callback as slow."""

        async def bounded() -> None:
            loop = asyncio.get_running_loop()
            loop.slow_callback_duration = 0.0  # so each handle, task and future is logged with its repr
            loop.set_exception_handler(self.unhandled)
            async with asyncio.timeout(GUARD):
                await scene()

        with self.open():
            asyncio.run(bounded(), debug=True)

    def show(self, thing: object) -> None:
        """An object, in every way in which objects appear in logs."""
        ways = (repr, str, ascii, format, reprlib.repr, pprint.pformat, pretty_repr)
        texts = [way(thing) for way in ways]
        texts += [repr([thing]), pprint.pformat({"it": thing}, width=1)]
        texts += [pretty_repr({"it": thing}, max_width=1, expand_all=True)]
        self.add(f"a {type(thing).__name__}", "\n".join(texts))

    def error(self, error: BaseException) -> None:
        """An error with all its causes and contexts, suppressed or not, and all its attributes."""
        self.add(f"traceback of {type(error).__name__}", "".join(traceback.format_exception(error)))
        for link in chain(error):
            self.show(link)
            self.add(f"a part of {type(link).__name__}", repr(attributes(link)))

    def assert_no_leaks(self) -> None:
        assert self.texts, "nothing was collected"
        leaks = [f"{label}: {leak}" for label, text in self.texts for leak in self.vault.find(text)]
        assert not leaks, f"{len(leaks)} leaks:\n" + "\n".join(leaks[:12])
