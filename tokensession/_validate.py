"""Checks of what you configure: a clear error before any I/O, and never a secret in it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from .errors import ConfigurationError

__all__ = [
    "describe",
    "environment",
    "http_hosts",
    "implements",
    "is_localhost",
    "is_loopback",
    "one_of",
    "origin",
    "secret",
    "text",
    "url",
]

_DEFAULT_PORTS = {"https": 443, "http": 80}
_WORD = re.compile(r"[A-Za-z]{1,12}")  # short and letters only: no secret looks like this
_HOST = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_NO_HOST = re.compile(r"[\x00-,/:-@\[-^`{-\x7f]")  # ASCII that is in no name, international ones included
_LIKE = "such as 'https://api.example.com'"


def describe(value: object) -> str:
    """What an error may say about a value that may be a secret: its type, and the length of text."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str):
        characters = "1 character" if len(value) == 1 else f"{len(value)} characters"
        return f"a string of {characters}" if value else "an empty string"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def text(name: str, value: str | None) -> str:
    """Non-empty text without stray white space, which copying a secret often adds.

    One provider's documentation even prints a no-break space after its example.
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a string, not {describe(value)}.")
    if not value:
        raise ConfigurationError(f"{name} must not be empty.")
    problem = (
        "begins or ends with white space"
        if value != value.strip()
        else "contains an unprintable character"
        if not value.isprintable()
        else None
    )
    if problem is not None:
        raise ConfigurationError(f"{name} {problem} ({describe(value)}).", todo="Copy it again without that.")
    return value


def secret(name: str, value: str | None) -> str:
    """A secret that can be encoded. An environment variable that is not UTF-8 becomes text that cannot."""
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigurationError(
            f"{name} is not valid Unicode text ({describe(value)}).",
            todo="If it comes from an environment variable, set that to UTF-8 text.",
        )
    return text(name, value)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """One of a few words, spelled exactly so.

    A wrong value may be a secret in the wrong parameter, so only a short word of letters is shown.
    """
    if value not in allowed:
        *most, last = map(repr, allowed)
        word = isinstance(value, str) and _WORD.fullmatch(value)
        raise ConfigurationError(
            f"{name} must be {', '.join(most)} or {last}, not {repr(value) if word else describe(value)}."
        )
    return value


def url(
    name: str, value: str, *, query: bool = False, insecure_http_hosts: Collection[str] | None = None
) -> str:
    """An absolute https URL (or http on loopback), without credentials, query or trailing slash.

    `query`: it may have one (RFC 6749, 3.2). It may be plain http to the `insecure_http_hosts`, too, which
    have been through `http_hosts`; None if the caller cannot be given any.

    An error shows at most the scheme and host. The rest may be a secret.
    """
    text(name, value)
    host: str | None = None
    with contextlib.suppress(ValueError):  # its message repeats a part of the URL, passwords included
        parts = urlsplit(value)
        host, _ = parts.hostname or "", parts.port
        labels = host.removesuffix(".").split(".")
        if not all(0 < len(label) < 64 for label in labels) or (_NO_HOST.search(host) and ":" not in host):
            host = ""  # two dots in a row, or a "*": no such name can be looked up
    if host is None:
        raise ConfigurationError(f"{name} must be a URL {_LIKE}, not {describe(value)}.")
    shown = f"{parts.scheme}://{_bracketed(host)}" if host and not {"@", " "} & {*value} else describe(value)
    if parts.scheme not in _DEFAULT_PORTS or not host or " " in value:
        raise ConfigurationError(
            f"{name} must be an absolute https URL {_LIKE}, not {shown}.",
            todo="There are no patterns: name the host in full." if "*" in value else None,
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            f"{name} must not contain a user name or password ({shown}).", todo="Pass them as parameters."
        )
    if "#" in value or ("?" in value and not query):
        what = "fragment" if query else "query or fragment"
        raise ConfigurationError(f"{name} must not have a {what} ({shown}…).")
    if parts.scheme == "http" and not is_loopback(host) and _plain(host) not in (insecure_http_hosts or ()):
        raise ConfigurationError(
            f"{name} must use https, not {shown}: a token sent there can be read on the way.",
            todo="Plain http is allowed on the loopback interface"
            + (" only." if insecure_http_hosts is None else ", and to the hosts in insecure_http_hosts."),
        )
    return value.rstrip("/")


def origin(value: str) -> str:
    """The scheme, host and port of a URL that has been checked, without a default port."""
    parts = urlsplit(value)
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{_bracketed(parts.hostname or '')}{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def is_localhost(host: str) -> bool:
    """Whether it is `localhost` or a name below it, which are always this machine (RFC 6761, 6.3)."""
    return _plain(host) == "localhost" or _plain(host).endswith(".localhost")


def is_loopback(host: str) -> bool:
    """Whether this host is always this machine, by its name or its address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return is_localhost(host)


def http_hosts(values: Collection[str]) -> tuple[str, ...]:
    """Hosts to which plain http is allowed, in lower case. Each is named in full, without a port."""
    if isinstance(values, str) or not isinstance(values, Collection):
        raise ConfigurationError(
            f"insecure_http_hosts must be host names, not {describe(values)}.",
            todo='Pass a tuple, such as ("keycloak",).',
        )
    for value in values:
        if not isinstance(value, str) or not _HOST.fullmatch(value):
            raise ConfigurationError(
                f"insecure_http_hosts must be host names such as 'keycloak', and one is {describe(value)}.",
                todo="Name each host in full, without scheme, port and '*'.",
            )
    return tuple(map(_plain, values))


def environment(prefix: str, names: Mapping[str, bool]) -> dict[str, str]:
    """Parameters from environment variables: {"client_id": True} reads PREFIX_CLIENT_ID, required.

    An empty variable counts as not set. Raises one error that names every variable that is missing.
    """
    found = {name: value for name in names if (value := os.environ.get(f"{prefix}_{name.upper()}"))}
    missing = [
        f"{prefix}_{name.upper()}" for name, required in names.items() if required and name not in found
    ]
    if missing:
        raise ConfigurationError(f"Environment variables are not set: {', '.join(missing)}.")
    return found


def implements(protocol: type, value: object) -> bool:
    """Whether it is an object (not a class) that has everything the protocol names.

    `isinstance` does not do: since Python 3.12 it overlooks what an object passes on by `__getattr__`, as
    a store that wraps another one often does.
    """
    names = [name for name in dir(protocol) if not name.startswith("_")]
    return not isinstance(value, type) and all(_has(value, name, protocol) for name in names)


def _has(value: object, name: str, protocol: type) -> bool:
    """Whether it has this member. `refresh = None` means that a class has no such method."""
    return callable(getattr(value, name, None)) if callable(getattr(protocol, name)) else hasattr(value, name)
