"""The conformance suite on RedisStore, over Redis and over Valkey.

The tests share one server, and each has a prefix of its own. Leases of two seconds make takeovers quick.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import _backends
import _redis_server
import pytest

from benchmarks.servers import RedisServer
from tokensession.testing.conformance import StoreConformance
from tokensession.testing.conformance.backend import Backend


@pytest.fixture(scope="module", params=_redis_server.KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(request.param) as started:
        yield started


class TestRedisStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _use(self, server: RedisServer) -> None:
        self._server = server

    def make_backend(self, directory: Path) -> Backend:
        return _backends.redis(self._server)
