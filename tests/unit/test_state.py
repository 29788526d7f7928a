"""The stored record: pinned bytes, durations over two clocks, and only `StoreCorrupt` for anything else."""

from __future__ import annotations

import contextlib
import math
import traceback
from dataclasses import fields, replace
from typing import Any

import msgpack
import pytest
from _records import FORMAT_1, FORMAT_2, TOMBSTONE_2
from _states import (
    CONFIGURED,
    CURRENT,
    DUE,
    EXPIRED,
    FRESH,
    IDENTITY,
    NOW,
    ROTATING,
    failures,
    later,
    probable,
    rejection,
    state,
    step,
    token,
    unknown,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession._refresh.decide import Fail, Redeem, Serve
from tokensession._refresh.state import (
    FORMAT,
    Failures,
    Now,
    Rejection,
    TokenState,
    decode,
    encode,
    keeping,
    merged,
    redeeming,
    superseding,
)
from tokensession.errors import GrantRejected, SignedOut, StoreCorrupt
from tokensession.providers.protocol import Credential, Identity
from tokensession.token import Token

FULL = TokenState(
    number=3,
    generation=7,
    identity=IDENTITY,
    configured="66a3b15af1d2e6f9",
    superseded=("old-1", "old-2"),
    start="start-1",
    redeemed=(("code-1", 99_000.0),),
    token=Token("at-1", NOW.wall - 999.75, 3600.0, "rt-1", "read write", "Bearer", 86_400.0),
    obtained=99_000.25,
    problem="It is mac.",
    previous="rt-0",
    failures=Failures(
        "credential-1", 4, 2, 1, True, "It answered 429.", 98_000.0, 98_500.0, 99_500.0, 100_060.5, 100_090.0
    ),
    rejections=(
        Rejection(
            "credential-2", "invalid_token", "request-2", False, True, "It was rejected.", 3, 100_900.0
        ),
    ),
    forced=2,
    force_at=99_990.0,
    sign_in_life=7_776_000.0,
    requests=12.5,
    requests_at=99_400.0,
)
TOMBSTONE = TokenState(number=2, configured="s", signed_out=True)


# -- format 2 ---------------------------------------------------------------------------------------------


def test_records_of_format_2_can_always_be_read() -> None:
    """If this fails, every stored token is lost: raise FORMAT, and keep a reader for format 2."""
    assert FORMAT == 2
    assert decode(FORMAT_2, NOW) == FULL
    assert decode(TOMBSTONE_2, NOW) == TOMBSTONE


def test_format_2_is_written_byte_for_byte_as_before() -> None:
    assert encode(FULL, NOW) == FORMAT_2
    assert encode(TOMBSTONE, NOW) == TOMBSTONE_2


texts = st.text(max_size=20)
counts = st.integers(0, 2**53 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
# Exact in binary, so that a round trip is exact.
durations = st.integers(-(2**30), 2**30).map(lambda sixteenths: sixteenths / 16)
moments = durations.map(NOW.boot.__add__)
notes = st.builds(
    Failures, texts, counts, counts, counts, st.booleans(), texts, moments, moments, moments, moments
)
refusals = st.builds(Rejection, texts, texts, texts, st.booleans(), st.booleans(), texts, counts, moments)


@st.composite
def states(draw: st.DrawFn) -> TokenState:
    ago = abs(draw(durations))
    tokens = st.builds(
        Token,
        access_token=texts,
        obtained_at=st.just(NOW.wall - ago),
        lifetime=st.none() | numbers,
        refresh_token=st.none() | texts,
        scope=st.none() | texts,
        token_type=texts,
        refresh_lifetime=st.none() | numbers,
    )
    known = draw(st.none() | tokens)
    return TokenState(
        number=draw(counts),
        generation=draw(counts),
        identity=draw(st.none() | st.builds(Identity, texts, texts, texts, texts, texts)),
        configured=draw(texts),
        superseded=tuple(draw(st.lists(texts, max_size=3))),
        start=draw(texts),
        redeemed=tuple(draw(st.lists(st.tuples(texts, moments), max_size=3))),
        signed_out=draw(st.booleans()),
        token=known,
        obtained=NOW.boot - ago if known else 0.0,
        problem=draw(texts),
        previous=draw(st.none() | texts),
        failures=draw(st.none() | notes),
        rejections=tuple(draw(st.lists(refusals, max_size=3))),
        forced=draw(counts),
        force_at=draw(st.just(-math.inf) | moments),
        sign_in_life=draw(st.none() | numbers),
        requests=draw(numbers),
        requests_at=draw(moments),
    )


@settings(deadline=None, max_examples=200)
@given(states())
def test_every_state_survives_a_round_trip(known: TokenState) -> None:
    assert decode(encode(known, NOW), NOW) == known


def test_a_token_of_a_megabyte_still_fits() -> None:
    known = state(FRESH, token=Token("a" * 500_000, NOW.wall, None, "r" * 500_000, "é" * 300_000))
    assert decode(encode(known, NOW), NOW) == known


def test_f45_the_repr_of_a_state_shows_no_secret() -> None:
    """Neither the refresh token before the current one, nor a field that this version does not know."""
    secret = replace(FULL, more={"later": "secret-1"}, previous="secret-2")
    secret = replace(secret, token=Token("secret-3", 0.0, None, "secret-4"))
    assert "secret" not in repr(secret)


# -- two clocks -------------------------------------------------------------------------------------------

ELSEWHERE = Now(wall=NOW.wall + 7200, boot=50.0)
"""Another host: its wall clock is two hours wrong, and it was started a minute ago."""


@pytest.mark.parametrize("age", [0.0, 100.0, 86_400.0])
def test_moments_are_durations_to_the_moment_of_writing(age: float) -> None:
    """So no two hosts compare their clocks."""
    read = decode(encode(FULL, NOW), ELSEWHERE, age=age)
    shift = ELSEWHERE.boot - age - NOW.boot

    def moved(moment: float) -> float:
        return moment + shift

    assert read.obtained == moved(FULL.obtained)
    assert read.redeemed == (("code-1", moved(99_000.0)),)
    assert (read.force_at, read.requests_at) == (moved(FULL.force_at), moved(FULL.requests_at))
    assert FULL.failures is not None
    assert read.failures == replace(
        FULL.failures,
        since=moved(FULL.failures.since),
        unexplained_since=moved(FULL.failures.unexplained_since),
        last=moved(FULL.failures.last),
        until=moved(FULL.failures.until),
        background_until=moved(FULL.failures.background_until),
    )
    assert read.rejections == (replace(FULL.rejections[0], until=moved(100_900.0)),)
    # What is not a moment stays as it is.
    assert (
        replace(
            read,
            obtained=FULL.obtained,
            redeemed=FULL.redeemed,
            force_at=FULL.force_at,
            requests_at=FULL.requests_at,
            failures=FULL.failures,
            rejections=FULL.rejections,
            token=FULL.token,
        )
        == FULL
    )


def test_every_moment_is_among_those_that_are_moved() -> None:
    """A new moment of a part has to be marked as one: then it is stored as a duration."""
    marked = {
        f"{part.__name__}.{each.name}"
        for part in (Failures, Rejection, Identity)
        for each in fields(part)
        if each.metadata.get("moment")
    }
    assert marked == {
        "Failures.since",
        "Failures.unexplained_since",
        "Failures.last",
        "Failures.until",
        "Failures.background_until",
        "Rejection.until",
    }
    assert {each.name for part in (Failures, Rejection) for each in fields(part) if each.type == "float"} == {
        name.partition(".")[2] for name in marked
    }


def test_f35_a_token_s_life_does_not_depend_on_whether_two_hosts_agree_on_the_time() -> None:
    """It has the rest of its life on the reader's own clocks, however wrong either wall clock is."""
    written = encode(state(FRESH), NOW)
    for wrong in (-86_400.0, 0.0, 7200.0):
        here = Now(NOW.wall + wrong, 50.0)
        read = decode(written, here, age=600)
        assert read.token is not None
        assert (read.token.obtained_at, read.obtained) == (here.wall - 600, here.boot - 600)
        assert isinstance(step(read, now=here), Serve)
        late = decode(written, here, age=EXPIRED)
        assert isinstance(step(late, now=here), Redeem)


def test_a_pause_that_another_host_has_noted_lasts_as_long_here() -> None:
    paused = state(EXPIRED, failures=failures(pause=300))
    for age, left in ((0.0, 300.0), (250.0, 50.0)):
        read = decode(encode(paused, NOW), ELSEWHERE, age=age)
        assert read.failures is not None
        assert read.failures.until - ELSEWHERE.boot == left


def test_a_token_of_the_future_is_read_as_one_of_now() -> None:
    """Only a damaged record has one: its life must not be longer than granted."""
    ahead = encode(state(FRESH, obtained=NOW.boot + 1000), NOW)
    read = decode(ahead, NOW)
    assert read.token is not None
    assert read.token.obtained_at == NOW.wall
    assert isinstance(step(read, now=later(EXPIRED)), Redeem)


# -- what this version does not know ----------------------------------------------------------------------

LATER = {"later": [1, {"deep": b"\x00"}], "and": None}


def extended(data: bytes) -> dict[str, Any]:
    """This record, with fields of a later version in it and in each of its parts."""
    document: dict[str, Any] = msgpack.unpackb(data)
    for part in ("token", "failures", "identity"):
        document[part] = {**LATER, **document[part]}
    document["rejections"] = [{**LATER, **each} for each in document["rejections"]]
    return {**LATER, **document}


def test_f75_fields_of_a_later_version_are_preserved_also_in_parts() -> None:
    """Whatever this version changes beside them."""
    document = extended(FORMAT_2)
    read = decode(msgpack.packb(document), NOW)
    assert read == FULL
    assert msgpack.unpackb(encode(read, NOW)) == document
    changed = msgpack.unpackb(encode(replace(read, generation=8, forced=0), NOW))
    assert changed == {**document, "generation": 8, "forced": 0}


@pytest.mark.parametrize("part", ["token", "failures", "identity"])
def test_f75_unknown_fields_of_a_part_go_with_the_part(part: str) -> None:
    """A record without a token, say, has no field of one."""
    read = decode(msgpack.packb(extended(FORMAT_2)), NOW)
    without: dict[str, Any] = {part: None}
    assert msgpack.unpackb(encode(replace(read, **without), NOW))[part] is None


def test_a_rejection_and_failures_that_are_merged_keep_their_unknown_fields() -> None:
    read = decode(msgpack.packb(extended(FORMAT_2)), NOW)
    both = merged(replace(read, failures=None, rejections=()), read)
    assert both.failures is not None
    assert both.failures.more == both.rejections[0].more == LATER


# -- format 1 ---------------------------------------------------------------------------------------------

AT = Now(wall=1_750_003_600.0, boot=100_000.0)
OBTAINED_1 = Token("at-1", 1_750_000_000.25, 3600.0, "rt-1", "read write", "Bearer")
FAILURES_1 = Failures(
    "credential-1", 2, 2, reason="got no answer", since=99_400.5, last=99_400.5, until=99_400.5
)
READ_1 = {
    "full": TokenState(
        configured="66a3b15af1d2e6f9",
        token=OBTAINED_1,
        obtained=96_400.25,
        failures=FAILURES_1,
        rejections=(Rejection("credential-2", "invalid_grant"),),
    ),
    "tombstone": TokenState(configured="s", signed_out=True),
    "only an attempt": TokenState(
        configured="s",
        failures=Failures("c", 1, 1, reason="got no answer", since=96_400.0, last=96_400.0, until=96_400.0),
    ),
    "only a rejection": TokenState(configured="s", rejections=(Rejection("c"),)),
    "bare token": TokenState(token=Token("at-1", 1_750_000_000.0), obtained=96_400.0),
}
READ_1["signed in"] = READ_1["full"]


@pytest.mark.parametrize("name", FORMAT_1)
@pytest.mark.parametrize("age", [0.0, 1000.0])
def test_f75_records_of_format_1_are_read(name: str, age: float) -> None:
    """Their moments are of the wall clock, and all that they lack is unknown."""
    read = decode(FORMAT_1[name], AT, age=age)
    assert read == replace(READ_1[name], obtained=read.obtained)
    if read.token is not None:
        assert read.obtained == READ_1[name].obtained
    assert (read.order, read.identity, read.start, read.redeemed) == ((0, 0), None, "", ())


@pytest.mark.parametrize("name", FORMAT_1)
def test_f75_a_record_of_format_1_is_written_as_format_2(name: str) -> None:
    """Nothing that it knew is lost."""
    read = decode(FORMAT_1[name], AT)
    written = encode(read, AT)
    assert msgpack.unpackb(written)["format"] == 2
    assert decode(written, AT) == replace(read, obtained=decode(written, AT).obtained)


def test_f75_what_format_1_knew_leads_to_the_same_steps() -> None:
    """A valid token is served, a rejected credential not sent, a lost reply remembered, a sign-out kept."""
    served = decode(msgpack.packb(document_1(token=token_1())), NOW)
    assert step(served) == Serve(served)
    spent = decode(msgpack.packb(document_1(token=token_1(age=EXPIRED), attempt=attempt_1())), NOW)
    result = step(spent)
    assert isinstance(result, Redeem)
    assert result.sent.credential == Credential("refresh_token", "rt-1").fingerprint
    assert result.state.failures is not None
    assert result.state.failures.unknown == 1
    refused = {"credential": Credential("refresh_token", "rt-1").fingerprint, "code": "invalid_grant"}
    rejected = decode(msgpack.packb(document_1(token=token_1(age=EXPIRED), rejection=refused)), NOW)
    for client in ("client", "another secret"):
        answer = step(rejected, client=client)
        assert isinstance(answer, Fail)
        assert isinstance(answer.error, GrantRejected), "which request it was is unknown: only the credential"
    out = step(decode(msgpack.packb(document_1(signed_out=True)), NOW), ROTATING)
    assert isinstance(out, Fail)
    assert isinstance(out.error, SignedOut)


def test_f75_a_lost_reply_of_format_1_is_repeated_when_the_token_is_due() -> None:
    """Its token may be valid for a while, and its attempt says when it was sent."""
    read = decode(msgpack.packb(document_1(token=token_1(age=DUE), attempt=attempt_1())), NOW)
    result = step(read, have=(0, 0))
    assert isinstance(result, Redeem)
    twice = decode(msgpack.packb(document_1(token=token_1(age=DUE), attempt=attempt_1(replays=1))), NOW)
    assert twice.failures is not None
    assert twice.failures.unknown == 2


@pytest.mark.parametrize("ahead", [1.0, 7200.0])
def test_f35_a_record_of_format_1_from_the_future_is_one_of_now(ahead: float) -> None:
    """The clock that wrote it was ahead, or this one is behind."""
    read = decode(msgpack.packb(document_1(token=token_1(age=-ahead), attempt=attempt_1(ago=-ahead))), NOW)
    assert read.obtained == NOW.boot
    assert read.failures is not None
    assert read.failures.until == read.failures.last == NOW.boot
    assert isinstance(step(read, now=later(EXPIRED)), Redeem)


def token_1(*, age: float = 0) -> dict[str, Any]:
    known = token(age=age, refresh="rt-1")
    return {each: getattr(known, each) for each in ONLY_IN_1["token"]}


def attempt_1(*, ago: float = 10, replays: int = 0) -> dict[str, Any]:
    name = Credential("refresh_token", "rt-1").fingerprint
    return {"credential": name, "at": NOW.wall - ago, "replays": replays}


def document_1(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "seed": CONFIGURED.fingerprint,
        "signed_out": False,
        "token": None,
        "attempt": None,
        "rejection": None,
        **changes,
    }


ONLY_IN_1 = {"token": ("access_token", "obtained_at", "lifetime", "refresh_token", "scope", "token_type")}


# -- what is not a record ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80))
def test_arbitrary_bytes_raise_only_storecorrupt(data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        decode(data, NOW)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([FORMAT_2, FORMAT_1["full"]]), st.data())
def test_a_damaged_record_is_read_or_raises_storecorrupt(record: bytes, data: st.DataObject) -> None:
    """What can be read can be written too."""
    damaged = bytearray(record)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(StoreCorrupt):
        assert decode(encode(decode(bytes(damaged), NOW), NOW), NOW)


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
WHOLE_1: dict[str, Any] = msgpack.unpackb(FORMAT_1["signed in"])
WHOLE_2: dict[str, Any] = msgpack.unpackb(FORMAT_2)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([(whole, name) for whole in (0, 1) for name in (WHOLE_1, WHOLE_2)[whole]]),
    VALUES,
)
def test_any_value_in_any_field_is_read_or_raises_storecorrupt(field: tuple[int, str], value: Any) -> None:
    whole = (WHOLE_1, WHOLE_2)[field[0]]
    with contextlib.suppress(StoreCorrupt):
        assert isinstance(decode(msgpack.packb(whole | {field[1]: value}), NOW), TokenState)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["token", "failures", "identity"]), st.data())
