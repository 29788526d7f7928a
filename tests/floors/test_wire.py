"""Parsers and encoders: only documented errors come out, and no secret does."""

from __future__ import annotations

import base64
import contextlib
import html
import json
import re
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote_plus, urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokensession import wire
from tokensession.errors import MalformedReply

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
UTF8_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ANY_TEXT, inner, max_size=2),
    max_leaves=3,
)
NOW = 1_750_000_000.0

# -- encoding -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(UTF8_TEXT, UTF8_TEXT), max_size=6))
def test_a_form_keeps_order_and_decodes_to_what_went_in(pairs: list[tuple[str, str]]) -> None:
    body = wire.encode_form(pairs)
    decoded = parse_qsl(body.decode("ascii"), keep_blank_values=True)
    assert decoded == pairs
    assert decoded == parse_qsl(urlencode(pairs), keep_blank_values=True), "bare : and / change nothing"


def test_a_form_is_written_as_the_documents_print_it() -> None:
    pairs = [("redirect_uri", "https://my.app.com/oauth2callback"), ("v", " %&+£€")]
    assert (
        wire.encode_form(pairs)
        == b"redirect_uri=https://my.app.com/oauth2callback&v=+%25%26%2B%C2%A3%E2%82%AC"
    )


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=6))
def test_json_keeps_order_and_is_ascii(document: dict[str, str]) -> None:
    body = wire.encode_json(list(document.items()))
    assert body.isascii()
    assert list(json.loads(body).items()) == list(document.items())


@settings(deadline=None, max_examples=100)
@given(UTF8_TEXT, UTF8_TEXT)
def test_basic_credentials_are_form_encoded_first_and_come_apart_again(name: str, secret: str) -> None:
    value = wire.basic_auth(name, secret)
    scheme, _, encoded = value.partition(" ")
    assert scheme == "Basic"
    sent = base64.b64decode(encoded, validate=True).decode("ascii").split(":")
    assert [unquote_plus(part) for part in sent] == [name, secret]


# -- JSON -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60) | st.text('{}[]",:\\ue123 -+.tfnNI\ufeff', max_size=40).map(str.encode))
def test_arbitrary_bytes_parse_to_an_object_or_are_malformed(body: bytes) -> None:
    for parse in (wire.parse_json, wire.parse_form):
        with contextlib.suppress(MalformedReply):
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
def test_every_beginning_of_an_object_is_truncated_and_nothing_else_is(
    document: dict[str, Any], ascii_only: bool, data: st.DataObject
) -> None:
    """What was cut off on the way may have been a token: it is not called nonsense."""
    whole = json.dumps(document, ensure_ascii=ascii_only).encode()
    wire.parse_json(whole)
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    with pytest.raises(wire.TruncatedReply):
        wire.parse_json(cut)


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
    with pytest.raises(wire.TruncatedReply):
        wire.parse_json(body)


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
def test_what_is_wrong_in_the_middle_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedReply) as caught:
        wire.parse_json(body)
    assert type(caught.value) is MalformedReply
    assert caught.value.__context__ is None


def test_a_byte_order_mark_is_skipped_and_broken_utf_8_is_replaced() -> None:
    assert wire.parse_json(b'\xef\xbb\xbf{"a": "\xe9"}') == {"a": "�"}


@pytest.mark.parametrize("body", [b'{"a":1,"a":1}', b'{"b":{"a":1,"a":2}}', b'{"a":1,"\\u0061":2}'])
def test_the_same_key_twice_is_refused_at_every_depth(body: bytes) -> None:
    with pytest.raises(MalformedReply, match="same key twice"):
        wire.parse_json(body)


@pytest.mark.parametrize(
    ("body", "kind"), [(b"[]", "list"), (b'"a"', "str"), (b"null", "NoneType"), (b"1", "int")]
)
def test_an_answer_that_is_no_object_is_named(body: bytes, kind: str) -> None:
    with pytest.raises(MalformedReply, match=f"JSON {kind}, not an object"):
        wire.parse_json(body)


def test_an_integer_longer_than_any_number_is_refused_whatever_python_s_own_limit() -> None:
    assert wire.parse_json(b'{"a": ' + b"9" * 400 + b"}") == {"a": 10**400 - 1}
    for digits in (401, 4_301, 50_000):
        with pytest.raises(MalformedReply, match=f"integer of {digits} digits"):
            wire.parse_json(b'{"a": ' + b"9" * digits + b"}")


