"""A source with a scripted transport, a clock that stands still, and the events in a list."""

from __future__ import annotations

import asyncio
from typing import Any

from tokensession import ManagedSource, Policy
from tokensession.events import Event
from tokensession.providers import OAuth2
from tokensession.providers.protocol import TokenResponse
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, ScriptedTransport, token_response

KEY = "account"


def good(number: int, *, expires_in: float = 3600) -> TokenResponse:
    """A response with the token `at-N` and the refresh token `rt-N`."""
    return token_response(
        {"access_token": f"at-{number}", "refresh_token": f"rt-{number}", "expires_in": expires_in}
    )


class Made:
    """A source and all that it works with. Callers get the first failure."""

    def __init__(
        self,
        *script: Any,
        store: MemoryStore | None = None,
        clock: FakeClock | None = None,
        transport: Any = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.store = store or MemoryStore(clock=self.clock)
        self.transport = transport or ScriptedTransport(*script)
        self.events: list[Event] = []
        provider = OAuth2(
            token_url="https://id.example.com/token",
            client_id="client-1",
            client_secret="secret",
            refresh_token="rt-0",
        )
        self.source = ManagedSource(
            provider,
            self.transport,
            store=self.store,
            key=KEY,
            policy=Policy(retry_within=0),
            clock=self.clock,
            observer=self.events.append,
        )

    def reported(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    async def idle(self) -> None:
        """Wait until no refresh is running."""
        while self.source.snapshot().refreshing:
            await asyncio.sleep(0)
