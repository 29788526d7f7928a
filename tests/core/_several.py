"""Several processes over one store, and what a person brings to them."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from _moments import (
    refused,
)
from _rig import Rig
from _scripted_store import ScriptedStore, fail

from tokensession import (
    SignInRequired,
)
from tokensession.providers import OAuth2
from tokensession.testing import FakeClock, ScriptedTransport


class Processes:
    """Several processes over one store, which share the script of their token requests."""

    def __init__(self, *script: Any) -> None:
        self.clock = FakeClock()
        self.store = ScriptedStore(clock=self.clock)
        self.transport = ScriptedTransport(*script)

    def start(self, key: str | None = "account", **settings: Any) -> Rig:
        """A process with these settings. Its refresh tokens rotate, and the settings bring its credential."""
        usual = {"token_url": "https://id.example.com/token", "client_id": "client", "client_secret": "s"}
        provider = OAuth2(**usual | settings)
        return Rig(provider=provider, store=self.store, clock=self.clock, key=key, transport=self.transport)

    @property
    def sent(self) -> list[str]:
        """The codes and refresh tokens of the token requests, in order."""
        fields = [parse_qs(request.body.decode()) for request in self.transport.requests]
        return [(each.get("code") or each["refresh_token"])[0] for each in fields]


async def known(*rigs: Rig, **credential: str) -> None:
    """Each of these processes says that the credential was redeemed already."""
    for rig in rigs:
        await refused(SignInRequired, rig.source.sign_in(**credential), match="redeemed already")


async def signed_in_unsaved(rig: Rig, store: ScriptedStore, name: str = "new", at: str = "put") -> None:
    """Sign in while the store fails. It works again when this returns, and the next try has not begun."""
    store.steps[at] = fail
    await rig.source.sign_in(refresh_token=name)
    store.steps.clear()
