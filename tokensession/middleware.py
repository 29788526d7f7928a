"""The bearer, put on requests by an aiohttp client middleware.

aiohttp runs middlewares again for every hop of a redirect, so the origin is judged at each of them: a
redirect to somewhere else is followed without the token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, hdrs

from ._validate import implements
from .errors import ConfigurationError
from .origins import origin_of, parse_origins
from .source import RefreshableSource, TokenSource
from .token import Token

__all__ = ["BearerAuth"]

_REDACTED = "Bearer [redacted]"


class BearerAuth:
    """Adds a valid bearer to each request, and answers a 401 with one refresh and one replay.

    For people who own their ClientSession: `ClientSession(middlewares=(BearerAuth(source),))`. Put it
    last, so that nothing after it sees the token. `origins` are where the token may go, by default the
    source's own; requests to anywhere else pass through untouched. Compared and hashed by identity.

    A 401 is judged by the token that was rejected. All requests that hold it share one refresh; each is
    replayed once if its body can be sent again, otherwise its 401 is returned. A second 401 is
    returned. Raises what `source.token()` raises, before anything is sent.
    """

    __slots__ = ("__weakref__", "_headers", "_refreshable", "_source", "origins")

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
                todo="Wrap a provider: BearerAuth(ManagedSource(provider, AiohttpTransport(), store=store)).",
            )
        allowed = getattr(source, "origins", None) if origins is None else origins
        if not allowed:
            raise ConfigurationError(
                "BearerAuth does not know where this token may go.",
                todo='Say so: BearerAuth(source, origins=["https://api.example.com"]).',
            )
        self.origins = parse_origins([allowed] if isinstance(allowed, str) else allowed)
        """Where the token may go."""
        self._source = source
        self._refreshable = cast(RefreshableSource, source) if implements(RefreshableSource, source) else None
        self._headers = tuple(headers)

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """aiohttp's middleware protocol: one hop of one request."""
        if origin_of(request.url) not in self.origins:
            return await handler(request)
        for name, value in self._headers:
            request.headers.setdefault(name, value)
        token = await self._source.token()
        request.headers[hdrs.AUTHORIZATION] = token.authorization
        try:
            response = await handler(request)
        finally:  # as in _send, which would be one more coroutine on every request's way
            request.headers[hdrs.AUTHORIZATION] = _REDACTED
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