def test_any_value_in_any_part_is_read_or_raises_storecorrupt(part: str, data: st.DataObject) -> None:
    name, value = data.draw(st.sampled_from(list(WHOLE_2[part]))), data.draw(VALUES)
    with contextlib.suppress(StoreCorrupt):
        document = WHOLE_2 | {part: WHOLE_2[part] | {name: value}}
        assert isinstance(decode(msgpack.packb(document), NOW), TokenState)


@pytest.mark.parametrize("record", [TOMBSTONE_2, FORMAT_1["tombstone"]], ids=["format 2", "format 1"])
def test_every_truncated_record_is_corrupt(record: bytes) -> None:
    for length in range(len(record)):
        with pytest.raises(StoreCorrupt):
            decode(record[:length], NOW)


@pytest.mark.parametrize("record", [FORMAT_2, FORMAT_1["full"]], ids=["format 2", "format 1"])
def test_bytes_after_the_end_are_corrupt_and_the_error_shows_no_token(record: bytes) -> None:
    with pytest.raises(StoreCorrupt, match="not msgpack") as caught:
        decode(record + b"\x00", NOW)
    assert caught.value.__context__ is None
    assert "at-1" not in "".join(traceback.format_exception(caught.value))


NO_TEXT: list[Any] = [None, 7, b"bytes", True, []]
NO_COUNT = [None, 1.0, "1", True, -1, 2**64 - 1]
NO_NUMBER: list[Any] = [None, "1", True, float("nan"), float("inf"), b"", []]
NO_FLAG = [None, 0, 1, "false"]
NO_MAP = [[], "text", 7, b"", True, {}]
WRONG_1: dict[str, list[Any]] = {
    "seed": NO_TEXT,
    "signed_out": NO_FLAG,
    "token": NO_MAP,
    "token.access_token": NO_TEXT,
    "token.obtained_at": NO_NUMBER,
    "token.lifetime": ["3600", True, False, float("nan"), float("-inf")],
    "token.refresh_token": [b"rt", 7, False, []],
    "token.scope": [b"read", 7, ["read"]],
    "token.token_type": NO_TEXT,
    "attempt": NO_MAP,
    "attempt.credential": NO_TEXT,
    "attempt.at": NO_NUMBER,
    "attempt.replays": NO_COUNT,
    "rejection": NO_MAP,
    "rejection.credential": NO_TEXT,
    "rejection.code": NO_TEXT,
}
WRONG_2: dict[str, list[Any]] = {
    "format": [None, "2", 2.0, True],
    "number": NO_COUNT,
    "generation": NO_COUNT,
    "identity": NO_MAP,
    "identity.provider": NO_TEXT,
    "identity.environment": NO_TEXT,
    "identity.client_id": NO_TEXT,
    "identity.origin": NO_TEXT,
    "identity.scope": NO_TEXT,
    "configured": NO_TEXT,
    "superseded": [None, "text", {}, [None], ["text", 7], [b"bytes"]],
    "start": NO_TEXT,
    "redeemed": [None, {}, "text", ["code"], [["code"]], [["code", 1.0, 2]], [[1, 1.0]], [["code", "1"]]],
    "signed_out": NO_FLAG,
    "token": NO_MAP,
    "token.access_token": NO_TEXT,
    "token.obtained": NO_NUMBER,
    "token.lifetime": ["3600", True, False, float("nan"), float("-inf")],
    "token.refresh_token": [b"rt", 7, False, []],
    "token.scope": [b"read", 7, ["read"]],
    "token.token_type": NO_TEXT,
    "token.refresh_lifetime": ["3600", True, float("inf")],
    "problem": NO_TEXT,
    "previous": [7, b"rt", False, []],
    "failures": NO_MAP,
    "failures.credential": NO_TEXT,
    "failures.count": [None, 1.0, "1", True],
    "failures.unknown": [None, 1.0, "1", True],
    "failures.unexplained": [None, 1.0, "1", True],
    "failures.requested": NO_FLAG,
    "failures.reason": NO_TEXT,
    "failures.since": NO_NUMBER,
    "failures.unexplained_since": NO_NUMBER,
    "failures.last": NO_NUMBER,
    "failures.until": NO_NUMBER,
    "failures.background_until": NO_NUMBER,
    "rejections": [None, {}, "text", [None], ["text"], [[]], [{}]],
    "forced": NO_COUNT,
    "force_at": ["1", True, float("nan"), float("-inf")],
    "sign_in_life": ["1", True, float("nan"), float("inf"), []],
    "requests": [None, {}, [], [1.0], [1.0, 2.0, 3.0], ["1", 2.0], [1.0, None], [float("nan"), 0.0]],
}
REJECTION: dict[str, Any] = WHOLE_2["rejections"][0]
WRONG_REJECTION: dict[str, list[Any]] = {
    "credential": NO_TEXT,
    "code": NO_TEXT,
    "request": NO_TEXT,
    "certain": NO_FLAG,
    "lost": NO_FLAG,
    "reason": NO_TEXT,
    "tries": [None, 1.0, "1", True],
    "until": NO_NUMBER,
}
TABLES = [(WHOLE_1, WRONG_1), (WHOLE_2, WRONG_2)]


