"""The forty rows of hostile and unusual token responses, as each provider reads them.

`R(row, what, ...)` is one variant of one row of the table. `want` is the error's type, or None for a token.
`check` checks the error or the token. `brings` is the refresh token that is stored in spite of the error.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from _known_secrets import (
    AWKWARD,
    BY_CODE,
    BY_REFRESH,
    CLIENT_SECRET,
    CONFIGURED,
    ISSUED,
    NEW_ACCESS,
    NEW_REFRESH,
    PROVIDERS,
    REFRESH,
    SENT_AT,
    assert_keeps_secrets,
    granted,
    oauth2,
    read,
    shown,
    spellings,
    token_response,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession import (
    ClientRejected,
    GrantRejected,
    InvalidTokenResponse,
    ManagedSource,
    OutcomeUnknown,
    RateLimited,
    SignInRequired,
    TokenSessionError,
    TokenUnavailable,
)
from tokensession._refresh.state import Now, TokenState, decode, encode
from tokensession.errors import UnexplainedRefusal
from tokensession.policy import MAX_LIFETIME, Policy
from tokensession.providers import Credential, Issued, Strategy, StrategyProvider, TokenResponse, _wire
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, ScriptedTransport

ELSEWHERE = {
    28: "aiohttp/test_middleware.py: a 401 from the API",
    33: "aiohttp/test_transport.py: no redirect is followed (here: how one is read)",
    35: "aiohttp/test_transport.py: huge bodies and compressed bombs (here: deep nesting)",
    36: "aiohttp/test_transport.py: connections reset after sending (here: truncated documents)",
    37: "aiohttp/test_transport.py: only the caller ends a response that trickles in",
}
"""Rows that are about the network or the session, at least in part, and where those parts are tested."""

DEFAULT_LIFETIME = {"oto": 1800.0, "priava": 21600.0, "oauth2": None}
ALL = tuple(PROVIDERS)
NOW = Now(SENT_AT, 0.0)
DATE = "Sun, 15 Jun 2025 15:06:40 GMT"  # SENT_AT


@dataclass(frozen=True)
class R:
    """One variant of a row."""

    row: int
    what: str
    body: Any
    want: type[TokenSessionError] | None = None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    who: tuple[str, ...] = ALL
    credential: Credential = BY_REFRESH
    check: Callable[[Any, str], None] = lambda _outcome, _provider: None
    brings: str | None = None

    @property
    def token_response(self) -> TokenResponse:
        return replace(token_response(self.body, self.status), headers=self.headers)


# -- checks of an issued token ------------------------------------------------------------------


def lifetime_is(expected: float, *, note: bool = False) -> Callable[[Issued, str], None]:
    def check(issued: Issued, _provider: str) -> None:
        assert issued.token.lifetime == expected
        assert bool(issued.notes) is note

    return check


def default_lifetime(*, note: bool) -> Callable[[Issued, str], None]:
    def check(issued: Issued, provider: str) -> None:
        assert issued.token.lifetime == DEFAULT_LIFETIME[provider]
        assert bool(issued.notes) is note
        assert all("expires_in" in note for note in issued.notes)

    return check


def used_once(issued: Issued, _provider: str) -> None:
    assert issued.token.lifetime is not None
    assert issued.token.lifetime <= 0


def refresh_is(expected: str | None) -> Callable[[Issued, str], None]:
    def check(issued: Issued, _provider: str) -> None:
        assert issued.token.refresh_token == expected

    return check


# -- checks of an error -------------------------------------------------------------------------


def says(*words: str) -> Callable[[TokenSessionError, str], None]:
    def check(error: TokenSessionError, _provider: str) -> None:
        for word in words:
            assert word in str(error)

    return check


def says_not(*words: str) -> Callable[[TokenSessionError, str], None]:
    def check(error: TokenSessionError, _provider: str) -> None:
        for word in words:
            assert word not in str(error)

    return check


def code(expected: str, *words: str) -> Callable[[Any, str], None]:
    def check(error: Any, provider: str) -> None:
        assert error.code == expected
        says(*words)(error, provider)

    return check


def pause(expected: float | None) -> Callable[[TokenUnavailable, str], None]:
    def check(error: TokenUnavailable, _provider: str) -> None:
        assert error.retry_after == expected

    return check


# -- the table ----------------------------------------------------------------------------------

LATIN_1 = ("content-type", "text/plain;charset=iso-8859-1")
OTO, PRIAVA = ("oto",), ("priava",)
FORMS = ("priava", "oauth2")
TOKEN = f'"access_token": "{NEW_ACCESS}"'.encode()
HTML = (
    b"<!DOCTYPE html><html><head><title>Service Unavailable</title></head><body>"
    + f"<p>{REFRESH} & {NEW_ACCESS}</p>".encode()
    + b"<p>try</p>" * 500
)


def raw(value: bytes) -> bytes:
    """A good response with this expires_in, byte for byte."""
    return b"{" + TOKEN + b', "expires_in": ' + value + b"}"


def identity_error(message: str) -> dict[str, Any]:
    return {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def rows_1_to_13() -> Iterator[R]:
    yield R(1, "text_plain_latin_1", granted(), headers=(LATIN_1,))
    yield R(1, "wrong_content_type", granted(), headers=(("content-type", "text/html"),))
    yield R(1, "no_content_type", granted())
    for kind in ("Bearer", "BEARER", "bearer", "bEaReR", "", " Bearer", "Bearer \t", " "):
        yield R(2, f"type_{kind or 'empty'}", granted(token_type=kind))
    yield R(2, "absent", granted(token_type=None))
    for kind in ("mac", "DPoP", 7, ["Bearer"], {"a": 1}, True, "Bear er", "bearertoken"):
        yield R(
            3,
            f"type_{kind}",
            granted(token_type=kind),
            InvalidTokenResponse,
            check=says("not a bearer token"),
            brings=NEW_REFRESH,
        )
    for value in ("3600", 3600, 3600.0, " 3600 ", "3600.0", "\t3600\r\n", "+3600"):
        yield R(4, repr(value), granted(expires_in=value), check=lifetime_is(3600))
    yield R(5, "absent", granted(expires_in=None), check=default_lifetime(note=False))
    yield R(5, "null", raw(b"null"), check=default_lifetime(note=False))
    for wrong in (
        "1h",
        "3_600",
        "٣٦٠٠",
        "\uff13\uff16\uff10\uff10",
        True,
        False,
        [],
        [3600],
        {},
        "",
        " ",
        "0x10",
        "1e3",
        "9" * 41,
    ):
        yield R(6, repr(wrong)[:12], granted(expires_in=wrong), check=default_lifetime(note=True))
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b'"NaN"', b'"inf"'):
        yield R(7, number.decode(), raw(number), check=default_lifetime(note=True))
    for digits in (401, 5_000, 100_000):
        yield R(
            7, f"{digits}_digits", raw(b"1" * digits), InvalidTokenResponse, check=says(f"{digits} digits")
        )
        yield R(7, f"minus_{digits}_digits", raw(b"-" + b"1" * digits), InvalidTokenResponse)
    yield R(7, "400_digits", raw(b"1" * 400), check=lifetime_is(MAX_LIFETIME))
    for value in (0, -1, -(10**12), "0", "-5", 0.0, -0.0):
        yield R(8, repr(value), granted(expires_in=value), check=used_once)
    for value in (10**12, "1" + "0" * 12, 1e12, 10**30):
        yield R(9, repr(value), granted(expires_in=value), check=lifetime_is(MAX_LIFETIME))
    yield R(10, "absent", granted(refresh_token=None), check=refresh_is(REFRESH))
    yield R(10, "null", b"{" + TOKEN + b', "refresh_token": null}', check=refresh_is(REFRESH))
    yield R(10, "empty", granted(refresh_token=""), check=refresh_is(REFRESH))
    yield R(
        10,
        "a_code_is_not_a_refresh_token",
        granted(refresh_token=None),
        credential=BY_CODE,
        who=FORMS,
        check=refresh_is(None),
    )
    yield R(11, "new", granted(), check=refresh_is(NEW_REFRESH))
    yield R(11, "new_with_spaces", granted(refresh_token="a b c"), check=refresh_is("a b c"))
    for value in (None, "", 7, True, [NEW_ACCESS], {"a": NEW_ACCESS}, 1.5):
        missing, check = granted(access_token=value), says("no access token")
        yield R(12, f"{value!r:.8}", missing, InvalidTokenResponse, check=check, brings=NEW_REFRESH)
        nothing = {name: text for name, text in missing.items() if name != "refresh_token"}
        yield R(12, f"{value!r:.8}_nor_a_refresh_token", nothing, InvalidTokenResponse, check=check)
    yield R(12, "null", b'{"access_token": null}', InvalidTokenResponse)
    bad = {
        "crlf": "\r\nX-Evil: 1",
        "lf": "\n",
        "space": " ",
        "trailing_space": " ",
        "non_ascii": "é",
        "lone_surrogate": "\ud800",
        "nul": "\0",
        "del": "\x7f",
        "no_break_space": "\xa0",
        "emoji": "😀",
    }
    for what, characters in bad.items():
        malformed = granted(access_token=NEW_ACCESS + characters + "x")
        yield R(13, what, malformed, InvalidTokenResponse, brings=NEW_REFRESH)
        alone = {"access_token": malformed["access_token"]}
        yield R(13, f"{what}_alone", alone, InvalidTokenResponse)
        if what != "space":
            broken = granted(refresh_token=NEW_REFRESH + characters.replace(" ", "\t"))
            yield R(13, f"refresh_token_{what}", broken, InvalidTokenResponse)


def rows_14_to_20() -> Iterator[R]:
    denied = {"success": False, "errorCode": 5, "errorMsg": f"{REFRESH} is odd"}
    yield R(14, "unknown_code", denied, InvalidTokenResponse, who=OTO, check=says(": 5 (["))
    yield R(14, "code_1", denied | {"errorCode": 1}, InvalidTokenResponse, who=OTO, check=says(": 1 (["))
    for flag in (False, "false", "False"):
        for known, want in (
            ("OTO1083", GrantRejected),
            ("OTO1105", RateLimited),
            ("OTO9999", InvalidTokenResponse),
        ):
            body = denied | {"success": flag, "otoErrorCode": known, "otoErrorMessage": "no"}
            yield R(14, f"{flag!r}_{known}", body, want, who=OTO, check=says(known))
    yield R(14, "without_a_code", {"success": False}, InvalidTokenResponse)
    yield R(15, "ok_false", {"ok": False}, InvalidTokenResponse)
    yield R(15, "ok_false_text", {"ok": "false"}, InvalidTokenResponse)
    yield R(15, "ok_false_and_code", {"ok": False, "error": "invalid_grant"}, GrantRejected)
    yield R(15, "error", {"error": "invalid_grant"}, GrantRejected, check=code("invalid_grant"))
    yield R(15, "unknown_error", {"error": "teapot"}, InvalidTokenResponse, check=says("teapot"))
    yield R(15, "error_object", {"error": {"a": 1}}, InvalidTokenResponse)
    yield R(15, "status_201", {"error": "invalid_client"}, ClientRejected, status=201)
    yield R(16, "error", granted(error="invalid_grant"), GrantRejected)
    for what, beside in (
        ("unknown_error", {"error": "teapot"}),
        ("error_object", {"error": {"code": 0}}),
        ("error_true", {"error": True}),
        ("success_false", {"success": False}),
        ("ok_false", {"ok": "false"}),
        ("try_again", {"error": "temporarily_unavailable"}),
    ):
        check = says("200 with a token and an error", "Find out what the provider means")
        yield R(16, what, granted(**beside), InvalidTokenResponse, check=check, brings=NEW_REFRESH)
        kept = granted(refresh_token=None, **beside)
        yield R(16, f"{what}_without_refresh_token", kept, InvalidTokenResponse, check=check, brings=REFRESH)
    for name in ("invalid_client", "slow_down", "login_required"):
        want = {"invalid_client": ClientRejected, "slow_down": RateLimited}.get(name, GrantRejected)
        yield R(16, name, granted(error=name), want)
    yield R(16, "oto_code", granted(otoErrorCode="OTO1083"), GrantRejected, who=OTO)
    surrogate = {"access_token": "\ud800" + NEW_ACCESS, "refresh_token": NEW_REFRESH, "error": "teapot"}
    yield R(16, "lone_surrogate_in_the_token", surrogate, InvalidTokenResponse, brings=NEW_REFRESH)
    vast = granted(access_token="| :/" * 200_000 + NEW_ACCESS, error="teapot")
    yield R(16, "a_vast_token_of_specials", vast, InvalidTokenResponse, brings=NEW_REFRESH)
    only = {"id_token": NEW_ACCESS, "token_type": "Bearer", "expires_in": 3600}
    yield R(17, "id_token_only", only, InvalidTokenResponse, check=says("no access token"))
    both = only | {"refresh_token": NEW_REFRESH}
    yield R(17, "id_token_and_refresh_token", both, InvalidTokenResponse, brings=NEW_REFRESH)
    yield R(18, "bom", b"\xef\xbb\xbf" + json.dumps(granted()).encode(), check=refresh_is(NEW_REFRESH))
    yield R(19, "empty_200", b"", OutcomeUnknown, check=says("may be spent"))
    yield R(19, "blank_200", b" \r\n", OutcomeUnknown)
    yield R(19, "empty_201", b"", OutcomeUnknown, status=201)
    yield R(19, "204", b"", OutcomeUnknown, status=204)
    yield R(
        20, "html", HTML, InvalidTokenResponse, check=says("200; it begins: <!DOCTYPE html>", "Unavailable")
    )
    tokens = b"<?xml version='1.0'?><OAuth><access_token>short</access_token></OAuth>"
    yield R(20, "xml", tokens, InvalidTokenResponse, check=says_not("short", "OAuth>", "begins"))
    yield R(20, "not_json", b"OK", InvalidTokenResponse, check=says("not JSON"))


def rows_21_to_29() -> Iterator[R]:
    for status in (500, 501, 503, 521, 522, 523, 599, 408, 502, 504, 520, 524):
        want = OutcomeUnknown if status in (408, 502, 504, 520, 524) else TokenUnavailable
        for what, body in (("html", HTML), ("empty", b""), ("json", {"message": "oops"})):
            yield R(21, f"{status}_{what}", body, want, status=status, check=pause(None))
        want = OutcomeUnknown if want is OutcomeUnknown else RateLimited
        yield R(21, f"{status}_retry_after", b"", want, status, (("retry-after", "7"),), check=pause(7))
    rejected = {"error": "invalid_grant", "error_description": f"Token {REFRESH} is expired"}
    shown_as = code("invalid_grant", "invalid_grant (Token [redacted] is expired)")
    yield R(22, "400", rejected, GrantRejected, status=400, check=shown_as)
    yield R(22, "401", rejected, GrantRejected, status=401, check=shown_as)
    yield R(
        22, "of_a_code", rejected, GrantRejected, status=400, credential=BY_CODE, who=FORMS, check=shown_as
    )
    for status in (400, 401, 403):
        yield R(
            23,
            f"{status}_invalid_client",
            {"error": "invalid_client", "error_description": f"not with {REFRESH}"},
            ClientRejected,
            status=status,
            check=code("invalid_client", "Check the client's credentials"),
        )
    for name in ("unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_request"):
        yield R(23, name, {"error": name}, ClientRejected, status=400, check=code(name, name))
    for message in ("TOKEN_EXPIRED", "INVALID_REFRESH_TOKEN", "USER_DISABLED", "USER_NOT_FOUND"):
        body = identity_error(message)
        yield R(24, message, body, GrantRejected, status=400, who=OTO, check=code(message, f": {message}."))
    tail = identity_error("TOKEN_EXPIRED : The user must sign in again")
    yield R(24, "with_words", tail, GrantRejected, status=400, who=OTO, check=code("TOKEN_EXPIRED"))
    yield R(24, "invalid_grant", identity_error("invalid_grant"), GrantRejected, status=400)
    yield R(24, "unknown", identity_error("TEAPOT"), UnexplainedRefusal, status=400, check=says("TEAPOT"))
    yield R(24, "no_message", {"error": {}}, UnexplainedRefusal, status=400)
    wrong = {"success": False, "otoErrorCode": "OTO1083", "otoErrorMessage": "Refresh Token is required"}
    hint = code("OTO1083", "Refresh Token is required", "environment", "Settings → API Integrations")
    yield R(25, "OTO1083", wrong, GrantRejected, status=400, who=OTO, check=hint)
    in_text = {"success": False, "errorCode": "OTO1083", "errorMsg": "Refresh Token is required"}
    yield R(25, "OTO1083_as_errorCode", in_text, GrantRejected, status=400, who=OTO, check=hint)
    for status in (400, 401):
        yield R(26, f"{status}_empty", b"", UnexplainedRefusal, status=status, check=says("empty body"))
        yield R(26, f"{status}_html", HTML, UnexplainedRefusal, status=status, check=says("<!DOCTYPE html>"))
        yield R(26, f"{status}_text", b"No.", UnexplainedRefusal, status=status, check=says("No."))
    yield R(26, "empty_object", {}, UnexplainedRefusal, status=400)
    yield R(26, "409", b"", InvalidTokenResponse, status=409)
    latin = '{"error": "invalid_grant", "error_description": "Jeton expiré"}'.encode("latin-1")
    yield R(27, "description", latin, GrantRejected, status=400, check=says("Jeton expir�"))
    echo = '{"error": "teapot", "error_description": "a£b"}'.encode("latin-1")
    yield R(27, "unknown_code", echo, UnexplainedRefusal, status=400, check=says("teapot", "a�b"))
    for what, body in (("empty", b""), ("html", HTML), ("jwt", {"message": "Jwt is expired"})):
        yield R(29, f"403_{what}", body, ClientRejected, status=403, check=says("permissions"))
    yield R(29, "401_jwt", {"message": "Jwt is expired"}, ClientRejected, 401, check=says("permissions"))
    yield R(29, "404", b"", ClientRejected, status=404, check=says("base_url"))


def rows_30_to_40() -> Iterator[R]:
    limit = {"error": "Your API rate limit is exhausted", "limits": "450 in 300 s"}
    no_zone, gmt = "Thu, 15 Jun 2025 15:08:40", "Sun, 15 Jun 2025 15:08:40 GMT"
    for what, header, body, seconds in (
        ("header_seconds", "120", limit, 120.0),
        ("header_date", gmt, limit, 120.0),
        ("header_date_without_zone_and_wrong_weekday", no_zone, limit, 120.0),
        ("header_wins", "30", limit | {"retry-after": "90"}, 30.0),
        ("body_seconds", None, limit | {"retry-after": 90}, 90.0),
        ("body_date_without_zone_and_wrong_weekday", None, limit | {"retry-after": no_zone}, 120.0),
        ("odd_header_then_body", "soon", limit | {"retry-after": "90"}, 90.0),
        ("absent", None, limit, None),
        ("odd", "soon", limit | {"retry-after": []}, None),
        ("empty_body", None, b"", None),
        ("html", "45", HTML, 45.0),
    ):
        headers = (("date", DATE), *((("retry-after", header),) if header else ()))
        for status in (429, 503):
            want = TokenUnavailable if status == 503 and seconds is None else RateLimited
            yield R(30, f"{status}_{what}", body, want, status, headers, check=pause(seconds))
    late = (("date", "Sun, 15 Jun 2025 15:07:40 GMT"), ("retry-after", gmt))
    yield R(30, "by_the_server_s_own_clock", limit, RateLimited, 429, late, check=pause(60))
    broken = (("date", "yesterday"), ("retry-after", gmt))
    yield R(30, "by_our_clock_without_a_date", limit, RateLimited, 429, broken, check=pause(120))
    for name in ("OTO1143", "OTO1105"):
        body = {"success": False, "otoErrorCode": name, "otoErrorMessage": "slow down"}
        for status in (200, 400, 401, 403, 404, 429, 500, 503):
            yield R(31, f"{name}_{status}", body, RateLimited, status, who=OTO, check=pause(60))
        longer = (("retry-after", "90"),)
        yield R(31, f"{name}_longer", body, RateLimited, 400, longer, who=OTO, check=pause(90))
        shorter = (("retry-after", "5"),)
        yield R(31, f"{name}_shorter", body, RateLimited, 400, shorter, who=OTO, check=pause(60))
    for name, want in (("invalid_grant", GrantRejected), ("invalid_client", ClientRejected)):
        for status in (500, 502):
            yield R(32, f"{status}_{name}", {"error": name}, want, status)
        yield R(32, f"429_{name}", {"error": name}, RateLimited, 429, check=pause(None))
        yield R(32, f"503_{name}", {"error": name}, TokenUnavailable, 503, check=pause(None))
    for name in ("teapot", "server_error"):
        yield R(32, f"500_{name}", {"error": name}, TokenUnavailable, 500)
        yield R(32, f"502_{name}", {"error": name}, OutcomeUnknown, 502)
        yield R(32, f"503_{name}", {"error": name}, TokenUnavailable, 503)
    busy = {"error": "temporarily_unavailable"}
    yield R(32, "transient_code_behind_a_400", busy, TokenUnavailable, status=400, check=says(busy["error"]))
    elsewhere = (("location", f"https://evil.example/?t={NEW_ACCESS}"),)
    for status in (300, 301, 302, 303, 304, 307, 308):
        yield R(33, str(status), granted(), InvalidTokenResponse, status, elsewhere, check=says("redirect"))
    for what, body in (("array", [granted()]), ("string", NEW_ACCESS), ("null", b"null"), ("number", b"7")):
        yield R(34, what, body, InvalidTokenResponse, check=says("not an object"))
        yield R(34, f"{what}_400", body, UnexplainedRefusal, status=400)
    for depth in (2_000, 100_000):
        # Interpreters draw the line differently; a hundred thousand levels are too many for each.
        check = says("too deeply") if depth >= 100_000 else says("")
        yield R(35, f"nested_{depth}", nested(depth), InvalidTokenResponse, check=check)
        yield R(35, f"nested_{depth}_cut_off", b"[" * depth, InvalidTokenResponse)
        yield R(35, f"nested_{depth}_400", nested(depth), UnexplainedRefusal, status=400)
    yield R(35, "still_compressed", gzip.compress(json.dumps(granted()).encode()), InvalidTokenResponse)
    whole = json.dumps(granted(success=True, none=None, scope="é")).encode()
    for length in (1, 20, len(whole) // 2, whole.index(b"true") + 2, len(whole) - 1):
        yield R(36, f"cut_at_{length}", whole[:length], OutcomeUnknown, check=says("may be spent"))
    yield R(36, "a_rejection_cut_off", b'{"error": "invalid_gra', UnexplainedRefusal, status=400)
    yield R(36, "an_outage_cut_off", b'{"error": "ser', TokenUnavailable, status=500)
    for twice in ("access_token", "refresh_token", "extra"):
        body = json.dumps(granted(extra="1")).encode()[:-1] + f', "{twice}": "{NEW_ACCESS}"}}'.encode()
        yield R(38, twice, body, InvalidTokenResponse, check=says("same key twice"))
    yield R(38, "in_an_inner_object", raw(b'{"a": 1, "a": 2}'), InvalidTokenResponse)
    form = f"access_token={NEW_ACCESS}&token_type=bearer&expires_in=3600".encode()
    yield R(
        39,
        "form",
        form,
        InvalidTokenResponse,
        headers=(("content-type", "application/x-www-form-urlencoded"),),
    )
    for secret in (*CONFIGURED[:2], *ISSUED):
        for number, spelling in enumerate(sorted(spellings(secret))):
            for what, want, status, body in (
                ("html_200", InvalidTokenResponse, 200, b"<b>" + spelling.encode() + b"</b>"),
                ("html_400", UnexplainedRefusal, 400, b"<b>" + spelling.encode() + b"</b>"),
                ("text_503", TokenUnavailable, 503, b"echo: " + spelling.encode()),
                (
                    "description",
                    ClientRejected,
                    400,
                    {"error": "invalid_client", "error_description": spelling},
                ),
                ("code", UnexplainedRefusal, 400, {"error": spelling}),
                ("code_403", ClientRejected, 403, {"error": spelling}),
                ("beside_a_token", InvalidTokenResponse, 200, granted(error=spelling)),
            ):
                who = FORMS if secret == CLIENT_SECRET else ALL
                brings = NEW_REFRESH if what == "beside_a_token" else None
                name = f"{what}_echoes_{secret[:2]}_spelling_{number}"
                yield R(40, name, body, want, status, who=who, brings=brings)


NAMES = st.sampled_from(
    [
        "access_token",
        "refresh_token",
        "expires_in",
        "scope",
        "token_type",
        "error",
        "error_description",
        "message",
        "success",
        "ok",
        "otoErrorCode",
        "errorCode",
        "errorMsg",
        "retry-after",
        "validUntil",
    ]
)
CHARACTERS = st.characters(codec=None, exclude_categories=())  # lone surrogates included
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**13), 10**13)
    | st.floats()
    | st.text(CHARACTERS, max_size=20)
    | st.sampled_from([NEW_ACCESS, REFRESH, "bearer", "invalid_grant", "OTO1105", "60"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=8)

ROWS = [*rows_1_to_13(), *rows_14_to_20(), *rows_21_to_29(), *rows_30_to_40()]
CASES = [
    pytest.param(variant, provider, id=f"row_{variant.row:02}_{variant.what}-{provider}")
    for variant in ROWS
    for provider in variant.who
]


def outcome(provider: StrategyProvider, variant: R) -> Issued | TokenSessionError:
    """The token, or the error that the caller gets."""
    try:
        issued = read(provider, variant.token_response, variant.credential)
    except TokenSessionError as error:
        assert variant.brings is None
        return error
    if issued.problem is None:
        return issued
    assert issued.token.refresh_token == variant.brings
    assert_keeps_secrets(repr(issued))
    return issued.problem


@pytest.mark.parametrize(("variant", "provider"), CASES)
def test_each_row_has_its_outcome_and_no_error_shows_a_secret(variant: R, provider: str) -> None:
    result = outcome(PROVIDERS[provider](), variant)
    if variant.want is None:
        assert isinstance(result, Issued), result
        assert result.token.obtained_at == SENT_AT
        assert result.token.access_token == NEW_ACCESS
        assert_keeps_secrets(repr(result) + "".join(result.notes))
    else:
        assert type(result) is variant.want, result
        assert str(result).startswith(f"{provider}: the token endpoint answered {variant.status}")
        assert_keeps_secrets(shown(result))
    variant.check(result, provider)


def test_every_row_of_the_table_is_tested_here_or_elsewhere() -> None:
    here = {variant.row for variant in ROWS}
    assert here | ELSEWHERE.keys() == set(range(1, 41))
    assert {28, 37}.isdisjoint(here)
    tests = Path(__file__).parents[1]
    assert all((tests / place.partition(":")[0]).is_file() for place in ELSEWHERE.values())


def test_f24_only_a_rejection_asks_for_a_new_sign_in() -> None:
    """Transient errors, unreadable responses and configuration errors never ask for a new sign-in."""
    for variant in ROWS:
        for provider in variant.who:
            result = outcome(PROVIDERS[provider](), variant)
            if isinstance(result, SignInRequired):
                assert isinstance(result, GrantRejected)
                assert variant.want is GrantRejected


@pytest.mark.parametrize("provider", ALL)
def test_f24_the_next_token_request_has_the_refresh_token_that_works_now(provider: str) -> None:
    """The one that the response brought, or else the one that was sent. None is forgotten after an error."""

    async def main() -> None:
        for variant in ROWS:
            if provider in variant.who and variant.want is not None and variant.credential is BY_REFRESH:
                await fails_and_goes_on(PROVIDERS[provider](), variant)

    asyncio.run(main())


async def fails_and_goes_on(provider: StrategyProvider, variant: R) -> None:
    clock, transport = FakeClock(wall=SENT_AT), ScriptedTransport(variant.token_response)
    settings = {"store": MemoryStore(clock=clock), "clock": clock, "policy": Policy(retry_within=0)}
    async with ManagedSource(provider, transport, **settings) as source:
        with pytest.raises(variant.want or ()) as caught:
            await source.token()
        assert_keeps_secrets(shown(caught.value))
        transport.script(token_response(granted()))
        clock.advance(86_400)
        if isinstance(caught.value, GrantRejected) and caught.value.certain:
            with pytest.raises(GrantRejected):
                await source.token()
            assert len(transport.requests) == 1
            return
        assert (await source.token()).access_token == NEW_ACCESS
    expected = provider.request(Credential("refresh_token", variant.brings or REFRESH))
    assert transport.requests[1].body == expected.body


@settings(deadline=None, max_examples=150)
@given(
    provider=st.sampled_from(ALL),
    status=st.integers(200, 599),
    headers=st.dictionaries(st.sampled_from(["date", "retry-after", "location"]), st.text(max_size=40)),
    body=st.binary(max_size=60) | DOCUMENTS.map(lambda document: json.dumps(document).encode()),
    credential=st.sampled_from([BY_REFRESH, BY_CODE]),
)
def test_any_response_is_a_token_or_a_documented_error(
    provider: str, status: int, headers: dict[str, str], body: bytes, credential: Credential
) -> None:
    documented = (GrantRejected, ClientRejected, TokenUnavailable, InvalidTokenResponse)
    try:
        issued = read(PROVIDERS[provider](), TokenResponse(status, tuple(headers.items()), body), credential)
    except documented as error:
        assert_keeps_secrets(shown(error))
    else:
        assert issued.token.authorization.isascii()
        stored = decode(encode(TokenState(token=issued.token), NOW), NOW).token
        assert stored == replace(issued.token, obtained_at=NOW.wall)


def test_the_repr_of_a_response_shows_neither_body_nor_headers() -> None:
    answer = token_response(granted(), set_cookie=NEW_ACCESS)
    assert_keeps_secrets(repr(answer))
    assert repr(answer) == f"<TokenResponse 200 {len(answer.body)} bytes>"


def test_an_error_says_what_is_intact_and_what_to_do_next() -> None:
    for variant in ROWS:
        result = outcome(PROVIDERS[variant.who[0]](), variant)
        if isinstance(result, TokenSessionError):
            assert result.todo in str(result)
            assert result.intact in str(result)


def test_a_long_body_is_quoted_only_in_part() -> None:
    result = outcome(oauth2(), R(20, "long", b"word " * 200_000))
    assert isinstance(result, InvalidTokenResponse)
    assert len(str(result)) < 500


def test_a_form_encoded_response_is_read_if_the_strategy_says_so() -> None:
    provider = oauth2()
    provider.strategy = replace(provider.strategy, decode=_wire.parse_form)
    body = f"access_token={NEW_ACCESS.replace('|', '%7C')}&scope=&token_type=bearer&expires_in=3600".encode()
    issued = read(provider, token_response(body))
    assert issued.token.access_token == NEW_ACCESS
    assert issued.token.lifetime == 3600
    with pytest.raises(InvalidTokenResponse, match="same key twice"):
        read(provider, token_response(body + b"&scope=x"))


def test_a_scope_that_cannot_be_stored_does_not_cost_the_token() -> None:
    """A rotation succeeded, and the rest of the response must not lose it."""
    for scope, stored in (
        ("read write", "read write"),
        ("\ud800", None),
        ("a\0b", None),
        (7, None),
        ([], None),
    ):
        assert read(oauth2(), token_response(granted(scope=scope))).token.scope == stored


def test_a_token_at_a_dotted_path_is_redacted_too() -> None:
    provider = oauth2()
    strategy: Strategy = provider.strategy
    provider.strategy = replace(
        strategy, fields=replace(strategy.fields, access_token="data.token", codes=("data.code",))
    )
    secret = f"x{AWKWARD}y"
    body = {"data": {"token": secret, "code": "teapot"}, "error_description": secret, "error": True}
    with pytest.raises(InvalidTokenResponse) as caught:
        read(provider, token_response(body))
    assert caught.value.granted
    assert secret not in shown(caught.value)
    assert "teapot" in str(caught.value)
