"""`BearerAuth`: aiohttp middleware that puts a bearer token on requests.

aiohttp runs middleware again for every hop of a redirect, so the origin is checked at each hop. A redirect
to another origin is followed without the token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, hdrs

from ._validate import describe, implements
from .errors import ConfigurationError
from .origins import Origin, origin_of, parse_origins
from .source import RefreshableSource, TokenSource
from .token import Token

__all__ = ["BearerAuth"]

_REDACTED = "Bearer [redacted]"


class BearerAuth:
    """aiohttp middleware that puts a valid bearer token on each request, and handles a 401.

    For a ClientSession of your own: `ClientSession(middlewares=(BearerAuth(source),))`. Put it last, so that
    no other middleware sees the token.

    - `source`: anything with a `token()` method, such as a `ManagedSource`.
    - `origins`: where the token may go, as `scheme://host[:port]`. The default is the source's own origins.
      Requests to other origins pass through unchanged.
    - `headers`: more headers for these requests, unless a request sets them itself.

    After a 401, all requests that sent the same token share one refresh. Each is then replayed once, if its
    body can be sent again. Otherwise, and after a second 401, you get the 401.

    A request raises what `source.token()` raises, before anything is sent. The constructor raises
    `ConfigurationError` for arguments that cannot work.
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
                f"source must have a token() method, and {describe(source)} has none.",
                todo="Wrap a provider: BearerAuth(ManagedSource(provider, store=...)).",
            )
        allowed = getattr(source, "origins", None) if origins is None else origins
        if not allowed:
            raise ConfigurationError(
                f"origins must name at least one origin that the token may go to, and this is "
                f"{describe(allowed)}.",
                todo='Pass them: BearerAuth(source, origins=["https://api.example.com"]).',
            )
        self.origins: frozenset[Origin] = parse_origins([allowed] if isinstance(allowed, str) else allowed)
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
        finally:  # as in _send, without the cost of another coroutine for every request
            request.headers[hdrs.AUTHORIZATION] = _REDACTED
        if response.status != 401 or self._refreshable is None:
            return response
        return await self._replay(request, handler, token, response, self._refreshable)

    async def _replay(
        self,
        request: ClientRequest,
        handler: ClientHandlerType,
        unauthorized: Token,
        response: ClientResponse,
        source: RefreshableSource,
    ) -> ClientResponse:
        """After a 401: refresh, and replay if there is another token and the body can be sent again."""
        try:
            token = await source.refresh(unauthorized)
        except BaseException:
            response.close()
            raise
        if token.access_token == unauthorized.access_token or _spent(request):
            return response
        # Release it before the replay: otherwise a pool of one connection would wait for itself.
        response.release()
        await request.close()  # release() has cancelled the body's writer, which must end before the next
        request.update_expect_continue()  # wait for "100 Continue" again, if the first request did
        return await _send(request, handler, token)


def _spent(request: ClientRequest) -> bool:
    """Whether the body was a stream that has been read. Sent again, it would be empty."""
    return bool(getattr(request.body, "consumed", False))


async def _send(request: ClientRequest, handler: ClientHandlerType, token: Token) -> ClientResponse:
    """Send one request with the token, then take the token off its headers.

    The response's `request_info`, and every exception made from it, shows these headers.
    """
    request.headers[hdrs.AUTHORIZATION] = token.authorization
    try:
        return await handler(request)
    finally:
        request.headers[hdrs.AUTHORIZATION] = _REDACTED
