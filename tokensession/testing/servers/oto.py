"""A server that behaves like Oto's, as far as that is documented or has been seen.

It accepts `POST /rest/v2/refreshToken` with a JSON object of exactly one key and no Authorization header,
and nothing else. Access tokens expire, the refresh token is permanent. Token responses have the Content-Type
`text/plain;charset=iso-8859-1` and `expires_in` as a string, because that is what has been seen.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from aiohttp import web

from ...clock import Clock
from ...errors import InvalidTokenResponse
from ...providers._wire import parse_json
from ...providers.protocol import Credential
from . import api
from .base import TokenServer
from .faults import Response
from .ledger import Issue
from .values import InvalidRequest

__all__ = ["OtoServer"]

_TEXT = (("Content-Type", "text/plain;charset=iso-8859-1"),)
_JSON = (("Content-Type", "application/json"),)


class OtoServer(TokenServer):
    """Oto on loopback: `async with OtoServer(lifetime=3) as server: Oto(**server.credentials)`.

    `refresh_token` stands for the one you would copy from Oto's dashboard. `lifetime` is that of access
    tokens, in whole seconds. With `environment="staging"`, the API has `GET /rest/v2/test` too.
    """

    token_path: ClassVar[str] = "/rest/v2/refreshToken"

    def __init__(
        self,
        *,
        refresh_token: str = "fake-oto-refresh-token",  # noqa: S107 - planted
        environment: Literal["production", "staging"] = "production",
        lifetime: float = 3600,
        clock: Clock | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(name="fake-oto", rotates=False, lifetime=lifetime, clock=clock, port=port)
        self.refresh_token = refresh_token
        self.environment = environment
        self._ledger.sign_in(Credential("refresh_token", refresh_token))

    @property
    def credentials(self) -> dict[str, Any]:
        """The arguments of `Oto(**server.credentials)`."""
        return {
            "refresh_token": self.refresh_token,
            "environment": self.environment,
            "base_url": self.base_url,
        }

    def new_credential(self) -> str:
        """Sign in once more, or with another account. Returns a refresh token."""
        return self._ledger.new_credential("refresh_token")

    def routes(self) -> list[web.RouteDef]:
        """`healthCheck`, and in staging `test`."""
        routes = [web.get("/rest/v2/healthCheck", api.ok)]
        if self.environment == "staging":
            routes.append(web.get("/rest/v2/test", api.ok))
        return routes

    def read(self, request: web.Request, body: bytes) -> Credential:
        """The refresh token, from a JSON object with exactly one key."""
        if "Authorization" in request.headers:
            raise InvalidRequest("there is an Authorization header; a token request must not have one")
        if request.content_type != "application/json":
            raise InvalidRequest("the Content-Type is not application/json")
        try:
            body.decode("utf-8")
            document = parse_json(body)
        except (InvalidTokenResponse, UnicodeDecodeError):
            raise InvalidRequest("the body is not one JSON object in UTF-8") from None
        if list(document) != ["refresh_token"]:
            raise InvalidRequest(f"the body has {len(document)} keys; it must have one, refresh_token")
        token = document["refresh_token"]
        if not isinstance(token, str) or not token:
            raise InvalidRequest("refresh_token is not a non-empty string")
        return Credential("refresh_token", token)

    def success_response(self, issue: Issue) -> Response:
        """As seen: `expires_in` is a string, and the refresh token is repeated."""
        document = {
            "access_token": issue.access_token,
            "refresh_token": issue.refresh_token,
            "success": True,
            "token_type": "Bearer",
            "expires_in": str(self.lifetime),
        }
        return Response(200, json.dumps(document).encode("latin-1"), _TEXT)

    def error_response(self, status: int, code: str, what: str) -> Response:
        """The newer error format. Oto sends OTO1083 also for a token of the other environment."""
        document: dict[str, Any] = {"success": False, "errorCode": 5, "errorMsg": what}
        if code == "invalid_grant":
            document |= {
                "errorMsg": "Refresh Token is required",
                "otoErrorCode": "OTO1083",
                "otoErrorMessage": "Refresh Token is required",
            }
        return Response(status, json.dumps(document).encode(), _JSON)

    def unauthorized_response(self) -> Response:
        """The 401 of Oto's gateway."""
        return Response(401, json.dumps({"message": "Jwt is expired", "code": 401}).encode(), _JSON)
