"""The access token as a callable: for database drivers, gRPC, Kafka clients and other HTTP libraries.

Some callbacks are coroutine functions, and some are called by a thread of the library's own. A source belongs
to one event loop, so a thread hands the question to that loop and waits. The wait has an end, and it is never
made in the loop's own thread, where it could not end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any

from ._validate import describe
from .errors import ConfigurationError, TokenUnavailable
from .policy import Freshness
from .source import ManagedSource, TokenSource
from .token import Token

__all__ = ["blocking_token_callable", "token_callable"]


def token_callable(source: TokenSource) -> Callable[[], Coroutine[Any, Any, str]]:
    """A coroutine function without parameters that returns the text of a valid access token.

    Each call is one `await source.token()`, and raises what that raises. Raises `ConfigurationError` if this
    is not a source.
    """
    _check_source(source)

    async def access_token() -> str:
        return (await source.token()).access_token

    return access_token


def blocking_token_callable(
    source: TokenSource, *, timeout: float = 30.0, loop: asyncio.AbstractEventLoop | None = None
) -> Callable[[], str]:
    """A plain function without parameters that returns the text of a valid access token, in any thread.

    - `source`: used in one event loop, which must run while the function waits.
    - `timeout`: the longest wait, in seconds.
    - `loop`: the source's event loop. The default is the one that a `ManagedSource` is used in, or else the
      one that runs where you make the function.

    While a `ManagedSource` has a fresh token, a call returns it at once, in every thread. Otherwise the event
    loop gets one, and the calling thread waits. In the thread of that event loop it never waits: it returns
    what can be had without, also a token that is due or ending, and starts a refresh if there is none.

    Do not fill the loop's own thread pool with calls that wait (`asyncio.to_thread`): the token request may
    need one of its threads to look up a name.

    The function raises what `source.token()` raises; `TokenUnavailable` if there is no token in time; and
    RuntimeError if it would have to wait for an event loop that does not run, or that a fork has left behind
    in the parent, or in that event loop's own thread. Raises `ConfigurationError` for arguments that cannot
    work.
    """
    _check_source(source)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < inf:
        raise ConfigurationError(f"timeout must be a number of seconds above 0, not {describe(timeout)}.")
    if loop is not None and not isinstance(loop, asyncio.AbstractEventLoop):
        raise ConfigurationError(f"loop must be an asyncio event loop, not {describe(loop)}.")
    made_in, process = asyncio._get_running_loop() if loop is None else loop, os.getpid()

    def access_token() -> str:
        token = _fresh(source)
        if token is None:
            home = _loop_of(source) if loop is None else None
            if home is None and os.getpid() == process:  # a fork copies a loop that seems to run
                home = made_in
            here = asyncio._get_running_loop()
            if home is None or not home.is_running():
                raise RuntimeError(_NOT_RUNNING)
            token = _without_waiting(source) if here is home else _from_loop(source, home, timeout)
        return token.access_token

    return access_token


_NOT_RUNNING = (
    "There is no fresh token, and the event loop that could get one does not run. Make the function in the "
    "event loop in which you use the source, or pass loop=, and call it while that loop runs. A forked child "
    "needs an event loop of its own."
)
_WOULD_WAIT = (
    "There is no valid token, and this call would have to wait for one in the thread of the event loop that "
    "gets it, which would stop both. Await source.token() before you call it here, or call it in another "
    "thread: await asyncio.to_thread(...)."
)


def _check_source(source: object) -> None:
    if isinstance(source, type) or not callable(getattr(source, "token", None)):
        raise ConfigurationError(
            f"source must have a token() method, and {describe(source)} has none.",
            todo="Pass a ManagedSource, or session.source.",
        )


def _fresh(source: TokenSource) -> Token | None:
    """The token of a `ManagedSource`, if it is FRESH. May be called in any thread.

    The event loop may change it at the same time. It sets the token before the deadlines, so read them in
    the opposite order: at worst this is the token of a moment ago. A request that must be counted is not.
    """
    if type(source) is not ManagedSource or source._cache.count is not None:
        return None
    cache = source._cache
    fresh = cache.deadlines.freshness(*source._now()) is Freshness.FRESH
    return cache.token if fresh else None


def _loop_of(source: TokenSource) -> asyncio.AbstractEventLoop | None:
    """The event loop that a `ManagedSource` is used in."""
    return source._home.loop if isinstance(source, ManagedSource) and not source._home.forked else None


def _without_waiting(source: TokenSource) -> Token:
    """A token that is there now, in the thread of its event loop. Starts a refresh if there is none."""
    asking: Coroutine[Any, Any, Token] = source.token()
    try:
        asking.send(None)
    except StopIteration as done:
        token: Token = done.value
        return token
    asking.close()  # it waits for a refresh, which goes on
    last = source._last() if isinstance(source, ManagedSource) else None
    if last is None:
        raise RuntimeError(_WOULD_WAIT)
    return last


def _from_loop(source: TokenSource, loop: asyncio.AbstractEventLoop, timeout: float) -> Token:
    """A token from its event loop, for another thread, which waits."""
    asking = source.token()
    try:
        answer = asyncio.run_coroutine_threadsafe(asking, loop)
    except RuntimeError:  # the loop was closed just now
        asking.close()
        raise RuntimeError(_NOT_RUNNING) from None
    try:
        return answer.result(timeout)
    except concurrent.futures.CancelledError:
        raise TokenUnavailable("The event loop ended while this thread waited for a token.") from None
    except TimeoutError:
        if not answer.cancel():  # it has come just now, or it is the source's own error
            return answer.result()
        raise TokenUnavailable(
            f"The event loop had no token for this thread within {timeout:g} s.",
            todo="Try again later. If the event loop was blocked, find out what blocks it.",
        ) from None
