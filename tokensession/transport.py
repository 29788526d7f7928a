"""`AiohttpTransport`: sends token requests with aiohttp.

Each token request opens a client session of its own and closes it afterwards. That takes a fraction of a
millisecond once an hour. In return a token request

- never waits for a pool that API requests have filled,
- passes through no middleware, ours included, and sends no cookies,
- reuses no connection that the server may be closing, which would leave its outcome unknown,
- is sent once: aiohttp repeats a request only on a connection that it reuses.

How far a request came decides what its error means, and not what aiohttp raises. Until its connection is
ready, nothing has left, and every error is `NotSent`. Then `on_sending` is awaited, and after that every
error is `OutcomeUnknown`.

Two things are shared by all requests of an event loop, however many transports there are: the reservations
of connections, and the look-ups of host names.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
import zlib
from collections.abc import Awaitable, Callable, Collection, Iterable
from ssl import SSLContext
from types import TracebackType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from aiohttp.tracing import Trace
from yarl import URL

from ._redact import excerpt
from ._validate import describe, is_localhost, is_loopback
from .errors import ConfigurationError, InvalidTokenResponse, NotSent, OutcomeUnknown
from .providers.protocol import TokenRequest, TokenResponse

__all__ = ["MAX_BODY", "MAX_CONNECTIONS", "MAX_FIELDS", "MAX_LINE", "AiohttpTransport"]

MAX_BODY = 1024 * 1024
"""The most bytes of a token response that are read, before and after decompression.

Real ones have a few thousand.
"""

MAX_LINE = 256 * 1024
"""The most bytes of a header line in a token response. aiohttp's own limit is 8,190.

A response beyond a limit is lost, and the refresh token in it too. Some gateways add long cookies.
"""

MAX_FIELDS = 1_000
"""The most header fields in a token response. aiohttp's own limit is 128."""

MAX_CONNECTIONS = 100
"""The most connections to one origin in one event loop, for requests that `reserve` one.

More requests at once would exhaust file descriptors, and few token servers take more.
"""

_MAX_RECEIVED = 2 * MAX_BODY  # bytes of one response, with its headers, its framing and its trailers
_REASON = re.compile(r"""[ -~]*?(?=["':\n]|\Z)""")  # up to what a parser quotes
_MAX_CODINGS = 4  # of one response; a body may inflate to itself
_MAX_MEMBERS = 100  # of one gzip body; what follows a member is copied
_GZIP = b"\x1f\x8b"  # how gzip data begins (RFC 1952, 2.3.1)
_FORMATS = (  # each with how many bytes of a checksum are left out (RFC 1950, 2.2; RFC 1952, 2.3)
    *((32 + zlib.MAX_WBITS, 0), (zlib.MAX_WBITS, 4), (16 + zlib.MAX_WBITS, 8)),  # zlib and gzip
    (-zlib.MAX_WBITS, 0),  # raw deflate
)

# A connection to a host that is gone ends after 30 s. Without these, a response is awaited in vain for as
# long as the caller waits, and a request that is not acknowledged for 15 minutes.
_KEEPALIVE = {
    "TCP_KEEPIDLE": 15,  # seconds without a byte before the first probe
    "TCP_KEEPALIVE": 15,  # the same, as macOS calls it
    "TCP_KEEPINTVL": 5,  # seconds between two probes
    "TCP_KEEPCNT": 3,  # probes without an answer
    "TCP_USER_TIMEOUT": 30_000,  # milliseconds without an acknowledgement of what was sent (Linux)
}

_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))  # of localhost (RFC 6761, 6.3)

_OnSending: TypeAlias = Callable[[], Awaitable[None]]


