"""A transport without a network: it responds from a script and records the requests."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from ..errors import NotSent
from ..providers.protocol import TokenRequest, TokenResponse

__all__ = ["Paused", "ScriptedTransport", "token_response"]

Outcome: TypeAlias = TokenResponse | BaseException
"""A response to return, or an exception to raise."""
Responder: TypeAlias = Callable[[TokenRequest], TokenResponse | Awaitable[TokenResponse]]
"""A function, async or not, that makes the response to a request."""


def token_response(
    document: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
) -> TokenResponse:
    """A `TokenResponse` with this JSON document, or with exactly these bytes."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return TokenResponse(status, headers, body)


class Paused:
    """A line of a script that waits until your test releases it.

    `await paused.arrived.wait()` returns when the request is there. `paused.release()` lets it have its
    response or exception.
    """

    def __init__(self, line: Outcome) -> None:
        self.line: Outcome = line
        self.arrived: asyncio.Event = asyncio.Event()
        self._released = asyncio.Event()

    def release(self) -> None:
        """Return the response, or raise the exception. Call it before or after the request arrives."""
        self._released.set()

    async def wait(self) -> None:
        """Called by the transport: note that the request has arrived, and wait for `release`."""
        self.arrived.set()
        await self._released.wait()

    def __repr__(self) -> str:
        return f"<Paused {'arrived' if self.arrived.is_set() else 'not reached yet'}>"


class ScriptedTransport:
    """A `TokenTransport` that takes one line of its script for each token request, in order.

    A line is a `TokenResponse`, an exception to raise, `Paused(...)` around one of these, or a function of
    the `TokenRequest` that returns a `TokenResponse` or an awaitable of one.

    Before a line is used, `on_sending` is awaited, as if the request were about to leave. If it raises, the
    line is left for the next request. It is not awaited for a `NotSent`, which says that nothing has left.

    A request after the last line raises `AssertionError`. `unexpected_requests` counts these too, in case
    the code under test swallows the error. `requests` has every request, `timeouts` the (connect, total)
    seconds that came with each, and `sent` counts those that have left.
    """

    def __init__(self, *lines: Outcome | Paused | Responder) -> None:
        self._lines = deque(lines)
        self.requests: list[TokenRequest] = []
        self.timeouts: list[tuple[float, float]] = []
        self.unexpected_requests: int = 0
        self.sent: int = 0

    def script(self, *lines: Outcome | Paused | Responder) -> None:
        """Append lines to the script."""
        self._lines.extend(lines)

    @property
    def left(self) -> int:
        """How many lines are still unused."""
        return len(self._lines)

    async def send(
        self,
        request: TokenRequest,
        *,
        connect: float,
        total: float,
        on_sending: Callable[[], Awaitable[None]] | None = None,
    ) -> TokenResponse:
        """Take the next line. The timeouts are recorded, not applied."""
        self.requests.append(request)
        self.timeouts.append((connect, total))
        if not self._lines:
            self.unexpected_requests += 1
            raise AssertionError(f"ScriptedTransport: no line is left for request {len(self.requests)}")
        line = self._lines.popleft()
        if not isinstance(line.line if isinstance(line, Paused) else line, NotSent):
            try:
                if on_sending is not None:
                    await on_sending()
            except BaseException:
                self._lines.appendleft(line)
                raise
            self.sent += 1
        if isinstance(line, Paused):
            await line.wait()
            line = line.line
        if isinstance(line, TokenResponse):
            return line
        if isinstance(line, BaseException):
            raise line
        response = line(request)
        return response if isinstance(response, TokenResponse) else await response

    def __repr__(self) -> str:
        return f"<ScriptedTransport {len(self.requests)} requests, {self.left} lines left>"
