"""Receives the redirect of a sign-in on this machine, for programs without a web server (RFC 8252, 7.3)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from types import TracebackType
from typing import Self

from aiohttp import web
from anyio import CancelScope

from .authorization import AuthorizationRequest

__all__ = ["LoopbackRedirect"]

_MOST = 32  # redirects that are kept for `receive`: anything on this machine may send some
_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}  # the address has the code
# Bytes of the address, and of a header: codes may be long, and so may cookies of 127.0.0.1.
_LONGEST = 64 * 1024
# aiohttp quotes a request that it refuses.
_SILENT = logging.Logger("tokensession.grants", logging.CRITICAL + 1)
_CLOSED = "Enter it first: `async with LoopbackRedirect() as redirect`."


class LoopbackRedirect:
    """A small web server on 127.0.0.1 that waits for one redirect.

    Open it with `async with LoopbackRedirect() as redirect`.

    - `path` and `port`: where it listens. Port 0 takes a free one: servers have to allow any (RFC 8252, 7.3).
      Register the address without the port, or with the one that you pass.
    - `page`: what the person reads in the browser at the end.

    Entering it raises `OSError` if the port is taken. Nothing is logged, because the address has the code.
    """

    __slots__ = ("_arrived", "_came", "_page", "_path", "_port", "_runner", "_waiting")

    def __init__(
        self,
        *,
        path: str = "/callback",
        port: int = 0,
        page: str = "You can close this window and go back to the program.",
    ) -> None:
        self._path, self._port, self._page = path, port, page
        self._runner: web.AppRunner | None = None
        self._waiting: AuthorizationRequest | None = None
        self._arrived: asyncio.Event | None = None
        self._came: deque[str] = deque(maxlen=_MOST)

    @property
    def uri(self) -> str:
        """The redirect_uri, such as "http://127.0.0.1:49152/callback". RuntimeError before it is open."""
        if self._runner is None:
            raise RuntimeError(_CLOSED)
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}{self._path}"

    async def receive(self, request: AuthorizationRequest) -> str:
        """Wait for the redirect of this sign-in. Returns its URL, for `AuthorizationRequest.sign_in`.

        It may have come before this call. While it waits, a request with another state is answered with 400
        and forgotten: anything on this machine may send one. Waits until it comes: use `asyncio.timeout` for
        a bound.

        Raises RuntimeError if it is waiting already, not open, or closed while it waits.
        """
        if self._waiting is not None:
            raise RuntimeError("It is waiting for a redirect already. Open another one for another sign-in.")
        if self._runner is None:
            raise RuntimeError(_CLOSED)
        self._waiting, self._arrived = request, asyncio.Event()
        try:
            while (url := next(filter(request.is_answered_by, self._came), None)) is None:
                await self._arrived.wait()
                if self._runner is None:
                    raise RuntimeError("It was closed while it waited for a redirect.")
            return url
        finally:
            self._waiting = None

    async def _handle(self, request: web.Request) -> web.Response:
        url = str(request.url)
        answered = "state" in request.query and not request.query.keys().isdisjoint({"code", "error"})
        if not answered or (self._waiting is not None and not self._waiting.is_answered_by(url)):
            return web.Response(status=400, text="This is another sign-in.", headers=_HEADERS)
        self._came.append(url)
        if self._arrived is not None:
            self._arrived.set()
        return web.Response(text=self._page, headers=_HEADERS)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get(self._path, self._handle)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_SILENT,
            max_line_size=_LONGEST,
            max_field_size=_LONGEST,
            shutdown_timeout=0.5,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        runner, self._runner = self._runner, None
        self._came.clear()
        if self._arrived is not None:
            self._arrived.set()
        if runner is not None:
            with CancelScope(shield=True):
                await runner.cleanup()

    def __repr__(self) -> str:
        return f"<LoopbackRedirect {self.uri if self._runner is not None else 'closed'}>"