class AiohttpTransport:
    """Sends token requests with aiohttp. Implements `TokenTransport`.

    - `ssl` and `proxy` are aiohttp's parameters of the same name: pass an `ssl.SSLContext` for a private
      certificate authority, and the URL of an HTTP proxy. Loopback addresses, `localhost` and the names below
      it are always this machine (RFC 6761, 6.3), and are requested without the proxy.

    Many sources may share one, in any event loop. Raises `ConfigurationError` for arguments that cannot
    work.
    """

    __slots__ = ("_proxy", "_ssl")

    def __init__(
        self, *, ssl: SSLContext | bool | aiohttp.Fingerprint = True, proxy: str | None = None
    ) -> None:
        if not isinstance(ssl, bool | SSLContext | aiohttp.Fingerprint):
            raise ConfigurationError(
                f"ssl must be an ssl.SSLContext, an aiohttp.Fingerprint or a bool, not {describe(ssl)}."
            )
        if not _is_proxy(proxy):
            raise ConfigurationError(  # not its value: that may contain a password
                "proxy must be an http or https URL such as 'http://proxy.example.com:3128', "
                f"not {describe(proxy)}."
            )
        self._ssl = ssl
        self._proxy = proxy

    async def reserve(self, url: str) -> Callable[[], None]:
        """Wait until fewer than `MAX_CONNECTIONS` connections to the origin of this URL are reserved.

        Returns a function that releases the reservation. Call it in the same event loop, once or more often.
        Another origin is never delayed.
        """
        origins = _free.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        origin = "/".join(url.split("/", 3)[:3])
        free = origins.get(origin)
        if free is None:
            free = origins[origin] = asyncio.Semaphore(MAX_CONNECTIONS)
        await free.acquire()
        once = contextlib.ExitStack()
        once.callback(free.release)
        return once.close

    async def send(
        self,
        request: TokenRequest,
        *,
        connect: float,
        total: float,
        on_sending: Callable[[], Awaitable[None]] | None = None,
    ) -> TokenResponse:
        """Send it exactly once. `connect` is in seconds, and bounds everything until the connection is ready.

        `total` is not applied here: cancel the call instead. Raises `NotSent`, `OutcomeUnknown` or
        `InvalidTokenResponse`, and what `on_sending` raises: see `TokenTransport`.
        """
        connector = _Connector(self._ssl, on_sending)
        proxy = self._proxy
        failure: Exception
        try:
            # encoded=True: send what the provider built, without yarl's normalization.
            url = URL(request.url, encoded=True)
            if url.raw_host and not url.raw_host.isascii():
                # As for API requests (IDNA 2008). Python's look-up would ask for "fass" instead of "faß".
                url = url.with_host(url.raw_host)
            if is_loopback(url.raw_host or ""):
                proxy = None
            return await self._post(request, url, proxy, connect, connector)
        except Exception as error:  # noqa: BLE001 - only how far the request came says what an error means
            if connector.hook_error is not None:  # aiohttp may have wrapped it
                failure = connector.hook_error.with_traceback(connector.hook_traceback)
            elif isinstance(error, InvalidTokenResponse):
                failure = error
            elif connector.sending:
                failure = OutcomeUnknown(
                    f"The token request got no complete answer: {_describe(error, request.secrets)}."
                )
            else:
                failure = _not_sent(error, " through the proxy" if proxy else "")
        # Outside the handler, so that aiohttp's exception is not the context of ours: some have the
        # request's headers, which may contain the client's credentials.
        raise failure

    async def _post(
        self, request: TokenRequest, url: URL, proxy: str | None, connect: float, connector: _Connector
    ) -> TokenResponse:
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                # `connect` includes the name look-up, TLS and the proxy. No limit after that: aiohttp's own
                # discards a response that has just arrived.
                timeout=aiohttp.ClientTimeout(total=None, connect=connect),
                max_line_size=MAX_LINE,
                max_field_size=MAX_LINE,
                max_headers=MAX_FIELDS + 2,  # aiohttp's Python parser counts two more lines
                auto_decompress=False,  # aiohttp would inflate a decompression bomb to its full size
            ) as client,
            client.post(
                url,
                data=request.body,
                headers=(("Accept-Encoding", "identity"), *request.headers),
                allow_redirects=False,
                proxy=proxy,
            ) as response,
        ):
            try:
                body = await _read(response)
            except InvalidTokenResponse as error:
                error.granted = 200 <= response.status < 300  # it may have carried a rotated token
                raise
            return TokenResponse(response.status, tuple(response.headers.items()), body)

    def __repr__(self) -> str:
        return "AiohttpTransport()"


