"""Claims that no one can end any more, and many claims that end in every way: none stays held."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _store_helpers import descriptors

from tokensession.errors import StoreUnavailable, Superseded
from tokensession.stores import FileStore, MemoryStore, SQLiteStore
from tokensession.testing.conformance.backend import claimed, is_free, ticks

Ours = MemoryStore | FileStore | SQLiteStore


@pytest.fixture(params=["memory", "file", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Ours]:
    made: dict[str, Callable[[], Ours]] = {
        "memory": MemoryStore,
        "file": lambda: FileStore(tmp_path / "tokens"),
        "sqlite": lambda: SQLiteStore(tmp_path / "tokens.db"),
    }
    return made[request.param]


@pytest.fixture
def store(make: Callable[[], Ours]) -> Iterator[Ours]:
    store = make()
    yield store
    asyncio.run(store.aclose())


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


def test_an_orphaned_claim_is_taken_over_and_counts_as_interrupted(
    store: Ours, make: Callable[[], Ours]
) -> None:
    """Its loop was closed by hand, and it is still referenced; this store object takes over, or another."""
    loop = asyncio.new_event_loop()
    orphaned = loop.run_until_complete(claimed(store, "k"))
    loop.run_until_complete(orphaned.sending())
    other = store if isinstance(store, MemoryStore) else make()

    async def main() -> None:
        assert not await is_free(other, "k"), "its loop may still run"
        loop.close()
        claim = await claimed(other, "k", timeout=0)
        assert claim.interrupted is not None
        with pytest.raises(StoreUnavailable, match="This claim has ended"):
            await orphaned.sending()
        await orphaned.abandon()
        assert not await is_free(other, "k"), "an orphaned claim does not release the next one"
        record = await claim.commit(b"data")
        with pytest.raises(Superseded):
            await orphaned.commit(b"late")
        claim = await claimed(store, "k", record.version)
        assert claim.interrupted is None
        await claim.abandon()
        await other.aclose()

    run(main())


def test_a_sign_in_makes_an_interruption_irrelevant(store: Ours) -> None:
    """The interrupted request was sent with an older credential. A superseded commit shows that."""

    async def leave() -> Any:
        claim = await claimed(store, "k")
        await claim.sending()
        return claim

    orphaned = asyncio.run(leave())

    async def main() -> None:
        claim = await claimed(store, "k")
        assert claim.interrupted is not None
        signed_in = await store.put("k", b"signed in")
        with pytest.raises(Superseded):
            await claim.commit(b"data")
        assert claim.interrupted is not None, "it was when this claim was granted"
        await claim.abandon()
        claim = await claimed(store, "k", signed_in.version)
        assert claim.interrupted is None
        await claim.abandon()
        await orphaned.abandon()

    run(main())


def test_waiters_of_a_closed_loop_hold_nothing(store: Ours) -> None:
    """Even if all of them are still referenced."""
    loop = asyncio.new_event_loop()
    claim = loop.run_until_complete(claimed(store, "k"))
    waiters = [loop.create_task(claimed(store, "k")) for _ in range(4)]
    loop.run_until_complete(ticks())
    left = asyncio.all_tasks(loop)
    loop.close()

    async def main() -> None:
        following = await claimed(store, "k")
        await claim.abandon()
        assert not await is_free(store, "k")
        await following.abandon()

    run(main())
    assert not any(waiter.done() for waiter in waiters)
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
def test_a_claim_that_is_collected_is_released(kind: Any, sent: bool, tmp_path: Path) -> None:
    """Its task was destroyed. Its mark stays, because its request may be on the way."""

    async def main() -> None:
        store, other = kind(tmp_path / "tokens"), kind(tmp_path / "tokens")
        claim = await claimed(store, "k")
        if sent:
            await claim.sending()
        del claim
        gc.collect()
        following = await claimed(other, "k", timeout=0)
        assert (following.interrupted is not None) is sent
        await following.abandon()
        await store.aclose()
        await other.aclose()

    run(main())


def test_no_claim_stays_held_however_it_ends(store: Ours) -> None:
    """A thousand claims end in eight ways, and no descriptor is left open."""

    async def one(number: int) -> None:
        key = f"k{number}"
        end = number % 8
        if end == 0:
            task = asyncio.ensure_future(claimed(store, key))
            await ticks(number % 20)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                await task.result().abandon()
            return
        claim = await claimed(store, key)
        if end == 1:
            await claim.commit(b"data")
        elif end == 2:
            await store.put(key, b"newer")
            with pytest.raises(Superseded):
                await claim.commit(b"data")
            await claim.abandon()
        elif end == 3:
            await claim.abandon()
            await claim.abandon()
        elif end in (4, 5):
            task = asyncio.ensure_future(claim.commit(b"data") if end == 4 else claim.sending())
            await ticks(number % 5 + 1)
            task.cancel()
            await asyncio.wait([task])
            await claim.abandon()
        elif end == 6:
            await claim.abandon()
            await claim.commit(b"late")
        elif isinstance(store, MemoryStore):
            await claim.abandon()
        else:
            del claim  # collected, so it can no longer be ended

    async def main() -> None:
        await store.put("other", b"data")
        before = 0 if isinstance(store, MemoryStore) else await descriptors(store)
        for start in range(0, 1000, 50):
            await asyncio.gather(*[one(number) for number in range(start, start + 50)])
        gc.collect()
        for number in range(1000):
            record = await store.load(f"k{number}")
            assert await is_free(store, f"k{number}", record.version if record else None)
        if not isinstance(store, MemoryStore):
            assert await descriptors(store) <= before

    run(main())


FORKS = """
import asyncio, os, sys
from tokensession.errors import StoreUnavailable
from tokensession.stores import open_store

