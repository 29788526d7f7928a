"""The seam between requests and tokens: all that the middleware knows.

A fixed token, a managed one and a user's own are the same to it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from .token import Token

__all__ = ["RefreshableSource", "TokenSource"]


class TokenSource(Protocol):
    """Anything that has a token."""

    async def token(self) -> Token:
        """A token to send now. Raises rather than return one that cannot be valid."""
        ...


@runtime_checkable
class RefreshableSource(Protocol):
    """A source that can also replace a token which the API has refused."""

    async def token(self) -> Token:
        """A token to send now."""
        ...

    async def refresh(self, rejected: Token | None = None) -> Token:
        """Another token than the rejected one; the same one if another would not help now."""
        ...
