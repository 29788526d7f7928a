"""What to do about a key, decided without doing it. Pure; `transaction.py` acts on it.

`decide` looks at what is stored and at what this process remembers, and returns one step. Read its body
from top to bottom: the order is the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import (
    ConfigurationError,
    GrantLost,
    GrantRejected,
    InvalidTokenResponse,
    OutcomeUnknown,
    RateLimited,
    SignedOut,
    SignInRequired,
    TokenSessionError,
    TokenUnavailable,
)
from ..policy import (
    FORCE_INTERVAL,
    MEMORY_LIFE,
    REPEAT_WITHIN,
    RESTORE_WAIT,
    UNKNOWN_PAUSE,
    Freshness,
    Policy,
)
from ..providers.protocol import Credential, Identity, Provider
from .outcomes import LocalFailure, Sent
from .schedule import deadlines, forced_refresh_delay, request_limit
from .state import Failures, Now, Rejection, TokenState, keeping, merged

__all__ = [
    "Fail",
    "Hold",
    "Read",
    "Redeem",
    "Restore",
    "Serve",
    "Step",
    "View",
    "Wait",
    "Want",
    "decide",
    "foreign",
    "freshness",
    "identity_of",
    "is_new",
    "resolved",
    "single_use",
]


@dataclass(frozen=True, slots=True)
class Want:
    """What a refresh is to bring.

    A token of a higher order than `have` (None: any), with other bytes than the one with the fingerprint
    `unauthorized`, which got a 401. `force`: although there is a remembered refusal or a pause. `background`:
    no caller waits for it. `used_up`: the token of `have` has been sent as often as the server allows.
    """

    have: tuple[int, int] | None = None
    unauthorized: str | None = None
    force: bool = False
    background: bool = False
    used_up: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """Everything that a decision depends on.

    `stored` is the record, and `memory` the highest state that this process has seen, at `seen_at`. `local`
    are failures that are not shared. `fingerprint` identifies the request with a credential, and `volatile`
    what functions have returned for it; `read`: its secrets have been read. `has_served`: this process has
    had a token of this key. `missing_since`: when the record was first found to be gone. `claimed`: the claim
    is held, and `interrupted` seconds ago an earlier holder sent a request and never ended.
    """

    stored: TokenState | None
    memory: TokenState | None
    want: Want
    now: Now
    provider: Provider
    policy: Policy
    fingerprint: Callable[[Credential], str]
    seen_at: float = 0.0
    local: LocalFailure | None = None
    volatile: str = ""
    read: bool = True
    has_served: bool = False
    missing_since: float | None = None
    claimed: bool = False
    interrupted: float | None = None

    def request(self, credential: Credential) -> str:
        """What identifies the token request with this credential."""
        if not self.read:
            raise _Unread
        return self.fingerprint(credential)


class _Unread(Exception):
    """The decision depends on secrets that have not been read."""


@dataclass(frozen=True, slots=True)
class Read:
    """Read the secrets of the token request, and decide again. No token in the store does without them."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Use the token in this state. No token request."""

    state: TokenState


@dataclass(frozen=True, slots=True)
class Hold:
    """Use the token in this state until it is ENDING: the refresh token may be spent."""

    state: TokenState


@dataclass(frozen=True, slots=True)
class Restore:
    """The store went back, or lost the record: write this state, then look again."""

    state: TokenState


@dataclass(frozen=True, slots=True)
class Wait:
    """Send nothing before `until` (boot clock). If a caller cannot wait so long, raise `error`.

    `limit` is the limit of token requests in an hour, if that is why.
    """

    until: float
    error: TokenSessionError
    limit: float = 0.0


@dataclass(frozen=True, slots=True)
class Fail:
    """Raise this. No token request. `note`: a state to store first, if the claim is held."""

    error: TokenSessionError
    note: TokenState | None = None


@dataclass(frozen=True, slots=True)
class Redeem:
    """Send the credential, under the claim.

    `state` is where to note what comes of it, failures of others included. `starts`: it starts a new lineage,
    with this sign-in number.
    """

    credential: Credential
    state: TokenState
    sent: Sent
    starts: int | None = None
    unauthorized: bool = False
    forced: bool = False


Step = Read | Serve | Hold | Restore | Wait | Fail | Redeem


def single_use(credential: Credential, provider: Provider) -> bool:
    """Whether redeeming it spends it. A code is always spent, a machine's own credentials never."""
    if credential.grant_type == "client_credentials":
        return False
    return provider.rotates or credential.single_use


