"""Stores pickle as configuration: what a spawned process gets is a new store over the same files."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from _store_helpers import run

from tokensession.clock import SystemClock
from tokensession.stores import FileStore, MemoryStore, Store, open_store
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import claimed, is_free


def pickled(store: Any) -> Any:
    return pickle.loads(pickle.dumps(store))


@pytest.mark.parametrize("copied", [pickled, copy.copy, copy.deepcopy])
def test_k46_a_pickled_or_copied_store_is_a_new_closed_one_over_the_same_files(
    copied: Any, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has neither the thread nor the claims of the original, and works beside it."""
    monkeypatch.chdir(tmp_path)
    store = kind("tokens")
    record = run(store.put("k", b"data"))
    claim = run(claimed(store, "k", record.version))
    threads = threading.active_count()
    monkeypatch.chdir("/")
    other = copied(store)
    assert (type(other), repr(other)) == (kind, f"<{kind.__name__} {tmp_path / 'tokens'} closed>")
    assert threading.active_count() == threads
    assert run(other.load("k")) == record
    assert not run(is_free(other, "k", record.version))
    run(claim.abandon())
    assert run(is_free(other, "k", record.version))
    run(other.aclose())
    run(store.aclose())
    assert list(Path("/").glob("tokens*")) == []


def test_k46_a_store_that_is_closed_or_in_use_pickles_to_the_same_bytes(kind: Any, tmp_path: Path) -> None:
    """They hold the path and the clock, and nothing of what is stored."""
    store = kind(tmp_path / "tokens")
    before = pickle.dumps(store)
    run(store.put("k", b"a secret"))
    assert pickle.dumps(store) == before
    run(store.aclose())
    assert pickle.dumps(store) == before
    assert b"secret" not in before


def test_k46_a_clock_that_cannot_be_pickled_is_a_clear_error(kind: Any, tmp_path: Path) -> None:
    """One that can be is kept."""

    class LocalClock(SystemClock):
        pass

    assert pickled(kind(tmp_path / "t", clock=FakeClock(boot=5.0)))._clock.boot() == 5.0
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=rf"{kind.__name__} can be neither .* its clock \(LocalClock\)"):
            copied(kind(tmp_path / "t", clock=LocalClock()))


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_k46_a_memory_store_can_be_neither_pickled_nor_copied(copied: Any) -> None:
    """The error says why, and what to use."""
    with pytest.raises(TypeError, match=r"belong to one process\. Use SQLiteStore or FileStore"):
        copied(MemoryStore())


def work(store: Store, url: str, number: int, answers: Any) -> None:
    """In a spawned process: commit under the inherited store's claim, and read through the URL."""

    async def main() -> None:
        claim = await claimed(store, f"k{number}")
        await claim.sending()
        record = await claim.commit(b"by a spawned process")
        await store.aclose()
        other = open_store(url)
        assert await other.load(f"k{number}") == record
        await other.aclose()
        answers.put(record.version)

    asyncio.run(main())


def test_k46_spawned_processes_use_the_store_that_they_are_given(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    url = path.as_uri() if kind is FileStore else f"sqlite:///{path}"
    context = multiprocessing.get_context("spawn")
    store, answers = kind(path), context.Queue()
    run(store.put("other", b"data"))
    workers = [context.Process(target=work, args=(store, url, number, answers)) for number in range(2)]
    for worker in workers:
        worker.start()
    versions = {answers.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    records = [run(store.load(f"k{number}")) for number in range(2)]
    assert {record.version for record in records} == versions
    run(store.aclose())
