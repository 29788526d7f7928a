"""How a test server checks that a client is who it says (RFC 6749, 2.3; RFC 7523)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from aiohttp import web

from ...clock import Clock
from ...providers import ClientAuth
from ...providers._wire import basic_auth
from ...providers.client_auth import ASSERTION_TYPE
from .values import InvalidRequest, Rejected

__all__ = ["AuthMethod", "ClientProofs"]

AuthMethod: TypeAlias = Literal[
    "basic", "raw basic", "post", "none", "private_key_jwt", "client_secret_jwt", "assertion"
]
_LONGEST = 300  # seconds that an assertion may be valid
_KID = "fake-key"


class ClientProofs:
    """What the one registered client has to send. `signing_key` is its private key, as PEM, if it has one."""

    def __init__(self, method: AuthMethod, client_id: str, client_secret: str, clock: Clock) -> None:
        self.method = method
        self.client_id = client_id
        self.client_secret = client_secret
        self.signing_key: str = ""
        self._clock = clock
        self._seen: set[str] = set()
        self._key: Any = None
        if method in ("private_key_jwt", "assertion"):
            from joserfc.jwk import ECKey

            key = ECKey.generate_key("P-256")
            self.signing_key = key.as_pem(private=True).decode()
            self._key = key
        elif method == "client_secret_jwt":
            from joserfc.jwk import OctKey

            self._key = OctKey.import_key(client_secret)

    @property
    def auth(self) -> ClientAuth:
        """What the client passes as `auth`."""
        match self.method:
            case "basic" | "raw basic":
                return ClientAuth.basic(raw=self.method != "basic")
            case "post":
                return ClientAuth.post()
            case "none":
                return ClientAuth.none()
            case "client_secret_jwt":
                return ClientAuth.client_secret_jwt()
            case "private_key_jwt":
                return ClientAuth.private_key_jwt(key=self.signing_key, kid=_KID, algorithm="ES256")
            case "assertion":
                return ClientAuth.assertion(self.assertion)

    def assertion(self) -> str:
        """A new assertion, as a platform signs for its workloads."""
        signer = ClientAuth.private_key_jwt(
            key=self.signing_key, kid=_KID, algorithm="ES256", audience="fake"
        )
        return signer.signed(self.client_id, "", "", self._clock.wall())

    def check(self, request: web.Request, found: Mapping[str, str], audiences: set[str]) -> None:
        """Raise `InvalidRequest` for a proof in a wrong place, and `Rejected` for a wrong one."""
        header = request.headers.getall("Authorization", [])
        if "basic" in self.method:
            if found.keys() & {"client_id", "client_secret", "client_assertion"}:
                raise InvalidRequest(
                    "client_id or client_secret is in the body; use the Authorization header only"
                )
            if header != [self._basic()]:
                raise Rejected("invalid_client")
            return
        if header:
            raise InvalidRequest(
                "there is an Authorization header; send client_id and client_secret in the body only"
            )
        wanted = {"post": "client_secret", "none": "client_id"}.get(self.method, "client_assertion")
        if stray := {"client_secret", "client_assertion"} & found.keys() - {wanted}:
            raise InvalidRequest(f"{min(stray)} is in the body, and this client does not authenticate by it")
        if found.get("client_id", self.client_id) != self.client_id or wanted not in found:
            raise Rejected("invalid_client")
        if wanted == "client_secret" and found[wanted] != self.client_secret:
            raise Rejected("invalid_client")
        if wanted == "client_assertion":
            if found.get("client_assertion_type") != ASSERTION_TYPE:
                raise InvalidRequest("client_assertion_type is not the one of RFC 7523")
            self._verify(found[wanted], audiences)

    def _basic(self) -> str:
        if self.method == "basic":
            return basic_auth(self.client_id, self.client_secret)
        return "Basic " + base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode()

    def _verify(self, assertion: str, audiences: set[str]) -> None:
        """RFC 7523, 3. An assertion works once: its `jti` is remembered."""
        from joserfc import jwt
        from joserfc.errors import JoseError

        algorithm = "HS256" if self.method == "client_secret_jwt" else "ES256"
        try:
            claims = jwt.decode(assertion, self._key, algorithms=[algorithm]).claims
        except (JoseError, ValueError):
            raise Rejected("invalid_client") from None
        now, expires, jti = self._clock.wall(), claims.get("exp", 0), str(claims.get("jti", ""))
        right = claims.get("iss") == claims.get("sub") == self.client_id
        timely = now < expires <= now + _LONGEST and claims.get("iat", now) <= now
        if not right or not timely or claims.get("aud") not in {*audiences, "fake"} or jti in self._seen:
            raise Rejected("invalid_client")
        self._seen.add(jti)