def changed(whole: dict[str, Any], path: str, change: Any) -> bytes:
    """The whole record with one field replaced; `...` leaves it out."""
    *outer, name = path.split(".")
    document = {key: dict(value) if isinstance(value, dict) else value for key, value in whole.items()}
    parent = document[outer[0]] if outer else document
    if change is ...:
        del parent[name]
    else:
        parent[name] = change
    return bytes(msgpack.packb(document))


def with_rejection(change: dict[str, Any]) -> bytes:
    return bytes(msgpack.packb(WHOLE_2 | {"rejections": [REJECTION, change]}))


@pytest.mark.parametrize(
    ("whole", "path", "value"),
    [(whole, path, value) for whole, wrong in TABLES for path, values in wrong.items() for value in values],
    ids=lambda value: "" if isinstance(value, dict) else repr(value),
)
def test_a_field_of_the_wrong_type_is_named(whole: dict[str, Any], path: str, value: Any) -> None:
    with pytest.raises(StoreCorrupt) as caught:
        decode(changed(whole, path, value), NOW)
    assert path.split(".")[-1] in str(caught.value)


@pytest.mark.parametrize("document", [None, [], 7, "text", b"bytes"])
def test_a_record_that_is_no_map_is_corrupt(document: Any) -> None:
    with pytest.raises(StoreCorrupt, match="not a map"):
        decode(msgpack.packb(document), NOW)


