"""Client authentication and sign-ins, as a user writes them."""

from pathlib import Path
from typing import assert_type

from tokensession import AuthedSession, Token
from tokensession.grants import AuthorizationRequest, DeviceSignIn, LoopbackRedirect
from tokensession.providers import OAUTH2, ClientAuth, Discovery, OAuth2, Provider, SecretValue

URL = "https://id.example.com/token"


def text() -> str:
    return "s"


async def coming() -> str:
    return "s"


secrets: list[SecretValue] = ["s", Path("s"), text, coming, lambda: "s"]
provider: Provider = OAuth2(token_url=URL, client_id="c", client_secret=Path("s"), refresh_token="r")
machine = OAuth2(
    token_url=URL,
    client_id="c",
    auth=ClientAuth.private_key_jwt(key=coming, kid="1", algorithm="ES256"),
    grant="client_credentials",
    resource=["https://a.example"],
    extra={"pin": text},
    headers={"User-Agent": "a"},
    strategy=OAUTH2,
)
OAuth2(token_url=URL, client_id="c", auth="post")  # type: ignore[arg-type]
OAuth2(token_url=URL, client_id="c", grant="password")  # type: ignore[arg-type]


async def browser(session: AuthedSession) -> None:
    found = await OAuth2.discover("https://id.example.com", client_id="c", discovery=Discovery())
    assert_type(found, OAuth2)
    await OAuth2.discover("https://id.example.com")  # type: ignore[call-arg]
    await OAuth2.discover(URL, client_id="c", scopes="read")  # type: ignore[call-arg]
    await OAuth2.discover(URL, client_id=b"c")  # type: ignore[arg-type]
    async with LoopbackRedirect() as redirect:
        request = AuthorizationRequest.begin(found, redirect_uri=redirect.uri, extra={"prompt": "consent"})
        assert_type(request.url, str)
        received = await redirect.receive(request)
        assert_type(await request.sign_in(session.source, received), Token)


async def device(session: AuthedSession) -> None:
    started = await DeviceSignIn.begin(session.source)
    assert_type(started, DeviceSignIn)
    assert_type(started.user_code, str)
    token = await started.complete(session.source)
    assert_type(token, Token)
    print(token.extra["id_token"])
