"""EncryptedStore: what is stored, which keys read it, rotation, and where keys come from."""

from __future__ import annotations

import asyncio
import base64
import copy
import os
import pickle
import secrets
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, ClassVar

import pytest
from _store_helpers import run, source, success
from anyio import CancelScope

import tokensession
from tokensession.errors import (
    ConfigurationError,
    StoreCorrupt,
    StoreError,
    StoreInsecure,
    StoreUnavailable,
    Superseded,
)
from tokensession.stores import (
    EncryptedStore,
    Keys,
    MemoryStore,
    Record,
    SQLiteStore,
    Store,
    StoreReport,
    _keys,
    open_store,
)
from tokensession.stores.protocol import ENCRYPTED
from tokensession.testing import FakeClock, ScriptedTransport
from tokensession.testing.conformance.backend import claimed, is_free, newer, started, ticks

SECRET = b"s3cr3t-refresh-token"
OLD, NEW, OTHER = (EncryptedStore.new_key() for _ in range(3))


def id_of(key: str) -> str:
    """The id of this key, as records and errors show it."""
    (found,) = _keys.parse(key)
    return found.hex()


async def encrypted_with(inner: Store, key: str) -> str:
    """The id of the encryption key that this record needs."""
    record = await inner.load(key)
    assert record is not None
    assert record.data.startswith(ENCRYPTED)
    return record.data[5:13].hex()


def later() -> tuple[FakeClock, MemoryStore]:
    """A memory store, and its clock."""
    clock = FakeClock()
    return clock, MemoryStore(clock=clock)


# -- what is stored ---------------------------------------------------------------------------------------


def test_nothing_of_the_data_is_in_the_inner_store(tmp_path: Path) -> None:
    """Neither after a put nor after a commit, and equal data looks different each time."""

    async def main() -> None:
        inner = SQLiteStore(tmp_path / "t.db")
        async with EncryptedStore(inner, OLD) as store:
            first = await store.put("k", SECRET)
            envelopes = [await inner.load("k")]
            claim = await claimed(store, "k", first.version)
            await claim.commit(SECRET)
            envelopes.append(await inner.load("k"))
            assert await store.load("k") is not None
        assert SECRET not in (tmp_path / "t.db").read_bytes()
        assert len({each and each.data for each in envelopes}) == 2

    run(main())


def test_every_changed_byte_is_noticed() -> None:
    """In the header, the nonce, the ciphertext and the tag; and so is a record that was cut short."""

    async def main() -> None:
        inner = MemoryStore()
        store = EncryptedStore(inner, [OLD, NEW])
        await store.put("k", b"data")
        whole = await inner.load("k")
        assert whole is not None
        for position in range(len(whole.data)):
            changed = bytearray(whole.data)
            changed[position] ^= 1
            await inner.put("k", bytes(changed))
            with pytest.raises(StoreError):
                await store.load("k")
            await inner.put("k", whole.data[:position])
            with pytest.raises((StoreCorrupt, StoreInsecure)):
                await store.load("k")
        await inner.put("k", whole.data)
        assert await store.load("k") is not None

    run(main())


def test_a_record_moved_to_another_key_is_refused_and_its_header_cannot_name_another_key() -> None:
    async def main() -> None:
        inner = MemoryStore()
        store = EncryptedStore(inner, [OLD, NEW])
        await store.put("alice", b"alice's")
        record = await inner.load("alice")
        assert record is not None
        await inner.put("bob", record.data)
        with pytest.raises(StoreCorrupt, match="moved to another key"):
            await store.load("bob")
        with pytest.raises(StoreCorrupt):
            await store.claim("bob", seen=None, timeout=0)
        await inner.put("alice", record.data.replace(bytes.fromhex(id_of(OLD)), bytes.fromhex(id_of(NEW))))
        with pytest.raises(StoreCorrupt):
            await store.load("alice")

    run(main())


def test_a_format_of_a_newer_version_is_an_error_that_says_so() -> None:
    async def main() -> None:
        inner = MemoryStore()
        store = EncryptedStore(inner, OLD)
        await store.put("k", b"data")
        record = await inner.load("k")
        assert record is not None
        await inner.put("k", record.data[:4] + b"\x02" + record.data[5:])
        with pytest.raises(StoreCorrupt, match="format 2; this version reads format 1"):
            await store.load("k")

    run(main())