@pytest.mark.parametrize(
    ("whole", "path"), [(whole, path) for whole, wrong in TABLES for path in wrong], ids=lambda _: ""
)
def test_a_missing_field_is_named(whole: dict[str, Any], path: str) -> None:
    if path == "token.refresh_lifetime":  # newer than the others: a token without it is read
        assert decode(changed(whole, path, ...), NOW).token
        return
    with pytest.raises(StoreCorrupt, match=f"lacks '{path.split('.')[-1]}'"):
        decode(changed(whole, path, ...), NOW)


@pytest.mark.parametrize("name", WRONG_REJECTION)
def test_each_field_of_each_rejection_is_checked(name: str) -> None:
    for wrong in WRONG_REJECTION[name]:
        with pytest.raises(StoreCorrupt, match=name):
            decode(with_rejection(REJECTION | {name: wrong}), NOW)
    with pytest.raises(StoreCorrupt, match=f"lacks '{name}'"):
        decode(with_rejection({key: value for key, value in REJECTION.items() if key != name}), NOW)


def test_every_field_that_is_written_is_checked_when_read() -> None:
    for whole, wrong in TABLES:
        written = {name for name in whole if name != "sign_in"}
        for name, value in whole.items():
            if isinstance(value, dict):
                written |= {f"{name}.{inner}" for inner in value}
        assert written - {"format"} == wrong.keys() - {"format"}
    assert REJECTION.keys() == WRONG_REJECTION.keys()


