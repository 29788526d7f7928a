"""What the memory store does beyond the contract: its clock, several loops, no thread."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from _store_helpers import printed, run

from tokensession.errors import ClaimTimeout
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import claimed, is_free, ticks


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


def test_waiting_is_timed_by_the_given_clock(clock: FakeClock, store: MemoryStore) -> None:
    async def main() -> None:
        claim = await claimed(store, "k")
        waiter = asyncio.ensure_future(store.claim("k", seen=None, timeout=30))
        await clock.slept()
        clock.advance(29.9)
        await ticks()
        assert not waiter.done()
        clock.advance(0.2)
        with pytest.raises(ClaimTimeout, match="30 s"):
            await waiter
        await claim.abandon()
        await ticks()
        assert clock.sleepers == ()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert store._waiters == {}

    run(main())


async def send(store: MemoryStore) -> None:
    await (await claimed(store, "k")).sending()


def test_an_interruption_is_dated_by_the_boot_clock(clock: FakeClock, store: MemoryStore) -> None:
    asyncio.run(send(store))
    clock.advance(12)
    clock.step_wall(-1_000_000)
    claim = run(claimed(store, "k"))
    assert claim.interrupted == 12
    clock.advance(3)
    assert claim.interrupted == 12
    run(claim.abandon())
    assert run(claimed(store, "k")).interrupted == 15


def test_a_waiter_of_a_closed_loop_is_not_woken(store: MemoryStore) -> None:
    """Waking it would raise."""
    loop = asyncio.new_event_loop()
    claim = loop.run_until_complete(claimed(store, "k"))
    waiter = loop.create_task(store.claim("k", seen=None, timeout=30))
    loop.run_until_complete(ticks())
    # Like a program that closes its loop while tasks are running.
    pending = asyncio.all_tasks(loop)
    loop.close()
    asyncio.run(claim.abandon())
    assert store._holders == {}
    asyncio.run(store.put("k", b"data"))
    for task in pending:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    assert not waiter.done()


def test_a_holder_in_the_parent_of_a_fork_counts_as_interrupted(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(send(store))
    assert not run(is_free(store, "k"))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert run(claimed(store, "k")).interrupted is not None


def test_a_claim_timeout_says_how_long_the_claim_has_been_held(clock: FakeClock, store: MemoryStore) -> None:
    run(claimed(store, "k"))
    clock.advance(40)
    with pytest.raises(ClaimTimeout, match=r"another task of this process, for 40\.0 s"):
        run(store.claim("k", seen=None, timeout=0))


def test_it_starts_no_thread(store: MemoryStore) -> None:
    before = set(threading.enumerate())
    record = run(run(claimed(store, "k")).commit(b"data"))
    run(store.delete("k", expect=record.version))
    assert set(threading.enumerate()) <= before  # a thread of another test may be ending


def test_the_caller_may_change_its_buffer_afterwards(store: MemoryStore) -> None:
    buffer = bytearray(b"data")
    record = run(store.put("k", buffer))
    buffer[:] = b"xxxx"
    assert record.data == b"data"


FORKS = """
import asyncio, logging, os, sys
logging.disable()  # of the refresh that is refused
from tokensession import ManagedSource
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore
from tokensession.testing import ScriptedTransport, token_response

provider = OAuth2(token_url="https://id.example.com/token", client_id="c", client_secret="s",
                  refresh_token="r", rotates=sys.argv[1] == "rotating")
store = MemoryStore()

async def refresh(who):
    answers = [token_response({"access_token": f"{who}-{n}", "refresh_token": "r2", "expires_in": 3600})
               for n in range(2)]
    transport = ScriptedTransport(*answers)
    source = ManagedSource(provider, transport, store=store)
    try:
        print(who, "served", (await source.token()).access_token, flush=True)
        token = await source.refresh()
        print(who, token.access_token, "inherited" if store.inherited(source.key) else "own", flush=True)
    except Exception as error:
        print(who, type(error).__name__, "PARENT" if "fork" in str(error) else error, flush=True)
    print(who, len(transport.requests), flush=True)

asyncio.run(refresh("first"))
pid = os.fork()
if pid == 0:
    asyncio.run(refresh("child"))
    os._exit(0)
os.waitpid(pid, 0)
asyncio.run(refresh("parent"))
"""


FIRST = ["first served first-0", "first first-1 own", "first 2"]
PARENT = ["parent served first-1", "parent parent-0 own", "parent 1"]


def test_f73_a_forked_child_goes_on_with_a_refresh_token_that_works_again() -> None:
    """As behind a server that forks its workers. It starts with what was stored before the fork."""
    child = ["child served first-1", "child child-0 own", "child 1"]
    assert printed(FORKS, "permanent").splitlines() == [*FIRST, *child, *PARENT]


def test_f73_a_forked_child_does_not_send_the_parents_single_use_refresh_token() -> None:
    """Both would send it, and the provider may end the sign-in. The access token is served all the same."""
    child = ["child served first-1", "child StoreUnavailable PARENT", "child 0"]
    assert printed(FORKS, "rotating").splitlines() == [*FIRST, *child, *PARENT]


def test_f73_a_store_knows_which_records_a_forked_child_has_from_its_parent(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that its parent has the same configured credential. What the child has stored is its own."""
    run(store.put("k", b"data"))
    assert not store.inherited("k")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert store.inherited("k")
    assert store.inherited("not stored yet")
    run(store.put("k", b"signed in"))
    assert not store.inherited("k")
    run(store.delete("k"))
    assert store.inherited("k")
    assert not MemoryStore().inherited("k")