# -- forms ----------------------------------------------------------------------------------------


def test_a_form_reply_is_read() -> None:
    assert wire.parse_form(b"access_token=a%20b&scope=&x=%E9\n") == {
        "access_token": "a b",
        "scope": "",
        "x": "�",
    }


@pytest.mark.parametrize("body", [b"abc", b"<html></html>", b"a=1&b", b"&".join([b"a=1"] * 101)])
def test_what_is_no_form_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedReply, match="not form-encoded"):
        wire.parse_form(body)


def test_the_same_field_twice_is_refused() -> None:
    with pytest.raises(MalformedReply, match="same key twice"):
        wire.parse_form(b"a=1&a=2")


# -- finding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [("a", {"b": {"c": 1}}), ("a.b", {"c": 1}), ("a.b.c", 1), ("a.x", None), ("a.b.c.d", None), ("x", None)],
)
def test_a_dotted_path_reaches_into_objects(path: str, value: Any) -> None:
    assert wire.find({"a": {"b": {"c": 1}}}, path) == value


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=4), ANY_TEXT)
def test_no_path_into_no_document_raises(document: dict[str, Any], path: str) -> None:
    wire.find(document, path)


# -- tokens ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(ANY_VALUE)
def test_an_access_token_can_stand_in_a_header_or_is_malformed(value: Any) -> None:
    try:
        token = wire.access_token(value)
    except MalformedReply:
        return
    assert token == value
    assert re.fullmatch(r"[!-~]+", token)


@pytest.mark.parametrize("value", ["a", "~" * 5000, "!#$%&'()*+,-./:;<=>?@[]^_`{|}~", "AZaz09"])
def test_every_visible_ascii_character_may_stand_in_an_access_token(value: str) -> None:
    assert wire.access_token(value) == value


@settings(deadline=None, max_examples=100)
@given(ANY_VALUE)
def test_a_refresh_token_is_absent_or_printable_ascii_or_malformed(value: Any) -> None:
    try:
        token = wire.refresh_token(value)
    except MalformedReply:
        return
    assert token is None if value in (None, "") else token == value and re.fullmatch(r"[ -~]+", token)


@settings(deadline=None, max_examples=100)
@given(ANY_VALUE)
def test_a_scope_can_be_stored_or_is_none(value: Any) -> None:
    scope = wire.scope(value)
    assert scope is None or (scope == value and scope.encode() is not None)


# -- durations and dates --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (3600, 3600),
        (3600.5, 3600.5),
        ("3600", 3600),
        (" 3600 ", 3600),
        ("3600.0", 3600),
        ("3600.", 3600),
        ("+3600", 3600),
        ("0003600", 3600),
        (0, 0),
        ("0", 0),
        (-5, -5),
        ("-5", -5),
        (365 * 86400, wire.LONGEST_LIFE),
        (365 * 86400 + 1, wire.LONGEST_LIFE),
        (10**12, wire.LONGEST_LIFE),
        (10**399, wire.LONGEST_LIFE),
        (-(10**399), -wire.LONGEST_LIFE),
        ("9" * 40, wire.LONGEST_LIFE),
        ("9" * 41, None),
        (None, None),
        ("", None),
        (" ", None),
        ("1h", None),
        ("3_600", None),
        ("٣٦٠٠", None),
        ("\uff13\uff16\uff10\uff10", None),
        ("3600\u00a0", None),
        ("1e3", None),
        ("0x10", None),
        ("nan", None),
        ("inf", None),
        (".5", None),
        ("--5", None),
        ("3600s", None),
        ("36 00", None),
        (True, None),
        (False, None),
        ([], None),
        ([3600], None),
        ({}, None),
        (b"3600", None),
        (float("nan"), None),
        (float("inf"), None),
        (float("-inf"), None),
        (1e308, wire.LONGEST_LIFE),
    ],
)
def test_a_life_in_seconds_is_read_from_numbers_and_decimal_strings_only(
    value: Any, seconds: float | None
) -> None:
    assert wire.expires_in(value) == seconds


