"""What every contestant can do, and what several of them need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AsyncExitStack
from importlib import metadata
from typing import Any, ClassVar, Self

import aiohttp

from tokensession.providers import ClientAuth

__all__ = ["CONNECTIONS", "TIMEOUT", "Peer", "excuse", "redeem"]

CONNECTIONS = 100
"""Connections at once, for all contestants: the default of aiohttp and httpx."""

TIMEOUT = 300.0
"""Seconds that one request may take: aiohttp's default. With httpx's 5, its queue would count as failures."""


class Peer(ABC):
    """One way to send GET requests with a bearer token, configured as its documentation advises.

    `credentials` are those of `harness.Server`: token_url, client_id, client_secret, refresh_token,
    base_url; the client authenticates in the body. `lifetime_margin`: how many seconds before its expiry
    a token counts as expired. None leaves that to the peer; some peers ignore it.

    `cannot`: which experiments it cannot take part in, and why, by the name of the experiment, or "import" if
    a package is missing. Packages are imported when a peer is entered, not before.
    """

    name: ClassVar[str]
    transport: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    """Distributions that must be installed."""
    cannot: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        missing = [name for name in cls.needs if not _installed(name)]
        if missing:
            cls.cannot = {"import": f"not installed: {', '.join(missing)}", **cls.cannot}

    def __init__(self, credentials: Mapping[str, Any], *, lifetime_margin: float | None = None) -> None:
        auth = credentials.get("auth")
        if auth is not None and auth != ClientAuth.post():
            raise ValueError(
                f"auth must be ClientAuth.post(), not {auth}: the peers authenticate in the body."
            )
        self.credentials = dict(credentials)
        self.margin = lifetime_margin
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.open(self._stack)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @abstractmethod
    async def open(self, stack: AsyncExitStack) -> None:
        """Open what it needs, and let the stack close it."""

    @abstractmethod
    async def prime(self) -> None:
        """Get a token."""

    @abstractmethod
    async def get(self, path: str) -> int:
        """Make one API request and read its body. Returns the status. Raises what the peer raises."""

    @abstractmethod
    def expire(self) -> None:
        """Make its token look expired, in the way its own code checks that."""

    @abstractmethod
    def holds(self) -> str | None:
        """The refresh token that it would use next."""

    def url(self, path: str) -> str:
        """The URL of an API path."""
        return f"{self.credentials['base_url']}{path}"

    def form(self, refresh_token: str | None) -> dict[str, str]:
        """The body of a token request."""
        return {
            "grant_type": "refresh_token",
            "refresh_token": refresh_token or "",
            "client_id": self.credentials["client_id"],
            "client_secret": self.credentials["client_secret"],
        }


def excuse(peer: type[Peer], experiment: str) -> str | None:
    """Why it cannot take part, or None if it can."""
    return peer.cannot.get("import") or peer.cannot.get(experiment)


async def redeem(
    peer: Peer, refresh_token: str | None, client: aiohttp.ClientSession | None = None
) -> dict[str, Any]:
    """Get a token by a plain request, for peers that need a first one."""
    if client is None:
        async with aiohttp.ClientSession() as client:
            return await redeem(peer, refresh_token, client)
    async with client.post(peer.credentials["token_url"], data=peer.form(refresh_token)) as response:
        response.raise_for_status()
        document: dict[str, Any] = await response.json()
        return document


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