@pytest.mark.parametrize("number", [0, 3, -1, 10**9])
def test_an_unknown_format_is_named_with_what_to_do(number: int) -> None:
    with pytest.raises(StoreCorrupt, match=rf"format {number}; this version reads formats 1 and 2") as caught:
        decode(changed(WHOLE_2, "format", number), NOW)
    assert "Use the version of tokensession that wrote it" in str(caught.value)


def test_a_huge_record_is_not_even_parsed() -> None:
    with pytest.raises(StoreCorrupt, match="at most 4194304 are read"):
        decode(b"\xc0" * (4 * 1024 * 1024 + 1), NOW)


def test_a_deeply_nested_record_is_corrupt() -> None:
    with pytest.raises(StoreCorrupt):
        decode(b"\x91" * 100_000, NOW)


def test_keys_that_are_not_text_are_corrupt() -> None:
    with pytest.raises(StoreCorrupt, match="not msgpack"):
        decode(msgpack.packb({1: 2}), NOW)


def test_the_error_names_the_field_and_never_its_value() -> None:
    wrong = changed(WHOLE_2, "token.scope", ["secret"])
    with pytest.raises(StoreCorrupt) as caught:
        decode(wrong, NOW)
    assert "secret" not in str(caught.value)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert all(frame.name not in ("_decoded", "_token", "get") for frame in frames), "their locals have it"


