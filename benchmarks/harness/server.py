"""A token server with an API behind it, in its own process, and its remote control.

It has its own process so that it does not run in the contestants' event loop. `async with Server(...)`
starts `python -m benchmarks.harness.server`. The server is `tokensession.testing.OAuth2Server`, with rotation
and reuse detection. `GET /ping` needs a token, and answers a few bytes.
"""

from __future__ import annotations

import contextlib
from typing import Any, Self

import anyio
from aiohttp import web

from tokensession.cli.child_process import Child, messages, say
from tokensession.testing import OAuth2Server, Response, json_response

__all__ = ["Server"]


class Server:
    """The remote control. Every call returns when the server has done it.

    `delay` is how long a token request takes at the server, in seconds.
    """

    def __init__(
        self, *, lifetime: int = 3600, rotates: bool = True, auth: str = "post", delay: float = 0.0
    ) -> None:
        self._settings = {"lifetime": lifetime, "rotates": rotates, "auth": auth, "delay": delay}
        self.credentials: dict[str, Any] = {}
        """For `OAuth2(**credentials)`: token_url, client_id, client_secret, auth, refresh_token, base_url."""

    async def __aenter__(self) -> Self:
        self._child = await Child.start("token server", "benchmarks.harness.server")
        self.credentials = (await self._ask(**self._settings))["credentials"]
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


class _Served(OAuth2Server):
    """Takes some time for a token request, as a real server does. Answers 500 while `failing`."""

    delay = 0.0
    failing = False

    async def _token(self, request: web.Request) -> web.StreamResponse:
        if not self.failing:
            return await super()._token(request)
        with self._counted():
            await request.read()
            return json_response(500, {"error": "server_error"}).to_web()

    async def _redeem(self, credential: Any, noted: float) -> Response:
        if self.delay:
            await anyio.sleep(self.delay)
        return await super()._redeem(credential, noted)

    def routes(self) -> list[web.RouteDef]:
        async def ping(_request: web.Request) -> web.Response:
            return web.Response(body=b"{}", content_type="application/json")

        return [web.get("/ping", ping)]


async def _serve() -> None:
    orders = messages()
    settings = await anext(orders)
    delay = settings.pop("delay")
    async with _Served(**settings) as server:
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
                    server.failing = True
                    server.revoke_access_tokens()
                case "recover":
                    server.failing = False
            say(**answer)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, StopAsyncIteration, KeyboardInterrupt):
        anyio.run(_serve)
