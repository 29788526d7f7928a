"""Our authorization servers in a process of their own, as real ones are.

`python -m _server_process` reads orders from its stdin, one line of JSON each, and answers each with one. It
ends when its stdin does. The order "serve" starts a server on a free port of the loopback interface.
`ServerProcess` is the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensession.cli.child_process import messages, say
from tokensession.clock import SystemClock
from tokensession.providers import ClientAuth
from tokensession.testing import OAuth2Server
from tokensession.testing.servers.client_proofs import AuthMethod, ClientProofs


@dataclass(frozen=True)
class Served:
    """One server in that process. `seen` is what it has seen since its start."""

    process: ServerProcess
    number: int
    client: dict[str, Any]
    proofs: ClientProofs

    @property
    def seen(self) -> dict[str, Any]:
        return self.process.ask(do="seen", number=self.number)

    def accepts(self, access_token: str) -> bool:
        """Whether this token works at its API."""
        return bool(self.process.ask(do="accepts", number=self.number, token=access_token)["valid"])


class ServerProcess:
    """That process, seen from the tests."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[ServerProcess]:
        """Ends it by its id if it does not end by itself."""
        command = [sys.executable, "-m", Path(__file__).stem]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=Path(__file__).parent, **pipes) as child:
            try:
                yield cls(child)
                assert child.stdin is not None
                child.stdin.close()
                assert child.wait(20) == 0
            finally:
                child.kill()

    @property
    def pid(self) -> int:
        return self._child.pid

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()
        answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        return answer

    def serve(self, auth: AuthMethod, client_secret: str, **settings: Any) -> Served:
        """Start a server in it. `client` has the arguments of its client."""
        answer = self.ask(do="serve", auth=auth, client_secret=client_secret, **settings)
        client = answer["client"]
        proofs = ClientProofs(auth, client["client_id"], client_secret, SystemClock())
        proofs.signing_key = answer["signing_key"]  # the client's own, and the server's to compare with
        known = ClientAuth.assertion(proofs.assertion) if auth == "assertion" else proofs.auth
        return Served(self, answer["number"], {**client, "auth": known}, proofs)


async def _serve() -> None:
    servers: list[OAuth2Server] = []
    async with contextlib.AsyncExitStack() as stack:
        async for order in messages():
            do, number = order.pop("do"), order.pop("number", 0)
            if do == "serve":
                server = await stack.enter_async_context(OAuth2Server(**order))
                servers.append(server)
                client = {name: each for name, each in server.client.items() if name != "auth"}
                key = server._proofs.signing_key
                say(number=len(servers) - 1, client=client, signing_key=key)
            elif do == "accepts":
                say(valid=servers[number]._ledger.valid(order["token"]))
            else:
                server = servers[number]
                say(
                    revocations=server.revocations,
                    invalid_requests=server.invalid_requests,
                    rejections=server.stats.rejections,
                    token_requests=server.stats.token_requests,
                    requested=server.requested,
                )


if __name__ == "__main__":
    asyncio.run(_serve())
