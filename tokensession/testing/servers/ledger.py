"""What an authorization server remembers: sign-ins, the tokens issued from them, and its counters.

Without network and HTTP. Time comes from the server's `Clock`, and only from `boot`, so that a test that
steps the wall clock of the client does not move the server's.

A *grant* is one sign-in and everything issued from it. Where refresh tokens rotate, a credential (a code or
refresh token) works once. A spent one that comes again revokes its grant (RFC 6749, 4.1.2; RFC 9700,
4.14.2).
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from dataclasses import dataclass, field

from ...clock import Clock
from ...providers.protocol import DEVICE_CODE, Credential, GrantType

__all__ = ["DUE_FRACTION", "Issue", "Ledger"]

DUE_FRACTION = 0.5
"""A new token is due in this last part of a token's life: asking for one then is not a waste.

A client refreshes ahead of time in the last 0.24 of a life (L/5, and a fifth of that as jitter), counted
from when it *sent* its request. The rest is a margin for slow machines: where tokens live two seconds, one
that stalls for half a second delays a request by that much. A second request for the same expiry comes far
earlier, since both clients have seen the same old token.
"""


@dataclass(slots=True, repr=False, eq=False)
class _Grant:
    generation: int = 0  # access tokens issued
    due_from: float = -math.inf  # boot clock: when a successor of the newest access token is due
    counted: int = -1  # the generation whose end has been counted as an expiry
    revoked: bool = False


@dataclass(slots=True, repr=False, eq=False)
class _Issued:
    """A credential that the server has issued."""

    grant: _Grant
    spent: bool = False


@dataclass(slots=True, repr=False, eq=False)
class _Access:
    token: str
    grant: _Grant
    expires: float  # boot clock


@dataclass(frozen=True, slots=True, repr=False)
class Issue:
    """The outcome of a token request. `refresh_token` is the one that works from now on, new or not."""

    access_token: str
    refresh_token: str


@dataclass(slots=True, repr=False, eq=False)
class Ledger:
    """Every token and its state. `lifetime` is in seconds. Every token issued here begins with `name`."""

    clock: Clock
    lifetime: float
    rotates: bool
    name: str
    expiries: int = 0
    reuse_detections: int = 0
    _credentials: dict[Credential, _Issued] = field(default_factory=dict)
    _access: dict[str, _Access] = field(default_factory=dict)
    _by_expiry: deque[_Access] = field(default_factory=deque)  # in the order in which they expire

    def sign_in(self, credential: Credential) -> None:
        """Open a new grant with this credential, as a person does who signs in."""
        self._credentials[credential] = _Issued(_Grant())

    def new_credential(self, grant_type: GrantType) -> str:
        """Open a new grant with a new refresh token or code."""
        return self._new(grant_type, _Grant())

    def count_expiry(self, credential: Credential) -> float:
        """Count an expiry if a new token is due now and the old one's end has not been counted yet.

        Call it for every token request, before anything can go wrong with it, so that a failed attempt and
        its repetition are two requests for one expiry. Returns the time (boot clock).
        """
        now = self.clock.boot()
        issued = self._credentials.get(credential)
        if issued is not None:
            grant = issued.grant
            if now >= grant.due_from and grant.counted != grant.generation:
                grant.counted = grant.generation
                self.expiries += 1
        return now

    def redeem(self, credential: Credential, arrived: float) -> Issue | None:
        """Issue new tokens, or return None for a credential that is unknown, spent or revoked.

        `arrived` is when the request came: the next token is due by it, however long the server takes.
        """
        issued = self._credentials.get(credential)
        if issued is None or issued.grant.revoked:
            return None
        if issued.spent:
            self.reuse_detections += 1
            self._revoke(issued.grant)
            return None
        machine = credential.grant_type == "client_credentials"
        permanent = machine or (credential.grant_type == "refresh_token" and not self.rotates)
        issued.spent = not permanent
        if machine:
            return self._issue(issued.grant, "", arrived)
        refresh_token = credential.secret if permanent else self._new("refresh_token", issued.grant)
        return self._issue(issued.grant, refresh_token, arrived)

    def valid(self, access_token: str) -> bool:
        """Whether the API accepts this access token now."""
        access = self._access.get(access_token)
        return access is not None and not access.grant.revoked and self.clock.boot() < access.expires

    def revoke_access_tokens(self) -> None:
        """Revoke every access token. Refresh tokens stay valid."""
        for access in self._by_expiry:
            access.grant.due_from = -math.inf
        self._access.clear()
        self._by_expiry.clear()

    def revoke_grants(self) -> None:
        """Revoke every sign-in: all access tokens, refresh tokens and codes."""
        for credential, issued in self._credentials.items():
            self._revoke(issued.grant)
            if credential.grant_type == "client_credentials":
                issued.grant = _Grant()  # no person has signed in, so the client itself still may

    def revoke(self, token: str) -> bool:
        """Revoke this refresh token with all that was issued from its sign-in, or this access token.

        Returns whether it was known (RFC 7009, 2.1).
        """
        issued = self._credentials.get(Credential("refresh_token", token))
        if issued is not None:
            self._revoke(issued.grant)
            return True
        access = self._access.pop(token, None)
        if access is not None:
            access.grant.due_from = -math.inf
        return access is not None

    def _revoke(self, grant: _Grant) -> None:
        grant.revoked = True
        grant.due_from = -math.inf

    def _new(self, grant_type: GrantType, grant: _Grant) -> str:
        kind = {"refresh_token": "refresh", DEVICE_CODE: "device"}.get(grant_type, "code")
        secret = f"{self.name}-{kind}-{secrets.token_urlsafe(24)}"
        self._credentials[Credential(grant_type, secret)] = _Issued(grant)
        return secret

    def _issue(self, grant: _Grant, refresh_token: str, arrived: float) -> Issue:
        now = self.clock.boot()
        while self._by_expiry and self._by_expiry[0].expires <= now:
            self._access.pop(self._by_expiry.popleft().token, None)
        access = _Access(f"{self.name}-access-{secrets.token_urlsafe(24)}", grant, now + self.lifetime)
        self._access[access.token] = access
        self._by_expiry.append(access)
        grant.generation += 1
        grant.due_from = arrived + self.lifetime * (1 - DUE_FRACTION)
        return Issue(access.token, refresh_token)