# -- the parts of a state ---------------------------------------------------------------------------------


def test_a_rejection_is_found_by_its_credential_and_request() -> None:
    first, second, third = rejection(request="r1"), rejection(request="r2"), rejection(CONFIGURED, request="")
    known = TokenState(rejections=(first, second, third))
    name = first.credential
    assert known.rejection_of(name, "r1") == first
    assert known.rejection_of(name, "r2") == second
    assert known.rejection_of(name, "r3") is None
    assert known.rejection_of(CONFIGURED.fingerprint, "anything") == third


def test_a_rejection_replaces_the_one_of_the_same_request() -> None:
    known = TokenState(rejections=(rejection(request="r1", tries=1), rejection(request="r2")))
    new = rejection(request="r1", tries=2)
    assert known.with_rejection(new).rejections == (rejection(request="r2"), new)


def test_redeemed_credentials_are_remembered_for_a_day_and_at_most_64_of_them() -> None:
    known = TokenState(redeemed=(("old", NOW.boot - 86_400), ("new", NOW.boot - 86_399), ("again", 0.0)))
    assert redeeming(known, "again", NOW.boot) == (("new", NOW.boot - 86_399), ("again", NOW.boot))
    for number in range(100):
        known = replace(known, redeemed=redeeming(known, f"code {number}", NOW.boot))
    assert len(known.redeemed) == 64
    assert known.has_redeemed("code 99")
    assert not known.has_redeemed("code 35")


