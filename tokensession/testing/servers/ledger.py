"""What an authorization server remembers: grants, the tokens that descend from them, and its counters.

No network and no HTTP in here; time comes from the server's `Clock` (`boot`, so that a test which
steps the wall clock of the client does not move the server's).

A *grant* is one sign-in and everything that descends from it. A *slip* is one secret that can be
redeemed for an access token: a code, or a refresh token. Where refresh tokens rotate a slip is good
once; presenting a spent one revokes its grant and all that came of it (RFC 6749, 4.1.2; RFC 9700,
4.14.2).
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from dataclasses import dataclass, field

from ...clock import Clock
from ...providers.protocol import Credential

__all__ = ["DUE_FRACTION", "Issue", "Ledger"]

DUE_FRACTION = 0.5
"""In the last part of a token's life a new one is due: a request for it is no waste.

A client refreshes ahead in the last 0.24 of a life (L/5, and a fifth of that as jitter), counted from
when it *sent* its request. What is more than that is for the way here: where tokens live two seconds, a
machine that stops for half of one moves a request by that much. A second request for the same expiry
comes far earlier, since both have seen the same old token.
"""


@dataclass(slots=True, repr=False, eq=False)
class _Grant:
    generation: int = 0  # access tokens issued
    due_from: float = -math.inf  # boot clock: from when the newest access token wants a successor
    counted: int = -1  # the generation whose end has been counted as an expiry
    revoked: bool = False


@dataclass(slots=True, repr=False, eq=False)
class _Slip:
    grant: _Grant
    spent: bool = False


@dataclass(slots=True, repr=False, eq=False)
class _Access:
    token: str
    grant: _Grant
    expires: float  # boot clock


@dataclass(frozen=True, slots=True, repr=False)
class Issue:
    """A token pair, fresh. `refresh_token` is the one that works from now on, new or not."""

    access_token: str
    refresh_token: str


@dataclass(slots=True, repr=False, eq=False)
class Ledger:
    """Who may do what. `lifetime` is in seconds; `name` begins every token made here."""

    clock: Clock
    lifetime: float
    rotates: bool
    name: str
    expiries: int = 0
    reuse_detections: int = 0
    _slips: dict[Credential, _Slip] = field(default_factory=dict)
    _access: dict[str, _Access] = field(default_factory=dict)
    _issued: deque[_Access] = field(default_factory=deque)  # in the order of their expiry

    def sign_in(self, credential: Credential) -> None:
        """An administrator signs in: this credential opens a new grant."""
        self._slips[credential] = _Slip(_Grant())

    def note(self, credential: Credential) -> float:
        """Count an expiry if a new token is due now and this one's end has not been counted yet.

        Called for every token request, before anything can go wrong with it, so that a failed first
        attempt and its repetition are two requests for one expiry. Returns the time (boot clock).
        """
        now = self.clock.boot()
        slip = self._slips.get(credential)
        if slip is not None:
            grant = slip.grant
            if now >= grant.due_from and grant.counted != grant.generation:
                grant.counted = grant.generation
                self.expiries += 1
        return now

    def redeem(self, credential: Credential, noted: float) -> Issue | None:
        """A new token pair, or None for a credential that is unknown, spent or revoked.

        `noted` is when the request came: from then on the client counts, however long we take.
        """
        slip = self._slips.get(credential)
        if slip is None or slip.grant.revoked:
            return None
        if slip.spent:
            self.reuse_detections += 1
            self._revoke(slip.grant)
            return None
        keep = credential.grant_type == "refresh_token" and not self.rotates
        slip.spent = not keep
        return self._issue(slip.grant, credential.secret if keep else self._new_slip(slip.grant), noted)

    def alive(self, access_token: str) -> bool:
        """Whether the API accepts this access token now."""
        access = self._access.get(access_token)
        return access is not None and not access.grant.revoked and self.clock.boot() < access.expires

    def revoke_access_tokens(self) -> None:
        """Every access token is dead at once; refresh tokens stay good."""
        for access in self._issued:
            access.grant.due_from = -math.inf
        self._access.clear()
        self._issued.clear()

    def revoke_grants(self) -> None:
        """Every sign-in is undone: all access tokens, refresh tokens and codes are dead."""
        for slip in self._slips.values():
            self._revoke(slip.grant)

    def _revoke(self, grant: _Grant) -> None:
        grant.revoked = True
        grant.due_from = -math.inf

    def _new_slip(self, grant: _Grant) -> str:
        token = f"{self.name}-refresh-{secrets.token_urlsafe(24)}"
        self._slips[Credential("refresh_token", token)] = _Slip(grant)
        return token

    def _issue(self, grant: _Grant, refresh_token: str, noted: float) -> Issue:
        now = self.clock.boot()
        while self._issued and self._issued[0].expires <= now:
            self._access.pop(self._issued.popleft().token, None)
        access = _Access(f"{self.name}-access-{secrets.token_urlsafe(24)}", grant, now + self.lifetime)
        self._access[access.token] = access
        self._issued.append(access)
        grant.generation += 1
        grant.due_from = noted + self.lifetime * (1 - DUE_FRACTION)
        return Issue(access.token, refresh_token)
