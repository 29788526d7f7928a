"""What earlier versions could not express: cases K50 and K52 to K56."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from _known_secrets import BY_REFRESH, CALLBACK, CODE, NEW_ACCESS, SENT_AT, oauth2, read, token_response

from tokensession import (
    AuthedSession,
    AuthorizationPending,
    BearerAuth,
    ClientRejected,
    ConfigurationError,
    GrantRejected,
    ManagedSource,
    Token,
    TokenSessionError,
    _redact,
)
from tokensession._refresh.state import Now, TokenState, decode, encode
from tokensession.providers import (
    DEVICE_CODE,
    OAUTH2,
    RFC6749_ERRORS,
    Credential,
    ErrorKind,
    Fields,
    OAuth2,
    Strategy,
    StrategyProvider,
)

VERIFIER = "v" * 43


def body(provider: StrategyProvider, credential: Credential = BY_REFRESH) -> list[tuple[str, str]]:
    return parse_qsl(provider.request(credential).body.decode(), strict_parsing=True)


def test_k50_a_token_url_keeps_its_query() -> None:
    """RFC 6749, 3.2. Azure B2C has the policy there. It may be a secret, so no key and no repr shows it."""
    url = "https://id.example.com/token?p=b2c_1_ZQXW&x=%2F"
    provider, other = oauth2(token_url=url), oauth2(token_url=url + "2")
    assert provider.request(BY_REFRESH).url == url
    assert provider.key != other.key
    assert provider.base_url == provider.identity.origin == "https://id.example.com"
    shown = f"{provider!r} {provider.key} {provider.request(BY_REFRESH)!r} {provider.identity!r}"
    assert "ZQXW" not in shown


def test_k52_a_code_is_sent_with_its_verifier_and_redirect_uri() -> None:
    """RFC 7636, 4.5. They belong to the code, so what is configured does not count."""
    provider = oauth2(code=CODE, code_verifier=VERIFIER, redirect_uri=CALLBACK)
    assert provider.credential is not None
    sent = dict(body(provider, provider.credential))
    assert (sent["code_verifier"], sent["redirect_uri"]) == (VERIFIER, CALLBACK)
    own = (("code_verifier", "w" * 50), ("redirect_uri", "http://127.0.0.1:1/back"))
    credential = Credential("authorization_code", CODE, own)
    sent = dict(body(provider, credential))
    assert (sent["code_verifier"], sent["redirect_uri"]) == ("w" * 50, "http://127.0.0.1:1/back")
    assert "w" * 50 in provider.request(credential).secrets
    assert "www" not in repr(credential)
    assert credential == Credential("authorization_code", CODE)  # a code works once, whatever comes with it
    assert "code_verifier" not in dict(body(provider))


def test_k52_a_strategy_that_does_not_know_pkce_sends_the_verifier_all_the_same() -> None:
    strategy = Strategy(name="old", grants={"authorization_code": ("grant_type", "code")})
    provider = StrategyProvider(
        strategy,
        identity="x",
        base_url="https://id.example.com",
        token_url="https://id.example.com/token",
        values={},
        credential=None,
    )
    credential = Credential("authorization_code", CODE, (("code_verifier", VERIFIER),))
    assert body(provider, credential)[-1] == ("code_verifier", VERIFIER)


def test_k52_audience_resource_extra_fields_and_headers() -> None:
    provider = oauth2(
        refresh_token=None,
        grant="client_credentials",
        audience="api.example.com",
        resource=["https://a.example", "urn:b"],
        extra={"tenant": "eu"},
        headers={"User-Agent": "reports/1.0", "Accept": "application/vnd.example+json"},
    )
    assert provider.credential is not None
    request = provider.request(provider.credential)
    assert body(provider, provider.credential) == [
        ("grant_type", "client_credentials"),
        ("audience", "api.example.com"),
        ("resource", "https://a.example"),
        ("resource", "urn:b"),
        ("tenant", "eu"),
    ]
    names = [name for name, _ in request.headers]
    assert names == ["Content-Type", "Authorization", "User-Agent", "Accept"]
    assert "audience=api.example.com" in provider.identity.scope


def test_k52_the_authorization_url_has_what_each_server_wants() -> None:
    provider = oauth2(
        authorization_url="https://id.example.com/authorize?tenant=7",
        scope="read write",
        audience="api",
        resource=["https://a.example", "urn:b"],
        redirect_uri=CALLBACK,
    )
    url = provider.authorization(state="s", code_challenge="c", extra={"prompt": "consent"})
    assert parse_qsl(urlsplit(url).query) == [
        ("tenant", "7"),
        ("response_type", "code"),
        ("client_id", "client-7"),
        ("redirect_uri", CALLBACK),
        ("scope", "read write"),
        ("audience", "api"),
        ("resource", "https://a.example"),
        ("resource", "urn:b"),
        ("state", "s"),
        ("code_challenge", "c"),
        ("code_challenge_method", "S256"),
        ("prompt", "consent"),
    ]
    with pytest.raises(ConfigurationError, match="authorization_url is missing"):
        oauth2().authorization(state="s", code_challenge="c")
    with pytest.raises(ConfigurationError, match="extra must not contain 'state'"):
        provider.authorization(state="s", code_challenge="c", extra={"state": "x"})


def test_k53_a_machine_has_a_credential_that_nothing_spends() -> None:
    machine = oauth2(refresh_token=None, grant="client_credentials", scope="jobs")
    assert machine.credential == Credential("client_credentials", "")
    assert machine.rotates is False
    assert machine.former_keys == ()
    other = oauth2(refresh_token=None, grant="client_credentials", scope="mail")
    assert len({machine.key, other.key}) == 2
    token = read(
        machine, token_response({"access_token": "a", "refresh_token": "r"}), machine.credential
    ).token
    assert token.refresh_token is None  # RFC 6749, 4.4.3: there should be none, and none is needed


def test_k53_a_password_a_pin_or_an_api_key_is_a_machine_too() -> None:
    """They are sent again for each token."""
    strategy = Strategy(
        name="pins", grants={"client_credentials": ("grant_type", "user", "pin")}, rename={"pin": "PIN"}
    )
    provider = StrategyProvider(
        strategy,
        identity="x",
        base_url="https://id.example.com",
        token_url="https://id.example.com/token",
        values={"grant_type": "pin", "user": "u", "pin": "4711"},
        credential=Credential("client_credentials", ""),
    )
    assert provider.credential is not None
    assert body(provider, provider.credential) == [("grant_type", "pin"), ("user", "u"), ("PIN", "4711")]
    assert "4711" in provider.request(provider.credential).secrets


def special(**changes: Any) -> OAuth2:
    return oauth2(strategy=replace(OAUTH2, **changes))


def test_k54_what_is_rare_is_on_the_strategy_of_oauth2() -> None:
    provider = special(
        errors={**RFC6749_ERRORS, "token_revoked": ErrorKind.REJECTED},
        bearer_types=("BearerToken",),
        fields=Fields(flags=("fine",)),
        default_lifetime=1800,
        replay_leeway=30,
    )
    with pytest.raises(GrantRejected):
        read(provider, token_response({"error": "token_revoked"}, 400), BY_REFRESH)
    issued = read(provider, token_response({"access_token": "a", "token_type": "BearerToken"}), BY_REFRESH)
    assert (issued.problem, issued.token.lifetime) == (None, 1800)
    assert read(provider, token_response({"access_token": "a", "fine": False}), BY_REFRESH).problem
    assert (provider.replay_leeway, provider.rotates) == (30, True)
    assert oauth2(strategy=replace(OAUTH2, rotates=False)).rotates is False
    assert oauth2(strategy=replace(OAUTH2, rotates=False), rotates=True).rotates is True


def test_k54_a_session_takes_the_unauthorized_statuses_of_its_provider() -> None:
    provider = special(unauthorized_statuses=(401, 498))
    session = AuthedSession(provider, store="memory:")
    assert session._bearer._unauthorized == {401, 498}
    assert AuthedSession(provider, store="memory:", unauthorized_statuses=(403,))._bearer._unauthorized == {
        403
    }
    source = ManagedSource(provider, store="memory:")
    assert BearerAuth(source)._unauthorized == {401, 498}  # as a session's own
    assert BearerAuth(source, unauthorized_statuses=(403,))._unauthorized == {403}
    for wrong in ((200,), 401, (True,), ("401",)):
        with pytest.raises(ConfigurationError, match="unauthorized_statuses must be"):
            special(unauthorized_statuses=wrong)


WANTED = Fields(extra=("id_token", "team.id", "admin", "ratio", "team", "gone", "huge", "odd", "number"))
RESPONSE = {
    "access_token": NEW_ACCESS,
    "id_token": "eyJ.ZQXW",
    "team": {"id": 7},
    "admin": True,
    "ratio": 0.5,
    "gone": None,
    "huge": "x" * 40_000,
    "odd": "\ud800",
    "number": 1 << 70,
}


def test_k55_other_declared_fields_are_kept_with_the_token() -> None:
    issued = read(special(fields=WANTED), token_response(json.dumps(RESPONSE).encode()), BY_REFRESH)
    kept = {"id_token": "eyJ.ZQXW", "team.id": 7, "admin": True, "ratio": 0.5}
    assert issued.token.extra == kept
    assert issued.notes[0].startswith("oauth2: team, huge, odd, number cannot be kept")
    assert "ZQXW" not in repr(issued) + repr(issued.token)
    now = Now(SENT_AT, 10.0)
    state = decode(encode(TokenState(token=issued.token, obtained=10.0), now), now)
    assert state.token is not None
    assert state.token.extra == kept
    assert b"extra" not in encode(TokenState(token=Token("a", 0.0)), now)  # only where it is used
    assert hash(issued.token)


def test_k56_a_strategy_says_which_values_are_secret() -> None:
    strategy = replace(OAUTH2, secrets=("client_secret", "tenant_key", "X-Gate"))
    secrets = {"tenant_key": "tenantZQXW"}
    provider = oauth2(strategy=strategy, extra=secrets, headers={"x-gate": "gateZQXW"})
    echo = {"error": "invalid_client", "error_description": "bad tenantZQXW with gateZQXW"}
    with pytest.raises(ClientRejected) as caught:
        read(provider, token_response(echo, 401), BY_REFRESH)
    assert "ZQXW" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="sequences of names"):
        special(secrets="client_secret")


@pytest.mark.parametrize("secret", ["a", "e", "ab", "x1", " "])
def test_k56_a_short_secret_leaves_the_words_of_a_message(secret: str) -> None:
    """A secret of one letter once redacted each such letter. It still goes where it stands alone."""
    said = "The client is unknown, and a realm exists."
    words = _redact.redact(said, [secret])
    assert words.count("[redacted]") <= 1
    assert "client is unknown" in words or secret == " "
    assert _redact.redact(f"secret={secret};", [secret]) == "secret=[redacted];"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("authorization_pending", AuthorizationPending),
        ("slow_down", AuthorizationPending),
        ("access_denied", GrantRejected),
        ("expired_token", GrantRejected),
        ("invalid_grant", GrantRejected),
        ("invalid_client", ClientRejected),
    ],
)
def test_the_answers_to_a_device_code_have_their_own_meaning(
    code: str, error: type[TokenSessionError]
) -> None:
    """RFC 8628, 3.5."""
    credential = Credential(DEVICE_CODE, "device-code-1")
    with pytest.raises(error) as caught:
        read(oauth2(), token_response({"error": code}, 400), credential)
    assert getattr(caught.value, "slow_down", False) is (code == "slow_down")
