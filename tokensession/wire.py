"""Bytes in, values out, and the other way: the parsers and encoders of token requests. All pure.

Whatever a server sends, only `MalformedReply` and `TruncatedReply` come out of here.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import functools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any
from urllib.parse import parse_qsl, quote_plus, urlencode

from .errors import MalformedReply

__all__ = [
    "LONGEST_LIFE",
    "TruncatedReply",
    "access_token",
    "basic_auth",
    "encode_form",
    "encode_json",
    "excerpt",
    "expires_in",
    "find",
    "parse_form",
    "parse_http_date",
    "parse_json",
    "redact",
    "refresh_token",
    "retry_after",
    "scope",
]

Pairs = Sequence[tuple[str, str]]

LONGEST_LIFE = 365 * 86400.0
"""Seconds. A longer `expires_in` is a mistake, and is cut to this."""

_LONGEST_INTEGER = 400  # digits; more than any number here needs, less than Python refuses
_NUMBER = re.compile(r"[ \t\r\n]*([+-]?[0-9]{1,40}(?:\.[0-9]{0,40})?)[ \t\r\n]*")
_ACCESS_TOKEN = re.compile(r"[\x21-\x7e]+")
_REFRESH_TOKEN = re.compile(r"[\x20-\x7e]+")  # RFC 6749 appendix A.17 allows the space
_TOKEN_LIKE = re.compile(r"[A-Za-z0-9+/=_~.%!$*|:@#^-]{16,}")
_BACKSLASHES = r"\\{0,8}"  # a pattern: the escapes of escapes
_ERROR_CODE = re.compile(r"([a-z]{1,14}(_[a-z]{1,14})+|[A-Z]{1,14}(_[A-Z]{1,14})+)[.:]?")  # no token
_LOOKED_AT = 4096  # bytes of a body that an excerpt is made from
_UTF16 = re.compile(r"(?:[^\0]\0){4,}|(?:\0[^\0]){4,}")
_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")  # all that Python's parser takes
_HALF_NUMBER = re.compile(r"|-|\.|[eE][+-]?")
_HALF_ESCAPE = re.compile(r"\\u[0-9A-Fa-f]{0,4}\Z")


class TruncatedReply(MalformedReply):
    """The document ends in the middle: the rest was lost on the way."""


# -- requests ---------------------------------------------------------------------------------


def encode_form(pairs: Pairs) -> bytes:
    """`application/x-www-form-urlencoded`, in the order given, `:` and `/` as they are.

    Both providers' documents print `redirect_uri` with them bare; they decode the same either way.
    """
    return urlencode(pairs, safe=":/").encode("ascii")


def encode_json(pairs: Pairs) -> bytes:
    """A JSON object, in the order given."""
    return json.dumps(dict(pairs)).encode("ascii")


def basic_auth(client_id: str, client_secret: str) -> str:
    """The Authorization value for client credentials, each form-encoded first (RFC 6749, 2.3.1)."""
    pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
    return "Basic " + base64.b64encode(pair.encode("ascii")).decode("ascii")


# -- replies ----------------------------------------------------------------------------------


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a reply's body, whatever its Content-Type said.

    A byte order mark is skipped, bytes that are not UTF-8 become U+FFFD, duplicate keys are refused
    (RFC 8259 leaves open which one counts, and so would we).
    """
    text = body.decode("utf-8-sig", errors="replace")
    failure: MalformedReply
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
    except json.JSONDecodeError as error:
        if _cut_short(text, error):
            failure = TruncatedReply("The reply is a JSON document that ends in the middle.")
        else:
            failure = MalformedReply("The reply is not JSON.")
    except RecursionError:
        failure = MalformedReply("The reply is nested too deeply.")
    else:
        return _object(document)
    # Outside the handler: a JSONDecodeError has the whole document, and would be part of ours.
    raise failure


def _object(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise MalformedReply(f"The reply is a JSON {type(document).__name__}, not an object.")
    return document


def parse_form(body: bytes) -> dict[str, Any]:
    """The fields of a form-encoded reply, for the few servers that answer so."""
    text = body.decode("utf-8", errors="replace").strip()
    with contextlib.suppress(ValueError):
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=100)
        return _unique(pairs)
    # Outside the handler: the message of that ValueError has a field of the reply, tokens and all.
    raise MalformedReply("The reply is not form-encoded.")


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise MalformedReply("The reply has the same key twice.")
        document[name] = value
    return document


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise MalformedReply(f"The reply has an integer of {len(digits)} digits.")
    return int(digits)


