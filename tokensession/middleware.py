"""`BearerAuth`: aiohttp middleware that puts a bearer token on requests.

aiohttp runs middleware again for every hop of a redirect, so the origin is checked at each hop. A redirect
to another origin is followed without the token, and so is every hop after it: a host that may not have the
token does not choose what is requested with it. The mark that remembers this is in the request's list of
traces. That is the one thing that all hops of a request share, and no two requests do.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import NoReturn, cast

from aiohttp import (
    ClientConnectionError,
    ClientHandlerType,
    ClientRequest,
    ClientResponse,
    ClientSession,
    TraceConfig,
    hdrs,
)
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from ._validate import describe, implements, is_localhost
from .errors import ConfigurationError
from .origins import Origin, check_loopback, origin_of, parse_origins
from .replay import bearer_errors, is_whole, keep_cookies, renew_cookies
from .source import ManagedSource, RefreshableSource, TokenSource
from .token import Token

__all__ = ["BearerAuth", "warn_of_cache"]

_log = logging.getLogger("tokensession")
_WARNED = "_tokensession_warned_of_its_cache"

_AUTHORIZATION = hdrs.AUTHORIZATION
_REDACTED = "Bearer [redacted]"
_TOKEN = ManagedSource.token
_COOKIES = 100  # cookies of 401s that are remembered
_REDIRECTS = frozenset({301, 302, 303, 307, 308})  # those that aiohttp follows

# RFC 6750, 3.1: the other two are about the request and the token's scope, which another token has too.
_DEFAULT = frozenset({401})  # one for all sessions
_INVALID_TOKEN = "invalid_token"  # noqa: S105 - a code
_NOT_THE_TOKEN = frozenset({"insufficient_scope", "invalid_request"})


class BearerAuth:
    """aiohttp middleware that puts a valid bearer token on each request, and handles a 401.

    For a ClientSession of your own: `ClientSession(middlewares=(BearerAuth(source),))`. Put it last, so that
    no other middleware sees the token.

    - `source`: anything with a `token()` method, such as a `ManagedSource`.
    - `origins`: where the token may go, as `scheme://host[:port]`. The default is the source's own origins.
      Requests to other origins pass through unchanged. A redirect that leaves these origins is followed
      without the token, also if it comes back.
    - `headers`: more headers for these requests, unless a request sets them itself.
    - `unauthorized_statuses`: the statuses (400 to 499) that mean "this token is not valid". The default is
      what the source's provider says: 401, if it says nothing. Whatever you pass, a 4xx with
      `WWW-Authenticate: Bearer error="invalid_token"` means that too, and one with `insufficient_scope` or
      `invalid_request` never does.

    After a 401, all requests that sent the same token share one refresh. Each is then replayed once, if its
    body can be sent again. Otherwise, and after a second 401, you get the 401.

    A request raises what `source.token()` raises, before anything is sent. The constructor raises
    `ConfigurationError` for arguments that cannot work.
    """

    __slots__ = (
        "__weakref__",
        "_headers",
        "_judged",
        "_managed",
        "_origins",
        "_refreshable",
        "_replaced_cookies",
        "_source",
        "_unauthorized",
    )

    def __init__(
        self,
        source: TokenSource,
        *,
        origins: Iterable[str] | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        unauthorized_statuses: Iterable[int] | None = None,
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
        says = getattr(source, "provider", source)  # its provider, or a source of your own
        self._origins = parse_origins(
            [allowed] if isinstance(allowed, str) else allowed,
            insecure_http_hosts=getattr(says, "insecure_http_hosts", ()),
        )
        self._source = source
        self._refreshable = cast(RefreshableSource, source) if implements(RefreshableSource, source) else None
        self._headers = _pairs(headers)
        self._unauthorized = _statuses(
            getattr(says, "unauthorized_statuses", (401,))
            if unauthorized_statuses is None
            else unauthorized_statuses
        )
        # A source of your own, also a subclass, is asked for each request.
        self._managed = source if type(source) is ManagedSource else None
        self._judged: URL | None = None
        self._replaced_cookies: tuple[str, ...] = ()

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """aiohttp's middleware protocol: one hop of one request."""
        url = request.url
        if url is not self._judged or request.proxy is not None:
            if origin_of(url) not in self._origins:
                return await self._without_token(request, handler)
            warn_of_cache(request.session)
            await check_loopback(request)
            if url.scheme in ("https", "wss") or not is_localhost(url.raw_host or ""):
                self._judged = url  # else each time: a name may lead elsewhere tomorrow
        if request._traces and self._left_by(request):
            return await self._without_token(request, handler)
        managed, ready = self._managed, None
        if managed is not None and ManagedSource.token is _TOKEN:  # no tool has replaced it
            ready = managed._fresh()
        if ready is None:
            token = await self._source.token()
            authorization = token.authorization
            _check_open(request)
        else:
            token, authorization = ready
        for name, value in self._headers:
            request.headers.setdefault(name, value)
        request.headers[_AUTHORIZATION] = authorization
        try:
            response = await handler(request)
        finally:  # as in _send, without the cost of another coroutine for every request
            request.headers[_AUTHORIZATION] = _REDACTED
        if response.status < 400 or self._refreshable is None or not self._rejects_token(response):
            return response
        return await self._replay(request, handler, token, response, self._refreshable)

    @property
    def origins(self) -> frozenset[Origin]:
        """Where the token may go."""
        return self._origins

    def __reduce__(self) -> NoReturn:
        """Neither pickled nor copied: its source has a token in memory."""
        raise TypeError(
            "A BearerAuth cannot be pickled or copied, because its source has a token in memory. Pass the "
            "provider and the store, and make a source and a BearerAuth from them where they are used."
        )

    # -- redirects --------------------------------------------------------------------------------

    async def _without_token(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        response = await handler(request)
        if response.status in _REDIRECTS and not self._left_by(request):
            request._traces.append(_Departure(request.session, self))
        return response

    def _left_by(self, request: ClientRequest) -> bool:
        """Whether this request's redirects have left the origins."""
        return any(type(trace) is _Departure and trace.bearer is self for trace in request._traces)

    # -- a token that is not valid ----------------------------------------------------------------

    def _rejects_token(self, response: ClientResponse) -> bool:
        """Whether another token may help."""
        if response.status >= 500:
            return False
        errors = bearer_errors(response.headers.getall(hdrs.WWW_AUTHENTICATE, ()))
        if errors & _NOT_THE_TOKEN:
            return False
        return response.status in self._unauthorized or _INVALID_TOKEN in errors

    async def _replay(
        self,
        request: ClientRequest,
        handler: ClientHandlerType,
        unauthorized: Token,
        response: ClientResponse,
        source: RefreshableSource,
    ) -> ClientResponse:
        """After a 401: refresh, and replay if there is another token and the body can be sent again."""
        writer = request._writer  # now: it is cancelled and forgotten when the response ends
        try:
            known = keep_cookies(request, response)
            if known is not None:
                # When several requests get a 401, the jar has new cookies after the first of them.
                self._replaced_cookies = (*self._replaced_cookies, *known)[-_COOKIES:]
            token = await source.refresh(unauthorized)
            again = token.access_token != unauthorized.access_token and await is_whole(request, writer)
        except BaseException:
            response.close()
            raise
        if not again:
            return response
        # Release it before the replay: otherwise a pool of one connection would wait for itself.
        response.release()
        await request.close()  # release() has cancelled the body's writer, which must end before the next
        _check_open(request)
        request.update_expect_continue()  # wait for "100 Continue" again, if the first request did
        if known is not None:
            renew_cookies(request, self._replaced_cookies)
        return await _send(request, handler, token)


def _check_open(request: ClientRequest) -> None:
    """Raise aiohttp's error if the session has been closed: it would wait for a connection in vain."""
    if request.session.closed:
        raise ClientConnectionError("The session was closed while this request waited for its token.")


async def _send(request: ClientRequest, handler: ClientHandlerType, token: Token) -> ClientResponse:
    """Send one request with the token, then take the token off its headers.

    The response's `request_info`, and every exception made from it, shows these headers.
    """
    request.headers[_AUTHORIZATION] = token.authorization
    try:
        return await handler(request)
    finally:
        request.headers[_AUTHORIZATION] = _REDACTED


class _Departure(Trace):
    """Marks a request whose redirects have left a middleware's origins."""

    def __init__(self, session: ClientSession, bearer: BearerAuth) -> None:
        super().__init__(session, _SILENT, SimpleNamespace())
        self.bearer = bearer


_SILENT = TraceConfig()  # traces nothing
_SILENT.freeze()


# -- arguments ------------------------------------------------------------------------------------


def _pairs(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Each header once. One that comes several times is joined, which means the same (RFC 9110, 5.3)."""
    try:
        found = CIMultiDict(headers)
    except (TypeError, ValueError):
        found = None
    if found is None or not all(isinstance(value, str) for value in found.values()):
        raise ConfigurationError(f"headers must be a mapping or pairs of strings, not {describe(headers)}.")
    return tuple((name, ", ".join(found.getall(name))) for name in dict.fromkeys(found))


def _statuses(values: Iterable[int]) -> frozenset[int]:
    """Statuses that mean "unauthorized". Raises `ConfigurationError`."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigurationError(
            f"unauthorized_statuses must be numbers, not {describe(values)}.",
            todo="Pass several, such as (401, 403).",
        )
    statuses = list(values)
    for status in statuses:
        if isinstance(status, bool) or not isinstance(status, int) or not 400 <= status <= 499:
            shown = status if type(status) is int else describe(status)
            raise ConfigurationError(
                f"unauthorized_statuses must be whole numbers from 400 to 499, not {shown}."
            )
    if not statuses:
        raise ConfigurationError("unauthorized_statuses must name at least one status, such as 401.")
    return _DEFAULT if statuses == [401] else frozenset(statuses)


def warn_of_cache(client: ClientSession) -> None:
    """Warn, once for each client, if it answers requests from a cache of its own."""
    if type(client) is ClientSession or getattr(client, "cache", None) is None:
        return
    if vars(client).get(_WARNED):
        return
    vars(client)[_WARNED] = True
    _log.warning(
        "This %s has a cache, which does not know whose token is sent: another account that uses this client "
        "may get this account's cached answers. Make a client with a cache of its own for each account, or "
        "pass one without a cache.",
        type(client).__name__,
    )
