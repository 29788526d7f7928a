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
    NEWLY_CONFIGURED,
    NOW,
    failure,
    failures,
    found,
    later,
    probable,
    rejection,
    sends,
    state,
    step,
    token,
    unknown,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession._refresh.decide import Serve
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
        other_failures=tuple(draw(st.lists(notes, max_size=3))),
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


ELSEWHERE = Now(wall=NOW.wall + 7200, boot=50.0)
"""Another host: its wall clock is two hours wrong, and it was started a minute ago."""


@pytest.mark.parametrize("age", [0.0, 100.0, 86_400.0])
def test_moments_are_durations_to_the_moment_of_writing(age: float) -> None:
    """So no two hosts compare their clocks. Every number with a fraction in a part is a moment."""
    read = decode(encode(FULL, NOW), ELSEWHERE, age=age)
    shift = ELSEWHERE.boot - age - NOW.boot

    def moved(part: Any) -> Any:
        names = [each.name for each in fields(part) if each.type == "float"]
        return replace(part, **{name: getattr(part, name) + shift for name in names})

    assert read == replace(
        FULL,
        token=read.token,
        obtained=FULL.obtained + shift,
        redeemed=(("code-1", 99_000.0 + shift),),
        failures=moved(FULL.failures),
        rejections=(moved(FULL.rejections[0]),),
        force_at=FULL.force_at + shift,
        requests_at=FULL.requests_at + shift,
    )


def test_f35_a_token_s_life_does_not_depend_on_whether_two_hosts_agree_on_the_time() -> None:
    """It has the rest of its life on the reader's own clocks, however wrong either wall clock is."""
    written = encode(state(FRESH), NOW)
    for wrong in (-86_400.0, 0.0, 7200.0):
        here = Now(NOW.wall + wrong, 50.0)
        read = decode(written, here, age=600)
        assert read.token is not None
        assert (read.token.obtained_at, read.obtained) == (here.wall - 600, here.boot - 600)
        assert isinstance(step(read, now=here), Serve)
        sends(step(decode(written, here, age=EXPIRED), now=here))


def test_a_token_of_the_future_is_read_as_one_of_now() -> None:
    """Only a damaged record has one: its life must not be longer than granted."""
    ahead = encode(state(FRESH, obtained=NOW.boot + 1000), NOW)
    read = decode(ahead, NOW)
    assert read.token is not None
    assert read.token.obtained_at == NOW.wall
    sends(step(read, now=later(EXPIRED)))


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


def test_f75_extra_values_of_a_later_version_do_not_cost_the_record() -> None:
    """They are left out, and the plain ones are read."""
    whole = replace(FULL, token=Token("at-1", 0.0, extra={"url": "u", "count": 7}))
    document = msgpack.unpackb(encode(whole, NOW))
    document["token"]["extra"] |= {"roles": ["a"], "team": {"id": 1}, "none": None}
    read = decode(msgpack.packb(document), NOW).token
    assert read is not None
    assert read.extra == {"url": "u", "count": 7}
    document["token"]["extra"] = ["a"]
    with pytest.raises(StoreCorrupt, match="'extra' of the wrong type"):
        decode(msgpack.packb(document), NOW)


@pytest.mark.parametrize("part", ["token", "failures", "identity"])
def test_f75_unknown_fields_of_a_part_go_with_the_part(part: str) -> None:
    """A record without a token, say, has no field of one."""
    read = decode(msgpack.packb(extended(FORMAT_2)), NOW)
    without: dict[str, Any] = {part: None}
    assert msgpack.unpackb(encode(replace(read, **without), NOW))[part] is None


def test_a_rejection_and_failures_that_are_merged_keep_their_unknown_fields() -> None:
    read = decode(msgpack.packb(extended(FORMAT_2)), NOW)
    both = merged(replace(read, failures=None, rejections=()), read)
    assert found(both).more == both.rejections[0].more == LATER


