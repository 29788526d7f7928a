"""A server's text as it may be shown: no secret, one line, not too long."""

from __future__ import annotations

import base64
import html
import json
import re
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokensession import _redact

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
UTF8_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)

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
    assert _redact.redact(f"[{spelling}]", [SECRET]) == "[[redacted]]"
    assert (
        _redact.redact(f"Bad: {spelling}, sorry, {spelling}!", ["x-other", SECRET]).count("[redacted]") == 2
    )


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
def test_a_secret_is_redacted_whatever_text_surrounds_it(secrets: list[str], before: str, after: str) -> None:
    for secret in secrets:
        plain = _redact.redact(before + secret + after, secrets)
        if secret not in before + after:
            assert secret not in plain
        assert json.dumps(secret)[1:-1] not in _redact.redact(json.dumps(secret), secrets)
        if secret.isprintable():
            for spelled in (quote_plus(secret), quote(secret, safe=""), html.escape(secret)):
                assert spelled not in _redact.redact(f"<{spelled}>", secrets)


def test_a_secret_that_contains_another_one_is_redacted_as_a_whole() -> None:
    assert _redact.redact("abcdef-ghi", ["abc", "abcdef-ghi"]) == "[redacted]"


def test_an_empty_secret_redacts_nothing() -> None:
    assert _redact.redact("all is well", ["", ""]) == "all is well"


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
def test_text_like_a_token_is_redacted_and_an_error_code_is_not(text: str, seen: str) -> None:
    assert _redact.redact(text, []) == seen


def test_a_known_secret_that_looks_like_an_error_code_is_redacted() -> None:
    assert _redact.redact("my_own_refresh_token", ["my_own_refresh_token"]) == "[redacted]"


def test_no_secret_takes_long_to_search_for() -> None:
    """Characters that can be escaped in overlapping ways must not multiply, or this never ends."""
    for secret in ("\\" * 60 + "x", " " * 60 + "x", "%25" * 30, "&amp;" * 30 + "x", "£" * 60 + "x"):
        text = (secret[:-1] + "y") * 20
        assert _redact.redact(text, [secret])


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200), ANY_TEXT)
def test_an_excerpt_of_anything_is_one_printable_line(body: bytes, secret: str) -> None:
    text = _redact.excerpt(body, [secret])
    assert text.isprintable()
    assert text == " ".join(text.split())
    assert len(text) <= 121


def test_an_excerpt_shows_where_it_was_cut() -> None:
    assert _redact.excerpt(b"a b " * 100, [], longest=8) == "a b a b …"
    assert _redact.excerpt(b"a b", [], longest=3) == "a b"
    assert _redact.excerpt(b" a \r\n\t b\x00c ", []) == "a b c"
    assert _redact.excerpt(b"", []) == ""


def test_an_excerpt_redacts_before_it_cuts() -> None:
    text = _redact.excerpt(b"x" * 10 + b" pl anted", ["pl anted"], longest=15)
    assert text == "x" * 10 + " [red…"


def test_only_the_beginning_of_a_long_body_is_read() -> None:
    assert len(_redact.excerpt(b"ab " * 1_000_000, [])) == 121


@pytest.mark.parametrize("before", range(4060, 4100))
def test_no_half_of_a_secret_at_the_cut_is_shown(before: int) -> None:
    """An excerpt reads only the first 4096 bytes, and shows their end if they begin with white space."""
    body = b" " * before + b"pass-word-42!" + b" " * 100
    assert "pass" not in _redact.excerpt(body, ["pass-word-42!"])
