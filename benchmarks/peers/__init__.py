"""The contestants: this library, the limit, and what else there is for the same purpose.

| module | who |
|---|---|
| `base` | what each can be told: prime, get, expire, holds |
| `over_aiohttp` | tokensession, raw aiohttp, the cookbook's middleware, aiohttp-oauth2-client |
| `over_google` | google-auth |
| `over_httpx` | Authlib, singleflight-auth, mcp, httpx-auth |

`for peer in PEERS: if excuse(peer, "contention") is None: async with peer(credentials) as it: ...`
"""

from .base import CONNECTIONS, Peer, excuse
from .over_aiohttp import AiohttpCookbook, AiohttpOAuth2Client, RawAiohttp, Tokensession
from .over_google import GoogleAuth
from .over_httpx import Authlib, HttpxAuth, Mcp, SingleflightAuth

__all__ = [
    "CONNECTIONS",
    "PEERS",
    "AiohttpCookbook",
    "AiohttpOAuth2Client",
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
    Authlib,
    GoogleAuth,
    SingleflightAuth,
    Mcp,
    HttpxAuth,
)
