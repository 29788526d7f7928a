"""One token request at the provider: spending its grant, and writing its answer, whole or not."""

from __future__ import annotations

import contextlib
import json
from typing import Protocol

from aiohttp import web

from tokensession.clock import SystemClock
from tokensession.testing import Response, ServerStats
from tokensession.testing.servers.faults import Genuine

from .instrumented import OFFSET

__all__ = ["Books", "Redeem", "answered", "left", "truncated"]

_boot = SystemClock.boot


class Books(Protocol):
    """The provider, as far as a token request needs it."""

    @property
    def stats(self) -> ServerStats:
        """Its counters."""
        ...

    def enter_redeemed(self, redeem: Redeem, answer: Response, *, before: float, withheld: bool) -> None:
        """A token pair was issued at `before` or a little later."""
        ...

    def enter_reused(self, redeem: Redeem) -> None:
        """A spent refresh token has come again."""
        ...


class Redeem:
    """Spends the grant of one token request, and books what comes of it."""

    def __init__(
        self,
        books: Books,
        number: int,
        worker: str,
        credential: str,
        request: web.Request,
        genuine: Genuine,
    ) -> None:
        self._books = books
        self._genuine = genuine
        self.number = number
        self.worker = worker
        self.credential = credential
        self.offset = float(request.headers.get(OFFSET, "0"))

    async def __call__(self, *, withheld: bool = False) -> Response:
        # The server's own redeeming awaits nothing that waits, so nobody comes in between.
        before, reuses = _boot(), self._books.stats.reuse_detections
        answer = await self._genuine()
        if answer.status == 200:
            self._books.enter_redeemed(self, answer, before=before, withheld=withheld)
        elif self._books.stats.reuse_detections > reuses:
            self._books.enter_reused(self)
        return answer


def left(request: web.Request) -> bool:
    """Whether its client has closed the connection."""
    return request.transport is None or request.transport.is_closing()


async def answered(request: web.Request, answer: Response) -> web.StreamResponse:
    """Written, as far as the client is still there; not only handed to aiohttp."""
    response = answer.response()
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write_eof()
    return response


async def truncated(request: web.Request) -> web.StreamResponse:
    """A reply that breaks off in the middle of a token which does not exist."""
    body = json.dumps({"access_token": "x" * 48, "token_type": "Bearer", "expires_in": 3}).encode()
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write(body[:20])
        if request.transport is not None:
            request.transport.close()  # after what was written: a reset could overtake it
    return response
