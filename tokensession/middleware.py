"""The bearer, put on requests by an aiohttp client middleware.

aiohttp runs middlewares again for every hop of a redirect, so the origin is judged at each of them: a
redirect to somewhere else is followed without the token.
"""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, hdrs
from yarl import URL

from .errors import ConfigurationError
from .providers import checks
from .token import Token
from .tokensource import RefreshableSource, TokenSource

__all__ = ["BearerAuth", "parse_origins"]

_REDACTED = "Bearer [redacted]"


def parse_origins(origins: Iterable[str]) -> frozenset[URL]:
    """Origins in every form that `url.origin()` may give them. https, or http on loopback.

    A websocket to the same host and port is the same origin (its handshake is a request like others),
    and so is a URL that spells out the default port.
    """
    spellings: set[URL] = set()
    for value in origins:
        origin = URL(checks.origin(checks.url("origins", value)))
        if URL(value).path != "/":
            raise ConfigurationError(
                f"origins has a URL with a path ({origin}/…), and a token goes to a whole origin.",
                todo=f'Give the origin alone: "{origin}".',
            )
        for scheme in ("https", "wss") if origin.scheme == "https" else ("http", "ws"):
            url = origin.with_scheme(scheme)
            spellings |= {url, url.with_port(url.port)}
    return frozenset(spellings)


class BearerAuth:
    """Adds a valid bearer to each request, and answers a 401 with one refresh and one replay.

    For people who own their ClientSession: `ClientSession(middlewares=(BearerAuth(source),))`. Put it
    last, so that nothing after it sees the token. `origins` are where the token may go, by default the
    source's own; requests to anywhere else pass through untouched. Compared and hashed by identity.

    A 401 is judged by the token that was rejected. All requests that hold it share one refresh; each is
    replayed once if its body can be sent again, otherwise its 401 is returned. A second 401 is
    returned. Raises what `source.token()` raises, before anything is sent.
    """

    __slots__ = ("__weakref__", "_headers", "_origins", "_refreshable", "_source")

    def __init__(
        self,
        source: TokenSource,
        *,
        origins: Iterable[str] | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        if isinstance(source, type) or not callable(getattr(source, "token", None)):
            raise ConfigurationError(
                f"A {type(source).__name__} has no token() to ask.",
                todo="Wrap a provider: BearerAuth(ManagedSource(provider, AiohttpEndpoint(), store=store)).",
            )
        allowed = getattr(source, "origins", None) if origins is None else origins
        if not allowed:
            raise ConfigurationError(
                "BearerAuth does not know where this token may go.",
                todo='Say so: BearerAuth(source, origins=["https://api.example.com"]).',
            )
        self._origins = parse_origins([allowed] if isinstance(allowed, str) else allowed)
        self._source = source
        self._refreshable = source if isinstance(source, RefreshableSource) else None
        self._headers = tuple(headers)

    @property
    def origins(self) -> frozenset[URL]:
        """Where the token may go."""
        return self._origins

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """aiohttp's middleware protocol: one hop of one request."""
        if request.url.origin() not in self._origins:
            return await handler(request)
        for name, value in self._headers:
            request.headers.setdefault(name, value)
        token = await self._source.token()
        response = await _send(request, handler, token)
        if response.status != 401 or self._refreshable is None:
            return response
        return await self._answer(request, handler, token, response, self._refreshable)

    async def _answer(
        self,
        request: ClientRequest,
        handler: ClientHandlerType,
        rejected: Token,
        response: ClientResponse,
        source: RefreshableSource,
    ) -> ClientResponse:
        """What to do about a 401: refresh, and replay if that can help and the body can be sent again."""
        try:
            token = await source.refresh(rejected)
        except BaseException:
            response.close()
            raise
        if token.access_token == rejected.access_token or _spent(request):
            return response
        # Released before the replay: a pool of one connection must not wait for itself.
        response.release()
        await request.close()  # release() has cancelled the body's writer; it must be gone before the next
        request.update_expect_continue()  # a new wait for "100 Continue", if the first had one
        return await _send(request, handler, token)


def _spent(request: ClientRequest) -> bool:
    """Whether the body was a stream that has been read: sent again, it would be empty."""
    return bool(getattr(request.body, "consumed", False))


async def _send(request: ClientRequest, handler: ClientHandlerType, token: Token) -> ClientResponse:
    """One request with the token on it, and off it again.

    The response's `request_info`, and every exception made from it, shows these same headers.
    """
    request.headers[hdrs.AUTHORIZATION] = token.authorization
    try:
        return await handler(request)
    finally:
        request.headers[hdrs.AUTHORIZATION] = _REDACTED
