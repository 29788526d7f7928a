"""aiohttp sessions that share an OAuth token across tasks and processes.

An `AuthedSession` is an aiohttp session that sends a valid bearer token with every request. However many
tasks and processes share a credential, an expiry costs one token request::

    from tokensession import AuthedSession
    from tokensession.providers import Oto

    oto = Oto(refresh_token=...)
    async with AuthedSession(oto, store="sqlite:///tokens.db", key="shop") as session:
        async with session.get("/rest/v2/healthCheck") as response:
            print(await response.json())

Import from six modules: `tokensession`, `tokensession.events` (what is reported), `tokensession.providers`
(what each OAuth server expects), `tokensession.grants` (how a person signs in), `tokensession.stores` (where
tokens are stored) and `tokensession.testing` (token servers, a clock and a transport for your tests, and the
conformance suite for stores). Other modules may change without notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazily
from .clock import Clock
from .errors import (
    AuthorizationPending,
    ClaimTimeout,
    ClientRejected,
    ConfigurationError,
    ForeignOrigin,
    GrantLost,
    GrantRejected,
    InvalidTokenResponse,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    SignedOut,
    SignInRequired,
    StoreCorrupt,
    StoreError,
    StoreInsecure,
    StoreUnavailable,
    Superseded,
    TokenSessionError,
    TokenUnavailable,
    UnexplainedRefusal,
)
from .middleware import BearerAuth
from .observer import Event, Observer
from .policy import Freshness, Policy
from .session import AuthedSession
from .snapshot import Snapshot
from .source import EphemeralStoreWarning, ManagedSource, RefreshableSource, TokenSource
from .token import Token
from .transport import AiohttpTransport

if TYPE_CHECKING:
    from . import events
    from .anywhere import blocking_token_callable, token_callable
    from .stores import open_store
    from .upkeep import copy_store, prune, sign_out

__all__ = [
    "AiohttpTransport",
    "AuthedSession",
    "AuthorizationPending",
    "BearerAuth",
    "ClaimTimeout",
    "ClientRejected",
    "Clock",
    "ConfigurationError",
    "EphemeralStoreWarning",
    "Event",
    "ForeignOrigin",
    "Freshness",
    "GrantLost",
    "GrantRejected",
    "InvalidTokenResponse",
    "ManagedSource",
    "NotSent",
    "Observer",
    "OutcomeUnknown",
    "Policy",
    "RateLimited",
    "RefreshableSource",
    "SignInRequired",
    "SignedOut",
    "Snapshot",
    "StoreCorrupt",
    "StoreError",
    "StoreInsecure",
    "StoreUnavailable",
    "Superseded",
    "Token",
    "TokenSessionError",
    "TokenSource",
    "TokenUnavailable",
    "UnexplainedRefusal",
    "blocking_token_callable",
    "copy_store",
    "events",
    "open_store",
    "prune",
    "sign_out",
    "token_callable",
]

if not TYPE_CHECKING:  # a type checker knows the names, and finds wrong ones
    __getattr__ = lazily(
        globals(),
        {
            "blocking_token_callable": ".anywhere",
            "copy_store": ".upkeep",
            "events": ".events",
            "open_store": ".stores",
            "prune": ".upkeep",
            "sign_out": ".upkeep",
            "token_callable": ".anywhere",
        },
    )


def __dir__() -> list[str]:
    return __all__
