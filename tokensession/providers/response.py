"""Reads a token response: a token, or a typed error. Pure.

The order of checks in `read` matters:

1. A redirect is an error: token requests follow none.
2. A status other than 2xx is an error, whether or not the body can be read (`_failure`). If it says to wait,
   that counts, whatever error code the body has.
3. An empty or truncated 2xx is a lost response: the refresh token may be spent.
4. A 2xx with an error code that refuses the request brings no token, whatever else it contains.
5. Any other 2xx that brings a token has spent the refresh token. So what it brought is returned, to be
   stored, and what is wrong with the rest goes with it (`Issued.problem`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .._redact import excerpt
from ..errors import (
    AuthorizationPending,
    ClientRejected,
    GrantRejected,
    InvalidTokenResponse,
    OutcomeUnknown,
    RateLimited,
    TokenSessionError,
    TokenUnavailable,
    UnexplainedRefusal,
)
from ..policy import RATE_LIMIT_PAUSE
from ..token import Token
from . import _wire
from .protocol import DEVICE_CODE, Credential, Issued, TokenResponse
from .strategy import DEVICE_ERRORS, ErrorKind, Strategy

__all__ = ["read", "refusal"]

_BEFORE_TEXT = b"\xef\xbb\xbf\xff\xfe \t\r\n\f\v"  # byte order marks and white space
_GATEWAYS = (408, 502, 504, 520, 524)  # from something in between: the request may have been carried out
_LONGEST_EXTRA = 32 * 1024  # bytes of all the other fields that are kept
_LONGEST_REFUSAL = 64 * 1024  # bytes of a refusal that are parsed: reading a megabyte takes 50 ms


@dataclass(frozen=True, slots=True)
class _Answer:
    """A response that is being read, with everything an error message needs."""

    strategy: Strategy
    response: TokenResponse
    secrets: tuple[str, ...]
    now: float
    grant_type: str = ""
    endpoint: str = "token endpoint"
    document: Mapping[str, Any] = field(default_factory=dict)
    readable: bool = False

    def say(self, what: str) -> str:
        return f"{self.strategy.name}: the {self.endpoint} answered {self.response.status}{what}."

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
        if code in self.strategy.errors or (self.grant_type == DEVICE_CODE and code in DEVICE_ERRORS):
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
        device: Mapping[str, ErrorKind] = DEVICE_ERRORS if self.grant_type == DEVICE_CODE else {}
        for code in self.codes():
            for name in (code, code.split(" ", 1)[0]):
                if kind := device.get(name) or self.strategy.errors.get(name):
                    return name, kind
        return None

    def complains(self) -> bool:
        """Whether a response with a 2xx status says that it is an error."""
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
    answer = _Answer(
        strategy, response, secrets, sent_at if date is None else date, grant_type=credential.grant_type
    )
    if 300 <= response.status < 400:
        raise InvalidTokenResponse(
            answer.say(", a redirect, and token requests follow no redirect"),
            todo="Set base_url (or token_url) to the new address.",
        )
    if not 200 <= response.status < 300:
        raise _failure(_parsed(answer, lenient=True))
    if not response.body.strip():
        raise OutcomeUnknown(answer.say(" with an empty body, so the refresh token may be spent"))
    answer = _parsed(answer, lenient=False)
    known = answer.known()
    if known is not None and known[1] is not ErrorKind.TRANSIENT:
        raise _failure(answer)
    return _issued(answer, credential, sent_at, scope)


def refusal(
    strategy: Strategy, response: TokenResponse, endpoint: str, *, now: float, secrets: tuple[str, ...]
) -> TokenSessionError:
    """The typed error for an answer of another endpoint that is not a success."""
    return _failure(_parsed(_Answer(strategy, response, secrets, now, endpoint=endpoint), lenient=True))


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
    secrets = answer.secrets + _tokens(answer, document)
    return replace(answer, secrets=secrets, document=document, readable=True)


def _tokens(answer: _Answer, document: Mapping[str, Any]) -> tuple[str, ...]:
    """The tokens in the response itself: an error must not show them."""
    names = (answer.strategy.fields.access_token, answer.strategy.fields.refresh_token)
    found = (_wire.find(document, path) for path in names)
    return tuple(value for value in found if isinstance(value, str))


def _issued(answer: _Answer, credential: Credential, sent_at: float, requested: str | None) -> Issued:
    """What a 2xx brought, or an error if that is nothing that can be stored."""
    document, names, strategy = answer.document, answer.strategy.fields, answer.strategy
    access, refresh, malformed = "", None, ""
    try:
        if credential.grant_type != "client_credentials":  # which should have none (RFC 6749, 4.4.3)
            refresh = _wire.refresh_token(_wire.find(document, names.refresh_token))
        access = _wire.access_token(_wire.find(document, names.access_token))
    except InvalidTokenResponse as error:
        malformed = error.args[0]
    if not access and refresh in (None, credential.secret):
        raise _nothing_issued(answer, credential, malformed)
    lifetime, note = strategy.lifetime(document, answer.now)
    if not access or answer.complains():
        # Not used, and over at once. So the next attempt is made soon, with the new refresh token.
        lifetime, note = 0.0, None
    # Without a new refresh token the old one stays valid. A code is spent.
    refresh = refresh or (credential.secret if credential.grant_type == "refresh_token" else None)
    refresh_lifetime, refresh_note = _refresh_lifetime(answer) if refresh else (None, None)
    scope = _wire.find(document, names.scope)
    extra, extra_note = _extra(answer)
    return Issued(
        Token(
            access_token=access,
            obtained_at=sent_at,
            lifetime=strategy.default_lifetime if lifetime is None else lifetime,
            refresh_token=refresh,
            scope=_wire.scope(requested if scope is None else scope),
            refresh_lifetime=refresh_lifetime,
            extra=extra,
        ),
        notes=tuple(f"{strategy.name}: {each}" for each in (note, refresh_note, extra_note) if each),
        problem=_problem(answer, malformed),
    )


def _nothing_issued(answer: _Answer, credential: Credential, malformed: str) -> TokenSessionError:
    """The error for a 2xx without anything to store."""
    if not answer.complains():
        return InvalidTokenResponse(f"{answer.say('')} {malformed}", granted=True)
    error = _failure(answer)
    if isinstance(error, InvalidTokenResponse):
        # It may have spent the refresh token if it brought something that should be a token.
        error.granted = any(token != credential.secret for token in _brought(answer))
    return error


def _brought(answer: _Answer) -> list[Any]:
    """What is in the place of a token, well-formed or not."""
    names = answer.strategy.fields
    found = (_wire.find(answer.document, path) for path in (names.access_token, names.refresh_token))
    return [value for value in found if value not in (None, "")]


def _problem(answer: _Answer, malformed: str) -> InvalidTokenResponse | None:
    """Why the token must not be used, although it is stored.

    A response that says it is an error is believed, even if its access token looks good: we cannot know what
    the token is good for. It is one error for the callers and not an outage, because the next attempt is made
    soon, with the refresh token that came with it.
    """
    intact = "The token is stored, with the next refresh token, and is not used."
    if answer.complains():
        code = next(iter(answer.codes()), "")
        said = _quoted(answer, answer.shown(code)) if code else ""
        return InvalidTokenResponse(
            answer.say(f" with a token and an error{said}"),
            granted=True,
            intact=intact,
            todo="Find out what the provider means by it.",
        )
    if malformed:
        return InvalidTokenResponse(
            f"{answer.say('')} {malformed}", granted=True, intact="The new refresh token is stored."
        )
    token_type = _wire.find(answer.document, answer.strategy.fields.token_type)
    if token_type is not None and not answer.is_bearer(token_type):
        return InvalidTokenResponse(
            answer.say(" with a token that is not a bearer token"),
            granted=True,
            intact=intact,
            todo="If its token_type is another name for a bearer token, add that to Strategy.bearer_types.",
        )
    return None


def _refresh_lifetime(answer: _Answer) -> tuple[float | None, str | None]:
    """How many seconds the refresh token lives at most, if that is known, and a note."""
    seconds, note = None, None
    for path in answer.strategy.fields.refresh_lifetime:
        value = _wire.find(answer.document, path)
        if value is not None:
            seconds = _wire.lifetime_seconds(value)
            note = f"{path} is not a number of seconds; it is ignored" if seconds is None else None
            break
    # 0 stands for a refresh token that does not end (Keycloak's offline tokens).
    known = [each for each in (seconds, answer.strategy.idle_lifetime) if each is not None and each > 0]
    return min(known, default=None), note


def _extra(answer: _Answer) -> tuple[dict[str, Any], str | None]:
    """The other declared fields, as far as they can be stored, and a note of those that cannot."""
    found: dict[str, Any] = {}
    left, odd = _LONGEST_EXTRA, []
    for path in answer.strategy.fields.extra:
        value = _wire.find(answer.document, path)
        if value is None:
            continue
        size = len(value.encode("utf-8", "replace")) if isinstance(value, str) else 16
        if not _wire.is_plain(value) or size > left:
            odd.append(path)
            continue
        found[path], left = value, left - size
    note = f"{', '.join(odd)} cannot be kept: not text, a number or a boolean, or too long" if odd else None
    return found, note


def _failure(answer: _Answer) -> TokenSessionError:
    """The typed error for a response without a token."""
    status, known, pause = answer.response.status, answer.known(), answer.pause()
    code, kind = known or (next(iter(answer.codes()), ""), None)
    shown = answer.shown(code)
    said = answer.say(_quoted(answer, shown) if code else answer.excerpt())
    todo = answer.strategy.hints.get(code)
    if kind is ErrorKind.PENDING:
        return AuthorizationPending(said, slow_down=code == "slow_down", retry_after=pause)
    if kind is ErrorKind.RATE_LIMITED:
        return RateLimited(said, retry_after=max(RATE_LIMIT_PAUSE, pause or 0.0))
    if status in _GATEWAYS and (pause is not None or kind in (None, ErrorKind.TRANSIENT)):
        return OutcomeUnknown(said, retry_after=pause)
    # Before the error code: some servers answer "too many requests" with invalid_grant or access_denied, and
    # a credential that is only asked to wait must not be thrown away.
    if pause is not None or status == 429:
        return RateLimited(said, retry_after=pause)
    if status == 503:
        return TokenUnavailable(said)
    if kind in (ErrorKind.REJECTED, ErrorKind.PROBABLY_REJECTED):
        return GrantRejected(said, code=code, certain=kind is ErrorKind.REJECTED, todo=todo)
    if kind is ErrorKind.TRANSIENT or (kind is None and status >= 500):
        return TokenUnavailable(said)
    if kind is None and (status == 400 or (status == 401 and not answer.readable)):
        return UnexplainedRefusal(said)
    if kind is ErrorKind.CLIENT or status in (401, 403, 404, 405):
        return ClientRejected(said, code=shown, todo=todo)
    return InvalidTokenResponse(said)


def _quoted(answer: _Answer, shown: str) -> str:
    """What the provider says, for people: its error code and the description."""
    description = answer.first(answer.strategy.fields.description)
    text = shown
    if isinstance(description, str) and description.strip():
        text += f" ({excerpt(description.encode('utf-8', 'replace'), answer.secrets, longest=200)})"
    return f": {text}"
