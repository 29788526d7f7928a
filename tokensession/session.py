"""`AuthedSession`: an aiohttp session that sends a valid bearer token with every request.

A thin layer. The source manages the token and the middleware sets the header. This class combines them with
a ClientSession, resolves relative URLs, and owns what it opens. It does not subclass ClientSession, because
aiohttp is making that class final.
"""

from __future__ import annotations

import asyncio
import copy
from asyncio import _get_running_loop as _running
from collections.abc import Coroutine, Generator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from types import FunctionType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import aiohttp
from aiohttp import hdrs
from anyio import CancelScope
from multidict import CIMultiDict
from yarl import URL

from ._validate import describe, is_localhost
from .clock import Clock
from .errors import ConfigurationError
from .home import THIS_PROCESS, Home, parents
from .middleware import BearerAuth, warn_of_cache
from .observer import Observer
from .origins import resolve
from .policy import Policy
from .providers.protocol import Provider, TokenTransport
from .source import ManagedSource, check_provider
from .stores.protocol import Store
from .transport import Resolver

if TYPE_CHECKING:
    from typing import Unpack

    # aiohttp keeps these names private; at run time nothing depends on them.
    from aiohttp.client import _RequestContextManager, _RequestOptions, _WSConnectOptions

__all__ = ["AuthedSession"]

_TARGETS = 256  # URLs that a session remembers
_NO_TARGETS: dict[str | URL, URL] = {}  # of all sessions, so that an idle one stays small
_REQUEST: object = aiohttp.ClientSession.request
if not isinstance(_REQUEST, FunctionType) or _REQUEST.__code__.co_filename != aiohttp.client.__file__:
    _REQUEST = None  # a tool has put its own in place before: it is called


