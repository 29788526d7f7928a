"""Strict token servers on loopback, to test a client against: Oto's, Priava's, and any RFC 6749 one.

They are real HTTP servers, refuse every token request that is not exactly what the provider's documents
say, expire tokens by their own clock, rotate refresh tokens with reuse detection, count everything, and
fail on request, in the order you say::

    async with PriavaServer(lifetime=3) as server:
        provider = Priava(**server.credentials)
        server.script(Reset(spent=True))          # the first reply is lost
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
