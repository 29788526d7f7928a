"""The token: frozen, shows no secret, knows when it expires."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession.token import Token, fingerprint

SECRET, REFRESH = "at-hidden-4711", "rt-hidden-4712"


def test_f45_repr_shows_a_fingerprint_and_never_a_secret() -> None:
    """The repr of a token shows fingerprints, and no part of a secret."""
    token = Token(SECRET, 1000.0, 3600, REFRESH, scope="read")
    for text in (repr(token), str(token), f"{token}", repr([token])):
        assert token.fingerprint in text
        assert "hidden" not in text
    assert repr(token) == f"<Token {token.fingerprint} 3600 s, with refresh token>"
    assert repr(Token(SECRET, 0)) == f"<Token {token.fingerprint} no stated lifetime, without refresh token>"


def test_a_token_is_frozen_and_takes_no_further_attributes() -> None:
    token = Token(SECRET, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        token.lifetime = 5  # type: ignore[misc]
    assert not hasattr(token, "__dict__")


def test_a_token_expires_its_lifetime_after_the_request_was_sent() -> None:
    assert Token(SECRET, 1000.0, 3600).expires_at == 4600.0
    assert Token(SECRET, 1000.0, 0).expires_at == 1000.0
    assert Token(SECRET, 1000.0).expires_at is None


def test_the_scheme_is_bearer_whatever_the_case_of_token_type() -> None:
    assert Token(SECRET, 0, token_type="BEARER").authorization == f"Bearer {SECRET}"


def test_a_fingerprint_is_sixteen_hex_digits_and_never_changes() -> None:
    """It is part of keys and stored records: with another algorithm none of them would be found."""
    assert fingerprint("planted") == "153d4d3407a8e732"
    assert fingerprint("") == "bac12eb8df09f88a"


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=50))
def test_any_text_has_a_fingerprint_that_does_not_contain_it(secret: str) -> None:
    mark = fingerprint(secret)
    assert len(mark) == 16
    assert set(mark) <= set("0123456789abcdef")
    assert len(secret) < 4 or secret not in mark


def test_what_is_done_to_the_extra_fields_of_a_token_is_done_to_no_other() -> None:
    one, other = Token(SECRET, 0), Token(SECRET, 0)
    assert one == other == pickle.loads(pickle.dumps(one)) == copy.deepcopy(one)
    cast(dict[str, str], one.extra)["x"] = "y"
    assert other.extra == Token(SECRET, 0).extra == {}