def identity_of(provider: Provider) -> Identity | None:
    """Whose tokens this provider's are, if it says."""
    identity = getattr(provider, "identity", None)
    return identity if isinstance(identity, Identity) else None


def freshness(state: TokenState, policy: Policy, now: Now) -> Freshness:
    """How close its token is to its end. EXPIRED without one that may be used."""
    if state.servable is None:
        return Freshness.EXPIRED
    return deadlines(state.servable, state.obtained, policy).freshness(now.wall, now.boot)


def decide(view: View) -> Step:
    """The next step of a refresh."""
    try:
        return _decide(view)
    except _Unread:
        return Read()


def _decide(view: View) -> Step:
    stored, memory, now = view.stored, view.memory, view.now
    if stored is not None and (problem := foreign(stored, view.provider)):
        return Fail(problem)
    if stored is None and memory is not None:
        return _missing(view, memory)
    if stored is not None and memory is not None and stored.order < memory.order:
        # It may have gone back from a still higher one, whose refresh has spent our refresh token.
        memory = _unknown_since(memory, view, "The store went back to an older record.", memory.obtained)
        return Restore(keeping(memory, stored))

    state = merged(stored, memory) if stored is not None else TokenState()
    configured = view.provider.credential
    starts = configured is not None and is_new(configured, state, has_served=view.has_served)
    if state.signed_out and not starts:
        return Fail(SignedOut("This key is signed out."))

    # A usable token that is newer than the one to replace: another task or process was faster.
    fresh = freshness(state, view.policy, now) if not starts else Freshness.EXPIRED
    token = state.servable if not starts else None
    want = view.want
    newer = want.have is None or state.order > want.have
    if want.used_up and not newer and fresh.usable:
        fresh = Freshness.ENDING
    if token is not None and fresh.usable and newer and token.fingerprint != want.unauthorized:
        return Serve(state)

    if not starts and configured is not None and not fresh.usable and _rolled_back(configured, state, view):
        starts = True
    credential = configured if starts else _credential(state, configured, view)
    if credential is None:
        return Fail(_nothing_left(state, configured))
    is_code = credential.grant_type == "authorization_code"
    if is_code and not starts and state.has_redeemed(credential.fingerprint):
        return _sent_before(credential, state, view)
    starts = starts or (credential == configured and state.token is None)
    return _may_send(credential, state, fresh, view, starts=starts)


def _may_send(
    credential: Credential, state: TokenState, fresh: Freshness, view: View, *, starts: bool
) -> Step:
    """Whether this credential may be sent now."""
    want, now, policy = view.want, view.now, view.policy
    token = None if starts else state.servable
    unauthorized = token is not None and token.fingerprint == want.unauthorized
    if unauthorized and token is not None:
        spacing = forced_refresh_delay(state.forced, token.lifetime, policy)
        if now.boot - state.obtained < spacing:
            return Serve(state)  # from a 401 itself: the API rejects every token
    force = want.force and now.boot - state.force_at >= FORCE_INTERVAL
    if want.force and not force and fresh.usable:
        return Serve(state)  # there has been one a moment ago
    if state.problem and not starts and not force:
        lifetime = state.token.lifetime if state.token is not None else 0.0
        if now.boot - state.obtained < (3600.0 if lifetime is None else lifetime):
            return Fail(InvalidTokenResponse(state.problem, granted=True, intact=_PROBLEM_INTACT))

    name, request = credential.fingerprint, view.request(credential)
    rejection = state.rejection_of(name, request)
    if rejection is not None and not force and (rejection.certain or rejection.until > now.boot):
        return Fail(_rejected_before(rejection))

    single = single_use(credential, view.provider)
    if view.interrupted is not None and single:
        at = now.boot - view.interrupted
        # A mark outlives a sign-in: then it is of a request with an earlier credential.
        if token is None or at >= state.obtained:
            state = _unknown_since(state, view, "Its process ended before the answer.", at, name)
    failures = state.failures_of(name)
    if single and failures is not None and failures.unknown and token is not None and not unauthorized:
        soon = view.provider.replay_leeway if fresh is Freshness.FRESH else REPEAT_WITHIN
        repeat = failures.unknown == 1 and soon > 0 and now.boot - failures.last <= soon
        if fresh.usable and not repeat and not force:
            return Hold(state)
    local = view.local.about(name, request, view.volatile) if view.local is not None else ()
    for reason in (failures, *local):
        if reason is None:
            continue
        until = reason.background_until if want.background else reason.until
        if force and not reason.requested:
            # Not before a request without an answer is certainly over.
            until = min(until, reason.last + UNKNOWN_PAUSE) if single and reason.unknown else now.boot
        if until > now.boot:
            return Wait(until, _paused(reason, until - now.boot))
    limit = request_limit(token.lifetime if token is not None else None, policy)
    level, half = state.requests_used(limit, now.boot), limit / 2
    if level + 1 > half:
        until = now.boot + (level + 1 - half) * 3600 / half
        return Wait(
            until,
            RateLimited(
                f"More than {limit:g} token requests within an hour: no further one is sent for now.",
                retry_after=until - now.boot,
                todo="Find out what causes them. Policy(requests_per_hour=...) sets the limit.",
            ),
            limit,
        )
    usable_for = 0.0
    if token is not None:
        usable_for = deadlines(token, state.obtained, policy).usable_for(now.wall, now.boot)
    starting = max(state.number, view.memory.number if view.memory is not None else 0) + 1 if starts else None
    sent = Sent(name, request, single, 0.0 if unauthorized else usable_for, view.volatile)
    return Redeem(credential, state, sent, starting, unauthorized, force)