class _Connection(ResponseHandler):
    """A connection that ends when too much has been received.

    aiohttp limits each header line and their number. The product would be a quarter of a gigabyte.
    """

    _received = 0

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received <= _MAX_RECEIVED:
            super().data_received(data)
            return
        if self.transport is not None:
            self.transport.close()
        reason = f"Got more than {_MAX_RECEIVED} bytes for one response."
        if self._payload is not None:
            self._payload.set_exception(aiohttp.ClientPayloadError(reason))
        self.set_exception(HttpProcessingError(message=reason))


class _Connector(aiohttp.TCPConnector):
    """Makes one `_Connection` for one request, and awaits `on_sending` when it is ready.

    aiohttp has a signal for that moment (`on_connection_create_end`). But an exception in it leaves the
    connection open, and its time counts as time for connecting.
    """

    def __init__(self, ssl: SSLContext | bool | aiohttp.Fingerprint, on_sending: _OnSending | None) -> None:
        super().__init__(force_close=True, ssl=ssl, socket_factory=_socket, resolver=Resolver())
        connection: type[ResponseHandler] = _Connection
        self._factory = functools.partial(connection, loop=self._loop)
        self._on_sending = on_sending
        self.sending = False
        self.hook_error: Exception | None = None
        self.hook_traceback: TracebackType | None = None

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """A connection on which nothing of the request has been sent: its TLS and the proxy are ready."""
        connection = await super().connect(req, traces, timeout)
        try:
            if self._on_sending is not None:
                await self._on_sending()
        except BaseException as error:
            connection.close()
            if isinstance(error, Exception):
                self.hook_error = error
                # Without this frame and aiohttp's: the request is among their locals.
                self.hook_traceback = error.__traceback__ and error.__traceback__.tb_next
            raise
        self.sending = True
        return connection


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket with TCP keepalive, as far as the platform has it."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    with contextlib.suppress(OSError):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            with contextlib.suppress(OSError):  # some kernels know the name only
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


class Resolver(AbstractResolver):
    """Looks up host names for aiohttp, each once at a time, however many requests wait for it.

    A look-up that hangs holds a thread of the event loop's pool, even after its request has given up. With
    one for each request, a name that hangs would soon hold all threads, and no other could be looked up.

    `localhost` and the names below it are this machine (RFC 6761, 6.3), and are not looked up: a name server
    may say otherwise, and tokens are sent there in plain http.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of this host. Raises OSError."""
        if is_localhost(host):
            return [
                ResolveResult(
                    hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST
                )
                for kind, address in _LOOPBACK
                if family in (socket.AF_UNSPEC, kind)
            ]
        running = _look_ups.setdefault(asyncio.get_running_loop(), {})
        name = host, port, family
        look_up = running.get(name)
        if look_up is None:
            look_up = running[name] = asyncio.create_task(_look_up(host, port, family))
            look_up.add_done_callback(functools.partial(_forget, running, name))
        try:
            return await asyncio.shield(look_up)
        except asyncio.CancelledError:
            _forget(running, name, look_up)  # it takes too long: the next request tries another one
            raise

    async def close(self) -> None:
        """Nothing to close."""


async def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    resolver = aiohttp.DefaultResolver()
    try:
        return await resolver.resolve(host, port, family)
    finally:
        await resolver.close()


def _forget(running: _LookUps, name: _Name, look_up: _LookUp) -> None:
    if running.get(name) is look_up:
        del running[name]
    if look_up.done() and not look_up.cancelled():
        look_up.exception()  # so that asyncio does not log it: those who waited may be gone


_Name: TypeAlias = tuple[str, int, int]
_LookUp: TypeAlias = asyncio.Task[list[ResolveResult]]
_LookUps: TypeAlias = dict[_Name, _LookUp]
_look_ups: WeakKeyDictionary[asyncio.AbstractEventLoop, _LookUps] = WeakKeyDictionary()

