"""The forty rows of hostile and unusual token responses, as each provider reads them.

`R(row, what, ...)` is one variant of one row of the table. `want` is the error's type, or None for a token.
`has` are attributes of the error or the token, and `says` are parts of the error's message. `brings` is the
refresh token that is stored in spite of the error.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from _known_secrets import (
    AWKWARD,
    BY_CODE,
    BY_REFRESH,
    CLIENT_SECRET,
    CONFIGURED,
    DATE,
    ISSUED,
    NEW_ACCESS,
    NEW_REFRESH,
    PROVIDERS,
    REFRESH,
    SENT_AT,
    assert_keeps_secrets,
    granted,
    oauth2_with,
    read,
    token_response,
)
from _shown import shown, spellings

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
from tokensession.errors import UnexplainedRefusal
from tokensession.policy import MAX_LIFETIME, Policy
from tokensession.providers import (
    RFC6749_ERRORS,
    Credential,
    ErrorKind,
    Issued,
    StrategyProvider,
    TokenResponse,
)
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

DEFAULT = {"oto": 1800.0, "priava": 21600.0, "oauth2": None}
"""The lifetime of a token whose response names none."""
ALL = tuple(PROVIDERS)


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
    has: dict[str, Any] = field(default_factory=dict)
    says: str | tuple[str, ...] = ()
    says_not: tuple[str, ...] = ()
    notes: bool = False
    brings: str | None = None

    @property
    def token_response(self) -> TokenResponse:
        return replace(token_response(self.body, self.status), headers=self.headers)


OTO = ("oto",)
FORMS = ("priava", "oauth2")
IN_BETWEEN = (408, 502, 504, 520, 524)
"""Statuses of a gateway that has given up: the token server may have carried the request out."""
TOKEN = f'"access_token": "{NEW_ACCESS}"'.encode()
HTML = (
    b"<!DOCTYPE html><html><head><title>Service Unavailable</title></head><body>"
    + f"<p>{REFRESH} & {NEW_ACCESS}</p>".encode()
    + b"<p>try</p>" * 500
)
JWT = {"message": "Jwt is expired", "code": 401}


def raw(value: bytes) -> bytes:
    """A good response with this expires_in, byte for byte."""
    return b"{" + TOKEN + b', "expires_in": ' + value + b"}"


def identity_error(message: str) -> dict[str, Any]:
    return {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def rows_1_to_3() -> Iterator[R]:
    for kind in ("text/plain;charset=iso-8859-1", "text/html"):
        yield R(1, kind, granted(), headers=(("content-type", kind),))
    yield R(1, "no_content_type", granted())
    for kind in ("Bearer", "BEARER", "bearer", "bEaReR", "", " Bearer", "Bearer \t", " "):
        yield R(2, f"type_{kind or 'empty'}", granted(token_type=kind))
    yield R(2, "absent", granted(token_type=None))
    says = "not a bearer token"
    for kind in ("mac", "DPoP", 7, ["Bearer"], {"a": 1}, True, "Bear er", "bearertoken"):
        wrong = granted(token_type=kind)
        yield R(3, f"type_{kind}", wrong, InvalidTokenResponse, says=says, brings=NEW_REFRESH)


def rows_4_to_9() -> Iterator[R]:
    for value in ("3600", 3600, 3600.0, " 3600 ", "3600.0", "\t3600\r\n", "+3600"):
        yield R(4, repr(value), granted(expires_in=value), has={"lifetime": 3600})
    yield R(5, "absent", granted(expires_in=None), has={"lifetime": DEFAULT})
    yield R(5, "null", raw(b"null"), has={"lifetime": DEFAULT})
    odd_text = ("1h", "3_600", "٣٦٠٠", "\uff13\uff16\uff10\uff10", "", " ", "0x10", "1e3", "9" * 41)
    for wrong in (*odd_text, True, False, [], [3600], {}):
        yield R(6, ascii(wrong)[:12], granted(expires_in=wrong), has={"lifetime": DEFAULT}, notes=True)
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b'"NaN"', b'"inf"'):
        yield R(7, number.decode(), raw(number), has={"lifetime": DEFAULT}, notes=True)
    for digits in (401, 5_000, 100_000):
        for number in (b"1" * digits, b"-" + b"1" * digits):
            says = f"{len(number)} digits"
            yield R(7, f"{says}_of_{digits}", raw(number), InvalidTokenResponse, says=says)
    yield R(7, "400_digits", raw(b"1" * 400), has={"lifetime": MAX_LIFETIME})
    for value in (0, -1, -(10**12), "0", "-5", 0.0, -0.0):
        ended = max(float(value), -MAX_LIFETIME)
        yield R(8, repr(value), granted(expires_in=value), has={"lifetime": ended})
    for value in (10**12, "1" + "0" * 12, 1e12, 10**30):
        yield R(9, repr(value), granted(expires_in=value), has={"lifetime": MAX_LIFETIME})


def rows_10_to_13() -> Iterator[R]:
    kept = {"refresh_token": REFRESH}
    yield R(10, "absent", granted(refresh_token=None), has=kept)
    yield R(10, "null", b"{" + TOKEN + b', "refresh_token": null}', has=kept)
    yield R(10, "empty", granted(refresh_token=""), has=kept)
    of_a_code, none = granted(refresh_token=None), {"refresh_token": None}
    yield R(10, "a_code_is_not_a_refresh_token", of_a_code, credential=BY_CODE, who=FORMS, has=none)
    for new in (NEW_REFRESH, "a b c"):
        yield R(11, f"new_{new[:3]}", granted(refresh_token=new), has={"refresh_token": new})
    for value in (None, "", 7, True, [NEW_ACCESS], {"a": NEW_ACCESS}, 1.5):
        missing, says = granted(access_token=value), "no access token"
        yield R(12, f"{value!r:.8}", missing, InvalidTokenResponse, says=says, brings=NEW_REFRESH)
        nothing = {name: text for name, text in missing.items() if name != "refresh_token"}
        yield R(12, f"{value!r:.8}_nor_a_refresh_token", nothing, InvalidTokenResponse, says=says)
    yield R(12, "null", b'{"access_token": null}', InvalidTokenResponse)
    for characters in ("\r\nX-Evil: 1", "\n", " ", "é", "\ud800", "\0", "\x7f", "\xa0", "😀"):
        what = ascii(characters)
        malformed = granted(access_token=NEW_ACCESS + characters + "x")
        yield R(13, what, malformed, InvalidTokenResponse, brings=NEW_REFRESH)
        alone = {"access_token": malformed["access_token"]}
        yield R(13, f"{what}_alone", alone, InvalidTokenResponse)
    # The one that works from now on is lost, even beside a good access token.
    tails = ("\r\nX-Evil: 1", "\n", "\t", "é", "\ud800", "\0", "\x7f", "\xa0", "😀")
    for odd in (*(NEW_REFRESH + tail for tail in tails), 7, ["r"], True):
        body, what = granted(refresh_token=odd), f"refresh_token_{ascii(odd)[-12:]}"
        yield R(13, what, body, InvalidTokenResponse, has={"granted": True})


def rows_14_to_20() -> Iterator[R]:
    denied = {"success": False, "errorCode": 5, "errorMsg": f"{REFRESH} is odd"}
    for number in (5, 1):
        unknown = denied | {"errorCode": number}
        yield R(14, f"code_{number}", unknown, InvalidTokenResponse, who=OTO, says=f": {number} ([")
    codes = {"OTO1083": GrantRejected, "OTO1105": RateLimited, "OTO9999": InvalidTokenResponse}
    for flag in (False, "false", "False"):
        for known, want in codes.items():
            body = denied | {"success": flag, "otoErrorCode": known, "otoErrorMessage": "no"}
            yield R(14, f"{flag!r}_{known}", body, want, who=OTO, says=known)
    yield R(14, "without_a_code", {"success": False}, InvalidTokenResponse)
    yield R(15, "ok_false", {"ok": False}, InvalidTokenResponse)
    yield R(15, "ok_false_text", {"ok": "false"}, InvalidTokenResponse)
    yield R(15, "ok_false_and_code", {"ok": False, "error": "invalid_grant"}, GrantRejected)
    yield R(15, "error", {"error": "invalid_grant"}, GrantRejected, has={"code": "invalid_grant"})
    yield R(15, "unknown_error", {"error": "teapot"}, InvalidTokenResponse, says="teapot")
    yield R(15, "error_object", {"error": {"a": 1}}, InvalidTokenResponse)
    yield R(15, "status_201", {"error": "invalid_client"}, ClientRejected, 201)
    says = ("200 with a token and an error", "Find out what the provider means")
    for beside in (
        *({"error": error} for error in ("teapot", {"code": 0}, True, "temporarily_unavailable")),
        *({"success": False}, {"ok": "false"}),
    ):
        what = str(beside)
        yield R(16, what, granted(**beside), InvalidTokenResponse, says=says, brings=NEW_REFRESH)
        kept = granted(refresh_token=None, **beside)
        yield R(16, f"{what}_without_refresh_token", kept, InvalidTokenResponse, says=says, brings=REFRESH)
    refused = {ErrorKind.CLIENT: ClientRejected, ErrorKind.RATE_LIMITED: RateLimited}
    for name, kind in RFC6749_ERRORS.items():
        if kind is not ErrorKind.TRANSIENT:
            yield R(16, name, granted(error=name), refused.get(kind, GrantRejected))
    for beside in ({"error": ""}, {"error": False}, {"error": {}}, {"success": True}, {"ok": "true"}):
        yield R(16, f"good_{beside}", granted(**beside))
    yield R(16, "good_null", json.dumps(granted() | {"error": None, "success": None}).encode())
    yield R(16, "oto_code", granted(otoErrorCode="OTO1083"), GrantRejected, who=OTO)
    for what, odd in (("lone_surrogate", "\ud800"), ("vast_specials", "| :/" * 200_000)):
        body = granted(access_token=odd + NEW_ACCESS, error="teapot")
        yield R(16, f"{what}_in_the_token", body, InvalidTokenResponse, brings=NEW_REFRESH)
    only = {"id_token": NEW_ACCESS, "token_type": "Bearer", "expires_in": 3600}
    yield R(17, "id_token_only", only, InvalidTokenResponse, says="no access token")
    both = only | {"refresh_token": NEW_REFRESH}
    yield R(17, "id_token_and_refresh_token", both, InvalidTokenResponse, brings=NEW_REFRESH)
    bom = b"\xef\xbb\xbf" + json.dumps(granted()).encode()
    yield R(18, "bom", bom, has={"refresh_token": NEW_REFRESH})
    for status, body in ((200, b""), (200, b" \r\n"), (201, b""), (204, b"")):
        yield R(19, f"{status}_{body!r}", body, OutcomeUnknown, status, says="may be spent")
    page = ("200; it begins: <!DOCTYPE html>", "Unavailable")
    for what, body, says in (
        ("html", HTML, page),
        ("html_bom", b"\xef\xbb\xbf \r\n<html>", ()),
        ("html_utf_16", "<html><body>".encode("utf-16"), ()),
    ):
        yield R(20, what, body, InvalidTokenResponse, says=says, has={"granted": False})
    tokens = b"<?xml version='1.0'?><OAuth><access_token>short</access_token></OAuth>"
    granted_perhaps = {"granted": True}
    hides = ("short", "OAuth>", "begins")
    yield R(20, "xml", tokens, InvalidTokenResponse, says_not=hides, has=granted_perhaps)
    for text in (b"OK", b"html"):
        yield R(20, text.decode(), text, InvalidTokenResponse, says="not JSON", has=granted_perhaps)


def rows_21_to_29() -> Iterator[R]:
    for status in (500, 501, 503, 505, 511, 521, 522, 523, 525, 599, *IN_BETWEEN):
        failure = OutcomeUnknown if status in IN_BETWEEN else TokenUnavailable
        for what, body in (("html", HTML), ("empty", b""), ("jwt", JWT)):
            for wait, seconds in ((None, None), ("soon", None), ("7", 7)):
                want = RateLimited if seconds and failure is TokenUnavailable else failure
                headers, has = (("retry-after", wait),) if wait else (), {"retry_after": seconds}
                yield R(21, f"{status}_{what}_{wait}", body, want, status, headers, has=has)
        for code in ("", "teapot", "server_error"):
            yield R(21, f"{status}_code_{code}", {"error": code}, failure, status)
    rejected = {"error": "invalid_grant", "error_description": f"Token {REFRESH} is expired"}
    shown_as: dict[str, Any] = {
        "has": {"code": "invalid_grant"},
        "says": "invalid_grant (Token [redacted] is expired)",
    }
    for status in (400, 401):
        yield R(22, str(status), rejected, GrantRejected, status, **shown_as)
    shown_as["says"] = (shown_as["says"], "call source.sign_in(...).")
    yield R(22, "of_a_code", rejected, GrantRejected, 400, credential=BY_CODE, who=FORMS, **shown_as)
    for status in (200, 400, 401, 403, 500):
        for name in ("invalid_client", "access_denied"):
            body = {"error": name, "error_description": f"not with {REFRESH}"}
            says = "Check the client's credentials" if name == "invalid_client" else name
            yield R(23, f"{status}_{name}", body, ClientRejected, status, has={"code": name}, says=says)
    for name in ("unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_request"):
        yield R(23, name, {"error": name}, ClientRejected, 400, has={"code": name}, says=name)
    for name in ("TOKEN_EXPIRED", "INVALID_REFRESH_TOKEN", "USER_DISABLED", "USER_NOT_FOUND"):
        body, has = identity_error(name), {"code": name}
        yield R(24, name, body, GrantRejected, 400, who=OTO, has=has, says=f": {name}.")
    tail = identity_error("TOKEN_EXPIRED : The user must sign in again")
    yield R(24, "with_words", tail, GrantRejected, 400, who=OTO, has={"code": "TOKEN_EXPIRED"})
    yield R(24, "invalid_grant", identity_error("invalid_grant"), GrantRejected, 400)
    yield R(24, "unknown", identity_error("TEAPOT"), UnexplainedRefusal, 400, says="TEAPOT")
    yield R(24, "no_message", {"error": {}}, UnexplainedRefusal, 400)
    hint = ("Refresh Token is required", "environment", "Settings → API Integrations")
    for code, text in (("otoErrorCode", "otoErrorMessage"), ("errorCode", "errorMsg")):
        body = {"success": False, code: "OTO1083", text: "Refresh Token is required"}
        yield R(25, code, body, GrantRejected, 400, who=OTO, has={"code": "OTO1083"}, says=hint)
    for status in (400, 401):
        for body, says in ((b"", "empty body"), (HTML, "<!DOCTYPE html>"), (b"No.", "No.")):
            yield R(26, f"{status}_{says}", body, UnexplainedRefusal, status, says=says)
    for document in ({}, {"message": "Bad Request"}, {"errors": [{"code": 7}]}):
        yield R(26, str(document), document, UnexplainedRefusal, 400)
    yield R(26, "409", b"", InvalidTokenResponse, 409)
    yield R(26, "long", b"word " * 200_000, UnexplainedRefusal, 400, says_not=("word " * 50,))
    latin = '{"error": "invalid_grant", "error_description": "Jeton expiré"}'.encode("latin-1")
    yield R(27, "description", latin, GrantRejected, 400, says="Jeton expir�")
    echo = '{"error": "teapot", "error_description": "a£b"}'.encode("latin-1")
    yield R(27, "unknown_code", echo, UnexplainedRefusal, 400, says=("teapot", "a�b"))
    for status, says in ((401, "permissions"), (403, "permissions"), (404, "base_url"), (405, "base_url")):
        for body in ({}, JWT, {"error": "teapot"}, *((b"", HTML) if status != 401 else ())):
            yield R(29, f"{status}_{body!s:.12}", body, ClientRejected, status, says=says)


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
            yield R(30, f"{status}_{what}", body, want, status, headers, has={"retry_after": seconds})
    for date, seconds in (("Sun, 15 Jun 2025 15:07:40 GMT", 60), ("yesterday", 120)):  # else: our clock
        headers, has = (("date", date), ("retry-after", gmt)), {"retry_after": seconds}
        yield R(30, f"by_the_server_s_date_{date}", limit, RateLimited, 429, headers, has=has)
    for name in ("OTO1143", "OTO1105"):
        body = {"success": False, "otoErrorCode": name, "otoErrorMessage": "slow down"}
        for status in (200, 400, 401, 403, 404, 429, 500, 503):
            for wait, seconds in ((), 60), ((("retry-after", "90"),), 90), ((("retry-after", "5"),), 60):
                what, has = f"{name}_{status}_{wait}", {"retry_after": seconds}
                yield R(31, what, body, RateLimited, status, wait, who=OTO, has=has)
    for name, want in (
        ("invalid_grant", GrantRejected),
        ("login_required", GrantRejected),
        ("invalid_client", ClientRejected),
        ("slow_down", RateLimited),
        ("server_error", TokenUnavailable),
        ("temporarily_unavailable", TokenUnavailable),
        ("teapot", TokenUnavailable),
    ):
        body = {"error": name}
        for status in (500, *IN_BETWEEN):
            unknown = want is TokenUnavailable and status in IN_BETWEEN
            yield R(32, f"{status}_{name}", body, OutcomeUnknown if unknown else want, status)
        if want is not RateLimited:
            yield R(32, f"429_{name}", body, RateLimited, 429, has={"retry_after": None})
            yield R(32, f"503_{name}", body, TokenUnavailable, 503, has={"retry_after": None})
    for status in IN_BETWEEN:
        pause, has = (("retry-after", "9"),), {"retry_after": 9}
        yield R(32, f"{status}_pause", {"error": "invalid_grant"}, OutcomeUnknown, status, pause, has=has)
    busy = "temporarily_unavailable"
    yield R(32, "transient_code_behind_a_400", {"error": busy}, TokenUnavailable, 400, says=busy)
    elsewhere = (("location", f"https://evil.example/?t={NEW_ACCESS}"),)
    for status in (300, 301, 302, 303, 304, 307, 308):
        yield R(33, str(status), granted(), InvalidTokenResponse, status, elsewhere, says="redirect")
    for what, body in (("array", [granted()]), ("string", NEW_ACCESS), ("null", b"null"), ("number", b"7")):
        yield R(34, what, body, InvalidTokenResponse, says="not an object")
        yield R(34, f"{what}_400", body, UnexplainedRefusal, 400)
    # Interpreters draw the line differently; a hundred thousand levels are too many for each.
    for depth, says in ((2_000, ""), (100_000, "too deeply")):
        yield R(35, f"nested_{depth}", nested(depth), InvalidTokenResponse, says=says)
        yield R(35, f"nested_{depth}_cut_off", b"[" * depth, InvalidTokenResponse)
        yield R(35, f"nested_{depth}_400", nested(depth), UnexplainedRefusal, 400)
    yield R(35, "still_compressed", gzip.compress(json.dumps(granted()).encode()), InvalidTokenResponse)
    whole = json.dumps(granted(success=True, none=None, scope="é")).encode()
    for length in (1, 20, len(whole) // 2, whole.index(b"true") + 2, len(whole) - 1):
        yield R(36, f"cut_at_{length}", whole[:length], OutcomeUnknown, says="may be spent")
    yield R(36, "a_rejection_cut_off", b'{"error": "invalid_gra', UnexplainedRefusal, 400)
    yield R(36, "an_outage_cut_off", b'{"error": "ser', TokenUnavailable, 500)
    for twice in ("access_token", "refresh_token", "extra"):
        body = json.dumps(granted(extra="1")).encode()[:-1] + f', "{twice}": "{NEW_ACCESS}"}}'.encode()
        yield R(38, twice, body, InvalidTokenResponse, says="same key twice", has={"granted": True})
    yield R(38, "in_an_inner_object", raw(b'{"a": 1, "a": 2}'), InvalidTokenResponse)
    form = f"access_token={NEW_ACCESS}&token_type=bearer&expires_in=3600".encode()
    declared = (("content-type", "application/x-www-form-urlencoded"),)
    yield R(39, "form", form, InvalidTokenResponse, headers=declared, has={"granted": True})
    for secret in (*CONFIGURED[:2], *ISSUED):
        who = FORMS if secret == CLIENT_SECRET else ALL
        for number, spelling in enumerate(sorted(spellings(secret))):
            page = b"<b>" + spelling.encode() + b"</b>"
            described = {"error": "invalid_client", "error_description": spelling}
            for what, want, status, body in (
                ("html", InvalidTokenResponse, 200, page),
                ("html", UnexplainedRefusal, 400, page),
                ("html", UnexplainedRefusal, 401, page),
                ("html", TokenUnavailable, 503, page),
                ("description", ClientRejected, 400, described),
                ("code", UnexplainedRefusal, 400, {"error": spelling}),
                ("code", ClientRejected, 403, {"error": spelling}),
            ):
                name = f"{what}_{status}_echoes_{secret[:2]}_spelling_{number}"
                yield R(40, name, body, want, status, who=who)
            name, beside = f"beside_a_token_{secret[:2]}_spelling_{number}", granted(error=spelling)
            yield R(40, name, beside, InvalidTokenResponse, who=who, brings=NEW_REFRESH)


PARTS = (rows_1_to_3, rows_4_to_9, rows_10_to_13, rows_14_to_20, rows_21_to_29, rows_30_to_40)
ROWS = [variant for part in PARTS for variant in part()]


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


@pytest.mark.parametrize(
    ("variant", "provider"),
    [
        pytest.param(variant, provider, id=f"row_{variant.row:02}_{variant.what}-{provider}")
        for variant in ROWS
        for provider in variant.who
    ],
)
def test_f24_each_row_has_its_outcome_and_only_a_rejection_asks_for_a_new_sign_in(
    variant: R, provider: str
) -> None:
    """An error shows no secret, says what is intact and what to do next, and only a rejection signs out."""
    result = outcome(PROVIDERS[provider](), variant)
    if isinstance(result, Issued):
        assert variant.want is None, result
        assert result.token.obtained_at == SENT_AT
        assert result.token.access_token == NEW_ACCESS
        assert ["expires_in" in note for note in result.notes] == [True] * variant.notes
        assert_keeps_secrets(repr(result) + "".join(result.notes))
    else:
        assert type(result) is variant.want, result
        assert isinstance(result, SignInRequired) == (variant.want is GrantRejected)
        text = str(result)
        assert text.startswith(f"{provider}: the token endpoint answered {variant.status}")
        for words in (variant.says,) if isinstance(variant.says, str) else variant.says:
            assert words in text
        assert not any(words in text for words in variant.says_not)
        assert result.intact in text
        assert result.todo in text
        assert_keeps_secrets(shown(result))
    seen = result.token if isinstance(result, Issued) else result
    for name, value in variant.has.items():
        assert getattr(seen, name) == (value[provider] if value is DEFAULT else value)


def test_every_row_of_the_table_is_tested_here_or_elsewhere() -> None:
    here = {variant.row for variant in ROWS}
    assert here | ELSEWHERE.keys() == set(range(1, 41))
    assert {28, 37}.isdisjoint(here)
    tests = Path(__file__).parents[1]
    assert all((tests / place.partition(":")[0]).is_file() for place in ELSEWHERE.values())


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


def test_a_token_at_a_dotted_path_is_redacted_too() -> None:
    provider = oauth2_with(fields={"access_token": "data.token", "codes": ("data.code",)})
    secret = f"x{AWKWARD}y"
    body = {"data": {"token": secret, "code": "teapot"}, "error_description": secret, "error": True}
    with pytest.raises(InvalidTokenResponse) as caught:
        read(provider, token_response(body))
    assert caught.value.granted
    assert secret not in shown(caught.value)
    assert "teapot" in str(caught.value)