def _cut_short(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the parser ran off the end of something that began as an object."""
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
    """The value at a dotted path ("error.message"), or None."""
    value: Any = document
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def access_token(value: Any) -> str:
    """An access token that can stand in a header: visible ASCII and nothing else."""
    return _token(value, "access token", _ACCESS_TOKEN)


def refresh_token(value: Any) -> str | None:
    """A refresh token, or None where the reply has none and the old one stays good."""
    return None if value is None or value == "" else _token(value, "refresh token", _REFRESH_TOKEN)


def _token(value: Any, what: str, allowed: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not value:
        raise MalformedReply(f"The reply has no {what}.")
    if not allowed.fullmatch(value):
        raise MalformedReply(f"The reply's {what} has characters that no {what} may have.")
    return value


def scope(value: Any) -> str | None:
    """A scope that can be stored, or None. Nothing depends on it, so an odd one costs no token."""
    return value if isinstance(value, str) and value.isprintable() else None


def expires_in(value: Any) -> float | None:
    """A lifetime in seconds, or None if the value says none.

    Numbers and decimal strings count. `int()` would also take "3_600" and Arabic-Indic digits, and
    `float()` "1h"'s cousins "nan" and "inf"; none of them is a lifetime. Too long is cut to
    `LONGEST_LIFE`; zero and less are returned as they are: such a token is good for one use.
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
    return float(max(-LONGEST_LIFE, min(value, LONGEST_LIFE)))


def retry_after(value: Any, now: float) -> float | None:
    """The seconds that a Retry-After asks for, or None. `now` is the server's wall clock.

    Takes a number, an HTTP date (RFC 9110, 10.2.3), and Priava's date without a zone, whose weekday
    may be wrong; it is read as UTC.
    """
    seconds = expires_in(value)
    if seconds is not None:
        return seconds
    moment = parse_http_date(value)
    return None if moment is None else moment - now


def parse_http_date(value: Any) -> float | None:
    """An HTTP date as seconds since the epoch, or None if it is none."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


# -- what people see --------------------------------------------------------------------------


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets, in any spelling a server may echo them in.

    Beyond the secrets that are known, any long run of token characters goes: a server may echo half
    a secret, or a new one. What is left is prose, and error_codes_made_of_words.
    """
    return _redacted(text, secrets, len(text))


def _redacted(text: str, secrets: Iterable[str], end: int) -> str:
    """The text up to `end`, without the secrets, also those that go on behind it."""
    spans = [run.span() for run in _TOKEN_LIKE.finditer(text) if not _ERROR_CODE.fullmatch(run[0])]
    for secret in set(filter(None, secrets)):
        spans += (found.span() for found in re.finditer(_spellings(secret), text, flags=re.IGNORECASE))
    shown, done = "", 0
    for start, stop in sorted(spans):  # they may overlap, and then neither may leave half of the other
        if start >= end:
            break
        if start >= done:
            shown += text[done:start] + "[redacted]"
        done = max(done, stop)
    return shown + text[done:end]


def _spellings(secret: str) -> str:
    """A pattern for a secret as it is, in base64, or escaped one character at a time.

    The groups are atomic, so that no secret takes long to look for.
    """
    encoded = base64.b64encode(secret.encode("utf-8", "surrogatepass")).decode("ascii").rstrip("=")
    # How many backslashes one has become depends on who has escaped it: any run is as good as another.
    escaped = "".join(map(_escapes, re.sub(r"\\+", lambda _run: "\\", secret)))
    return "|".join((re.escape(secret), re.escape(encoded), escaped))


@functools.lru_cache(maxsize=256)
def _escapes(character: str) -> str:
    """A pattern for one character as itself, in a form, a URL, JSON or HTML, or wrongly decoded.

    Also escaped several times over: many a gateway quotes one document in a string of another.
    """
    if character.isascii() and character.isalnum():
        return character
    from html import escape  # with all of HTML's names it takes 1.5 ms to import, which an error may

    utf8 = character.encode("utf-8", "surrogatepass")
    utf16 = character.encode("utf-16-be", "surrogatepass").hex()
    named = re.escape(escape(character).strip("&;"))
    ways = (
        _BACKSLASHES.join("u" + utf16[i : i + 4] for i in range(0, len(utf16), 4)),
        _BACKSLASHES.join(f"x{byte:02x}" for byte in utf8),
        "".join(f"%(?:25){{0,3}}{byte:02x}" for byte in utf8),
        f"&(?:amp;){{0,3}}(?:#0{{0,6}}{ord(character)}|#x0{{0,6}}{ord(character):x}|{named});",
        re.escape(json.dumps(character)[1:-1].lstrip("\\") or "\\"),  # the n of \n, or the character
        re.escape(character),
        *((r"\+",) if character == " " else ()),
        # Latin-1 taken for UTF-8, and the other way round:
        *(() if character.isascii() else ("\N{REPLACEMENT CHARACTER}", re.escape(utf8.decode("latin-1")))),
    )
    repeated = "+" if character == "\\" else ""
    return f"(?>(?:{_BACKSLASHES}(?:{'|'.join(ways)})){repeated})"


def excerpt(body: bytes, secrets: Collection[str], *, longest: int = 120) -> str:
    """The beginning of a body on one line, printable and redacted."""
    text = body[:_LOOKED_AT].decode("utf-8", errors="replace")
    # UTF-16 has a NUL between two letters: what they divide would not be recognised.
    text = _UTF16.sub(lambda run: run[0].replace("\0", ""), text)
    end = len(text)
    if len(body) > _LOOKED_AT:  # what is cut off there may be half a secret, which nobody would know
        end -= max(16, 7 * max(map(len, secrets), default=0))  # \\u0041: seven for one
    text = _redacted(text, secrets, max(0, end))
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= longest else text[:longest] + "…"
