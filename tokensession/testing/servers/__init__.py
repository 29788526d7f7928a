"""Strict token servers on loopback for your tests: Oto's, Priava's, and one for any RFC 6749 client.

They are real HTTP servers with a small API behind them (see `api`). They answer a token request that does
not match the provider's documentation with an error, expire tokens by their own clock, detect a refresh
token that is used twice, count everything, and fail in the ways you script::

    async with PriavaServer(lifetime=3) as server:
        provider = Priava(**server.credentials)
        server.script(Reset(spent=True))  # the first token request is carried out, its response is lost
        ...
        assert server.stats.reuse_detections == 0
"""

from .base import TokenServer
from .faults import Drip, Edit, Fault, Gate, Hang, Reset, Response, Truncate, json_response, redirect
from .oauth2 import OAuth2Server
from .oto import OtoServer
from .priava import PriavaServer
from .values import Seen, ServerStats

__all__ = [
    "Drip",
    "Edit",
    "Fault",
    "Gate",
    "Hang",
    "OAuth2Server",
    "OtoServer",
    "PriavaServer",
    "Reset",
    "Response",
    "Seen",
    "ServerStats",
    "TokenServer",
    "Truncate",
    "json_response",
    "redirect",
]