def test_a_repeated_commit_is_recognized_by_the_inner_store() -> None:
    """Although each encryption has a nonce of its own."""

    async def main() -> None:
        store = EncryptedStore(MemoryStore(), OLD)
        claim = await claimed(store, "k")
        first = await claim.commit(b"data")
        assert await claim.commit(b"data") == first == await store.load("k")
        with pytest.raises(Superseded) as caught:
            await claim.commit(b"other data")
        assert caught.value.record == first

    run(main())


def test_a_record_that_is_not_opened_with_its_keys_says_that_it_is_encrypted() -> None:
    """To a source over the inner store. Nothing is sent."""

    async def main() -> None:
        inner, transport = MemoryStore(), ScriptedTransport(success(1))
        async with source(EncryptedStore(inner, OLD), transport) as through:
            await through.token()
        other = ScriptedTransport()
        with pytest.raises(StoreCorrupt, match="is encrypted"):
            await source(inner, other).token()
        assert other.requests == []

    run(main())


# -- which keys -------------------------------------------------------------------------------------------


def test_the_first_key_encrypts_and_all_of_them_decrypt() -> None:
    async def main() -> None:
        inner = MemoryStore()
        await EncryptedStore(inner, OLD).put("old", b"1")
        store = EncryptedStore(inner, [NEW, OLD])
        await store.put("new", b"2")
        assert [(await newer(store, key)).data for key in ("old", "new")] == [b"1", b"2"]
        assert [await encrypted_with(inner, key) for key in ("old", "new")] == [id_of(OLD), id_of(NEW)]

    run(main())


def test_a_wrong_key_is_an_error_before_a_grant_is_spent() -> None:
    """By a refresh and by a sign-in. It names the keys by their ids, and the record stays."""

    async def main() -> None:
        inner = MemoryStore()
        async with source(EncryptedStore(inner, OLD), ScriptedTransport(success(1))) as before:
            await before.token()
        stored, transport = await inner.load("k"), ScriptedTransport()
        other = source(EncryptedStore(inner, NEW), transport)
        for work in (other.token(), other.sign_in(refresh_token="another")):
            with pytest.raises(StoreUnavailable, match=f"{id_of(OLD)}, and this store has {id_of(NEW)}"):
                await work
        assert transport.requests == []
        assert await inner.load("k") == stored

    run(main())


def test_a_record_whose_key_is_lost_can_be_deleted_and_signed_in_again() -> None:
    async def main() -> None:
        inner = MemoryStore()
        await EncryptedStore(inner, OLD).put("k", b"data")
        store = EncryptedStore(inner, NEW)
        assert await store.keys() == ["k"]
        assert await store.delete("k")
        async with source(store, ScriptedTransport(success(1))) as again:
            assert (await again.token()).access_token == "access-1"

    run(main())


