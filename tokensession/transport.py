"""The network side of token requests, by aiohttp.

Each token request gets a client session of its own, closed behind it. That costs a fraction of a
millisecond once an hour, and buys a lot: the request cannot wait for the pool that API requests fill,
cannot pass through anybody's middleware (ours included), takes no cookies along, reuses no connection
that the server may just be closing (which would leave its outcome unknown), and binds nothing to an
event loop between requests.
"""

from __future__ import annotations

import contextlib
import zlib
from ssl import SSLContext

import aiohttp
from yarl import URL

from .clock import Clock, SystemClock, within
from .errors import ConfigurationError, InvalidTokenResponse, NotSent, OutcomeUnknown, TokenSessionError
from .providers.protocol import TokenRequest, TokenResponse

__all__ = ["MAX_BODY", "AiohttpTransport"]

MAX_BODY = 1024 * 1024
"""Bytes of a token reply that are read, before and after decompression. Real ones have a few thousand."""

_CLOCK = SystemClock()
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

# Raised before a byte of the request was sent. ClientConnectorError covers DNS, connecting, TLS and an
# unreachable proxy; aiohttp raises the second for a proxy that refuses to connect us.
_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError, aiohttp.ConnectionTimeoutError)


class AiohttpTransport:
    """Sends token requests by aiohttp. Holds no connection, no session and no event loop.

    `ssl` and `proxy` are aiohttp's parameters of the same name, for a private certificate authority or
    a way out of the network. `clock` times the whole request; the default is the machine's.
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
                f"ssl is a {type(ssl).__name__}.", todo="Pass an ssl.SSLContext; True is the default."
            )
        if not _is_proxy(proxy):
            raise ConfigurationError(  # not by its value: there may be a password in it
                "proxy is not an http(s) URL.", todo='Pass one such as "http://proxy.example.com:3128".'
            )
        self._clock = clock or _CLOCK
        self._ssl = ssl
        self._proxy = proxy

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        """POST it, exactly once. Time-outs in seconds. See `TokenTransport`."""
        try:
            # Not aiohttp's own total time-out: it cancels without a look at what has arrived meanwhile.
            return await within(self._clock, total, self._post(request, connect))
        except _NOT_SENT as error:
            failure: TokenSessionError = NotSent(f"The token endpoint cannot be reached: {_describe(error)}.")
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, UnicodeError):  # no host at all
            failure = NotSent("The token URL, or the proxy's, is none that aiohttp can request.")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = OutcomeUnknown(f"The token request got no whole answer: {_describe(error)}.")
        # Outside the handler, so that aiohttp's exception is no part of ours: some of them carry the
        # request's headers, and the client's credentials may stand in one.
        raise failure

    async def _post(self, request: TokenRequest, connect: float) -> TokenResponse:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, ssl=self._ssl),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=connect),  # name look-up and TLS included
                auto_decompress=False,  # aiohttp would inflate a small bomb to its full size
            ) as client,
            client.post(
                # encoded=True: what the provider built is sent, not what yarl would make of it.
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
                error.granted = 200 <= response.status < 300  # what cannot be read may be a rotated token
                raise
            headers = tuple((name.lower(), value) for name, value in response.headers.items())
            return TokenResponse(response.status, headers, body)

    def __repr__(self) -> str:
        return "AiohttpTransport()"


def _is_proxy(proxy: str | None) -> bool:
    """Whether aiohttp can be told so; what it cannot would look like a request without an answer."""
    if proxy is None:
        return True
    with contextlib.suppress(ValueError, TypeError, IndexError):  # yarl raises all of these
        url = URL(proxy)
        return url.scheme in ("http", "https") and bool(url.host)
    return False


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, decompressed, if it is at most MAX_BODY long either way."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        body += chunk
        if len(body) > MAX_BODY:
            raise InvalidTokenResponse(
                f"The token reply is longer than {MAX_BODY} bytes; the rest was not read."
            )
    # Nothing compressed was asked for; some gateways do it all the same.
    if response.headers.get("Content-Encoding", "identity").lower() in ("gzip", "x-gzip", "deflate"):
        return _inflate(bytes(body))
    return bytes(body)


def _inflate(body: bytes) -> bytes:
    """Gzip, zlib, or the bare deflate that some servers send in its place."""
    for bits in (_GZIP_OR_ZLIB, -zlib.MAX_WBITS):
        inflater = zlib.decompressobj(bits)
        with contextlib.suppress(zlib.error):
            plain = inflater.decompress(body, MAX_BODY)
            if inflater.unconsumed_tail:
                raise InvalidTokenResponse(f"The token reply inflates to more than {MAX_BODY} bytes.")
            return plain
    raise InvalidTokenResponse("The token reply calls itself compressed, and cannot be decompressed.")


def _describe(error: BaseException) -> str:
    """The kind of trouble. Messages of connection errors name host and port, and are safe to show."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, aiohttp.ClientConnectorError) else name
