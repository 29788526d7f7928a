"""A Postgres server, and a pgbouncer in front of it. They run as an unprivileged user."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from pathlib import Path

from .process import NotInstalled, ServerProcess

__all__ = ["PgBouncer", "PostgresServer"]

_INSTALL = "apt-get install postgresql pgbouncer"
_CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 300
shared_buffers = 32MB
logging_collector = off
"""
_UNSAFE = "fsync = off  # the machine is not switched off, and a kill loses nothing that the kernel has"
_BOUNCER = """
[databases]
* = host=127.0.0.1 port={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 1000
default_pool_size = 20
server_login_retry = 0
"""
_numbers = itertools.count(1)


class _Address:
    """How stores reach it."""

    PASSWORD = "s3cr3t-database-password"
    port: int

    @property
    def url(self) -> str:
        """For the driver, as the superuser `postgres`."""
        return f"postgresql://postgres:{self.PASSWORD}@127.0.0.1:{self.port}/postgres"

    def store_url(self, **options: object) -> str:
        """The URL of a store, in a table that no other URL has."""
        return self.url + self.query(**options)

    @classmethod
    def query(cls, **options: object) -> str:
        """The query of that URL. With a password and without TLS, the driver reads no file."""
        query = {"sslmode": "disable", "table": cls.new_table(), **options}
        return "?" + "&".join(f"{name}={value}" for name, value in query.items())

    @staticmethod
    def new_table() -> str:
        """The name of a table that no other call has returned."""
        return f"tokens_{os.getpid()}_{next(_numbers)}"


class PostgresServer(_Address, ServerProcess):
    """A server with the database `postgres` and the superuser `postgres`.

    `auth`: "trust", or "scram-sha-256" with the password `PASSWORD`. `settings`: lines of postgresql.conf.
    `fsync`: whether it waits for the disk, as in production.
    """

    unprivileged = True

    def __init__(self, *, auth: str = "trust", settings: str = "", fsync: bool = False) -> None:
        initdb, self._postgres, self._psql = map(self.program, ("initdb", "postgres", "psql"))
        super().__init__("postgres")
        password = self.directory / "password"
        password.write_text(self.PASSWORD)
        password.chmod(0o644)
        self.data = self.directory / "data"
        self.run(
            *(initdb, "-D", str(self.data), "-U", "postgres", "-A", auth, "-E", "UTF8", "--no-sync"),
            *("--no-instructions", "--locale=C", "--pwfile", str(password)),
        )
        unsafe = "" if fsync else _UNSAFE
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"{_CONFIGURATION}\n{unsafe}\nport = {self.port}\n{settings}\n")

    @staticmethod
    def program(name: str) -> str:
        """The path of a program of Postgres. Raises `NotInstalled`."""
        newest = sorted(
            Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4])
        )
        found = str(newest[-1]) if newest else shutil.which(name)
        if found is None:
            raise NotInstalled(name, _INSTALL)
        return found

    def command(self) -> list[str]:
        """What starts it in the foreground."""
        return [self._postgres, "-D", str(self.data)]

    def ready(self) -> bool:
        """Whether it has recovered."""
        return super().ready() and self._ask("SELECT 1").returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it as an operator does: connections are cut, nothing is lost."""
        super().stop(how)

    def sql(self, statements: str, *, database: str = "postgres") -> str:
        """Run this as the superuser. Returns the rows, without alignment."""
        done = self._ask(statements, database=database)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def cut(self) -> None:
        """Cut all connections of clients."""
        self.sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    def _ask(self, statements: str, *, database: str = "postgres") -> subprocess.CompletedProcess[str]:
        command = [self._psql, "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(
            [*command, "-U", "postgres", "-d", database, "-c", statements],
            env=os.environ | {"PGPASSWORD": self.PASSWORD, "PGCONNECT_TIMEOUT": "10"},
            capture_output=True,
            text=True,
            check=False,
        )


class PgBouncer(_Address, ServerProcess):
    """A pooler in transaction mode in front of this server."""

    unprivileged = True

    def __init__(self, server: PostgresServer) -> None:
        self._program = self.program()
        super().__init__("pgbouncer")
        self._file = self.directory / "pgbouncer.ini"
        self._file.write_text(_BOUNCER.format(server=server.port, port=self.port))

    @staticmethod
    def program() -> str:
        """Its path. Raises `NotInstalled`."""
        found = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if found is None:
            raise NotInstalled("pgbouncer", _INSTALL)
        return found

    def command(self) -> list[str]:
        """What starts it in the foreground."""
        return [self._program, str(self._file)]