@settings(deadline=None, max_examples=150)
@given(ANY_VALUE)
def test_any_life_is_bounded_or_none(value: Any) -> None:
    seconds = wire.expires_in(value)
    assert seconds is None or (type(seconds) is float and abs(seconds) <= wire.LONGEST_LIFE)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (120, 120),
        (0, 0),
        ("-1", -1),
        ("Sun, 15 Jun 2025 15:08:40 GMT", 120),
        ("Sun, 15 Jun 2025 15:08:40 +0000", 120),
        ("Sun, 15 Jun 2025 17:08:40 +0200", 120),
        ("Sunday, 15-Jun-25 15:08:40 GMT", 120),
        ("Sun Jun 15 15:08:40 2025", 120),
        ("Sun, 15 Jun 2025 15:08:40", 120),  # Priava's: no zone
        ("Thu, 15 Jun 2025 15:08:40", 120),  # and a weekday that is wrong
        ("Sun, 15 Jun 2025 15:06:40 GMT", 0),
        ("Sun, 15 Jun 2025 15:05:40 GMT", -60),
        ("soon", None),
        ("", None),
        (None, None),
        (True, None),
        ([], None),
        ("Sun, 99 Jun 2025 15:06:40 GMT", None),
        ("Sun, 15 Jun 99999 15:06:40 GMT", None),
        ("Sun, 15 Jun 2025 15:06:40 GMT" + " " * 100, None),
    ],
)
def test_a_pause_is_read_from_seconds_and_dates(value: Any, seconds: float | None) -> None:
    assert wire.retry_after(value, NOW) == seconds


DATES = st.text("SunMoJa 0123456789:,-+GMT().\x00", max_size=64)


@settings(deadline=None, max_examples=200)
@given(ANY_VALUE | DATES | DATES.map(lambda text: f"Sun, 15 Jun 2025 15:06:40 {text}"[:64]))
def test_no_value_breaks_the_reading_of_a_pause_or_a_date(value: Any) -> None:
    for seconds in (wire.retry_after(value, NOW), wire.parse_http_date(value)):
        assert seconds is None or seconds == seconds  # never NaN


# -- what people see ------------------------------------------------------------------------------

SECRET = "a b%c&d+e£f€g\"h\\i/j:k<l>m'n"
SPELLINGS = {
    "as it is": SECRET,
    "in a URL": quote(SECRET),
    "in a URL, all": quote(SECRET, safe=""),
    "in a form": quote_plus(SECRET),
    "in our form": quote_plus(SECRET, safe=":/"),
    "in a form, lower case": re.sub(r"%..", lambda m: m[0].lower(), quote_plus(SECRET)),
    "in JSON": json.dumps(SECRET)[1:-1],
    "in JSON, UTF-8": json.dumps(SECRET, ensure_ascii=False)[1:-1],
    "in JSON by PHP": json.dumps(SECRET)[1:-1].replace("/", "\\/"),
    "in JSON by Go": json.dumps(SECRET)[1:-1]
    .replace("&", "\\u0026")
    .replace("<", "\\u003c")
    .replace(">", "\\u003E"),
    "in HTML": html.escape(SECRET),
    "in HTML, no quotes": html.escape(SECRET, quote=False),
    "in HTML, numbers": "".join(c if c.isalnum() and c.isascii() else f"&#{ord(c)};" for c in SECRET),
    "in HTML, hex": "".join(c if c.isalnum() and c.isascii() else f"&#x{ord(c):X};" for c in SECRET),
    "in Python": repr(SECRET)[1:-1],
    "in base64": base64.b64encode(SECRET.encode()).decode(),
    "in base64 for URLs": base64.urlsafe_b64encode(SECRET.encode()).decode(),
    "UTF-8 read as Latin-1": SECRET.encode().decode("latin-1"),
    "Windows-1252 read as UTF-8": SECRET.encode("cp1252").decode("utf-8", "replace"),
    "in upper case": SECRET.upper(),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_secret_is_redacted_in_every_spelling(spelling: str) -> None:
    assert wire.redact(f"[{spelling}]", [SECRET]) == "[[redacted]]"
    assert wire.redact(f"Bad: {spelling}, sorry, {spelling}!", ["x-other", SECRET]).count("[redacted]") == 2


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.text(
            st.characters(exclude_characters="[]", codec=None, exclude_categories=()), min_size=5, max_size=30
        ).filter(lambda secret: secret not in "[redacted]"),
        min_size=1,
        max_size=3,
    ),
    ANY_TEXT,
    ANY_TEXT,
)
@example(secrets=["00\x1f\\\\"], before="", after="")
def test_no_text_around_a_secret_keeps_it_from_being_redacted(
    secrets: list[str], before: str, after: str
) -> None:
    for secret in secrets:
        plain = wire.redact(before + secret + after, secrets)
        if secret not in before + after:
            assert secret not in plain
        assert json.dumps(secret)[1:-1] not in wire.redact(json.dumps(secret), secrets)
        if secret.isprintable():
            for spelled in (quote_plus(secret), quote(secret, safe=""), html.escape(secret)):
                assert spelled not in wire.redact(f"<{spelled}>", secrets)