def test_keys_that_cannot_be_read_are_an_error_before_a_grant_is_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where nothing is stored yet. It works once they can be read."""

    async def main() -> None:
        monkeypatch.delenv("TOKEN_KEYS", raising=False)
        transport = ScriptedTransport(success(1))
        clock = FakeClock()
        store = EncryptedStore(MemoryStore(clock=clock), Keys.env("TOKEN_KEYS"), clock=clock)
        async with source(store, transport, clock) as through:
            with pytest.raises(StoreUnavailable, match=r"environment variable TOKEN_KEYS\): it is not set"):
                await through.token()
            assert transport.requests == []
            monkeypatch.setenv("TOKEN_KEYS", NEW)
            clock.advance(60)
            assert (await through.token()).access_token == "access-1"

    run(main())


def test_a_commit_needs_no_key_source(tmp_path: Path) -> None:
    """The claim has the key: a key file that is lost during the token request loses no token."""

    async def main() -> None:
        path = tmp_path / "keys"
        path.write_text(OLD)
        store = EncryptedStore(MemoryStore(), Keys.file(path))
        claim = await claimed(store, "k")
        path.unlink()
        record = await claim.commit(b"data")
        assert await store.load("k") == record
        with pytest.raises(StoreUnavailable, match="No such file"):
            await store.claim("k", seen=record.version, timeout=0)

    run(main())


def test_a_claim_whose_record_cannot_be_decrypted_is_not_held() -> None:
    """Neither if a key is missing, nor if the caller is cancelled while keys are read."""

    async def main() -> None:
        inner, gate = MemoryStore(), asyncio.Event()
        record = await EncryptedStore(inner, OLD).put("k", b"data")
        with pytest.raises(StoreUnavailable):
            await EncryptedStore(inner, NEW).claim("k", seen=record.version, timeout=0)
        assert await is_free(inner, "k", record.version)
        clock, calls = FakeClock(), 0

        async def fetch() -> str:
            nonlocal calls
            calls += 1
            if calls > 1:
                await gate.wait()
            return NEW

        store = EncryptedStore(inner, fetch, clock=clock)
        await store.put("other", b"")
        clock.advance(10)  # enough to ask again for a missing key
        waiting = asyncio.ensure_future(store.claim("k", seen=record.version, timeout=0))
        await ticks()
        assert calls == 2
        assert not await is_free(inner, "k", record.version)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert await is_free(inner, "k", record.version)

    run(main())


# -- plain text -------------------------------------------------------------------------------------------


def test_plain_text_is_refused_unless_it_is_adopted(caplog: pytest.LogCaptureFixture) -> None:
    """Adopting warns once. The next write encrypts, and so does `rotate`, with the record's age."""

    async def main() -> None:
        clock, inner = later()
        plain = await inner.put("k", b"data")
        await inner.put("other", b"other's")
        clock.advance(50)
        strict = EncryptedStore(inner, OLD, clock=clock)
        for work in (
            strict.load("k"),
            strict.claim("k", seen=plain.version, timeout=0),
            strict.put("k", b"x", expect=None),
            strict.delete("k", expect="another"),
        ):
            with pytest.raises(StoreInsecure, match="not encrypted"):
                await work
        assert await is_free(inner, "k", plain.version)
        report = await strict.rotate()
        assert (report.done, sorted(report.skipped)) == ([], ["k", "other"])
        adopting = EncryptedStore(inner, OLD, adopt_plaintext=True, clock=clock)
        assert [(await newer(adopting, key)).data for key in ("k", "other")] == [b"data", b"other's"]
        assert len(caplog.records) == 1
        claim = await claimed(adopting, "k", plain.version)
        await claim.commit(b"newer")
        assert (await adopting.rotate()).done == ["other"]
        found = [await newer(strict, key) for key in ("k", "other")]
        assert [(each.data, each.age) for each in found] == [(b"newer", 0), (b"other's", 50)]

    run(main())


# -- rotation ---------------------------------------------------------------------------------------------


def test_rotation_encrypts_with_the_first_key_and_makes_nothing_younger() -> None:
    """Also when it is done twice. Then the old key is not needed any more."""

    async def main() -> None:
        clock, inner = later()
        store = EncryptedStore(inner, OLD, clock=clock)
        for key in ("a", "b", "c"):
            await store.put(key, key.encode())
        clock.advance(100)
        shown: list[int] = []

        def progress(report: StoreReport) -> None:
            assert report.total == 3
            shown.append(report.seen)

        second = EncryptedStore(inner, [NEW, OLD], clock=clock)
        await second.put("b", b"newer")
        report = await second.rotate(progress=progress)
        assert (report.done, report.unchanged, report.skipped) == (["a", "c"], ["b"], {})
        assert shown == [1, 2, 3]
        clock.advance(10)
        third = EncryptedStore(inner, [OTHER, NEW], clock=clock)
        assert (await third.rotate()).done == ["a", "b", "c"]
        clock.advance(1)
        last = EncryptedStore(inner, OTHER, clock=clock)
        found = [await newer(last, key) for key in ("a", "b", "c")]
        assert [(each.data, each.age) for each in found] == [(b"a", 111), (b"newer", 11), (b"c", 111)]
        assert (await last.rotate()).done == []

    run(main())


