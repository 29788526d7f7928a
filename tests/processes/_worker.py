"""The other end of `_fleet.Worker`: one process with one session. It reads one order per line.

The test can make it stop, or report, at these stages of a refresh:

    claim       about to claim the key
    waiting     another process has the claim, and the first try has failed
    found       there is no claim: the record is not the one this process knew, and it has been read
    granted     the claim has been granted
    send        about to send the token request
    sending     the mark that it is being sent has been left
    received    the response has been received
    commit      about to save the token
    committed   saved, and not handed out yet
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
from typing import Any

from tokensession import AiohttpTransport, AuthedSession, Policy, TokenSessionError
from tokensession.providers import Priava
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import Record, Store, open_store
from tokensession.stores.protocol import ANY, AnyVersion, Claim
from tokensession.testing.conformance.peer import serve_forks

# No pauses: they are tested with a fake clock, and here they would only take time. Long time-outs, because a
# gate may hold a process at any stage.
POLICY = Policy(
    orphan_wait=0,
    sign_in_wait=0,
    request_timeout=60,
    caller_timeout=60,
    retry_within=0,
    claim_timeout=60,
    store_timeout=60,
)


class Stages:
    """The stages at which this process must stop or report, once each."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._wanted: dict[str, asyncio.Event] = {}

    async def say(self, what: Any) -> None:
        self._writer.write(json.dumps(what).encode() + b"\n")
        await self._writer.drain()

    def want(self, stage: str, *, stop: bool) -> None:
        gate = self._wanted[stage] = asyncio.Event()
        if not stop:
            gate.set()

    def go(self, stage: str) -> None:
        self._wanted.pop(stage).set()

    async def at(self, stage: str) -> None:
        gate = self._wanted.get(stage)
        if gate is not None:
            await self.say({"at": stage})
            await gate.wait()
            self._wanted.pop(stage, None)


class StagedClaim:
    """A claim with stages."""

    def __init__(self, claim: Claim, stages: Stages) -> None:
        self._claim = claim
        self._stages = stages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._claim, name)

    async def sending(self, *, listening: float = 0.0) -> None:
        await self._claim.sending(listening=listening)
        await self._stages.at("sending")

    async def commit(self, data: bytes) -> Record:
        await self._stages.at("commit")
        record = await self._claim.commit(data)
        await self._stages.at("committed")
        return record


class StagedStore:
    """A store with stages."""

    def __init__(self, store: Store, stages: Stages) -> None:
        self._store = store
        self._stages = stages
        self.load, self.delete, self.keys, self.aclose = store.load, store.delete, store.keys, store.aclose

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        if not isinstance(expect, str):
            return await self._store.put(key, data, expect=expect)
        # A token by a code: its claim's record is the note that the code is about to be sent.
        await self._stages.at("commit")
        record = await self._store.put(key, data, expect=expect)
        await self._stages.at("committed")
        return record

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        await self._stages.at("claim")
        trying = asyncio.ensure_future(self._store.claim(key, seen=seen, timeout=timeout))
        await asyncio.sleep(0)  # let it begin
        worker = self._store._worker  # type: ignore[attr-defined]
        await self._store.load(key)  # behind its first try of the lock, in the store's thread
        while not trying.done() and not worker._waiting:
            await self._store.load(key)  # the database was busy for a moment
        if not trying.done():
            await self._stages.at("waiting")
        found = await trying
        if isinstance(found, Record):
            await self._stages.at("found")
            return found
        await self._stages.at("granted")
        return StagedClaim(found, self._stages)


class StagedTransport:
    """A transport with stages."""

    def __init__(self, stages: Stages) -> None:
        self._transport = AiohttpTransport()
        self._stages = stages

    async def send(self, request: TokenRequest, **bounds: Any) -> TokenResponse:
        await self._stages.at("send")
        response = await self._transport.send(request, **bounds)
        await self._stages.at("received")
        return response


class Orders:
    """Carries out the orders of the test."""

    def __init__(self, session: AuthedSession, stages: Stages) -> None:
        self._session = session
        self._stages = stages
        self._message = ""

    async def token(self) -> str:
        return (await self._session.source.token()).fingerprint

    async def get(self) -> str:
        async with self._session.get("/echo") as response:
            return str(response.status)

    async def refresh(self) -> str:
        return (await self._session.source.refresh()).fingerprint

    async def sign_in(self, code: str) -> str:
        return (await self._session.source.sign_in(code=code)).fingerprint

    async def sign_out(self) -> str:
        await self._session.source.sign_out()
        return "signed out"

    async def why(self) -> str:
        """The message of the last error."""
        return self._message

    async def _one(self, do: str, arguments: dict[str, str]) -> str:
        try:
            return str(await getattr(self, do)(**arguments))
        except TokenSessionError as error:
            self._message = str(error)
            return type(error).__name__

    async def carry_out(self, do: str, count: int, arguments: dict[str, str]) -> None:
        answers = await asyncio.gather(*(self._one(do, arguments) for _ in range(count)))
        await self._stages.say(sorted(set(answers)))


async def main(fd: int, setup: dict[str, Any]) -> None:
    lines, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    stages = Stages(writer)
    store = StagedStore(open_store(setup["store"]), stages)
    provider, transport = Priava(**setup["provider"]), StagedTransport(stages)
    async with AuthedSession(provider, store=store, policy=POLICY, transport=transport) as session:
        orders, running = Orders(session, stages), set()
        await stages.say("ready")
        while line := await lines.readline():
            order = json.loads(line)
            match order.pop("do"):
                case "stop" | "watch" as what:
                    stages.want(order["at"], stop=what == "stop")
                case "go":
                    stages.go(order["at"])
                case do:
                    work = orders.carry_out(do, order.pop("count"), order)
                    running.add(asyncio.ensure_future(work))  # in the background, because it may be stopped


if __name__ == "__main__":
    gc.freeze()  # keeps the memory that the children share with their parent shared
    serve_forks(socket.socket(fileno=int(sys.argv[1])), main)