def test_a_longer_secret_goes_before_a_shorter_one_that_it_contains() -> None:
    assert wire.redact("abcdef-ghi", ["abc", "abcdef-ghi"]) == "[redacted]"


def test_an_empty_secret_redacts_nothing() -> None:
    assert wire.redact("all is well", ["", ""]) == "all is well"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("token eyJhbGciOiJIUzI1NiJ9.e30.abc is odd", "token [redacted] is odd"),
        ("half of it: abcdefghijklmnop", "half of it: [redacted]"),
        ("short: abcdefghijklmno", "short: abcdefghijklmno"),
        ("key=12|aBcDeFgHiJkLmNoP", "[redacted]"),
        ("M.R3_BAY.-CcQ!x*y$$ expired", "[redacted] expired"),
        ("unsupported_grant_type", "unsupported_grant_type"),
        ("code: INVALID_REFRESH_TOKEN.", "code: INVALID_REFRESH_TOKEN."),
        ("Not_A_Code_But_A_Token", "[redacted]"),
        ("a_code_with_1234567890", "[redacted]"),
        ("toolonga_wordtobeacodeofwords", "[redacted]"),
    ],
)
def test_what_looks_like_a_token_goes_and_what_reads_like_a_code_stays(text: str, seen: str) -> None:
    assert wire.redact(text, []) == seen


def test_a_known_secret_that_reads_like_a_code_goes_all_the_same() -> None:
    assert wire.redact("my_own_refresh_token", ["my_own_refresh_token"]) == "[redacted]"


def test_no_secret_takes_long_to_look_for() -> None:
    """Characters that can be escaped in overlapping ways must not multiply; this would never end."""
    for secret in ("\\" * 60 + "x", " " * 60 + "x", "%25" * 30, "&amp;" * 30 + "x", "£" * 60 + "x"):
        text = (secret[:-1] + "y") * 20
        assert wire.redact(text, [secret])


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200), ANY_TEXT)
def test_an_excerpt_of_anything_is_one_printable_line(body: bytes, secret: str) -> None:
    text = wire.excerpt(body, [secret])
    assert text.isprintable()
    assert text == " ".join(text.split())
    assert len(text) <= 121


def test_an_excerpt_shows_where_it_was_cut() -> None:
    assert wire.excerpt(b"a b " * 100, [], longest=8) == "a b a b …"
    assert wire.excerpt(b"a b", [], longest=3) == "a b"
    assert wire.excerpt(b" a \r\n\t b\x00c ", []) == "a b c"
    assert wire.excerpt(b"", []) == ""


def test_an_excerpt_redacts_before_it_cuts() -> None:
    text = wire.excerpt(b"x" * 10 + b" pl anted", ["pl anted"], longest=15)
    assert text == "x" * 10 + " [red…"


def test_only_the_beginning_of_a_long_body_is_looked_at() -> None:
    assert len(wire.excerpt(b"ab " * 1_000_000, [])) == 121


@pytest.mark.parametrize("before", range(4060, 4100))
def test_a_secret_that_the_cut_goes_through_is_not_shown_in_half(before: int) -> None:
    """The excerpt looks at the first 4096 bytes only; white space may bring their end into view."""
    body = b" " * before + b"pass-word-42!" + b" " * 100
    assert "pass" not in wire.excerpt(body, ["pass-word-42!"])
