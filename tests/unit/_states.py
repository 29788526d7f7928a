"""Stored states and views for tables: one moment, a few credentials, and what differs from case to case."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tokensession._refresh.decide import Fail, Redeem, Restore, Step, View, Wait, Want, decide
from tokensession._refresh.next_state import renewed
from tokensession._refresh.outcomes import LocalFailure
from tokensession._refresh.state import Failures, Now, Rejection, TokenState
from tokensession.errors import InvalidTokenResponse, TokenSessionError
from tokensession.policy import Policy
from tokensession.providers.protocol import Credential, Identity, Issued
from tokensession.token import Token

NOW = Now(wall=1_750_000_000.0, boot=100_000.0)
LIFETIME = 3600.0
DAY = 86_400.0

CONFIGURED = Credential("refresh_token", "rt-configured")
NEWLY_CONFIGURED = Credential("refresh_token", "rt-newly-configured")
CODE = Credential("authorization_code", "co-configured")
CURRENT = Credential("refresh_token", "rt-current")
"""The refresh token that is stored with the token."""

FRESH, DUE, ENDING, EXPIRED = 0.0, 3400.0, 3550.0, 3600.0
"""The age of a token that is so."""
ORDER = (1, 0)
"""The order of `state()`."""


@dataclass(frozen=True)
class Kind:
    """The part of a provider that `decide` needs."""

    credential: Credential | None = CONFIGURED
    rotates: bool = True
    replay_leeway: float = 0
    identity: Identity | None = None


ROTATING, PERMANENT = Kind(), Kind(rotates=False)
LENIENT = Kind(replay_leeway=30)
BY_CODE, PERMANENT_BY_CODE = Kind(CODE), Kind(CODE, rotates=False)
UNCONFIGURED = Kind(None)
RECONFIGURED = Kind(NEWLY_CONFIGURED)
IDENTITY = Identity("oauth2", "eu", "client-1", "https://id.example.com", "read write")
BAD = InvalidTokenResponse("The token_type is mac.", granted=True)
"""What is wrong with a token that must not be used."""
KINDS = [ROTATING, PERMANENT, LENIENT, BY_CODE, PERMANENT_BY_CODE, UNCONFIGURED, RECONFIGURED]


def whose(identity: Identity | None, **changes: Any) -> Kind:
    """A provider of this identity."""
    return replace(ROTATING, identity=identity, **changes)


SIGNED_OUT = TokenState(number=2, configured=CONFIGURED.fingerprint, signed_out=True)
"""The tombstone of a sign-out."""


def later(seconds: float) -> Now:
    """That much later, on both clocks."""
    return Now(NOW.wall + seconds, NOW.boot + seconds)


def token(
    name: str = "at-1",
    *,
    age: float = 0,
    lifetime: float | None = LIFETIME,
    refresh: str | None = CURRENT.secret,
) -> Token:
    return Token(name, NOW.wall - age, lifetime, refresh)


def state(age: float = FRESH, *, name: str = "at-1", **changes: Any) -> TokenState:
    """A state with a token of this age, of the lineage of the configured credential."""
    refresh = changes.pop("refresh", CURRENT.secret)
    lifetime = changes.pop("lifetime", LIFETIME)
    known: dict[str, Any] = {
        "number": 1,
        "configured": CONFIGURED.fingerprint,
        "start": CONFIGURED.fingerprint,
        "token": token(name, age=age, lifetime=lifetime, refresh=refresh),
        "obtained": NOW.boot - age,
    }
    return TokenState(**known | changes)


def failures(
    credential: Credential = CURRENT, *, ago: float = 10, pause: float = 0, **changes: Any
) -> Failures:
    """One failure `ago` seconds ago. Nothing may be sent for `pause` seconds from now on."""
    at = NOW.boot - ago
    until = NOW.boot + pause if pause else at
    known: dict[str, Any] = {"count": 1, "since": at, "last": at, "until": until, "background_until": until}
    return Failures(credential.fingerprint, **known | changes)


def unknown(credential: Credential = CURRENT, count: int = 1, **changes: Any) -> Failures:
    """So many requests without an answer."""
    known: dict[str, Any] = {"unknown": count, "count": count, "reason": "It got no answer."}
    return failures(credential, **known | changes)


def request_of(credential: Credential, client: str = "client") -> str:
    """The fingerprint of the token request of this client."""
    return f"{client} {credential.fingerprint}"


def rejection(credential: Credential = CURRENT, code: str = "invalid_grant", **changes: Any) -> Rejection:
    """A rejection for good of this client's request."""
    known: dict[str, Any] = {"code": code, "request": request_of(credential), "reason": "It was rejected."}
    return Rejection(credential.fingerprint, **known | changes)


def probable(credential: Credential = CURRENT, *, pause: float = 900, **changes: Any) -> Rejection:
    """A rejection that may mean something else, tried again after the pause."""
    known: dict[str, Any] = {"code": "invalid_token", "certain": False, "until": NOW.boot + pause}
    return rejection(credential, **known | changes)


def view(
    stored: TokenState | None,
    provider: Any = ROTATING,
    *,
    memory: TokenState | None = None,
    have: tuple[int, int] | None = None,
    unauthorized: str | None = None,
    force: bool = False,
    background: bool = False,
    now: Now = NOW,
    client: str = "client",
    policy: Policy | None = None,
    **others: Any,
) -> View:
    others.setdefault("seen_at", now.boot)
    if isinstance(local := others.get("local"), Failures):
        others["local"] = LocalFailure(local)
    return View(
        stored,
        memory,
        Want(have, unauthorized, force, background),
        now,
        provider,
        policy or Policy(),
        lambda credential: request_of(credential, client),
        **others,
    )


def step(stored: TokenState | None, provider: Any = ROTATING, **others: Any) -> Step:
    """What `decide` says about this."""
    return decide(view(stored, provider, **others))


def sends(result: Step) -> Redeem:
    """This step, which sends a token request."""
    assert isinstance(result, Redeem), result
    return result


def waits(result: Step) -> Wait:
    """This step, which sends nothing for now."""
    assert isinstance(result, Wait), result
    return result


def failure(result: Step) -> TokenSessionError:
    """The error of this step."""
    assert isinstance(result, Fail), result
    return result.error


def restored(result: Step) -> TokenState:
    """The state that this step writes back."""
    assert isinstance(result, Restore), result
    return result.state


def found(known: TokenState) -> Failures:
    """The failures that are noted in this state."""
    assert known.failures is not None
    return known.failures


def after(
    result: Redeem,
    name: str = "at-2",
    *,
    now: Now = NOW,
    provider: Any = ROTATING,
    refresh: str | None = "rt-next",
    lifetime: float | None = LIFETIME,
    problem: InvalidTokenResponse | None = None,
    policy: Policy | None = None,
    **changes: Any,
) -> TokenState:
    """The state after this token request, which brought a token at once."""
    issued = Token(name, now.wall, lifetime, refresh)
    return renewed(
        result,
        Issued(replace(issued, **changes), (), problem),
        view(result.state, provider, now=now, policy=policy),
        now,
    )


def told(error: TokenSessionError) -> str:
    """What happened, by this error."""
    return str(error.args[0])
