"""The state after a token request: with the new token, or with one more request counted. Pure.

What a failed request adds is in `outcomes.py`.
"""

from __future__ import annotations

from dataclasses import replace

from ..policy import CLIENT_PAUSE, CLIENT_PAUSE_MAX, SUPERSEDED_LIMIT
from ..providers.protocol import Credential, Issued
from ..token import Token
from .decide import Redeem, View, identity_of
from .schedule import doubled, forced_refresh_delay, request_limit
from .state import Failures, Now, TokenState, redeeming, superseding

__all__ = ["counted", "next_number", "renewed", "signed_out"]


def renewed(step: Redeem, issued: Issued, view: View, sent: Now) -> TokenState:
    """The state after a token request that was sent at `sent` and brought a token."""
    before, credential, now = step.state, step.credential, view.now
    old, token = (None if step.starts is not None else before.token), issued.token
    if token.scope is None and old is not None:
        token = replace(token, scope=old.scope)
    if old is not None and old.extra:
        token = replace(token, extra={**old.extra, **token.extra})
    same = old is not None and old.refresh_token == token.refresh_token
    if same and old is not None and token.refresh_lifetime is None and old.refresh_lifetime is not None:
        token = replace(token, refresh_lifetime=old.refresh_lifetime - (sent.boot - before.obtained))
    starts, name = step.starts is not None, credential.fingerprint
    configured = name if starts else before.configured
    limit = request_limit(token.lifetime, view.policy)
    # A request with another credential, such as a newly configured one, may still have no answer.
    others = replace(before, failures=None, other_failures=()) if starts else before.without_failures(name)
    state = replace(
        others,
        number=before.number if step.starts is None else step.starts,
        generation=0 if starts else before.generation + 1,
        identity=identity_of(view.provider) or before.identity,
        configured=configured,
        superseded=superseding(before, configured) if starts else before.superseded,
        start=name if starts else before.start,
        redeemed=redeeming(before, name, now.boot) if starts and step.sent.single else before.redeemed,
        signed_out=False,
        token=token,
        obtained=sent.boot,
        problem=str(issued.problem.args[0]) if issued.problem is not None else "",
        previous=credential.secret
        if issued.problem is not None and credential.grant_type == "refresh_token"
        else None,
        rejections=tuple(each for each in before.rejections if each.credential != name),
        sign_in_life=_sign_in_life(before if step.starts is None else TokenState(), token, sent),
        forced=_forced(step, view),
        force_at=now.boot if step.forced else before.force_at,
        requests=before.requests_used(limit, now.boot) + 1,
        requests_at=now.boot,
        more={field: value for field, value in before.more.items() if field != "token"},
    )
    pause = _after_problem(before, token, now) if issued.problem is not None else None
    return state if pause is None else state.with_failures(pause)


def _sign_in_life(before: TokenState, token: Token, sent: Now) -> float | None:
    """How long the sign-in was to live when its end was first stated, or last moved on."""
    left, old = token.refresh_lifetime, before.token.refresh_lifetime if before.token is not None else None
    if left is None or old is None or before.sign_in_life is None:
        return left
    moved = (sent.boot + left) - (before.obtained + old)
    return left if moved > 60 else before.sign_in_life


def _after_problem(before: TokenState, token: Token, now: Now) -> Failures | None:
    """A pause before the next request, so that a server that always answers like this is asked seldom."""
    if token.refresh_token is None:
        return None
    name = Credential("refresh_token", token.refresh_token).fingerprint
    count = 1 + (before.failures.count if before.problem and before.failures is not None else 0)
    until = now.boot + doubled(CLIENT_PAUSE, CLIENT_PAUSE_MAX, count)
    reason = "The response had a token that cannot be used."
    return Failures(
        name, count, reason=reason, since=now.boot, last=now.boot, until=until, background_until=until
    )


def _forced(step: Redeem, view: View) -> int:
    """How many refreshes in a row a 401 has caused. A token that has served for the spacing ends it."""
    before = step.state
    if step.starts is not None or before.token is None:
        return int(step.unauthorized)
    spacing = forced_refresh_delay(before.forced, before.token.lifetime, view.policy)
    helped = view.now.boot - before.obtained >= 2 * spacing
    return (0 if helped else before.forced) + step.unauthorized


def next_number(highest: int, wall: float) -> int:
    """The number of a sign-in or sign-out: one more than the highest known one, or the time in seconds.

    After a loss of data, a process that has just started knows no number, and others know theirs. They would
    write them back over this sign-in. The time is higher than any number that was counted up, and of two
    times the later one. Without a loss of data it decides nothing.
    """
    return max(highest + 1, int(wall))


def signed_out(before: TokenState, number: int, *, configured: str) -> TokenState:
    """The tombstone that a sign-out leaves of this state. It keeps what must not be sent again.

    That is also what has been sent and got no answer: the sign-out ends what may have come of it.
    """
    ended = dict.fromkeys((*superseding(before, configured), *before.unanswered))
    return TokenState(
        number=number,
        identity=before.identity,
        configured=configured,
        superseded=tuple(ended)[-SUPERSEDED_LIMIT:],
        redeemed=before.redeemed,
        signed_out=True,
    )


def counted(state: TokenState, view: View, *, forced: bool) -> TokenState:
    """This state, with one more token request that failed."""
    limit = request_limit(state.token.lifetime if state.token is not None else None, view.policy)
    return replace(
        state,
        requests=state.requests_used(limit, view.now.boot) + 1,
        requests_at=view.now.boot,
        force_at=view.now.boot if forced else state.force_at,
        identity=state.identity or identity_of(view.provider),
    )