class AuthedSession:
    """An aiohttp session that sends a valid bearer token with every request.

    Use it like a ClientSession: `async with session.get("/path") as response`. A relative URL is appended to
    the provider's base URL. An absolute URL must be of the provider's origins, or of `origins`.

    - `auth`: a provider, or a `ManagedSource` of your own.
    - `store`: a store, a URL for `open_store` such as `"sqlite:///tokens.db"`, or the `pathlib.Path` of an
      SQLite database. Without one, tokens live in memory.
    - `client`: a ClientSession of your own. Its middlewares run before ours.
    - `unauthorized_statuses`: the statuses of the API that mean "this token is not valid", as in
      `BearerAuth`.
    - `transport` sends the token requests. Pass `AiohttpTransport(ssl=..., proxy=...)` for a private
      certificate authority or a proxy.
    - `key`, `policy`, `clock` and `observer` go to the `ManagedSource`.

    What you pass in stays open; what is opened here is closed here. Making a session does no I/O and needs no
    event loop. You may open it in one task and close it in another, and enter it again after it was closed,
    also in another event loop. While one event loop uses it, using or closing it in another one raises
    RuntimeError. A forked child may use it in an event loop of its own, with a client of its own.
    Raises `ConfigurationError` for arguments that cannot work.
    """

    __slots__ = (
        "__weakref__",
        "_base",
        "_bearer",
        "_client",
        "_closed",
        "_home",
        "_only_bearer",
        "_owned_client",
        "_owned_source",
        "_source",
        "_targets",
    )

    def __init__(
        self,
        auth: Provider | ManagedSource,
        *,
        store: Store | str | Path | None = None,
        client: aiohttp.ClientSession | None = None,
        key: str | None = None,
        origins: Iterable[str] = (),
        policy: Policy | None = None,
        clock: Clock | None = None,
        observer: Observer | None = None,
        transport: TokenTransport | None = None,
        unauthorized_statuses: Iterable[int] | None = None,
    ) -> None:
        if not isinstance(auth, ManagedSource):
            check_provider("auth", auth)
        if client is not None and not isinstance(client, aiohttp.ClientSession):
            raise ConfigurationError(f"client must be an aiohttp.ClientSession, not {describe(client)}.")
        self._owned_source = not isinstance(auth, ManagedSource)
        if isinstance(auth, ManagedSource):
            settings = {
                "store": store,
                "key": key,
                "policy": policy,
                "clock": clock,
                "observer": observer,
                "transport": transport,
            }
            if given := [name for name, value in settings.items() if value is not None]:
                raise ConfigurationError(
                    f"{', '.join(given)} cannot be set here, because the session uses your ManagedSource.",
                    todo=f"Pass {'it' if len(given) == 1 else 'them'} to the ManagedSource.",
                )
            self._source = auth
        else:
            self._source = ManagedSource(
                auth, transport, store=store, key=key, policy=policy, clock=clock, observer=observer
            )
        provider = self._source.provider
        if isinstance(origins, str):
            origins = (origins,)
        self._bearer = BearerAuth(
            self._source,
            origins=(*provider.origins, *origins),
            headers=provider.api_headers,
            unauthorized_statuses=unauthorized_statuses,
        )
        # The middlewares of most requests. A method is called faster than an object that has a __call__.
        self._only_bearer = (self._bearer.__call__,)
        self._base = provider.base_url
        self._targets = _NO_TARGETS
        self._client = client
        self._owned_client = client is None
        self._home = Home("session")
        self._closed = False
        if client is not None:
            warn_of_cache(client)

    # -- state ------------------------------------------------------------------------------------

    @property
    def source(self) -> ManagedSource:
        """The source of this session's tokens: sign in and out, refresh, look at its state."""
        return self._source

    @property
    def client(self) -> aiohttp.ClientSession:
        """The plain ClientSession, for requests without the token. Opened on first use."""
        if self._closed:
            raise RuntimeError("Session is closed")
        home = self._home
        try:
            here = home.loop is asyncio.get_running_loop() and not home.forked
        except RuntimeError:
            here = False
        if not here:
            self._move()
        if self._client is None:
            self._client = aiohttp.ClientSession(connector=self._connector())
        return self._client

    def _connector(self) -> aiohttp.TCPConnector | None:
        """One that knows `localhost` and the names below it, if the token may go there, or None."""
        if any(host is not None and is_localhost(host) for _, host, _ in self._bearer.origins):
            return aiohttp.TCPConnector(resolver=Resolver())
        return None

    def _move(self) -> None:
        """Be used in the running event loop from now on. Raises RuntimeError if that cannot be."""
        home, client = self._home, self._client
        loop = home.check()
        self._leave_parent()
        if client is not None and not self._owned_client and client._loop is not loop:
            raise RuntimeError(
                "The client that you passed to this session belongs to another event loop, perhaps in the "
                "parent of this process. Make a ClientSession in this event loop, and a session that uses it."
            )
        if (
            self._owned_client
            and home.loop is not loop
            and home.loop is not None
            and self._client is not None
        ):
            if not home.loop.is_closed():
                raise RuntimeError(
                    "This session is open in another event loop. Close it there, or make a session for each "
                    "loop."
                )
            self._client = None  # left unclosed by a loop that is gone; aiohttp warns about it
        home.move(loop)

    def _leave_parent(self) -> None:
        """In a forked child, forget the client of the parent, without closing it."""
        home = self._home
        if home.forked:
            parents.append((self._client, home.loop))
            if self._owned_client:
                self._client = None
            home.loop, home.pid = None, THIS_PROCESS.pid

    @property
    def closed(self) -> bool:
        """Whether this session has been closed."""
        return self._closed or (not self._owned_client and self._client is not None and self._client.closed)

    def __reduce__(self) -> NoReturn:
        """Neither pickled nor copied: it has an open client, and a source with a token in memory."""
        raise TypeError(
            "An AuthedSession cannot be pickled or copied, because it has open connections and a token in "
            "memory. Pass the provider and the store, or the store's URL, and make a session from them."
        )

    def __repr__(self) -> str:
        return f"<AuthedSession {self._base} {'closed' if self.closed else 'open'} {self._source!r}>"

    # -- requests ---------------------------------------------------------------------------------

    def request(
        self, method: str, url: str | URL, **kwargs: Unpack[_RequestOptions]
    ) -> _RequestContextManager:
        """Any request, with aiohttp's parameters and result: await it, or use `async with`.

        Raises `ForeignOrigin` or `ConfigurationError` before anything is sent. Awaiting it raises what
        `source.token()` and aiohttp raise.
        """
        return self._request(method, url, kwargs)

    def get(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A GET request."""
        return self._verb(hdrs.METH_GET, url, kwargs)

    def options(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """An OPTIONS request."""
        return self._verb(hdrs.METH_OPTIONS, url, kwargs)

    def head(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A HEAD request. Like aiohttp's, it follows no redirect unless you pass `allow_redirects=True`."""
        kwargs.setdefault("allow_redirects", False)
        return self._verb(hdrs.METH_HEAD, url, kwargs)

    def post(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A POST request."""
        return self._verb(hdrs.METH_POST, url, kwargs)

    def put(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A PUT request."""
        return self._verb(hdrs.METH_PUT, url, kwargs)

    def patch(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A PATCH request."""
        return self._verb(hdrs.METH_PATCH, url, kwargs)

    def delete(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A DELETE request."""
        return self._verb(hdrs.METH_DELETE, url, kwargs)

    def _verb(self, method: str, url: str | URL, options: _RequestOptions) -> _RequestContextManager:
        if type(self).request is not _OUR_REQUEST:  # a subclass's, or a tool's: it is called
            return self.request(method, url, **options)
        return self._request(method, url, options)

    def _request(self, method: str, url: str | URL, options: _RequestOptions) -> _RequestContextManager:
        target = self._targets.get(url)
        if target is None:
            target = self._target(url)
        client, home, loop = self._client, self._home, _running()
        if (
            client is None
            or self._closed
            or loop is None
            or home.loop is not loop
            or home.pid != THIS_PROCESS.pid
        ):
            client = self.client
        if options:
            _check_headers(options)
        # aiohttp lets a request's middlewares replace the client's, and has no public way to read the
        # client's. Without reading them, we would silently drop what the owner of the client has set. Ours
        # is the last, so none of them sees the token.
        wanted = options.get("middlewares")
        others = client._middlewares if wanted is None else wanted
        options["middlewares"] = (*others, self._bearer) if others else self._only_bearer
        try:
            plain = client.request.__func__ is _REQUEST  # type: ignore[attr-defined]
        except AttributeError:
            plain = False
        if not plain:  # yours, or a tool's
            return client.request(method, target, **options)
        return _RequestOpening(client._request(method, target, **options))  # type: ignore[return-value, arg-type]

    def _target(self, url: str | URL) -> URL:
        """The absolute URL of a request, if the token may go there. Remembered: most programs use a few."""
        target = resolve(self._base, self._bearer.origins, url)
        if not 0 < len(self._targets) < _TARGETS:
            self._targets = {}
        self._targets[url] = target
        return target

    def ws_connect(self, url: str | URL, **kwargs: Unpack[_WSConnectOptions]) -> _WebSocketOpening:
        """A websocket whose handshake carries the token: await it, or use `async with`.

        Parameters, result and errors are those of aiohttp's `ws_connect`, and of `request`.
        """
        target, client = self._target(url), self.client
        _check_headers(kwargs)
        return _WebSocketOpening(self._handshake(client, target, kwargs))

    async def _handshake(
        self, client: aiohttp.ClientSession, url: URL, options: _WSConnectOptions
    ) -> aiohttp.ClientWebSocketResponse:
        # ws_connect takes no middlewares for one request. So the handshake goes through a shallow copy of
        # the client, which shares its connector, cookies and settings. The copy is detached as soon as the
        # socket is open.
        twin = copy.copy(client)
        twin._middlewares = (*client._middlewares, self._bearer)
        try:
            socket: aiohttp.ClientWebSocketResponse = await twin.ws_connect(url, **options)
            return socket
        finally:
            twin.detach()

    # -- opening and closing ----------------------------------------------------------------------

    async def close(self) -> None:
        """Let a running refresh finish, then close what this session has opened.

        A cancelled anyio scope does not cut this short. If `task.cancel()` does, call it again: it
        continues. Raises `StoreUnavailable` if a new token could not be stored in time; everything is closed
        all the same. Safe to call twice. Raises RuntimeError, and closes nothing, if the session is in use in
        another running event loop.
        """
        self._home.check()
        if self._owned_source:
            self._source._home.check()
        self._leave_parent()
        self._closed = True
        with CancelScope(shield=True):
            async with AsyncExitStack() as stack:  # runs in reverse: the source with its store, the client
                stack.push_async_callback(self._close_client)
                if self._owned_source:
                    stack.push_async_callback(self._source.aclose)

    async def _close_client(self) -> None:
        self._home.loop = None
        if self._owned_client and self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def __aenter__(self) -> Self:
        """Open it, or open it again."""
        self._move()
        self._closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it: see `close`."""
        await self.close()


_OUR_REQUEST = AuthedSession.request
_Opened = TypeVar("_Opened", covariant=True)


class _Opening(Coroutine[Any, Any, _Opened]):
    """What is being opened: a coroutine, and an async context manager that closes it."""

    __slots__ = ("_opened", "_opening")

    def __init__(self, opening: Coroutine[Any, Any, _Opened]) -> None:
        self._opening = opening

    def __await__(self) -> Generator[Any, None, _Opened]:
        return self._opening.__await__()

    def __iter__(self) -> Generator[Any, None, _Opened]:
        return self.__await__()

    def send(self, value: Any) -> Any:
        """Go on, as a coroutine does."""
        return self._opening.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an error where it waits."""
        return self._opening.throw(*error)

    def close(self) -> None:
        """Give up."""
        self._opening.close()


class _RequestOpening(_Opening[aiohttp.ClientResponse]):
    """A request, as aiohttp opens and closes it, with fewer coroutines and without releasing it twice."""

    __slots__ = ()

    async def __aenter__(self) -> aiohttp.ClientResponse:
        self._opened = response = await self._opening
        if type(response) is not aiohttp.ClientResponse:
            return await response.__aenter__()
        response._in_context = True
        return response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        response = self._opened
        # While its body is being sent, a response has to wait for that, and is released once more.
        if type(response) is aiohttp.ClientResponse and response._writer is None:
            response._in_context = False
            response.release()
        else:
            await response.__aexit__(kind, error, trace)


class _WebSocketOpening(_Opening[aiohttp.ClientWebSocketResponse]):
    """A websocket that is being opened."""

    __slots__ = ()

    async def __aenter__(self) -> aiohttp.ClientWebSocketResponse:
        self._opened = await self._opening
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.close()


def _check_headers(options: _RequestOptions | _WSConnectOptions) -> None:
    """One request has one Authorization header: ours. Reads the headers once: they may be an iterator."""
    headers = options.get("headers")
    if headers is not None:
        headers = options["headers"] = CIMultiDict(headers)
    if options.get("auth") is not None or (headers and hdrs.AUTHORIZATION in headers):
        raise ConfigurationError(
            "This session sets the Authorization header itself.",
            intact="Nothing was sent.",
            todo="Use session.client for a request with other credentials.",
        )
