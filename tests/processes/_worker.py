"""One process with one session, told what to do line by line: the other end of `_fleet.Worker`."""

from __future__ import annotations

import asyncio
import json
import sys

from tokensession import AuthedSession, Policy, TokenSessionError
from tokensession.providers import Priava


async def serve() -> None:
    loop = asyncio.get_running_loop()
    setup = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    # The pause after a killed holder is proven with a hand-moved clock; here it would only take time.
    policy = Policy(settle=0)
    async with AuthedSession(Priava(**setup["provider"]), store=setup["store"], policy=policy) as session:
        print("ready", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order, count = line.split()

            async def one(order: str = order) -> str:
                try:
                    if order == "get":
                        async with session.get("/echo") as response:
                            return str(response.status)
                    if order == "refresh":
                        await session.source.refresh()
                    return (await session.source.token()).fingerprint
                except TokenSessionError as error:
                    return type(error).__name__

            answers = await asyncio.gather(*(one() for _ in range(int(count))))
            print(json.dumps(sorted(set(answers))), flush=True)


asyncio.run(serve())
