"""The stored record: pinned bytes, exact round trip, and only `StoreCorrupt` for anything else."""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession._refresh.state import FORMAT, Attempt, Rejection, TokenState, decode, encode
from tokensession.errors import StoreCorrupt
from tokensession.token import Token

FULL = TokenState(
    configured="66a3b15af1d2e6f9",
    token=Token("at-1", 1_750_000_000.25, 3600.0, "rt-1", "read write", "Bearer"),
    attempt=Attempt("credential-1", 1_750_003_000.5, 1),
    rejection=Rejection("credential-2", "invalid_grant"),
)
FORMAT_1 = bytes.fromhex(
    "86a6666f726d617401a473656564b036366133623135616631643265366639aa7369676e65645f6f7574c2a5746f6b65"
    "6e86ac6163636573735f746f6b656ea461742d31ab6f627461696e65645f6174cb41da13b860100000a86c6966657469"
    "6d65cb40ac200000000000ad726566726573685f746f6b656ea472742d31a573636f7065aa72656164207772697465aa"
    "746f6b656e5f74797065a6426561726572a7617474656d707483aa63726564656e7469616cac63726564656e7469616c"
    "2d31a26174cb41da13bb4e200000a77265706c61797301a972656a656374696f6e82aa63726564656e7469616cac6372"
    "6564656e7469616c2d32a4636f6465ad696e76616c69645f6772616e74"
)
TOMBSTONE_1 = bytes.fromhex(
    "86a6666f726d617401a473656564a173aa7369676e65645f6f7574c3a5746f6b656ec0a7617474656d7074c0a972656a"
    "656374696f6ec0"
)


def test_records_of_format_1_can_always_be_read() -> None:
    """If this fails, every stored token is lost: raise FORMAT, and keep a reader for format 1."""
    assert FORMAT == 1
    assert decode(FORMAT_1) == FULL
    assert decode(TOMBSTONE_1) == TokenState(configured="s", signed_out=True)


def test_format_1_is_written_byte_for_byte_as_before() -> None:
    assert encode(FULL) == FORMAT_1
    assert encode(TokenState(configured="s", signed_out=True)) == TOMBSTONE_1


def test_a_sign_in_is_written_if_there_was_one_and_checked_when_read() -> None:
    """The field is newer than format 1: a record without it is valid, and older readers ignore it."""
    signed_in = replace(FULL, sign_in="first")
    assert msgpack.unpackb(encode(signed_in)) == msgpack.unpackb(FORMAT_1) | {"sign_in": "first"}
    for wrong in (None, b"first", 7):
        with pytest.raises(StoreCorrupt, match="sign_in"):
            decode(msgpack.packb(msgpack.unpackb(FORMAT_1) | {"sign_in": wrong}))


texts = st.text(max_size=40)
numbers = st.floats(allow_nan=False, allow_infinity=False)
tokens = st.builds(
    Token,
    access_token=texts,
    obtained_at=numbers,
    lifetime=st.none() | numbers,
    refresh_token=st.none() | texts,
    scope=st.none() | texts,
    token_type=texts,
)
states = st.builds(
    TokenState,
    configured=texts,
    sign_in=texts,
    token=st.none() | tokens,
    attempt=st.none() | st.builds(Attempt, texts, numbers, st.integers(0, 2**63)),
    rejection=st.none() | st.builds(Rejection, texts, texts),
    signed_out=st.booleans(),
)


@settings(deadline=None, max_examples=150)
@given(states)
def test_every_state_survives_a_round_trip(state: TokenState) -> None:
    assert decode(encode(state)) == state


def test_whole_numbers_are_read_as_the_same_seconds() -> None:
    assert decode(encode(TokenState(token=Token("at", 7, 3600)))).token == Token("at", 7.0, 3600.0)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80))
def test_arbitrary_bytes_raise_only_storecorrupt(data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        decode(data)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_damaged_record_is_read_or_raises_storecorrupt(data: st.DataObject) -> None:
    damaged = bytearray(FORMAT_1)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(StoreCorrupt):
        assert isinstance(decode(bytes(damaged)), TokenState)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | texts
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["seed", "sign_in", "signed_out", "token", "attempt", "rejection", "format"]), VALUES)
def test_any_value_in_any_field_is_read_or_raises_storecorrupt(field: str, value: Any) -> None:
    document = msgpack.unpackb(FORMAT_1) | {field: value}
    with contextlib.suppress(StoreCorrupt):
        assert isinstance(decode(msgpack.packb(document)), TokenState)


