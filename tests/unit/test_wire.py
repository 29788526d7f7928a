"""Parsers and encoders: they raise only documented errors, and show no secret."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession.errors import InvalidTokenResponse
from tokensession.policy import MAX_LIFETIME
from tokensession.providers import _wire

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
UTF8_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ANY_TEXT, inner, max_size=2),
    max_leaves=3,
)
NOW = 1_750_000_000.0


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(UTF8_TEXT, UTF8_TEXT), max_size=6))
def test_a_form_keeps_the_order_and_decodes_to_the_same_pairs(pairs: list[tuple[str, str]]) -> None:
    body = _wire.encode_form(pairs)
    decoded = parse_qsl(body.decode("ascii"), keep_blank_values=True)
    assert decoded == pairs
    assert decoded == parse_qsl(urlencode(pairs), keep_blank_values=True), "bare : and / change nothing"


def test_a_form_is_written_as_the_providers_document_it() -> None:
    pairs = [("redirect_uri", "https://my.app.com/oauth2callback"), ("v", " %&+£€")]
    assert (
        _wire.encode_form(pairs)
        == b"redirect_uri=https://my.app.com/oauth2callback&v=+%25%26%2B%C2%A3%E2%82%AC"
    )


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=6))
def test_json_keeps_the_order_and_is_ascii(document: dict[str, str]) -> None:
    body = _wire.encode_json(list(document.items()))
    assert body.isascii()
    assert list(json.loads(body).items()) == list(document.items())


def test_a_name_that_comes_several_times_has_a_list_in_json() -> None:
    """Several resources (RFC 8707, 2): none is lost."""
    body = _wire.encode_json([("a", "1"), ("resource", "urn:a"), ("b", "2"), ("resource", "urn:b")])
    assert json.loads(body) == {"a": "1", "resource": ["urn:a", "urn:b"], "b": "2"}


@settings(deadline=None, max_examples=100)
@given(UTF8_TEXT, UTF8_TEXT)
def test_basic_credentials_are_form_encoded_and_can_be_decoded(name: str, secret: str) -> None:
    value = _wire.basic_auth(name, secret)
    scheme, _, encoded = value.partition(" ")
    assert scheme == "Basic"
    sent = base64.b64decode(encoded, validate=True).decode("ascii").split(":")
    assert [unquote_plus(part) for part in sent] == [name, secret]


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60) | st.text('{}[]",:\\ue123 -+.tfnNI\ufeff', max_size=40).map(str.encode))
def test_arbitrary_bytes_are_an_object_or_invalid(body: bytes) -> None:
    for parse in (_wire.parse_json, _wire.parse_form):
        with contextlib.suppress(InvalidTokenResponse):
            assert isinstance(parse(body), dict)


OBJECTS = st.dictionaries(
    UTF8_TEXT,
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats() | UTF8_TEXT,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(UTF8_TEXT, inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)


@settings(deadline=None, max_examples=100)
@given(OBJECTS, st.booleans(), st.data())
def test_every_beginning_of_an_object_is_truncated(
    document: dict[str, Any], ascii_only: bool, data: st.DataObject
) -> None:
    """It may have been a token."""
    whole = json.dumps(document, ensure_ascii=ascii_only).encode()
    _wire.parse_json(whole)
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    with pytest.raises(_wire.TruncatedResponse):
        _wire.parse_json(cut)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": tr',
        b'{"a": nul',
        b'{"a": N',
        b'{"a": -',
        b'{"a": -Inf',
        b'{"a": 1.',
        b'{"a": 1e',
        b'{"a": 1e+',
        b'{"a": "\\',
        b'{"a": "\\u',
        b'{"a": "\\u12',
        b'{"a": "\\ud83d\\u',
        b'{"a": "\xe2\x82',
        b"{",
        b'{"a"',
    ],
)
def test_halves_of_words_numbers_and_escapes_are_truncated(body: bytes) -> None:
    with pytest.raises(_wire.TruncatedResponse):
        _wire.parse_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": tru}',
        b'{"a": x',
        b'{"a": "\\x',
        b'{"a": "\\u12"}',
        b'{"a" 1',
        b"{} t",
        b"{}{",
        b"[1, 2",
        b'"abc',
        b"",
        b"<html>",
        b"{'a': 1}",
        b'{"a": "b\nc"}',
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
    ],
)
def test_an_error_before_the_end_is_invalid_and_not_truncated(body: bytes) -> None:
    with pytest.raises(InvalidTokenResponse) as caught:
        _wire.parse_json(body)
    assert type(caught.value) is InvalidTokenResponse
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("body", "kind"), [(b"[]", "list"), (b'"a"', "str"), (b"null", "NoneType"), (b"1", "int")]
)
def test_json_that_is_not_an_object_is_invalid_and_named(body: bytes, kind: str) -> None:
    with pytest.raises(InvalidTokenResponse, match=f"JSON {kind}, not an object"):
        _wire.parse_json(body)


def test_a_form_encoded_response_is_read() -> None:
    assert _wire.parse_form(b"a=a%20b&x=%E9\n") == {"a": "a b", "x": "�"}


@pytest.mark.parametrize("body", [b"abc", b"<html></html>", b"a=1&b", b"&".join([b"a=1"] * 101)])
def test_text_that_is_not_a_form_is_invalid(body: bytes) -> None:
    with pytest.raises(InvalidTokenResponse, match="not form-encoded"):
        _wire.parse_form(body)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("errors.0.code", "a"),
        ("errors.1.code", "b"),
        ("errors.01.code", "b"),
        ("errors.2.code", None),
        ("errors.-1.code", None),
        ("errors.+1.code", None),
        ("errors. 1.code", None),
        ("errors.\u0661.code", None),
        ("errors.code", None),
        ("errors..code", None),
        ("errors.99999999999999999999.code", None),
        ("errors.0.code.0", None),  # not a character of a string
        ("rows.0.1", "y"),
        ("rows.0", ["x", "y"]),
        ("named.0", "by name"),
        ("empty.0", None),
        ("a", {"b": {"c": 1}}),
        ("a.b", {"c": 1}),
        ("a.b.c", 1),
        ("a.x", None),
        ("a.b.c.d", None),
        ("x", None),
    ],
)
def test_a_dotted_path_reaches_into_objects_and_a_number_in_it_into_lists(path: str, value: Any) -> None:
    """Strava and Fitbit list their errors (K19)."""
    document = {
        "errors": [{"code": "a"}, {"code": "b"}],
        "rows": [["x", "y"]],
        "named": {"0": "by name"},
        "empty": [],
        "a": {"b": {"c": 1}},
    }
    assert _wire.find(document, path) == value


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=4), ANY_TEXT)
def test_find_never_raises(document: dict[str, Any], path: str) -> None:
    _wire.find(document, path)
    for name in document:
        for rest in ("0", "1.0", path):
            _wire.find(document, f"{name}.{rest}")


@settings(deadline=None, max_examples=100)
@given(ANY_VALUE)
def test_an_access_token_is_visible_ascii_or_invalid(value: Any) -> None:
    try:
        token = _wire.access_token(value)
    except InvalidTokenResponse:
        return
    assert token == value
    assert re.fullmatch(r"[!-~]+", token)


@pytest.mark.parametrize("value", ["a", "~" * 5000, "!#$%&'()*+,-./:;<=>?@[]^_`{|}~", "AZaz09"])
def test_an_access_token_may_have_every_visible_ascii_character(value: str) -> None:
    assert _wire.access_token(value) == value


@settings(deadline=None, max_examples=100)
@given(ANY_VALUE)
def test_a_refresh_token_is_absent_or_printable_ascii_or_invalid(value: Any) -> None:
    try:
        token = _wire.refresh_token(value)
    except InvalidTokenResponse:
        return
    assert token is None if value in (None, "") else token == value and re.fullmatch(r"[ -~]+", token)


@settings(deadline=None, max_examples=100)
@given(ANY_VALUE)
def test_a_scope_that_cannot_be_stored_is_none(value: Any) -> None:
    scope = _wire.scope(value)
    assert scope is None or (scope.isprintable() and scope.encode() is not None)
    assert scope is None or scope == value or isinstance(value, list)


@pytest.mark.parametrize(
    ("value", "scope"),
    [
        ("read write", "read write"),
        ("", ""),
        (["read", "write"], "read write"),
        (["read"], "read"),
        (["", "read", ""], "read"),
        ([], None),
        (["read", 7], None),
        (["read", None], None),
        ([["read"]], None),
        (["re\nad"], None),
        (["\ud800"], None),
        ({"read": True}, None),
    ],
)
def test_a_list_of_scopes_is_joined_with_blanks(value: Any, scope: str | None) -> None:
    """Some servers send a JSON list (K24)."""
    assert _wire.scope(value) == scope


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (3600.5, 3600.5),
        ("3600.", 3600),
        ("0003600", 3600),
        (365 * 86400, MAX_LIFETIME),
        (365 * 86400 + 1, MAX_LIFETIME),
        (-(10**399), -MAX_LIFETIME),
        ("9" * 40, MAX_LIFETIME),
        (1e308, MAX_LIFETIME),
        ("3600\u00a0", None),
        (".5", None),
        ("--5", None),
        ("3600s", None),
        ("36 00", None),
        (b"3600", None),
    ],
)
def test_a_lifetime_is_read_from_numbers_and_decimal_strings_only(value: Any, seconds: float | None) -> None:
    """Other spellings are in rows 4 to 9 of tests/providers/test_hostile_responses.py."""
    assert _wire.lifetime_seconds(value) == seconds


@settings(deadline=None, max_examples=150)
@given(ANY_VALUE)
def test_any_lifetime_is_bounded_or_none(value: Any) -> None:
    seconds = _wire.lifetime_seconds(value)
    assert seconds is None or (type(seconds) is float and abs(seconds) <= MAX_LIFETIME)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (-0.0, 0),
        (-1, None),  # no number of seconds (RFC 9110, 10.2.3)
        ("Sun, 15 Jun 2025 15:08:40 +0000", 120),
        ("Sun, 15 Jun 2025 17:08:40 +0200", 120),
        ("Sunday, 15-Jun-25 15:08:40 GMT", 120),
        ("Sun Jun 15 15:08:40 2025", 120),
        ("Sun, 15 Jun 2025 15:05:40 GMT", -60),
        (None, None),
        (True, None),
        ("Sun, 15 Jun 99999 15:06:40 GMT", None),
        ("Sun, 15 Jun 2025 15:06:40 GMT" + " " * 100, None),
    ],
)
def test_retry_after_is_read_from_seconds_and_dates(value: Any, seconds: float | None) -> None:
    """What servers send is in row 30 of tests/providers/test_hostile_responses.py."""
    assert _wire.retry_after(value, NOW) == seconds


DATES = st.text("SunMoJa 0123456789:,-+GMT().\x00", max_size=64)


@settings(deadline=None, max_examples=200)
@given(ANY_VALUE | DATES | DATES.map(lambda text: f"Sun, 15 Jun 2025 15:06:40 {text}"[:64]))
def test_retry_after_and_dates_never_raise(value: Any) -> None:
    for seconds in (_wire.retry_after(value, NOW), _wire.parse_http_date(value)):
        assert seconds is None or seconds == seconds  # never NaN
