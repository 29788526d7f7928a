"""One token request at the provider: spending its grant, and writing its response, complete or not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from typing import Any, Protocol

from aiohttp import web

from tokensession.clock import SystemClock
from tokensession.providers.protocol import Credential
from tokensession.testing import Response, ServerStats, Truncate, json_response
from tokensession.testing.servers.faults import Genuine

from .instrumented import OFFSET

__all__ = ["Recorder", "Redemption", "disconnected", "hold", "truncated", "written"]

_POLL = 0.02  # seconds between two checks whether a waiting client has disconnected
_boot = SystemClock.boot


class Recorder(Protocol):
    """What a token request needs from the provider."""

    @property
    def stats(self) -> ServerStats:
        """Its counters."""
        ...

    def add_redeemed(self, redemption: Redemption, document: dict[str, Any], *, before: float) -> None:
        """A token pair was issued at `before` or a little later."""
        ...

    def add_reused(self, redemption: Redemption) -> None:
        """A spent refresh token has come again."""
        ...


class Redemption:
    """Spends the grant of one token request when called, and records the outcome.

    `successor` is the next refresh token, once there is one.
    """

    def __init__(
        self,
        recorder: Recorder,
        number: int,
        worker: str,
        credential: Credential,
        request: web.Request,
        genuine: Genuine,
    ) -> None:
        self._recorder = recorder
        self._genuine = genuine
        self.number = number
        self.worker = worker
        self.credential = credential
        self.offset = float(request.headers.get(OFFSET, "0"))
        self.successor: Credential | None = None

    async def __call__(self) -> Response:
        # `genuine` never suspends, so no other request changes the counter in between.
        before, reuses = _boot(), self._recorder.stats.reuse_detections
        response = await self._genuine()
        if response.status == 200:
            document = json.loads(response.body)
            self.successor = Credential("refresh_token", document["refresh_token"])
            self._recorder.add_redeemed(self, document, before=before)
        elif self._recorder.stats.reuse_detections > reuses:
            self._recorder.add_reused(self)
        return response


def disconnected(request: web.Request) -> bool:
    """Whether its client has closed the connection."""
    return request.transport is None or request.transport.is_closing()


async def hold(request: web.Request, seconds: float = math.inf) -> bool:
    """Do not answer for so long. Returns whether the client is still there; ends early if it is not."""
    until = _boot() + seconds
    while _boot() < until and not disconnected(request):  # noqa: ASYNC110 - aiohttp has no event for it
        await asyncio.sleep(_POLL)
    return not disconnected(request)


async def written(request: web.Request, response: Response) -> web.StreamResponse:
    """The response, already written to the client, as far as the client is still connected."""
    answer = response.to_web()
    with contextlib.suppress(ConnectionError):
        await answer.prepare(request)
        await answer.write_eof()
    return answer


async def truncated(request: web.Request) -> web.StreamResponse:
    """A response that breaks off in the middle of a made-up token."""

    async def made_up() -> Response:
        return json_response(200, {"access_token": "x" * 48, "token_type": "Bearer", "expires_in": 3})

    with contextlib.suppress(ConnectionError):
        return await Truncate().perform(request, made_up)
    return web.Response()