# -- the record and the memory --------------------------------------------------------------------------


def foreign(state: TokenState, provider: Provider) -> ConfigurationError | None:
    """An error if this state belongs to another provider, environment, client, server or scope."""
    theirs, ours = state.identity, identity_of(provider)
    if theirs is None or ours is None or state.token is None:  # without a token, nothing can cross over
        return None
    for name in ("provider", "environment", "client_id", "origin", "scope"):
        stored, configured = getattr(theirs, name), getattr(ours, name)
        if not stored or not configured or stored == configured:
            continue
        if name == "scope":
            todo = "Use one key for each scope, and sign in once for each."
        else:
            todo = "Use one key for each. To replace the other sign-in, call source.sign_in(...)."
        return ConfigurationError(
            f"This key holds the sign-in of another {name.replace('_', ' ')}: "
            f"{stored!r} is stored, and {configured!r} is configured.",
            intact="Nothing was sent, and the stored sign-in is unchanged.",
            todo=todo,
        )
    return None


def _missing(view: View, memory: TokenState) -> Step:
    """The record is gone. A sign-out leaves a tombstone, so this is a loss of data: write ours back."""
    now, configured = view.now, view.provider.credential
    if now.boot - view.seen_at > MEMORY_LIFE:
        if configured is not None and not single_use(configured, view.provider):
            nothing = TokenState(number=memory.number)
            return _may_send(configured, nothing, Freshness.EXPIRED, view, starts=True)
        return Fail(
            SignInRequired(
                "The stored record is gone, and what this process remembers of it is more than a week old."
            )
        )
    since = now.boot if view.missing_since is None else view.missing_since
    expired = freshness(memory, view.policy, now) is Freshness.EXPIRED
    if view.provider.rotates and expired and memory.token is not None and now.boot - since < RESTORE_WAIT:
        # Another process may have refreshed since, and then ours is spent. It writes its own back.
        until = since + RESTORE_WAIT
        return Wait(
            until,
            TokenUnavailable(
                "The stored record is gone. Another process may have a newer token than this one.",
                retry_after=until - now.boot,
            ),
        )
    return Restore(_unknown_since(memory, view, "The store lost the record.", memory.obtained))


def resolved(mine: TokenState, stored: TokenState | None) -> TokenState | None:
    """What to store if `stored` is there instead of the state that `mine` was made from.

    None: the stored one counts. On a tie the store wins, because others may have seen it already.
    """
    if stored is None or stored.order < mine.order:
        return keeping(mine, stored)
    return None


def _unknown_since(
    state: TokenState, view: View, reason: str, at: float, credential: str | None = None
) -> TokenState:
    """This state, after a request whose outcome is unknown.

    Without a `credential`: after someone else's, at some time, so that an early repetition makes no sense.
    """
    times = 1
    if credential is None:
        token = state.token
        if token is None or not token.refresh_token or not view.provider.rotates:
            return state
        credential, times = Credential("refresh_token", token.refresh_token).fingerprint, 2
    before = state.failures_of(credential) or Failures(credential, since=at, last=at, until=at)
    return state.with_failures(
        replace(before, count=before.count + 1, unknown=before.unknown + times, reason=reason)
    )


