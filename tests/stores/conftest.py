"""Fixtures of the tests of stores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import _backends
import pytest
from _store_helpers import Local, run

from tokensession.stores import FileStore, SQLiteStore, open_store
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import Backend


@pytest.fixture(autouse=True)
def event_loop() -> Iterator[None]:
    """A new one for each test, which `run` uses."""
    with asyncio.Runner() as run.runner:
        yield


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.db"


@pytest.fixture(params=["file", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    made: Backend = getattr(_backends, request.param)(tmp_path)
    return made


def opened(backend: Backend) -> Iterator[Local]:
    """A store object, opened by its URL."""
    assert backend.url is not None
    store = open_store(backend.url)
    yield store
    run(store.aclose())


store = pytest.fixture(opened, name="store")
other = pytest.fixture(opened, name="other")


@pytest.fixture(params=[FileStore, SQLiteStore])
def kind(request: pytest.FixtureRequest) -> type[Local]:
    return request.param
