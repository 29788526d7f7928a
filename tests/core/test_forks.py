"""A process that forks during a refresh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, os, sys, warnings
from tokensession import ManagedSource
from tokensession.providers import Oto
from tokensession.stores import SQLiteStore
from tokensession.testing import token_response

warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12, for a process with threads that forks
parent = os.getpid()

class Transport:
    def __init__(self):
        self.arrived, self.answer = asyncio.Event(), asyncio.Event()

    async def send(self, request, *, connect, total):
        assert os.getpid() == parent, "a second token request"
        self.arrived.set()
        await self.answer.wait()
        return token_response({"access_token": "the-one-token", "expires_in": 3600})

async def child(source):
    print("child", (await source.token()).access_token, flush=True)
    await source.aclose()

async def main():
    transport, store = Transport(), SQLiteStore(sys.argv[1])
    source = ManagedSource(Oto(refresh_token="r"), transport, store=store)
    caller = asyncio.create_task(source.token())
    await transport.arrived.wait()
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(child(source))
        except BaseException as error:
            print("child", repr(error), flush=True)
        os._exit(0)
    transport.answer.set()
    token = await caller
    await asyncio.to_thread(os.waitpid, pid, 0)
    print("parent", token.access_token)
    await source.aclose()
    await store.aclose()

asyncio.run(main())
"""


def test_a_child_forked_during_a_refresh_gets_the_parents_token_and_can_close(tmp_path: Path) -> None:
    """The inherited refresh cannot finish in the child, so the child waits for the parent's claim instead."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "tokens.db")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["child the-one-token", "parent the-one-token"], done.stderr
