"""Makes a hostile token response from a few bytes, with whole secrets planted in many spellings.

The bytes 0xF8 to 0xFF never occur in UTF-8 text, so some of them are instructions: "a secret comes here",
"a piece of a real response", "far along in the body". A fuzzer that knows nothing of OAuth changes bytes and
gets responses. It can cut or damage anything except a planted secret, because we do not promise to hide
half a secret that the server never had. `shows_a_secret` knows every spelling that is planted.
"""

from __future__ import annotations

import base64
import html
import json
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

from tokensession.providers import (
    Credential,
    Fields,
    OAuth2,
    Oto,
    Priava,
    Strategy,
    StrategyProvider,
    TokenResponse,
    _wire,
    expires_at,
    expires_in,
)

REFRESH = 'r1/0gQx7 Wv%2B&k"é\\Zm4+tN8=cE5y'
CLIENT_SECRET = "cs~5Hd;Lp9<Gu>3Yb'Te(6Ks)Fw,8Xa"
CODE = "4/P7_q-Rz?Vn#2Ju{Mi}1Od[Ge]0Bh"
WORDS = "correct_horse_battery_staple"  # looks like an error code
CONFIGURED = (REFRESH, CLIENT_SECRET, CODE, WORDS)
ACCESS = "at.K3fQ9sW2-xL7vB4nM8cZ1yR6tD5"
ROTATED = "nr~H2jP8gV5kC1wN9bX4zS7qF3mT6"

SECRET, PIECE, PAD, NUMBER = 0xFF, 0xFE, 0xFD, 0xFC
"""Instructions. Each takes the next byte: which secret, which piece, how far, which number."""

_TOKEN_URL = "https://id.example.com/token"
_REFRESH, _CODE = Credential("refresh_token", REFRESH), Credential("authorization_code", CODE)
_SAFE = Credential("refresh_token", CODE)

_GRANTS = {"refresh_token": ("grant_type", "refresh_token", "client_secret")}
_FORM = Strategy(name="form", grants=_GRANTS, decode=_wire.parse_form)
_NESTED = Strategy(
    name="nested",
    grants=_GRANTS,
    fields=Fields(access_token="data.access_token", codes=("error.message", "error.code", "error")),
    lifetime=expires_at("data.validUntil"),
    default_lifetime=60,
)
_CAMEL = Strategy(
    name="camel",
    grants=_GRANTS,
    fields=Fields(access_token="accessToken", refresh_token="refreshToken", token_type="tokenType"),
    lifetime=expires_in("expiresIn"),
)


def _client(strategy: Strategy, secret: str, credential: Credential) -> StrategyProvider:
    return StrategyProvider(
        strategy,
        identity="client-7",
        base_url="https://api.example.com",
        token_url=_TOKEN_URL,
        values={"client_id": "client-7", "client_secret": secret},
        credential=credential,
    )


def _oauth2(secret: str, **credential: str) -> OAuth2:
    return OAuth2(token_url=_TOKEN_URL, client_id="client-7", client_secret=secret, **credential)


def _priava(**credential: str) -> Priava:
    redirect = "https://my.app.com/oauth2callback"
    return Priava(
        client_id="client-7", client_secret=CLIENT_SECRET, redirect_uri=redirect, region="EU", **credential
    )


READERS: tuple[tuple[StrategyProvider, Credential, frozenset[str]], ...] = tuple(
    (provider, credential, frozenset(provider._secrets(credential)))
    for provider, credential in (
        (Oto(refresh_token=REFRESH), _REFRESH),
        (_priava(refresh_token=REFRESH), _REFRESH),
        (_priava(code=CODE), _CODE),
        (_oauth2(CLIENT_SECRET, refresh_token=REFRESH), _REFRESH),
        (_oauth2(WORDS, code=CODE), _CODE),
        # No "&" in these secrets: a form that echoes one as it is would have half a secret in its field.
        (_client(_FORM, WORDS, _SAFE), _SAFE),
        (_client(_NESTED, CLIENT_SECRET, _REFRESH), _REFRESH),
        (_client(_CAMEL, CLIENT_SECRET, _REFRESH), _REFRESH),
    )
)
"""Who reads a response, to which credential, and the secrets that must not be shown of it."""