@pytest.mark.parametrize(
    ("superseded", "configured", "new", "then"),
    [
        ((), "", "a", ()),
        ((), "a", "b", ("a",)),
        (("a",), "b", "c", ("a", "b")),
        (("a",), "b", "a", ("b",)),  # rolled back
        (("a",), "b", "b", ("a",)),
        (("a", "b"), "b", "c", ("a", "b")),
    ],
)
def test_a_configured_credential_supersedes_those_before_it(
    superseded: tuple[str, ...], configured: str, new: str, then: tuple[str, ...]
) -> None:
    assert superseding(TokenState(superseded=superseded, configured=configured), new) == then


def test_a_new_lineage_supersedes_what_was_rejected_before_it() -> None:
    """A process that still has it configured has seen its rejection, or will: it does not start again."""
    known = TokenState(
        configured="a", superseded=("b",), rejections=(rejection(CONFIGURED), rejection(CONFIGURED))
    )
    assert superseding(known, "c") == ("b", CONFIGURED.fingerprint, "a")
    assert superseding(known, CONFIGURED.fingerprint) == ("b", "a")


def test_what_was_sent_outlives_the_states_that_are_replaced() -> None:
    """Each credential once, at most 64 codes and 16 configurations."""
    one = TokenState(redeemed=(("a", 1.0), ("b", 2.0)), superseded=("x",))
    other = TokenState(redeemed=(("b", 2.0), ("c", 3.0)), superseded=("y", "x"))
    both = keeping(one, other, None)
    assert {name for name, _ in both.redeemed} == {"a", "b", "c"}
    assert set(both.superseded) == {"x", "y"}
    assert keeping(one, None) == one
    many = TokenState(
        redeemed=tuple((str(number), 0.0) for number in range(64)), superseded=tuple(map(str, range(16)))
    )
    assert len(keeping(one, many).redeemed) == 64
    assert len(keeping(one, many).superseded) == 16


