"""What each outcome of a token request leads to: one table. Pure.

`CONSEQUENCES` says it, `noted` writes it into the state. The table in docs/concepts/life-of-a-token.md is
made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from ..errors import (
    ClientRejected,
    ConfigurationError,
    GrantLost,
    GrantRejected,
    InvalidTokenResponse,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    TokenSessionError,
    TokenUnavailable,
    UnexplainedRefusal,
)
from ..policy import (
    CHANGED_PAUSE,
    CHANGED_PAUSE_MAX,
    CLIENT_PAUSE,
    CLIENT_PAUSE_MAX,
    PROBABLE_PAUSE,
    PROBABLE_PAUSE_MAX,
    PROBABLE_TRIES,
    UNEXPLAINED_LIMIT,
    UNEXPLAINED_PAUSE,
    UNEXPLAINED_SPAN,
    Policy,
)
from .schedule import back_off, doubled, unknown_pause
from .state import Failures, Rejection, TokenState

__all__ = [
    "CONSEQUENCES",
    "Consequence",
    "LocalFailure",
    "Pause",
    "Sent",
    "consequence",
    "explained",
    "noted",
    "reason_of",
    "remembered",
]


class Pause(Enum):
    """How long until the next token request."""

    BACK_OFF = "about a second at first, then longer, up to 30 s; while the token is usable, 30 s to 5 min"
    REQUESTED = "as long as the server asks for, at most an hour; without a number, as after a failure"
    UNKNOWN = "about 2 s, then up to 30 s, and after ten tries up to 5 min"
    UNEXPLAINED = "30 s"
    CLIENT = "a minute at first, doubled each time, up to an hour"
    REJECTED = "for good; if the code may mean something else, 15 min, and later 6 h"


@dataclass(frozen=True, slots=True)
class Consequence:
    """What an error leads to."""

    when: str
    """The responses, for people."""
    pause: Pause
    shared: bool
    """Whether the store gets to know it, so that all processes wait. What may be local is not shared."""
    spends: bool = False
    """Whether a refresh token that works once, or a code, may be spent."""


CONSEQUENCES: Mapping[type[TokenSessionError], Consequence] = {
    GrantRejected: Consequence("`invalid_grant` and its like", Pause.REJECTED, shared=True),
    RateLimited: Consequence(
        "429, and any refusal with a `Retry-After`, whatever its error code", Pause.REQUESTED, shared=True
    ),
    OutcomeUnknown: Consequence(
        "no whole response, an empty 2xx, 408, 502, 504", Pause.UNKNOWN, shared=True, spends=True
    ),
    InvalidTokenResponse: Consequence(
        "a 2xx without a token, or a response that is neither a token nor an error",
        Pause.UNKNOWN,
        shared=True,
        spends=True,
    ),
    UnexplainedRefusal: Consequence(
        "400 or 401 without an error code that is known", Pause.UNEXPLAINED, shared=True
    ),
    NotSent: Consequence("no connection", Pause.BACK_OFF, shared=False),
    TokenUnavailable: Consequence("any other 5xx", Pause.BACK_OFF, shared=True),
    ClientRejected: Consequence(
        "`invalid_client`, `access_denied`, 401 and 403 without a code, 404, 405", Pause.CLIENT, shared=False
    ),
    ConfigurationError: Consequence("the request cannot be built", Pause.CLIENT, shared=False),
    TokenSessionError: Consequence("anything else", Pause.BACK_OFF, shared=False),
}
"""By the type of the error; a subclass without a line of its own is treated as its base class."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent, and how things stood then.

    `request` is the fingerprint of the whole token request, `single` whether it spends its credential, and
    `usable_for` how many seconds callers still get the current token. `volatile` identifies what functions
    returned for it: that is not in `request`, because it may differ each time.
    """

    credential: str
    request: str
    single: bool
    usable_for: float
    volatile: str = ""


@dataclass(frozen=True, slots=True)
class LocalFailure:
    """Failures that no other process gets to know, because they may be this machine's own.

    With a `request` and what was `volatile` in it, they are about that one. It is sent again when their pause
    is over, and one with the same credential in which anything else differs from `changed_at` on. If nothing
    was sent, `refused` is what the server has refused before: that still counts.
    """

    failures: Failures
    request: str = ""
    volatile: str = ""
    changed_at: float = 0.0
    sent: bool = False
    refused: LocalFailure | None = None

    def about(self, credential: str, request: str, volatile: str) -> tuple[Failures, ...]:
        """The failures that this request has to wait for."""
        before = self.refused.about(credential, request, volatile) if self.refused is not None else ()
        if not self.request or (self.request, self.volatile) == (request, volatile):
            return (self.failures, *before)
        if self.failures.credential != credential:
            return before
        return (replace(self.failures, until=self.changed_at, background_until=self.changed_at), *before)


def consequence(error: TokenSessionError, sent: Sent) -> Consequence:
    """The line of the table for this error."""
    line = next(CONSEQUENCES[kind] for kind in type(error).__mro__ if kind in CONSEQUENCES)
    harmless = isinstance(error, InvalidTokenResponse) and not error.granted
    if line.spends and (harmless or not sent.single):
        return replace(line, spends=False, pause=Pause.BACK_OFF)
    return line


def noted(
    state: TokenState, error: TokenSessionError, sent: Sent, policy: Policy, now: float, jitter: float
) -> TokenState:
    """The state after a token request that ended in this error. Changes nothing but its notes."""
    before = state.failures_of(sent.credential) or Failures(sent.credential, since=now)
    if isinstance(error, GrantRejected):
        return _rejected(
            state,
            before,
            error.code,
            reason_of(error),
            sent,
            now,
            certain=error.certain,
            lost=isinstance(error, GrantLost),
        )
    line = consequence(error, sent)
    unexplained = isinstance(error, UnexplainedRefusal)
    failures = replace(
        before,
        count=before.count + 1,
        unknown=before.unknown + line.spends,
        unexplained=before.unexplained + 1 if unexplained else 0,
        unexplained_since=before.unexplained_since if before.unexplained else now,
        reason=reason_of(error),
        last=now,
    )
    known = state.rejection_of(sent.credential, sent.request)
    if unexplained and known is not None:  # the same again, in no words
        return _rejected(state, before, known.code, reason_of(error), sent, now, certain=known.certain)
    if unexplained and (
        failures.unknown
        or (
            failures.unexplained >= UNEXPLAINED_LIMIT and now - failures.unexplained_since >= UNEXPLAINED_SPAN
        )
    ):
        reason = _because(reason_of(error), before) if before.unknown else reason_of(error)
        return _rejected(state, before, "", reason, sent, now, certain=False)
    usable_for, asked = sent.usable_for, _asked(error, policy)
    waiting = max(asked or 0.0, _pause(line.pause, failures, 0.0, policy, now, jitter))
    if asked is not None and line.pause is Pause.REQUESTED:
        waiting = asked
    background = waiting
    if usable_for > 0 and asked is None:
        background = max(waiting, _pause(line.pause, failures, usable_for, policy, now, jitter))
    return state.with_failures(
        replace(failures, until=now + waiting, background_until=now + background, requested=asked is not None)
    )


def remembered(
    before: LocalFailure | None,
    error: TokenSessionError,
    sent: Sent,
    policy: Policy,
    now: float,
    jitter: float,
    *,
    left: bool,
) -> LocalFailure:
    """What a process remembers of a request that failed, for itself. `left`: it was sent.

    One rule for files, functions and values that differ each time: what was refused may have changed, and
    then one more request is made. Each pause is longer than the last, because they may all be wrong.
    """
    refused, name = isinstance(error, ConfigurationError | GrantRejected), sent.credential
    refusal = before if before is None or before.sent else before.refused
    known = refusal if refused and left else before
    if known is not None and (known.sent, bool(known.request)) != (refused and left, refused):
        known = None
    state = TokenState(failures=None if known is None else known.failures)
    failures = noted(state, error, sent, policy, now, jitter).failures_of(name)
    if failures is None:  # rejected, so that the store says when the same one may be sent again
        failures = state.failures_of(name) or Failures(name, since=now)
        failures = replace(failures, count=failures.count + 1, reason=reason_of(error), last=now)
    if not refused:
        return LocalFailure(failures, refused=refusal)
    if not left:
        return LocalFailure(failures, sent.request, sent.volatile, now, refused=refusal)
    pause = doubled(CHANGED_PAUSE, CHANGED_PAUSE_MAX, failures.count)
    return LocalFailure(failures, sent.request, sent.volatile, now + pause, sent=True)


def _asked(error: TokenSessionError, policy: Policy) -> float | None:
    """How long the server asks us to wait."""
    asked = error.retry_after if isinstance(error, TokenUnavailable) else None
    return None if asked is None else min(max(asked, policy.retry_after_min), policy.retry_after_max)


def _pause(
    pause: Pause, failures: Failures, usable_for: float, policy: Policy, now: float, jitter: float
) -> float:
    """How long to wait, if the server does not say. `usable_for`: callers have a token for so long."""
    lasting = now - failures.since
    if pause is Pause.UNKNOWN:
        return unknown_pause(failures.unknown, lasting, policy, jitter)
    if pause is Pause.UNEXPLAINED:
        return UNEXPLAINED_PAUSE * (1 + 0.1 * jitter)
    if pause is Pause.CLIENT:
        return doubled(CLIENT_PAUSE, CLIENT_PAUSE_MAX, failures.count)
    if pause is Pause.REQUESTED and usable_for > 0:
        return policy.retry_after_default
    return back_off(failures.count, lasting, usable_for, policy, jitter)


def _rejected(
    state: TokenState,
    before: Failures,
    code: str,
    reason: str,
    sent: Sent,
    now: float,
    *,
    certain: bool,
    lost: bool = False,
) -> TokenState:
    known = state.rejection_of(sent.credential, sent.request)
    tries = known.tries + 1 if known is not None else 1
    pause = PROBABLE_PAUSE if tries <= PROBABLE_TRIES else PROBABLE_PAUSE_MAX
    rejection = replace(
        known or Rejection(sent.credential),
        code=code,
        request=sent.request,
        certain=certain,
        lost=lost or (sent.single and before.unknown > 0) or (known is not None and known.lost),
        reason=reason,
        tries=tries,
        until=now + pause,
    )
    return state.with_rejection(rejection).without_failures(sent.credential)


def reason_of(error: TokenSessionError) -> str:
    """What happened, for another process's error message: short, and without a secret, as all our errors."""
    text = str(error.args[0]) if error.args else type(error).__name__
    return text if len(text) <= 500 else text[:499] + "…"


def explained(error: GrantRejected, state: TokenState, sent: Sent) -> GrantRejected:
    """This rejection, and whether an earlier request may have spent the credential."""
    failures = state.failures_of(sent.credential)
    known = state.rejection_of(sent.credential, sent.request)
    if failures is None and known is not None and known.lost:
        happened = known.reason  # it says already which request may have spent it
    elif failures is None or not sent.single:
        return error
    else:
        happened = _because(reason_of(error), failures)
        if not failures.unknown:
            error.args = (happened,)
            return error
    lost = GrantLost(happened, code=error.code, certain=error.certain)
    if "todo" in error.__dict__:
        lost.todo = error.todo
    lost.__cause__ = error
    return lost


def _because(happened: str, failures: Failures) -> str:
    """What happened, and what may have led to it."""
    if failures.unknown:
        return f"{happened} An earlier request may have spent this credential: {failures.reason}"
    return f"{happened} An earlier request failed, and the server may have processed it: {failures.reason}"
