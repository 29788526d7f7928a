"""How a client authenticates, to the byte, and the combinations that cannot work."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from _known_secrets import BY_REFRESH, CLIENT_SECRET, CODE, REFRESH, assert_keeps_secrets, oauth2
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from tokensession import ConfigurationError, GrantRejected, NotSent, SignInRequired
from tokensession.providers import ClientAuth, OAuth2, Strategy, StrategyProvider, TokenRequest
from tokensession.providers.client_auth import ASSERTION_TYPE

WALL = 1_750_000_000.0
RSA, EC, OKP = RSAKey.generate_key(2048), ECKey.generate_key("P-256"), OKPKey.generate_key("Ed25519")


def pem(key: Any) -> str:
    return str(key.as_pem(private=True).decode())


def sent(provider: OAuth2) -> TokenRequest:
    """The request of a refresh, with secrets as they are now."""
    return asyncio.run(provider.resolved(wall=WALL)).request(BY_REFRESH)


def fields(request: TokenRequest) -> dict[str, str]:
    return dict(parse_qsl(request.body.decode(), strict_parsing=True, keep_blank_values=True))


def authorization(request: TokenRequest) -> str | None:
    return dict(request.headers).get("Authorization")


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("settings", "header", "body"),
    [
        ({}, basic("client%3A7:s%2B%C2%A3+x"), {}),
        ({"auth": ClientAuth.basic()}, basic("client%3A7:s%2B%C2%A3+x"), {}),
        ({"auth": ClientAuth.basic(raw=True), "client_id": "c 7"}, basic("c 7:s+£ x"), {}),
        ({"auth": ClientAuth.post()}, None, {"client_id": "client:7", "client_secret": "s+£ x"}),
        ({"auth": ClientAuth.none(), "client_secret": None}, None, {"client_id": "client:7"}),
        ({"auth": ClientAuth.tls(), "client_secret": None}, None, {"client_id": "client:7"}),
        (
            {"auth": ClientAuth.assertion("signed-elsewhere"), "client_secret": None},
            None,
            {
                "client_id": "client:7",
                "client_assertion_type": ASSERTION_TYPE,
                "client_assertion": "signed-elsewhere",
            },
        ),
        ({"client_secret": ""}, basic("client%3A7:"), {}),
        ({"client_secret": "", "auth": ClientAuth.basic(raw=True), "client_id": "c"}, basic("c:"), {}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_k51_each_authentication_is_sent_where_the_rfc_says(
    settings: dict[str, Any], header: str | None, body: dict[str, str]
) -> None:
    """Basic with an empty secret (Reddit's installed apps), and raw Basic (Glewlwyd), too."""
    request = sent(oauth2(**{"client_id": "client:7", "client_secret": "s+£ x", **settings}))
    assert authorization(request) == header
    own = {"grant_type": "refresh_token", "refresh_token": REFRESH}
    assert fields(request) == {**own, **body}


@pytest.mark.parametrize(
    ("key", "text", "algorithm"),
    [
        (RSA, pem(RSA), "RS256"),
        (RSA, pem(RSA), "PS512"),
        (RSA, json.dumps(RSA.as_dict(private=True)), "RS256"),
        (EC, pem(EC), "ES256"),
        (OKP, pem(OKP), "EdDSA"),
    ],
    ids=["RS256", "PS512", "JWK", "ES256", "EdDSA"],  # the keys are others in each process
)
@pytest.mark.filterwarnings("ignore:EdDSA")
def test_an_assertion_is_signed_for_this_client_and_server_and_for_minutes(
    key: Any, text: str, algorithm: str
) -> None:
    """RFC 7523, 3."""
    auth = ClientAuth.private_key_jwt(key=text, kid="key-1", algorithm=algorithm)
    provider = oauth2(auth=auth, client_secret=None)
    first, second = (fields(sent(provider)) for _ in range(2))
    decoded = jwt.decode(first["client_assertion"], key, algorithms=[algorithm])
    assert decoded.header == {"alg": algorithm, "typ": "JWT", "kid": "key-1"}
    other = jwt.decode(second["client_assertion"], key, algorithms=[algorithm])
    assert decoded.claims.pop("jti") != other.claims["jti"]
    assert decoded.claims == {
        "iss": "client-7",
        "sub": "client-7",
        "aud": "https://id.example.com/token",
        "iat": WALL,
        "exp": WALL + 300,  # a server whose clock is minutes ahead takes it, too
    }
    assert (first["client_assertion_type"], first["client_id"]) == (ASSERTION_TYPE, "client-7")
    assert "client_secret" not in first


def test_a_client_secret_can_sign_an_assertion() -> None:
    provider = oauth2(
        auth=ClientAuth.client_secret_jwt(algorithm="HS512", audience="https://id.example.com/")
    )
    found = fields(sent(provider))
    claims = jwt.decode(found["client_assertion"], OctKey.import_key(CLIENT_SECRET), ["HS512"]).claims
    assert claims["aud"] == "https://id.example.com/"
    assert "client_secret" not in found


Make = Callable[[], object]


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (pem(EC), "RS256"),
        (pem(RSA), "ES256"),
        (RSA.as_pem(private=False).decode(), "RS256"),
        ("no key at all, ZQXW", "RS256"),
        ('{"kty": "ZQXW"}', "RS256"),
        ("{ZQXW", "ES256"),
    ],
    ids=["of EC", "of RSA", "public", "text", "JWK", "JSON"],
)
def test_a_key_that_cannot_sign_is_an_error_that_shows_nothing_of_it(key: str, algorithm: str) -> None:
    """At once if it is text, and at the first request if it is read then."""
    later = oauth2(auth=ClientAuth.private_key_jwt(key=lambda: key, algorithm=algorithm), client_secret=None)
    attempts: list[Make] = [
        lambda: ClientAuth.private_key_jwt(key=key, algorithm=algorithm),
        lambda: sent(later),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigurationError, match=f"cannot sign with {algorithm}") as caught:
            attempt()
        assert caught.value.__context__ is None
        assert "ZQXW" not in str(caught.value)
        assert "BEGIN" not in str(caught.value)


