"""The baseline client, child processes and signals."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import anyio
import pytest
from _event_loop import in_event_loop

from tokensession.cli import child_process
from tokensession.cli.baseline import BaselineClient, provider_for, sign_in
from tokensession.cli.child_process import Child, ChildFailed
from tokensession.cli.run_until_signal import until_signal
from tokensession.errors import GrantRejected
from tokensession.testing import FakeClock, OtoServer, PriavaServer


@contextlib.asynccontextmanager
async def signed_in(
    name: str, server: OtoServer | PriavaServer, tmp_path: Path
) -> AsyncIterator[Callable[[], BaselineClient]]:
    """Start the server, and sign in. Yields what makes a baseline client."""
    path = tmp_path / "token.json"
    async with server, aiohttp.ClientSession() as http:
        provider = provider_for(name, server.credentials)
        await sign_in(provider, http, path)
        yield lambda: BaselineClient(provider, http, path)


@in_event_loop
async def test_one_baseline_client_alone_works(tmp_path: Path) -> None:
    server = PriavaServer()
    async with signed_in("priava", server, tmp_path) as make:
        client = make()
        assert await client.get("/echo") == 200
        server.revoke_access_tokens()
        assert await client.get("/echo") == 200
        client._token["refresh_at"] = 0.0
        assert await client.get("/echo") == 200
        assert server.stats.token_requests == 3
        assert server.stats.reuse_detections == server.stats.invalid_requests == 0


@in_event_loop
async def test_two_baseline_clients_that_refresh_at_once_lose_the_sign_in(tmp_path: Path) -> None:
    server = PriavaServer()
    async with signed_in("priava", server, tmp_path) as make:
        clients = [make(), make()]
        for client in clients:
            client._token["refresh_at"] = 0.0
        async with server.hold("before") as gate:
            requests = [asyncio.ensure_future(client.get("/echo")) for client in clients]
            await gate.reached(2)
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert any(isinstance(result, GrantRejected) for result in results)
        assert server.stats.reuse_detections == 1
        with pytest.raises(GrantRejected):
            await make().get("/echo")


@in_event_loop
async def test_a_baseline_sign_in_needs_a_configured_credential(tmp_path: Path) -> None:
    credentials = PriavaServer(port=9).credentials | {"code": None}
    async with aiohttp.ClientSession() as http:
        with pytest.raises(ValueError, match="no configured credential"):
            await sign_in(provider_for("priava", credentials), http, tmp_path / "token.json")


@in_event_loop
async def test_baseline_clients_with_a_permanent_refresh_token_only_waste_requests(tmp_path: Path) -> None:
    clock = FakeClock()
    server = OtoServer(clock=clock)
    async with signed_in("oto", server, tmp_path) as make:
        clients = [make() for _ in range(5)]
        clock.advance(3600)
        assert [await client.get("/echo") for client in clients] == [200] * 5
        assert (server.stats.expiries, server.stats.token_requests) == (2, 6)


async def _hear_to_the_end(child: Child) -> None:
    while True:
        await child.hear()


@in_event_loop
async def test_a_load_that_cannot_start_ends_its_process_with_the_reason(tmp_path: Path) -> None:
    credentials = {"baseline": {"oto": OtoServer(port=9).credentials}}  # not used: it fails before
    child = await Child.start("client 1", "tokensession.cli.load")
    try:
        await child.tell(directory=str(tmp_path), tasks=1, pause=1.0, credentials=credentials)
        assert await child.hear() == {"ready": True}
        await child.tell(do="run", load="baseline")
        with pytest.raises(ChildFailed, match=r"No such file or directory: .*baseline-oto\.json"):
            await _hear_to_the_end(child)
    finally:
        await child.stop()


@in_event_loop
async def test_a_child_that_does_not_exit_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "_EXIT_TIMEOUT", 0.0)
    child = await Child.start("server", "tokensession.cli.demo_servers")
    await child.tell(lifetime=2)
    directory = Path((await child.hear())["directory"])
    child._process.send_signal(signal.SIGSTOP)  # otherwise it might exit before it is killed
    await child.stop()
    assert child._process.returncode == -signal.SIGKILL
    shutil.rmtree(directory)


@in_event_loop
async def test_a_child_that_writes_more_than_a_pipe_holds_still_exits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "talkative.py").write_text(
        "import sys\nsys.stdin.read()\nfor pipe in (sys.stderr, sys.stdout): pipe.write('x' * (1 << 20))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = await Child.start("client 1", "talkative")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await child.stop()
    assert child._process.returncode == 0


def test_a_cancellation_without_a_signal_is_not_swallowed() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        anyio.run(until_signal, work())


def test_an_exit_within_a_task_group_is_an_exit_and_no_traceback() -> None:
    """As when `tokensession demo | head -1` closes the pipe."""

    async def work() -> None:
        async with anyio.create_task_group():
            raise SystemExit(1)

    with pytest.raises(SystemExit) as exit_:
        anyio.run(until_signal, work())
    assert exit_.value.code == 1
