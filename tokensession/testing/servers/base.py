"""A real HTTP server on loopback with one token endpoint and a small API behind it.

What a provider's server adds is data: how it reads a token request (refusing what is not byte-exact),
and how it words its replies. Everything else is here: its life, its gates and faults, its counters.

One token request goes through these stations: counted → read → its expiry noted → gate "before" →
fault, if one is scripted → redeemed → gate "after" → answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, ClassVar, Literal, Self

from aiohttp import web

from ...clock import Clock, SystemClock
from ...providers.protocol import Credential
from ...token import fingerprint
from . import api
from .faults import CLOSING, Fault, Gate, Response
from .ledger import Issue, Ledger
from .values import InvalidRequest, Rejected, Seen, ServerStats

__all__ = ["TokenServer"]

HoldAt = Literal["before", "after", "api"]
_HOLD_AT: tuple[HoldAt, ...] = ("before", "after", "api")

_LOG = 1000  # API requests remembered


class TokenServer(ABC):
    """The common part. `lifetime` is in whole seconds; port 0 takes a free one.

    Serves between `start()` and `close()`, or inside `async with`. Started again it keeps its port,
    its grants and its counters: an outage is a `close()` and a `start()`.
    """

    base_path: ClassVar[str] = ""
    token_path: ClassVar[str]

    def __init__(self, *, name: str, rotates: bool, lifetime: float, clock: Clock | None, port: int) -> None:
        if lifetime != int(lifetime) or lifetime < 1:
            raise ValueError(f"lifetime is {lifetime!r}: give whole seconds, 1 or more.")
        self.lifetime = int(lifetime)
        self.clock: Clock = SystemClock() if clock is None else clock
        self.invalid_requests: list[str] = []
        self.log: deque[Seen] = deque(maxlen=_LOG)
        self._ledger = Ledger(self.clock, self.lifetime, rotates, name)
        self._port = port
        self._runner: web.AppRunner | None = None
        self._faults: deque[Fault] = deque()
        self._gates: dict[HoldAt, list[Gate]] = {where: [] for where in _HOLD_AT}
        self._requests = self._unauthorized = self._rejections = 0
        self._token_requests = self._concurrent = self._concurrent_max = 0

    # -- what a provider's server says --------------------------------------------------------

    @property
    @abstractmethod
    def credentials(self) -> dict[str, Any]:
        """Keyword arguments for the provider of this server, `base_url` included: fake, and secret."""

    @abstractmethod
    def new_credential(self) -> str:
        """Sign in once more: a refresh token or code that has never been used, for a grant of its own."""

    @abstractmethod
    def read(self, request: web.Request, body: bytes) -> Credential:
        """What a token request wants redeemed. Raises `Refused` or `Rejected`."""

    @abstractmethod
    def granted(self, issue: Issue) -> Response:
        """The words of a success."""

    @abstractmethod
    def error_response(self, status: int, code: str, what: str) -> Response:
        """The words of a no. `code` is RFC 6749's error code."""

    @abstractmethod
    def unauthorized(self) -> Response:
        """The API's 401."""

    def routes(self) -> list[web.RouteDef]:
        """API routes of this provider, besides the common ones; paths below the base path."""
        return []

    # -- life ---------------------------------------------------------------------------------

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:port`. Raises RuntimeError before the first start."""
        if not self._port:
            raise RuntimeError("The server has no address yet: start it, or enter it with `async with`.")
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """What a provider takes as `base_url`: the origin and the base path."""
        return self.origin + self.base_path

    @property
    def token_url(self) -> str:
        """Where token requests go."""
        return self.base_url + self.token_path

    async def start(self) -> None:
        """Bind and serve. Raises OSError if the port is taken."""
        app = web.Application(client_max_size=1 << 30)
        app[CLOSING] = asyncio.Event()
        app.router.add_route("*", self.base_path + self.token_path, self._token)
        for route in [*api.routes(), *self.routes()]:
            handler: Any = route.handler
            app.router.add_route(route.method, self.base_path + route.path, self._guarded(handler))
        app.router.add_route("*", self.base_path + "/open/echo", api.echo)
        # A handler outlives its client: what has arrived is carried out, as at a real server.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop serving; whoever is held here or hangs is let go. Closing twice is harmless."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        runner.app[CLOSING].set()
        for gate in [gate for gates in self._gates.values() for gate in gates]:
            gate.open()
        await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- what a test can do to it -------------------------------------------------------------

    @property
    def stats(self) -> ServerStats:
        """The counters now."""
        return ServerStats(
            requests=self._requests,
            unauthorized=self._unauthorized,
            token_requests=self._token_requests,
            concurrent_token_requests_max=self._concurrent_max,
            expiries=self._ledger.expiries,
            reuse_detections=self._ledger.reuse_detections,
            invalid_requests=len(self.invalid_requests),
            rejections=self._rejections,
        )

    def script(self, *faults: Fault) -> None:
        """Queue faults: the next token requests get one each, in this order."""
        self._faults.extend(faults)

    @contextlib.asynccontextmanager
    async def hold(self, where: HoldAt) -> AsyncIterator[Gate]:
        """Hold requests until the gate is opened or the block is left.

        "before": token requests that have arrived, nothing spent yet. "after": the grant is spent
        and nothing answered yet. "api": API requests, before their bearer is looked at.
        """
        gate = Gate()
        self._gates[where].append(gate)
        try:
            yield gate
        finally:
            self._gates[where].remove(gate)
            gate.open()

    def revoke_access_tokens(self) -> None:
        """Every access token is refused from now on; refresh tokens stay good."""
        self._ledger.revoke_access_tokens()

    def revoke_grants(self) -> None:
        """Undo every sign-in, as an administrator does in a dashboard. `new_credential()` signs in again."""
        self._ledger.revoke_grants()

    # -- requests -----------------------------------------------------------------------------

    async def _token(self, request: web.Request) -> web.StreamResponse:
        with self._counted():
            body = await request.read()
            try:
                credential = self._read(request, body)
            except InvalidRequest as refusal:
                self.invalid_requests.append(str(refusal))
                return self.error_response(400, "invalid_request", f"Refused: {refusal}").response()
            except Rejected as rejection:
                self._rejections += 1
                return self.error_response(400, str(rejection), "The client is not known here.").response()
            noted = self._ledger.note(credential)
            fault = self._faults.popleft() if self._faults else None
            await self._pass("before")
            if fault is not None:
                return await fault.perform(request, lambda: self._redeem(credential, noted))
            return (await self._redeem(credential, noted)).response()

    def _read(self, request: web.Request, body: bytes) -> Credential:
        if request.method != "POST":
            raise InvalidRequest(f"the method is {request.method}, not POST")
        if request.query_string:
            raise InvalidRequest("the URL has a query")
        return self.read(request, body)

    async def _redeem(self, credential: Credential, noted: float) -> Response:
        issue = self._ledger.redeem(credential, noted)
        if issue is None:
            self._rejections += 1
        await self._pass("after")
        if issue is None:
            return self.error_response(
                400, "invalid_grant", "The grant is unknown, spent, expired or revoked."
            )
        return self.granted(issue)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._token_requests += 1
        self._concurrent += 1
        self._concurrent_max = max(self._concurrent_max, self._concurrent)
        try:
            yield
        finally:
            self._concurrent -= 1

    async def _pass(self, where: HoldAt) -> None:
        for gate in tuple(self._gates[where]):
            await gate.wait()

    def _guarded(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def guarded(request: web.Request) -> web.StreamResponse:
            self._requests += 1
            await self._pass("api")
            bearer = api.bearer(request)
            seen = None if bearer is None else fingerprint(bearer)
            if bearer is None or not self._ledger.alive(bearer):
                self._unauthorized += 1
                self.log.append(Seen(request.method, request.path, 401, seen))
                return api.padded(request, self.unauthorized()).response()
            response = await handler(request)
            self.log.append(Seen(request.method, request.path, response.status, seen))
            return response

        return guarded

    def __repr__(self) -> str:
        state = "closed" if self._runner is None else self.base_url
        return f"<{type(self).__name__} {state} lifetime={self.lifetime} s>"
