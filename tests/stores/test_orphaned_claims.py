"""Claims that no one can end any more, and many claims that end in every way: none stays held."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from _store_helpers import Local, descriptors, printed, run

from benchmarks.servers import RedisServer
from tokensession.errors import StoreUnavailable, Superseded
from tokensession.stores import Claim, MemoryStore, open_store
from tokensession.testing.conformance.backend import claimed, is_free, ticks

Ours = MemoryStore | Local

URLS = {"memory": "memory:", "file": "file://{}/t", "sqlite": "sqlite:///{}/t.db"}


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return URLS[request.param].format(tmp_path)


local = pytest.mark.parametrize("url", ["file", "sqlite"], indirect=True)


@pytest.fixture
def store(url: str) -> Iterator[Ours]:
    store = open_store(url)
    yield store
    run(store.aclose())


def test_an_orphaned_claim_is_taken_over_and_counts_as_interrupted(url: str, store: Ours) -> None:
    """Its loop was closed by hand, and it is still referenced; this store object takes over, or another."""
    loop = asyncio.new_event_loop()
    orphaned = loop.run_until_complete(claimed(store, "k"))
    loop.run_until_complete(orphaned.sending())
    other = store if isinstance(store, MemoryStore) else open_store(url)
    assert not run(is_free(other, "k")), "its loop may still run"
    loop.close()
    claim = run(claimed(other, "k", timeout=0))
    assert claim.interrupted is not None
    with pytest.raises(StoreUnavailable, match="This claim has ended"):
        run(orphaned.sending())
    run(orphaned.abandon())
    assert not run(is_free(other, "k")), "an orphaned claim does not release the next one"
    record = run(claim.commit(b"data"))
    with pytest.raises(Superseded):
        run(orphaned.commit(b"late"))
    assert run(claimed(store, "k", record.version)).interrupted is None
    run(other.aclose())


def test_a_sign_in_makes_an_interruption_irrelevant(store: Ours) -> None:
    """The interrupted request was sent with an older credential. A superseded commit shows that."""

    async def leave() -> Claim:
        claim = await claimed(store, "k")
        await claim.sending()
        return claim

    orphaned = asyncio.run(leave())
    claim = run(claimed(store, "k"))
    assert claim.interrupted is not None
    signed_in = run(store.put("k", b"signed in"))
    with pytest.raises(Superseded):
        run(claim.commit(b"data"))
    assert claim.interrupted is not None, "it was when this claim was granted"
    run(claim.abandon())
    assert run(claimed(store, "k", signed_in.version)).interrupted is None
    run(orphaned.abandon())


def test_waiters_of_a_closed_loop_hold_nothing(store: Ours) -> None:
    """Even if all of them are still referenced."""
    loop = asyncio.new_event_loop()
    claim = loop.run_until_complete(claimed(store, "k"))
    waiters = [loop.create_task(claimed(store, "k")) for _ in range(4)]
    loop.run_until_complete(ticks())
    left = asyncio.all_tasks(loop)
    loop.close()
    following = run(claimed(store, "k"))
    run(claim.abandon())
    assert not run(is_free(store, "k"))
    run(following.abandon())
    assert not any(waiter.done() for waiter in waiters)
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]


@local
def test_a_caller_that_is_collected_while_a_thread_pool_starts_a_job_blocks_nothing(store: Ours) -> None:
    """A collection may come at any moment, also under the locks of `submit`, which cannot be taken twice."""
    loop = asyncio.new_event_loop()
    granted = store.claim("k", seen=None, timeout=0)
    task = loop.create_task(granted)
    loop.run_until_complete(asyncio.sleep(0))
    run(store.load("another"))  # jobs run in order: the claim is granted, and no one has been told
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]

    def collect() -> None:
        with concurrent.futures.thread._global_shutdown_lock:
            granted.close()

    collecting = threading.Thread(target=collect, daemon=True)
    collecting.start()
    collecting.join(30)
    assert not collecting.is_alive()
    run(claimed(store, "k"))


@local
@pytest.mark.parametrize("sent", [False, True])
def test_a_claim_that_is_collected_is_released(sent: bool, url: str, store: Ours) -> None:
    """Its task was destroyed. Its mark stays, because its request may be on the way."""
    claim, other = run(claimed(store, "k")), open_store(url)
    if sent:
        run(claim.sending())
    del claim
    gc.collect()
    assert (run(claimed(other, "k")).interrupted is not None) is sent
    run(other.aclose())


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

    run(store.put("other", b"data"))
    before = 0 if isinstance(store, MemoryStore) else run(descriptors(store))
    for start in range(0, 1000, 50):
        run(asyncio.gather(*[run.start(one(number)) for number in range(start, start + 50)]))
    gc.collect()
    for number in range(1000):
        record = run(store.load(f"k{number}"))
        assert run(is_free(store, f"k{number}", record.version if record else None))
    if not isinstance(store, MemoryStore):
        assert run(descriptors(store)) <= before


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


def test_a_claim_of_the_parent_sends_nothing_in_a_forked_child(url: str) -> None:
    """Both would send the same refresh token. The child does not end it either."""
    assert printed(FORKS, url).splitlines() == [
        "child This claim has ended, so no token request may be sent under it.",
        "parent b'data'",
    ]


@pytest.mark.parametrize("kind", RedisServer.KINDS)
def test_a_lease_of_the_parent_sends_nothing_in_a_forked_child(kind: str) -> None:
    """The child does not end it either, so the parent still may send."""
    with RedisServer(kind) as server:
        child, parent = printed(FORKS, server.url()).splitlines()
    assert child.startswith("child This claim has ended")
    assert parent == "parent b'data'"


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


@local
def test_too_many_claims_for_the_limit_of_open_files_fail_at_the_claim(url: str) -> None:
    """The error names the limit, and all claims that were granted can be committed."""
    error, counts = printed(FEW_DESCRIPTORS, url).splitlines()
    assert "Too many open files" in error
    assert "ulimit -n" in error
    assert counts == "True 1"