def test_a_rejection_outlives_the_state_that_it_was_noted_in() -> None:
    """A store that went back is overwritten by what a process remembers. What was rejected since stays so."""
    newest = state(refresh="the newest", rejections=(rejection(CONFIGURED),))
    older = state(rejections=(rejection(CURRENT), rejection(CONFIGURED, code="bad_refresh_token")))
    kept = keeping(newest, older)
    assert kept.rejections == (rejection(CURRENT), rejection(CONFIGURED)), "its own note counts"
    own = Credential("refresh_token", "the newest")
    assert keeping(newest, state(rejections=(rejection(own),))) == newest, "it has worked since"
    many = state(rejections=tuple(rejection(CURRENT, request=str(number)) for number in range(99)))
    assert keeping(newest, many).rejections[-1] == rejection(CONFIGURED), "there is a bound"


def test_only_a_token_without_a_problem_and_a_sign_out_is_servable() -> None:
    assert state().servable == token()
    assert state(problem="It is mac.").servable is None
    assert state(signed_out=True).servable is None
    assert TokenState().servable is None


# -- notes that could not be stored -----------------------------------------------------------------------


def test_notes_in_memory_are_added_to_the_stored_state_of_the_same_order() -> None:
    stored = state(DUE, failures=failures(ago=60), rejections=(rejection(CONFIGURED),), forced=1)
    memory = state(DUE, failures=unknown(ago=5), rejections=(rejection(),), force_at=NOW.boot - 3)
    both = merged(stored, memory)
    assert both.failures == memory.failures, "the later one"
    assert both.rejections == (rejection(CONFIGURED), rejection())
    assert both.force_at == NOW.boot - 3
    assert merged(memory, stored).failures == memory.failures
    assert (both.token, both.order, both.forced) == (stored.token, stored.order, stored.forced)


@pytest.mark.parametrize("order", [(0, 9), (1, 1), (2, 0)])
def test_notes_about_another_state_do_not_count(order: tuple[int, int]) -> None:
    stored = state(DUE)
    memory = state(DUE, number=order[0], generation=order[1], failures=unknown(), rejections=(rejection(),))
    assert merged(stored, memory) == stored
    assert merged(stored, None) == stored


def test_of_two_rejections_of_one_request_the_one_that_lasts_longer_counts() -> None:
    short, long = probable(pause=-1, tries=1), probable(pause=900, tries=2)
    for stored, memory in ((short, long), (long, short)):
        both = merged(state(rejections=(stored,)), state(rejections=(memory,)))
        assert both.rejections == (long,)


@pytest.mark.parametrize("at", [-7200.0, -60.0, 0.0])
@pytest.mark.parametrize("level", [0.0, 20.0, 150.0])
def test_the_count_of_token_requests_is_at_least_the_higher_one(at: float, level: float) -> None:
    """However long ago either was counted."""
    one, other = state(requests=level, requests_at=NOW.boot + at), state(requests=100.0, requests_at=NOW.boot)
    higher = max(each.requests_used(300, NOW.boot) for each in (one, other))
    for both in (merged(one, other), merged(other, one)):
        assert higher <= both.requests_used(300, NOW.boot) <= max(level, 100)


@pytest.mark.parametrize(("ago", "left"), [(0, 50), (3600, 40), (5 * 3600, 0), (9 * 3600, 0)])
def test_time_takes_away_half_of_the_limit_in_an_hour(ago: float, left: float) -> None:
    known = TokenState(requests=50.0, requests_at=NOW.boot - ago)
    assert known.requests_used(20, NOW.boot) == left
