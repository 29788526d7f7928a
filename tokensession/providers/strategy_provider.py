"""`StrategyProvider`: a strategy with the credentials of one client."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from .. import _validate
from ..errors import ConfigurationError, GrantRejected, TokenSessionError
from ..token import Token, fingerprint
from . import _wire
from .client_auth import ClientAuth
from .protocol import Credential, GrantType, Identity, Issued, TokenRequest, TokenResponse
from .response import read as read_response
from .secret_values import SecretValue, check_secret, read_secret
from .strategy import CREDENTIAL_FIELDS, Strategy

__all__ = ["StrategyProvider", "repeated", "warn_of_http"]

_FORM = "application/x-www-form-urlencoded"
_OUR_FIELDS = frozenset(
    (
        *("grant_type", "code", "code_verifier", "refresh_token", "device_code"),
        *("client_id", "client_secret", "client_assertion", "client_assertion_type"),
        *("redirect_uri", "scope", "audience", "resource"),
    )
)
_OUR_HEADERS = ("content-type", "content-length", "transfer-encoding", "authorization", "host")

_log = logging.getLogger("tokensession")


class StrategyProvider:
    """A provider made of a `Strategy` and the credentials of one client.

    - `strategy`: how the server expects token requests, and how it answers.
    - `identity` distinguishes this client from others of the same server in the key: a region, a client id.
    - `environment`: the environment, region or tenant of the tokens. It is stored with them, so that another
      one never uses them. It must contain neither a secret nor a path. The default is `identity`.
    - `base_url`: the API's address. Relative request URLs are appended to it.
    - `token_url`: the token endpoint. It is used as it is: "/o/token/" and "/o/token" are two addresses, and
      a query is kept.
    - `values`: the configuration that the strategy's `grants` and `headers` name, such as `client_id`. None
      means not configured. A secret may be a `pathlib.Path` or a function: see `SecretValue`.
    - `credential`: the refresh token or code to start from, `Credential("client_credentials", "")` for a
      client that needs none, or None if you call `sign_in` later.
    - `api_headers`: (name, value) pairs for every API request.
    - `auth`: how the client authenticates, besides what the strategy's `grants` and `headers` say.
    - `extra`: more fields for the body of every token request. `headers`: more headers for it.
    - `revocation_url`: where tokens are revoked (RFC 7009).
    - `insecure_http_hosts`: host names to which plain http is allowed, in a network of your own such as one
      of containers. Whoever can read that network gets the secrets and tokens. Logs a warning.

    All URLs must be https, or http on the loopback interface. Raises `ConfigurationError` otherwise.

    It can be pickled if its strategy can, which means that the strategy's functions have names in a module. A
    pickle contains the secrets.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        identity: str,
        base_url: str,
        token_url: str,
        values: Mapping[str, SecretValue | None],
        credential: Credential | None,
        api_headers: tuple[tuple[str, str], ...] = (),
        environment: str | None = None,
        auth: ClientAuth | None = None,
        extra: Mapping[str, SecretValue] | None = None,
        headers: Mapping[str, str] | None = None,
        revocation_url: str | None = None,
        insecure_http_hosts: Collection[str] = (),
    ) -> None:
        self.strategy = strategy
        if credential is not None:
            self._sent_with(credential.grant_type)
        self.insecure_http_hosts: tuple[str, ...] = _validate.http_hosts(insecure_http_hosts)
        hosts = self.insecure_http_hosts
        self.base_url: str = _validate.url("base_url", base_url, insecure_http_hosts=hosts)
        _validate.url("token_url", token_url, query=True, insecure_http_hosts=hosts)
        if revocation_url is not None:
            _validate.url("revocation_url", revocation_url, query=True, insecure_http_hosts=hosts)
        warn_of_http(strategy.name, base_url=base_url, token_url=token_url, revocation_url=revocation_url)
        self.token_url = token_url
        self.origins: tuple[str, ...] = (_validate.origin(self.base_url),)
        self.api_headers = api_headers
        self.credential = credential
        self.revocation_url = revocation_url
        self._name = identity
        self._values = {name: value for name, value in values.items() if value is not None}
        self._extra = _checked_extra(extra or {}, strategy)
        self._headers = _checked_headers(headers or {})
        self._secret_names = frozenset(
            [name.lower() for name in strategy.secrets]
            + [
                name.lower()
                for name, value in (*self._values.items(), *self._extra.items())
                if not isinstance(value, str)
            ]
        )
        self._auth = _checked_auth(auth, self._text("client_id"), self._values.get("client_secret"))
        self._assertion = auth.signed("", "", token_url, 0.0) if auth and not auth.changes else ""
        changing = (*self._values.values(), *self._extra.values())
        fixed = all(isinstance(each, str) for each in changing)
        self.changes: bool = not fixed or bool(auth and auth.changes)
        """Whether its secrets may change, so that `resolved` has something to read."""
        self._from_functions: frozenset[str] = frozenset()
        requested = _requested({name: self._text(name) for name in _SCOPES})
        self.identity: Identity = Identity(
            provider=strategy.name,
            environment=identity if environment is None else environment,
            client_id=self._text("client_id"),
            origin=_validate.origin(token_url),
            scope=f"{requested} extra={others}".strip() if (others := self._others()) else requested,
        )
        # Now, because the text of a secret that may change is not known yet.
        self._apart = f"{self.identity.scope} {self._others(replaceable=True)}".strip()

    @property
    def key(self) -> str:
        """The default key: strategy, identity, fingerprint of the configured credential.

        If the credential can be used again, several sources may use it for different tokens, so there is a
        fingerprint of what is requested too: the scope, and `extra`. "" without a credential: different
        accounts would share such a key.
        """
        key = self._key_without_scope
        credential, apart = self.credential, self._apart
        if credential is None or self.rotates or credential.single_use or not apart:
            return key
        return f"{key}/{fingerprint(apart)}"

    @property
    def former_keys(self) -> tuple[str, ...]:
        """The default keys of earlier versions, if they differ: a token may still be stored under one."""
        former = self._key_without_scope
        differs = former != self.key and not self._is_machine
        return (former,) if differs else ()

    @property
    def _key_without_scope(self) -> str:
        if self.credential is None:
            return ""
        return f"{self.strategy.name}/{self._name}/{self.credential.fingerprint}"

    def _others(self, *, replaceable: bool = False) -> str:
        """A fingerprint of what determines the token besides its scope, or "" if nothing does.

        It counts where the credential can be used again: several sources may differ in nothing else.
        `replaceable`: with secrets and headers, of which another one may take the place.
        """
        if self.rotates:
            return ""
        found: list[tuple[str, object]] = [*self._extra.items()]
        if self._is_machine:
            found += [pair for pair in self._values.items() if pair[0] not in _OUR_FIELDS]
        if not replaceable:
            found = [pair for pair in found if pair[0].lower() not in self._secret_names]
        elif self._is_machine:
            found += self._headers.values()
        texts = sorted((name, str(value) if isinstance(value, str | Path) else "") for name, value in found)
        return fingerprint(repr(texts)) if texts else ""

    @property
    def _is_machine(self) -> bool:
        return self.credential is not None and self.credential.grant_type == "client_credentials"

    @property
    def rotates(self) -> bool:
        """Whether a refresh token can be used only once. A client credentials grant has none."""
        return self.strategy.rotates and not self._is_machine

    @property
    def unauthorized_statuses(self) -> tuple[int, ...]:
        """The statuses with which the API says that a token is not valid."""
        return tuple(self.strategy.unauthorized_statuses)

    @property
    def replay_leeway(self) -> float:
        """Seconds within which the server accepts the same refresh token again."""
        return self.strategy.replay_leeway

    @property
    def max_requests(self) -> int | None:
        """Requests after which the server ends an access token, or None."""
        return self.strategy.max_requests

    async def resolved(self, *, wall: float) -> Self:
        """The same provider with its secrets as they are now, and assertions for this time.

        `wall` is seconds since the epoch. Raises `NotSent` if a secret cannot be read now, and
        `ConfigurationError` for one that cannot be used.
        """
        if not self.changes:
            return self
        sources = (*self._values.items(), *self._extra.items())
        ready = copy.copy(self)
        ready._values = {name: await read_secret(name, value) for name, value in self._values.items()}
        ready._extra = {name: await read_secret(name, value) for name, value in self._extra.items()}
        if self._auth is not None:
            ready._auth = await self._auth.resolved()
            ready._assertion = ready._auth.signed(*ready._client, self.token_url, wall)
        ready._from_functions = frozenset(name for name, value in sources if callable(value))
        ready.changes = False
        return ready

    @property
    def volatile(self) -> str:
        """What identifies the secrets that functions returned. They are not in `request_fingerprint`."""
        pairs = (*self._values.items(), *self._extra.items())
        found = [str(value) for name, value in pairs if name in self._from_functions]
        if self._auth is not None and self._auth.volatile:
            found.append(str(self._auth.key))
        return fingerprint("\0".join(found)) if found else ""

    def request(self, credential: Credential) -> TokenRequest:
        """The token request that redeems this credential.

        Raises `ConfigurationError` if the server does not support its grant type, or if a secret that may
        change has not been read: see `resolved`.
        """
        names = self._sent_with(credential.grant_type)
        own = dict(credential.fields)
        if name := CREDENTIAL_FIELDS[credential.grant_type]:
            own[name] = credential.secret
        known = {"grant_type": credential.grant_type, **self._texts, **own}
        pairs = [(name, known[name]) for name in names if name in known]
        pairs += [pair for pair in own.items() if pair[0] not in names]
        return self._built(self.token_url, pairs, self._secrets(credential))

    def _sent_with(self, grant_type: GrantType) -> Sequence[str]:
        """The fields of a token request. Raises `ConfigurationError` if there is no such grant."""
        grants = self.strategy.grants
        if grant_type not in grants:
            raise ConfigurationError(
                f"{self.strategy.name} does not support the {grant_type} grant.",
                intact="The credential was not sent.",
                todo=f"Use one of: {', '.join(grants)}.",
            )
        return grants[grant_type]

    def request_fingerprint(self, credential: Credential) -> str:
        """What identifies a token request: all of it, but the key instead of a signed assertion.

        What a function returned is not part of it: it may be new each time, as a signed secret is.
        """
        stable, without = copy.copy(self), dict.fromkeys(self._from_functions, "")
        stable._values = {name: without.get(name, value) for name, value in self._values.items()}
        stable._extra = {name: without.get(name, value) for name, value in self._extra.items()}
        if self._assertion and self._auth is not None:
            stable._assertion = self._auth.fingerprint
            if self._auth.method == "client_secret_jwt":
                stable._assertion += fingerprint(stable._text("client_secret"))
        request = stable.request(credential)
        head = (request.url, *(text for header in request.headers for text in header))
        return "".join(f"{part}\0" for part in head) + request.body.decode("utf-8", "surrogateescape")

    def revocation(self, token: Token) -> TokenRequest | None:
        """The request that revokes this token (RFC 7009, 2.1), or None if the server has no endpoint for it.

        It revokes the refresh token, which ends the access tokens from it too, or else the access token.
        """
        if self.revocation_url is None:
            return None
        hint = "refresh_token" if token.refresh_token else "access_token"
        secret = token.refresh_token or token.access_token
        return self._posted(
            self.revocation_url, [("token", secret), ("token_type_hint", hint)], (secret, *self._hidden())
        )

    def _posted(self, url: str, pairs: Sequence[tuple[str, str]], secrets: tuple[str, ...]) -> TokenRequest:
        """A request to another endpoint than the token endpoint: always a form, with standard names.

        The client authenticates as in token requests (RFC 7009, 2.1; RFC 8628, 3.1).
        """
        plain, texts = copy.copy(self), self._texts
        plain.strategy = _plain(self.strategy)
        if self._auth is None:
            sent = {name for names in self.strategy.grants.values() for name in names}
            client = [name for name in ("client_id", "client_secret") if name in sent and name in texts]
            pairs = [*pairs, *((name, texts[name]) for name in client)]
        return plain._built(url, pairs, secrets)

    def _built(self, url: str, pairs: Sequence[tuple[str, str]], secrets: tuple[str, ...]) -> TokenRequest:
        strategy, values = self.strategy, self._texts
        pairs = [*pairs, *((name, str(value)) for name, value in self._extra.items())]
        more: tuple[tuple[str, str], ...] = ()
        if self._auth is not None:
            pairs += self._auth.fields(*self._client, self._assertion)
            more = self._auth.headers(*self._client)
        renamed = [(strategy.rename.get(name, name), value) for name, value in repeated(pairs)]
        headers = [("Content-Type", strategy.content_type), *strategy.headers(values), *more]
        headers = [pair for pair in headers if pair[0].lower() not in self._headers]
        return TokenRequest(
            url=url,
            headers=(*headers, *self._headers.values()),
            body=strategy.encode(renamed),
            secrets=secrets,
        )

    @property
    def _texts(self) -> dict[str, str]:
        """The configuration. Raises `ConfigurationError` if a secret has not been read yet."""
        if self.changes:
            raise ConfigurationError(
                "This provider has secrets that may change, and they have not been read.",
                intact="Nothing was sent.",
                todo="Use what `await provider.resolved(wall=time.time())` returns.",
            )
        return {name: str(value) for name, value in self._values.items()}

    @property
    def _client(self) -> tuple[str, str]:
        return self._text("client_id"), self._text("client_secret")

    def _text(self, name: str) -> str:
        value = self._values.get(name, "")
        return value if isinstance(value, str) else ""

    def read(self, response: TokenResponse, credential: Credential, *, sent_at: float) -> Issued:
        """The token in the response. Raises the errors that `Provider.read` names."""
        try:
            return read_response(
                self.strategy,
                response,
                credential,
                sent_at=sent_at,
                secrets=self._secrets(credential),
                scope=self._text("scope") or None,
            )
        except TokenSessionError as error:
            if isinstance(error, GrantRejected) and credential.grant_type == "client_credentials":
                # There is nothing that could be spent or revoked: someone corrects it at the server.
                error.certain, error.todo = False, "Look at the client at the server: it is tried again."
                error.intact = "It is tried again from time to time."
            # Drop the frames that read the response: the client secret is among their locals, and some
            # programs report the locals of every frame.
            raise error.with_traceback(None)  # noqa: B904 - the same error, not another one

    def _secrets(self, credential: Credential) -> tuple[str, ...]:
        """What to redact from everything that is said about a request with this credential."""
        first = self.credential.secret if self.credential else ""
        found = (credential.secret, *(value for _, value in credential.fields), first)
        return (*filter(None, found), *self._hidden())

    def _hidden(self) -> tuple[str, ...]:
        """The secrets of the configuration."""
        pairs = (*self._values.items(), *self._extra.items(), *self._headers.values())
        found = [str(value) for name, value in pairs if name.lower() in self._secret_names]
        return tuple(filter(None, (*found, self._assertion)))

    def __repr__(self) -> str:
        credential = self.credential
        start = f"{credential.grant_type} {credential.fingerprint}" if credential else "no credential"
        return f"<{type(self).__name__} {self._name} at {self.base_url}, {start}>"


