"""Checks of what a user configures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession import ConfigurationError, _validate
from tokensession.providers.protocol import configured_credential


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
        ("http://127.0.0.1:8080/x", "http://127.0.0.1:8080/x", "http://127.0.0.1:8080"),
        ("http://127.255.0.9", "http://127.255.0.9", "http://127.255.0.9"),
        ("https://x.example./a", "https://x.example./a", "https://x.example."),
        ("http://[::1]:9000", "http://[::1]:9000", "http://[::1]:9000"),
    ],
)
def test_a_good_url_is_kept_and_has_an_origin(value: str, checked: str, origin: str) -> None:
    assert _validate.url("base_url", value) == checked
    assert _validate.origin(checked) == origin


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "missing"),
        (None, "missing"),
        (b"https://x.example", "missing"),
        (" https://x.example", "white space"),
        ("https://x.example\n", "white space"),
        ("https://x.example\u00a0", "white space"),
        ("x.example", "absolute"),
        ("/rest", "absolute"),
        ("ftp://x.example", "absolute"),
        ("https://", "absolute"),
        ("https:///path", "absolute"),
        ("https://x .example", "absolute"),
        ("https://x..example", "absolute"),
        ("https://.x.example", "absolute"),
        (f"https://{'x' * 64}.example", "absolute"),
        ("https://x.example:port", "not a URL"),
        ("https://x.example:99999", "not a URL"),
        ("https://[::1", "not a URL"),
        ("https://user:pass@x.example", "credentials"),
        ("https://user@x.example", "credentials"),
        ("https://:pass@x.example", "credentials"),
        ("https://x.example?a=1", "query"),
        ("https://x.example?", "query"),
        ("https://x.example#a", "fragment"),
        ("https://x.example#", "fragment"),
        ("http://x.example", "can be read on the way"),
        ("http://10.0.0.1", "can be read on the way"),
        ("http://0.0.0.0", "can be read on the way"),
        ("http://localhost.example", "can be read on the way"),
        ("http://localhost@x.example", "credentials"),
        ("http://127.0.0.1.example", "can be read on the way"),
        ("http://[2001:db8::1]", "can be read on the way"),
    ],
)
def test_a_bad_url_is_refused_with_its_reason(value: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        _validate.url("base_url", value)
    assert "base_url" in str(caught.value)


def test_credentials_in_a_url_are_not_repeated_in_the_error() -> None:
    for value in (
        "https://user:s3cret@x.example",
        "http://user:s3cret@x.example",
        "https://x.example?k=s3cret",
    ):
        with pytest.raises(ConfigurationError) as caught:
            _validate.url("base_url", value)
        assert "s3cret" not in str(caught.value) + repr(caught.value.__context__)


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=30))
def test_any_text_is_taken_as_it_is_or_refused(value: str) -> None:
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
def test_any_url_is_taken_or_refused_and_a_taken_one_has_an_origin(value: str) -> None:
    try:
        checked = _validate.url("it", value)
    except ConfigurationError:
        return
    origin = _validate.origin(checked)
    assert origin.startswith(("https://", "http://"))
    assert "@" not in origin


def test_a_lone_surrogate_is_named_for_what_it_is() -> None:
    with pytest.raises(ConfigurationError, match="not valid Unicode text") as caught:
        _validate.secret("client_secret", "s3cret\udcff")
    assert caught.value.__context__ is None


def test_a_seed_is_one_credential_or_none() -> None:
    assert configured_credential(code=None, refresh_token=None) is None
    code = configured_credential(code="co-1", refresh_token=None)
    assert code is not None
    assert (code.grant_type, code.secret) == ("authorization_code", "co-1")
    refresh = configured_credential(code=None, refresh_token="rt-1")
    assert refresh is not None
    assert (refresh.grant_type, refresh.secret) == ("refresh_token", "rt-1")


@pytest.mark.parametrize(
    "credential", [{"code": "", "refresh_token": None}, {"code": None, "refresh_token": ""}]
)
def test_an_empty_seed_is_a_mistake_and_not_an_absence(credential: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="missing"):
        configured_credential(**credential)
