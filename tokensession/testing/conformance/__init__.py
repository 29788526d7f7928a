"""The contract of `tokensession.stores.protocol` as tests, for authors of stores.

In your test file, inherit from `StoreConformance` and describe your store in one method::

    class TestMyStore(StoreConformance):
        def make_backend(self, directory: Path) -> Backend:
            return Backend(open=lambda: MyStore(directory / "db"), url=f"mystore:///{directory}/db")

Each test's name is a promise, and its docstring says more. If a field of your `Backend` is None, the tests
that need it are skipped, and the reason names the missing capability. Needs pytest and no plug-in. The tests
about files and about several processes need POSIX.

No test waits for time to pass, and none measures time.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .backend import Backend
from .claims import ClaimPromises
from .commits import CommitPromises
from .files import FilePromises
from .processes import ProcessPromises
from .records import RecordPromises

__all__ = ["Backend", "StoreConformance"]


class StoreConformance(RecordPromises, ClaimPromises, CommitPromises, ProcessPromises, FilePromises):
    """Tests for every promise of the `Store` protocol. Inherit from it, and define `make_backend`."""

    def make_backend(self, directory: Path) -> Backend:
        """An empty backend. Keep its files, if any, in this directory."""
        raise NotImplementedError

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        """A new backend for each test."""
        return self.make_backend(tmp_path)
