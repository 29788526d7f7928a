"""Promises about whatever a server sends, or a disk gives back, as functions from bytes.

Each `check_…` takes any bytes, raises AssertionError if a promise is broken, and returns the name of what
came out, for the figures. A fuzzer calls them (`run.py`, `coverage_guided.py`), and so does the suite.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from _hostile import ACCESS, CONFIGURED, expanded, hostile, shows_a_secret

from tokensession import _redact
from tokensession._refresh.state import TokenState, decode, encode
from tokensession.errors import (
    ClientRejected,
    ConfigurationError,
    GrantRejected,
    InvalidTokenResponse,
    OutcomeUnknown,
    RateLimited,
    StoreCorrupt,
    TokenSessionError,
    TokenUnavailable,
)
from tokensession.policy import MAX_LIFETIME
from tokensession.providers import Credential, Issued, TokenResponse, _wire
from tokensession.stores import Store, open_store
from tokensession.stores._local.lock import Mark
from tokensession.stores.file import _decode, _encode
from tokensession.stores.protocol import Record
from tokensession.transport import MAX_BODY, _inflate

Read = Callable[..., Issued]
Check = Callable[[bytes], str]

SENT_AT = 1_750_000_000.0
LONGEST_MESSAGE = 2_000  # characters
_DOCUMENTED = (
    GrantRejected,
    ClientRejected,
    RateLimited,
    TokenUnavailable,
    OutcomeUnknown,
    InvalidTokenResponse,
)
_PLACE = Path("/var/lib/tokens/0.token")


# -- errors -------------------------------------------------------------------------------------------


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and its contexts, suppressed or not."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            pending += (link.__cause__, link.__context__)


def told(error: BaseException) -> str:
    """All that anybody gets to see of an error, its attributes and its history included."""
    text = ""
    for link in chain(error):
        # What exceptions of parsers hold that no vars() shows:
        held = [getattr(link, name, None) for name in ("doc", "object", "unpacked", "extra")]
        for value in (str(link), *link.args, *vars(link).values(), *held):
            part = value if isinstance(value, str) else repr(value)
            if part not in text:
                text += part + "\n"
    return text


def assert_fit_to_be_shown(error: TokenSessionError, *, thorough: bool) -> None:
    """One short line, without a secret in it or in anything that hangs on it."""
    line = str(error)
    assert len(line) < LONGEST_MESSAGE, f"a message of {len(line)} characters"
    assert line.isprintable(), f"a message that is no printable line: {line!r}"
    text = told(error)
    if thorough:  # slower, and the same texts once more
        text += repr(error) + "".join(traceback.format_exception(error))
    secret = shows_a_secret(text)
    assert secret is None, f"{secret!r} is shown: {text!r}"


def _thorough(data: bytes) -> bool:
    return sum(data) % 64 == 0


# -- (a) token replies --------------------------------------------------------------------------------


def check_reply(data: bytes, read: Read | None = None) -> str:
    """`Provider.read` returns a token that can be used, or raises what its docstring names."""
    case = hostile(data)
    try:
        issued = (read or case.provider.read)(case.response, case.credential, sent_at=SENT_AT)
    except _DOCUMENTED as error:
        assert_fit_to_be_shown(error, thorough=_thorough(data))
        pause = getattr(error, "retry_after", None)
        assert pause is None or (pause >= 0 and math.isfinite(pause)), f"retry_after is {pause}"
        return type(error).__name__
    except Exception as error:
        raise AssertionError(f"no documented error: {type(error).__name__}") from error
    _assert_sane(issued, case.response, case.credential)
    return "Issued with a note" if issued.notes else "Issued"


def _assert_sane(issued: Issued, response: TokenResponse, credential: Credential) -> None:
    token = issued.token
    assert 200 <= response.status < 300
    assert token.access_token
    assert all("!" <= c <= "~" for c in token.access_token)
    if token.refresh_token not in (None, credential.secret):
        assert token.refresh_token
        assert all(" " <= c <= "~" for c in token.refresh_token)
    assert token.obtained_at == SENT_AT
    assert token.lifetime is None or abs(token.lifetime) <= MAX_LIFETIME
    assert token.scope is None or token.scope.isprintable()
    assert decode(encode(TokenState(token=token))).token == token
    for text in (repr(issued), *issued.notes):
        assert len(text) < LONGEST_MESSAGE
        assert text.isprintable()
        assert shows_a_secret(text) is None, text


# -- (b) parsers --------------------------------------------------------------------------------------


def check_json(data: bytes) -> str:
    """An object, or `InvalidTokenResponse`."""
    return _document(_wire.parse_json, expanded(data, frozenset()), data)


def check_form(data: bytes) -> str:
    """The fields, or `InvalidTokenResponse`."""
    return _document(_wire.parse_form, expanded(data, frozenset()), data)


def _document(parse: Callable[[bytes], dict[str, object]], body: bytes, data: bytes) -> str:
    try:
        document = parse(body)
    except InvalidTokenResponse as error:
        assert_fit_to_be_shown(error, thorough=_thorough(data))
        return type(error).__name__
    assert isinstance(document, dict)
    assert all(isinstance(name, str) for name in document)
    for value in document.values():
        life, pause = _wire.lifetime_seconds(value), _wire.retry_after(value, SENT_AT)
        assert life is None or abs(life) <= MAX_LIFETIME
        assert pause is None or math.isfinite(pause)
    return "an object"


def check_date(data: bytes) -> str:
    """A moment, or None."""
    text = data.decode("utf-8", "surrogateescape")
    moment, pause = _wire.parse_http_date(text), _wire.retry_after(text, SENT_AT)
    assert moment is None or math.isfinite(moment)
    assert pause is None or math.isfinite(pause)
    assert moment is None or pause is not None
    return "no moment" if moment is None else "a moment"


def check_text(data: bytes) -> str:
    """What is quoted of a body is one short line without a secret in it."""
    body = expanded(data, frozenset(CONFIGURED))
    quoted = _redact.excerpt(body, CONFIGURED)
    assert len(quoted) <= 121
    assert quoted.isprintable()
    whole = _redact.excerpt(body[:4096], CONFIGURED, longest=1_000_000)
    # The whole of what is looked at, of a body that is not cut: nothing hides behind the dots.
    for text in (quoted, whole if len(body) <= 4096 else ""):
        secret = shows_a_secret(text)
        assert secret is None, f"{secret!r} is shown: {text!r}"
    return "redacted" if "[redacted]" in whole else "nothing to redact"


# -- (c) and (d) what a store gives back --------------------------------------------------------------


def check_record(data: bytes, decode: Callable[[bytes], TokenState] = decode) -> str:
    """A grant that is written as it is read, or `StoreCorrupt`."""
    try:
        grant = decode(data)
    except StoreCorrupt as error:
        assert_fit_to_be_shown(error, thorough=_thorough(data))
        return "StoreCorrupt"
    except Exception as error:
        raise AssertionError(f"no StoreCorrupt: {type(error).__name__}") from error
    written = encode(grant)
    assert decode(written) == grant
    assert encode(decode(written)) == written
    return "a grant"


def check_file(data: bytes) -> str:
    """A record that is written as it is read, or `StoreCorrupt`."""
    try:
        found = _decode(_PLACE, data)
    except StoreCorrupt as error:
        found = error
    if isinstance(found, StoreCorrupt):  # its caller raises it
        assert_fit_to_be_shown(found, thorough=_thorough(data))
        return "StoreCorrupt"
    key, record = found
    assert isinstance(key, str)
    assert isinstance(record, Record)
    assert (type(record.version), type(record.data)) == (str, bytes)
    assert _decode(_PLACE, _encode(key, record)) == (key, record)
    return "a record"


def check_mark(data: bytes) -> str:
    """A mark whose age is a number that is not negative, or none."""
    mark = Mark.decode(data[:128], SENT_AT)
    if mark is None:
        return "no mark"
    age = mark.age(SENT_AT)
    assert age >= 0, f"an age of {age}"
    return "a mark"


# -- (e) the rest -------------------------------------------------------------------------------------

_SCHEMES = ("file", "sqlite", "memory", "FILE", "sqlite:///", "file:///", "memory:", "file://localhost/")


def check_url(data: bytes) -> str:
    """A store that has touched nothing, or `ConfigurationError`, without the password that is in it."""
    number, rest = data[:1] or b"\0", data[1:].decode("utf-8", "surrogateescape")
    # A scheme that is not ours makes the interpreter look through every package: seldom, then.
    url = rest if number == b"\xff" else _SCHEMES[number[0] % len(_SCHEMES)] + ":" + rest
    try:
        store = open_store(url.replace("<password>", ACCESS))
    except ConfigurationError as error:
        if number != b"\xff":  # a scheme is repeated
            assert_fit_to_be_shown(error, thorough=_thorough(data))
        return "ConfigurationError"
    assert isinstance(store, Store)
    return type(store).__name__


def check_inflate(data: bytes) -> str:
    """At most MAX_BODY bytes, or `InvalidTokenResponse`."""
    try:
        plain = _inflate(data)
    except InvalidTokenResponse as error:
        assert_fit_to_be_shown(error, thorough=_thorough(data))
        return "InvalidTokenResponse"
    assert len(plain) <= MAX_BODY
    return "inflated"


TARGETS: dict[str, tuple[Check, int]] = {
    "reply": (check_reply, 50),
    "json": (check_json, 9),
    "form": (check_form, 5),
    "date": (check_date, 8),
    "text": (check_text, 6),
    "record": (check_record, 10),
    "file": (check_file, 5),
    "mark": (check_mark, 3),
    "url": (check_url, 2),
    "inflate": (check_inflate, 2),
}
"""Each target, and its share of the inputs in per cent."""
