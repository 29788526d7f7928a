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


@pytest.mark.parametrize(
    ("text", "secrets", "shown"),
    [
        ("abcdef-ghi", ["abc", "abcdef-ghi"], "[redacted]"),
        ("(a bcdef-ghi j)", ["cde", "a bcdef-ghi j"], "([redacted])"),
        ("(a b c d e f g)", ["b c", "a b c d e f", "d", "f g"], "([redacted])"),
        ("all is well", ["", ""], "all is well"),
        ("my_own_refresh_token", ["my_own_refresh_token"], "[redacted]"),  # it looks like an error code
    ],
)
def test_secrets_that_contain_or_overlap_each_other_are_redacted_as_a_whole(
    text: str, secrets: list[str], shown: str
) -> None:
    """Not only up to the end of the shorter one. An empty one redacts nothing."""
    assert _redact.redact(text, secrets) == shown


LONG = SECRET * 3


@pytest.mark.parametrize("spelling", [*SPELLINGS, "as it is, in part"])
def test_a_long_secret_is_redacted_in_every_spelling(spelling: str) -> None:
    """Only its beginning is searched for in every spelling, so the rest of the text may go with it (K33)."""
    made = LONG[:60] if spelling == "as it is, in part" else SPELLINGS[spelling] * 3
    if "base64" in spelling:
        made = base64.b64encode(LONG.encode()).decode()
    shown = _redact.redact(f"Bad: {made}, sorry", [LONG])
    assert shown in ("Bad: [redacted]", "Bad: [redacted], sorry")


def test_text_after_a_long_secret_is_shown_if_the_secret_is_there_as_it_is() -> None:
    """(K33)."""
    assert _redact.redact(f"Bad: {LONG}, sorry, {LONG.upper()}!", [LONG]) == (
        "Bad: [redacted], sorry, [redacted]!"
    )
    assert _redact.redact(f"Bad: {LONG[5:]}", [LONG]) != "Bad: [redacted]"


@pytest.mark.parametrize("count", [1, 2, 9, 28])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_backslashes_are_redacted_however_often_they_are_escaped(times: int, count: int) -> None:
    for secret in ("\\" * count + "n", "a" + "\\" * count + "n", "ab" + "\\" * count + "yz"):
        spelled = secret
        for _ in range(times):
            spelled = json.dumps(spelled)[1:-1]
        for spelling in (spelled, quote(spelled, safe=""), spelled.replace("\\", "&#92;")):
            assert _redact.redact(f"[{spelling}]", [secret]) == "[[redacted]]", spelling


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


def test_no_secret_takes_long_to_search_for() -> None:
    """Characters that can be escaped in overlapping ways must not multiply, or this never ends."""
    for character in ("\\", " ", "%", "%25", "&", "&amp;", "£", "\ufffd", "\\£", " \\", '"'):
        for secret in (character * 60 + "x", character * 20 + "x", character + "x", "x" + character * 20):
            for spelled in (secret, json.dumps(secret)[1:-1], quote(secret, safe=""), "x5c" * 20, "%5c" * 20):
                text = (spelled[:-1] + "y") * 20
                assert _redact.redact(text[:4096], [secret])


def test_a_search_does_not_begin_inside_a_run_of_backslashes_nor_follow_a_vast_one() -> None:
    """Otherwise its work would grow with the square of the run's length (K33)."""
    pattern = re.compile(_redact._spellings("\\£x"))
    text = "\\" * 4 + "u00a3x"
    assert [at for at in range(len(text)) if pattern.match(text, at)] == [0]
    assert pattern.match("%5c" * 16 + "£x")
    assert not pattern.match("%5c" * 100 + "£x")


def test_the_work_for_an_excerpt_is_bounded_whatever_the_body_and_the_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted in characters: of the texts that are searched, and of the patterns that are compiled (K33)."""
    searched: list[int] = []
    compiled: list[int] = []
    search = re.finditer

    def counted(pattern: str, text: str, flags: int = 0) -> object:
        searched.append(len(text))
        compiled.append(len(pattern))
        return search(pattern, text, flags)

    monkeypatch.setattr(_redact.re, "finditer", counted)
    for secret in (
        "£\\" * 512,
        "\\ " * 512,
        "\U0001f600" * 1000,
        "é" * 20_000,
        "\\" * 20_000,
        " " * 5000,
    ):
        _redact.excerpt((secret * 1_000)[:1_000_000].encode(), [secret, secret + "x"])
        _redact.excerpt(b"\\" * 1_000_000, [secret])
    assert max(searched) <= 4096
    assert max(compiled) <= 15_000
    assert len(searched) <= 18


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