@pytest.mark.parametrize("newer", ["stored", "known"])
def test_of_two_notes_of_one_moment_the_one_with_more_failures_counts(newer: str) -> None:
    """A process restores a record, and another one's request fails in the same moment: its pause holds."""
    one = TokenState(failures=Failures("c", 1, 2, last=100.0, until=100.0))
    two = TokenState(failures=Failures("c", 2, 2, last=100.0, until=130.0))
    both = merged(two, one) if newer == "stored" else merged(one, two)
    assert both.failures is not None
    assert (both.failures.count, both.failures.until) == (2, 130.0)


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
def test_f75_records_of_format_1_are_read_and_written_as_format_2(name: str, age: float) -> None:
    """Their moments are of the wall clock. What they lack is unknown, and what they knew is kept."""
    read, known = decode(FORMAT_1[name], AT, age=age), READ_1[name]
    assert read == (known if known.token else replace(known, obtained=read.obtained))
    written = encode(read, AT)
    assert msgpack.unpackb(written)["format"] == 2
    again = decode(written, AT)
    assert again == replace(read, obtained=again.obtained)


WHOLE_1: dict[str, Any] = msgpack.unpackb(FORMAT_1["signed in"])
WHOLE_2: dict[str, Any] = msgpack.unpackb(FORMAT_2)
STORED_1 = Credential("refresh_token", "rt-1").fingerprint


def read_1(*, age: float = FRESH, lost: int = 0, ago: float = 10, **changes: Any) -> TokenState:
    """What is read of a record of format 1 with a token of this age, and so many lost replies."""
    known = {
        "seed": CONFIGURED.fingerprint,
        "token": WHOLE_1["token"] | {"obtained_at": NOW.wall - age},
        "attempt": {"credential": STORED_1, "at": NOW.wall - ago, "replays": lost - 1} if lost else None,
        "rejection": None,
    }
    return decode(msgpack.packb(WHOLE_1 | known | changes), NOW)


def test_f75_what_format_1_knew_leads_to_the_same_steps() -> None:
    """A valid token is served, a rejected credential not sent, a lost reply remembered, a sign-out kept."""
    served = read_1()
    assert step(served) == Serve(served)
    spent = sends(step(read_1(age=EXPIRED, lost=1)))
    assert spent.sent.credential == STORED_1
    assert found(spent.state).unknown == 1
    refused = {"credential": STORED_1, "code": "invalid_grant"}
    rejected = read_1(age=EXPIRED, rejection=refused)
    for client in ("client", "another secret"):
        error = failure(step(rejected, client=client))
        assert isinstance(error, GrantRejected), "which request it was is unknown: only the credential"
    out = read_1(token=None, signed_out=True)
    assert isinstance(failure(step(out)), SignedOut)


