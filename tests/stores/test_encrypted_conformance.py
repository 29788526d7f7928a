"""The conformance suite on EncryptedStore, over SQLite, memory and Redis.

Over the other stores, which take the same ways through it:

    ENCRYPTED_OVER=file,valkey,postgres,pgbouncer .venv/bin/pytest tests/stores/test_encrypted_conformance.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import _backends
import _postgres_server
import pytest

from benchmarks.servers import RedisServer
from tokensession.clock import Clock
from tokensession.stores import EncryptedStore, Keys, MemoryStore
from tokensession.stores.protocol import Record
from tokensession.testing.conformance import StoreConformance
from tokensession.testing.conformance.backend import Backend

OTHERS = [name for name in os.environ.get("ENCRYPTED_OVER", "").split(",") if name]


def opener(backend: Backend, keys: Keys) -> Callable[..., EncryptedStore]:
    def opened(clock: Clock | None = None) -> EncryptedStore:
        # The keys are read in real time: the suite's clock may run faster than a thread can.
        return EncryptedStore(backend.open(clock=clock) if clock else backend.open(), keys)

    return opened


def encrypted(inner: Backend, directory: Path) -> Backend:
    """The same backend with encrypted records."""
    path = directory / "keys"
    path.write_text(EncryptedStore.new_key())
    path.chmod(0o600)
    keys, second_names = Keys.file(path), inner.second_names
    return replace(
        inner,
        open=opener(inner, keys),
        url=f"encrypted+{inner.url}{'&' if '?' in inner.url else '?'}key_file={path}" if inner.url else None,
        second_names=(lambda: [EncryptedStore(each, keys) for each in second_names()])
        if second_names
        else None,
    )


class TestEncryptedOverSQLite(StoreConformance):
    def make_backend(self, directory: Path) -> Backend:
        return encrypted(_backends.sqlite(directory), directory)


class TestEncryptedOverMemory(StoreConformance):
    def make_backend(self, directory: Path) -> Backend:
        inner = _backends.memory(directory)
        store = inner.open()
        assert isinstance(store, MemoryStore)

        def damage(key: str) -> None:
            record = store._records[key]
            data = bytearray(record.data)
            data[len(data) // 2] ^= 1
            store._records[key] = Record(record.version, bytes(data))

        def move(source: str, target: str) -> None:
            store._records[target] = store._records[source]
            store._written[target] = store._written[source]
            store._writers[target] = store._writers[source]

        return encrypted(replace(inner, damage=damage, move=move), directory)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer("redis") as started:
        yield started


class TestEncryptedOverRedis(StoreConformance):
    @pytest.fixture(autouse=True)
    def _use(self, redis: RedisServer) -> None:
        self._server = redis

    def make_backend(self, directory: Path) -> Backend:
        return encrypted(_backends.redis(self._server), directory)


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Backend]]:
    match request.param:
        case "file":
            yield _backends.file
        case "valkey":
            with RedisServer("valkey") as started:
                yield lambda _: _backends.redis(started)
        case "postgres":
            yield lambda _: _postgres_server.backend(_postgres_server.shared_server())
        case "pgbouncer":
            url = _postgres_server.shared_bouncer().url
            yield lambda _: _postgres_server.backend(_postgres_server.shared_server(), url)


if OTHERS:

    class TestEncryptedOverOthers(StoreConformance):
        @pytest.fixture(autouse=True)
        def _use(self, other: Callable[[Path], Backend]) -> None:
            self._other = other

        def make_backend(self, directory: Path) -> Backend:
            return encrypted(self._other(directory), directory)
