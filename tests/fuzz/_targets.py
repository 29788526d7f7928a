"""Promises about whatever a server sends, or a disk gives back, as functions from bytes.

Each `check_…` takes any bytes, raises AssertionError if a promise is broken, and returns the name of what
came out, for the figures. A fuzzer calls them (`run.py`, `coverage_guided.py`), and so does the suite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from _hostile import ACCESS, CONFIGURED, Hostile, expanded, hostile, shows_a_secret
from _shown import shown

from tokensession import _redact
from tokensession._refresh.state import Now, TokenState, decode, encode
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
    UnexplainedRefusal,
)
from tokensession.policy import MAX_LIFETIME
from tokensession.providers import ErrorKind, Issued, _wire
from tokensession.providers.response import _Answer
from tokensession.stores import Store, open_store
from tokensession.stores._local.lock import Mark
from tokensession.stores._local.moment import Moment
from tokensession.stores.file import _decode, _encode
from tokensession.stores.protocol import Record
from tokensession.testing import FakeClock
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
    UnexplainedRefusal,
    InvalidTokenResponse,
)
NOW = Now(SENT_AT, 0.0)
_CLOCK = FakeClock(wall=SENT_AT)
_PLACE = Path("/var/lib/tokens/0.token")


def assert_safe_to_show(error: TokenSessionError, *, thorough: bool) -> None:
    """The message is one short line, and neither it nor the error's attributes and causes show a secret."""
    line = str(error)
    assert len(line) < LONGEST_MESSAGE, f"a message of {len(line)} characters"
    assert line.isprintable(), f"a message that is not one printable line: {line!r}"
    text = shown(error, thorough=thorough)  # which is slower
    secret = shows_a_secret(text)
    assert secret is None, f"{secret!r} is shown: {text!r}"


def _thorough(data: bytes) -> bool:
    return sum(data) % 64 == 0


def check_response(data: bytes, read: Read | None = None) -> str:
    """`Provider.read` returns what can be stored, or raises what its docstring names."""
    case = hostile(data)
    try:
        issued = (read or case.provider.read)(case.response, case.credential, sent_at=SENT_AT)
    except _DOCUMENTED as error:
        assert_safe_to_show(error, thorough=_thorough(data))
        pause = getattr(error, "retry_after", None)
        assert pause is None or (pause >= 0 and math.isfinite(pause)), f"retry_after is {pause}"
        assert read is not None or _new_refresh_token(case) is None, "a new refresh token is lost"
        return type(error).__name__
    except Exception as error:
        raise AssertionError(f"not a documented error: {type(error).__name__}") from error
    _assert_storable(issued, case)
    assert _new_refresh_token(case) in (None, issued.token.refresh_token), "a new refresh token is lost"
    if issued.problem is not None:
        assert issued.problem.granted
        assert_safe_to_show(issued.problem, thorough=_thorough(data))
        return "Issued with a problem"
    return "Issued with a note" if issued.notes else "Issued"


def _new_refresh_token(case: Hostile) -> str | None:
    """The refresh token that works from now on, if a 2xx has one and does not refuse the request."""
    strategy, response = case.provider.strategy, case.response
    try:
        document = strategy.decode(response.body)
        token = _wire.refresh_token(_wire.find(document, strategy.fields.refresh_token))
    except InvalidTokenResponse:
        return None
    _, kind = _Answer(strategy, response, (), SENT_AT, document).known() or ("", None)
    if not 200 <= response.status < 300 or kind not in (None, ErrorKind.TRANSIENT):
        return None
    return None if token == case.credential.secret else token


def _assert_storable(issued: Issued, case: Hostile) -> None:
    token, credential = issued.token, case.credential
    assert 200 <= case.response.status < 300
    assert token.access_token or issued.problem is not None
    assert all("!" <= c <= "~" for c in token.access_token)
    if token.refresh_token not in (None, credential.secret):
        assert token.refresh_token
        assert all(" " <= c <= "~" for c in token.refresh_token)
    assert token.obtained_at == SENT_AT
    assert token.lifetime is None or abs(token.lifetime) <= MAX_LIFETIME
    assert token.refresh_lifetime is None or 0 < token.refresh_lifetime <= MAX_LIFETIME
    assert token.scope is None or token.scope.isprintable()
    assert decode(encode(TokenState(token=token), NOW), NOW).token == token
    for text in (repr(issued), *issued.notes):
        assert len(text) < LONGEST_MESSAGE
        assert text.isprintable()
        assert shows_a_secret(text) is None, text


def _check_document(parse: Callable[[bytes], dict[str, object]], data: bytes) -> str:
    """An object or the fields of a form, or `InvalidTokenResponse`."""
    try:
        document = parse(expanded(data, frozenset()))
    except InvalidTokenResponse as error:
        assert_safe_to_show(error, thorough=_thorough(data))
        return type(error).__name__
    assert isinstance(document, dict)
    assert all(isinstance(name, str) for name in document)
    for value in document.values():
        lifetime, pause = _wire.lifetime_seconds(value), _wire.retry_after(value, SENT_AT)
        assert lifetime is None or abs(lifetime) <= MAX_LIFETIME
        assert pause is None or math.isfinite(pause)
    return "an object"


