"""Several hosts on one machine: a network namespace for each, and one in the middle for the servers.

    unshare --net python tests/processes/_hosts.py redis

Each host has a cable (a veth pair) to a bridge in the middle, where a provider and the store's server run. A
provider without TLS is used on the loopback interface only, so each host has a relay there that leads to it.
To cut a host off, its cable is taken out of the bridge: no packet arrives, and no connection ends. All of it
is gone when this process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.harness.aged import AgedStore
from benchmarks.servers import PostgresServer, RedisServer
from tokensession import ManagedSource, Policy, TokenSessionError
from tokensession.clock import SystemClock
from tokensession.errors import ClaimTimeout
from tokensession.providers import OAuth2
from tokensession.stores import Record, Store, open_store
from tokensession.testing import OAuth2Server

MIDDLE = "10.77.0.1"
KEY = "account"
POLICY = Policy(orphan_wait=8, request_timeout=60, caller_timeout=60, claim_timeout=60)
OFFSETS = (-180.0, 0.0, 240.0)
"""How wrong the wall clock of each host is, in seconds."""


def ip(*arguments: str, inside: int | None = None) -> None:
    """Run `ip`, in the network namespace of this process."""
    enter = ["nsenter", f"--net=/proc/{inside}/ns/net"] if inside is not None else []
    subprocess.run([*enter, "ip", *arguments], check=True)


async def relay(address: str, port: int, target: str) -> asyncio.Server:
    """Listen here, and pass everything on to the same port there."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, to_there = await asyncio.open_connection(target, port)
            await asyncio.gather(pump(reader, to_there), pump(there, writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, address, port)


# -- in a host ----------------------------------------------------------------------------------------


class HostClock(SystemClock):
    """The wall clock is wrong by `offset`. Both are `ahead`, so that a token has expired."""

    def __init__(self, offset: float) -> None:
        self.offset = offset
        self.ahead = 0.0

    def wall(self) -> float:
        return time.time() + self.offset + self.ahead

    def boot(self) -> float:
        return time.monotonic() + self.ahead


async def work(store: str, credentials: dict[str, Any], offset: str) -> None:
    """One process: for each line on stdin, a token two hours later, by its fingerprint, or the error."""
    clock = HostClock(float(offset))
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    aged = AgedStore(open_store(store), lambda: clock.ahead)
    provider = OAuth2(**credentials)
    async with ManagedSource(provider, store=aged, key=KEY, policy=POLICY, clock=clock) as source:
        while await reader.readline():
            clock.ahead += 7200
            try:
                answer = (await source.token()).fingerprint
            except TokenSessionError as error:
                answer = repr(error)
            print(answer, flush=True)
    await aged.aclose()


class Process:
    """A process in a host, seen from the middle."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self._process = process

    def ask(self) -> asyncio.Task[str]:
        """Let its token expire, and ask for one."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        return asyncio.ensure_future(self._answer())

    async def _answer(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()


# -- in the middle ------------------------------------------------------------------------------------


class Host:
    """A host with two processes."""

    def __init__(self, number: int, pid: int) -> None:
        self._cable = f"v{number}"
        self._pid = pid
        ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        ip("link", "set", self._cable, "up", "master", "br0")
        for words in ("link set lo up", "link set eth0 up", f"addr add 10.77.0.{number + 2}/24 dev eth0"):
            ip(*words.split(), inside=pid)

    async def start(self, *arguments: str) -> Process:
        """A process in it that has the settings in its arguments."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = ["nsenter", f"--net=/proc/{self._pid}/ns/net", sys.executable, __file__, "work", *arguments]
        return Process(await asyncio.create_subprocess_exec(*command, **pipes))

    def cut_off(self) -> None:
        """No packet arrives, in either direction, and nobody is told."""
        ip("link", "set", self._cable, "nomaster")

    def reconnect(self) -> None:
        ip("link", "set", self._cable, "master", "br0")


@contextlib.contextmanager
def store_in_the_middle(kind: str) -> Iterator[str]:
    """The URL of a store whose server every host reaches."""
    if kind == "redis":
        with RedisServer("redis", "--bind", "0.0.0.0", "--protected-mode", "no") as redis:
            yield redis.url(lease=2).replace("127.0.0.1", MIDDLE)
        return
    server = PostgresServer(settings="listen_addresses = '*'")
    with (server.data / "pg_hba.conf").open("a") as file:
        file.write("host all all 10.77.0.0/24 trust\n")
    with server:
        yield server.store_url(lease=2).replace("127.0.0.1", MIDDLE)


@contextlib.asynccontextmanager
async def hosts(port: int) -> AsyncIterator[list[Host]]:
    """Three hosts, each with a relay to the provider."""
    # With an address of its own. It would take that of a cable, and another one when that cable is taken out.
    ip("link", "add", "br0", "address", "02:00:00:00:00:01", "type", "bridge")
    ip("addr", "add", f"{MIDDLE}/24", "dev", "br0")
    ip("link", "set", "br0", "up")
    async with await relay(MIDDLE, port, "127.0.0.1"):
        relays = []
        try:
            for _ in OFFSETS:
                command = ["unshare", "--net", sys.executable, __file__, "relay", str(port)]
                started = await asyncio.create_subprocess_exec(
                    *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
                relays.append(started)
                assert started.stdout is not None
                assert await started.stdout.readline() == b"here\n"
            made = [Host(number, each.pid) for number, each in enumerate(relays)]
            for each in relays:
                assert each.stdin is not None
                each.stdin.write(b"\n")
            yield made
        finally:
            for each in relays:
                each.kill()
                await each.wait()


async def serve_relay(port: str) -> None:
    """The first process of a host, which exits with the one in the middle."""
    print("here", flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # until there is a network
    async with await relay("127.0.0.1", int(port), MIDDLE):
        await asyncio.to_thread(sys.stdin.read)


async def holder(store: Store) -> int | None:
    """The process that holds the claim."""
    record = await store.load(KEY)
    seen = None if record is None else record.version
    try:
        claim = await store.claim(KEY, seen=seen, timeout=0)
    except ClaimTimeout as held:
        found = re.search(r"process (\d+) on", str(held))
        return int(found[1]) if found else None
    if not isinstance(claim, Record):
        await claim.abandon()
    return None


async def scene(kind: str) -> dict[str, Any]:
    """Three expiries as seen by six processes on three hosts. In the second one a host is cut off."""
    ip("link", "set", "lo", "up")
    with store_in_the_middle(kind) as url:
        async with (
            OAuth2Server(lifetime=3600) as server,
            hosts(urlsplit(server.base_url).port or 0) as (first, *others),
        ):
            everyone = [
                await host.start(url, json.dumps(server.credentials), str(offset))
                for host, offset in zip((first, *others), OFFSETS, strict=True)
                for _ in range(2)
            ]
            cut, beside, *elsewhere = everyone
            rounds = [await asyncio.gather(*(each.ask() for each in everyone))]
            requests = [server.stats.token_requests]

            # The first process refreshes. The provider has spent its refresh token, and has not answered.
            async with open_store(url) as store, server.hold("after") as gate:
                answers = [cut.ask()]
                await gate.reached()
                assert await holder(store) == cut.pid
                answers += [each.ask() for each in elsewhere]
                first.cut_off()
                while (found := await holder(store)) in (cut.pid, None):  # until its lease has ended
                    await asyncio.sleep(0.05)
                assert found in [each.pid for each in elsewhere]
                gate.open()  # the response is on a cable that leads nowhere
                await asyncio.sleep(0.1)
                alone = [answer.done() for answer in answers]
                first.reconnect()
                answers.insert(1, beside.ask())
                rounds.append(await asyncio.gather(*answers))
            requests.append(server.stats.token_requests)
            rounds.append(await asyncio.gather(*(each.ask() for each in everyone)))
            requests.append(server.stats.token_requests)
            return {
                "answers": rounds,
                "served while cut off": alone,
                "token requests": requests,
                "reuse": server.stats.reuse_detections,
                "at once": server.stats.concurrent_token_requests_max,
            }


async def main(what: str, *arguments: str) -> None:
    match what:
        case "relay":
            await serve_relay(*arguments)
        case "work":
            await work(arguments[0], json.loads(arguments[1]), arguments[2])
        case kind:
            print(json.dumps(await scene(kind)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