@pytest.mark.parametrize("ahead", [1.0, 7200.0])
def test_f35_a_record_of_format_1_from_the_future_is_one_of_now(ahead: float) -> None:
    """The clock that wrote it was ahead, or this one is behind."""
    read = read_1(age=-ahead, lost=1, ago=-ahead)
    assert read.obtained == NOW.boot
    assert found(read).until == found(read).last == NOW.boot
    sends(step(read, now=later(EXPIRED)))


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
NO_LIFETIME: list[Any] = ["3600", True, float("nan"), float("-inf"), float("inf"), []]
NO_TEXT_OR_NONE: list[Any] = [7, b"rt", False, []]
NO_TALLY: list[Any] = [None, 1.0, "1", True]
NO_PAIR: list[Any] = [[], [1.0], [1.0, 2.0, 3.0], ["1", 2.0], [1.0, None], [float("nan"), 0.0]]
TOKEN: dict[str, list[Any]] = {
    "token": NO_MAP,
    **dict.fromkeys(["token.access_token", "token.token_type"], NO_TEXT),
    **dict.fromkeys(["token.refresh_token", "token.scope"], NO_TEXT_OR_NONE),
    "token.lifetime": NO_LIFETIME,
}
WRONG_1: dict[str, list[Any]] = {
    **TOKEN,
    **dict.fromkeys(["attempt", "rejection"], NO_MAP),
    **dict.fromkeys(["seed", "attempt.credential", "rejection.credential", "rejection.code"], NO_TEXT),
    **dict.fromkeys(["token.obtained_at", "attempt.at"], NO_NUMBER),
    "signed_out": NO_FLAG,
    "attempt.replays": NO_COUNT,
}
WRONG_2: dict[str, list[Any]] = {
    "format": [None, "2", 2.0, True],
    **TOKEN,
    **dict.fromkeys(["identity", "failures"], NO_MAP),
    **{f"identity.{each.name}": NO_TEXT for each in fields(Identity)},
    **dict.fromkeys(["configured", "start", "problem", "failures.credential", "failures.reason"], NO_TEXT),
    **{f"rejections.1.{name}": NO_TEXT for name in ("credential", "code", "request", "reason")},
    "previous": NO_TEXT_OR_NONE,
    **dict.fromkeys(["number", "generation", "forced"], NO_COUNT),
    **{f"failures.{name}": NO_TALLY for name in ("count", "unknown", "unexplained")},
    "rejections.1.tries": NO_TALLY,
    **dict.fromkeys(["signed_out", "failures.requested"], NO_FLAG),
    **dict.fromkeys(["rejections.1.certain", "rejections.1.lost"], NO_FLAG),
    **{f"failures.{name}": NO_NUMBER for name in ("since", "unexplained_since", "last")},
    **{f"failures.{name}": NO_NUMBER for name in ("until", "background_until")},
    **dict.fromkeys(["token.obtained", "rejections.1.until"], NO_NUMBER),
    **dict.fromkeys(["token.refresh_lifetime", "sign_in_life", "force_at"], NO_LIFETIME),
    "superseded": [None, "text", {}, [None], ["text", 7], [b"bytes"]],
    "redeemed": [None, {}, "text", ["code"], [["code"]], [["code", 1.0, 2]], [[1, 1.0]], [["code", "1"]]],
    "rejections": [None, {}, "text", [None], ["text"], [[]], [{}]],
    "requests": [None, {}, *NO_PAIR],
}
TWO_REJECTIONS = WHOLE_2 | {"rejections": WHOLE_2["rejections"] * 2}
TABLES = [(WHOLE_1, WRONG_1), (TWO_REJECTIONS, WRONG_2)]


def changed(whole: dict[str, Any], path: str, change: Any) -> bytes:
    """The whole record with one field replaced; `...` leaves it out."""
    parent = document = msgpack.unpackb(msgpack.packb(whole))
    *outer, name = path.split(".")
    for each in outer:
        parent = parent[int(each) if isinstance(parent, list) else each]
    if change is ...:
        del parent[name]
    else:
        parent[name] = change
    return bytes(msgpack.packb(document))


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


@settings(deadline=None, max_examples=500)
@given(st.sampled_from([(whole, path) for whole, wrong in TABLES for path in wrong]), VALUES)
def test_any_value_in_any_field_is_read_or_raises_storecorrupt(
    field: tuple[dict[str, Any], str], value: Any
) -> None:
    with contextlib.suppress(StoreCorrupt):
        assert isinstance(decode(changed(*field, value), NOW), TokenState)


@pytest.mark.parametrize(
    ("whole", "path", "value"),
    [(whole, path, value) for whole, wrong in TABLES for path, values in wrong.items() for value in values],
    ids=lambda value: "" if isinstance(value, dict) else repr(value),
)
def test_a_field_of_the_wrong_type_is_named(whole: dict[str, Any], path: str, value: Any) -> None:
    with pytest.raises(StoreCorrupt) as caught:
        decode(changed(whole, path, value), NOW)
    assert path.split(".")[-1] in str(caught.value)


