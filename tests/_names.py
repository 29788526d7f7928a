"""A resolver of host names for tests: it leads every name to one address, and remembers the names."""

from __future__ import annotations

import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

__all__ = ["Names", "name_server"]


class Names(AbstractResolver):
    """Knows one address for every name. `asked` has the names."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        found = ResolveResult(
            hostname=host, host=self.address, port=port, family=socket.AF_INET, proto=0, flags=0
        )
        return [found]

    async def close(self) -> None:
        pass


def name_server(patch: pytest.MonkeyPatch, address: str = "192.0.2.1") -> Names:
    """What all clients ask that have no resolver of their own. No request gets to the default (RFC 5737)."""
    names = Names(address)
    for place in ("aiohttp.DefaultResolver", "aiohttp.connector.DefaultResolver"):
        patch.setattr(place, lambda *_, **__: names)
    return names