def spellings(secret: str) -> tuple[bytes, ...]:
    """The secret as it may appear in a body."""
    utf8, escaped = secret.encode(), json.dumps(secret)[1:-1]
    ways = (
        *(secret, escaped, json.dumps(secret, ensure_ascii=False)[1:-1], escaped.replace("/", "\\/")),
        json.dumps(json.dumps(secret))[3:-3],  # a document in a string of another
        json.dumps(json.dumps(secret).replace("/", "\\/"))[3:-3],
        *(quote(secret), quote(secret, safe=""), quote(secret, safe="").lower(), quote_plus(secret)),
        quote(quote(secret, safe=""), safe=""),
        *(html.escape(secret), html.escape(escaped), repr(utf8)[2:-1], utf8.hex()),
        *(base64.b64encode(before + utf8).decode() for before in (b"", b"c:", b"abc:")),
        base64.urlsafe_b64encode(utf8).decode(),
        utf8.decode("latin-1"),
    )
    return (*(way.encode() for way in ways), secret.encode("utf-16-le"), secret.encode("utf-16-be"))


PLANTABLE: tuple[tuple[str, bytes], ...] = tuple(
    (secret, way) for secret in (*CONFIGURED, ACCESS, ROTATED) for way in spellings(secret)
)

_SHORTEST = 12  # characters of a secret (or of a spelling of it) that make a leak


def _windows(text: str) -> list[str]:
    return [text[i : i + _SHORTEST] for i in range(len(text) - _SHORTEST + 1)]


def _as_shown(spelling: bytes) -> str:
    text = spelling.decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


_PARTS: dict[str, str] = {
    window: secret
    for secret in (*CONFIGURED, ACCESS, ROTATED)
    for way in (secret, *map(_as_shown, spellings(secret)))
    for window in _windows(way)
}


def shows_a_secret(text: str) -> str | None:
    """The secret of which the text contains twelve characters in a row, in any of the spellings."""
    windows = _windows(text)
    if _PARTS.keys().isdisjoint(windows):
        return None
    return next(_PARTS[window] for window in windows if window in _PARTS)


PIECES = tuple(
    piece.encode()
    for piece in (
        *('{"access_token": "', '", "refresh_token": "', '", "token_type": "Bearer"', ', "expires_in": '),
        *(f'{{"access_token": "{ACCESS}", "token_type": "bearer"', f', "refresh_token": "{ROTATED}"'),
        *(f'{{"data": {{"access_token": "{ACCESS}", "validUntil": ', f'{{"accessToken": "{ACCESS}"'),
        *(f"access_token={ACCESS}&token_type=bearer", f"&refresh_token={ROTATED}&expires_in="),
        *('{"error": "', '", "error_description": "', '{"error": {"message": "', '"}}', '"}', "}", '"'),
        *('{"success": false, "otoErrorCode": "', '", "otoErrorMessage": "', '{"ok": false, "error": "'),
        *('"success": "false"', ', "scope": "', ', "retry-after": ', ', "expiresIn": ', ": ", ", ", "null"),
        *("invalid_grant", "invalid_client", "slow_down", "OTO1105 : ", "OTO1083", "TOKEN_EXPIRED", "true"),
        *("<!doctype html><html><body>", "<pre>", "grant_type=refresh_token&refresh_token=", "Basic "),
        *("error=invalid_grant&error_description=", "\ufeff", "\\u", "\\ud800", '\\"', "\0", "\r\n", "é"),
        *("[" * 60, '{"a":' * 60, "[" * 1100, "]" * 60, "}" * 60, "9" * 401),
        *("word " * 40, "A" * 15, "a" * 16),
        *("<b>", "&amp;", "%", "\u202e", "\u2028", "Sun, 15 Jun 2025 15:06:40 GMT", "2025-06-15T15:16:40Z"),
    )
)

