"""An RFC 6749 token endpoint, for the `OAuth2` provider and any other client.

Strict where the RFC is: no parameter twice (3.2), one way to authenticate (2.3), Basic credentials
form-encoded first (2.3.1). The fields may come in any order. Without rotation, a token response has no
`refresh_token`, which the RFC allows (6) and clients get wrong.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from aiohttp import web

from ...clock import Clock
from ...providers._wire import basic_auth
from ...providers.protocol import Credential
from .base import TokenServer
from .faults import Response
from .forms import fields
from .ledger import Issue
from .values import InvalidRequest, Rejected

__all__ = ["OAuth2Server"]

_JSON = (("Content-Type", "application/json;charset=UTF-8"), ("Cache-Control", "no-store"))


class OAuth2Server(TokenServer):
    """An OAuth 2 server on loopback: `async with OAuth2Server() as server: OAuth2(**server.credentials)`.

    `auth` is how the client authenticates: "basic" in the header, "post" in the body. With `rotates`, a
    refresh token works once. `lifetime` is that of access tokens, in whole seconds.
    """

    token_path: ClassVar[str] = "/token"

    def __init__(
        self,
        *,
        auth: Literal["basic", "post"] = "basic",
        rotates: bool = True,
        client_id: str = "fake-client",
        client_secret: str = "fake-client-secret",  # noqa: S107 - planted
        refresh_token: str = "fake-refresh-token",  # noqa: S107 - planted
        lifetime: float = 3600,
        clock: Clock | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(name="fake-oauth2", rotates=rotates, lifetime=lifetime, clock=clock, port=port)
        self.auth = auth
        self.rotates = rotates
        self.client_id = client_id
        self.client_secret = client_secret
        self.refresh_token = refresh_token
        self._ledger.sign_in(Credential("refresh_token", refresh_token))

    @property
    def credentials(self) -> dict[str, Any]:
        """The arguments of `OAuth2(**server.credentials)`, with a refresh token."""
        return {
            "token_url": self.token_url,
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "auth": self.auth,
            "refresh_token": self.refresh_token,
            "base_url": self.base_url,
            "rotates": self.rotates,
        }

    def new_credential(self) -> str:
        """Sign in once more. Returns a refresh token."""
        return self._ledger.new_credential("refresh_token")

    def new_code(self) -> str:
        """Sign in once more. Returns an authorization code, which works once."""
        return self._ledger.new_credential("authorization_code")

    def read(self, request: web.Request, body: bytes) -> Credential:
        """The credential in a form. The client must authenticate in one place only."""
        if request.content_type != "application/x-www-form-urlencoded":
            raise InvalidRequest("the Content-Type is not application/x-www-form-urlencoded")
        found = fields(body)
        self._authenticate(request, found)
        kind = found.get("grant_type")
        if kind == "authorization_code" and "code" in found and "refresh_token" not in found:
            return Credential("authorization_code", found["code"])
        if kind == "refresh_token" and "refresh_token" in found and "code" not in found:
            return Credential("refresh_token", found["refresh_token"])
        raise InvalidRequest("the form has not exactly the credential that its grant_type names")

    def _authenticate(self, request: web.Request, found: dict[str, str]) -> None:
        header = request.headers.getall("Authorization", [])
        if self.auth == "basic":
            if found.keys() & {"client_id", "client_secret"}:
                raise InvalidRequest(
                    "client_id or client_secret is in the body; use the Authorization header only"
                )
            if header != [basic_auth(self.client_id, self.client_secret)]:
                raise Rejected("invalid_client")
        else:
            if header:
                raise InvalidRequest(
                    "there is an Authorization header; send client_id and client_secret in the body only"
                )
            if (found.get("client_id"), found.get("client_secret")) != (self.client_id, self.client_secret):
                raise Rejected("invalid_client")

    def success_response(self, issue: Issue) -> Response:
        """RFC 6749, 5.1. Has a refresh token only if it is a new one."""
        document = {
            "access_token": issue.access_token,
            "token_type": "Bearer",
            "expires_in": self.lifetime,
        }
        if self.rotates:
            document["refresh_token"] = issue.refresh_token
        return Response(200, json.dumps(document).encode(), _JSON)

    def error_response(self, status: int, code: str, what: str) -> Response:
        """RFC 6749, 5.2: 401 for a client that failed to authenticate in the header, else 400."""
        headers: tuple[tuple[str, str], ...] = _JSON
        if code == "invalid_client" and self.auth == "basic":
            status, headers = 401, (*_JSON, ("WWW-Authenticate", "Basic"))
        return Response(status, json.dumps({"error": code, "error_description": what}).encode(), headers)

    def unauthorized_response(self) -> Response:
        """RFC 6750's 401."""
        headers = (*_JSON, ("WWW-Authenticate", 'Bearer error="invalid_token"'))
        return Response(401, json.dumps({"error": "invalid_token"}).encode(), headers)
