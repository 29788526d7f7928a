"""Checks of what you configure: a clear error before any I/O, and never a secret in it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from .errors import ConfigurationError

__all__ = ["describe", "environment", "implements", "one_of", "origin", "secret", "text", "url"]

_DEFAULT_PORTS = {"https": 443, "http": 80}
_WORD = re.compile(r"[A-Za-z]{1,12}")  # short and letters only: no secret looks like this
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


def url(name: str, value: str) -> str:
    """An absolute https URL (or http on loopback), without credentials, query or trailing slash.

    An error shows at most the scheme and host. The rest may be a secret.
    """
    text(name, value)
    host: str | None = None
    with contextlib.suppress(ValueError):  # its message repeats a part of the URL, passwords included
        parts = urlsplit(value)
        host, _ = parts.hostname or "", parts.port
        if not all(0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
            host = ""  # two dots in a row, for example: no such name can be looked up
    if host is None:
        raise ConfigurationError(f"{name} must be a URL {_LIKE}, not {describe(value)}.")
    shown = f"{parts.scheme}://{_bracketed(host)}" if host and not {"@", " "} & {*value} else describe(value)
    if parts.scheme not in _DEFAULT_PORTS or not host or " " in value:
        raise ConfigurationError(f"{name} must be an absolute https URL {_LIKE}, not {shown}.")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            f"{name} must not contain a user name or password ({shown}).", todo="Pass them as parameters."
        )
    if "?" in value or "#" in value:
        raise ConfigurationError(f"{name} must not have a query or fragment ({shown}…).")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigurationError(
            f"{name} must use https, not {shown}: a token sent there can be read on the way.",
            todo="Plain http is allowed on the loopback interface only.",
        )
    return value.rstrip("/")


def origin(value: str) -> str:
    """The scheme, host and port of a URL that has been checked, without a default port."""
    parts = urlsplit(value)
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{_bracketed(parts.hostname or '')}{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