@pytest.mark.parametrize("length", range(len(TOMBSTONE_1)))
def test_every_truncated_record_is_corrupt(length: int) -> None:
    with pytest.raises(StoreCorrupt):
        decode(TOMBSTONE_1[:length])


def test_bytes_after_the_end_are_corrupt_and_the_error_shows_no_token() -> None:
    with pytest.raises(StoreCorrupt, match="not msgpack") as caught:
        decode(FORMAT_1 + b"\x00")
    assert caught.value.__context__ is None
    assert "at-1" not in "".join(traceback.format_exception(caught.value))


WHOLE: dict[str, Any] = msgpack.unpackb(FORMAT_1)
WRONG: dict[str, list[Any]] = {
    "": [None, [], 7, "text", b"bytes"],
    "format": [None, "1", 1.0, True],
    "seed": [None, b"seed", 7],
    "signed_out": [None, 0, 1, "false"],
    "token": [[], "at", 7, b"at", True, {}],
    "token.access_token": [None, b"at", 7],
    "token.obtained_at": [None, "1", True, float("nan"), float("inf"), b"", []],
    "token.lifetime": ["3600", True, False, float("nan"), float("-inf")],
    "token.refresh_token": [b"rt", 7, False, []],
    "token.scope": [b"read", 7, ["read"]],
    "token.token_type": [None, 7],
    "attempt": [[], "a", 0, {}],
    "attempt.credential": [None, 7, b"c"],
    "attempt.at": [None, "1", False, float("nan")],
    "attempt.replays": [None, 1.0, "1", True],
    "rejection": [[], "r", {}],
    "rejection.credential": [None, 7, b"c"],
    "rejection.code": [None, 7, b"c"],
}


def changed(path: str, change: Any) -> bytes:
    """The full record with one field replaced; `...` leaves it out."""
    if not path:
        return bytes(msgpack.packb(change))
    *outer, name = path.split(".")
    document = {key: dict(value) if isinstance(value, dict) else value for key, value in WHOLE.items()}
    parent = document[outer[0]] if outer else document
    if change is ...:
        del parent[name]
    else:
        parent[name] = change
    return bytes(msgpack.packb(document))


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in WRONG.items() for value in values]
)
def test_a_field_of_the_wrong_type_is_named(path: str, value: Any) -> None:
    with pytest.raises(StoreCorrupt) as caught:
        decode(changed(path, value))
    assert path.split(".")[-1] in str(caught.value)


@pytest.mark.parametrize("path", [path for path in WRONG if path])
def test_a_missing_field_is_named(path: str) -> None:
    with pytest.raises(StoreCorrupt, match=f"lacks '{path.split('.')[-1]}'"):
        decode(changed(path, ...))


def test_every_field_that_is_written_is_checked_when_read() -> None:
    written = set(WHOLE)
    for name, value in WHOLE.items():
        if isinstance(value, dict):
            written |= {f"{name}.{inner}" for inner in value}
    assert written == WRONG.keys() - {""}


def test_fields_of_a_later_version_are_ignored() -> None:
    assert decode(msgpack.packb(WHOLE | {"later": [1, 2]})) == FULL


@pytest.mark.parametrize("number", [0, 2, -1, 10**9])
def test_an_unknown_format_is_named_with_what_to_do(number: int) -> None:
    with pytest.raises(StoreCorrupt, match=rf"format {number}; this version reads format 1") as caught:
        decode(changed("format", number))
    assert "Use the version of tokensession that wrote it" in str(caught.value)


def test_a_huge_record_is_not_even_parsed() -> None:
    with pytest.raises(StoreCorrupt, match="at most 4194304 are read"):
        decode(b"\xc0" * (4 * 1024 * 1024 + 1))


def test_a_deeply_nested_record_is_corrupt() -> None:
    with pytest.raises(StoreCorrupt):
        decode(b"\x91" * 100_000)


def test_keys_that_are_not_text_are_corrupt() -> None:
    with pytest.raises(StoreCorrupt, match="not msgpack"):
        decode(msgpack.packb({1: 2}))


def test_a_token_of_a_megabyte_still_fits() -> None:
    state = TokenState(token=Token("a" * 500_000, 0.0, None, "r" * 500_000, "é" * 300_000))
    assert decode(encode(state)) == state