OURS = ("client_id", "client_secret", "grant_type", "scope", "audience", "resource", "redirect_uri")


def of(auth: Any, *, extra: dict[str, str] | None = None, **values: str | None) -> StrategyProvider:
    """A provider by a strategy whose requests have a `user`, and a `key` instead of a refresh token."""
    names = ("client_id", "user", "refresh_token")
    return StrategyProvider(
        Strategy(name="acme", grants={"refresh_token": names}, rename={"refresh_token": "key"}),
        identity="x",
        base_url="https://id.example.com",
        token_url="https://id.example.com/token",
        values={"client_id": "client-7", "client_secret": CLIENT_SECRET, **values},
        credential=None,
        auth=auth,
        extra=extra,
    )


NO_SECRET: dict[str, Any] = {"client_secret": None}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: oauth2(**NO_SECRET), r"client_secret is missing.*ClientAuth\.none\(\) for a public client"),
        (lambda: oauth2(**NO_SECRET, auth=ClientAuth.post()), "client_secret is missing"),
        (lambda: oauth2(**NO_SECRET, auth=ClientAuth.client_secret_jwt()), "client_secret is missing"),
        (lambda: oauth2(auth=ClientAuth.none()), "client_secret must be left out.*a public client has none"),
        (lambda: oauth2(auth=ClientAuth.tls()), "client_secret must be left out"),
        (lambda: oauth2(auth=ClientAuth.assertion("x")), "client_secret must be left out"),
        (lambda: oauth2(auth=ClientAuth.private_key_jwt(key=pem(RSA))), "client_secret must be left out"),
        (lambda: oauth2(client_secret="", auth=ClientAuth.client_secret_jwt()), "must not be empty"),
        (lambda: oauth2(auth="post"), r"auth must be a ClientAuth, not a string of 4.*ClientAuth\.basic"),
        (lambda: oauth2(auth=ClientAuth), "auth must be a ClientAuth, not the class"),
        (lambda: oauth2(client_secret=7), "client_secret must be a string, not an int"),
        (lambda: ClientAuth.private_key_jwt(key=""), "key must not be empty"),
        (lambda: ClientAuth.private_key_jwt(key="k", algorithm="none"), "algorithm must be 'RS256'"),
        (lambda: ClientAuth.private_key_jwt(key="k", algorithm="HS256"), "algorithm must be 'RS256'"),
        (lambda: ClientAuth.client_secret_jwt(algorithm="RS256"), "algorithm must be 'HS256'"),
        (lambda: ClientAuth.assertion(""), "assertion must not be empty"),
        (lambda: oauth2(refresh_token=None, code_verifier="v" * 43), "code_verifier belongs to a code"),
        (lambda: oauth2(code=CODE, code_verifier="short"), "code_verifier must be 43 to 128 letters"),
        (lambda: oauth2(grant="client_credentials"), "no code and no refresh token"),
        (lambda: oauth2(code=CODE, grant="client_credentials"), "no code and no refresh token"),
        (lambda: oauth2(refresh_token=None, grant="password"), "grant must be 'client_credentials'"),
        (
            lambda: oauth2(
                refresh_token=None, **NO_SECRET, auth=ClientAuth.none(), grant="client_credentials"
            ),
            "needs a client that authenticates",
        ),
        (lambda: oauth2(auth=ClientAuth.basic(raw=True), client_id="a:b"), "client_id contains a colon"),
        *((lambda name=name: oauth2(extra={name: "x"}), f"extra must not contain '{name}'") for name in OURS),
        (lambda: of(ClientAuth.basic(), client_secret=None), "client_secret is missing"),
        (lambda: of(ClientAuth.none()), "client_secret must be left out"),
        (lambda: of("basic"), "auth must be a ClientAuth, not a string of 5"),
        (lambda: of(None, extra={"user": "x"}), "extra must not contain 'user'"),
        (lambda: of(None, extra={"key": "x"}), "extra must not contain 'key'"),
        (lambda: oauth2(extra={"tenant": ""}), r"extra\['tenant'\] must not be empty"),
        (lambda: oauth2(headers={"Authorization": "x"}), "headers must not contain 'Authorization'"),
        (lambda: oauth2(headers={"X": "a\r\nb"}), "unprintable"),
        (lambda: oauth2(resource="no uri"), "resource must be absolute URIs"),
        (lambda: oauth2(resource=["https://a.example#b"]), "resource must be absolute URIs"),
        (lambda: oauth2(token_url="https://id.example.com/t#x"), "must not have a fragment"),
        (lambda: oauth2(revocation_url="http://id.example.com/r"), "revocation_url must use https"),
        (lambda: oauth2(authorization_url="id.example.com"), "authorization_url must be"),
        (lambda: oauth2(device_authorization_url=""), "device_authorization_url must not be empty"),
        (lambda: oauth2(issuer="http://id.example.com"), "issuer must use https"),
    ],
)
def test_a_combination_that_cannot_work_is_an_error_before_any_request(make: Make, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        make()
    assert_keeps_secrets(str(caught.value))


def test_without_joserfc_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for make in (lambda: ClientAuth.private_key_jwt(key="k"), ClientAuth.client_secret_jwt):
        with pytest.raises(ConfigurationError, match=r"pip install 'tokensession\[jwt\]'"):
            make()
    assert ClientAuth.assertion("signed elsewhere")


def test_a_secret_may_be_a_file_or_a_function(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("from-a-file\n")

    async def later() -> str:
        return "from-a-coroutine"

    for value, text in ((file, "from-a-file"), (later, "from-a-coroutine"), (lambda: "now", "now")):
        provider = oauth2(client_secret=value, auth=ClientAuth.post())
        assert fields(sent(provider))["client_secret"] == text
    file.write_text("another")
    request = sent(oauth2(client_secret=file, auth=ClientAuth.post(), extra={"pin": lambda: "4711"}))
    assert fields(request)["client_secret"] == "another"
    assert {"another", "4711"} <= {*request.secrets}


def test_what_a_file_or_a_function_returns_is_a_secret_whatever_its_name(tmp_path: Path) -> None:
    """It is redacted like a client secret, in every message about the request."""
    file = tmp_path / "partner"
    file.write_text("in-a-file")
    provider = oauth2(extra={"partner": file, "pin_2": lambda: "by-function", "tenant": "in-the-clear"})
    secrets = sent(provider).secrets
    assert {"in-a-file", "by-function"} <= {*secrets}
    assert "in-the-clear" not in secrets


def test_a_key_in_a_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    provider = oauth2(auth=ClientAuth.private_key_jwt(key=file, algorithm="ES256"), client_secret=None)
    for _ in range(2):
        key = ECKey.generate_key("P-256")
        file.write_text(pem(key))
        jwt.decode(fields(sent(provider))["client_assertion"], key)


def broken() -> str:
    raise RuntimeError("the vault is sealed")


class Odd(BaseException):
    pass


def raising(error: type[BaseException], *, later: bool = False) -> Any:
    """A function that raises this, async or not."""

    def now() -> str:
        raise error("ZQXW")

    async def then() -> str:
        return now()

    return then if later else now


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (Path("/no/such/file"), NotSent, r"the file /no/such/file cannot be read \(FileNotFoundError\)"),
        (Path("/"), NotSent, "IsADirectoryError"),
        (Path("/dev/null"), NotSent, "is empty"),
        (Path("/dev/zero"), NotSent, "is longer than"),
        (broken, NotSent, "the function that returns it raised RuntimeError"),
        (raising(StopIteration), NotSent, "raised StopIteration"),
        (raising(asyncio.CancelledError), NotSent, "raised CancelledError"),
        (raising(SystemExit), NotSent, "raised SystemExit"),
        (raising(Odd), NotSent, "raised Odd"),
        (raising(SignInRequired), NotSent, "raised SignInRequired"),  # of another source
        (raising(ConfigurationError), ConfigurationError, "ZQXW"),
        (raising(asyncio.CancelledError, later=True), NotSent, "raised CancelledError"),
        (raising(Odd, later=True), NotSent, "raised Odd"),
        (raising(GrantRejected, later=True), NotSent, "raised GrantRejected"),
        (lambda: 7, ConfigurationError, "client_secret must be a string, not an int"),
        (lambda: "", ConfigurationError, "client_secret must not be empty"),
        (lambda: broken, ConfigurationError, "client_secret must be a string, not a function"),
    ],
)
def test_a_secret_that_cannot_be_read_is_an_error(value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        sent(oauth2(client_secret=value))
    assert caught.value.__context__ is None  # its message may have the secret


def test_a_provider_whose_secrets_have_not_been_read_builds_no_request() -> None:
    with pytest.raises(ConfigurationError, match=r"await provider\.resolved"):
        oauth2(client_secret=lambda: "x").request(BY_REFRESH)


def test_the_fingerprint_of_a_request_has_the_key_and_not_the_assertion() -> None:
    """It differs each time. Otherwise a remembered rejection would be lifted by each new signature."""

    def fingerprint(**changes: Any) -> str:
        settings = {"key": pem(EC), "algorithm": "ES256", **changes}
        provider = oauth2(auth=ClientAuth.private_key_jwt(**settings), client_secret=None)
        return asyncio.run(provider.resolved(wall=WALL)).request_fingerprint(BY_REFRESH)

    assert fingerprint() == fingerprint()
    assert fingerprint() != fingerprint(key=pem(ECKey.generate_key("P-256")))
    assert fingerprint() != fingerprint(audience="another")


def test_an_assertion_from_a_function_is_not_in_the_fingerprint_and_one_in_a_file_is(tmp_path: Path) -> None:
    numbers = iter(range(9))
    file = tmp_path / "assertion"

    def fingerprint(value: Any) -> str:
        provider = oauth2(auth=ClientAuth.assertion(value), client_secret=None)
        return asyncio.run(provider.resolved(wall=WALL)).request_fingerprint(BY_REFRESH)

    made = lambda: f"signed-{next(numbers)}"  # noqa: E731
    assert fingerprint(made) == fingerprint(made)
    file.write_text("one")
    before = fingerprint(file)
    file.write_text("two")
    assert before != fingerprint(file)


def test_no_secret_is_in_a_repr() -> None:
    auth = ClientAuth.private_key_jwt(key=pem(RSA))
    assert repr(auth) == "ClientAuth.private_key_jwt(RS256)"
    provider = oauth2(auth=ClientAuth.assertion("an-assertion-ZQXW"), client_secret=None)
    assert "ZQXW" not in repr(sent(provider)) + repr(provider) + repr(ClientAuth.assertion("ZQXW"))
    assert "an-assertion-ZQXW" in sent(provider).secrets


def test_client_authentications_can_be_pickled() -> None:
    for auth in (ClientAuth.basic(raw=True), ClientAuth.private_key_jwt(key=Path("/k")), ClientAuth.none()):
        assert pickle.loads(pickle.dumps(auth)) == auth