def check_date(data: bytes) -> str:
    """A point in time, or None."""
    text = data.decode("utf-8", "surrogateescape")
    moment, pause = _wire.parse_http_date(text), _wire.retry_after(text, SENT_AT)
    assert moment is None or math.isfinite(moment)
    assert pause is None or math.isfinite(pause)
    assert moment is None or pause is not None
    return "not a date" if moment is None else "a date"


def check_text(data: bytes) -> str:
    """An excerpt of a body is one short line without a secret."""
    body = expanded(data, frozenset(CONFIGURED))
    quoted = _redact.excerpt(body, CONFIGURED)
    assert len(quoted) <= 121
    assert quoted.isprintable()
    whole = _redact.excerpt(body[:4096], CONFIGURED, longest=1_000_000)
    # Check all that is read of a body that is not cut, so that the dots hide nothing.
    for text in (quoted, whole if len(body) <= 4096 else ""):
        secret = shows_a_secret(text)
        assert secret is None, f"{secret!r} is shown: {text!r}"
    return "redacted" if "[redacted]" in whole else "nothing to redact"


def check_record(data: bytes, decode: Callable[[bytes, Now], TokenState] = decode) -> str:
    """A state that survives a round trip, or `StoreCorrupt`."""
    try:
        state = decode(data, NOW)
    except StoreCorrupt as error:
        assert_safe_to_show(error, thorough=_thorough(data))
        return "StoreCorrupt"
    except Exception as error:
        raise AssertionError(f"not StoreCorrupt: {type(error).__name__}") from error
    written = encode(state, NOW)
    again = decode(written, NOW)
    # When the token was obtained: in format 1 that may be in the future, or there may be no token.
    if state.token is None or again.token is None:
        state = replace(state, obtained=again.obtained)
    else:
        state = replace(state, token=replace(state.token, obtained_at=again.token.obtained_at))
    assert again == state
    assert encode(again, NOW) == written
    return "a state"


def check_file(data: bytes) -> str:
    """A record that survives a round trip, or `StoreCorrupt`."""
    try:
        found = _decode(_PLACE, data, _CLOCK)
    except StoreCorrupt as error:
        found = error
    if isinstance(found, StoreCorrupt):  # its caller raises it
        assert_safe_to_show(found, thorough=_thorough(data))
        return "StoreCorrupt"
    key, record = found
    assert isinstance(key, str)
    assert isinstance(record, Record)
    assert (type(record.version), type(record.data)) == (str, bytes)
    assert record.age >= 0
    assert _decode(_PLACE, _encode(key, record, Moment.now(_CLOCK)), _CLOCK) == (key, record)
    return "a record"


def check_mark(data: bytes) -> str:
    """A mark whose age is not negative, or None."""
    mark = Mark.decode(data[:128], SENT_AT)
    if mark is None:
        return "no mark"
    age = mark.age(SENT_AT)
    assert age >= 0, f"an age of {age}"
    return "a mark"


_SCHEMES = (
    *("file", "sqlite", "memory", "FILE", "sqlite:///", "file:///", "memory:", "file://localhost/"),
    *("redis", "valkeys", "postgresql", "encrypted+file"),
)


def check_url(data: bytes) -> str:
    """A store that has touched nothing, or `ConfigurationError` without the URL's password."""
    number, rest = data[:1] or b"\0", data[1:].decode("utf-8", "surrogateescape")
    # An unknown scheme makes the interpreter search every package, so it is rare.
    url = rest if number == b"\xff" else _SCHEMES[number[0] % len(_SCHEMES)] + ":" + rest
    try:
        store = open_store(url.replace("<password>", ACCESS))
    except ConfigurationError as error:
        if number != b"\xff":  # a scheme is repeated
            assert_safe_to_show(error, thorough=_thorough(data))
        return "ConfigurationError"
    assert isinstance(store, Store)
    return type(store).__name__


def check_inflate(data: bytes) -> str:
    """At most MAX_BODY bytes, or `InvalidTokenResponse`."""
    try:
        plain = _inflate(data)
    except InvalidTokenResponse as error:
        assert_safe_to_show(error, thorough=_thorough(data))
        return "InvalidTokenResponse"
    assert len(plain) <= MAX_BODY
    return "inflated"


TARGETS: dict[str, tuple[Check, int]] = {
    "response": (check_response, 50),
    "json": (partial(_check_document, _wire.parse_json), 9),
    "form": (partial(_check_document, _wire.parse_form), 5),
    "date": (check_date, 8),
    "text": (check_text, 6),
    "record": (check_record, 10),
    "file": (check_file, 5),
    "mark": (check_mark, 3),
    "url": (check_url, 2),
    "inflate": (check_inflate, 2),
}
"""Each target, and its share of the inputs in per cent."""
