"""A server process that can be stopped, killed, frozen and started again."""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

__all__ = ["PATIENCE", "NotInstalled", "ServerProcess", "free_port"]

PATIENCE = 60.0
"""Seconds. Only a server that hangs takes so long."""


class NotInstalled(Exception):
    """The server is not on this machine. The message says how to install it."""

    def __init__(self, what: str, command: str) -> None:
        super().__init__(f"{what} is not installed: {command}")


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class ServerProcess:
    """A server, and a temporary directory for it. As a context manager, it is running."""

    unprivileged = False
    """Whether it refuses to run as root. Then root starts it as another user."""

    def __init__(self, name: str) -> None:
        # Another user may not reach a temporary directory of root's.
        place = "/tmp" if self._user else None
        self.directory = Path(tempfile.mkdtemp(prefix=f"tokensession-{name}-", dir=place))
        self.port = free_port()
        self.log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen: list[int] = []
        atexit.register(self.close)
        if self._user:
            shutil.chown(self.directory, self._user["user"], self._user["group"])

    @property
    def _user(self) -> dict[str, Any]:
        if not self.unprivileged or os.geteuid() != 0:
            return {}
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def run(self, *command: str) -> None:
        """Run this to its end, as that user."""
        done = subprocess.run(
            command, cwd=self.directory, capture_output=True, text=True, check=False, **self._user
        )
        assert done.returncode == 0, f"{command[0]} failed: {done.stdout} {done.stderr}"

    def command(self) -> list[str]:
        """What starts it in the foreground."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        deadline = time.monotonic() + PATIENCE
        while not (self.running and self.ready()):
            if not self.running:  # also if it has ended: the port of a killed one may be taken for a moment
                with self.log.open("ab") as log:
                    self._process = subprocess.Popen(
                        self.command(), cwd=self.directory, stdout=log, stderr=log, **self._user
                    )
            log_text = self.log.read_text(errors="replace")
            assert time.monotonic() < deadline, f"it did not start: {log_text[-2000:]}"
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it as an operator does: nothing is lost."""
        if self._process is not None and self.running:
            self._process.send_signal(how)
            self._process.wait(PATIENCE)

    def kill(self) -> None:
        """SIGKILL, to all of its processes."""
        self._signal(self.family(), signal.SIGKILL)
        if self._process is not None:
            self._process.wait(PATIENCE)

    def restart(self) -> None:
        """Kill it and start it again, on the same port and data."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP, to all of its processes: connections are accepted by the kernel, and nothing answers."""
        self._frozen = self.family()
        self._signal(self._frozen, signal.SIGSTOP)
        for pid in self._frozen[:1]:
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(self._frozen, signal.SIGCONT)
        self._frozen = []

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It is frozen for as long as this context is open."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def family(self) -> list[int]:
        """Its processes: the first one, and those that it has started."""
        if self._process is None or not self.running:
            return []
        parent, found = self._process.pid, [self._process.pid]
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        """Kill it, and delete its files."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _signal(pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
