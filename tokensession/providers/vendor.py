"""`Vendor`: a well-known server as data, and how what it says is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .. import _validate
from ..errors import ConfigurationError
from .client_auth import ClientAuth
from .protocol import configured_credential
from .secret_values import SecretValue, check_secret
from .strategy import Strategy
from .strategy_provider import StrategyProvider

__all__ = ["Fact", "Vendor"]

How: TypeAlias = Literal["documented", "seen", "inferred"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is known about a vendor."""

    text: str
    """What is known."""
    how: How
    """How it is known: "documented", "seen" or "inferred"."""
    where: str = ""
    """Where that can be read, without "https://"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """A well-known server: how it expects token requests, where it is, and how all that is known."""

    title: str
    """The name that people know."""
    strategy: Strategy
    """How the server expects token requests, and how it answers."""
    auth: ClientAuth
    """How its clients authenticate."""
    hosts: Mapping[str, tuple[str, str]]
    """By region or environment, the default first: the token URL, and the base URL of the API, or ""."""
    facts: tuple[Fact, ...]
    """What is known."""

    def provider(
        self,
        *,
        client_id: str,
        client_secret: SecretValue | None = None,
        code: str | None = None,
        refresh_token: str | None = None,
        redirect_uri: str | None = None,
        region: str | None = None,
        base_url: str | None = None,
    ) -> StrategyProvider:
        """The provider for one client of this server.

        - `client_secret`: text, the path of a file, or a function. None only if `auth` needs none.
        - `code` or `refresh_token`: the credential to start from. Without one, call `sign_in` later.
        - `redirect_uri`: what the code was requested with.
        - `region`: one of `hosts`. The default is the first.
        - `base_url`: the address of the API, if it is another one. Some vendors have one for each customer.

        Raises `ConfigurationError` for arguments that cannot work.
        """
        chosen = next(iter(self.hosts)) if region is None else region
        if len(self.hosts) > 1:
            _validate.one_of("region", chosen, tuple(self.hosts))
        elif region is not None:
            raise ConfigurationError(f"{self.title} has no regions.", todo="Leave region out.")
        token_url, base = self.hosts[chosen]
        if not (base_url or base):
            raise ConfigurationError(
                f"base_url is missing: {self.title} has an address for each customer.",
                todo="Pass the one that its first token response names, or that its users see.",
            )
        client = _validate.text("client_id", client_id)
        if client_secret is not None:
            check_secret("client_secret", client_secret)
        if redirect_uri is not None:
            _validate.text("redirect_uri", redirect_uri)
        environment = chosen if len(self.hosts) > 1 else ""
        return StrategyProvider(
            self.strategy,
            identity=f"{environment}/{client}" if environment else client,
            base_url=base_url or base,
            token_url=token_url,
            values={"client_id": client, "client_secret": client_secret, "redirect_uri": redirect_uri},
            credential=configured_credential(code=code, refresh_token=refresh_token),
            environment=environment,
            auth=self.auth,
        )
