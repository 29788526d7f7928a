"""`copy_store`: what is copied, what is left alone and why, and that no token looks younger."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest
from _loop import iterations, run
from _states import IDENTITY, NOW, SIGNED_OUT, failures, rejection, state, token

from tokensession import copy_store, upkeep
from tokensession._refresh.state import Now, TokenState, decode, encode
from tokensession.errors import ConfigurationError, StoreUnavailable
from tokensession.stores import EncryptedStore, MemoryStore, Store, StoreReport
from tokensession.stores.protocol import ANY, AnyVersion, Record
from tokensession.testing import FakeClock

FULL = state(
    number=3,
    generation=7,
    identity=IDENTITY,
    failures=failures(),
    rejections=(rejection(until=NOW.boot + 900),),
    redeemed=(("code-1", NOW.boot - 1000),),
    requests=12.5,
    requests_at=NOW.boot - 600,
    force_at=NOW.boot - 10,
    more={"from the future": 1},
)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The clock of the stores and of the copying process."""
    made = FakeClock(wall=NOW.wall, boot=NOW.boot)
    monkeypatch.setattr(upkeep, "_CLOCK", made)
    return made


def now(clock: FakeClock) -> Now:
    return Now(clock.wall(), clock.boot())


async def store_with(clock: FakeClock, **states: TokenState | bytes) -> MemoryStore:
    store = MemoryStore(clock=clock)
    for key, each in states.items():
        await store.put(key, each if isinstance(each, bytes) else encode(each, now(clock)))
    return store


async def read(store: Store, clock: FakeClock, key: str = "k") -> TokenState:
    record = await store.load(key)
    assert record is not None
    return decode(record.data, now(clock), age=record.age)


def test_every_field_is_copied_and_every_duration_goes_on(clock: FakeClock) -> None:
    """The target counts from its own write, so what has passed until then is in the bytes."""

    async def main() -> None:
        source, target = await store_with(clock, k=FULL), MemoryStore(clock=clock)
        clock.advance(1800)
        report = await copy_store(source, target)
        assert (report.done, report.unchanged, report.skipped) == (["k"], [], {})
        record = await target.load("k")
        assert record is not None
        assert record.age == 0
        clock.advance(60)
        copied = await read(target, clock)
        assert copied == FULL == await read(source, clock)  # all moments, by the boot clock
        assert copied.more == FULL.more
        assert copied.token is not None
        assert clock.boot() - copied.obtained == 1860

    run(main())


def test_a_second_copy_copies_what_has_changed(clock: FakeClock) -> None:
    async def main() -> None:
        source = await store_with(clock, a=state(), b=state(), gone=SIGNED_OUT)
        target = MemoryStore(clock=clock)
        assert (await copy_store(source, target)).done == ["a", "b", "gone"]
        await source.put("b", encode(state(generation=1, name="at-2"), now(clock)))
        report = await copy_store(source, target)
        assert (report.done, report.unchanged, report.skipped) == (["b"], ["a", "gone"], {})
        assert (await read(target, clock, "b")).generation == 1
        assert (await read(target, clock, "gone")).signed_out

    run(main())


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        (state(generation=5), "a newer record"),
        (state(number=2), "a newer record"),
        (replace(SIGNED_OUT, number=9), "a newer record"),
        (state(generation=1, name="at-other"), "another sign-in"),
        (state(generation=1, token=None, signed_out=True), "another sign-in"),
        (state(identity=replace(IDENTITY, client_id="client-2")), "another provider or client"),
        (b"\xc1", "in the target is in the way.*not msgpack"),
    ],
)
def test_nothing_newer_and_nothing_foreign_is_overwritten(
    there: TokenState | bytes, reason: str, clock: FakeClock
) -> None:
    async def main() -> None:
        source = await store_with(clock, k=state(generation=1, identity=IDENTITY))
        target = await store_with(clock, k=there)
        before = await target.load("k")
        report = await copy_store(source, target)
        assert report.done == report.unchanged == []
        assert re.search(reason, report.skipped["k"])
        assert await target.load("k") == before

    run(main())


def test_an_older_record_in_the_target_is_replaced(clock: FakeClock) -> None:
    async def main() -> None:
        source = await store_with(clock, k=state(generation=2, name="at-3"))
        target = await store_with(clock, k=state(generation=1, name="at-2"))
        assert (await copy_store(source, target)).done == ["k"]
        assert (await read(target, clock)).token == token("at-3")

    run(main())


def test_what_is_written_to_the_target_meanwhile_is_looked_at_again(clock: FakeClock) -> None:
    """Between the look and the write: a refresh or a sign-in by a process that uses the target."""

    class Busy(MemoryStore):
        meanwhile: TokenState | None = None

        async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
            if self.meanwhile is not None:
                written, self.meanwhile = self.meanwhile, None
                await super().put(key, encode(written, now(clock)))
            return await super().put(key, data, expect=expect)

    async def main() -> None:
        source = await store_with(clock, k=state(generation=3))
        target = Busy(clock=clock)
        target.meanwhile = state(generation=4, name="at-newer")
        assert "newer" in (await copy_store(source, target)).skipped["k"]
        assert (await read(target, clock)).generation == 4
        target = Busy(clock=clock)
        target.meanwhile = state(generation=2)
        assert (await copy_store(source, target)).done == ["k"]
        assert (await read(target, clock)).generation == 3

    run(main())


