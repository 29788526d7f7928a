"""Recognizable secrets, every spelling a server may echo them in, and providers that use them."""

from __future__ import annotations

import base64
import html
import json
import traceback
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

from tokensession.providers import Credential, Issued, OAuth2, Oto, Priava, StrategyProvider, TokenResponse

AWKWARD = ' %&+£€"\\'
REFRESH = f"rt{AWKWARD}ZQXWrefresh/7:x"
CLIENT_SECRET = f"cs{AWKWARD}ZQXWclient/8:y"
CODE = f"co{AWKWARD}ZQXWcode/9:z"
CONFIGURED = (REFRESH, CLIENT_SECRET, CODE)

NEW_ACCESS = "at-ZQXWaccess|4711:$!*-and-more"
NEW_REFRESH = "nr-ZQXWrotated~4712+/==-and-more"
ISSUED = (NEW_ACCESS, NEW_REFRESH)

BY_REFRESH = Credential("refresh_token", REFRESH)
BY_CODE = Credential("authorization_code", CODE)
SENT_AT = 1_750_000_000.0


def oto() -> Oto:
    return Oto(refresh_token=REFRESH)


def priava() -> Priava:
    return Priava(
        client_id="client-7",
        client_secret=CLIENT_SECRET,
        redirect_uri="https://my.app.com/oauth2callback",
        region="EU",
        refresh_token=REFRESH,
    )


def oauth2() -> OAuth2:
    return OAuth2(
        token_url="https://id.example.com/token",
        client_id="client-7",
        client_secret=CLIENT_SECRET,
        refresh_token=REFRESH,
    )


PROVIDERS = {"oto": oto, "priava": priava, "oauth2": oauth2}


def token_response(body: Any, status: int = 200, **headers: str) -> TokenResponse:
    """A response with these bytes, or this document as JSON. `retry_after=` is the header Retry-After."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return TokenResponse(
        status, tuple((name.replace("_", "-"), value) for name, value in headers.items()), data
    )


def granted(**changes: Any) -> dict[str, Any]:
    """The document of a good response, with changes; None leaves a field out."""
    document = {
        "access_token": NEW_ACCESS,
        "refresh_token": NEW_REFRESH,
        "token_type": "Bearer",
        "expires_in": 3600,
    }
    return {name: value for name, value in (document | changes).items() if value is not None}


def read(provider: StrategyProvider, answer: TokenResponse, credential: Credential = BY_REFRESH) -> Issued:
    return provider.read(answer, credential, sent_at=SENT_AT)


def spellings(secret: str) -> set[str]:
    """The secret as it may appear in a body, a URL, a log or a header."""
    utf8 = secret.encode()
    return {
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        quote_plus(secret, safe=":/"),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        json.dumps(secret)[1:-1].replace("/", "\\/"),
        html.escape(secret),
        repr(secret)[1:-1],
        base64.b64encode(utf8).decode().rstrip("="),
        base64.urlsafe_b64encode(utf8).decode().rstrip("="),
        utf8.decode("latin-1"),
        secret.encode("cp1252").decode("utf-8", "replace"),
    }


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and its contexts, suppressed or not."""
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is not None and not any(link is other for other in seen):
            seen.append(link)
            yield link
            pending += [link.__cause__, link.__context__]


def shown(error: BaseException) -> str:
    """Everything that can be seen of an error."""
    texts = ["".join(traceback.format_exception(error))]
    for link in chain(error):
        texts += [str(link), repr(link), repr(link.args), repr(vars(link))]
        texts += [str(getattr(link, name, "")) for name in ("doc", "object", "unpacked", "extra")]
    return "\n".join(texts)


def assert_keeps_secrets(text: str, secrets: Iterable[str] = (*CONFIGURED, *ISSUED)) -> None:
    """The text has none of the secrets in any spelling, nor the part of them that is easy to recognize."""
    folded = text.casefold()
    for secret in secrets:
        for spelling in spellings(secret):
            assert spelling.casefold() not in folded, f"the secret {spelling!r} is in {text!r}"
    assert "zqxw" not in folded, text
