"""The Postgres server and the pgbouncer that tests share. See `benchmarks.servers`."""

from __future__ import annotations

import functools

from benchmarks.servers import PgBouncer, PostgresServer
from tokensession.stores import PostgresStore, open_store
from tokensession.testing.conformance.backend import Backend

LEASE = 4.0
"""Seconds. The tests wait for leases to end, so theirs is shorter than the default."""

new_table = PostgresServer.new_table


@functools.cache
def shared_server() -> PostgresServer:
    """The server that the tests of this process share. They leave it running."""
    server = PostgresServer()
    server.start()
    return server


@functools.cache
def shared_bouncer() -> PgBouncer:
    """The pooler in front of `shared_server`."""
    bouncer = PgBouncer(shared_server())
    bouncer.start()
    return bouncer


def options(table: str, **more: object) -> str:
    """The query of a store's URL."""
    return PostgresServer.query(**{"table": table, "lease": LEASE, **more})


def backend(server: PostgresServer, url: str | None = None, **more: object) -> Backend:
    """A new table of this server, through `url` (a pooler's) or directly."""
    table = new_table()
    address = (url or server.url) + options(table, **more)

    def change(statement: str) -> None:
        server.sql(statement.replace("tokens", f'"{table}"', 1))

    def literal(key: str) -> str:
        return f"sha256('\\x{key.encode().hex()}'::bytea)"

    def open_() -> PostgresStore:
        store = open_store(address)
        assert isinstance(store, PostgresStore)
        return store

    return Backend(
        open=open_,
        url=address,
        damage=lambda key: change(f"UPDATE tokens SET data = '\\x2a' WHERE id = {literal(key)}"),
        move=lambda source, target: change(
            f"WITH moved AS (DELETE FROM tokens WHERE id = {literal(source)} RETURNING *)"
            f' INSERT INTO "{table}" AS t (id, key, version, data, checksum)'
            f" SELECT {literal(target)}, '\\x{target.encode().hex()}', version, data, checksum FROM moved"
            " ON CONFLICT (id) DO UPDATE SET version = excluded.version, data = excluded.data,"
            " checksum = excluded.checksum"
        ),
        names_holder=True,
    )