def test_rotation_disturbs_no_refresh() -> None:
    """It waits for the claim, and the record that comes of the refresh is the one that is encrypted again."""

    async def main() -> None:
        inner = MemoryStore()
        record = await EncryptedStore(inner, OLD).put("k", b"old")
        claim = await claimed(EncryptedStore(inner, OLD), "k", record.version)
        store = EncryptedStore(inner, [NEW, OLD])
        rotating = asyncio.ensure_future(store.rotate())
        await ticks()
        await claim.sending()
        assert not rotating.done()
        await claim.commit(b"rotated refresh token")
        assert (await rotating).done == ["k"]
        assert (await newer(store, "k")).data == b"rotated refresh token"
        assert await encrypted_with(inner, "k") == id_of(NEW)

    run(main())


def test_rotation_leaves_what_an_interrupted_holder_has_left(tmp_path: Path) -> None:
    """The next holder must learn that the refresh token may be spent."""

    async def main() -> None:
        inner = MemoryStore()
        holder = await claimed(EncryptedStore(inner, OLD), "k")
        record = await holder.commit(b"data")
        await _interrupt(inner, record)
        store = EncryptedStore(inner, [NEW, OLD])
        assert (await store.rotate()).done == ["k"]
        after = await newer(store, "k")
        assert (await claimed(store, "k", after.version)).interrupted is not None

    run(main())


async def _interrupt(inner: MemoryStore, record: Record) -> None:
    """A holder sends, and its event loop ends."""

    async def send() -> None:
        await (await claimed(inner, "k", record.version)).sending()

    def elsewhere() -> None:
        asyncio.run(send())

    await asyncio.to_thread(elsewhere)


def test_rotation_skips_what_it_cannot_read_and_says_why() -> None:
    """And what is deleted meanwhile is nothing to do."""

    async def main() -> None:
        class Ghosts(MemoryStore):
            async def keys(self) -> list[str]:
                return ["ghost", *await super().keys()]

        inner = Ghosts()
        await EncryptedStore(inner, OTHER).put("lost", b"data")
        await EncryptedStore(inner, OLD).put("good", b"data")
        await inner.put("damaged", (await newer(inner, "good")).data)
        report = await EncryptedStore(inner, [NEW, OLD]).rotate()
        assert (report.done, report.unchanged) == (["good"], ["ghost"])
        assert id_of(OTHER) in report.skipped["lost"]
        assert "cannot be decrypted" in report.skipped["damaged"]

    run(main())


def test_a_cancelled_rotation_holds_no_claim_and_loses_nothing() -> None:
    """Wherever it is cancelled."""

    async def main() -> None:
        for count in range(1, 30):
            inner = MemoryStore()
            await EncryptedStore(inner, OLD).put("k", b"data")
            store = EncryptedStore(inner, [NEW, OLD])
            rotating = asyncio.ensure_future(store.rotate())
            await ticks(count)
            rotating.cancel()
            await asyncio.wait([rotating])
            await store.aclose()
            record = await newer(store, "k")
            assert record.data == b"data"
            assert await is_free(store, "k", record.version)

    run(main())


# -- where keys come from ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        OLD,
        OLD.rstrip("="),
        OLD.replace("+", "-").replace("/", "_"),
        f"\n# made today\n{OLD}\n  # before\n{NEW},{OTHER}\n",
        OLD.encode(),
        base64.b64decode(OLD),
        [OLD],
        (base64.b64decode(OLD), NEW),
        lambda: OLD,
        lambda: [OLD, NEW],
    ],
    ids=[str(number) for number in range(10)],  # not the keys: they are new in each process
)
def test_a_key_may_be_written_in_these_ways(keys: Any) -> None:
    async def main() -> None:
        inner = MemoryStore()
        await EncryptedStore(inner, keys).put("k", b"data")
        assert await encrypted_with(inner, "k") == id_of(OLD)

    run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            "",
            "a passphrase that is long enough",
            OLD[:-5],
            OLD * 2,
            b"",
            secrets.token_bytes(31),
            [],
            [OLD, "x"],
        ),
        # As many bytes as a key has, and yet text: a passphrase, and the output of `openssl rand -hex 16`.
        *(b"a passphrase that is long enough", secrets.token_hex(16).encode()),
    ],
    ids=[str(number) for number in range(10)],
)
def test_what_is_not_a_key_is_an_error_that_does_not_show_it(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"[Ee]ncryption key") as caught:
        EncryptedStore(MemoryStore(), wrong)
    _shows_no_key(caught.value, "passphrase", OLD[:20])


