"""The fuzzer's inputs: real responses and records, grammars for them, and mutation.

Everything is drawn from one `random.Random`, so a seed determines a whole run.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import msgpack
from _hostile import ACCESS, HEAD, NUMBER, NUMBERS, PAD, PIECE, PIECES, PLANTABLE, ROTATED, SECRET

from tokensession._refresh.state import Failures, Now, Rejection, TokenState, encode
from tokensession.providers import Identity
from tokensession.stores._local.moment import Moment
from tokensession.stores.file import _encode
from tokensession.stores.protocol import Record
from tokensession.token import Token

Make = Callable[[Random], bytes]


def _planted(secret: str) -> str:
    """The instruction to write a secret as it is, as text that JSON's encoder does not change."""
    return bytes((SECRET, next(i for i, (name, _) in enumerate(PLANTABLE) if name == secret))).decode(
        "latin-1"
    )


_ACCESS, _ROTATED = _planted(ACCESS), _planted(ROTATED)
_GRANTED = {"access_token": _ACCESS, "refresh_token": _ROTATED, "token_type": "Bearer", "expires_in": 3600}
_CODES = (
    *("invalid_grant", "invalid_client", "slow_down", "OTO1105 : too many", "teapot", "server_error"),
    "login_required",
)


def _json(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("latin-1")


_BODIES: tuple[bytes, ...] = (
    *(_json(_GRANTED), _json(_GRANTED | {"expires_in": "3600", "success": "true"})),
    *(b"", b"{}", b"[]", b"null"),
    *(_json({"error": code, "error_description": "It is over."}) for code in _CODES),
    _json({"success": False, "otoErrorCode": "OTO1083", "otoErrorMessage": "No such token"}),
    _json({"data": {"access_token": _ACCESS, "validUntil": "2025-06-15T15:16:40Z"}}),
    _json({"accessToken": _ACCESS, "refreshToken": _ROTATED, "tokenType": "bearer", "expiresIn": 60}),
    _json({"error": {"code": 400, "message": "TOKEN_EXPIRED", "status": "INVALID_ARGUMENT"}}),
    _json({"error": f"quoted {_ACCESS}", "error_description": _ROTATED, "access_token": _ACCESS}),
    _json({"retry-after": "Sun, 15 Jun 2025 15:06:40", "error": "too many"}),
    _json(_GRANTED | {"error": "teapot"}),
    _json(_GRANTED | {"error": "server_error", "refresh_expires_in": 0}),
    _json(_GRANTED | {"token_type": "mac", "refresh_token_expires_in": "60"}),
    _json(_GRANTED | {"access_token": "two words", "success": False}),
    f"access_token={_ACCESS}&refresh_token={_ROTATED}&token_type=bearer&expires_in=3600".encode("latin-1"),
    b"error=invalid_grant&error_description=gone",
    b"<!doctype html><html><body><h1>502 Bad Gateway</h1>" + bytes([SECRET, 1]) + b"</body></html>",
    b'{"detail": "grant_type=refresh_token&refresh_token=' + bytes([SECRET, 7]) + b'"}',
    b'{"body": "' + bytes([SECRET, 4]) + b'"}',
)

_OLDEST = {  # format 1
    "format": 1,
    "seed": "66a3b15af1d2e6f9",
    "sign_in": "0f0e0d0c0b0a0908",
    "signed_out": False,
    "token": {
        "access_token": ACCESS,
        "obtained_at": 1_750_000_000.25,
        "lifetime": 3600.0,
        "refresh_token": ROTATED,
        "scope": None,
        "token_type": "Bearer",
    },
    "attempt": {"credential": "credential-1", "at": 1_750_003_000.5, "replays": 1},
    "rejection": {"credential": "credential-2", "code": "invalid_grant"},
}
_STATES = (
    msgpack.packb(_OLDEST),
    *(
        encode(state, Now(1_750_000_000.0, 0.0))
        for state in (
            TokenState(),
            TokenState(number=7, configured="s", signed_out=True),
            TokenState(
                number=2,
                generation=9,
                identity=Identity("oto", "production", "client-7", "https://api.example.com", "read write"),
                configured="66a3b15af1d2e6f9",
                superseded=("0f0e0d0c0b0a0908",),
                start="66a3b15af1d2e6f9",
                redeemed=(("66a3b15af1d2e6f9", -60.5),),
                token=Token(
                    ACCESS, 1_750_000_000.25, 3600.0, ROTATED, "read write", refresh_lifetime=86400.0
                ),
                obtained=-1800.25,
                problem="The access token is not a bearer token.",
                previous=ROTATED,
                failures=Failures("credential-1", 3, 1, 1, reason="got no answer", since=-9.0, until=30.0),
                rejections=(Rejection("credential-2", "invalid_grant", "request-1", until=900.0),),
                forced=1,
                force_at=-60.0,
                requests=2.5,
                requests_at=-3.0,
                more={"of_a_later_version": [1]},
            ),
            TokenState(token=Token(ACCESS, 7, None, None, None)),
        )
    ),
)
_FILES = tuple(
    _encode("oto/production/1", Record("v1", state), Moment(1_750_000_000.5, 99.25)) for state in _STATES
)
_MARKS = (
    b"1750000000.5 0123456789abcdef 120.0\n".ljust(128, b"\0"),
    b"1750000000.5 0123456789abcdef\n".ljust(128, b"\0"),
    *(b"nan x", b"-inf x", b"1e999", b"-1 v", b"1 v nan", b""),
)
_DATES = (
    *(b"Sun, 15 Jun 2025 15:06:40 GMT", b"Sunday, 15-Jun-25 15:06:40 GMT", b"Sun Jun 15 15:06:40 2025"),
    *(b"60", b"Wed, 31 Dec 9999 23:59:59 -2359", b"15 Jun 2025 15:06 +0200 (CEST)", b"1.5", b"-0"),
    b"Jun, 1 1 1:1:1",
)
_URLS = (
    *(b"\0///var/lib/tokens", b"\1///tokens.db", b"\1//user:<password>@host/x", b"\2", b"\0//[::1", b"\0%00"),
    *(b"\1///%ff%fe?x=<password>", b"\4\xed\xa0\x80", b"\7a/../b", b"\xffacme://:<password>@host", b"\1"),
    *(b"\x08//user:<password>@host:1/2?lease=3", b"\x09//:<password>@[::1]?prefix=a:&durability=fsync"),
    *(b"\x08//host:1/2?lease=3", b"\x09//host?prefix=%7B", b"\x08///2", b"\x08//h/<password>?a=<password>#b"),
    *(b"\x0a//user:<password>@host:1,[::1]:2/app?table=a.b", b"\x0a//u:<password>/@host/app?lease=1"),
    *(b"\x0a//h?listen=postgresql://u:<password>@h", b"\x0b///a?key_file=/a", b"\x0b///a?key_env=<password>"),
)
_PACKED = (gzip.compress(_BODIES[0]), zlib.compress(_BODIES[0]), gzip.compress(b" " * 9000), b"\x1f\x8b\x08")


_VALID: tuple[tuple[bytes, tuple[int, ...]], ...] = (
    *((body, (0, 1, 2, 3, 4)) for body in _BODIES[:2]),
    *((body, (0, 1, 3)) for body in _BODIES if body.startswith(b'{"error": "')),
    *((body, (5,)) for body in _BODIES if b"&" in body[:60]),
    *((body, (6,)) for body in _BODIES if body.startswith(b'{"data"')),
    *((body, (7,)) for body in _BODIES if body.startswith(b'{"accessToken"')),
    (b'{"access_token": "' + _ACCESS.encode("latin-1") + b'", "expires_in": \xfc\x0b}', (0, 1, 4)),
    (b'{"access_token": "' + _ACCESS.encode("latin-1") + b'", "scope": "\xfe\x1f"}', (0, 3)),
)
"""Bodies, and the numbers of the `_hostile.READERS` that can read them."""


def _instruction(random: Random) -> bytes:
    kind = random.choice((SECRET, PIECE, PIECE, NUMBER, PAD))
    count = {SECRET: len(PLANTABLE), PIECE: len(PIECES), NUMBER: len(NUMBERS), PAD: 99}[kind]
    return bytes((kind, random.randrange(count)))


def _value(random: Random, depth: int = 0) -> bytes:
    """A JSON value, rarely a malformed one."""
    draw = random.random()
    if draw < 0.3:
        return bytes((NUMBER, random.randrange(len(NUMBERS))))
    if draw < 0.7:
        code, instruction = random.choice(_CODES).encode(), _instruction(random)
        return b'"' + random.choice((b"", code, instruction, b"bearer", b"word ")) + b'"'
    if draw < 0.8 or depth > 2:
        return random.choice((b"true", b"false", b"null", b'"false"', b"tru", b"nul"))
    return _object(random, depth + 1) if draw < 0.93 else b"[" + _value(random, depth + 1) + b"]"


_NAMES = (
    *("access_token", "refresh_token", "token_type", "expires_in", "scope", "error", "error_description"),
    *("success", "ok", "otoErrorCode", "otoErrorMessage", "errorCode", "message", "retry-after", "data"),
    *("validUntil", "accessToken", "refreshToken", "tokenType", "expiresIn", "code", "error.message", "x"),
    "refresh_expires_in",
)


def _object(random: Random, depth: int = 0) -> bytes:
    names = random.sample(_NAMES, random.randrange(6))
    return b"{" + b", ".join(b'"%s": %s' % (name.encode(), _value(random, depth)) for name in names) + b"}"


def _body(random: Random) -> bytes:
    draw = random.random()
    if draw < 0.45:
        return random.choice(_BODIES)
    if draw < 0.9:
        return _object(random)
    return b"".join(_instruction(random) for _ in range(random.randrange(8)))


def _response(random: Random) -> bytes:
    """A response. Half of them come from a server that follows the reader's strategy."""
    head = bytearray(random.randbytes(HEAD))
    if random.random() < 0.5:
        return bytes(head) + _body(random)
    body, readers = random.choice(_VALID)
    head[0], head[1] = random.choice(readers), random.choice((0, 0, 0, 2))
    return bytes(head) + body


_PACKABLE = (  # values that msgpack can hold
    *(None, True, 0, -1, 2**64 - 1, 1.5, float("nan"), float("inf"), "", "text", "é" * 40, ACCESS, b"bytes"),
    *([], {}, [[ACCESS]], {"a": ACCESS}, msgpack.ExtType(7, ACCESS.encode()), msgpack.Timestamp(1, 1)),
)


def _map(documents: Sequence[bytes]) -> Make:
    """A stored map with a field changed, left out or added, two levels deep."""

    def make(random: Random) -> bytes:
        whole = random.choice(documents)
        if random.random() < 0.5:
            return whole
        document = msgpack.unpackb(whole)
        parent = document
        name = random.choice(list(parent))
        if isinstance(parent[name], dict) and random.random() < 0.7:
            parent = parent[name]
            name = random.choice(list(parent))
        if random.random() < 0.15:
            del parent[name]
        else:
            parent[name] = random.choice(_PACKABLE)
        return bytes(msgpack.packb(document))

    return make


def _one_of(seeds: Sequence[bytes]) -> Make:
    return lambda random: random.choice(seeds)


MAKE: dict[str, Make] = {
    "response": _response,
    "json": _body,
    "form": _body,
    "date": _one_of(_DATES),
    "text": _body,
    "record": _map(_STATES),
    "file": _map(_FILES),
    "mark": _one_of(_MARKS),
    "url": _one_of(_URLS),
    "inflate": _one_of(_PACKED),
}

_TOKENS = (
    *(b"\0", b"\xff\xff", b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"&", b"=", b"%"),
    *(b"\xc1", b"\xdf"),
    *(b"\xcb" + struct.pack(">d", float("nan")), b"\xce\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"9" * 20),
    *(b"\xed\xa0\x80", b"\r\n", "٣".encode(), b" GMT", b"+9999", b"\x81\xa1a" * 9, b"-"),
)


def mutated(random: Random, data: bytes) -> bytes:
    """The input with one to three changes. One in four is not changed."""
    if random.random() < 0.25:
        return data
    text = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(text) + 1)
        draw = random.randrange(8)
        if draw == 0 and at < len(text):
            text[at] ^= 1 << random.randrange(8)
        elif draw == 1 and at < len(text):
            text[at] = random.randrange(256)
        elif draw == 2:
            del text[at : at + random.choice((1, 2, 9, 999))]
        elif draw == 3:
            text[at:at] = random.choice(_TOKENS)
        elif draw == 4:
            text[at:at] = _instruction(random)
        elif draw == 5:
            text[at:at] = text[at : at + random.choice((1, 4, 40))] * random.choice((1, 2, 9))
        elif draw == 6:
            del text[at:]
        else:
            other = random.randrange(len(text) + 1)
            text[at:at] = text[other : other + 8]
    return bytes(text)


def inputs(name: str, seed: int) -> Callable[[], bytes]:
    """The endless inputs of a target, one for each call."""
    random, make = Random(f"{seed}/{name}"), MAKE[name]
    return lambda: mutated(random, make(random))


def write_corpus(name: str, directory: Path) -> None:
    """Write some of a target's inputs without mutation, for a fuzzer that mutates them itself."""
    random = Random(f"seeds/{name}")
    for number in range(200):
        (directory / f"seed-{number:03}").write_bytes(MAKE[name](random))
