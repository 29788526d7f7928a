"""A token server with an API behind it, in its own process, and its remote control.

It has its own process so that it does not run in the contestants' event loop. `async with Server(...)`
starts `python -m benchmarks.harness.server`. The server is `tokensession.testing.OAuth2Server`, with rotation
and reuse detection. `GET /ping` needs a token, and answers a few bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Self

import anyio
from aiohttp import web

from tokensession.cli.child_process import Child, messages, say
from tokensession.providers import ClientAuth
from tokensession.providers.client_auth import Method
from tokensession.testing import Hang, OAuth2Server, Reset, Response, json_response
from tokensession.testing.servers.faults import Fault

__all__ = ["OUTAGES", "Server"]

OUTAGES: dict[str, Fault | None] = {
    "refused": None,
    "reset": Reset(spent=False),
    "500": json_response(500, {"error": "server_error"}),
    "503": Response(503),
    "429": Response(429, b"", (("Retry-After", "1"),)),
    "swallowed": Hang(spent=False),
}
"""What every token request gets in an outage of this kind. "refused": nothing listens.

None of them spends a refresh token.
"""


class Server:
    """The remote control. Every call returns when the server has done it.

    `delay` is how long a token request takes at the server, in seconds.
    """

    def __init__(
        self, *, lifetime: int = 3600, rotates: bool = True, auth: Method = "post", delay: float = 0.0
    ) -> None:
        self._settings: dict[str, Any] = {
            "lifetime": lifetime,
            "rotates": rotates,
            "auth": auth,
            "delay": delay,
        }
        self.credentials: dict[str, Any] = {}
        """For `OAuth2(**credentials)`. With auth="basic" they are JSON, for other processes."""

    async def __aenter__(self) -> Self:
        self._child = await Child.start("token server", "benchmarks.harness.server")
        self.credentials = (await self._ask(**self._settings))["credentials"]
        if self._settings["auth"] != "basic":
            self.credentials["auth"] = ClientAuth(self._settings["auth"])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._child.stop()

    async def _ask(self, **order: Any) -> dict[str, Any]:
        await self._child.tell(**order)
        return await self._child.hear()

    async def stats(self) -> dict[str, int]:
        """The counters since the start: requests, unauthorized, token_requests, reuse_detections, ..."""
        return (await self._ask(do="stats"))["stats"]  # type: ignore[no-any-return]

    async def new_credential(self) -> str:
        """The refresh token of a new grant."""
        return str((await self._ask(do="new_credential"))["refresh_token"])

    async def revoke_access_tokens(self) -> None:
        """Answer 401 to every access token issued so far."""
        await self._ask(do="revoke_access_tokens")

    async def hold(self) -> None:
        """Hold token requests until `release`, after the grant is spent and before the response."""
        await self._ask(do="hold")

    async def reached(self, count: int = 1) -> None:
        """Wait until this many token requests are held."""
        await self._ask(do="reached", count=count)

    async def release(self) -> None:
        """Answer the token requests that are held."""
        await self._ask(do="release")

    async def fail(self) -> None:
        """Answer 500 to every token request, and 401 to every access token issued so far."""
        await self._ask(do="fail")

    async def recover(self) -> None:
        """Issue tokens again."""
        await self._ask(do="recover")

    async def set_lifetime(self, seconds: int) -> None:
        """The lifetime of access tokens that are issued from now on."""
        await self._ask(do="lifetime", seconds=seconds)

    async def outage(self, kind: str, seconds: float) -> None:
        """Begin an outage of a kind in `OUTAGES`. It ends by itself after this many seconds."""
        await self._ask(do="outage", kind=kind, seconds=seconds)

    async def outage_ended(self) -> float:
        """Wait until the outage has ended. Returns when that was, on CLOCK_MONOTONIC."""
        return float((await self._ask(do="outage_ended"))["moment"])


class _Served(OAuth2Server):
    """Takes some time for a token request, as a real server does. `fault` is what all of them get instead."""

    delay = 0.0
    fault: Fault | None = None

    def set_lifetime(self, seconds: int) -> None:
        self.lifetime = self._ledger.lifetime = seconds

    async def begin_outage(self, kind: str) -> None:
        self.fault = OUTAGES[kind]
        if self.fault is None:
            await self.close()

    async def end_outage(self, seconds: float) -> float:
        """After this many seconds. Returns when."""
        await anyio.sleep(seconds)
        moment = time.monotonic()
        if self.fault is None:
            await self.start()
        self.fault = None
        return moment

    async def _token(self, request: web.Request) -> web.StreamResponse:
        if self.fault is None:
            return await super()._token(request)
        with self._counted():
            await request.read()
            return await self.fault.perform(request, _not_carried_out)

    async def _redeem(self, credential: Any, noted: float) -> Response:
        if self.delay:
            await anyio.sleep(self.delay)
        return await super()._redeem(credential, noted)

    def routes(self) -> list[web.RouteDef]:
        async def ping(_request: web.Request) -> web.Response:
            return web.Response(body=b"{}", content_type="application/json")

        return [web.get("/ping", ping)]


async def _not_carried_out() -> Response:
    raise AssertionError("A fault of an outage spends no refresh token.")


async def _serve() -> None:
    orders = messages()
    settings = await anext(orders)
    delay = settings.pop("delay")
    async with _Served(**settings) as server:
        server.delay = delay
        say(credentials={name: each for name, each in server.credentials.items() if name != "auth"})
        holding = contextlib.AsyncExitStack()
        gate: Any = None
        async for order in orders:
            answer: dict[str, Any] = {}
            match order["do"]:
                case "stats":
                    stats = server.stats
                    answer = {"stats": {name: getattr(stats, name) for name in stats.__dataclass_fields__}}
                case "new_credential":
                    answer = {"refresh_token": server.new_credential()}
                case "revoke_access_tokens":
                    server.revoke_access_tokens()
                case "hold":
                    gate = await holding.enter_async_context(server.hold("after"))
                case "reached":
                    await gate.reached(order["count"])
                case "release":
                    await holding.aclose()
                case "fail":
                    server.fault = OUTAGES["500"]
                    server.revoke_access_tokens()
                case "recover":
                    server.fault = None
                case "lifetime":
                    server.set_lifetime(order["seconds"])
                case "outage":
                    await server.begin_outage(order["kind"])
                    end = asyncio.create_task(server.end_outage(order["seconds"]))
                case "outage_ended":
                    answer = {"moment": await end}
            say(**answer)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, StopAsyncIteration, KeyboardInterrupt):
        anyio.run(_serve)
