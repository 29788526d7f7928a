"""The naive client, child processes and signals."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import aiohttp
import pytest

from tokensession.cli import child_process
from tokensession.cli.baseline import BaselineClient, provider_for, sign_in
from tokensession.cli.child_process import Child, ChildFailed
from tokensession.cli.run_until_signal import until_signal
from tokensession.errors import GrantRejected
from tokensession.testing import FakeClock, OtoServer, PriavaServer

GUARD = 60.0  # seconds; an upper bound for a hang, never waited for


def test_one_naive_client_alone_does_well(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(GUARD), PriavaServer() as server, aiohttp.ClientSession() as http:
            provider = provider_for("priava", server.credentials)
            await sign_in(provider, http, tmp_path / "token.json")
            client = BaselineClient(provider, http, tmp_path / "token.json")
            assert await client.get("/echo") == 200
            server.revoke_access_tokens()
            assert await client.get("/echo") == 200
            client._mine["renew_at"] = 0.0
            assert await client.get("/echo") == 200
            assert server.stats.token_requests == 3
            assert server.stats.reuse_detections == server.stats.invalid_requests == 0

    asyncio.run(main())


def test_two_naive_clients_at_the_same_moment_sign_everybody_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(GUARD), PriavaServer() as server, aiohttp.ClientSession() as http:
            provider = provider_for("priava", server.credentials)
            await sign_in(provider, http, tmp_path / "token.json")
            clients = [BaselineClient(provider, http, tmp_path / "token.json") for _ in range(2)]
            for client in clients:
                client._mine["renew_at"] = 0.0
            async with server.hold("before") as gate:
                requests = [asyncio.ensure_future(client.get("/echo")) for client in clients]
                await gate.reached(2)
            results = await asyncio.gather(*requests, return_exceptions=True)
            assert any(isinstance(result, GrantRejected) for result in results)
            assert server.stats.reuse_detections == 1
            with pytest.raises(GrantRejected):
                await BaselineClient(provider, http, tmp_path / "token.json").get("/echo")

    asyncio.run(main())


def test_a_naive_client_needs_something_to_sign_in_with(tmp_path: Path) -> None:
    async def main() -> None:
        credentials = PriavaServer(port=9).credentials | {"code": None}
        async with aiohttp.ClientSession() as http:
            with pytest.raises(ValueError, match="no seed"):
                await sign_in(provider_for("priava", credentials), http, tmp_path / "token.json")

    asyncio.run(main())


def test_naive_clients_of_a_permanent_refresh_token_only_waste_requests(tmp_path: Path) -> None:
    async def main() -> None:
        clock = FakeClock()
        async with asyncio.timeout(GUARD), OtoServer(clock=clock) as server, aiohttp.ClientSession() as http:
            provider = provider_for("oto", server.credentials)
            await sign_in(provider, http, tmp_path / "token.json")
            clients = [BaselineClient(provider, http, tmp_path / "token.json") for _ in range(5)]
            clock.advance(3600)
            assert [await client.get("/echo") for client in clients] == [200] * 5
            assert (server.stats.expiries, server.stats.token_requests) == (2, 6)

    asyncio.run(main())


def test_a_child_that_ends_early_is_reported_with_its_last_words() -> None:
    async def main() -> None:
        child = await Child.start("client 7", "tokensession.cli.no_such_module")
        try:
            with pytest.raises(
                ChildFailed, match=r"client 7 process ended early \(status 1\)(.|\n)*No module"
            ):
                await child.hear()
        finally:
            await child.stop()

    asyncio.run(main())


async def _last_words(child: Child) -> None:
    while True:
        await child.hear()


def test_a_load_that_cannot_start_ends_its_process_and_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        child = await Child.start("client 1", "tokensession.cli.load")
        try:
            credentials = OtoServer(port=9).credentials  # nobody listens there, and nobody is asked
            child.tell(
                directory=str(tmp_path), tasks=1, pace=1.0, credentials={"naive": {"oto": credentials}}
            )
            assert await child.hear() == {"ready": True}
            child.tell(do="run", load="naive")
            with pytest.raises(ChildFailed, match=r"No such file or directory: .*naive-oto\.json"):
                await _last_words(child)
        finally:
            await child.stop()

    asyncio.run(main())


def test_a_child_that_does_not_leave_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        child = await Child.start("server", "tokensession.cli.demo_servers")
        child.tell(lifetime=2)
        directory = Path((await child.hear())["directory"])
        child._process.send_signal(signal.SIGSTOP)  # or it may have left before it is killed
        await child.stop()
        assert child._process.returncode == -signal.SIGKILL
        shutil.rmtree(directory)

    monkeypatch.setattr(child_process, "_GRACE", 0.0)
    asyncio.run(main())


def test_work_that_is_not_interrupted_gives_its_result() -> None:
    async def work() -> int:
        return 7

    assert asyncio.run(until_signal(work())) == 7


def test_a_signal_cancels_the_work_and_becomes_the_exit_status() -> None:
    cleaned: list[bool] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as exit_:
        asyncio.run(until_signal(work()))
    assert exit_.value.code == 128 + signal.SIGTERM
    assert cleaned == [True]


def test_a_cancellation_that_no_signal_caused_stays_one() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(until_signal(work()))
