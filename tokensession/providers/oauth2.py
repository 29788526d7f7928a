"""`OAuth2`: any server that follows RFC 6749."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Required, Self, TypedDict, Unpack
from urllib.parse import urlencode

from .. import _validate
from ..errors import ConfigurationError
from ..token import fingerprint
from .client_auth import ClientAuth
from .protocol import DEVICE_CODE, Credential, TokenRequest, configured_credential
from .secret_values import SecretValue, check_secret
from .strategy import Strategy, Values
from .strategy_provider import StrategyProvider, repeated, warn_of_http

if TYPE_CHECKING:
    from .discovery import Discovery

__all__ = ["OAUTH2", "OAuth2", "OAuth2Settings"]


def _accept(_values: Values) -> tuple[tuple[str, str], ...]:
    return (("Accept", "application/json"),)  # without it, some servers send a form-encoded response


OAUTH2 = Strategy(
    name="oauth2",
    grants={
        # RFC 6749, sections 4.1.3, 6 and 4.4.2; RFC 7636, 4.5; RFC 8707, 2.2; RFC 8628, 3.4.
        "authorization_code": ("grant_type", "code", "redirect_uri", "code_verifier", "resource"),
        "refresh_token": ("grant_type", "refresh_token", "scope", "resource"),
        "client_credentials": ("grant_type", "scope", "audience", "resource"),
        DEVICE_CODE: ("grant_type", "device_code"),
    },
    headers=_accept,
)
"""What `OAuth2` expects of a server: RFC 6749 and its companions. Change it with `dataclasses.replace`."""

_ASKED = ("client_id", "redirect_uri", "scope", "audience", "resource")
_JSON = {list: "array", bool: "boolean", dict: "object"}
_ENDPOINTS = {
    "token_url": "token_endpoint",
    "authorization_url": "authorization_endpoint",
    "device_authorization_url": "device_authorization_endpoint",
    "revocation_url": "revocation_endpoint",
}


class OAuth2Settings(TypedDict, total=False):
    """The parameters of `OAuth2` that `OAuth2.discover` takes, too. Only `client_id` must be there."""

    token_url: str
    client_id: Required[str]
    client_secret: SecretValue | None
    auth: ClientAuth | None
    code: str | None
    code_verifier: str | None
    refresh_token: str | None
    grant: Literal["client_credentials"] | None
    redirect_uri: str | None
    scope: str | None
    audience: str | None
    resource: str | Sequence[str] | None
    extra: Mapping[str, SecretValue] | None
    headers: Mapping[str, str] | None
    base_url: str | None
    authorization_url: str | None
    device_authorization_url: str | None
    revocation_url: str | None
    names_issuer: bool
    rotates: bool | None
    strategy: Strategy
    insecure_http_hosts: Collection[str]


class OAuth2(StrategyProvider):
    """Any server that follows RFC 6749.

    - `token_url`: the token endpoint. `base_url`: the API's address; by default its origin.
    - `client_id`, `client_secret`: your client. The secret may be text, the path of a file, or a function.
    - `auth`: how the client authenticates. The default is `ClientAuth.basic()`. Without a secret, say how:
      `ClientAuth.none()` for a public client.
    - `refresh_token` or `code`: the credential to start from. A code may come with its `code_verifier`
      (RFC 7636). Without one, call `sign_in` later.
    - `grant`: "client_credentials" for a machine, which needs no credential to start from (RFC 6749, 4.4).
    - `redirect_uri`: what the code was requested with.
    - `scope`, `audience`, `resource`: what the token is for. `resource` may be several (RFC 8707).
    - `extra`: more fields for each token request. `headers`: more headers for it.
    - `authorization_url`, `device_authorization_url`: where sign-ins start. `issuer`: who answers there, and
      `names_issuer`: whether each redirect says so (RFC 9207).
    - `revocation_url`: where a sign-out revokes its token (RFC 7009).
    - `rotates`: pass False only if the server documents that a refresh token stays valid after use.
    - `strategy`: what is rare, as data. Make one with `dataclasses.replace(OAUTH2, ...)`.
    - `insecure_http_hosts`: hosts to which plain http is allowed. See `StrategyProvider`.

    A pickle of it contains its secrets. Raises `ConfigurationError` for arguments that cannot work.
    """

    def __init__(
        self,
        *,
        token_url: str,
        client_id: str,
        client_secret: SecretValue | None = None,
        auth: ClientAuth | None = None,
        code: str | None = None,
        code_verifier: str | None = None,
        refresh_token: str | None = None,
        grant: Literal["client_credentials"] | None = None,
        redirect_uri: str | None = None,
        scope: str | None = None,
        audience: str | None = None,
        resource: str | Sequence[str] | None = None,
        extra: Mapping[str, SecretValue] | None = None,
        headers: Mapping[str, str] | None = None,
        base_url: str | None = None,
        authorization_url: str | None = None,
        device_authorization_url: str | None = None,
        revocation_url: str | None = None,
        issuer: str | None = None,
        names_issuer: bool = False,
        rotates: bool | None = None,
        strategy: Strategy = OAUTH2,
        insecure_http_hosts: Collection[str] = (),
    ) -> None:
        hosts = _validate.http_hosts(insecure_http_hosts)
        address = _validate.url("token_url", token_url, query=True, insecure_http_hosts=hosts)
        if client_secret is not None and client_secret != "":
            check_secret("client_secret", client_secret)
        for name, value in (("redirect_uri", redirect_uri), ("scope", scope), ("audience", audience)):
            if value is not None:
                _validate.text(name, value)
        for name, value in (
            ("authorization_url", authorization_url),
            ("device_authorization_url", device_authorization_url),
        ):
            if value is not None:
                _validate.url(name, value, query=True, insecure_http_hosts=hosts)
        if issuer is not None:
            _validate.url("issuer", issuer, insecure_http_hosts=hosts)
        elif names_issuer:
            raise ConfigurationError(
                "names_issuer needs the issuer, to compare it with what a redirect names."
            )
        credential = configured_credential(
            code=code, refresh_token=refresh_token, code_verifier=code_verifier
        )
        if grant is not None:
            credential = _machine(grant, credential, auth)
        self.authorization_url = authorization_url
        self.device_authorization_url = device_authorization_url
        self.issuer = issuer
        self.names_issuer = names_issuer
        place, _, query = address.partition("?")
        if query:
            place = f"{place}?{fingerprint(query)}"  # it tells tenants apart, and may have a secret
        super().__init__(
            strategy if rotates in (None, strategy.rotates) else replace(strategy, rotates=bool(rotates)),
            identity=f"{place}/{_validate.text('client_id', client_id)}",
            base_url=_validate.origin(address) if base_url is None else base_url,
            token_url=token_url,
            values={
                "client_id": client_id,
                "client_secret": client_secret,
                "redirect_uri": redirect_uri,
                "scope": scope,
                "audience": audience,
                "resource": _resources(resource),
            },
            credential=credential,
            environment="",  # its identity contains the URL's path
            auth=ClientAuth.basic() if auth is None else auth,
            extra=extra,
            headers=headers,
            revocation_url=revocation_url,
            insecure_http_hosts=hosts,
        )
        warn_of_http(
            self.strategy.name,
            authorization_url=authorization_url,
            device_authorization_url=device_authorization_url,
        )

    @classmethod
    async def discover(
        cls, issuer: str, *, discovery: Discovery | None = None, **settings: Unpack[OAuth2Settings]
    ) -> Self:
        """The provider of this issuer, with the endpoints that its metadata names (RFC 8414, or OpenID).

        `settings` are this class's own parameters (see `OAuth2Settings`), and count more than the metadata.
        `insecure_http_hosts` are hosts to which the issuer may be plain http, too. `discovery` remembers
        what it has found; without one, the metadata is looked up each time. Without `auth`, a client with a
        secret uses what the server takes: Basic, or else the body. `ClientAuth.tls()` uses the endpoints that
        ask for a certificate (RFC 8705, 5).

        Raises `ConfigurationError` if the metadata is another issuer's, or if an address in it is not https,
        and `TokenUnavailable` if it cannot be read.
        """
        from .discovery import Discovery  # with aiohttp, which a provider needs for nothing else

        document = await (Discovery() if discovery is None else discovery).metadata(
            issuer, insecure_http_hosts=settings.get("insecure_http_hosts", ())
        )
        if settings.get("auth") == ClientAuth.tls():
            aliases = _of_type(document, "mtls_endpoint_aliases", dict) or {}
            # Those are for requests of the client itself, and a browser has no certificate.
            browsers = {"authorization_endpoint": document.get("authorization_endpoint")}
            document = {**document, **aliases, **browsers}
        if not isinstance(document.get("token_endpoint"), str) and "token_url" not in settings:
            raise ConfigurationError("The metadata of the issuer names no token_endpoint.")
        found: dict[str, Any] = {
            name: document[field] for name, field in _ENDPOINTS.items() if document.get(field) is not None
        }
        methods = _of_type(document, "token_endpoint_auth_methods_supported", list) or ["client_secret_basic"]
        by_post = "client_secret_basic" not in methods and "client_secret_post" in methods
        if by_post and settings.get("client_secret") is not None and settings.get("auth") is None:
            settings["auth"] = ClientAuth.post()
        if _of_type(document, "authorization_response_iss_parameter_supported", bool):
            found["names_issuer"] = True
        return cls(**{**found, "issuer": issuer, **settings})

    def authorization(
        self,
        *,
        state: str,
        code_challenge: str,
        redirect_uri: str | None = None,
        scope: str | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> str:
        """The URL where a person signs in and a code is issued (RFC 6749, 4.1.1; RFC 7636, 4.3).

        `grants.AuthorizationRequest` makes the state and the challenge. Raises `ConfigurationError` without
        an `authorization_url`, or if the strategy has no such grant.
        """
        if self.authorization_url is None:
            raise ConfigurationError(
                "authorization_url is missing, so no sign-in can start.",
                todo="Pass it to the provider, or use OAuth2.discover(issuer, ...).",
            )
        self._sent_with("authorization_code")  # or its code could not be redeemed
        given = {"redirect_uri": redirect_uri, "scope": self._asked(scope)}
        known = {name: given.get(name) or self._text(name) for name in _ASKED}
        pairs = [("response_type", "code"), *((name, value) for name, value in known.items() if value)]
        pairs += [("state", state), ("code_challenge", code_challenge), ("code_challenge_method", "S256")]
        own = {name for name, _ in pairs}
        if taken := sorted(own & (extra or {}).keys()):
            raise ConfigurationError(f"extra must not contain {taken[0]!r}, which is in the URL already.")
        query = urlencode([*repeated(pairs), *(extra or {}).items()])
        return f"{self.authorization_url}{'&' if '?' in self.authorization_url else '?'}{query}"

    def _asked(self, scope: str | None) -> str:
        """The scope to ask a person for. Raises `ConfigurationError` if refreshes would ask for another."""
        own = self._text("scope")
        if scope and own and {*scope.split()} != {*own.split()}:
            raise ConfigurationError(
                "The provider has another scope than this sign-in, and each refresh would ask for that.",
                intact="No sign-in was started.",
                todo="Leave scope out here or in the provider. A provider without one sends none with a "
                "refresh, and so keeps that of the sign-in (RFC 6749, 6).",
            )
        return scope or own

    def device_authorization(self, scope: str | None = None) -> TokenRequest:
        """The request that starts a sign-in on a device without a browser (RFC 8628, 3.1).

        Raises `ConfigurationError` without a `device_authorization_url`, or if the strategy has no such
        grant.
        """
        if self.device_authorization_url is None:
            raise ConfigurationError(
                "device_authorization_url is missing, so no sign-in on a device can start.",
                intact="Nothing was sent.",
                todo="Pass it to the provider, or use OAuth2.discover(issuer, ...).",
            )
        self._sent_with(DEVICE_CODE)
        known = {**self._texts, **({"scope": asked} if (asked := self._asked(scope)) else {})}
        pairs = [(name, known[name]) for name in ("scope", "audience", "resource") if name in known]
        return self._posted(self.device_authorization_url, pairs, self._hidden())


def _of_type(document: Mapping[str, Any], field: str, kind: type) -> Any:
    """A field of metadata, or None. Raises `ConfigurationError` if it is of another type."""
    value = document.get(field)
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(
            f"{field} in the metadata must be a JSON {_JSON[kind]}, not {_validate.describe(value)}.",
            todo="Correct it at the server, or use OAuth2(...) with its endpoints.",
        )
    return value


def _machine(grant: str, credential: Credential | None, auth: ClientAuth | None) -> Credential:
    if grant != "client_credentials":
        raise ConfigurationError(
            f"grant must be 'client_credentials' or left out, not {_validate.describe(grant)}.",
            todo="A code, a refresh token and a device code need no grant.",
        )
    if credential is not None:
        raise ConfigurationError(
            "grant='client_credentials' has no code and no refresh token to start from.",
            todo="Leave out code and refresh_token, or grant.",
        )
    if auth == ClientAuth.none():
        raise ConfigurationError(
            "grant='client_credentials' needs a client that authenticates, and ClientAuth.none() does not "
            "(RFC 6749, 4.4).",
            todo="Pass a client_secret, or another auth.",
        )
    return Credential("client_credentials", "")


def _resources(resource: str | Sequence[str] | None) -> str | None:
    """Resource indicators as one text with blanks: a URI has none."""
    if resource is None:
        return None
    found = [resource] if isinstance(resource, str) else list(resource)
    for each in found:
        if {" ", "#"} & {*_validate.text("resource", each)} or ":" not in each:
            raise ConfigurationError(
                "resource must be absolute URIs without a fragment (RFC 8707, 2), such as "
                f"'https://api.example.com', not {_validate.describe(each)}."
            )
    return " ".join(found)
