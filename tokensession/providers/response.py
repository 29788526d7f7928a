"""Reads a token response: a token, or a typed error. Pure.

The order of checks in `read` matters:

1. A redirect is an error: token requests follow none.
2. A status other than 2xx is an error, whether or not the body can be read. If it says to wait (429, 503, a
   `Retry-After`), that counts, whatever error code the body has.
3. An empty or truncated 2xx is a lost response: the refresh token may be spent.
4. A 2xx that contains an error code or a false flag is an error, whatever else it contains.
5. Anything else must contain a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .._redact import excerpt
from ..errors import (
    ClientRejected,
    GrantRejected,
    InvalidTokenResponse,
    OutcomeUnknown,
    RateLimited,
    TokenSessionError,
    TokenUnavailable,
)
from ..policy import RATE_LIMIT_PAUSE
from ..token import Token
from . import _wire
from .protocol import Credential, Issued, TokenResponse
from .strategy import ErrorKind, Strategy

__all__ = ["read"]

_BEFORE_TEXT = b"\xef\xbb\xbf\xff\xfe \t\r\n\f\v"  # byte order marks and white space
_LONGEST_REFUSAL = 64 * 1024  # bytes of a refusal that are parsed: reading a megabyte takes 50 ms


@dataclass(frozen=True, slots=True)
class _Answer:
    """A response that is being read, with everything an error message needs."""

    strategy: Strategy
    response: TokenResponse
    secrets: tuple[str, ...]
    now: float
    document: Mapping[str, Any] = field(default_factory=dict)

    def say(self, what: str) -> str:
        return f"{self.strategy.name}: the token endpoint answered {self.response.status}{what}."

    def is_page(self) -> bool:
        """Whether it is an HTML page: it comes from something in between, not from the token server."""
        text = self.response.body[:4096].replace(b"\0", b"")  # UTF-16 has a NUL for each letter
        text = text.lstrip(_BEFORE_TEXT)
        return text.startswith(b"<") and (b"<html" in text.lower() or b"<!doctype html" in text.lower())

    def excerpt(self) -> str:
        body = self.response.body
        if 200 <= self.response.status < 300 and not self.is_page():
            return ""  # it may be a token in a form that we cannot recognize and redact
        text = excerpt(body, self.secrets)
        if text or body.strip():
            return f"; it begins: {text}" if text else ""
        return " with an empty body"

    def shown(self, code: str) -> str:
        """An error code for people. One from the strategy's table is not a secret, whatever it looks like."""
        if code in self.strategy.errors:
            return code
        return excerpt(code.encode("utf-8", "replace"), self.secrets, longest=64)

    def first(self, paths: Sequence[str]) -> Any:
        found = (_wire.find(self.document, path) for path in paths)
        return next((value for value in found if value is not None), None)

    def codes(self) -> list[str]:
        found = (_wire.find(self.document, path) for path in self.strategy.fields.codes)
        return [str(value) for value in found if type(value) in (str, int) and value != ""]

    def known(self) -> tuple[str, ErrorKind] | None:
        """The first error code in the strategy's table. Some servers add text: "CODE : more words"."""
        for code in self.codes():
            for name in (code, code.split(" ", 1)[0]):
                if name in self.strategy.errors:
                    return name, self.strategy.errors[name]
        return None

    def contains_error(self) -> bool:
        """Whether a response with a 2xx status contains an error."""
        flags = (_wire.find(self.document, path) for path in self.strategy.fields.flags)
        denied = any(flag is False or (isinstance(flag, str) and flag.lower() == "false") for flag in flags)
        return denied or bool(self.document.get("error")) or self.known() is not None

    def is_bearer(self, token_type: object) -> bool:
        names = {name.strip().lower() for name in ("bearer", "", *self.strategy.bearer_types)}
        return isinstance(token_type, str) and token_type.strip().lower() in names

    def pause(self) -> float | None:
        """How many seconds the server asks us to wait: by the first readable header or field."""
        headers = (value for name, value in self.response.headers if name == "retry-after")
        fields = (_wire.find(self.document, path) for path in self.strategy.fields.retry_after)
        requested = (_wire.retry_after(value, self.now) for value in (*headers, *fields))
        return next((max(0.0, seconds) for seconds in requested if seconds is not None), None)


def read(
    strategy: Strategy,
    response: TokenResponse,
    credential: Credential,
    *,
    sent_at: float,
    secrets: tuple[str, ...],
    scope: str | None = None,
) -> Issued:
    """The token in the response to a request sent at `sent_at` (wall clock). Raises a typed error.

    `scope` is what was requested: a response without a scope grants that (RFC 6749, 5.1).
    """
    date = _wire.parse_http_date(response.header("date"))
    answer = _Answer(strategy, response, secrets, sent_at if date is None else date)
    if 300 <= response.status < 400:
        raise InvalidTokenResponse(
            answer.say(", a redirect, and token requests follow no redirect"),
            todo="Set base_url (or token_url) to the new address.",
        )
    if not 200 <= response.status < 300:
        _fail(_parsed(answer, lenient=True))
    if not response.body.strip():
        raise OutcomeUnknown(answer.say(" with an empty body, so the refresh token may be spent"))
    answer = _parsed(answer, lenient=False)
    if answer.contains_error():
        _fail(answer)
    return _issued(answer, credential, sent_at, scope)


