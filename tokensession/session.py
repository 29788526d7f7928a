"""`AuthedSession`: aiohttp's ClientSession with a token that takes care of itself.

A thin shell. The token is the source's business, the header the middleware's; this composes them with
a ClientSession (and never subclasses it: aiohttp is making that class final), resolves relative URLs,
and owns what it opens.
"""

from __future__ import annotations

import asyncio
import copy
import warnings
from collections.abc import Coroutine, Generator, Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict
from yarl import URL

from .endpoint import AiohttpEndpoint
from .errors import ConfigurationError
from .events import Observer
from .freshness import Policy
from .middleware import BearerAuth
from .origins import resolve
from .providers.base import Provider, TokenEndpoint
from .source import ManagedSource
from .stores import MemoryStore, open_store
from .stores.base import Store

if TYPE_CHECKING:
    from typing import Unpack

    # aiohttp keeps these names private; at run time nothing depends on them.
    from aiohttp.client import _RequestContextManager, _RequestOptions, _WSConnectOptions

__all__ = ["AuthedSession", "EphemeralStoreWarning"]

_ENDPOINT = AiohttpEndpoint()


class EphemeralStoreWarning(UserWarning):
    """Rotated refresh tokens are kept in memory only, and are lost at exit."""


class AuthedSession:
    """An aiohttp session whose requests carry a valid bearer.

    Use it as a ClientSession: `async with session.get("/path") as response`. Relative URLs are appended
    to the provider's base; absolute ones must be of its origins, or of `origins`.

    `auth` is a provider, or a `ManagedSource` that you keep. `store` is a store that you keep, or a URL
    for `open_store`; without one, tokens live in memory. `client` is a ClientSession that you keep; its
    own middlewares run before ours. What is opened here is closed here, what is handed in is not.
    `endpoint` sends the token requests, for a proxy or certificate authority of their own:
    `AiohttpEndpoint(ssl=..., proxy=...)`.

    Making one does no I/O and needs no event loop; it may be opened in one task and closed in another,
    and entered again after it was closed, in another event loop too.
    """

    __slots__ = (
        "__weakref__",
        "_alone",
        "_base",
        "_bearer",
        "_client",
        "_closed",
        "_loop",
        "_owned_source",
        "_owned_store",
        "_source",
    )

    def __init__(
        self,
        auth: Provider | ManagedSource,
        *,
        store: Store | str | None = None,
        client: aiohttp.ClientSession | None = None,
        key: str | None = None,
        origins: Iterable[str] = (),
        policy: Policy | None = None,
        observer: Observer | None = None,
        endpoint: TokenEndpoint | None = None,
    ) -> None:
        if client is not None and not isinstance(client, aiohttp.ClientSession):
            raise ConfigurationError(f"client is a {type(client).__name__}, not an aiohttp.ClientSession.")
        self._owned_store: Store | None = None
        self._owned_source = not isinstance(auth, ManagedSource)
        if isinstance(auth, ManagedSource):
            if (store, key, policy, observer, endpoint) != (None,) * 5:
                raise ConfigurationError(
                    "store, key, policy, observer and endpoint belong to the source.",
                    todo="Pass them to the ManagedSource, not to the session.",
                )
            self._source = auth
        else:
            chosen = self._choose(store, auth)
            self._source = ManagedSource(
                auth, endpoint or _ENDPOINT, store=chosen, key=key, policy=policy, observer=observer
            )
        provider = self._source.provider
        if isinstance(origins, str):
            origins = (origins,)
        self._bearer = BearerAuth(
            self._source, origins=(*provider.origins, *origins), headers=provider.api_headers
        )
        self._alone = (self._bearer,)  # the middlewares of most requests, and not made anew for each
        self._base = provider.base_url
        self._client = client
        self._loop: asyncio.AbstractEventLoop | None = None  # that of a client of our own
        self._closed = False

    def _choose(self, store: Store | str | None, provider: Provider) -> Store:
        if store is None:
            self._owned_store = MemoryStore()
            if getattr(provider, "rotates", False):
                warnings.warn(
                    f"{type(provider).__name__} rotates its refresh tokens, and without a store the new ones "
                    'are lost when this program ends. Pass store="sqlite:///tokens.db", or '
                    "store=MemoryStore() if that is what you want.",
                    EphemeralStoreWarning,
                    stacklevel=3,
                )
            return self._owned_store
        if isinstance(store, str):
            self._owned_store = open_store(store)
            return self._owned_store
        return store

    # -- state ------------------------------------------------------------------------------------

    @property
    def source(self) -> ManagedSource:
        """The source of this session's tokens: sign in and out, refresh, look at its state."""
        return self._source

    @property
    def client(self) -> aiohttp.ClientSession:
        """The plain ClientSession, for requests that want no token. Opened if need be."""
        if self._closed:
            raise RuntimeError("Session is closed")
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            if not self._loop.is_closed():
                raise RuntimeError("This session is open in another running event loop: make one per loop.")
            self._client = None  # left behind unclosed by a loop that is gone; aiohttp warns of it
        if self._client is None:
            self._client, self._loop = aiohttp.ClientSession(), loop
        return self._client

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed or (self._loop is None and self._client is not None and self._client.closed)

    def __repr__(self) -> str:
        return f"<AuthedSession {self._base} {'closed' if self.closed else 'open'} {self._source!r}>"

    # -- requests ---------------------------------------------------------------------------------

    def request(
        self, method: str, url: str | URL, **kwargs: Unpack[_RequestOptions]
    ) -> _RequestContextManager:
        """Any request, with aiohttp's parameters and its result: await it, or `async with` it.

        Raises `ForeignOrigin` or `ConfigurationError` before anything is sent; awaiting it raises what
        `source.token()` and aiohttp raise.
        """
        target, client = resolve(self._base, self._bearer.origins, url), self.client
        if kwargs:
            _refuse_other_credentials(kwargs)
        kwargs["middlewares"] = self._middlewares(client, kwargs.get("middlewares"))
        return client.request(method, target, **kwargs)

    def get(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A GET request."""
        return self.request(hdrs.METH_GET, url, **kwargs)

    def options(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """An OPTIONS request."""
        return self.request(hdrs.METH_OPTIONS, url, **kwargs)

    def head(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A HEAD request. Follows no redirect unless told to, like aiohttp's."""
        kwargs.setdefault("allow_redirects", False)
        return self.request(hdrs.METH_HEAD, url, **kwargs)

    def post(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A POST request."""
        return self.request(hdrs.METH_POST, url, **kwargs)

    def put(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A PUT request."""
        return self.request(hdrs.METH_PUT, url, **kwargs)

    def patch(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A PATCH request."""
        return self.request(hdrs.METH_PATCH, url, **kwargs)

    def delete(self, url: str | URL, **kwargs: Unpack[_RequestOptions]) -> _RequestContextManager:
        """A DELETE request."""
        return self.request(hdrs.METH_DELETE, url, **kwargs)

    def ws_connect(self, url: str | URL, **kwargs: Unpack[_WSConnectOptions]) -> _WebSocketOpening:
        """A websocket whose handshake carries the bearer: await it, or `async with` it.

        Parameters, result and errors are those of aiohttp's `ws_connect`, and of `request`.
        """
        target, client = resolve(self._base, self._bearer.origins, url), self.client
        _refuse_other_credentials(kwargs)
        return _WebSocketOpening(self._handshake(client, target, kwargs))

    async def _handshake(
        self, client: aiohttp.ClientSession, url: URL, options: _WSConnectOptions
    ) -> aiohttp.ClientWebSocketResponse:
        # ws_connect takes no middlewares for one request. So the handshake goes through a shallow copy
        # of the client, which shares its connector, cookies and settings whatever they are, and is let
        # go of when the socket is open.
        twin = copy.copy(client)
        twin._middlewares = self._middlewares(client, None)
        try:
            socket: aiohttp.ClientWebSocketResponse = await twin.ws_connect(url, **options)
            return socket
        finally:
            twin.detach()

    def _middlewares(
        self, client: aiohttp.ClientSession, wanted: Iterable[aiohttp.ClientMiddlewareType] | None
    ) -> tuple[aiohttp.ClientMiddlewareType, ...]:
        """Those of the request or else of the client, and ours last: none of them sees the token.

        aiohttp lets a request's middlewares replace the client's, and has no public way to ask for
        the client's. Not to ask would silently drop what the client's owner has put there.
        """
        others = client._middlewares if wanted is None else wanted
        return (*others, self._bearer) if others else self._alone

    # -- opening and closing ----------------------------------------------------------------------

    async def close(self) -> None:
        """Let a refresh under way finish, then close what this session has opened.

        Safe to call twice. Raises `StoreUnavailable` if a new token could not be stored in time; all
        is closed even so.
        """
        if self._closed:
            return
        self._closed = True
        async with AsyncExitStack() as stack:  # runs in reverse: source, store, client
            stack.push_async_callback(self._close_client)
            if self._owned_store is not None:
                stack.push_async_callback(self._owned_store.aclose)
            if self._owned_source:
                stack.push_async_callback(self._source.aclose)

    async def _close_client(self) -> None:
        if self._loop is not None and self._client is not None:  # it was opened here
            client, self._client, self._loop = self._client, None, None
            await client.close()

    async def __aenter__(self) -> Self:
        """Open, or open again."""
        self._closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()


class _WebSocketOpening:
    """A websocket being opened: awaitable, and an async context manager that closes it."""

    __slots__ = ("_opening", "_socket")

    def __init__(self, opening: Coroutine[Any, Any, aiohttp.ClientWebSocketResponse]) -> None:
        self._opening = opening

    def __await__(self) -> Generator[Any, None, aiohttp.ClientWebSocketResponse]:
        return self._opening.__await__()

    async def __aenter__(self) -> aiohttp.ClientWebSocketResponse:
        self._socket = await self._opening
        return self._socket

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._socket.close()


def _refuse_other_credentials(options: _RequestOptions | _WSConnectOptions) -> None:
    """One request, one Authorization header: ours."""
    headers = options.get("headers")
    if options.get("auth") is not None or (headers and hdrs.AUTHORIZATION in CIMultiDict(headers)):
        raise ConfigurationError(
            "This session sets the Authorization header itself.",
            intact="Nothing was sent.",
            todo="Use session.client for a request with other credentials.",
        )
