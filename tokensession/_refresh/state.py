"""The stored state: everything known about one key, and the bytes it is stored as.

A store holds these bytes and does not look inside. They are a msgpack map with a format number. Every
field is checked when it is read back, because another version, another program or a bad disk may have
written it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgpack

from ..errors import StoreCorrupt
from ..token import Token

__all__ = ["FORMAT", "Attempt", "Rejection", "TokenState", "decode", "encode"]

FORMAT = 1
_MAX_BYTES = 4 * 1024 * 1024  # four times the largest token response that is read


@dataclass(frozen=True, slots=True)
class Attempt:
    """A token request whose outcome is unknown.

    `credential` is the fingerprint of the refresh token (or code) that was sent. `at` is when, in seconds
    of the wall clock. `replays` counts how often it has been sent again since (0 or 1).
    """

    credential: str
    at: float
    replays: int = 0


@dataclass(frozen=True, slots=True)
class Rejection:
    """The provider rejected this refresh token or code. Stored so that it is never sent again."""

    credential: str
    code: str


@dataclass(frozen=True, slots=True)
class TokenState:
    """What is stored under a key.

    `configured` is the fingerprint of the configured credential that this state descends from ("" if
    there is none). If your configuration still has that credential, the stored state wins, because it has
    rotated since. If it has another one, you have signed in again, and the configuration wins.

    `sign_in` identifies the latest sign-in that this state descends from: the fingerprint of its first
    access token ("" if there was none).
    """

    configured: str = ""
    token: Token | None = None
    attempt: Attempt | None = None
    rejection: Rejection | None = None
    signed_out: bool = False
    sign_in: str = ""

    @property
    def origin(self) -> tuple[str, str]:
        """What it descends from. A refresh does not change it."""
        return self.configured, self.sign_in


def encode(state: TokenState) -> bytes:
    """The state as bytes, in the current format."""
    token, attempt, rejection = state.token, state.attempt, state.rejection
    data: bytes = msgpack.packb(
        {
            "format": FORMAT,
            "seed": state.configured,
            **({"sign_in": state.sign_in} if state.sign_in else {}),
            "signed_out": state.signed_out,
            "token": token
            and {
                "access_token": token.access_token,
                "obtained_at": token.obtained_at,
                "lifetime": token.lifetime,
                "refresh_token": token.refresh_token,
                "scope": token.scope,
                "token_type": token.token_type,
            },
            "attempt": attempt
            and {"credential": attempt.credential, "at": attempt.at, "replays": attempt.replays},
            "rejection": rejection and {"credential": rejection.credential, "code": rejection.code},
        }
    )
    return data


def decode(data: bytes) -> TokenState:
    """The state in these bytes. Raises `StoreCorrupt`, which names the field and never its value."""
    try:
        return _decoded(data)
    except StoreCorrupt as error:
        # Drop the frames that read the record: some programs report the locals of every frame.
        del data
        raise error.with_traceback(None)  # noqa: B904 - the same error, not a new one


def _decoded(data: bytes) -> TokenState:
    if len(data) > _MAX_BYTES:
        raise StoreCorrupt(f"The stored record is {len(data)} bytes long; at most {_MAX_BYTES} are read.")
    problem = ""
    try:
        document = msgpack.unpackb(data, strict_map_key=True)
    # msgpack's exceptions share no base class narrower than these two.
    except (ValueError, msgpack.UnpackException) as error:
        problem = type(error).__name__
    if problem:  # outside the handler: some of those exceptions hold what was read, tokens included
        raise StoreCorrupt(f"The stored record is not msgpack ({problem}).")
    fields = _Fields(document, "record")
    found = fields.get("format", int)
    if found != FORMAT:
        raise StoreCorrupt(
            f"The stored record has format {found}; this version reads format {FORMAT}.",
            todo="Use the version of tokensession that wrote it, or sign in again.",
        )
    token, attempt, rejection = fields.map("token"), fields.map("attempt"), fields.map("rejection")
    return TokenState(
        configured=fields.get("seed", str),
        sign_in=fields.get("sign_in", str) if "sign_in" in fields else "",
        signed_out=fields.get("signed_out", bool),
        token=_token(token) if token else None,
        attempt=_attempt(attempt) if attempt else None,
        rejection=_rejection(rejection) if rejection else None,
    )


def _token(fields: _Fields) -> Token:
    return Token(
        access_token=fields.get("access_token", str),
        obtained_at=fields.number("obtained_at"),
        lifetime=None if fields.get("lifetime") is None else fields.number("lifetime"),
        refresh_token=fields.text_or_none("refresh_token"),
        scope=fields.text_or_none("scope"),
        token_type=fields.get("token_type", str),
    )


def _attempt(fields: _Fields) -> Attempt:
    return Attempt(fields.get("credential", str), fields.number("at"), fields.get("replays", int))


def _rejection(fields: _Fields) -> Rejection:
    return Rejection(fields.get("credential", str), fields.get("code", str))


class _Fields:
    """A map that checks the type of each value you read. Raises `StoreCorrupt`."""

    def __init__(self, document: Any, name: str) -> None:
        if not isinstance(document, dict):
            raise StoreCorrupt(f"The stored {name} is not a map.")
        self._document = document
        self._name = name

    def __contains__(self, field: str) -> bool:
        return field in self._document

    def get(self, field: str, kind: type | None = None) -> Any:
        try:
            value = self._document[field]
        except KeyError:
            raise StoreCorrupt(f"The stored {self._name} lacks {field!r}.") from None
        # type(), not isinstance(): to Python, True is an int.
        if kind is not None and type(value) is not kind:
            raise StoreCorrupt(f"The stored {self._name} has a {field!r} of the wrong type.")
        return value

    def number(self, field: str) -> float:
        value = self.get(field)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise StoreCorrupt(f"The stored {self._name} has a {field!r} that is not a number.")
        return float(value)

    def text_or_none(self, field: str) -> str | None:
        text: str | None = None if self.get(field) is None else self.get(field, str)
        return text

    def map(self, field: str) -> _Fields | None:
        value = self.get(field)
        return None if value is None else _Fields(value, field)