# -- credentials ----------------------------------------------------------------------------------------


def is_new(configured: Credential, state: TokenState, *, has_served: bool) -> bool:
    """Whether the configured credential starts a new lineage: it has been configured since.

    A process that has had a token is past its configured credential: another lineage is a newer sign-in.
    """
    name = configured.fingerprint
    known = name == state.configured or name in state.superseded or state.has_redeemed(name)
    return not known and not has_served


def _rolled_back(configured: Credential, state: TokenState, view: View) -> bool:
    """Whether to use a superseded configuration again, because the one after it is rejected.

    Not if it works once and has been redeemed: it would only be a reuse.
    """
    name = configured.fingerprint
    if configured.grant_type != "refresh_token" or name not in state.superseded:
        return False
    if view.provider.rotates and state.has_redeemed(name):
        return False
    if state.rejection_of(name, view.request(configured)) is not None:
        return False
    current = _credential(state, None, view)
    return current is not None and (
        state.rejection_of(current.fingerprint, view.request(current)) is not None
    )


def _credential(state: TokenState, configured: Credential | None, view: View) -> Credential | None:
    """The credential to go on with."""
    token = state.token
    if token is not None and token.refresh_token:
        current = Credential("refresh_token", token.refresh_token)
        if state.previous:
            # The new one came with a response that we could not use. If it does not work, the old one may.
            previous = Credential("refresh_token", state.previous)
            rejected = state.rejection_of(current.fingerprint, view.request(current))
            if rejected and not state.rejection_of(previous.fingerprint, view.request(previous)):
                return previous
        return current
    # A configured code has been redeemed if there is a token from it. Anything else may still be valid.
    if configured is not None and (token is None or not configured.single_use):
        return configured
    return None


def _sent_before(credential: Credential, state: TokenState, view: View) -> Step:
    """The configured code has been sent, and there is no token from it."""
    name, request = credential.fingerprint, view.request(credential)
    rejection = state.rejection_of(name, request)
    if rejection is not None:
        return Fail(_rejected_before(rejection) if rejection.code else _sent_and_lost(rejection.reason))
    if any(each.credential == name and each.code for each in state.rejections):
        # It was answered, and the configuration has changed since: once more.
        return _may_send(credential, state, Freshness.EXPIRED, view, starts=True)
    if view.claimed:
        failures = state.failures_of(name)
        reason = failures.reason if failures is not None else "the process that sent it has ended."
        lost = Rejection(name, request=request, lost=True, reason=reason)
        return Fail(_sent_and_lost(reason), note=state.with_rejection(lost))
    # Perhaps it is on its way right now: its sender holds the claim.
    return Redeem(credential, state, Sent(name, request, True, 0.0, view.volatile))


# -- errors ---------------------------------------------------------------------------------------------

_PROBLEM_INTACT = "The token is stored, with the next refresh token, and is not used."


def _rejected_before(rejection: Rejection) -> GrantRejected:
    reason = rejection.reason or (rejection.code or "no code") + "."
    kind = GrantLost if rejection.lost else GrantRejected
    return kind(
        f"The provider has rejected this credential before: {reason}",
        code=rejection.code,
        certain=rejection.certain,
    )


def _sent_and_lost(reason: str) -> GrantLost:
    return GrantLost(
        f"The code has been sent, and no token came back: {reason}",
        intact="The code is not sent again, because it works once.",
    )


def _paused(failures: Failures, seconds: float) -> TokenUnavailable:
    happened = f"Token requests are paused, after one that failed: {failures.reason or 'reason unknown'}"
    kind = RateLimited if failures.requested else OutcomeUnknown if failures.unknown else TokenUnavailable
    error = kind(happened, retry_after=seconds)
    if failures.unknown:
        error.intact = OutcomeUnknown.intact
    return error


def _nothing_left(state: TokenState, configured: Credential | None) -> SignInRequired:
    if configured is not None and configured.grant_type == "authorization_code" and state.token is not None:
        return SignInRequired("The code has been redeemed, and the provider gave no refresh token with it.")
    if state.token is not None:
        return SignInRequired("The stored token has no refresh token, and no other credential is configured.")
    return SignInRequired(
        "There is no refresh token or code: none is configured, and none is stored under this key.",
        intact="",
        todo="Sign in: configure a refresh token or code, or call source.sign_in(...).",
    )
