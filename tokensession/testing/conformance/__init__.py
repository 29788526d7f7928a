"""The contract of `tokensession.stores.protocol`, as tests: what passes them is a store.

A store's own test file inherits them, and says in one method what there is to know about it::

    class TestMyStore(StoreConformance):
        def make_backend(self, directory: Path) -> Backend:
            return Backend(open=lambda: MyStore(directory / "db"), url=f"mystore:///{directory}/db")

Each name is a promise, and its docstring says more. What a kind of store cannot do, because a field of
its `Backend` is None, is skipped, and the skip names the capability. Needs pytest, and no plug-in; the
tests that use several processes, and those about files, need POSIX.

No test sleeps for time to pass, and none measures any.
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
    """Inherit from this, and define `make_backend`."""

    def make_backend(self, directory: Path) -> Backend:
        """An empty backend, in this directory if it keeps files."""
        raise NotImplementedError

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        """A backend of this test's own."""
        return self.make_backend(tmp_path)
