"""A short run of the fuzzer, always the same; what longer runs have found; tests of the fuzzer itself."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
from _hostile import (
    ACCESS,
    CODE,
    HEAD,
    PAD,
    PLANTABLE,
    READERS,
    REFRESH,
    ROTATED,
    SECRET,
    shows_a_secret,
    spellings,
)
from _targets import NOW, SENT_AT, TARGETS, check_record, check_response
from hypothesis import given, settings
from hypothesis import strategies as st
from run import Figures, fuzz, main, share

from tokensession import _redact
from tokensession._refresh.state import Now, TokenState, decode, encode
from tokensession.errors import InvalidTokenResponse, StoreCorrupt, TokenSessionError, UnexplainedRefusal
from tokensession.providers import Credential, Issued, TokenResponse, _wire
from tokensession.token import Token

INPUTS = 16_000

OUTCOMES = {
    "response": "Issued, Issued with a note, Issued with a problem, GrantRejected, ClientRejected, "
    "RateLimited, TokenUnavailable, OutcomeUnknown, UnexplainedRefusal, InvalidTokenResponse",
    "json": "an object, InvalidTokenResponse, TruncatedResponse",
    "form": "an object, InvalidTokenResponse",
    "date": "a date, not a date",
    "text": "redacted, nothing to redact",
    "record": "a state, StoreCorrupt",
    "file": "a record, StoreCorrupt",
    "mark": "a mark, no mark",
    "url": "FileStore, SQLiteStore, MemoryStore, RedisStore, PostgresStore, EncryptedStore, "
    "ConfigurationError",
    "inflate": "inflated, InvalidTokenResponse",
}


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_a_short_run_breaks_a_promise(name: str) -> None:
    """Each outcome occurs: a run in which all inputs fail to parse would prove nothing."""
    figures = fuzz(name, share(name, INPUTS), seed=20)
    assert figures.failures == []
    assert figures.outcomes.keys() == set(OUTCOMES[name].split(", "))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(TARGETS)), st.binary(max_size=200))
def test_no_arbitrary_bytes_break_a_promise(name: str, data: bytes) -> None:
    """Hypothesis draws without a grammar, and shrinks what it finds."""
    assert TARGETS[name][0](data)


def head(reader: int, status: int) -> bytes:
    """The instructions before a body: the reader's place in READERS, the status's place in STATUSES."""
    return bytes((reader, status)).ljust(HEAD, b"\0")


def planted(secret: str, way: int = 0) -> bytes:
    """The instruction to write a secret in one of its spellings."""
    return bytes((SECRET, PLANTABLE.index((secret, spellings(secret)[way]))))


BY_CODE, OAUTH2, FORM = 2, 3, 5
REJECTED = head(OAUTH2, 2)  # with 400

FINDS: Mapping[str, tuple[str, bytes]] = {
    "UTF-16, little end first": ("response", REJECTED + planted(REFRESH, -2)),
    "UTF-16, big end first, after other text": ("response", REJECTED + b"echo: " + planted(REFRESH, -1)),
    "a JSON document in a string of another": ("response", REJECTED + b'{"body": "' + planted(REFRESH, 4)),
    "the same by PHP, which escapes slashes": ("response", head(BY_CODE, 2) + b'"' + planted(CODE, 5)),
    "JSON in HTML": ("response", REJECTED + b"<pre>" + planted(REFRESH, 12)),
    "bytes as Python shows them": ("response", REJECTED + b"b'" + planted(REFRESH, 13)),
    "text that is not a form, in the error's context": ("response", head(FORM, 0) + planted(CODE)),
    "the same, from the parser alone": ("form", ACCESS.encode()),
    "an access token of one letter, which splits other secrets": (
        "response",
        head(OAUTH2, 0)
        + b'{"error": "%s", "error_description": "%s", ' % (planted(ACCESS), planted(ROTATED))
        + b'"access_token": "X"}',
    ),
    "a token that is nearly cut off": (
        "response",
        REJECTED + bytes((PAD, 100)) + planted(ROTATED) + bytes((PAD, 0)) + b"x" * 300,
    ),
    "an escaped secret that continues after the cut": (
        "text",
        bytes((PAD, 127)) + planted(REFRESH, 4) + bytes((PAD, 0)) + b"x" * 300,
    ),
}


@pytest.mark.parametrize("find", FINDS)
def test_what_longer_runs_have_found_stays_fixed(find: str) -> None:
    """Secrets that an error once showed, or had in its causes or attributes."""
    target, data = FINDS[find]
    assert TARGETS[target][0](data)


def test_two_overlapping_secrets_are_both_redacted_as_a_whole() -> None:
    """Of one that began inside another, only the beginning was once redacted."""
    assert _redact.redact("(ab cd ef)", ["ab cd", "cd ef"]) == "([redacted])"
    assert _redact.redact("(ab cd ef)", ["cd ef", "ab cd"]) == "([redacted])"


def test_an_excerpt_of_a_body_shorter_than_its_secret_s_escapes_is_empty() -> None:
    """With a long secret, the cut was once counted from the wrong end."""
    assert _redact.excerpt(b"\\u00e9" * 1000, ["é" * 700]) == ""


def test_a_body_without_a_showable_part_is_not_called_empty() -> None:
    provider, credential, _ = READERS[OAUTH2]
    body = json.dumps({"access_token": "é" * 1000, "x": "y" * 5000}).encode()
    with pytest.raises(UnexplainedRefusal, match=r"answered 400\.") as caught:
        provider.read(TokenResponse(400, (), body), credential, sent_at=SENT_AT)
    assert "empty" not in str(caught.value)


SAID = "This is not an answer."


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else []


def in_the_context(body: bytes) -> None:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidTokenResponse(SAID) from None


def in_an_attribute(body: bytes) -> InvalidTokenResponse:
    error = InvalidTokenResponse(SAID)
    error.response_body = body  # type: ignore[attr-defined]
    return error


def access_token(response: TokenResponse) -> str:
    return str(_wire.parse_json(response.body).get("access_token"))


BROKEN: Mapping[str, tuple[Callable[[TokenResponse], Any], str]] = {
    "a KeyError": (lambda response: _wire.parse_json(response.body)["access_token"], "KeyError"),
    "an undocumented error": (lambda _: TokenSessionError(SAID), "documented error: TokenSessionError"),
    "the body in the message": (
        lambda response: InvalidTokenResponse(f"{SAID} {response.body.decode('utf-8', 'replace')[:200]!r}"),
        "is shown",
    ),
    "the body in the context": (lambda response: in_the_context(response.body), "is shown"),
    "the body in an attribute": (lambda response: in_an_attribute(response.body), "is shown"),
    "recursion": (
        lambda response: deep(2000) if response.body.count(b"[") > 60 else InvalidTokenResponse(SAID),
        "RecursionError",
    ),
    "many lines": (
        lambda response: InvalidTokenResponse(f"{SAID}\nStatus: {response.status}"),
        "not one printable line",
    ),
    "a long message": (
        lambda response: InvalidTokenResponse(SAID * (1 + len(response.body))),
        "a message of",
    ),
    "an unusable token": (lambda response: Issued(Token(access_token(response) + "\n", SENT_AT)), ""),
    "a token in a note": (lambda response: Issued(Token("a", SENT_AT), notes=(access_token(response),)), ""),
}
"""What these readers return or raise, and what the fuzzer says of it."""


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_reader_is_found_within_a_short_run(broken: str) -> None:
    """If the fuzzer finds nothing here, it finds nothing anywhere."""
    reader, said = BROKEN[broken]

    def read(response: TokenResponse, _credential: Credential, *, sent_at: float) -> Any:
        assert sent_at == SENT_AT
        found = reader(response)
        if isinstance(found, Exception):
            raise found
        return found or Issued(Token("a", SENT_AT))

    check = functools.partial(check_response, read=read)
    figures = fuzz("response", share("response", INPUTS), seed=20, check=check)
    assert any(said in what for _, what in figures.failures), figures.failures


def states_of_anything(data: bytes, _now: Now) -> TokenState:
    document = msgpack.unpackb(data)
    return TokenState(configured=document["configured"])


def tokens_in_the_message(data: bytes, now: Now) -> TokenState:
    try:
        return decode(data, now)
    except StoreCorrupt:
        raise StoreCorrupt(f"The stored record is damaged: {data[:600]!r}") from None


@pytest.mark.parametrize("broken", [states_of_anything, tokens_in_the_message])
def test_a_broken_decoder_is_found_within_a_short_run(broken: Callable[[bytes, Now], TokenState]) -> None:
    check = functools.partial(check_record, decode=broken)
    assert fuzz("record", share("record", INPUTS), seed=20, check=check).failures


def test_every_planted_spelling_is_recognized() -> None:
    """Otherwise a leak in that spelling would not be noticed."""
    for secret, way in PLANTABLE:
        shown = "".join(c if c.isprintable() else " " for c in way.decode("utf-8", "replace"))
        assert shows_a_secret(f"It says {' '.join(shown.split())}!") == secret


def calls(work: Callable[[], object]) -> int:
    """How many Python and C functions the work calls. Unlike a time, that is always the same."""
    count = 0

    def counting(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counting)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


SHAPES: Mapping[str, Callable[[int], bytes]] = {
    "keys": lambda size: json.dumps({str(i): i for i in range(size)}).encode(),
    "a list": lambda size: json.dumps({"error": list(range(size))}).encode(),
    "objects in a list": lambda size: json.dumps({"x": [{"a": 1}] * size}).encode(),
    "nesting": lambda size: b'{"a":' * size,
    "escapes": lambda size: b'{"error": "' + b"\\u0041" * size,
    "a description": lambda size: json.dumps({"error": "e", "error_description": "a b-" * size}).encode(),
    "a code": lambda size: json.dumps({"error": "word " * size}).encode(),
    "a token": lambda size: json.dumps({"access_token": "-" * size, "error": "-" * size}).encode(),
    "fields of a form": lambda size: b"a=1&" * size,
    "percents of a form": lambda size: b"access_token=" + b"%41" * size,
    "backslashes": lambda size: b"\\" * size,
    "text": lambda size: b"<p>no " * size,
}


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_response_of_twice_the_size_takes_at_most_twice_the_work(shape: str, status: int) -> None:
    """No response (it has at most a mebibyte) can block the event loop for long."""
    for provider, credential, _ in READERS:

        def work(size: int, provider: Any = provider, credential: Credential = credential) -> int:
            response = TokenResponse(status, (), SHAPES[shape](size))

            def read() -> None:
                with contextlib.suppress(TokenSessionError):
                    provider.read(response, credential, sent_at=SENT_AT)

            read()  # patterns are compiled once
            return calls(read)

        # From this size on, excerpts are full, and tokens are too long to be searched for.
        assert work(8_000) <= 2.1 * work(4_000) + 50


@pytest.mark.parametrize(
    "make",
    [
        lambda size: encode(TokenState(token=Token("a" * size, 0.0, None, "r" * size, "s" * size)), NOW),
        lambda size: msgpack.packb(
            msgpack.unpackb(encode(TokenState(), NOW)) | {str(i): i for i in range(size)}
        ),
        lambda size: msgpack.packb([{"a": 1}] * size),
        lambda size: b"\x91" * size,
    ],
    ids=["a long token", "unknown fields", "maps", "nesting"],
)
def test_a_record_of_twice_the_size_takes_at_most_twice_the_work(make: Callable[[int], bytes]) -> None:
    def work(size: int) -> int:
        data = make(size)

        def read() -> None:
            with contextlib.suppress(StoreCorrupt):
                decode(data, NOW)

        return calls(read)

    assert work(8_000) <= 2.1 * work(4_000) + 50


def test_quadratic_work_is_detected() -> None:
    """Comparing all pairs makes four times the calls."""

    def pairs(size: int) -> int:
        keys = list(map(str, range(size)))
        return calls(lambda: [key.startswith(other) for key in keys for other in keys])

    assert pairs(200) > 2.1 * pairs(100) + 50


def test_the_command_prints_its_figures_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--inputs", "300", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in TARGETS)
    assert "in all: 300 inputs" in printed
    assert "0 failures" in printed


def test_a_failure_is_printed_with_the_command_that_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    figures = Figures("mark", inputs=1, failures=[(b"nan x", "AssertionError: wrong")])
    (_, again) = figures.lines()
    assert again.split()[:3] == ["--replay", "mark", b"nan x".hex()]
    assert main(again.split()[:3]) == 0
    assert capsys.readouterr().out == "a mark\n"


@pytest.mark.skipif(importlib.util.find_spec("atheris") is not None, reason="atheris is installed")
def test_without_atheris_the_coverage_guided_run_says_what_to_install() -> None:
    command = [sys.executable, str(Path(__file__).with_name("coverage_guided.py")), "response"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "pip install atheris" in done.stderr
