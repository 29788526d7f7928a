"""A sign-in in a browser: the authorization code grant with PKCE (RFC 6749, 4.1; RFC 7636; RFC 9207)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from .. import _validate
from .._redact import excerpt
from ..errors import ConfigurationError, GrantRejected, SignInRequired, TokenSessionError, TokenUnavailable
from ..providers.oauth2 import OAuth2
from ..source import ManagedSource
from ..token import Token
from ._source import check_source

__all__ = ["AuthorizationRequest"]

_INTACT = "No code was sent, and the stored sign-in is unchanged."
_AGAIN = "Start the sign-in again."
_TRANSIENT = ("server_error", "temporarily_unavailable")  # RFC 6749, 4.1.2.1


@dataclass(frozen=True, slots=True, repr=False)
class AuthorizationRequest:
    """One sign-in in a browser, from its URL to the redirect. Make one with `begin`.

    In a web application, keep its fields in the user's session, and make an equal object from them in the
    handler of the redirect. Raises `ConfigurationError` if the state or the verifier is not there. `repr`
    shows no secret.
    """

    url: str
    """Where to send the person's browser."""
    state: str
    """What the redirect has to bring back (RFC 6749, 10.12)."""
    code_verifier: str
    """The secret behind the URL's `code_challenge` (RFC 7636, 4.1)."""
    redirect_uri: str | None = None
    """Where the browser comes back to."""
    issuer: str | None = None
    """Who has to answer, if that is known (RFC 9207)."""
    names_issuer: bool = False
    """Whether the redirect must say who answers (RFC 9207, 2.4)."""

    def __post_init__(self) -> None:
        _validate.secret("state", self.state)
        _validate.secret("code_verifier", self.code_verifier)

    @classmethod
    def begin(
        cls,
        provider: OAuth2,
        *,
        redirect_uri: str | None = None,
        scope: str | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> Self:
        """A new sign-in with a state and a code verifier of its own.

        `redirect_uri` and `scope` are by default the provider's. `extra` are more parameters of the URL, such
        as {"prompt": "consent"}. Raises `ConfigurationError` if the provider has no `authorization_url`, or
        another scope: its refreshes would ask for that.
        """
        if not isinstance(provider, OAuth2):
            raise ConfigurationError(
                f"{_validate.describe(provider)} has no authorization_url.",
                todo="Use OAuth2(authorization_url=...). It takes the strategy and auth of a Vendor, too.",
            )
        state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
        digest = hashlib.sha256(verifier.encode("ascii")).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
        url = provider.authorization(
            state=state, code_challenge=challenge, redirect_uri=redirect_uri, scope=scope, extra=extra
        )
        return cls(url, state, verifier, redirect_uri, provider.issuer, provider.names_issuer)

    def is_answered_by(self, redirected: str) -> bool:
        """Whether this URL is the redirect of this sign-in: it has the same state."""
        state = _query(redirected).get("state", "").encode("utf-8", "surrogatepass")
        return hmac.compare_digest(state, self.state.encode())

    def code(self, redirected: str) -> str:
        """The code in the URL that the browser was redirected to.

        Raises `SignInRequired` if it belongs to another sign-in or comes from another issuer,
        `GrantRejected` if the person or the server has refused, and `TokenUnavailable` if the server says to
        try again later.
        """
        query = _query(redirected)
        if not self.is_answered_by(redirected):
            raise _not_ours("its state is not the one of this sign-in")
        issuer = query.get("iss", None if self.names_issuer else self.issuer)
        if self.issuer is not None and issuer != self.issuer:
            raise _not_ours("its issuer (iss) is missing, or not the one of this provider")
        if "error" in query:
            raise _refused(query["error"], query.get("error_description", ""))
        if not (code := query.get("code")):
            raise _not_ours("it has no code")
        return code

    async def sign_in(self, source: ManagedSource, redirected: str) -> Token:
        """Redeem the code in the URL that the browser was redirected to, and store the token.

        Raises what `code` and `ManagedSource.sign_in` raise.
        """
        check_source(source)
        return await source.sign_in(
            code=self.code(redirected), code_verifier=self.code_verifier, redirect_uri=self.redirect_uri
        )

    def __repr__(self) -> str:
        return f"<AuthorizationRequest {self.url.partition('?')[0]}>"


def _query(url: str) -> dict[str, str]:
    """The query of a URL. A parameter that comes twice (RFC 6749, 3.1, forbids it) is empty, not missing."""
    try:
        pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True, max_num_fields=100)
    except ValueError:  # no redirect has so many
        return {}
    names = [name for name, _ in pairs]
    return {name: value if names.count(name) == 1 else "" for name, value in pairs}


def _not_ours(why: str) -> SignInRequired:
    return SignInRequired(f"The redirect cannot be used: {why}.", intact=_INTACT, todo=_AGAIN)


def _refused(error: str, description: str) -> TokenSessionError:
    code = excerpt(error.encode("utf-8", "replace"), (), longest=64)
    said = excerpt(description.encode("utf-8", "replace"), (), longest=200)
    happened = f"The authorization endpoint answered: {code or 'an error'}{f' ({said})' if said else ''}."
    if error in _TRANSIENT:
        return TokenUnavailable(happened, todo=_AGAIN)
    return GrantRejected(happened, code=code, intact=_INTACT, todo=_AGAIN)