def test_a_key_file_of_text_with_the_length_of_a_key_is_no_raw_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("a passphrase that is long enough")
    assert path.stat().st_size == 32

    async def main() -> None:
        store = EncryptedStore(MemoryStore(), Keys.file(path))
        with pytest.raises(StoreUnavailable, match=r"32 random bytes in base64.*openssl rand") as caught:
            await store.put("k", b"data")
        _shows_no_key(caught.value, "passphrase")

    run(main())


def test_a_new_key_is_one_and_a_different_one_each_time() -> None:
    made = {EncryptedStore.new_key() for _ in range(10)}
    assert len(made) == 10
    assert {len(base64.b64decode(each)) for each in made} == {32}


def test_a_key_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """Before each claim and each write, and when a record names a key that is not known."""

    async def main() -> None:
        path, inner = tmp_path / "keys", MemoryStore()
        path.write_text(OLD)
        store = EncryptedStore(inner, Keys.file(path))
        await store.put("k", b"1")
        path.write_text(f"{NEW}\n{OLD}\n")
        await store.put("k", b"2")
        assert await encrypted_with(inner, "k") == id_of(NEW)
        record = await newer(store, "k")
        path.write_text(f"{OTHER} {NEW}")
        await (await claimed(store, "k", record.version)).commit(b"3")
        assert await encrypted_with(inner, "k") == id_of(OTHER)
        await EncryptedStore(inner, OLD).put("k", b"4")
        path.write_text(OLD)
        assert (await newer(store, "k")).data == b"4"

    run(main())


def test_a_crowd_reads_a_key_file_a_few_times_and_never_in_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        path, reads = tmp_path / "keys", []
        path.write_text(OLD)
        real = os.open

        def counted(name: Any, *rest: Any, **more: Any) -> int:
            if name == path:
                reads.append(threading.get_ident())
            return real(name, *rest, **more)

        store = EncryptedStore(MemoryStore(), Keys.file(path))
        monkeypatch.setattr(os, "open", counted)
        await asyncio.gather(*(store.put(str(number), b"") for number in range(200)))
        assert 1 <= len(reads) <= 2
        assert threading.get_ident() not in reads

    run(main())


