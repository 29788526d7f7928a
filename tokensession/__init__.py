"""One valid access token, one refresh, everywhere.

An `AuthedSession` is an aiohttp session whose requests carry a valid bearer. However many tasks and
processes share a credential, an expiry costs one token request::

    from tokensession import AuthedSession
    from tokensession.providers import Oto
    from tokensession.stores import SQLiteStore

    async with AuthedSession(Oto(refresh_token=...), store=SQLiteStore("tokens.db")) as session:
        async with session.get("/rest/v2/healthCheck") as response:
            print(await response.json())

The parts: `tokensession.providers` (what each OAuth server wants to hear), `tokensession.stores` (where
tokens are kept), `tokensession.errors` (the tree of what can go wrong), `tokensession.testing` (strict
token servers, and the conformance suite for stores).
"""

from ._refresh.cache import Snapshot
from .errors import (
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
    TokenSessionError,
    TokenUnavailable,
)
from .events import Event, Observer
from .middleware import BearerAuth
from .policy import Freshness, Policy
from .session import AuthedSession
from .source import EphemeralStoreWarning, ManagedSource, RefreshableSource, TokenSource
from .stores import open_store
from .token import Token
from .transport import AiohttpTransport

__all__ = [
    "AiohttpTransport",
    "AuthedSession",
    "BearerAuth",
    "ClaimTimeout",
    "ClientRejected",
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
    "Token",
    "TokenSessionError",
    "TokenSource",
    "TokenUnavailable",
    "open_store",
]
