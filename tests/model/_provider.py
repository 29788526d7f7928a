"""The model of an authorization server, and what only it knows about each token request."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokensession.providers.protocol import TokenResponse
from tokensession.token import Token

if TYPE_CHECKING:
    from _process import Process

LIFETIME = 3600


@dataclass(eq=False)
class Sent:
    """One token request and how it ended, as only the model knows it."""

    process: Process
    credential: str
    began: float
    faults: int
    """How many things had gone wrong when it began: see `World.faults`."""
    losses: int = 0
    """How often the store had lost data when it ended, or began: see `World.losses`."""
    is_code: bool = False
    signs_in: bool = False
    """Whether a person brought this credential."""
    forced: bool = False
    """Whether a caller has forced the refresh that is running in this process."""
    left: float | None = None
    """When its first byte left. None if it never did, because there was no connection."""
    losses_when_left: int = 0
    arrived: bool = False
    serial: int = 0
    """The serial number of the token that was issued for it, or 0."""
    rejected: bool = False
    problem: bool = False
    """Whether its response had a token that must not be used."""
    lapsed: bool = False
    """Whether its process lost the claim before it had stored the outcome."""
    orphaned: bool = False
    """Whether its process was killed while it held the claim, before this arrived."""
    ended: float | None = None
    """When its process stopped to wait for it. None if that was killed before."""
    outcome: str = ""
    """What its process was told: "token", "rejected", "lost", "not sent", "cut short", or a refusal."""
    pause: float = 0.0
    """The shortest pause that has to follow."""
    faults_when_ended: int = 0
    superseded: int = 0
    """How many writes had met another version when it began: see `World.superseded`."""

    @property
    def delivered(self) -> bool:
        """Whether a process that was alive got the server's own answer."""
        return self.outcome in ("token", "rejected")

    @property
    def unknown(self) -> bool:
        """Whether its process was told that no one knows what has come of it."""
        return self.outcome in ("lost", "502", "cut short")


class Provider:
    """An authorization server.

    A refresh token or code works once. One that comes back ends its sign-in, unless it is a refresh token
    that comes back within the `leeway`: then there is one more token.
    """

    def __init__(self, name: str, serials: Iterator[int] | None = None, *, leeway: float = 0.0) -> None:
        self.name = name
        self.leeway = leeway
        self.sign_ins: dict[str, int] = {}  # token or credential -> its sign-in
        self.serials: dict[
            str, int
        ] = {}  # token or credential -> its serial number; a first credential has 0
        self.generations: dict[str, int] = {}
        """Of a token or credential: how many came before it in its sign-in. Tokens that were issued for the
        same refresh token, within the leeway, are of the same generation."""
        self.parents: dict[str, str] = {}  # refresh token -> the credential that it was issued for
        self.spent: dict[str, tuple[Sent, float]] = {}
        self.revoked: set[int] = set()
        self.reused: list[tuple[Sent, Sent]] = []  # the request that spent it, the request that reused it
        self._serials = serials if serials is not None else itertools.count(1)

    def new_credential(self, kind: str) -> str:
        """A refresh token or code that a person has just got."""
        number = next(self._serials)
        credential = f"{self.name}-{kind}-{number}"
        self.sign_ins[credential] = number
        self.serials[credential] = 0
        return credential

    def redeem(self, sent: Sent, now: float) -> TokenResponse:
        """Handle a token request that has arrived."""
        sent.arrived = True
        sign_in = self.sign_ins.get(sent.credential)
        earlier, at = self.spent.get(sent.credential, (None, 0.0))
        excused = self.leeway > 0 and now - at <= self.leeway and not sent.is_code
        if earlier is not None and sign_in is not None and sign_in not in self.revoked and not excused:
            self.reused.append((earlier, sent))
            self.revoked.add(sign_in)
        if sign_in is None or sign_in in self.revoked:
            sent.rejected = True
            return respond(400, {"error": "invalid_grant"})
        if earlier is None:
            self.spent[sent.credential] = sent, now
        serial = sent.serial = next(self._serials)
        access, refresh = f"{self.name}-access-{serial}", f"{self.name}-refresh-{serial}"
        for token in (access, refresh):
            self.sign_ins[token], self.serials[token] = sign_in, serial
            self.generations[token] = self.generations.get(sent.credential, 0) + 1
        self.parents[refresh] = sent.credential
        return respond(
            200,
            {
                "access_token": access,
                "token_type": "Bearer",
                "refresh_token": refresh,
                "expires_in": LIFETIME,
            },
        )

    def succeeds(self, refresh_token: str, credential: str) -> bool:
        """Whether this refresh token descends from this credential, which is spent then.

        One that was issued within the leeway is no successor of those that were issued beside it.
        """
        each: str | None = refresh_token
        while each is not None and each in self.parents:
            each = self.parents[each]
            if each == credential:
                return True
        return False

    def works(self, credential: str | None) -> bool:
        """Whether it can still be redeemed."""
        return (
            credential in self.sign_ins
            and self.sign_ins[credential] not in self.revoked
            and credential not in self.spent
        )

    def accepts(self, token: Token) -> bool:
        """Whether the API accepts this access token."""
        name = token.access_token
        return name in self.sign_ins and self.sign_ins[name] not in self.revoked


def respond(status: int, document: Any, *headers: tuple[str, str]) -> TokenResponse:
    """A response with this JSON document, or with an empty body."""
    return TokenResponse(status, headers, b"" if document is None else json.dumps(document).encode())


def with_problem(response: TokenResponse) -> TokenResponse:
    """The same response, as one whose access token must not be used."""
    return respond(200, {**json.loads(response.body), "token_type": "mac", "expires_in": LIFETIME})
