"""Finds the endpoints of a server by its issuer (RFC 8414; OpenID Connect Discovery 1.0).

The only provider module that does I/O by itself: one or two GET requests, when you ask for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from .. import _validate
from ..errors import ConfigurationError, InvalidTokenResponse, TokenUnavailable
from ..transport import Resolver
from . import _wire

__all__ = ["Discovery"]

_LONGEST_SHOWN = 300  # characters of an issuer
_LONGEST = 256 * 1024  # bytes of metadata; real ones have a few thousand
_TIMEOUT = 10.0  # seconds for one request


class Discovery:
    """Finds the metadata of authorization servers, and remembers what it has found.

    Pass one to `OAuth2.discover`, and keep it as long as you want to remember. `client` is a ClientSession of
    your own, with your proxy and certificates. Without it, and for plain http to this machine (`localhost`,
    the names below it, and loopback addresses), one is opened for each look-up.
    """

    __slots__ = ("_client", "_found")

    def __init__(self, client: aiohttp.ClientSession | None = None) -> None:
        self._client = client
        self._found: dict[str, Mapping[str, Any]] = {}

    async def metadata(self, issuer: str, *, insecure_http_hosts: Collection[str] = ()) -> Mapping[str, Any]:
        """The metadata of this issuer, whose `issuer` is exactly this (RFC 8414, 3.3).

        `insecure_http_hosts`: hosts to which plain http is allowed, as for `OAuth2`.

        Raises `ConfigurationError` if there is none or it is another issuer's, and `TokenUnavailable` if the
        server cannot be reached, or one of the two places may have it later.
        """
        hosts = _validate.http_hosts(insecure_http_hosts)
        address = _validate.url("issuer", issuer, insecure_http_hosts=hosts)
        if issuer not in self._found:
            place = urlsplit(address)
            here = place.scheme == "http" and _validate.is_loopback(place.hostname or "")
            async with contextlib.AsyncExitStack() as stack:
                client = self._client
                if client is not None and client.closed:
                    raise RuntimeError("The ClientSession of this Discovery is closed. Nothing was sent.")
                if client is None or here:
                    connector = aiohttp.TCPConnector(resolver=Resolver())
                    client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
                self._found[issuer] = await _metadata(client, issuer, address)
        return self._found[issuer]

    def __repr__(self) -> str:
        return f"<Discovery of {len(self._found)} issuers>"


async def _metadata(client: aiohttp.ClientSession, issuer: str, address: str) -> Mapping[str, Any]:
    path = urlsplit(address).path
    places = (
        f"{_validate.origin(address)}/.well-known/oauth-authorization-server{path}",
        f"{address}/.well-known/openid-configuration",
    )
    problems: list[ConfigurationError | TokenUnavailable] = []
    for place in places:  # servers answer in many ways where they have nothing: with a login page, with a 500
        try:
            return _document(await _get(client, place), place, issuer)
        except (ConfigurationError, TokenUnavailable) as error:
            problems.append(error)
    happened = " ".join(str(each.args[0]) for each in problems)
    if later := [each for each in problems if isinstance(each, TokenUnavailable)]:
        raise TokenUnavailable(happened) from later[0].__cause__
    raise ConfigurationError(
        f"The issuer has no metadata that can be used. {happened}",
        todo="Pass the issuer exactly as the server writes it, with or without a slash at its end; or pass "
        "token_url and the other endpoints yourself.",
    )


def _document(body: bytes, place: str, issuer: str) -> Mapping[str, Any]:
    """The metadata in a body, if it is this issuer's."""
    try:
        document = _wire.parse_json(body)
    except InvalidTokenResponse as error:
        raise ConfigurationError(f"{place} has no metadata: {error.args[0]}") from None
    found = document.get("issuer")
    if found != issuer:
        # The issuer is public, and the request had no secret that a server could repeat.
        whole = isinstance(found, str) and len(found) <= _LONGEST_SHOWN and found.isprintable()
        shown = repr(found) if whole else _validate.describe(found)
        raise ConfigurationError(f"{place} has the metadata of another issuer: {shown}.")
    return document


async def _get(client: aiohttp.ClientSession, place: str) -> bytes:
    """The body at this place."""
    try:
        async with client.get(
            place,
            headers={"Accept": "application/json"},
            allow_redirects=False,
            raise_for_status=False,  # also if the client does
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT),
        ) as response:
            if response.status != 200:
                later = response.status >= 500 or response.status in (408, 429)
                raise (TokenUnavailable if later else ConfigurationError)(
                    f"{place} answered {response.status}."
                )
            body = bytearray()
            async for chunk in response.content.iter_chunked(_LONGEST):
                body += chunk
                if len(body) > _LONGEST:
                    raise ConfigurationError(f"The metadata at {place} is longer than {_LONGEST} bytes.")
            return bytes(body)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise TokenUnavailable(f"{place} cannot be reached ({type(error).__name__}).") from error
