"""The conformance suite on PostgresStore: directly, and behind pgbouncer in transaction mode."""

from __future__ import annotations

from pathlib import Path

import _postgres_server as postgres

from tokensession.testing.conformance import StoreConformance
from tokensession.testing.conformance.backend import Backend


class TestPostgresStore(StoreConformance):
    def make_backend(self, directory: Path) -> Backend:
        return postgres.backend(postgres.shared_server())


class TestPostgresStoreBehindPgBouncer(StoreConformance):
    def make_backend(self, directory: Path) -> Backend:
        return postgres.backend(postgres.shared_server(), postgres.shared_bouncer().url)
