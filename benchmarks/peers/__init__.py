"""The contestants: this library, the limit, and other libraries for the same purpose.

| module | what it has |
|---|---|
| `base` | what each can do: prime, get, expire, holds |
| `common` | what the experiments with contestants share |
| `over_aiohttp` | tokensession, raw aiohttp, the cookbook's middleware, aiohttp-oauth2-client |
| `over_google` | google-auth, gcloud-aio-auth |
| `over_httpx` | Authlib, singleflight-auth, mcp, httpx-auth |

`for kind in PEERS: if excuse(kind, "contention") is None: async with kind(credentials) as peer: ...`
"""

from .base import CONNECTIONS, Peer, excuse
from .over_aiohttp import AiohttpCookbook, AiohttpOAuth2Client, RawAiohttp, Tokensession
from .over_google import GcloudAio, GoogleAuth
from .over_httpx import Authlib, HttpxAuth, Mcp, SingleflightAuth

__all__ = [
    "CONNECTIONS",
    "PEERS",
    "AiohttpCookbook",
    "AiohttpOAuth2Client",
    "GcloudAio",
    "Peer",
    "RawAiohttp",
    "Tokensession",
    "excuse",
]

PEERS: tuple[type[Peer], ...] = (
    Tokensession,
    RawAiohttp,
    AiohttpCookbook,
    AiohttpOAuth2Client,
    GcloudAio,
    Authlib,
    GoogleAuth,
    SingleflightAuth,
    Mcp,
    HttpxAuth,
)
