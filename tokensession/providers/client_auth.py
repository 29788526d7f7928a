"""`ClientAuth`: how a client proves to the token endpoint who it is (RFC 6749, 2.3; RFC 7523)."""

from __future__ import annotations

import base64
import importlib.util
import json
import secrets
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .. import _validate
from ..errors import ConfigurationError
from ..token import fingerprint
from . import _wire
from .secret_values import SecretValue, check_secret, read_secret

__all__ = ["ASSERTION_TYPE", "ClientAuth"]

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""`client_assertion_type` of RFC 7523, 2.2."""

# Seconds that a signed assertion is valid, also by a clock that is some minutes ahead of ours. Some servers
# accept no more (Auth0: at most 5 minutes after `iat`).
_LIFETIME = 300
_FAMILIES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP", "HS": "oct"}
_SIGNATURES = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_MACS = ("HS256", "HS384", "HS512")

Method = Literal["basic", "post", "none", "tls", "private_key_jwt", "client_secret_jwt", "assertion"]


@dataclass(frozen=True, slots=True, repr=False)
class ClientAuth:
    """How a client authenticates at the token endpoint. Make one with a class method.

    The metadata of a server (RFC 8414) lists the methods it takes in
    `token_endpoint_auth_methods_supported`.
    """

    method: Method
    raw: bool = False
    key: SecretValue = field(default="", repr=False)
    kid: str | None = None
    algorithm: str = ""
    audience: str | None = None
    volatile: bool = False
    """Whether a function has returned the key."""

    @classmethod
    def basic(cls, *, raw: bool = False) -> ClientAuth:
        """Client id and secret in the Authorization header, each form-encoded first (RFC 6749, 2.3.1).

        `raw`: not form-encoded, as some servers expect. It matters only if they have special characters.
        """
        return cls("basic", raw=raw)

    @classmethod
    def post(cls) -> ClientAuth:
        """Client id and secret in the body (RFC 6749, 2.3.1)."""
        return cls("post")

    @classmethod
    def none(cls) -> ClientAuth:
        """A public client, which has no secret: only its id, in the body (RFC 6749, 3.2.1)."""
        return cls("none")

    @classmethod
    def tls(cls) -> ClientAuth:
        """A client certificate, and the client's id in the body (RFC 8705, 2).

        Pass `AiohttpTransport(ssl=...)` an `ssl.SSLContext` that has the certificate.
        """
        return cls("tls")

    @classmethod
    def private_key_jwt(
        cls,
        *,
        key: SecretValue,
        kid: str | None = None,
        algorithm: str = "RS256",
        audience: str | None = None,
    ) -> ClientAuth:
        """An assertion, signed for each request with your private key (RFC 7523, 2.2).

        `key` is a PEM or JWK document. `kid` is the key's id at the server. `audience` is whom the assertion
        is for; the default is the token URL. Needs the extra `jwt`. Raises `ConfigurationError`.
        """
        _validate.one_of("algorithm", algorithm, _SIGNATURES)
        for name, value in (("kid", kid), ("audience", audience)):
            if value is not None:
                _validate.text(name, value)
        check_secret("key", key, lines=True)
        _needs_joserfc()
        if isinstance(key, str):  # what cannot sign is found now, and not at the first request
            _signed({"alg": algorithm}, {}, key)
        return cls("private_key_jwt", key=key, kid=kid, algorithm=algorithm, audience=audience)

    @classmethod
    def client_secret_jwt(cls, *, algorithm: str = "HS256", audience: str | None = None) -> ClientAuth:
        """An assertion, signed for each request with the client secret (RFC 7523, 2.2).

        `audience` is whom the assertion is for; the default is the token URL. Needs the extra `jwt`. Raises
        `ConfigurationError`.
        """
        _validate.one_of("algorithm", algorithm, _MACS)
        if audience is not None:
            _validate.text("audience", audience)
        _needs_joserfc()
        return cls("client_secret_jwt", algorithm=algorithm, audience=audience)

    @classmethod
    def assertion(cls, value: SecretValue) -> ClientAuth:
        """An assertion that something else signs, such as Kubernetes (RFC 7523, 2.2).

        `value` is usually the path of a file that is written again from time to time.
        """
        return cls("assertion", key=check_secret("assertion", value))

    @property
    def wants_secret(self) -> bool:
        """Whether it needs a client secret."""
        return self.method in ("basic", "post", "client_secret_jwt")

    @property
    def changes(self) -> bool:
        """Whether what it sends differs from request to request."""
        return self.method in ("private_key_jwt", "client_secret_jwt") or not isinstance(self.key, str)

    def check(self, client_id: str, client_secret: SecretValue | None) -> None:
        """Raise `ConfigurationError` if this client cannot authenticate so: it has a secret and must have
        none, or the other way round, or an id that cannot be sent.
        """
        if self.raw and ":" in client_id:  # RFC 7617, 2
            raise ConfigurationError(
                "client_id contains a colon, and ends there in ClientAuth.basic(raw=True).",
                todo="Use ClientAuth.basic() or ClientAuth.post().",
            )
        if client_secret is None and self.wants_secret:
            raise ConfigurationError(
                f"client_secret is missing, and {self} needs it.",
                todo="Pass it, or auth=ClientAuth.none() for a public client, which has none.",
            )
        if client_secret is not None and not self.wants_secret:
            what = "a public client has none" if self.method == "none" else "it would not be sent"
            raise ConfigurationError(
                f"client_secret must be left out with {self}: {what}.",
                todo="Leave it out, or pass auth=ClientAuth.basic() or ClientAuth.post().",
            )
        if client_secret == "" and self.method == "client_secret_jwt":
            raise ConfigurationError(f"client_secret must not be empty with {self}: it signs the assertion.")

    async def resolved(self) -> ClientAuth:
        """The same with its key as text. Raises `NotSent` or `ConfigurationError`."""
        name = "assertion" if self.method == "assertion" else "key"
        key = await read_secret(name, self.key, lines=name == "key")
        return replace(self, key=key, volatile=callable(self.key))

    def signed(self, client_id: str, client_secret: str, token_url: str, wall: float) -> str:
        """The assertion to send at this time, or "". Raises `ConfigurationError` for an unusable key."""
        if self.method == "assertion":
            return str(self.key)
        if self.method not in ("private_key_jwt", "client_secret_jwt"):
            return ""
        header = {"alg": self.algorithm, "typ": "JWT"} | ({"kid": self.kid} if self.kid else {})
        claims = {
            "iss": client_id,
            "sub": client_id,
            "aud": self.audience or token_url,
            "jti": secrets.token_urlsafe(16),
            "iat": int(wall),
            "exp": int(wall) + _LIFETIME,
        }
        secret = client_secret if self.method == "client_secret_jwt" else str(self.key)
        return _signed(header, claims, secret)

    def headers(self, client_id: str, client_secret: str) -> tuple[tuple[str, str], ...]:
        """The headers that authenticate the client."""
        if self.method != "basic":
            return ()
        if self.raw:
            pair = base64.b64encode(f"{client_id}:{client_secret}".encode()).decode("ascii")
            return (("Authorization", f"Basic {pair}"),)
        return (("Authorization", _wire.basic_auth(client_id, client_secret)),)

    def fields(self, client_id: str, client_secret: str, assertion: str) -> tuple[tuple[str, str], ...]:
        """The fields of the body that authenticate the client."""
        if self.method == "basic":
            return ()
        if assertion:
            return (
                ("client_id", client_id),
                ("client_assertion_type", ASSERTION_TYPE),
                ("client_assertion", assertion),
            )
        secret = (("client_secret", client_secret),) if self.method == "post" else ()
        return (("client_id", client_id), *secret)

    @property
    def fingerprint(self) -> str:
        """What decides whether the server accepts its assertions, without the time in them."""
        key = "" if self.volatile else fingerprint(str(self.key))
        return f"{self.method} {self.algorithm} {self.kid} {self.audience} {key}"

    def __repr__(self) -> str:
        return f"ClientAuth.{self.method}({'raw=True' if self.raw else self.algorithm})"


def _needs_joserfc() -> None:
    if importlib.util.find_spec("joserfc") is None:
        raise ConfigurationError(
            "Signed assertions need joserfc, which is not installed.",
            todo="Run: pip install 'tokensession[jwt]'",
        )


def _signed(header: dict[str, str], claims: dict[str, Any], secret: str) -> str:
    """A JWT. Raises `ConfigurationError`, which shows nothing of the key."""
    from joserfc import errors, jwk, jwt  # only for those who sign: it imports cryptography

    algorithm = header["alg"]
    family = _FAMILIES[algorithm[:2]]
    try:
        with warnings.catch_warnings():
            # About short secrets, and names that RFC 9864 deprecates. The server has chosen both.
            warnings.simplefilter("ignore", errors.SecurityWarning)
            if family == "oct":
                key: Any = jwk.OctKey.import_key(secret)
            else:
                document = json.loads(secret) if secret.lstrip().startswith("{") else secret
                key = jwk.JWKRegistry.import_key(document, family)
            return jwt.encode(header, claims, key, algorithms=[algorithm])
    except Exception as error:  # noqa: BLE001 - joserfc and cryptography share no base class
        problem = type(error).__name__
    # Outside the handler: their messages may quote the key.
    raise ConfigurationError(
        f"The key cannot sign with {algorithm} ({problem}).",
        intact="Nothing was sent.",
        todo=f"Pass a private {family} key as PEM or JWK, or another algorithm.",
    )
