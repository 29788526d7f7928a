"""`AiohttpTransport`: sends token requests with aiohttp.

Each token request opens a client session of its own and closes it afterwards. That takes a fraction of a
millisecond once an hour. In return a token request

- never waits for a pool that API requests have filled,
- passes through no middleware, ours included, and sends no cookies,
- reuses no connection that the server may be closing, which would leave its outcome unknown,
- leaves nothing bound to an event loop.
"""

from __future__ import annotations

import contextlib
import functools
import re
import zlib
from collections.abc import Collection
from ssl import SSLContext

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError
from yarl import URL

from ._redact import excerpt
from ._validate import describe
from .clock import Clock, SystemClock, within
from .errors import ConfigurationError, InvalidTokenResponse, NotSent, OutcomeUnknown, TokenSessionError
from .providers.protocol import TokenRequest, TokenResponse

__all__ = ["MAX_BODY", "MAX_FIELDS", "MAX_LINE", "AiohttpTransport"]

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

_MAX_RECEIVED = 2 * MAX_BODY  # bytes of one response, with its headers, its framing and its trailers
_CLOCK = SystemClock()
_REASON = re.compile(r"""[ -~]*?(?=["':\n]|\Z)""")  # up to what a parser quotes
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

# Raised before a byte of the request was sent. ClientConnectorError covers DNS, connecting, TLS and an
# unreachable proxy; ClientHttpProxyError a proxy that answers CONNECT with an error.
_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError, aiohttp.ConnectionTimeoutError)


class AiohttpTransport:
    """Sends token requests with aiohttp. Implements `TokenTransport`.

    - `ssl` and `proxy` are aiohttp's parameters of the same name: pass an `ssl.SSLContext` for a private
      certificate authority, and the URL of an HTTP proxy.
    - `clock` measures the total time-out. The default is the machine's clock.

    It keeps nothing between requests, so many sources may share one, in any event loop. Raises
    `ConfigurationError` for arguments that cannot work.
    """

    __slots__ = ("_clock", "_proxy", "_ssl")

    def __init__(
        self,
        *,
        ssl: SSLContext | bool | aiohttp.Fingerprint = True,
        proxy: str | None = None,
        clock: Clock | None = None,
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
        self._clock = clock or _CLOCK
        self._ssl = ssl
        self._proxy = proxy

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        """Send it exactly once, with time-outs in seconds.

        Raises `NotSent`, `OutcomeUnknown` or `InvalidTokenResponse`: see `TokenTransport`.
        """
        try:
            # Not aiohttp's total time-out: it discards a response that has just arrived.
            return await within(self._clock, total, self._post(request, connect))
        except _NOT_SENT as error:
            failure: TokenSessionError = NotSent(f"The token endpoint cannot be reached: {_describe(error)}.")
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, UnicodeError):  # no usable host
            failure = NotSent(
                "aiohttp cannot request the token URL, or the proxy's URL.", todo="Check both host names."
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = OutcomeUnknown(
                f"The token request got no complete answer: {_describe(error, request.secrets)}."
            )
        # Outside the handler, so that aiohttp's exception is not the context of ours: some have the
        # request's headers, which may contain the client's credentials.
        raise failure

    async def _post(self, request: TokenRequest, connect: float) -> TokenResponse:
        async with (
            aiohttp.ClientSession(
                connector=_Connector(self._ssl),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=connect),  # includes name look-up and TLS
                max_line_size=MAX_LINE,
                max_field_size=MAX_LINE,
                max_headers=MAX_FIELDS + 2,  # aiohttp's Python parser counts two more lines
                auto_decompress=False,  # aiohttp would inflate a decompression bomb to its full size
            ) as client,
            client.post(
                # encoded=True: send what the provider built, without yarl's normalization.
                URL(request.url, encoded=True),
                data=request.body,
                headers=(("Accept-Encoding", "identity"), *request.headers),
                allow_redirects=False,
                proxy=self._proxy,
            ) as response,
        ):
            try:
                body = await _read(response)
            except InvalidTokenResponse as error:
                error.granted = 200 <= response.status < 300  # it may have carried a rotated token
                raise
            headers = tuple((name.lower(), value) for name, value in response.headers.items())
            return TokenResponse(response.status, headers, body)

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
    """Makes one `_Connection` for one request."""

    def __init__(self, ssl: SSLContext | bool | aiohttp.Fingerprint) -> None:
        super().__init__(force_close=True, ssl=ssl)
        connection: type[ResponseHandler] = _Connection
        self._factory = functools.partial(connection, loop=self._loop)


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
    # We ask for an uncompressed response, but some gateways compress anyway.
    if response.headers.get("Content-Encoding", "identity").lower() in ("gzip", "x-gzip", "deflate"):
        return _inflate(bytes(body))
    return bytes(body)


def _inflate(body: bytes) -> bytes:
    """Decompress gzip, zlib, or the raw deflate that some servers send instead."""
    for bits in (_GZIP_OR_ZLIB, -zlib.MAX_WBITS):
        inflater = zlib.decompressobj(bits)
        with contextlib.suppress(zlib.error):
            plain = inflater.decompress(body, MAX_BODY)
            if inflater.unconsumed_tail:
                raise InvalidTokenResponse(f"The token response inflates to more than {MAX_BODY} bytes.")
            return plain
    raise InvalidTokenResponse("The token response claims to be compressed, but cannot be decompressed.")


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