@pytest.mark.parametrize(
    ("whole", "path"), [(whole, path) for whole, wrong in TABLES for path in wrong], ids=lambda _: ""
)
def test_a_missing_field_is_named(whole: dict[str, Any], path: str) -> None:
    if path == "token.refresh_lifetime":  # newer than the others: a token without it is read
        assert decode(changed(whole, path, ...), NOW).token
        return
    with pytest.raises(StoreCorrupt, match=f"lacks '{path.split('.')[-1]}'"):
        decode(changed(whole, path, ...), NOW)


def test_every_field_that_is_written_is_checked_when_read() -> None:
    for whole, wrong in TABLES:
        written = whole.keys() - {"sign_in"}
        for name, value in whole.items():
            if isinstance(value, dict):
                written |= {f"{name}.{inner}" for inner in value}
            elif name == "rejections":
                written |= {f"rejections.1.{inner}" for inner in value[1]}
        assert written - {"format"} == wrong.keys() - {"format"}


@pytest.mark.parametrize("number", [0, 3, -1, 10**9])
def test_an_unknown_format_is_named_with_what_to_do(number: int) -> None:
    with pytest.raises(StoreCorrupt, match=rf"format {number}; this version reads formats 1 and 2") as caught:
        decode(changed(WHOLE_2, "format", number), NOW)
    assert "Use the version of tokensession that wrote it" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        *[(msgpack.packb(document), "not a map") for document in (None, [], 7, "text", b"bytes")],
        (msgpack.packb({1: 2}), "not msgpack"),
        (b"\x91" * 100_000, "not msgpack"),
        (b"\xc0" * (4 * 1024 * 1024 + 1), "at most 4194304 are read"),
    ],
    ids=["none", "list", "number", "text", "bytes", "keys that are no text", "deeply nested", "huge"],
)
def test_what_is_no_record_of_ours_is_corrupt(data: bytes, said: str) -> None:
    with pytest.raises(StoreCorrupt, match=said):
        decode(data, NOW)


def test_the_error_names_the_field_and_never_its_value() -> None:
    wrong = changed(WHOLE_2, "token.scope", ["secret"])
    with pytest.raises(StoreCorrupt) as caught:
        decode(wrong, NOW)
    assert "secret" not in str(caught.value)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert all(frame.name not in ("_decoded", "_token", "get") for frame in frames), "their locals have it"


def test_f21_a_rejection_is_found_by_its_credential_and_request() -> None:
    """Of a fleet with two configurations, none sends the refresh token again and again."""
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


def test_what_has_failed_is_noted_for_each_credential() -> None:
    """The last failure of each, at most four. Another state that replaces it keeps it."""
    one, two = failures(CONFIGURED), unknown(NEWLY_CONFIGURED, 3)
    both = TokenState().with_failures(one).with_failures(two)
    assert both.all_failures == (two, one)
    assert both.failures_of(one.credential) == one
    assert both.with_failures(replace(one, count=9)).all_failures == (replace(one, count=9), two)
    assert both.without_failures(two.credential).all_failures == (one,)
    assert both.without_failures(one.credential).without_failures(two.credential) == TokenState()
    own = state(failures=None)
    assert keeping(own, both, own.with_failures(failures(CURRENT))).all_failures == (two, one)
    assert merged(own.with_failures(one), own.with_failures(two)).failures_of(one.credential) == one
    many = [replace(one, credential=str(number)) for number in range(9)]
    assert len(both.with_failures(*many).all_failures) == 4


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


def test_a_sign_out_ends_what_was_sent_before_it_without_an_answer() -> None:
    """Also if the note of that could not be stored. What is sent after the sign-out is a new sign-in."""
    out = TokenState(number=5, signed_out=True)
    asked = replace(state(), failures=unknown(NEWLY_CONFIGURED))
    assert keeping(out, asked).superseded == (NEWLY_CONFIGURED.fingerprint,)
    assert keeping(out, replace(out, failures=unknown(NEWLY_CONFIGURED))).superseded == ()
    assert keeping(out, replace(state(), failures=failures(NEWLY_CONFIGURED))).superseded == ()
