"""A token server with an API behind it, in a process of its own, and its remote control.

Of its own, so that the contestants' event loop is theirs alone. `async with Server(...) as server:`
starts `python -m benchmarks.harness.server`; what it is told goes through pipes, and when its parent is
gone so is it. It speaks RFC 6749 (`tokensession.testing.OAuth2Server`): rotation, reuse detection, and
`GET /ping` behind the bearer, which answers a few bytes.

`delay` is how many seconds a token request takes at the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tokensession.cli.child_process import messages, say
from tokensession.testing import OAuth2Server
from tokensession.testing.servers import base

__all__ = ["Server"]

_ROOT = str(Path(__file__).parents[2])


class Server:
    """The remote control. Every call waits until it is done."""

    def __init__(
        self, *, lifetime: int = 3600, rotates: bool = True, auth: str = "post", delay: float = 0.0
    ) -> None:
        self._settings = {"lifetime": lifetime, "rotates": rotates, "auth": auth, "delay": delay}
        self._process: asyncio.subprocess.Process | None = None
        self.credentials: dict[str, Any] = {}
        """For `OAuth2(**credentials)`: token_url, client_id, client_secret, auth, refresh_token, base_url."""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.harness.server",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([_ROOT, os.environ.get("PYTHONPATH", "")])},
            process_group=0,
        )
        self.credentials = (await self._ask(**self._settings))["credentials"]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()

    async def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("The server's process has ended.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def stats(self) -> dict[str, int]:
        """The counters since the start: requests, unauthorized, token_requests, reuse_detections, ..."""
        return (await self._ask(do="stats"))["stats"]  # type: ignore[no-any-return]

    async def new_credential(self) -> str:
        """A refresh token that opens a grant of its own."""
        return str((await self._ask(do="new_credential"))["seed"])

    async def revoke_access_tokens(self) -> None:
        """Every access token is refused from now on."""
        await self._ask(do="revoke_access_tokens")

    async def hold(self) -> None:
        """Hold token requests, after the grant has been spent and before the answer, until `release`."""
        await self._ask(do="hold")

    async def reached(self, count: int = 1) -> None:
        """Wait until so many token requests are held."""
        await self._ask(do="reached", count=count)

    async def release(self) -> None:
        """Let them go."""
        await self._ask(do="release")

    async def delay(self, seconds: float) -> None:
        """How long token requests take from now on."""
        await self._ask(do="delay", seconds=seconds)

    async def down(self) -> None:
        """Close the port, as in an outage."""
        await self._ask(do="down")

    async def up(self) -> None:
        """Serve again, on the same port."""
        await self._ask(do="up")


class _Delayed(OAuth2Server):
    """Takes its time over a token request, as a real one does."""

    delay = 0.0

    async def _redeem(self, credential: Any, noted: float) -> base.Response:
        if self.delay:
            await asyncio.sleep(self.delay)
        return await super()._redeem(credential, noted)

    def routes(self) -> list[web.RouteDef]:
        async def ping(_request: web.Request) -> web.Response:
            return web.Response(body=b"{}", content_type="application/json")

        return [web.get("/ping", ping)]


async def _serve() -> None:
    orders = messages()
    settings = await anext(orders)
    delay = settings.pop("delay")
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(_Delayed(**settings))
        server.delay = delay
        say(credentials=server.credentials)
        holding = contextlib.AsyncExitStack()
        gate: Any = None
        async for order in orders:
            answer: dict[str, Any] = {}
            match order["do"]:
                case "stats":
                    stats = server.stats
                    answer = {"stats": {name: getattr(stats, name) for name in stats.__dataclass_fields__}}
                case "new_credential":
                    answer = {"seed": server.new_credential()}
                case "revoke_access_tokens":
                    server.revoke_access_tokens()
                case "hold":
                    gate = await holding.enter_async_context(server.hold("after"))
                case "reached":
                    await gate.reached(order["count"])
                case "release":
                    await holding.aclose()
                case "delay":
                    server.delay = order["seconds"]
                case "down":
                    await server.close()
                case "up":
                    await server.start()
            say(**answer)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, StopAsyncIteration, KeyboardInterrupt):
        asyncio.run(_serve())
