"""What to do with a stored state, decided without doing it. Pure; `transaction.py` acts on it.

`decide` looks at the state and returns one of four steps. Read its body from top to bottom: the order is
the policy.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ..errors import GrantLost, GrantRejected, SignedOut, SignInRequired
from ..policy import Policy
from ..providers.protocol import Credential, Provider
from .schedule import judge
from .state import Attempt, Rejection, TokenState

__all__ = [
    "Fail",
    "Note",
    "Redeem",
    "Serve",
    "Step",
    "decide",
    "effective_state",
    "single_use",
    "supersedes",
    "with_rejection",
    "with_unknown_outcome",
    "yields_to_sign_in",
]


@dataclass(frozen=True, slots=True)
class Serve:
    """Use the token in this state. No token request."""

    state: TokenState


@dataclass(frozen=True, slots=True)
class Redeem:
    """Send the credential.

    `stored` is the state in which to note a rejection or an unknown outcome. `origin` is what a new token
    descends from. `replay`: the credential has been sent before, and the outcome is unknown.
    """

    credential: Credential
    stored: TokenState
    origin: tuple[str, str]
    replay: bool


@dataclass(frozen=True, slots=True)
class Note:
    """Commit this state first, then look again: it must be stored before anything is sent."""

    state: TokenState


@dataclass(frozen=True, slots=True)
class Fail:
    """Raise this. No token request."""

    error: SignInRequired


Step = Serve | Redeem | Note | Fail


def single_use(credential: Credential, provider: Provider) -> bool:
    """Whether redeeming it spends it. A code is always spent (RFC 6749, 4.1.2)."""
    return provider.rotates or credential.grant_type == "authorization_code"


def effective_state(stored: TokenState, configured: Credential | None) -> TokenState:
    """The state that counts: the stored one, unless your configuration has another credential.

    If the configured credential is the one that the stored state descends from, the store wins: it has
    rotated since. If it is another one, you have signed in again, so neither the stored token nor a
    sign-out counts. A stored rejection or unknown outcome still does: it names one credential.
    """
    if configured is None or stored.configured == configured.fingerprint:
        return stored
    return replace(stored, configured=configured.fingerprint, sign_in="", token=None, signed_out=False)


def _credential(state: TokenState, configured: Credential | None) -> Credential | None:
    if state.token is not None and state.token.refresh_token:
        return Credential("refresh_token", state.token.refresh_token)
    # A configured code has been redeemed if there is a token from it. A refresh token may still be valid.
    if configured is not None and (state.token is None or configured.grant_type == "refresh_token"):
        return configured
    return None


def with_unknown_outcome(stored: TokenState, credential: Credential, at: float) -> TokenState:
    """The stored state after one more request whose outcome is unknown."""
    earlier = stored.attempt
    if earlier is None or earlier.credential != credential.fingerprint:
        return replace(stored, attempt=Attempt(credential.fingerprint, at))
    return replace(stored, attempt=replace(earlier, replays=earlier.replays + 1))


def with_rejection(stored: TokenState, credential: Credential, code: str) -> TokenState:
    """The stored state after the provider has rejected this credential.

    Nothing else in it changes. During a rolling deployment a process with the old configuration may be
    rejected while the record descends from the new sign-in.
    """
    attempt = stored.attempt
    if attempt is not None and attempt.credential == credential.fingerprint:
        attempt = None
    return replace(stored, attempt=attempt, rejection=Rejection(credential.fingerprint, code))


def supersedes(
    stored: TokenState | None, before: TokenState, credential: Credential, provider: Provider
) -> bool:
    """Whether a token that this credential has just returned replaces what is stored now.

    It does if it is the next generation after `before`, the state seen under the claim: if only notes have
    been written since, or a state of another configured credential than ours. It yields to another token,
    to a sign-out and to a deletion.
    """
    if stored is None:
        return False
    configured = provider.credential
    pairs = (stored, before), (effective_state(stored, configured), effective_state(before, configured))
    for state, seen in pairs:
        usable = configured
        if usable is not None and state.configured != usable.fingerprint:
            usable = None
        if not state.signed_out and state.token == seen.token and _credential(state, usable) == credential:
            return True
    return False


def yields_to_sign_in(
    stored: TokenState, *, before: TokenState, late: bool, earlier: Collection[str] = ()
) -> bool:
    """Whether the stored state yields to a sign-in that saw `before` when it began.

    A refresh that ended in between yields. A sign-out requested later does not.

    `late`: the sign-in has returned without being stored. Since then there may have been another sign-in,
    or a refresh of this one's token (its write may have been stored although the answer was an error). So
    it replaces only a state that descends from the same origin as `before`, or from one of the `earlier`
    sign-ins, which were unsaved themselves when it began.
    """
    older = stored.origin == before.origin or stored.sign_in in earlier
    return not stored.signed_out and (older or not late)


def decide(
    stored: TokenState | None,
    *,
    provider: Provider,
    policy: Policy,
    have: str | None,
    unauthorized: bool,
    interrupted: float | None,
    now: float,
) -> Step:
    """The next step of a refresh.

    `have` is the fingerprint of the access token to replace, or None. `unauthorized`: the API answered 401
    to it. `interrupted`: how many seconds ago an earlier holder of the claim began and never ended, or
    None. `now`: the wall clock.
    """
    configured = provider.credential
    stored = stored or TokenState(configured=configured.fingerprint if configured else "")
    # A process that has had a token is past its configured credential: a record from another one is a newer
    # sign-in, not an older configuration. During a rolling deployment this prevents spent credentials
    # from being sent again.
    state = effective_state(stored, configured) if have is None else stored
    if configured is not None and state.configured != configured.fingerprint:
        configured = None
    if state.signed_out:
        return Fail(SignedOut("This key is signed out."))

    token = state.token
    usable = token is not None and judge(token, policy, now).usable
    if usable and token is not None and token.fingerprint != have:
        return Serve(state)  # another task or process was faster

    credential = _credential(state, configured)
    if credential is None:
        return Fail(SignInRequired("There is no refresh token and no code to get a token with."))
    name = credential.fingerprint
    if state.rejection is not None and state.rejection.credential == name:
        code = state.rejection.code or "no code"
        return Fail(GrantRejected(f"The provider has rejected this credential before ({code}).", code=code))

    if single_use(credential, provider):
        if interrupted is not None:
            return Note(with_unknown_outcome(stored, credential, now - interrupted))
        attempt = state.attempt
        if attempt is not None and attempt.credential == name:
            still_valid = usable and not unauthorized
            if attempt.replays:
                return Serve(state) if still_valid else Fail(_lost())
            permitted = provider.replay_leeway > 0 and 0 <= now - attempt.at <= provider.replay_leeway
            if still_valid and not permitted:
                return Serve(state)  # the refresh token may be spent: use this token while it lasts
            return Redeem(credential, stored, state.origin, replay=True)
    return Redeem(credential, stored, state.origin, replay=False)


def _lost() -> GrantLost:
    return GrantLost("Two token requests with this refresh token got no answer, so it is probably spent.")