NUMBERS = tuple(
    number.encode()
    for number in (
        *("3600", '"3600"', "0", "-1", "1e3", "1e999", "-1e999", "NaN", "Infinity", "-0.0", "1750000600"),
        *("1750000600000", "9" * 40, "9" * 400, "-" + "9" * 399, "true", '"1_0"', '"٣"', '" 60 "'),
        *("[]", "{}"),
        *("1e15", "1e-400", "0.1", "9007199254740993", '"60s"', '""', "null", '"nan"', "1e308", "5e324"),
    )
)

STATUSES = (200, 200, 400, 401, 200, 403, 429, 500, 503, 302, 201, 204, 404, 405, 408, 100, 0, 999, 422, 502)

_DATES = (
    *("Sun, 15 Jun 2025 15:06:40 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 +2359"),
    *("Sun, 15 Jun 2025 15:06:40", "", "x", "1 Jan 1 1:1:1 +9999999999", "Sun, 15-Jun-25 15:06:40 GMT"),
    *("2025-06-15T15:06:40Z", "\ud800", "Thu, 01 Jan 1970 00:00:00 -0000", "9" * 64),
    "Mon, 99 Foo 2025 1:1:1",
)
_PAUSES = ("60", "0", "-5", "1e9", "nan", " 7 ", "9" * 41, "٣", *_DATES)
_TYPES = ("application/json", "text/html; charset=utf-16", "application/x-www-form-urlencoded", "")


@dataclass(frozen=True)
class Hostile:
    """A response made of bytes, the provider that reads it, and the secrets that its body may have."""

    provider: StrategyProvider
    credential: Credential
    response: TokenResponse
    planted: frozenset[str]


HEAD = 6  # bytes before the body: reader, status, headers, date, pause, content type


def hostile(data: bytes) -> Hostile:
    """The response that these bytes stand for. Any bytes stand for one."""
    reader, status, present, date, pause, kind = data[:HEAD].ljust(HEAD, b"\0")
    provider, credential, own = READERS[reader % len(READERS)]
    headers = [
        ("date", _header(_DATES, date, data)),
        ("retry-after", _header(_PAUSES, pause, data)),
        ("content-type", _TYPES[kind % len(_TYPES)]),
        ("set-cookie", f"session={ACCESS}"),
    ]
    body = expanded(data[HEAD:], own | {ACCESS, ROTATED})
    chosen = tuple(header for bit, header in enumerate(headers) if present >> bit & 1)
    return Hostile(provider, credential, TokenResponse(STATUSES[status % len(STATUSES)], chosen, body), own)


def _header(table: tuple[str, ...], number: int, data: bytes) -> str:
    if number >= 0xF0:  # a part of the input itself, as aiohttp would decode it
        return data[HEAD : HEAD + 4 * (number & 15)].decode("utf-8", "surrogateescape")
    return table[number % len(table)]


def expanded(data: bytes, secrets: frozenset[str]) -> bytes:
    """The text with its instructions carried out. Only these secrets are planted."""
    body = bytearray()
    instructions = iter(data)
    for byte in instructions:
        if byte < 0xF8:
            body.append(byte)
            continue
        number = next(instructions, 0)
        if byte == SECRET:
            secret, way = PLANTABLE[number % len(PLANTABLE)]
            body += way if secret in secrets else b""
        elif byte == PIECE:
            body += PIECES[number % len(PIECES)]
        elif byte == NUMBER:
            body += NUMBERS[number % len(NUMBERS)]
        elif byte == PAD:  # so that the next bytes lie across the end of the excerpt
            body += b" " * max(0, 4096 - 2 * number - len(body))
        else:
            body.append(byte)
    return bytes(body)
