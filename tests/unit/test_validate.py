"""Checks of configuration: an error names the argument, the value and what is allowed, never a secret."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession import ConfigurationError, _validate


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        ("", "an empty string"),
        ("x", "a string of 1 character"),
        ("s3cret", "a string of 6 characters"),
        (b"s3cret", "a bytes"),
        (7, "an int"),
        (["s3cret"], "a list"),
        (ConfigurationError, "the class ConfigurationError"),
    ],
)
def test_a_value_that_may_be_a_secret_is_described_by_type_and_length(value: Any, shown: str) -> None:
    assert _validate.describe(value) == shown


@pytest.mark.parametrize("value", ["live", "Staging", "preproductio"])
def test_a_wrong_word_is_shown_with_the_allowed_words(value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        _validate.one_of("environment", value, ("production", "staging"))
    assert str(caught.value) == f"environment must be 'production' or 'staging', not '{value}'."


@pytest.mark.parametrize(
    "value",
    [
        "x" * 13,
        "EU2",
        "s3cret",
        "s3cr.et",
        "s3cret ",
        "s3cret\n",
        "s3crét",
        "sk/s3c+ret==",
        "",
        b"s3cret",
        None,
        ["s3cret"],
    ],
)
def test_a_wrong_value_that_may_be_a_secret_is_not_shown(value: Any) -> None:
    """A secret may have been passed as the wrong parameter."""
    with pytest.raises(ConfigurationError) as caught:
        _validate.one_of("region", value, ("APAC", "EU", "US"))
    assert str(caught.value) == f"region must be 'APAC', 'EU' or 'US', not {_validate.describe(value)}."
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("value", "checked", "origin"),
    [
        ("https://api.example.com", "https://api.example.com", "https://api.example.com"),
        ("https://api.example.com/", "https://api.example.com", "https://api.example.com"),
        ("https://api.example.com/v1//", "https://api.example.com/v1", "https://api.example.com"),
        ("https://API.Example.com:443/v1", "https://API.Example.com:443/v1", "https://api.example.com"),
        ("HTTPS://api.example.com", "HTTPS://api.example.com", "https://api.example.com"),
        ("https://api.example.com:8443", "https://api.example.com:8443", "https://api.example.com:8443"),
        ("https://[2001:db8::1]:8443/a", "https://[2001:db8::1]:8443/a", "https://[2001:db8::1]:8443"),
        ("http://localhost", "http://localhost", "http://localhost"),
        ("http://localhost:80", "http://localhost:80", "http://localhost"),
        ("http://shop.localhost:8080/x", "http://shop.localhost:8080/x", "http://shop.localhost:8080"),
        ("http://A.b.LOCALHOST", "http://A.b.LOCALHOST", "http://a.b.localhost"),
        ("http://shop.localhost.", "http://shop.localhost.", "http://shop.localhost."),
        ("http://127.0.0.1:8080/x", "http://127.0.0.1:8080/x", "http://127.0.0.1:8080"),
        ("http://127.255.0.9", "http://127.255.0.9", "http://127.255.0.9"),
        ("https://x.example./a", "https://x.example./a", "https://x.example."),
        ("http://[::1]:9000", "http://[::1]:9000", "http://[::1]:9000"),
    ],
)
def test_a_valid_url_is_returned_without_its_final_slash_and_has_an_origin(
    value: str, checked: str, origin: str
) -> None:
    assert _validate.url("base_url", value) == checked
    assert _validate.origin(checked) == origin


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "must not be empty"),
        (None, "must be a string, not None"),
        (b"https://x.example", "must be a string, not a bytes"),
        (" https://x.example", "white space"),
        ("https://x.example\n", "white space"),
        ("https://x.example\u00a0", "white space"),
        ("x.example", "absolute"),
        ("/rest", "absolute"),
        ("ftp://x.example", "absolute https URL .* not ftp://x.example"),
        ("https://", "absolute"),
        ("https:///path", "absolute"),
        ("https://x .example", "absolute"),
        ("https://x..example", "absolute"),
        ("https://.x.example", "absolute"),
        ("https://*.x.example", "absolute .* There are no patterns: name the host in full"),
        ("https://\u00fc*.example", "There are no patterns"),
        *((f"https://x{sign}y.example", "absolute") for sign in ";,<%&'\\"),
        (f"https://{'x' * 64}.example", "absolute"),
        ("https://x.example:port", "must be a URL such as"),
        ("https://x.example:99999", "must be a URL such as"),
        ("https://[::1", "must be a URL such as .* not a string of 12 characters"),
        ("https://user:pass@x.example", "user name or password"),
        ("https://user@x.example", "user name or password"),
        ("https://:pass@x.example", "user name or password"),
        ("https://x.example?a=1", "query"),
        ("https://x.example?", "query"),
        ("https://x.example#a", "fragment"),
        ("https://x.example#", "fragment"),
        ("http://x.example", "use https, not http://x.example: .* can be read"),
        ("http://10.0.0.1", "can be read on the way"),
        ("http://0.0.0.0", "can be read on the way"),
        ("http://localhost.example", "can be read on the way"),
        ("http://notlocalhost", "can be read on the way"),
        ("http://x.localhost.example", "can be read on the way"),
        ("http://.localhost", "absolute"),
        ("http://localhost@x.example", "user name or password"),
        ("http://127.0.0.1.example", "can be read on the way"),
        ("http://[2001:db8::1]", r"use https, not http://\[2001:db8::1\]: "),
    ],
)
def test_an_invalid_url_is_an_error_that_says_why(value: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        _validate.url("base_url", value)
    assert "base_url" in str(caught.value)


def test_k57_plain_http_may_go_to_a_host_that_is_named_and_to_no_other() -> None:
    """A compose network, a test cluster. The names are no patterns."""
    hosts = _validate.http_hosts(["Keycloak", "id.svc.cluster.local."])
    assert hosts == ("keycloak", "id.svc.cluster.local")
    for allowed in ("http://keycloak:8080/realms/x", "http://KEYCLOAK", "http://id.svc.cluster.local"):
        assert _validate.url("base_url", allowed, insecure_http_hosts=hosts) == allowed
    for refused in (
        "http://x.keycloak",
        "http://keycloak.example",
        "http://svc.cluster.local",
        "ftp://keycloak",
    ):
        with pytest.raises(ConfigurationError, match="https"):
            _validate.url("base_url", refused, insecure_http_hosts=hosts)
    with pytest.raises(ConfigurationError, match=r"and to the hosts in insecure_http_hosts\.$"):
        _validate.url("base_url", "http://x.keycloak", insecure_http_hosts=hosts)
    with pytest.raises(ConfigurationError, match=r"on the loopback interface only\.$"):
        _validate.url("base_url", "http://keycloak")  # of a provider that has no such parameter


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("keycloak", "must be host names, not a string of 8 characters"),
        (None, "must be host names, not None"),
        (["*"], "one is a string of 1 character"),
        (["*.internal"], "without scheme, port and"),
        (["http://keycloak"], "without scheme, port and"),
        (["keycloak:8080"], "without scheme, port and"),
        ([""], "one is an empty string"),
        ([b"keycloak"], "one is a bytes"),
    ],
)
def test_k57_hosts_for_plain_http_are_named_in_full(value: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match="insecure_http_hosts .*" + says):
        _validate.http_hosts(value)


def test_an_error_never_shows_credentials_query_or_path_of_a_url() -> None:
    for value in (
        "https://user:s3cret@x.example",
        "http://user:s3cret@x.example",
        "ftp://user:s3cret@x.example",
        "https://s3cret user@x.example",
        "https://user:s3cret@[::1",
        "https://x.example?k=s3cret",
        "https://x.example/s3cret?k=1",
        "http://x.example/s3cret",
        "s3cret",
        "s3cret:s3cret",
        "https:s3cret",
    ):
        with pytest.raises(ConfigurationError) as caught:
            _validate.url("base_url", value)
        assert "s3cret" not in str(caught.value) + repr(caught.value.__context__)


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=30))
def test_any_text_is_returned_as_it_is_or_an_error(value: str) -> None:
    for check in (_validate.text, _validate.secret):
        try:
            assert check("it", value) == value
        except ConfigurationError:
            continue
        assert value.encode("utf-8")
        assert value == value.strip()
        assert "\u00a0" not in value


@settings(deadline=None, max_examples=200)
@given(
    st.text(alphabet="htps:/@[]?#.%1lo ca\\\u00e9x", max_size=20).map("http".__add__) | st.text(max_size=20)
)
def test_any_text_is_a_url_with_an_origin_or_an_error(value: str) -> None:
    try:
        checked = _validate.url("it", value)
    except ConfigurationError:
        return
    origin = _validate.origin(checked)
    assert origin.startswith(("https://", "http://"))
    assert "@" not in origin
