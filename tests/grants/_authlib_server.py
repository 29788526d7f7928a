"""An authorization server of Authlib's, in a process of its own: a real counterpart that is not ours.

`python _authlib_server.py` serves on loopback, and prints one line of JSON: its address and its clients. It
has the code grant with PKCE, client credentials, the device grant, refresh with rotation, revocation, the
client authentications of RFC 6749 and RFC 7523, metadata, and an API at `/api` that wants a valid token.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # loopback

from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    ClientMixin,
    OAuth2Payload,
    OAuth2Request,
    TokenMixin,
    grants,
)
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc8628 import DeviceAuthorizationEndpoint, DeviceCodeGrant
from joserfc.jwk import ECKey, OctKey

METHODS = [
    *("none", "client_secret_basic", "client_secret_post"),
    *("private_key_jwt", "client_secret_jwt"),
]
SECRET = "an-authlib-client-secret-of-32-bytes"
KEY = ECKey.generate_key("P-256")
LIFETIME = 3600


@dataclass
class Client(ClientMixin):
    """One client for each way to authenticate, whose id is that way's name."""

    client_id: str

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> None:
        return None

    def get_allowed_scope(self, scope: str | None) -> str:
        return scope or ""

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri.startswith("http://127.0.0.1:")

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == self.client_id

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return True


@dataclass
class Issued(TokenMixin):
    """A token with its refresh token."""

    client_id: str
    access_token: str
    refresh_token: str | None
    scope: str
    user: str | None
    expires: float
    revoked: bool = False
    refreshed: bool = False

    def check_client(self, client: Client) -> bool:
        return client.client_id == self.client_id

    def get_scope(self) -> str:
        return self.scope

    def get_expires_in(self) -> int:
        return LIFETIME

    def is_expired(self) -> bool:
        return time.time() > self.expires

    def is_revoked(self) -> bool:
        return self.revoked


@dataclass
class Code:
    client_id: str
    redirect_uri: str
    scope: str
    code_challenge: str | None
    code_challenge_method: str | None

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass
class Device:
    client_id: str
    scope: str
    user_code: str

    def get_client_id(self) -> str:
        return self.client_id

    def get_scope(self) -> str:
        return self.scope

    def get_user_code(self) -> str:
        return self.user_code

    def is_expired(self) -> bool:
        return False


@dataclass
class Memory:
    tokens: list[Issued] = field(default_factory=list)
    codes: dict[str, Code] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    approved: dict[str, bool] = field(default_factory=dict)
    assertions: set[str] = field(default_factory=set)


MEMORY = Memory()