def test_a_refresh_in_the_source_is_waited_for(clock: FakeClock) -> None:
    """A refresh token that is being sent is not copied. What comes of it is."""

    async def main() -> None:
        source, target = await store_with(clock, k=state()), MemoryStore(clock=clock)
        record = await source.load("k")
        assert record is not None
        claim: Any = await source.claim("k", seen=record.version, timeout=0)
        await claim.sending()
        copying = asyncio.ensure_future(copy_store(source, target))
        await iterations()
        assert await target.load("k") is None
        await claim.commit(encode(state(generation=1, name="at-2"), now(clock)))
        assert (await copying).done == ["k"]
        assert (await read(target, clock)).generation == 1

    run(main())


def test_a_refresh_that_takes_long_is_skipped(clock: FakeClock) -> None:
    async def main() -> None:
        source, target = await store_with(clock, k=state(), other=state()), MemoryStore(clock=clock)
        record = await source.load("k")
        assert record is not None
        await source.claim("k", seen=record.version, timeout=0)
        copying = asyncio.ensure_future(copy_store(source, target))
        await iterations()
        clock.advance(31)
        report = await copying
        assert report.done == ["other"]
        assert "still held" in report.skipped["k"]

    run(main())


def test_a_record_whose_holder_was_killed_during_its_request_is_skipped(clock: FakeClock) -> None:
    """Its refresh token may be spent, and only the source knows that. The source keeps knowing it."""

    async def main() -> None:
        source, target = await store_with(clock, k=state()), MemoryStore(clock=clock)
        record = await source.load("k")
        assert record is not None
        version = record.version

        async def send() -> None:
            claim: Any = await source.claim("k", seen=version, timeout=0)
            await claim.sending()

        await asyncio.to_thread(lambda: asyncio.run(send()))
        report = await copy_store(source, target)
        assert "killed" in report.skipped["k"]
        assert await target.keys() == []
        claim: Any = await source.claim("k", seen=version, timeout=0)
        assert claim.interrupted is not None

    run(main())


def test_what_cannot_be_read_is_skipped_and_the_rest_is_copied(clock: FakeClock) -> None:
    """A damaged record, one of another program, one without its key, one that is gone meanwhile."""

    class Ghosts(MemoryStore):
        async def keys(self) -> list[str]:
            return ["ghost", *await super().keys()]

    async def main() -> None:
        key = EncryptedStore.new_key()
        inner, target = Ghosts(clock=clock), MemoryStore(clock=clock)
        source = EncryptedStore(inner, key)
        await EncryptedStore(inner, EncryptedStore.new_key()).put("lost", b"")
        await inner.put("plain", encode(state(), now(clock)))
        await source.put("strange", b"\xc1")
        await source.put("good", encode(state(), now(clock)))
        shown: list[int] = []

        def progress(report: StoreReport) -> None:
            shown.append(report.seen)

        report = await copy_store(source, target, progress=progress)
        assert (report.done, report.unchanged) == (["good"], ["ghost"])
        assert sorted(report.skipped) == ["lost", "plain", "strange"]
        assert (report.total, shown) == (5, [1, 2, 3, 4, 5])
        raw = await copy_store(inner, MemoryStore())
        assert "is encrypted" in raw.skipped["good"]

    run(main())


def test_a_copy_out_of_an_encrypted_store_that_was_rotated_makes_nothing_younger(clock: FakeClock) -> None:
    async def main() -> None:
        old, new = EncryptedStore.new_key(), EncryptedStore.new_key()
        inner, target = MemoryStore(clock=clock), MemoryStore(clock=clock)
        await EncryptedStore(inner, old).put("k", encode(state(), now(clock)))
        clock.advance(1000)
        source = EncryptedStore(inner, [new, old])
        assert (await source.rotate()).done == ["k"]
        clock.advance(1000)
        assert (await copy_store(source, target)).done == ["k"]
        clock.advance(1000)
        assert clock.boot() - (await read(target, clock)).obtained == 3000

    run(main())


def test_a_store_that_fails_is_an_error_and_holds_no_claim(clock: FakeClock) -> None:
    class Full(MemoryStore):
        async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
            raise StoreUnavailable("The disk is full.")

    async def main() -> None:
        source = await store_with(clock, k=state())
        with pytest.raises(StoreUnavailable, match="disk is full"):
            await copy_store(source, Full(clock=clock))
        record = await source.load("k")
        assert record is not None
        assert not isinstance(await source.claim("k", seen=record.version, timeout=0), Record)

    run(main())


@pytest.mark.parametrize("wrong", ["sqlite:///tokens.db", None, MemoryStore])
def test_what_is_not_a_store_is_an_error(wrong: Any) -> None:
    async def main() -> None:
        for pair in ((wrong, MemoryStore()), (MemoryStore(), wrong)):
            with pytest.raises(ConfigurationError, match="must be a store"):
                await copy_store(*pair)

    run(main())
