"""Checks of what a user configures: a clear error before any I/O, and never the secret in it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from .errors import ConfigurationError

__all__ = ["environment", "implements", "one_of", "origin", "secret", "text", "url"]

_DEFAULT_PORTS = {"https": 443, "http": 80}


def text(name: str, value: str | None) -> str:
    """Text that is there and has no stray white space: a copied secret often brings some along.

    One document of a provider even prints a no-break space after its example.
    """
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{name} is missing or not text.", intact="Nothing was sent.")
    if value != value.strip() or not value.isprintable():
        raise ConfigurationError(
            f"{name} begins or ends with white space, or holds control characters.",
            intact="Nothing was sent.",
            todo=f"Copy {name} again, without what surrounds it.",
        )
    return value


def secret(name: str, value: str | None) -> str:
    """A secret that can be sent. One from an undecodable environment variable has lone surrogates in it."""
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigurationError(f"{name} is not valid Unicode text.", intact="Nothing was sent.")
    return text(name, value)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """One of a few words, spelled exactly so."""
    if value not in allowed:
        raise ConfigurationError(  # which value it is may be a secret in the wrong place
            f"{name} is none of those that there are.",
            intact="Nothing was sent.",
            todo=f"Use one of {allowed}.",
        )
    return value


def url(name: str, value: str) -> str:
    """An absolute https URL (or http on loopback), without credentials, query or trailing slash."""
    text(name, value)
    host: str | None = None
    with contextlib.suppress(ValueError):  # whose message repeats a part of the URL, password and all
        parts = urlsplit(value)
        host, _ = parts.hostname or "", parts.port
        if not all(0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
            host = ""  # two dots in a row, say: no name is looked up for it
    if host is None:
        raise ConfigurationError(f"{name} is not a URL.", intact="Nothing was sent.")
    if parts.scheme not in _DEFAULT_PORTS or not host or " " in value:
        raise ConfigurationError(f"{name} is not an absolute http(s) URL.", intact="Nothing was sent.")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(f"{name} has credentials in it.", todo="Pass them as parameters instead.")
    if "?" in value or "#" in value:
        raise ConfigurationError(f"{name} has a query or fragment.", todo="Leave it out.")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigurationError(
            f"{name} is http://{host}: a token sent there can be read on the way.",
            intact="Nothing was sent.",
            todo="Use https. Plain http is accepted on the loopback interface only.",
        )
    return value.rstrip("/")


def origin(value: str) -> str:
    """The scheme, host and port of a URL that has been checked, default port left out."""
    parts = urlsplit(value)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def environment(prefix: str, names: Mapping[str, bool]) -> dict[str, str]:
    """Parameters from environment variables: {"client_id": True} reads PREFIX_CLIENT_ID, required.

    Unset and empty count as absent. Raises one error that names every variable that is missing.
    """
    found = {name: value for name in names if (value := os.environ.get(f"{prefix}_{name.upper()}"))}
    missing = [
        f"{prefix}_{name.upper()}" for name, required in names.items() if required and name not in found
    ]
    if missing:
        raise ConfigurationError(f"Not set: {', '.join(missing)}.", todo="Set them in the environment.")
    return found


def implements(protocol: type, value: object) -> bool:
    """Whether it is an object (and not a class) that has all that the protocol names.

    Not by isinstance(): from Python 3.12 on that overlooks what an object passes on by `__getattr__`,
    and a store that wraps another, to log or to count, is often made so.
    """
    names = [name for name in dir(protocol) if not name.startswith("_")]
    return not isinstance(value, type) and all(_has(value, name, protocol) for name in names)


def _has(value: object, name: str, protocol: type) -> bool:
    """Whether it is there. `refresh = None` is how a class says that it has no such method."""
    return callable(getattr(value, name, None)) if callable(getattr(protocol, name)) else hasattr(value, name)
