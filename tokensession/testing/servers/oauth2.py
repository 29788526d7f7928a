"""An authorization server for the `OAuth2` provider and any other client of RFC 6749.

Strict where the RFCs are: no parameter twice (6749, 3.2), one way to authenticate (2.3), Basic credentials
form-encoded first (2.3.1), a `code_verifier` that fits (7636, 4.6), no device code sooner than its interval
(8628, 3.5), no assertion twice (7523, 3). The fields may come in any order. Without rotation, a token
response has no `refresh_token`, which the RFC allows (6) and clients get wrong.

| path | what it does |
|---|---|
| `/token` | the token endpoint |
| `/authorize` | signs in at once and redirects with a code; with `&deny=1`, with an error |
| `/device` | starts a sign-in on a device |
| `/verify` | what `verification_uri_complete` leads to: approves it, and with `&deny=1` denies it |
| `/revoke` | revokes a token (RFC 7009) |
| `/.well-known/oauth-authorization-server` | the metadata of all this (RFC 8414) |
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlencode

from aiohttp import web

from ...clock import Clock
from ...providers.protocol import DEVICE_CODE, Credential
from .base import TokenServer
from .client_proofs import AuthMethod, ClientProofs
from .faults import Response
from .forms import fields
from .ledger import Issue
from .values import InvalidRequest, Rejected

__all__ = ["OAuth2Server"]

_JSON = (("Content-Type", "application/json;charset=UTF-8"), ("Cache-Control", "no-store"))
_PROOFS = ("client_assertion", "client_assertion_type")
_MORE = (*_PROOFS, "code_verifier", "device_code", "audience", "resource")
_MACHINE = Credential("client_credentials", "")
_METHODS = {"basic": "client_secret_basic", "raw basic": "client_secret_basic", "post": "client_secret_post"}


@dataclass(slots=True, repr=False)
class _Asked:
    """What an authorization request has bound its code to."""

    redirect_uri: str
    challenge: str


@dataclass(slots=True, repr=False)
class _Device:
    """A sign-in on a device that has been started."""

    device_code: str
    interval: float
    expires: float  # boot clock
    state: str = "authorization_pending"
    polled: float = float("-inf")


class OAuth2Server(TokenServer):
    """An OAuth 2 server on loopback: `async with OAuth2Server() as server: OAuth2(**server.credentials)`.

    - `auth` is how the client authenticates: "basic" (or "raw basic") in the header, "post" in the body,
      "none" for a public client, "private_key_jwt", "client_secret_jwt", or "assertion" for an assertion
      that a platform signs. The last three need joserfc.
    - With `rotates`, a refresh token works once. `lifetime` is that of access tokens, in whole seconds.
    - `interval`: seconds between two polls with a device code. `extra`: more fields of every token response.
    - `accepts`: more fields that a token request may have. `token_query`: the query of the token URL.
    """

    token_path: ClassVar[str] = "/token"

    def __init__(
        self,
        *,
        auth: AuthMethod = "basic",
        rotates: bool = True,
        client_id: str = "fake-client",
        client_secret: str = "fake-client-secret",  # noqa: S107 - planted
        refresh_token: str = "fake-refresh-token",  # noqa: S107 - planted
        lifetime: float = 3600,
        interval: float = 5,
        extra: dict[str, Any] | None = None,
        accepts: Collection[str] = (),
        token_query: str = "",
        clock: Clock | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(name="fake-oauth2", rotates=rotates, lifetime=lifetime, clock=clock, port=port)
        self.auth = auth
        self.rotates = rotates
        self.client_id = client_id
        self.client_secret = client_secret
        self.refresh_token = refresh_token
        self.interval = interval
        self.extra: dict[str, Any] = extra or {}
        self.accepts: tuple[str, ...] = (*_MORE, *accepts)
        self.token_query = token_query
        self.requested: list[dict[str, str]] = []
        """The scope, audience, resource and `accepts` of each token request that was accepted."""
        self.revocations: int = 0
        """How many tokens a client has revoked."""
        self._proofs = ClientProofs(auth, client_id, client_secret, self.clock)
        self._asked: dict[str, _Asked] = {}
        self._devices: dict[str, _Device] = {}  # by user code
        self._ledger.sign_in(Credential("refresh_token", refresh_token))
        self._ledger.sign_in(_MACHINE)

    @property
    def client(self) -> dict[str, Any]:
        """The arguments of `OAuth2(**server.client)`, with every endpoint and without a credential."""
        auth = self._proofs.auth
        return {
            "token_url": self.token_url,
            "client_id": self.client_id,
            **({"client_secret": self.client_secret} if auth.wants_secret else {}),
            **({"auth": auth} if self.auth != "basic" else {}),
            "base_url": self.base_url,
            "rotates": self.rotates,
            "authorization_url": f"{self.base_url}/authorize",
            "device_authorization_url": f"{self.base_url}/device",
            "revocation_url": f"{self.base_url}/revoke",
            "issuer": self.base_url,
        }

    @property
    def credentials(self) -> dict[str, Any]:
        """The arguments of `OAuth2(**server.credentials)`, with a refresh token."""
        names = ("token_url", "client_id", "client_secret", "auth", "base_url", "rotates")
        known = {name: value for name, value in self.client.items() if name in names}
        return {**known, "refresh_token": self.refresh_token}

    def new_credential(self) -> str:
        """Sign in once more. Returns a refresh token."""
        return self._ledger.new_credential("refresh_token")

    def new_code(self) -> str:
        """Sign in once more. Returns an authorization code, which works once."""
        return self._ledger.new_credential("authorization_code")

    def approve_device(self, user_code: str, *, deny: bool = False) -> None:
        """Answer as the person who was shown this code."""
        self._devices[user_code].state = "access_denied" if deny else ""

    def endpoints(self) -> list[web.RouteDef]:
        """The endpoints of sign-ins, revocation and discovery."""
        return [
            web.get("/authorize", self._authorize),
            web.post("/device", self._device),
            web.get("/verify", self._verify),
            web.post("/revoke", self._revoke),
            web.get("/.well-known/oauth-authorization-server", self._metadata),
        ]

    def read(self, request: web.Request, body: bytes) -> Credential:
        """The credential in a form. The client must authenticate in one place only."""
        found = self._form(request, body)
        kind = found.get("grant_type")
        named = found.keys() & {"code", "refresh_token", "device_code"}
        if kind == "authorization_code" and named == {"code"}:
            self._check_code(found)
            credential = Credential("authorization_code", found["code"])
        elif kind == "refresh_token" and named == {"refresh_token"}:
            credential = Credential("refresh_token", found["refresh_token"])
        elif kind == DEVICE_CODE and named == {"device_code"}:
            self._check_device(found["device_code"])
            credential = Credential(DEVICE_CODE, found["device_code"])
        elif kind == "client_credentials" and not named:
            if self.auth == "none":
                raise Rejected("unauthorized_client")
            credential = _MACHINE
        else:
            raise InvalidRequest("the form has not exactly the credential that its grant_type names")
        shown = {"scope", "audience", "resource", *self.accepts} - {*_PROOFS, "code_verifier", "device_code"}
        self.requested.append({name: value for name, value in found.items() if name in shown})
        return credential

    def _form(self, request: web.Request, body: bytes) -> dict[str, str]:
        """The form of an authenticated client."""
        if request.content_type != "application/x-www-form-urlencoded":
            raise InvalidRequest("the Content-Type is not application/x-www-form-urlencoded")
        found = fields(body, more=(*self.accepts, "token", "token_type_hint"), several="resource")
        self._proofs.check(request, found, {self.token_url, self.base_url})
        return found

    def _check_code(self, found: dict[str, str]) -> None:
        asked = self._asked.get(found["code"])
        if asked is None:
            return
        verifier = found.get("code_verifier", "")
        digest = hashlib.sha256(verifier.encode()).digest()
        made = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if (asked.challenge and made != asked.challenge) or (verifier and not asked.challenge):
            raise Rejected("invalid_grant")
        if asked.redirect_uri and found.get("redirect_uri") != asked.redirect_uri:
            raise Rejected("invalid_grant")

    def _check_device(self, device_code: str) -> None:
        now = self.clock.boot()
        device = next((each for each in self._devices.values() if each.device_code == device_code), None)
        if device is None:
            raise Rejected("invalid_grant")
        early, device.polled = now - device.polled < device.interval, now
        if now >= device.expires:
            raise Rejected("expired_token")
        if device.state and early:
            device.interval += 5
            raise Rejected("slow_down")
        if device.state:
            raise Rejected(device.state)

    async def _authorize(self, request: web.Request) -> web.Response:
        query = request.query
        target = query.get("redirect_uri", "")
        if query.get("client_id") != self.client_id or not target:
            return web.Response(status=400, text="client_id or redirect_uri is wrong")
        answer = {"state": query.get("state", ""), "iss": self.base_url}
        challenge = query.get("code_challenge", "")
        if query.get("deny"):
            answer["error"] = "access_denied"
        elif query.get("response_type") != "code" or (
            challenge and query.get("code_challenge_method") != "S256"
        ):
            answer["error"] = "invalid_request"
        elif self.auth == "none" and not challenge:
            answer |= {"error": "invalid_request", "error_description": "a public client needs PKCE"}
        else:
            answer["code"] = self.new_code()
            self._asked[answer["code"]] = _Asked(target, challenge)
        mark = "&" if "?" in target else "?"
        return web.Response(status=302, headers={"Location": f"{target}{mark}{urlencode(answer)}"})

    async def _device(self, request: web.Request) -> web.Response:
        refused = await self._refused(request)
        if refused is not None:
            return refused
        user_code = secrets.token_hex(3).upper()
        device_code = self._ledger.new_credential(DEVICE_CODE)
        self._devices[user_code] = _Device(device_code, self.interval, self.clock.boot() + 600)
        page = f"{self.base_url}/verify"
        return web.json_response(
            {
                "device_code": device_code,
                "user_code": user_code,
                "verification_uri": page,
                "verification_uri_complete": f"{page}?user_code={user_code}",
                "expires_in": 600,
                "interval": self.interval,
            }
        )

    async def _verify(self, request: web.Request) -> web.Response:
        user_code = request.query.get("user_code", "")
        if user_code not in self._devices:
            return web.Response(status=404, text="There is no such code.")
        self.approve_device(user_code, deny=bool(request.query.get("deny")))
        return web.Response(text="Thank you. Your device is signed in.")

    async def _revoke(self, request: web.Request) -> web.Response:
        refused = await self._refused(request)
        if refused is not None:
            return refused
        token = (await request.post()).get("token")
        if not isinstance(token, str):
            return self.error_response(400, "invalid_request", "There is no token.").to_web()
        self.revocations += self._ledger.revoke(token)
        return web.Response()

    async def _refused(self, request: web.Request) -> web.Response | None:
        """The answer to a request at another endpoint than the token endpoint, if its client is wrong."""
        try:
            self._form(request, await request.read())
        except InvalidRequest as invalid:
            self.invalid_requests.append(str(invalid))
            return self.error_response(400, "invalid_request", f"Invalid request: {invalid}").to_web()
        except Rejected as rejected:
            return self.error_response(400, str(rejected), "Unknown client or wrong secret.").to_web()
        return None

    async def _metadata(self, _request: web.Request) -> web.Response:
        names = {
            "token_url": "token_endpoint",
            "authorization_url": "authorization_endpoint",
            "device_authorization_url": "device_authorization_endpoint",
            "revocation_url": "revocation_endpoint",
            "issuer": "issuer",
        }
        known = {names[name]: value for name, value in self.client.items() if name in names}
        methods = {
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": [_METHODS.get(self.auth, self.auth)],
        }
        return web.json_response(known | methods)

    def success_response(self, issue: Issue) -> Response:
        """RFC 6749, 5.1. Has a refresh token only if it is a new one."""
        document = {
            **self.extra,
            "access_token": issue.access_token,
            "token_type": "Bearer",
            "expires_in": self.lifetime,
        }
        if self.rotates and issue.refresh_token:
            document["refresh_token"] = issue.refresh_token
        return Response(200, json.dumps(document).encode(), _JSON)

    def error_response(self, status: int, code: str, what: str) -> Response:
        """RFC 6749, 5.2: 401 for a client that failed to authenticate in the header, else 400."""
        headers: tuple[tuple[str, str], ...] = _JSON
        if code == "invalid_client" and "basic" in self.auth:
            status, headers = 401, (*_JSON, ("WWW-Authenticate", "Basic"))
        return Response(status, json.dumps({"error": code, "error_description": what}).encode(), headers)

    def unauthorized_response(self) -> Response:
        """RFC 6750's 401."""
        headers = (*_JSON, ("WWW-Authenticate", 'Bearer error="invalid_token"'))
        return Response(401, json.dumps({"error": "invalid_token"}).encode(), headers)
