"""The conformance suite on SQLiteStore."""

from __future__ import annotations

from pathlib import Path

import _backends

from tokensession.testing.conformance import StoreConformance
from tokensession.testing.conformance.backend import Backend


class TestSQLiteStore(StoreConformance):
    def make_backend(self, directory: Path) -> Backend:
        return _backends.sqlite(directory)