async def child(claim):
    try:
        await claim.sending()
    except StoreUnavailable as error:
        print("child", error.args[0], flush=True)
    await claim.abandon()

async def main():
    store = open_store(sys.argv[1])
    claim = await store.claim("k", seen=None, timeout=5)
    pid = os.fork()
    if pid == 0:
        asyncio.run(child(claim))
        os._exit(0)
    await asyncio.to_thread(os.waitpid, pid, 0)
    await claim.sending()
    print("parent", (await claim.commit(b"data")).data)
    await store.aclose()

asyncio.run(main())
"""


@pytest.mark.parametrize("name", ["memory", "file", "sqlite"])
def test_a_claim_of_the_parent_sends_nothing_in_a_forked_child(name: str, tmp_path: Path) -> None:
    """Both would send the same refresh token. The child does not end it either."""
    url = {"memory": "memory:", "file": f"file://{tmp_path}/t", "sqlite": f"sqlite:///{tmp_path}/t.db"}[name]
    done = subprocess.run([sys.executable, "-c", FORKS, url], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "child This claim has ended, so no token request may be sent under it.",
        "parent b'data'",
    ], done.stderr


FEW_DESCRIPTORS = """
import asyncio, resource, sys
from tokensession.errors import StoreUnavailable
from tokensession.stores import open_store

async def main():
    store = open_store(sys.argv[1])
    await store.put("k", b"data")
    await (await store.claim("j", seen=None, timeout=5)).abandon()
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    claims = []
    try:
        while True:
            claims.append(await store.claim(str(len(claims)), seen=None, timeout=5))
    except StoreUnavailable as error:
        print(error)
    for claim in claims:
        await claim.commit(b"data")
    print(len(claims) > 5, len(await store.keys()) - len(claims))
    await store.aclose()

asyncio.run(main())
"""


@pytest.mark.parametrize("name", ["file", "sqlite"])
def test_too_many_claims_for_the_limit_of_open_files_fail_at_the_claim(name: str, tmp_path: Path) -> None:
    """The error names the limit, and all claims that were granted can be committed."""
    url = {"file": f"file://{tmp_path}/t", "sqlite": f"sqlite:///{tmp_path}/t.db"}[name]
    command = [sys.executable, "-c", FEW_DESCRIPTORS, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    error, counts = done.stdout.splitlines() or ["", done.stderr]
    assert "Too many open files" in error
    assert "ulimit -n" in error
    assert counts == "True 1", done.stderr
