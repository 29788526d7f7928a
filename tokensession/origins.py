"""Where a token may be sent: origins, and the URLs of requests."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeAlias

from aiohttp import ClientConnectorDNSError, ClientRequest, InvalidURL, TCPConnector
from yarl import URL

from . import _validate
from .errors import ConfigurationError, ForeignOrigin

__all__ = ["Origin", "check_loopback", "origin_of", "parse_origins", "resolve"]

Origin: TypeAlias = tuple[str, str | None, int | None]
"""Scheme, host and port, including a default port: what a client connects to."""


def origin_of(url: URL) -> Origin:
    """The origin of a URL. (`url.origin()` makes another URL, and takes ten times as long.)"""
    return url.scheme, url.raw_host, url.port


def parse_origins(values: Iterable[str], *, insecure_http_hosts: Collection[str] = ()) -> frozenset[Origin]:
    """Origins from text: https, or http on loopback or to these hosts. Raises `ConfigurationError`.

    A websocket to the same host and port counts as the same origin: its handshake is a request like others.
    """
    if not isinstance(values, Iterable):
        raise ConfigurationError(f"origins must be strings, not {_validate.describe(values)}.")
    origins: set[Origin] = set()
    for value in values:
        checked = _validate.url("origins", value, insecure_http_hosts=insecure_http_hosts)
        url = URL(_validate.origin(checked))
        if URL(value).path != "/":
            raise ConfigurationError(
                f"origins must not have a path ({url}/…): a token goes to a whole origin.",
                todo=f'Pass "{url}".',
            )
        socket = url.with_scheme("wss" if url.scheme == "https" else "ws")
        origins |= {origin_of(url), origin_of(socket)}
    return frozenset(origins)


def resolve(base: str, origins: frozenset[Origin], url: str | URL) -> URL:
    """The absolute URL of a request, if the token may go there.

    A relative URL is appended to the base. Raises `ForeignOrigin`, aiohttp's `InvalidURL`, or
    `ConfigurationError` for a path that leaves the base.
    """
    if not _is_plain_path(url):
        target = _parsed(url)
        if target.absolute:
            return _checked(target, origins)
    path, root = str(url), URL(base)
    joint = "" if not path or path[0] in "?#" else "/"
    # Append, do not join: joining "/rest" to ".../api" would drop the base path.
    target = _parsed(f"{str(root).rstrip('/')}{joint}{path.lstrip('/')}", encoded=isinstance(url, URL))
    raw = target.raw_path
    if raw.startswith(root.raw_path.rstrip("/") + "/") and "%" not in raw and ".." not in raw:
        return target  # nearly always; splitting it into parts costs more than everything else here
    parts = root.parts  # yarl resolves dots in text, but not in a URL object
    if target.parts[: len(parts)] != parts or ".." in target.parts:
        raise ConfigurationError(
            "The relative URL leaves the provider's base path.",
            todo="Leave out the '..', or pass the absolute URL.",
        )
    return target


async def check_loopback(request: ClientRequest) -> None:
    """Raise `ForeignOrigin` if this is a plain http request to this machine that would leave it.

    `localhost` and the names below it mean this machine (RFC 6761, 6.3), and so the token may go there in
    plain http. But not every resolver knows that, and a proxy looks up names itself. A proxy on another
    machine gets a request to 127.0.0.1, too.
    """
    url, proxy, connector = request.url, request.proxy, request.session.connector
    host, leads = url.raw_host or "", ""
    if url.scheme in ("https", "wss") or not _validate.is_loopback(host):
        return
    if proxy is not None:
        named = _validate.is_localhost(host) or not _validate.is_loopback(proxy.raw_host or "")
        leads = "through a proxy" if named else ""
    elif _validate.is_localhost(host) and isinstance(connector, TCPConnector):  # not a Unix socket
        try:
            found = await connector._resolve_host(host, url.port or 80)  # as it will in a moment
        except OSError as error:
            raise ClientConnectorDNSError(request.connection_key, error) from error  # as aiohttp does
        leads = next(
            (f"to {at['host']}" for at in found if not _validate.is_loopback(at["host"].partition("%")[0])),
            "",
        )
    if leads:
        raise ForeignOrigin(
            f"{url.host_subcomponent} leads {leads}, and this session's token may go to this machine only.",
            todo="Use no proxy for it, or https."
            if proxy is not None
            else "Use http://127.0.0.1, an AuthedSession without a client of your own, or https.",
        )


def _parsed(url: str | URL, *, encoded: bool = False) -> URL:
    try:
        return URL(url, encoded=encoded)
    except (ValueError, TypeError, IndexError) as error:  # yarl raises all of these
        if isinstance(url, str) and "@" in url:  # a password may be in both
            raise InvalidURL(_validate.describe(url)) from None
        raise InvalidURL(url) from error


def _is_plain_path(url: str | URL) -> bool:
    """Whether it is surely a path. "//host" is not, even with a tab between the slashes."""
    return isinstance(url, str) and url[:1] == "/" != url[1:2] and url.isprintable()


def _checked(url: URL, origins: frozenset[Origin]) -> URL:
    if origin_of(url) not in origins:
        port = f":{url.explicit_port}" if url.explicit_port else ""
        named = f"{url.scheme or 'https'}://{url.host_subcomponent or ''}{port}"
        raise ForeignOrigin(f"This session's token may not go to {named}.", todo=_advice(url, named, origins))
    if url.raw_user is not None or url.raw_password is not None:
        raise ConfigurationError(
            "The URL of a request must not contain a user name or password: this session sends its token.",
            intact="Nothing was sent.",
            todo="Leave them out, or use session.client for a request with other credentials.",
        )
    return url


def _advice(url: URL, named: str, origins: frozenset[Origin]) -> str:
    """What to do about a foreign origin. What it says to pass as `origins` is accepted there."""
    plainly = "session.client for a request without the token."
    if url.scheme in ("http", "ws") and any(scheme == "https" for scheme, _, _ in origins):
        return f"Use {'https' if url.scheme == 'http' else 'wss'}, or {plainly}"
    allowed = f"http{named.removeprefix('ws')}" if named.startswith("ws") else named
    try:
        parse_origins([allowed])
    except ConfigurationError:
        return f"Use {plainly}"
    return f'Allow it with AuthedSession(..., origins=["{allowed}"]), or use {plainly}'