@pytest.mark.parametrize(
    "problem", ["missing", "a directory", "a pipe", "empty", "not a key", "for everyone"]
)
def test_a_key_file_that_cannot_be_used_is_a_clear_error(problem: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    if problem == "a directory":
        path.mkdir()
    elif problem == "a pipe":
        os.mkfifo(path)
    elif problem != "missing":
        path.write_text({"empty": "", "not a key": "hunter2"}.get(problem, OLD))
        path.chmod(0o666 if problem == "for everyone" else 0o600)

    async def main() -> None:
        store = EncryptedStore(MemoryStore(), Keys.file(path))
        kind = StoreInsecure if problem == "for everyone" else StoreUnavailable
        with pytest.raises(kind, match=str(path)) as caught:
            await store.put("k", b"data")
        _shows_no_key(caught.value, "hunter2", OLD)

    run(main())


def test_a_function_is_called_again_after_a_minute_or_for_a_missing_key() -> None:
    """Whether it is async, or blocks and runs in a thread."""

    async def main(kind: str) -> None:
        clock, calls, keys = FakeClock(), [], [OLD]

        def blocking() -> list[str]:
            calls.append(threading.get_ident())
            return keys

        async def asynchronous() -> list[str]:
            return blocking()

        inner = MemoryStore()
        store = EncryptedStore(inner, blocking if kind == "sync" else asynchronous, clock=clock)
        for _ in range(3):
            await store.put("k", b"data")
        assert len(calls) == 1
        assert (calls[0] == threading.get_ident()) is (kind == "async")
        clock.advance(61)
        await store.put("k", b"data")
        assert len(calls) == 2
        clock.advance(2)
        keys = [NEW]
        await EncryptedStore(inner, NEW).put("k", b"new")
        assert (await newer(store, "k")).data == b"new"
        assert len(calls) == 3
        await EncryptedStore(inner, OTHER).put("k", b"other")
        for _ in range(3):  # a record with an unknown key does not make us ask all the time
            with pytest.raises(StoreUnavailable):
                await store.load("k")
        assert len(calls) == 3

    for kind in ("sync", "async"):
        run(main(kind))


def test_a_function_that_fails_or_hangs_is_an_error() -> None:
    async def main() -> None:
        def fail() -> str:
            raise RuntimeError("the vault is sealed")

        with pytest.raises(StoreUnavailable, match=r"function .*fail\): RuntimeError") as caught:
            await EncryptedStore(MemoryStore(), fail).put("k", b"")
        assert isinstance(caught.value.__cause__, RuntimeError)
        clock, asked = FakeClock(), asyncio.Event()

        async def hang() -> str:
            asked.set()
            await asyncio.Event().wait()
            return ""

        store = EncryptedStore(MemoryStore(), hang, clock=clock)
        waiting = asyncio.ensure_future(store.claim("k", seen=None, timeout=0))
        await asked.wait()
        clock.advance(6)
        with pytest.raises(StoreUnavailable, match=r"cannot be read .* within 5 s"):
            await waiting
        for wrong in (lambda: 7, lambda: "", lambda: "hunter2"):
            with pytest.raises(StoreUnavailable) as caught:
                await EncryptedStore(MemoryStore(), wrong).put("k", b"")  # type: ignore[arg-type]
            _shows_no_key(caught.value, "hunter2")

    run(main())


def test_keys_that_hang_hold_a_few_threads_however_many_ask() -> None:
    gate, clock = threading.Event(), FakeClock()

    def hang() -> str:
        gate.wait(60)
        return NEW

    async def main() -> None:
        store = EncryptedStore(MemoryStore(), hang, clock=clock)
        waiting = []
        for _ in range(50):
            waiting.append(await started(store.put("k", b"data")))
            clock.advance(1)
        await ticks()
        assert waiting[0].done()
        assert sum(each.name == "tokensession-keys" for each in threading.enumerate()) <= 4
        gate.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (await store.put("k", b"data")).data == b"data"
        await store.aclose()

    run(main())


def test_a_write_that_fails_after_its_caller_was_cancelled_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Inner(MemoryStore):
        async def put(self, *_: Any, **__: Any) -> Record:
            await gate.wait()
            raise StoreUnavailable("The disk is full.")

    gate = asyncio.Event()

    async def main() -> None:
        store = EncryptedStore(Inner(), NEW)
        write = await started(store.put("k", SECRET))
        write.cancel()
        await asyncio.wait([write])
        gate.set()
        await store.aclose()
        await ticks()
        (logged,) = caplog.records
        assert logged.getMessage().startswith("A write whose caller was cancelled failed: The disk is full.")

    run(main())


def test_closing_in_a_cancelled_scope_waits_for_a_write_and_closes_the_inner_store() -> None:
    """An inner store on a server would go on renewing the claims that are held."""

    class Inner(MemoryStore):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    async def main() -> None:
        asked, answer, inner = asyncio.Event(), asyncio.Event(), Inner()

        async def keys() -> str:
            asked.set()
            await answer.wait()
            return NEW

        store = EncryptedStore(inner, keys)
        put = asyncio.ensure_future(store.put("k", b"data"))
        await asked.wait()
        with CancelScope() as scope:
            scope.cancel()
            asyncio.get_running_loop().call_soon(answer.set)
            await store.aclose()
        assert inner.closed
        assert (await put).data == b"data"

    run(main())


def test_a_write_that_waits_for_its_key_is_finished_when_the_event_loop_ends() -> None:
    """`asyncio.run` cancels all tasks at its end. The caller is gone, and the data may be all there is."""
    calls = []

    async def keys() -> str:
        calls.append(asyncio.get_running_loop())
        if len(calls) == 1:
            await asyncio.Event().wait()
        return NEW

    store = EncryptedStore(MemoryStore(), keys)

    async def begin() -> None:
        put = asyncio.ensure_future(store.put("k", b"data"))
        while not calls:
            await asyncio.sleep(0)
        assert not put.done()

    async def look() -> None:
        record = await store.load("k")
        assert record is not None
        assert record.data == b"data"

    asyncio.run(begin())
    asyncio.run(look())


def test_only_keyrings_of_the_operating_system_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another backend of the package may store plain text. You may allow more by name."""
    keyring = pytest.importorskip("keyring")
    from keyring.backend import KeyringBackend
    from keyring.backends.chainer import ChainerBackend

    class Planted(KeyringBackend):
        priority = 5

        def get_password(self, service: str, username: str) -> str | None:
            return OLD if (service, username) == ("app", "keys") else None

        def set_password(self, service: str, username: str, password: str) -> None:
            raise NotImplementedError

    name = f"{Planted.__module__}.{Planted.__qualname__}"

    async def main() -> None:
        for current in (Planted(), ChainerBackend()):
            monkeypatch.setattr(ChainerBackend, "backends", [Planted()], raising=False)
            monkeypatch.setattr(keyring, "get_keyring", lambda current=current: current)
            inner = MemoryStore()
            with pytest.raises(StoreUnavailable, match="may store plain text") as caught:
                await EncryptedStore(inner, Keys.keyring("app", "keys")).put("k", b"")
            assert name in str(caught.value)
            allowed = EncryptedStore(inner, Keys.keyring("app", "keys", backends=[name]))
            await allowed.put("k", b"")
            assert await encrypted_with(inner, "k") == id_of(OLD)
            with pytest.raises(StoreUnavailable, match="no such entry"):
                await EncryptedStore(inner, Keys.keyring("app", "other", backends=[name])).put("k", b"")

    run(main())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Keys.env(OLD.replace("+", "A").replace("/", "A").rstrip("=")),
        lambda: Keys.env("NOT A NAME"),
        lambda: Keys.env(""),
        lambda: Keys.file(OLD),
        lambda: Keys.keyring("app", OLD),
        lambda: EncryptedStore("sqlite:///tokens.db", OLD),  # type: ignore[arg-type]
    ],
)
def test_a_key_in_place_of_its_name_is_an_error_at_once(make: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert OLD[:20] not in str(caught.value)


# -- no key is shown --------------------------------------------------------------------------------------


def _shows_no_key(error: BaseException, *keys: str) -> None:
    """Neither the error, nor a traceback of it with the locals of our frames."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = str(Path(tokensession.__file__).parent)
    frames = [frame for frame in told.stack if frame.filename.startswith(ours)]
    shown = f"{error!r} {error} {[frame.locals for frame in frames]}"
    assert not [key for key in keys if key in shown]


def test_no_key_and_no_data_is_in_a_repr_a_pickle_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setenv("TOKEN_KEYS", f"{NEW} {OLD}")
        store = EncryptedStore(SQLiteStore(tmp_path / "t.db"), Keys.env("TOKEN_KEYS"))
        record = await store.put("k", SECRET)
        claim = await claimed(store, "k", record.version)
        shown = f"{store!r} {claim!r} {store._ring.source!r} {store._ring._ring!r}"
        content = pickle.dumps(store)
        raw = base64.b64decode(NEW)
        assert not [key for key in (NEW, OLD, SECRET.decode(), str(raw)) if key in shown]
        assert not [key for key in (NEW.encode(), raw, SECRET) if key in content]
        copied = pickle.loads(content)
        assert await copied.load("k") == record
        await claim.abandon()
        with pytest.raises(Superseded) as caught:
            await store.put("k", SECRET, expect=None)
        _shows_no_key(caught.value, NEW, OLD, SECRET.decode())
        for each in (store, copied):
            await each.aclose()

    run(main())


def keys_of_a_module() -> str:
    """A function that a pickle refers to by its name."""
    return OLD


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_store_that_may_hold_a_key_can_be_neither_pickled_nor_copied(copied: Any, tmp_path: Path) -> None:
    class Fetch:
        def __call__(self) -> str:
            return OLD

    inner = SQLiteStore(tmp_path / "t.db")
    for keys in (OLD, Fetch(), lambda: OLD):
        with pytest.raises(TypeError, match=r"can be neither pickled nor copied|its keys cannot be pickled"):
            copied(EncryptedStore(inner, keys))
    assert copied(EncryptedStore(inner, keys_of_a_module))
    with pytest.raises(TypeError, match="MemoryStore can be neither"):
        pickle.dumps(EncryptedStore(MemoryStore(), keys_of_a_module))


# -- the rest ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("encrypted+sqlite:////t.db?key_env=TOKEN_KEYS", "environment variable TOKEN_KEYS"),
        ("ENCRYPTED+sqlite:////t.db?key_file=/run/my%20keys", "key file /run/my keys"),
        ("encrypted+sqlite:////t.db?key_ring=app/keys", "keyring entry 'app' of 'keys'"),
    ],
)
def test_a_url_names_the_inner_store_and_the_place_of_the_keys(url: str, shown: str) -> None:
    store = open_store(url)
    assert isinstance(store, EncryptedStore)
    assert repr(store) == "<EncryptedStore over <SQLiteStore /t.db closed>>"
    assert store._ring.source is not None
    assert store._ring.source.source == shown


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("encrypted+sqlite:///secret.db", "says it 0 times"),
        ("encrypted+sqlite:///secret.db?key_env=A&key_file=/b", "says it 2 times"),
        ("encrypted+sqlite:///secret.db?key_env=A#secret", "fragment"),
        ("encrypted+sqlite:///secret.db?key_env=A&mode=secret", "takes no options"),
        ("encrypted+sqlite:///secret.db?key_env=", "name of an environment variable"),
        ("encrypted+sqlite:///secret.db?key_ring=secret", "a name in the keyring"),
        ("encrypted+nothing://user:secret@host?key_env=A", "No store is registered"),
        ("encrypted:sqlite", "No store is registered"),
    ],
)
def test_an_invalid_url_is_an_error_that_does_not_repeat_it(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_other_options_are_left_to_the_inner_store(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    from tokensession.stores import urls

    def foreign(scheme: str, url: str) -> Store:
        seen.append(url)
        return MemoryStore()

    monkeypatch.setattr(urls, "_open_foreign", foreign)
    open_store("encrypted+acme://h/1?ssl=a%26b&key_env=A&x=1")
    assert seen == ["acme://h/1?ssl=a%26b&x=1"]


def test_a_forked_child_learns_what_the_inner_store_says(tmp_path: Path) -> None:
    """A memory store belongs to its parent; an SQLite store says nothing, and may be used."""
    memory = EncryptedStore(MemoryStore(), OLD)
    asyncio.run(memory.put("k", b"data"))
    assert not memory.inherited("k")
    assert not EncryptedStore(SQLiteStore(tmp_path / "t.db"), OLD).inherited("k")
    child = os.fork()
    if child == 0:
        os._exit(0 if memory.inherited("k") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_a_claim_says_is_what_the_inner_claim_says() -> None:
    async def main() -> None:
        class Inner:
            current, interrupted, listening = None, 7.0, 3.0
            sent: ClassVar[list[float]] = []

            async def sending(self, *, listening: float = 0.0) -> None:
                self.sent.append(listening)
                raise StoreUnavailable("It was lost.")

        class Leases(MemoryStore):
            async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
                return Inner()

        claim = await claimed(EncryptedStore(Leases(), OLD), "k")
        assert (claim.interrupted, claim.listening) == (7.0, 3.0)
        with pytest.raises(StoreUnavailable, match="It was lost"):
            await claim.sending(listening=5)
        assert Inner.sent == [5]

    run(main())


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("stores.Keys", set()),
        ("stores.EncryptedStore.new_key()", set()),
        ("stores.EncryptedStore(stores.MemoryStore(), lambda: '')", {"cryptography"}),
    ],
)
def test_cryptography_is_imported_with_the_first_encrypted_store(statement: str, loaded: set[str]) -> None:
    program = (
        f"import sys; from tokensession import stores; {statement}; "
        "print(*{'cryptography', 'keyring'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == loaded


@pytest.mark.parametrize(("package", "extra"), [("cryptography", "encryption"), ("keyring", "keyring")])
def test_a_missing_extra_is_an_error_that_says_how_to_install_it(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        await EncryptedStore(MemoryStore(), Keys.keyring("app", "keys")).put("k", b"")

    for name in [each for each in sys.modules if each.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        (ConfigurationError, StoreUnavailable), match=rf"pip install 'tokensession\[{extra}\]'"
    ):
        run(main())