class CodeGrant(grants.AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = METHODS

    def save_authorization_code(self, code: str, request: Any) -> None:
        data = request.payload.data
        MEMORY.codes[code] = Code(
            request.client.client_id,
            request.payload.redirect_uri,
            request.payload.scope or "",
            data.get("code_challenge"),
            data.get("code_challenge_method"),
        )

    def query_authorization_code(self, code: str, client: Client) -> Code | None:
        found = MEMORY.codes.get(code)
        return found if found is not None and found.client_id == client.client_id else None

    def delete_authorization_code(self, authorization_code: Code) -> None:
        MEMORY.codes = {code: each for code, each in MEMORY.codes.items() if each is not authorization_code}

    def authenticate_user(self, authorization_code: Code) -> str:
        return "alice"


class RefreshGrant(grants.RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = METHODS
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> Issued | None:
        found = (each for each in MEMORY.tokens if each.refresh_token == refresh_token)
        return next((each for each in found if not each.revoked and not each.refreshed), None)

    def authenticate_user(self, refresh_token: Issued) -> str | None:
        return refresh_token.user

    def revoke_old_credential(self, refresh_token: Issued) -> None:
        refresh_token.refreshed = True


class MachineGrant(grants.ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = METHODS[1:]


class DeviceGrant(DeviceCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = METHODS

    def query_device_credential(self, device_code: str) -> Device | None:
        return MEMORY.devices.get(device_code)

    def query_user_grant(self, user_code: str) -> tuple[str, bool] | None:
        return ("alice", MEMORY.approved[user_code]) if user_code in MEMORY.approved else None

    def should_slow_down(self, credential: Device) -> bool:
        return False


class DeviceEndpoint(DeviceAuthorizationEndpoint):
    CLIENT_AUTH_METHODS = METHODS
    INTERVAL = 1

    def get_verification_uri(self) -> str:
        return f"{ADDRESS}/verify"

    def save_device_credential(self, client_id: str, scope: str | None, data: dict[str, Any]) -> None:
        MEMORY.devices[data["device_code"]] = Device(client_id, scope or "", data["user_code"])


class Revocation(RevocationEndpoint):
    CLIENT_AUTH_METHODS = METHODS

    def query_token(self, token_string: str, token_type_hint: str | None) -> Issued | None:
        for each in MEMORY.tokens:
            if token_string in (each.access_token, each.refresh_token):
                return each
        return None

    def revoke_token(self, token: Issued, request: Any) -> None:
        token.revoked = True


class Assertions(JWTBearerClientAssertion):
    def __init__(self, method: str, key: Any) -> None:
        super().__init__()
        self.CLIENT_AUTH_METHOD = method
        self._key = key

    def get_audiences(self) -> list[str]:
        return [f"{ADDRESS}/token"]

    def resolve_client_public_key(self, client: Client) -> Any:
        return self._key

    def validate_jti(self, claims: Any, jti: str) -> bool:
        new = jti not in MEMORY.assertions
        MEMORY.assertions.add(jti)
        return new

    def __call__(self, query_client: Any, request: Any) -> Any:
        # Authlib tries one method after the other, and an assertion is for one of them.
        if request.payload.client_id != self.CLIENT_AUTH_METHOD:
            return None
        return super().__call__(query_client, request)


class Payload(OAuth2Payload):
    def __init__(self, values: dict[str, list[str]]) -> None:
        self._values = values

    @property
    def data(self) -> dict[str, str]:
        return {name: values[0] for name, values in self._values.items()}

    @property
    def datalist(self) -> defaultdict[str, list[str]]:
        return defaultdict(list, self._values)


class Request(OAuth2Request):
    def __init__(self, handler: Handler, values: dict[str, list[str]]) -> None:
        super().__init__(handler.command, ADDRESS + handler.path, headers=handler.headers)  # type: ignore[arg-type]
        self.payload = Payload(values)

    @property
    def args(self) -> dict[str, str]:
        return self.payload.data if self.method == "GET" else {}

    @property
    def form(self) -> dict[str, str]:
        return self.payload.data if self.method == "POST" else {}


class Server(AuthorizationServer):
    def query_client(self, client_id: str) -> Client | None:
        return Client(client_id) if client_id in METHODS else None

    def save_token(self, token: dict[str, Any], request: Any) -> None:
        MEMORY.tokens.append(
            Issued(
                request.client.client_id,
                token["access_token"],
                token.get("refresh_token"),
                token.get("scope", "") or "offline",
                request.user,
                time.time() + LIFETIME,
            )
        )

    def create_oauth2_request(self, request: Any) -> Any:
        return request

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        pass

    def handle_response(self, status: int, body: Any, headers: Any) -> tuple[int, Any, Any]:
        return status, body, headers


def server() -> Server:
    made = Server()
    made.register_token_generator(
        "default",
        BearerTokenGenerator(_random, _random, lambda client, grant_type: LIFETIME),
    )
    made.register_grant(CodeGrant, [CodeChallenge(required=True)])
    for grant in (RefreshGrant, MachineGrant, DeviceGrant):
        made.register_grant(grant)
    made.register_endpoint(Revocation)
    made.register_endpoint(DeviceEndpoint)
    made.register_client_auth_method("private_key_jwt", Assertions("private_key_jwt", KEY))
    made.register_client_auth_method(
        "client_secret_jwt", Assertions("client_secret_jwt", OctKey.import_key(SECRET))
    )
    return made


def _random(**_: Any) -> str:
    return os.urandom(24).hex()


class Handler(BaseHTTPRequestHandler):
    def _answer(self, status: int, body: Any, headers: Any = ()) -> None:
        data = (json.dumps(body) if isinstance(body, dict) else body or "").encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        values = parse_qs(place.query)
        if place.path == "/authorize":
            request = Request(self, values)
            self._answer(*SERVER.create_authorization_response(request, "alice", _grant(request)))
        elif place.path == "/verify":
            MEMORY.approved[values["user_code"][0]] = "deny" not in values
            self._answer(200, "thank you")
        elif place.path == "/.well-known/openid-configuration":
            self._answer(200, METADATA)
        elif place.path == "/api":
            sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
            valid = any(each.access_token == sent and not each.revoked for each in MEMORY.tokens)
            self._answer(200 if valid else 401, {})
        else:
            self._answer(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        request = Request(self, parse_qs(body, keep_blank_values=True))
        place = urlsplit(self.path).path
        if place == "/token":
            self._answer(*SERVER.create_token_response(request))
        elif place == "/revoke":
            self._answer(*SERVER.create_endpoint_response("revocation", request))
        elif place == "/device":
            self._answer(*SERVER.create_endpoint_response("device_authorization", request))
        else:
            self._answer(404, {})

    def log_message(self, *args: Any) -> None:
        pass


def _grant(request: Any) -> Any:
    return SERVER.get_authorization_grant(request)


if __name__ == "__main__":
    http = HTTPServer(("127.0.0.1", 0), Handler)
    ADDRESS = f"http://127.0.0.1:{http.server_port}"
    METADATA = {
        "issuer": ADDRESS,
        "token_endpoint": f"{ADDRESS}/token",
        "authorization_endpoint": f"{ADDRESS}/authorize",
        "device_authorization_endpoint": f"{ADDRESS}/device",
        "revocation_endpoint": f"{ADDRESS}/revoke",
        "token_endpoint_auth_methods_supported": METHODS,
    }
    SERVER = server()
    print(json.dumps({"issuer": ADDRESS, "secret": SECRET, "key": KEY.as_pem(private=True).decode()}))
    sys.stdout.flush()
    http.serve_forever()