# Per origin. Those who hold a connection or wait for one keep it alive.
_Free: TypeAlias = WeakValueDictionary[str, asyncio.Semaphore]
_free: WeakKeyDictionary[asyncio.AbstractEventLoop, _Free] = WeakKeyDictionary()


def _is_proxy(proxy: str | None) -> bool:
    """Whether aiohttp can use it. Otherwise the outcome of each request would look unknown."""
    if proxy is None:
        return True
    with contextlib.suppress(ValueError, TypeError, IndexError):  # yarl raises all of these
        url = URL(proxy)
        return url.scheme in ("http", "https") and bool(url.host)
    return False


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, decompressed, if it has at most MAX_BODY bytes before and after."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        body += chunk
        if len(body) > MAX_BODY:
            raise InvalidTokenResponse(
                f"The token response is longer than {MAX_BODY} bytes. The rest was not read."
            )
    return _decoded(bytes(body), response.headers.getall("Content-Encoding", ()))


def _decoded(body: bytes, headers: Iterable[str]) -> bytes:
    """The body without its content codings (RFC 9110, 8.4), the last one first.

    We ask for an uncompressed response, but some gateways compress anyway, some of them twice, and some label
    a body that they have not compressed. A coding that we do not know leaves the body as it is.
    """
    named = [name.strip().lower() for header in headers for name in header.split(",")]
    codings = [name for name in named if name not in ("", "identity")]
    if len(codings) > _MAX_CODINGS:
        raise InvalidTokenResponse(f"The token response has {len(codings)} content codings.")
    if {*codings} <= {"gzip", "x-gzip", "deflate"}:
        for _ in codings:
            body = _inflate(body)
    return body


def _inflate(body: bytes) -> bytes:
    """Decompress gzip, zlib, or the raw deflate that some servers send instead. Text is left as it is.

    What inflates to its end is taken although its checksum is wrong: it may have the next refresh token.
    """
    if body.lstrip().startswith(b"{"):  # JSON, in whatever encoding: no compressed text begins with it
        return body
    with contextlib.suppress(UnicodeDecodeError):
        body.decode()  # compressed data is not UTF-8: gzip's second byte alone is not
        return body
    for bits, checksum in _FORMATS:
        with contextlib.suppress(zlib.error):
            plain = _inflated(body[: len(body) - checksum], bits)
            if plain or not checksum:
                return plain
    raise InvalidTokenResponse("The token response claims to be compressed, but cannot be decompressed.")


def _inflated(body: bytes, bits: int) -> bytes:
    """All of it: gzip data may have several members (RFC 1952, 2.2)."""
    plain, rest = b"", body
    for _ in range(_MAX_MEMBERS):
        inflater = zlib.decompressobj(bits)
        plain += inflater.decompress(rest, MAX_BODY + 1 - len(plain))
        if len(plain) > MAX_BODY:
            raise InvalidTokenResponse(f"The token response inflates to more than {MAX_BODY} bytes.")
        rest = inflater.unused_data
        if not rest.startswith(_GZIP):
            return plain
    raise InvalidTokenResponse(f"The token response has more than {_MAX_MEMBERS} gzip members.")


def _not_sent(error: Exception, way: str) -> NotSent:
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError | UnicodeError):  # no usable host
        return NotSent(
            "aiohttp cannot request the token URL, or the proxy's URL.", todo="Check both host names."
        )
    todo = None
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        todo = "If the server has a new certificate, pass the fingerprint of that one."
    elif isinstance(error, aiohttp.ClientHttpProxyError) and error.status == 407:
        todo = "Check the user and the password in the proxy's URL."
    return NotSent(f"The token endpoint cannot be reached{way}: {_describe(error)}.", todo=todo)


def _describe(error: BaseException, secrets: Collection[str] = ()) -> str:
    """The type of the error, and why a parser failed.

    Messages of connection errors name host and port, and are safe to show. Those of parsers quote the
    response after the reason.
    """
    name = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{name}: {error}"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"{name}: status {error.status}"  # not its reason, which the proxy wrote
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
        reason = _REASON.match(text)
        said = excerpt(reason[0].encode() if reason else b"", secrets).rstrip(" .")
        return f"{name}: {said}" if said else name
    return name
