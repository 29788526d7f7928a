"""What to do about a grant, decided without doing it. Pure; `renewal.py` acts on it.

`plan` looks at the record under the claim and returns one of four steps. Read its body from top to
bottom: the order is the policy.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from .errors import GrantLost, GrantRejected, SignedOut, SignInRequired
from .freshness import Policy, Verdict, judge
from .providers.base import Credential, Provider
from .record import Attempt, Grant, Rejection

__all__ = [
    "Fail",
    "Note",
    "Redeem",
    "Serve",
    "Step",
    "descend",
    "gives_way",
    "lost",
    "outlives",
    "plan",
    "refused",
    "single_use",
]


@dataclass(frozen=True, slots=True)
class Serve:
    """Use the token in the record. No token request."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Redeem:
    """Send the credential.

    `stored` is the grant to note a refusal or a lost reply in, `origin` what a new token descends from.
    `replay`: it has been sent before, and nobody knows what became of it.
    """

    credential: Credential
    stored: Grant
    origin: tuple[str, str]
    replay: bool


@dataclass(frozen=True, slots=True)
class Note:
    """Commit this to the record first, then look again: it must be known before anything is sent."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Fail:
    """Raise this. No token request."""

    error: SignInRequired


Step = Serve | Redeem | Note | Fail


def single_use(credential: Credential, provider: Provider) -> bool:
    """Whether redeeming spends it. A code always is spent (RFC 6749, 4.1.2)."""
    return provider.rotates or credential.grant_type == "authorization_code"


def descend(stored: Grant, seed: Credential | None) -> Grant:
    """The grant that counts: what is stored, unless the configuration has a seed it does not come from.

    The same seed, and the store wins, for it has rotated since. Another one, and the operator has
    signed in again: then neither the stored token nor a sign-out concerns us. What is noted of
    credentials (a refusal, a lost reply) does: it is about one of them by name.
    """
    if seed is None or stored.seed == seed.fingerprint:
        return stored
    return replace(stored, seed=seed.fingerprint, sign_in="", token=None, signed_out=False)


def _credential(grant: Grant, seed: Credential | None) -> Credential | None:
    if grant.token is not None and grant.token.refresh_token:
        return Credential("refresh_token", grant.token.refresh_token)
    # A code in the seed has been redeemed if there is a token from it; a refresh token may stay good.
    if seed is not None and (grant.token is None or seed.grant_type == "refresh_token"):
        return seed
    return None


def lost(stored: Grant, credential: Credential, at: float) -> Grant:
    """The stored grant after one more request whose outcome nobody knows."""
    earlier = stored.attempt
    if earlier is None or earlier.credential != credential.fingerprint:
        return replace(stored, attempt=Attempt(credential.fingerprint, at))
    return replace(stored, attempt=replace(earlier, replays=earlier.replays + 1))


def refused(stored: Grant, credential: Credential, code: str) -> Grant:
    """The stored grant after the provider has refused this credential.

    Nothing else in it changes: while a deployment rolls, a process with the old configuration may be
    refused over a record that descends from the new sign-in.
    """
    attempt = stored.attempt
    if attempt is not None and attempt.credential == credential.fingerprint:
        attempt = None
    return replace(stored, attempt=attempt, rejection=Rejection(credential.fingerprint, code))


def outlives(stored: Grant | None, before: Grant, credential: Credential, provider: Provider) -> bool:
    """Whether a token that this credential has just brought counts more than what is stored now.

    It does if it is the very next generation after `before`, the grant that was seen under the claim: if
    nothing but notes has been written since, or a grant of another seed than the one we were given to
    start from. It gives way to another token, and to a sign-out or a deletion.
    """
    if stored is None:
        return False
    pairs = (stored, before), (descend(stored, provider.seed), descend(before, provider.seed))
    for grant, seen in pairs:
        seed = provider.seed
        if seed is not None and grant.seed != seed.fingerprint:
            seed = None
        if not grant.signed_out and grant.token == seen.token and _credential(grant, seed) == credential:
            return True
    return False


def gives_way(stored: Grant, *, before: Grant, late: bool, earlier: Collection[str] = ()) -> bool:
    """Whether what is stored gives way to a sign-in that saw `before` when it began.

    A refresh that ended meanwhile does; a sign-out that was asked for later does not. `late`: the sign-in
    has returned long ago, unsaved. Then another sign-in may have followed, or a refresh of its own token
    (its save had no answer, and was stored all the same): only what descends from where `before` does is
    older than it, or from one of the `earlier` sign-ins, which were unsaved themselves when it began.
    """
    older = stored.origin == before.origin or stored.sign_in in earlier
    return not stored.signed_out and (older or not late)


def plan(
    stored: Grant | None,
    *,
    provider: Provider,
    policy: Policy,
    have: str | None,
    refused: bool,
    interrupted: float | None,
    now: float,
) -> Step:
    """The next step of a refresh.

    `have` is the fingerprint of the access token that is to be replaced, None if there is none;
    `refused` whether the API answered 401 to it; `interrupted` how many seconds ago another holder of
    the claim began and never ended, or None; `now` the wall clock.
    """
    seed = provider.seed
    stored = stored or Grant(seed=seed.fingerprint if seed else "")
    # Who has had a token is past its seed: a record from another one is then a newer sign-in, not an
    # older configuration's. While a deployment rolls, this keeps spent seeds from being sent again.
    grant = descend(stored, seed) if have is None else stored
    if seed is not None and grant.seed != seed.fingerprint:
        seed = None
    if grant.signed_out:
        return Fail(SignedOut("This key is signed out."))

    token = grant.token
    usable = token is not None and judge(token, policy, now) is not Verdict.EXPIRED
    if usable and token is not None and token.fingerprint != have:
        return Serve(grant)  # somebody else was faster

    credential = _credential(grant, seed)
    if credential is None:
        return Fail(SignInRequired("There is no refresh token, and no code, to get a token with."))
    name = credential.fingerprint
    if grant.rejection is not None and grant.rejection.credential == name:
        said = grant.rejection.code or "no code"
        return Fail(GrantRejected(f"The provider has refused this credential before ({said}).", code=said))

    if single_use(credential, provider):
        if interrupted is not None:
            return Note(lost(stored, credential, now - interrupted))
        attempt = grant.attempt
        if attempt is not None and attempt.credential == name:
            still_good = usable and not refused
            if attempt.replays:
                return Serve(grant) if still_good else Fail(_gone())
            permitted = provider.replay_leeway > 0 and 0 <= now - attempt.at <= provider.replay_leeway
            if still_good and not permitted:
                return Serve(grant)  # the refresh token may be spent: live on this token while it lasts
            return Redeem(credential, stored, grant.origin, replay=True)
    return Redeem(credential, stored, grant.origin, replay=False)


def _gone() -> GrantLost:
    return GrantLost("The answer to a token request was lost, twice; the refresh token is taken for spent.")
