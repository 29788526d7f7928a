"""A server that behaves like Priava's, as far as that is documented.

It accepts `POST /api/rest/oauth/token` with exactly the documented headers and bytes, for both grant types.
A code works once. Refresh tokens rotate, and a spent one that comes again revokes everything issued from the
same sign-in. The API's 401 is not documented: this one is RFC 6750's.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from aiohttp import web

from ...clock import Clock
from ...providers.protocol import Credential
from .base import TokenServer
from .faults import Response
from .forms import fields, same_bytes
from .ledger import Issue
from .values import InvalidRequest, Rejected

__all__ = ["PriavaServer"]

_CONTENT_TYPE = "application/x-www-form-urlencoded;charset=utf-8"
_JSON = (("Content-Type", "application/json"),)
_REGIONS = ("APAC", "EU", "US")


class PriavaServer(TokenServer):
    """Priava on loopback: `async with PriavaServer(lifetime=3) as server: Priava(**server.credentials)`.

    The arguments stand for what you would copy from Priava. `lifetime` is that of access tokens, in whole
    seconds.
    """

    base_path: ClassVar[str] = "/api"
    token_path: ClassVar[str] = "/rest/oauth/token"

    def __init__(
        self,
        *,
        client_id: str = "fake-priava-client",
        client_secret: str = "fake-priava-secret",  # noqa: S107 - planted
        redirect_uri: str = "https://my.app.com/oauth2callback",
        region: str = "EU",
        code: str = "fake-priava-code",
        lifetime: float = 21600,
        clock: Clock | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(name="fake-priava", rotates=True, lifetime=lifetime, clock=clock, port=port)
        if region not in _REGIONS:
            raise ValueError(f"region must be one of {', '.join(_REGIONS)}, not {region!r}.")
        self.client_id = client_id
        self.client_secret = client_secret
        self.redirect_uri = redirect_uri
        self.region = region
        self.code = code
        self._ledger.sign_in(Credential("authorization_code", code))

    @property
    def credentials(self) -> dict[str, Any]:
        """The arguments of `Priava(**server.credentials)`, with a code."""
        return {
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "redirect_uri": self.redirect_uri,
            "region": self.region,
            "code": self.code,
            "base_url": self.base_url,
        }

    def new_credential(self) -> str:
        """Sign in once more. Returns a code."""
        return self._ledger.new_credential("authorization_code")

    def read(self, request: web.Request, body: bytes) -> Credential:
        """The credential, if headers and body are exactly as documented and the client is right."""
        if "Authorization" in request.headers:
            raise InvalidRequest("there is an Authorization header; a token request must not have one")
        if request.headers.getall("Content-Type", []) != [_CONTENT_TYPE]:
            raise InvalidRequest(f"the Content-Type is not exactly {_CONTENT_TYPE}")
        region = request.headers.getall("TenantRegion", [])
        if len(region) != 1 or region[0] not in _REGIONS:
            raise InvalidRequest(f"TenantRegion must appear once, and be one of {', '.join(_REGIONS)}")
        if region[0] != self.region:
            raise InvalidRequest("TenantRegion is not the region of this tenant")
        found = fields(body)
        kind = found.get("grant_type")
        if kind not in ("authorization_code", "refresh_token"):
            raise InvalidRequest("grant_type is neither authorization_code nor refresh_token")
        secret = "code" if kind == "authorization_code" else "refresh_token"
        same_bytes(body, found, ("grant_type", "client_id", "client_secret", secret, "redirect_uri"))
        if found["redirect_uri"] != self.redirect_uri:
            raise InvalidRequest("redirect_uri is not the registered one")
        if (found["client_id"], found["client_secret"]) != (self.client_id, self.client_secret):
            raise Rejected("invalid_client")
        return Credential("authorization_code" if secret == "code" else "refresh_token", found[secret])

    def success_response(self, issue: Issue) -> Response:
        """As documented: `BEARER` in capitals, `expires_in` an integer."""
        document = {
            "access_token": issue.access_token,
            "refresh_token": issue.refresh_token,
            "token_type": "BEARER",
            "expires_in": self.lifetime,
        }
        return Response(200, json.dumps(document).encode(), _JSON)

    def error_response(self, status: int, code: str, what: str) -> Response:
        """As documented."""
        return Response(status, json.dumps({"error": code, "error_description": what}).encode(), _JSON)

    def unauthorized_response(self) -> Response:
        """RFC 6750's 401. Priava's own is not documented."""
        headers = (*_JSON, ("WWW-Authenticate", 'Bearer error="invalid_token"'))
        return Response(401, json.dumps({"error": "invalid_token"}).encode(), headers)
