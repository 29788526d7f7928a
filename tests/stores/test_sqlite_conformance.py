"""SQLiteStore keeps the contract."""

from __future__ import annotations

from pathlib import Path

import _backends

from tokensession.testing.conformance.backend import Backend
from tokensession.testing.conformance import StoreConformance


class TestSQLiteStore(StoreConformance):
    """Every promise of the suite."""

    def make_backend(self, directory: Path) -> Backend:
        return _backends.sqlite(directory)
