"""The access token and what came with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Token", "fingerprint"]


def fingerprint(secret: str) -> str:
    """Sixteen hex digits that identify a secret without revealing it.

    One-way, and the same in every process, so it may appear in keys, records and logs.
    """
    digest = hashlib.blake2b(secret.encode("utf-8", "surrogatepass"), digest_size=8, person=b"tokensession")
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """An access token and what came with it. Frozen. `repr` shows its fingerprint, never the token.

    `lifetime` is what the provider granted, in seconds (`expires_in`, RFC 6749 section 5.1), or None if it
    did not say. `obtained_at` is when the token request was *sent*, in seconds since the epoch: after a slow
    response the token expires early, never late. `refresh_lifetime` is how long the refresh token lives from
    then on, if the provider says: after that a person has to sign in again.

    `extra` has the other fields of the response that the strategy declares in `Fields.extra`, such as
    `id_token`, by their paths. A field that a refresh does not repeat stays. Do not change it.
    """

    access_token: str
    obtained_at: float
    lifetime: float | None = None
    refresh_token: str | None = None
    scope: str | None = None
    token_type: str = "Bearer"  # noqa: S105 - RFC 6750's scheme, not a secret
    refresh_lifetime: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def expires_at(self) -> float | None:
        """When the token expires, in seconds since the epoch, or None if it has no stated lifetime."""
        return None if self.lifetime is None else self.obtained_at + self.lifetime

    @property
    def authorization(self) -> str:
        """The value of the Authorization header. The scheme is always `Bearer` (RFC 6750)."""
        return "Bearer " + self.access_token

    @property
    def fingerprint(self) -> str:
        """What identifies this access token in logs and events."""
        return fingerprint(self.access_token)

    def __repr__(self) -> str:
        lifetime = "no stated lifetime" if self.lifetime is None else f"{self.lifetime:g} s"
        rotation = "with" if self.refresh_token else "without"
        return f"<Token {self.fingerprint} {lifetime}, {rotation} refresh token>"