def _parsed(answer: _Answer, *, lenient: bool) -> _Answer:
    """The answer with its document. With `lenient`, without one if the body is too long or cannot be read."""
    if lenient and len(answer.response.body) > _LONGEST_REFUSAL:
        return answer
    try:
        document = answer.strategy.decode(answer.response.body)
    except _wire.TruncatedResponse:
        if lenient:
            return answer
        raise OutcomeUnknown(
            answer.say(" and the body is truncated, so the refresh token may be spent")
        ) from None
    except InvalidTokenResponse as error:
        if lenient:
            return answer
        raise InvalidTokenResponse(
            f"{answer.say(answer.excerpt())} {error.args[0]}", granted=not answer.is_page()
        ) from None
    return _Answer(
        answer.strategy, answer.response, answer.secrets + _tokens(answer, document), answer.now, document
    )


def _tokens(answer: _Answer, document: Mapping[str, Any]) -> tuple[str, ...]:
    """The tokens in the response itself: an error must not show them."""
    names = (answer.strategy.fields.access_token, answer.strategy.fields.refresh_token)
    found = (_wire.find(document, path) for path in names)
    return tuple(value for value in found if isinstance(value, str))


def _issued(answer: _Answer, credential: Credential, sent_at: float, requested: str | None) -> Issued:
    document, names = answer.document, answer.strategy.fields
    try:
        access = _wire.access_token(_wire.find(document, names.access_token))
        refresh = _wire.refresh_token(_wire.find(document, names.refresh_token))
    except InvalidTokenResponse as error:
        raise InvalidTokenResponse(f"{answer.say('')} {error.args[0]}", granted=True) from None
    token_type = _wire.find(document, names.token_type)
    if token_type is not None and not answer.is_bearer(token_type):
        raise InvalidTokenResponse(
            answer.say(" with a token that is not a bearer token"),
            granted=True,
            todo="Only bearer tokens are supported.",
        )
    scope = _wire.find(document, names.scope)
    lifetime, note = answer.strategy.lifetime(document, answer.now)
    return Issued(
        Token(
            access_token=access,
            obtained_at=sent_at,
            lifetime=answer.strategy.default_lifetime if lifetime is None else lifetime,
            # Without a new refresh token the old one stays valid. A code is spent.
            refresh_token=refresh
            or (credential.secret if credential.grant_type == "refresh_token" else None),
            scope=_wire.scope(requested if scope is None else scope),
        ),
        notes=(f"{answer.strategy.name}: {note}",) if note else (),
    )


def _fail(answer: _Answer) -> NoReturn:
    raise _failure(answer)


def _failure(answer: _Answer) -> TokenSessionError:
    """The typed error for a response without a token."""
    status, known, pause = answer.response.status, answer.known(), answer.pause()
    code, kind = known or (next(iter(answer.codes()), ""), None)
    shown = answer.shown(code)
    said = answer.say(_quoted(answer, shown) if code else answer.excerpt())
    if kind is ErrorKind.RATE_LIMITED:
        return RateLimited(said, retry_after=max(RATE_LIMIT_PAUSE, pause or 0.0))
    if status in (429, 503) or (status >= 400 and pause is not None):
        # Before the error code: some servers answer "too many requests" with invalid_grant or access_denied,
        # and a credential that is only asked to wait must not be thrown away.
        return RateLimited(said, retry_after=pause)
    if kind is ErrorKind.REJECTED:
        return GrantRejected(said, code=code, todo=answer.strategy.hints.get(code))
    if kind is ErrorKind.CLIENT:
        return _client_rejected(answer, said, code, shown)
    if kind is ErrorKind.TRANSIENT or status >= 500 or status == 408:
        return TokenUnavailable(said, retry_after=pause)
    if status in (401, 403, 404, 405):
        return _client_rejected(answer, said, code, shown)
    return InvalidTokenResponse(said)


def _client_rejected(answer: _Answer, said: str, code: str, shown: str) -> ClientRejected:
    return ClientRejected(said, code=shown, todo=answer.strategy.hints.get(code))


def _quoted(answer: _Answer, shown: str) -> str:
    """What the provider says, for people: its error code and the description."""
    description = answer.first(answer.strategy.fields.description)
    text = shown
    if isinstance(description, str) and description.strip():
        text += f" ({excerpt(description.encode('utf-8', 'replace'), answer.secrets, longest=200)})"
    return f": {text}"
