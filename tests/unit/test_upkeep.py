"""What an operator does to a store: `prune` deletes what no sign-in needs, and `sign_out` signs a key out."""

from __future__ import annotations

from typing import Any

import pytest
from _loop import run
from _states import (
    CODE,
    CONFIGURED,
    CURRENT,
    DAY,
    FRESH,
    NEWLY_CONFIGURED,
    NOW,
    failures,
    probable,
    rejection,
    state,
    unknown,
)

from tokensession import prune, sign_out
from tokensession._refresh.state import TokenState, decode, encode
from tokensession.errors import ConfigurationError, StoreUnavailable
from tokensession.providers.protocol import Credential
from tokensession.stores import EncryptedStore, MemoryStore
from tokensession.stores.protocol import Record
from tokensession.testing import FakeClock

TOMBSTONE = TokenState(number=2, configured=CONFIGURED.fingerprint, signed_out=True)
DEAD = state(FRESH, rejections=(rejection(),))
NEXT, BEFORE = Credential("refresh_token", "rt-next"), Credential("refresh_token", "rt-before")


class Shelf(MemoryStore):
    """A store in which time passes as the test says."""

    def __init__(self) -> None:
        self.time = FakeClock(wall=NOW.wall, boot=NOW.boot)
        super().__init__(clock=self.time)

    async def keep(self, **known: TokenState | bytes) -> None:
        """Store these, each under its name, and let 31 days pass."""
        for key, each in known.items():
            await self.put(key, each if isinstance(each, bytes) else encode(each, NOW))
        self.time.advance(31 * DAY)


@pytest.mark.parametrize(
    ("known", "deleted"),
    [
        (TOMBSTONE, True),
        (DEAD, True),
        (state(rejections=(rejection(lost=True),)), True),
        # Its refresh token may still be good, however long no one has used it.
        (state(), False),
        (state(failures=unknown(count=99)), False),
        (state(failures=failures(count=99)), False),
        (state(rejections=(probable(),)), False),
        # Another credential was rejected: a configuration that was rolled out and back, say.
        (state(rejections=(rejection(NEWLY_CONFIGURED),)), False),
        (state(rejections=(rejection(CONFIGURED),)), False),
        # The access token is valid, or may be.
        (state(lifetime=40 * DAY, rejections=(rejection(),)), False),
        (state(lifetime=None, rejections=(rejection(),)), False),
        # Either of two refresh tokens may work.
        (state(refresh="rt-next", previous="rt-before", rejections=(rejection(NEXT),)), False),
        (state(refresh="rt-next", previous="rt-before", rejections=(rejection(BEFORE),)), False),
        (
            state(refresh="rt-next", previous="rt-before", rejections=(rejection(NEXT), rejection(BEFORE))),
            True,
        ),
        # Without a refresh token, and without a rejection, there may be a configured one.
        (state(refresh=None), False),
        # No token has come of it.
        (TokenState(failures=failures(CONFIGURED)), False),
        (TokenState(configured=CODE.fingerprint, rejections=(rejection(CODE),)), True),
        (TokenState(configured=CODE.fingerprint, rejections=(rejection(CURRENT),)), False),
        (TokenState(), False),
    ],
)
def test_only_a_sign_out_or_a_credential_that_was_rejected_for_good_is_deleted(
    known: TokenState, deleted: bool
) -> None:
    async def main() -> None:
        store = Shelf()
        await store.keep(account=known)
        assert await prune(store) == (["account"] if deleted else [])
        assert (await store.load("account") is None) is deleted

    run(main())


@pytest.mark.parametrize(
    ("options", "age", "deleted"),
    [
        ({}, 29.9 * DAY, False),
        ({}, 30 * DAY, True),
        ({"older_than": 7 * DAY}, 7 * DAY, True),
        ({"older_than": 365 * DAY}, 31 * DAY, False),
    ],
)
def test_what_has_changed_lately_stays(options: dict[str, float], age: float, deleted: bool) -> None:
    """Within 30 days, or as you say. A process that remembers what was there before would write it back."""

    async def main() -> None:
        store = Shelf()
        await store.put("account", encode(TOMBSTONE, NOW))
        store.time.advance(age)
        assert await prune(store, **options) == (["account"] if deleted else [])

    run(main())


