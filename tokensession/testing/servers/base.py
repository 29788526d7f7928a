"""A real HTTP server on loopback with one token endpoint and a small API behind it.

Starting, closing, gates, faults and counters are here. A provider's server adds how it reads a token
request and what its responses look like.

The way of one token request: counted → read → its expiry counted → gate "before" → fault, if one is
scripted → redeemed → gate "after" → response.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

from aiohttp import web
from anyio import CancelScope

from ...clock import Clock, SystemClock
from ...providers.protocol import Credential
from ...token import fingerprint
from . import api
from .faults import CLOSING, Fault, Gate, Response
from .ledger import Issue, Ledger
from .values import InvalidRequest, Rejected, Seen, ServerStats

__all__ = ["TokenServer"]

HoldAt: TypeAlias = Literal["before", "after", "api"]

_LOG = 1000  # API requests remembered

REQUEST_LOG = logging.getLogger("tokensession.testing.requests")
"""Gets one line for each request, if it is enabled for INFO: the status and the request line."""
REQUEST_LOG.setLevel(logging.WARNING)


class TokenServer(ABC):
    """What all test servers have in common. It serves inside `async with`, or from `start()` to `close()`.

    After `close()` and another `start()` it has the same port, tokens and counters: that is how you test an
    outage. `lifetime` is that of access tokens, in whole seconds. Port 0 takes a free one.
    """

    base_path: ClassVar[str] = ""
    token_path: ClassVar[str]
    token_query: str = ""
    """The query of the token URL."""

    def __init__(self, *, name: str, rotates: bool, lifetime: float, clock: Clock | None, port: int) -> None:
        if lifetime != int(lifetime) or lifetime < 1:
            raise ValueError(f"lifetime must be whole seconds, 1 or more, not {lifetime!r}.")
        self.lifetime: int = int(lifetime)
        self.clock: Clock = SystemClock() if clock is None else clock
        self.invalid_requests: list[str] = []
        """Why each invalid token request was invalid."""
        self.log: deque[Seen] = deque(maxlen=_LOG)
        """The last 1000 API requests."""
        self._ledger = Ledger(self.clock, self.lifetime, rotates, name)
        self._port = port
        self._runner: web.AppRunner | None = None
        self._faults: deque[Fault] = deque()
        self._gates: dict[HoldAt, list[Gate]] = {where: [] for where in get_args(HoldAt)}
        self._requests = self._unauthorized = self._rejections = 0
        self._token_requests = self._concurrent = self._concurrent_max = 0

    @property
    @abstractmethod
    def credentials(self) -> dict[str, Any]:
        """Keyword arguments for this server's provider, with `base_url`: `Oto(**server.credentials)`."""

    @abstractmethod
    def new_credential(self) -> str:
        """Sign in once more. Returns a new refresh token or code, independent of all earlier ones."""

    @abstractmethod
    def read(self, request: web.Request, body: bytes) -> Credential:
        """The credential that a token request redeems. Raises `InvalidRequest` or `Rejected`."""

    @abstractmethod
    def success_response(self, issue: Issue) -> Response:
        """The response to a token request that succeeded."""

    @abstractmethod
    def error_response(self, status: int, code: str, what: str) -> Response:
        """The response to one that failed. `code` is RFC 6749's error code, `what` describes the error."""

    @abstractmethod
    def unauthorized_response(self) -> Response:
        """The API's 401."""

    def routes(self) -> list[web.RouteDef]:
        """API routes besides the common ones, below the base path. All need a valid bearer token."""
        return []

    def endpoints(self) -> list[web.RouteDef]:
        """Endpoints beside the token endpoint, below the base path. None needs a bearer token."""
        return []

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:port`. Raises RuntimeError before the first start."""
        if not self._port:
            raise RuntimeError(
                "The server has no address before its first start. Use `async with`, or call start()."
            )
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """The origin and the base path. A provider's `base_url`."""
        return self.origin + self.base_path

    @property
    def token_url(self) -> str:
        """The URL for token requests."""
        return self.base_url + self.token_path + (f"?{self.token_query}" if self.token_query else "")

    async def start(self) -> None:
        """Start to serve. Raises `OSError` if the port is taken."""
        app = web.Application(client_max_size=1 << 30)
        app[CLOSING] = asyncio.Event()
        app.router.add_route("*", self.base_path + self.token_path, self._token)
        for route in [*api.routes(), *self.routes()]:
            handler: Any = route.handler
            app.router.add_route(route.method, self.base_path + route.path, self._guarded(handler))
        for route in [web.route("*", "/open/echo", api.echo), *self.endpoints()]:
            open_handler: Any = route.handler
            app.router.add_route(route.method, self.base_path + route.path, open_handler)
        # A handler goes on when its client disconnects: like a real server, it carries out what arrived.
        self._runner = web.AppRunner(
            app, access_log=REQUEST_LOG, access_log_format="%s %r", shutdown_timeout=0.5
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop serving, open all gates and end all requests. Safe to call twice.

        A cancelled anyio scope does not cut this short.
        """
        runner, self._runner = self._runner, None
        if runner is None:
            return
        runner.app[CLOSING].set()
        for gates in self._gates.values():
            for gate in gates:
                gate.open()
        with CancelScope(shield=True):
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

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
        """Queue faults. Each of the next token requests gets one, in this order. See `faults`."""
        self._faults.extend(faults)

    @contextlib.asynccontextmanager
    async def hold(self, where: HoldAt) -> AsyncIterator[Gate]:
        """Hold requests until you open the gate or leave the block.

        "before": token requests that have arrived; their credential is not spent yet. "after": token requests
        whose credential is spent, before the response. "api": API requests, before their token is checked.
        """
        gate = Gate()
        self._gates[where].append(gate)
        try:
            yield gate
        finally:
            self._gates[where].remove(gate)
            gate.open()

    def revoke_access_tokens(self) -> None:
        """Answer 401 to every access token issued so far. Refresh tokens stay valid."""
        self._ledger.revoke_access_tokens()

    def revoke_grants(self) -> None:
        """Revoke every sign-in, as a person does in a dashboard. `new_credential()` signs in again."""
        self._ledger.revoke_grants()

    async def _token(self, request: web.Request) -> web.StreamResponse:
        with self._counted():
            body = await request.read()
            try:
                credential = self._read(request, body)
            except InvalidRequest as invalid:
                self.invalid_requests.append(str(invalid))
                return self.error_response(400, "invalid_request", f"Invalid request: {invalid}").to_web()
            except Rejected as rejected:
                self._rejections += 1
                return self.error_response(400, str(rejected), "Unknown client or wrong secret.").to_web()
            arrived = self._ledger.count_expiry(credential)
            fault = self._faults.popleft() if self._faults else None
            await self._pass("before")
            if fault is not None:
                return await fault.perform(request, lambda: self._redeem(credential, arrived))
            return (await self._redeem(credential, arrived)).to_web()

    def _read(self, request: web.Request, body: bytes) -> Credential:
        if request.method != "POST":
            raise InvalidRequest(f"the method is {request.method}, not POST")
        if request.rel_url.raw_query_string != self.token_query:
            raise InvalidRequest(
                "the URL has a query" if request.query_string else "the URL's query is missing"
            )
        return self.read(request, body)

    async def _redeem(self, credential: Credential, arrived: float) -> Response:
        issue = self._ledger.redeem(credential, arrived)
        if issue is None:
            self._rejections += 1
        await self._pass("after")
        if issue is None:
            return self.error_response(400, "invalid_grant", "The credential is unknown, spent or revoked.")
        return self.success_response(issue)

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
            token = api.bearer_token(request)
            seen = None if token is None else fingerprint(token)
            if token is None or not self._ledger.valid(token):
                self._unauthorized += 1
                self.log.append(Seen(request.method, request.path, 401, seen))
                return api.padded(request, self.unauthorized_response()).to_web()
            response = await handler(request)
            self.log.append(Seen(request.method, request.path, response.status, seen))
            return response

        return guarded

    def __repr__(self) -> str:
        state = "closed" if self._runner is None else self.base_url
        return f"<{type(self).__name__} {state} lifetime={self.lifetime} s>"
