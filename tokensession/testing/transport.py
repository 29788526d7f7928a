"""A token endpoint without a network: it answers from a script and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from ..providers.protocol import TokenRequest, TokenResponse

__all__ = ["Paused", "ScriptedTransport", "token_response"]

Line = TokenResponse | BaseException
Answer = Callable[[TokenRequest], TokenResponse | Awaitable[TokenResponse]]


def token_response(
    document: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
) -> TokenResponse:
    """A `TokenResponse` with a JSON document, or with these very bytes. Header names in lower case."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return TokenResponse(status, headers, body)


class Paused:
    """A line of the script that is answered only when the test says so.

    `await held.arrived.wait()` until the request is there, `held.release()` to have it answered.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self.arrived = asyncio.Event()
        self._released = asyncio.Event()

    def release(self) -> None:
        """Let the answer out."""
        self._released.set()

    async def wait(self) -> None:
        """What the endpoint does with it."""
        self.arrived.set()
        await self._released.wait()

    def __repr__(self) -> str:
        return f"<Held {'arrived' if self.arrived.is_set() else 'not asked yet'}>"


class ScriptedTransport:
    """A `TokenTransport` that takes one line of its script for each request, in order.

    A line is a `TokenResponse`, an exception to raise, `Held(...)` around one of these, or a function of
    the `TokenRequest` that returns a reply, also as an awaitable. A request after the last line raises
    AssertionError; `overasked` counts those too, for code that swallows it. `requests` has everything
    that was asked, `timeouts` the (connect, total) seconds that came with each.
    """

    def __init__(self, *lines: Line | Paused | Answer) -> None:
        self._lines: deque[Line | Paused | Answer] = deque(lines)
        self.requests: list[TokenRequest] = []
        self.timeouts: list[tuple[float, float]] = []
        self.overasked = 0

    def script(self, *lines: Line | Paused | Answer) -> None:
        """Append to the script."""
        self._lines.extend(lines)

    @property
    def left(self) -> int:
        """How many lines have not been asked for."""
        return len(self._lines)

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        """The next line. The time-outs are written down, and no time passes."""
        self.requests.append(request)
        self.timeouts.append((connect, total))
        if not self._lines:
            self.overasked += 1
            raise AssertionError(f"ScriptedTransport: request {len(self.requests)} is one too many")
        line = self._lines.popleft()
        if isinstance(line, Paused):
            await line.wait()
            line = line.line
        if isinstance(line, TokenResponse):
            return line
        if isinstance(line, BaseException):
            raise line
        answer = line(request)
        return answer if isinstance(answer, TokenResponse) else await answer

    def __repr__(self) -> str:
        return f"<ScriptedTransport {len(self.requests)} requests, {self.left} lines left>"
