"""What each provider makes of its settings: keys, identities, addresses, and errors for wrong values."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from _known_secrets import (
    BY_CODE,
    BY_REFRESH,
    CALLBACK,
    CLIENT_SECRET,
    CODE,
    NEW_ACCESS,
    NEW_REFRESH,
    REFRESH,
    assert_keeps_secrets,
    granted,
    oauth2,
    oto,
    priava,
    read,
    token_response,
)

from tokensession import ConfigurationError
from tokensession.providers import (
    ClientAuth,
    Credential,
    Identity,
    OAuth2,
    Oto,
    Priava,
    Provider,
    StrategyProvider,
)

Make = Callable[..., Any]
NO_CREDENTIAL: dict[str, Any] = {"refresh_token": None}
PROXY = "https://proxy.example"
SANDBOX = "https://api-sandbox.priava.com"


@pytest.mark.parametrize(("make", "rotates"), [(oto, False), (priava, True), (oauth2, True)])
def test_a_provider_says_whether_its_refresh_tokens_rotate(make: Make, rotates: bool) -> None:
    provider = make()
    assert isinstance(provider, Provider)
    assert (provider.rotates, provider.replay_leeway, provider.api_headers) == (rotates, 0, ())
    assert provider.credential == BY_REFRESH
    assert oauth2(rotates=False).rotates is False


@pytest.mark.parametrize("make", [priava, oauth2])
def test_the_configured_credential_is_a_refresh_token_a_code_or_nothing(make: Make) -> None:
    assert make(code=CODE).credential == BY_CODE
    assert make(**NO_CREDENTIAL).credential is None


@pytest.mark.parametrize(
    ("provider", "base_url", "origin"),
    [
        (oto(), "https://api.tryoto.com", "https://api.tryoto.com"),
        (oto(environment="staging"), "https://staging-api.tryoto.com", "https://staging-api.tryoto.com"),
        (oto(base_url=f"{PROXY}:8443/oto/"), f"{PROXY}:8443/oto", f"{PROXY}:8443"),
        (priava(), "https://api.priava.com/api", "https://api.priava.com"),
        (priava(base_url=f"{SANDBOX}/api"), f"{SANDBOX}/api", SANDBOX),
        (oauth2(), "https://id.example.com", "https://id.example.com"),
        (oauth2(base_url=f"{PROXY}:443/v1/"), f"{PROXY}:443/v1", PROXY),
    ],
    ids=str,
)
def test_the_token_may_go_to_the_origin_of_the_base_url(
    provider: StrategyProvider, base_url: str, origin: str
) -> None:
    assert provider.base_url == base_url
    assert provider.origins == (origin,)


def test_the_token_url_is_used_as_it_is() -> None:
    """Some servers redirect a URL without its final slash."""
    given = oauth2(token_url="https://id.example.com/o/token/")
    assert given.request(BY_REFRESH).url == "https://id.example.com/o/token/"
    assert given.key == oauth2(token_url="https://id.example.com/o/token").key


def test_api_requests_carry_the_region_only_if_you_ask_for_it() -> None:
    assert priava(region="US", region_on_requests=True).api_headers == (("TenantRegion", "US"),)


PLACES: dict[Make, tuple[dict[str, Any], ...]] = {
    oto: (
        {"environment": "staging"},
        {"base_url": PROXY},
        {"base_url": f"{PROXY}:8443"},
        {"base_url": PROXY, "environment": "staging"},
    ),
    priava: (
        {"code": "co-1"},
        {"region": "US"},
        {"client_id": "client-8"},
        {"base_url": f"{SANDBOX}/api"},
        {"base_url": f"{SANDBOX}/other"},
    ),
    oauth2: (
        {"code": "co-1"},
        {"client_id": "client-8"},
        {"token_url": "https://id.example.com/tenant-2/token"},
        {"token_url": "https://id.example.org/token"},
    ),
}


@pytest.mark.parametrize("make", PLACES)
def test_f40_the_key_differs_for_other_places_clients_and_credentials(make: Make) -> None:
    """Two accounts, clients, addresses, environments or regions never share a key."""
    variants: tuple[dict[str, Any], ...] = ({}, {"refresh_token": "rt-2"}, *PLACES[make])
    assert len({make(**changes).key for changes in variants}) == len(variants)


@pytest.mark.parametrize("make", [priava, oauth2])
def test_f40_without_a_configured_credential_there_is_no_default_key(make: Make) -> None:
    """Without a configured credential there is no default key, because accounts would share it."""
    assert make(**NO_CREDENTIAL).key == ""


@pytest.mark.parametrize(
    ("provider", "key", "identity"),
    [
        (oto(), "oto/production", Identity("oto", "production", origin="https://api.tryoto.com")),
        (
            oto(environment="staging", base_url=f"{PROXY}:8443/oto"),
            f"oto/staging@{PROXY}:8443/oto",
            Identity("oto", "staging", origin=f"{PROXY}:8443"),
        ),
        (
            priava(client_secret="another"),
            "priava/EU/client-7",
            Identity("priava", "EU", "client-7", "https://api.priava.com"),
        ),
        *(
            (
                oauth2(token_url=url, client_secret="another", scope=scope),
                f"oauth2/{url}/client-7",
                Identity("oauth2", "", "client-7", "https://id.example.com", "read write"),
            )
            for url, scope in (
                ("https://id.example.com/token", "read write write"),
                ("https://ID.example.com:443/tenant-2/token", "write read"),
            )
        ),
    ],
    ids=str,
)
def test_key_and_identity_have_the_place_and_the_client_and_only_the_key_has_a_path(
    provider: StrategyProvider, key: str, identity: Identity
) -> None:
    """So that none uses another one's token, whatever the key. A tenant's path may be a secret (rule 3)."""
    assert provider.key == f"{key}/{BY_REFRESH.fingerprint}"
    assert provider.identity == identity


def test_the_identity_is_that_of_the_client_whatever_its_credential() -> None:
    """A record says whose it is, and not from which sign-in (rule 3)."""
    assert oauth2(refresh_token="rt-2", rotates=False).identity == oauth2().identity
    assert oauth2().identity.scope == ""


@pytest.mark.parametrize(
    "provider",
    [
        oto(),
        *(priava(**changes) for changes in ({}, NO_CREDENTIAL, {"code": CODE})),
        *(oauth2(**changes) for changes in ({}, {"code": CODE}, {"rotates": False})),
    ],
    ids=str,
)
def test_f40_f45_neither_key_nor_identity_nor_repr_contains_a_secret(provider: StrategyProvider) -> None:
    """Neither what is stored in the clear nor the repr contains a secret."""
    shown = (provider.key, provider.former_keys, provider.identity, provider, provider.credential)
    assert_keeps_secrets(repr(shown))


SCOPES = (None, "read", "read write", "read read-all", "readwrite", "READ")


def test_a_refresh_token_that_can_be_used_again_has_a_key_for_each_scope() -> None:
    """Otherwise the source with the narrow scope would send the token of the wide one (rule 4, K17)."""
    assert len({oauth2(rotates=False, scope=scope).key for scope in SCOPES}) == len(SCOPES)
    one, other = (oauth2(rotates=False, scope=scope) for scope in ("write  read", "read write read"))
    assert one.key == other.key


def test_the_key_without_a_scope_is_a_former_key_of_the_one_with_a_scope() -> None:
    """A token may be stored under it. Without a scope, keys stay as they were (rule 4)."""
    plain, scoped = oauth2(rotates=False), oauth2(rotates=False, scope="read")
    assert scoped.former_keys == (plain.key,)
    assert plain.former_keys == ()
    assert scoped.key.startswith(plain.key + "/")


@pytest.mark.parametrize(
    "settings", [{}, {"code": "c-1"}, {"code": "c-1", "rotates": False}, NO_CREDENTIAL | {"rotates": False}]
)
def test_where_a_credential_is_spent_the_scope_is_not_in_the_key(settings: dict[str, Any]) -> None:
    """There is one sign-in, and it has one scope: see its identity (rule 4)."""
    scoped = oauth2(**settings, scope="read")
    assert scoped.key == oauth2(**settings).key
    assert scoped.former_keys == ()


def post(**changes: Any) -> OAuth2:
    return oauth2(auth=ClientAuth.post(), **changes)


FIELDS: dict[Make, tuple[str, ...]] = {
    oto: ("refresh_token",),
    priava: ("client_id", "client_secret", "redirect_uri", "code", "refresh_token"),
    oauth2: ("client_id", "client_secret", "redirect_uri", "code", "refresh_token", "scope"),
    post: ("client_secret",),
}
MAY_BE_EMPTY = ((oauth2, "client_secret"), (post, "client_secret"))  # Reddit's installed apps (K51)
AROUND = (" x", "x ", "x\n", "\u00a0x", "x\u00a0", "x\ufeff", "x\0")
WITHIN = ("r\u00a0t", "r\u200bt", "r\tt", "\ud800")


@pytest.mark.parametrize(("make", "name"), [(make, name) for make, names in FIELDS.items() for name in names])
@pytest.mark.parametrize("value", [*AROUND, *WITHIN, 7, b"rt"], ids=ascii)
def test_a_stray_character_in_a_value_is_an_error(make: Make, name: str, value: Any) -> None:
    """In Priava's documentation a no-break space follows the refresh body, and is often copied with it."""
    with pytest.raises(ConfigurationError, match=rf"^{name} .*\.$") as caught:
        make(**{name: value})
    assert_keeps_secrets(str(caught.value) + repr(caught.value))


