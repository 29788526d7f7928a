"""Encodes token requests, and parses the bodies and values of token responses. Pure.

Whatever a server sends, the parsers raise only `InvalidTokenResponse` or its subclass `TruncatedResponse`.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, quote_plus, urlencode

from ..errors import InvalidTokenResponse
from ..policy import MAX_LIFETIME

__all__ = [
    "TruncatedResponse",
    "access_token",
    "basic_auth",
    "encode_form",
    "encode_json",
    "find",
    "is_plain",
    "lifetime_seconds",
    "parse_form",
    "parse_http_date",
    "parse_json",
    "refresh_token",
    "retry_after",
    "scope",
]

Pairs: TypeAlias = Sequence[tuple[str, str]]

_LONGEST_INTEGER = 400  # digits; more than any number here needs, fewer than Python's own limit
_NUMBER = re.compile(r"[ \t\r\n]*([+-]?[0-9]{1,40}(?:\.[0-9]{0,40})?)[ \t\r\n]*")
_ACCESS_TOKEN = re.compile(r"[\x21-\x7e]+")
_REFRESH_TOKEN = re.compile(r"[\x20-\x7e]+")  # RFC 6749 appendix A.17 allows the space
_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")  # that Python's parser accepts
_PLACE = re.compile(r"[0-9]{1,9}")
_HALF_NUMBER = re.compile(r"|-|\.|[eE][+-]?")
_HALF_ESCAPE = re.compile(r"\\u[0-9A-Fa-f]{0,4}\Z")


class TruncatedResponse(InvalidTokenResponse):
    """The document is truncated: the rest was lost on the way."""


# -- requests ---------------------------------------------------------------------------------


def encode_form(pairs: Pairs) -> bytes:
    """Encode the pairs as `application/x-www-form-urlencoded`, in the order given.

    `:` and `/` stay as they are, as some providers' documentation prints `redirect_uri`. Servers decode them
    to the same value either way.
    """
    return urlencode(pairs, safe=":/").encode("ascii")


def encode_json(pairs: Pairs) -> bytes:
    """Encode the pairs as a JSON object, in the order given. A name that comes several times has a list."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    document = {name: each[0] if len(each) == 1 else each for name, each in values.items()}
    return json.dumps(document).encode("ascii")


def basic_auth(client_id: str, client_secret: str) -> str:
    """The Authorization header's value for client credentials: both form-encoded (RFC 6749, 2.3.1)."""
    pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
    return "Basic " + base64.b64encode(pair.encode("ascii")).decode("ascii")


# -- responses --------------------------------------------------------------------------------


def parse_json(body: bytes) -> dict[str, Any]:
    """Read a body as a JSON object, whatever its Content-Type.

    Skips a byte order mark, and replaces bytes that are not UTF-8 by U+FFFD. Raises `InvalidTokenResponse`,
    also for duplicate keys: RFC 8259 leaves open which one counts.
    """
    text = body.decode("utf-8-sig", errors="replace")
    failure: InvalidTokenResponse
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
    except json.JSONDecodeError as error:
        if _cut_short(text, error):
            failure = TruncatedResponse("The response is truncated JSON.")
        else:
            failure = InvalidTokenResponse("The response is not JSON.")
    except RecursionError:
        failure = InvalidTokenResponse("The response is nested too deeply.")
    else:
        return _object(document)
    # Outside the handler: a JSONDecodeError has the whole document, and would be the context of ours.
    raise failure


def _object(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InvalidTokenResponse(f"The response is a JSON {type(document).__name__}, not an object.")
    return document


def parse_form(body: bytes) -> dict[str, Any]:
    """Read a form-encoded body, which a few servers send. Raises `InvalidTokenResponse`."""
    text = body.decode("utf-8", errors="replace").strip()
    with contextlib.suppress(ValueError):
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=100)
        return _unique(pairs)
    # Outside the handler: the message of that ValueError repeats a field, which may be a token.
    raise InvalidTokenResponse("The response is not form-encoded.")


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise InvalidTokenResponse("The response has the same key twice.")
        document[name] = value
    return document


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise InvalidTokenResponse(f"The response has an integer of {len(digits)} digits.")
    return int(digits)


def _cut_short(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the parser reached the end of the text inside an object."""
    if not text.lstrip().startswith("{"):
        return False
    if error.msg.startswith("Invalid \\u"):
        return _HALF_ESCAPE.search(text) is not None
    rest = text[error.pos :].rstrip()
    return error.msg.startswith("Unterminated string") or (
        not error.msg.startswith("Extra data")
        and (_HALF_NUMBER.fullmatch(rest) is not None or any(word.startswith(rest) for word in _WORDS))
    )


def find(document: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path ("error.message", or "errors.0.code" for a list), or None."""
    value: Any = document
    for name in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and _PLACE.fullmatch(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def is_plain(value: Any) -> bool:
    """Whether it is text, a boolean, or a number, and can be stored as it is."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63
    return isinstance(value, float) and math.isfinite(value)


def access_token(value: Any) -> str:
    """An access token that can be sent in a header: visible ASCII only."""
    return _token(value, "access token", _ACCESS_TOKEN)


def refresh_token(value: Any) -> str | None:
    """A refresh token, or None if the response has none and the old one stays valid."""
    return None if value is None or value == "" else _token(value, "refresh token", _REFRESH_TOKEN)


def _token(value: Any, what: str, allowed: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidTokenResponse(f"The response has no {what}.")
    if not allowed.fullmatch(value):
        raise InvalidTokenResponse(f"The response's {what} has characters that no {what} may have.")
    return value


def scope(value: Any) -> str | None:
    """A scope that can be stored, or None. A list is joined with blanks.

    An invalid scope is ignored: it must not cost the token.
    """
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        value = " ".join(filter(None, value))
    return value if isinstance(value, str) and value.isprintable() else None


def lifetime_seconds(value: Any) -> float | None:
    """A lifetime in seconds from a number or a decimal string, or None for anything else.

    Python's `int()` would also accept "3_600" and Arabic-Indic digits, and `float()` "nan" and "inf". A
    lifetime above `MAX_LIFETIME` is cut to that. Zero and less are returned as they are: such a token is
    used once.
    """
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        value = float(match[1]) if match else None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        return None
    return float(max(-MAX_LIFETIME, min(value, MAX_LIFETIME)))


def retry_after(value: Any, now: float) -> float | None:
    """The seconds that a Retry-After asks for, or None. `now` is the server's wall clock.

    Accepts a number, an HTTP date (RFC 9110, 10.2.3), and Priava's date, which has no zone and may have a
    wrong weekday. It is read as UTC. A date may be in the past; a number below zero is not a pause.
    """
    seconds = lifetime_seconds(value)
    if seconds is not None:
        return None if seconds < 0 else seconds
    moment = parse_http_date(value)
    return None if moment is None else moment - now


def parse_http_date(value: Any) -> float | None:
    """An HTTP date as seconds since the epoch, or None for anything else."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
