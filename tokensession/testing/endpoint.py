"""A token endpoint without a network: it answers from a script and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from ..providers.base import TokenReply, TokenRequest

__all__ = ["Held", "ScriptedEndpoint", "reply"]

Line = TokenReply | BaseException
Answer = Callable[[TokenRequest], TokenReply | Awaitable[TokenReply]]


def reply(document: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> TokenReply:
    """A `TokenReply` with a JSON document, or with these very bytes. Header names in lower case."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return TokenReply(status, headers, body)


class Held:
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


class ScriptedEndpoint:
    """A `TokenEndpoint` that takes one line of its script for each request, in order.

    A line is a `TokenReply`, an exception to raise, `Held(...)` around one of these, or a function of
    the `TokenRequest` that returns a reply, also as an awaitable. A request after the last line raises
    AssertionError; `overasked` counts those too, for code that swallows it. `requests` has everything
    that was asked, `timeouts` the (connect, total) seconds that came with each.
    """

    def __init__(self, *lines: Line | Held | Answer) -> None:
        self._lines: deque[Line | Held | Answer] = deque(lines)
        self.requests: list[TokenRequest] = []
        self.timeouts: list[tuple[float, float]] = []
        self.overasked = 0

    def script(self, *lines: Line | Held | Answer) -> None:
        """Append to the script."""
        self._lines.extend(lines)

    @property
    def left(self) -> int:
        """How many lines have not been asked for."""
        return len(self._lines)

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenReply:
        """The next line. The time-outs are written down, and no time passes."""
        self.requests.append(request)
        self.timeouts.append((connect, total))
        if not self._lines:
            self.overasked += 1
            raise AssertionError(f"ScriptedEndpoint: request {len(self.requests)} is one too many")
        line = self._lines.popleft()
        if isinstance(line, Held):
            await line.wait()
            line = line.line
        if isinstance(line, TokenReply):
            return line
        if isinstance(line, BaseException):
            raise line
        answer = line(request)
        return answer if isinstance(answer, TokenReply) else await answer

    def __repr__(self) -> str:
        return f"<ScriptedEndpoint {len(self.requests)} requests, {self.left} lines left>"