def warn_of_http(provider: str, **urls: str | None) -> None:
    """Warn of each URL of plain http that leads to another machine, as `insecure_http_hosts` has allowed."""
    for name, url in urls.items():
        parts = urlsplit(url or "")
        if parts.scheme == "http" and not _validate.is_loopback(parts.hostname or ""):
            _log.warning(
                "%s: %s is plain http to %s, as insecure_http_hosts allows. Whoever can read that network "
                "can use the secrets and tokens that are sent there.",
                provider,
                name,
                parts.hostname,
            )


_SCOPES = ("scope", "audience", "resource")


def _requested(values: Mapping[str, str]) -> str:
    """The requested scope, audience and resource as one text, whatever the order of their words."""
    words = {
        word if name == "scope" else f"{name}={word}" for name in _SCOPES for word in values[name].split()
    }
    return " ".join(sorted(words))


def repeated(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """A field for each resource: several are configured as one text, with blanks (RFC 8707, 2)."""
    return [
        (name, word) for name, value in pairs for word in (value.split() if name == "resource" else (value,))
    ]


def _plain(strategy: Strategy) -> Strategy:
    """This strategy with the standard's names and encoding."""
    return replace(strategy, rename={}, encode=_wire.encode_form, content_type=_FORM)


def _checked_auth(
    auth: ClientAuth | None, client_id: str, client_secret: SecretValue | None
) -> ClientAuth | None:
    if auth is None:
        return None
    if not isinstance(auth, ClientAuth):
        raise ConfigurationError(
            f"auth must be a ClientAuth, not {_validate.describe(auth)}.",
            todo="Pass ClientAuth.basic(), .post(), .none() or another of its methods.",
        )
    auth.check(client_id, client_secret)
    return auth


def _checked_extra(extra: Mapping[str, SecretValue], strategy: Strategy) -> dict[str, SecretValue]:
    ours = {
        *_OUR_FIELDS,
        *strategy.rename.values(),
        *(name for names in strategy.grants.values() for name in names),
    }
    for name in extra:
        if _validate.text("a name in extra", name) in ours:
            raise ConfigurationError(
                f"extra must not contain {name!r}, which tokensession sends itself.",
                todo="Use the parameter for it.",
            )
    return {name: check_secret(f"extra[{name!r}]", value) for name, value in extra.items()}


def _checked_headers(headers: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    for name, value in headers.items():
        if _validate.text("a name in headers", name).lower() in _OUR_HEADERS:
            raise ConfigurationError(f"headers must not contain {name!r}, which tokensession sends itself.")
        _validate.text(f"headers[{name!r}]", value)
    return {name.lower(): (name, value) for name, value in headers.items()}
