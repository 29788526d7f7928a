"""Secrets that may change while the program runs: text, a callable, or a file that is read again."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from .. import _validate
from ..errors import ConfigurationError, NotSent

__all__ = ["SecretValue", "check_secret", "read_secret"]

SecretValue: TypeAlias = str | Path | Callable[[], str | Awaitable[str]]
"""A secret: the text itself, the path of a file that has it, or a function that returns it.

A file and a function are asked for each token request, so a new secret needs no restart. White space around a
file's text is removed, and a byte order mark before it. A function may be async; another one is called in a
thread, so it may block. While it does, it is not called again.
"""

_LONGEST = 64 * 1024  # bytes of a file


def check_secret(name: str, value: SecretValue, *, lines: bool = False) -> SecretValue:
    """The value, if it is a secret, or something to read one from. `lines`: its text may have several."""
    if isinstance(value, str | type) or not (isinstance(value, Path) or callable(value)):
        return value if lines and isinstance(value, str) and value.strip() else _text(name, value)
    return value


def _text(name: str, value: Any) -> str:
    return _validate.secret(name, value)


async def read_secret(name: str, value: SecretValue, *, lines: bool = False) -> str:
    """The text of a secret now. Raises `NotSent` if it cannot be read now, or `ConfigurationError`."""
    if isinstance(value, str):
        return value
    if isinstance(value, Path):
        text, _ = await _joined(value, partial(_read, value))
    else:
        text = await _call(value)
    if isinstance(text, _Unreadable):
        # Not from the user's exception, whose message may have a secret.
        raise NotSent(
            f"{name} is not available: {text.why}.", todo="Nothing was sent. It is tried again later."
        )
    checked = check_secret(name, text, lines=lines)
    if not isinstance(checked, str):  # a function that returns a function
        raise ConfigurationError(f"{name} must be a string, not {_validate.describe(checked)}.")
    return checked


@dataclass(frozen=True, slots=True)
class _Unreadable:
    why: str


def _read(path: Path) -> str | _Unreadable:
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST + 1)
    except OSError as error:
        return _Unreadable(f"the file {path} cannot be read ({type(error).__name__})")
    text = data.decode("utf-8-sig", "replace").strip()
    if not text or len(data) > _LONGEST or "\N{REPLACEMENT CHARACTER}" in text:
        # Perhaps it is just being written.
        what = (
            "empty" if not text else f"longer than {_LONGEST} bytes" if len(data) > _LONGEST else "not UTF-8"
        )
        return _Unreadable(f"the file {path} is {what}")
    return text


async def _call(function: Callable[[], Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        found = function()
    else:
        found, shared = await _joined(function, function)
        while shared and inspect.isawaitable(found):  # the one who began the call awaits it
            found, shared = await _joined(function, function)
    if not inspect.isawaitable(found):
        return found
    task = asyncio.current_task()
    try:
        return await found
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except asyncio.CancelledError as error:
        if task is not None and task.cancelling():
            raise
        return _raised(error)  # by the function itself
    except BaseException as error:  # noqa: BLE001 - it is the user's function
        return _raised(error)


def _raised(error: BaseException) -> _Unreadable:
    """What a function has raised: our own error, or only the type of another one."""
    if isinstance(error, NotSent | ConfigurationError):
        raise error
    return _Unreadable(f"the function that returns it raised {type(error).__name__}")


# -- in threads --------------------------------------------------------------------------------------------


class _Reading:
    """A read of one secret in a thread of its own, for all who wait for it.

    A read that hangs, in a vault's client or on a mount that is gone, holds its thread even after those who
    wait have given up. So there is one at a time for each secret, and it holds no thread of another one's. It
    does not keep the process from ending either.
    """

    def __init__(self, value: Path | Callable[[], Any], read: Callable[[], Any]) -> None:
        self.value = value  # while it is read, no other object has its id
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.future.set_running_or_notify_cancel()  # so that one who gives up cannot cancel it for the others
        self.thread = threading.Thread(
            target=self._run, args=(read,), name="tokensession secret", daemon=True
        )
        self._context = contextvars.copy_context()

    def _run(self, read: Callable[[], Any]) -> None:
        try:
            found, error = self._context.run(read), None
        except BaseException as raised:  # noqa: BLE001 - it is the user's function
            found, error = None, raised
        _running.pop(_name(self.value), None)
        self.future.set_result((found, error))


_running: dict[Path | int, _Reading] = {}


def _name(value: Path | Callable[[], Any]) -> Path | int:
    return value if isinstance(value, Path) else id(value)


async def _joined(value: Path | Callable[[], Any], read: Callable[[], Any]) -> tuple[Any, bool]:
    """What this read returns, or one of the same secret that is running already; and whether it was that."""
    running = _running.get(_name(value))
    shared = running is not None and running.thread.is_alive()  # a fork has no threads
    if running is None or not shared:
        running = _running[_name(value)] = _Reading(value, read)
        running.thread.start()
    found, error = await asyncio.wrap_future(running.future)
    return found if error is None else _raised(error), shared
