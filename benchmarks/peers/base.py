"""What every contestant can be told, and what several of them need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AsyncExitStack
from importlib import metadata
from typing import Any, ClassVar, Self

import aiohttp

__all__ = ["CONNECTIONS", "TIMEOUT", "Peer", "excuse", "redeem"]

CONNECTIONS = 100
"""Connections at once, for everybody: aiohttp's default, and httpx's."""

TIMEOUT = 300.0
"""Seconds that one request may take: aiohttp's default. httpx's own 5 would count its queue as failures."""


class Peer(ABC):
    """One way of sending GET requests with a bearer, in the configuration that its own documents advise.

    `credentials` are those of `harness.Server`: token_url, client_id, client_secret, refresh_token,
    base_url; the client authenticates in the body. `lifetime_margin` is how many seconds before its expiry
    a token counts as expired; None leaves that to the peer, and so do peers in which it is fixed.

    `cannot` says which experiments it cannot take part in, and why: by the name of the experiment, or
    "import" if a package is missing. Packages are imported when a peer is entered, and not before.
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
        if credentials.get("auth", "post") != "post":
            raise ValueError('The peers authenticate in the body: Server(auth="post").')
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
        """Make what it needs, and have the stack close it."""

    @abstractmethod
    async def prime(self) -> None:
        """Have a token."""

    @abstractmethod
    async def get(self, path: str) -> int:
        """One API request, its body read; the status. Raises whatever the peer raises."""

    @abstractmethod
    def expire(self) -> None:
        """Make the token that it holds look expired, in the way in which its own code judges that."""

    @abstractmethod
    def holds(self) -> str | None:
        """The refresh token that it would use next."""

    def url(self, path: str) -> str:
        """The address of an API path."""
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
    """A token by a plain request, for peers that must be given their first one."""
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