def test_the_deleted_keys_are_returned_and_what_cannot_be_read_stays() -> None:
    """It may be the record of a newer version, or a backup may repair it."""

    async def main() -> None:
        store = Shelf()
        await store.keep(b=TOMBSTONE, a=DEAD, damaged=b"\xc1", used=state(), c=TOMBSTONE)
        assert await prune(store) == ["a", "b", "c"]
        assert await store.keys() == ["damaged", "used"]
        assert await prune(store) == []

    run(main())


def test_what_cannot_be_decrypted_stays_and_does_not_end_the_work() -> None:
    """One record has the key of another deployment, and one was never encrypted."""

    async def main() -> None:
        shelf = Shelf()
        ours, theirs = (EncryptedStore(shelf, EncryptedStore.new_key()) for _ in range(2))
        for store, key in ((theirs, "a"), (shelf, "b"), (ours, "c")):
            await store.put(key, encode(TOMBSTONE, NOW))
        shelf.time.advance(31 * DAY)
        assert await prune(ours) == ["c"]
        assert await shelf.keys() == ["a", "b"]

    run(main())


@pytest.mark.parametrize("meanwhile", ["sign-in", "deletion"])
def test_a_record_that_changes_meanwhile_stays_as_it_is(meanwhile: str) -> None:
    """A sign-in between the look and the deletion is not lost."""

    class Busy(Shelf):
        async def load(self, key: str) -> Record | None:
            record = await super().load(key)
            if key == "account":
                if meanwhile == "sign-in":
                    await self.put(key, encode(state(number=3), NOW))
                else:
                    await self.delete(key)
            return record

    async def main() -> None:
        store = Busy()
        await store.keep(account=TOMBSTONE, other=TOMBSTONE)
        assert await prune(store) == ["other"]
        assert await store.keys() == (["account"] if meanwhile == "sign-in" else [])

    run(main())


def test_a_record_that_is_gone_before_it_is_read_is_skipped() -> None:
    class Ghosts(Shelf):
        async def keys(self) -> list[str]:
            return ["ghost", *await super().keys()]

    async def main() -> None:
        store = Ghosts()
        await store.keep(account=TOMBSTONE)
        assert await prune(store) == ["account"]

    run(main())


def test_a_store_that_fails_is_an_error() -> None:
    class Broken(Shelf):
        async def load(self, key: str) -> Record | None:
            raise StoreUnavailable("The disk is gone.")

    async def main() -> None:
        store = Broken()
        await store.keep(account=TOMBSTONE)
        with pytest.raises(StoreUnavailable):
            await prune(store)

    run(main())


@pytest.mark.parametrize("wrong", [0, -1, 7 * DAY - 1, float("nan"), "30 days", None, True, [30]], ids=repr)
def test_less_than_a_week_is_an_error(wrong: Any) -> None:
    """For so long a process may write back what it remembers."""

    async def main() -> None:
        store = Shelf()
        await store.keep(account=TOMBSTONE)
        with pytest.raises(ConfigurationError, match="at least 604800 s"):
            await prune(store, older_than=wrong)
        assert await store.keys() == ["account"]

    run(main())


@pytest.mark.parametrize("work", [prune, lambda store: sign_out(store, "k")], ids=["prune", "sign out"])
@pytest.mark.parametrize("wrong", ["sqlite:///tokens.db", None, MemoryStore])
def test_what_is_not_a_store_is_an_error(wrong: Any, work: Any) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match="must be a store"):
            await work(wrong)

    run(main())


def test_a_sign_out_remembers_what_must_not_be_sent_again() -> None:
    async def main() -> None:
        shelf = Shelf()
        await shelf.keep(k=state(redeemed=(("a code", NOW.boot),), superseded=("old",)))
        assert await sign_out(shelf, "k")
        record = await shelf.load("k")
        assert record is not None
        left = decode(record.data, NOW, age=record.age)
        assert (left.signed_out, left.token, left.configured) == (True, None, CONFIGURED.fingerprint)
        assert left.number > 1
        assert left.has_redeemed("a code")
        assert left.superseded == ("old",)

    run(main())