@pytest.mark.parametrize(
    ("make", "name"),
    [(make, name) for make, names in FIELDS.items() for name in names if (make, name) not in MAY_BE_EMPTY],
)
def test_an_empty_value_is_an_error(make: Make, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{name} must not be empty\.$"):
        make(**{name: ""})


ENVIRONMENT = "^environment must be 'production' or 'staging', not "
REGION = "^region must be 'APAC', 'EU' or 'US', not "
AUTH = "^auth must be a ClientAuth, not "


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (oto, {"refresh_token": None}, "^refresh_token "),
        *(
            (oto, {"environment": environment}, rf"{ENVIRONMENT}{shown}\.$")
            for environment, shown in (
                ("", "an empty string"),
                ("Production", "'Production'"),
                ("live", "'live'"),
                ("prod ", "a string of 5 characters"),
                (REFRESH, f"a string of {len(REFRESH)} characters"),
                (None, "None"),
            )
        ),
        *(
            (priava, {"region": region}, REGION)
            for region in ("", "eu", "Eu", "apac", "us", "EU ", "EMEA", None, "APAC | EU | US")
        ),
        *((oauth2, {"auth": auth}, AUTH) for auth in ("", "basic", "post", 7)),
        (oauth2, {"client_secret": None}, "client_secret is missing"),
        (priava, {"code": CODE, "refresh_token": REFRESH}, "Pass code or refresh_token, not both"),
        *(
            (priava, {"base_url": url}, "base_url")
            for url in ("http://a.example/api", "https://u:p@a.example", "//a.example/api", "a.example", "")
        ),
        *(
            (oauth2, {"token_url": url}, "token_url")
            for url in ("", "http://id.example.com/token", "https://id.example.com/t#x")
        ),
    ],
)
def test_a_wrong_setting_is_an_error_that_says_what_is_right(
    make: Make, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        make(**settings)
    assert isinstance(caught.value, ValueError)
    assert_keeps_secrets(str(caught.value))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """With what the providers need, and without what they may have."""
    needed = {
        "OTO_REFRESH_TOKEN": REFRESH,
        "PRIAVA_CLIENT_ID": "client-7",
        "PRIAVA_CLIENT_SECRET": CLIENT_SECRET,
        "PRIAVA_REDIRECT_URI": CALLBACK,
        "PRIAVA_REGION": "EU",
    }
    for name, value in needed.items():
        monkeypatch.setenv(name, value)
    for name in ("OTO_ENVIRONMENT", "OTO_BASE_URL", "PRIAVA_CODE", "PRIAVA_REFRESH_TOKEN", "PRIAVA_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "provider"),
    [
        ({"OTO_BASE_URL": ""}, oto()),
        ({"OTO_ENVIRONMENT": "staging"}, oto(environment="staging")),
        ({"OTO_BASE_URL": "http://127.0.0.1:9999/"}, oto(base_url="http://127.0.0.1:9999")),
        ({"PRIAVA_REFRESH_TOKEN": ""}, priava(**NO_CREDENTIAL)),
        ({"PRIAVA_CODE": CODE, "PRIAVA_REFRESH_TOKEN": ""}, priava(code=CODE)),
        ({"PRIAVA_CODE": "", "PRIAVA_REFRESH_TOKEN": REFRESH}, priava()),
        ({"PRIAVA_BASE_URL": f"{SANDBOX}/api"}, priava(**NO_CREDENTIAL, base_url=f"{SANDBOX}/api")),
    ],
    ids=str,
)
def test_from_env_reads_the_variables_that_are_set(
    variables: dict[str, str], provider: Oto | Priava, environment: pytest.MonkeyPatch
) -> None:
    """An empty one counts as not set."""
    for name, value in variables.items():
        environment.setenv(name, value)
    read_from = type(provider).from_env()
    assert (read_from.key, read_from.base_url) == (provider.key, provider.base_url)
    assert read_from.credential == provider.credential


def test_from_env_names_all_missing_variables(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("OTO_REFRESH_TOKEN")
    environment.delenv("PRIAVA_REGION")
    environment.setenv("PRIAVA_CLIENT_ID", "")
    with pytest.raises(ConfigurationError, match="variables are not set: OTO_REFRESH_TOKEN"):
        Oto.from_env()
    with pytest.raises(ConfigurationError, match="are not set: PRIAVA_CLIENT_ID, PRIAVA_REGION") as caught:
        Priava.from_env()
    assert_keeps_secrets(str(caught.value))


def test_from_env_does_not_show_a_value_that_is_not_utf_8(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTO_REFRESH_TOKEN", REFRESH + "\udcff")
    with pytest.raises(ConfigurationError, match="not valid Unicode") as caught:
        Oto.from_env()
    assert caught.value.__context__ is None
    assert_keeps_secrets(str(caught.value))


@pytest.mark.parametrize(
    ("provider", "answer", "lifetime"),
    [
        (oto(), token_response(granted(success=True, expires_in="3600"), content_type="text/plain"), 3600),
        (priava(), token_response(granted(token_type="BEARER", expires_in=21600)), 21600),
    ],
    ids=["oto", "priava"],
)
def test_the_documented_response_is_read(provider: StrategyProvider, answer: Any, lifetime: float) -> None:
    issued = read(provider, answer)
    assert issued.notes == ()
    assert issued.token.authorization == f"Bearer {NEW_ACCESS}"
    assert (issued.token.refresh_token, issued.token.lifetime) == (NEW_REFRESH, lifetime)


@pytest.mark.parametrize("credential", [BY_REFRESH, BY_CODE])
@pytest.mark.parametrize("asked", [None, "read write"])
def test_the_scope_is_what_was_granted_or_else_what_was_requested(
    asked: str | None, credential: Credential
) -> None:
    """RFC 6749, 5.1. An unusable one counts as unknown, and does not cost the token (K24)."""
    null = json.dumps(granted() | {"scope": None}).encode()
    for answer, stored in (
        (granted(), asked),
        (null, asked),
        *((granted(scope=scope), scope) for scope in ("read write", "read", "")),
        (granted(scope=["read", "write"]), "read write"),
        (granted(scope=["read"]), "read"),
        *((granted(scope=scope), None) for scope in (7, "\ud800", "a\0b", [])),
    ):
        assert read(oauth2(scope=asked), token_response(answer), credential).token.scope == stored
