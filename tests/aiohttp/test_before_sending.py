"""What happens until a token request leaves: nothing is sent, so every failure is `NotSent`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import traceback
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from _api import rounds
from _event_loop import in_event_loop
from _raw_endpoint import (
    ANOTHER,
    FINGERPRINT,
    GRANTED,
    TRUSTING,
    Endpoint,
    hang_up,
    listening,
    send,
    tunnel,
    with_head,
)

from tokensession import InvalidTokenResponse, NotSent, OutcomeUnknown, StoreUnavailable
from tokensession import transport as transport_module
from tokensession.providers.protocol import TokenResponse


class Hook:
    """An `on_sending` that counts, and raises this."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1
        if self.error is not None:
            raise self.error


ID = "https://id.example.com/token"


async def was_not_sent(url: str, says: str = "cannot be reached", **settings: Any) -> str:
    """Sending is `NotSent`, and `on_sending` was not awaited. Returns the message."""
    hook = Hook()
    with pytest.raises(NotSent, match=says) as caught:
        await send(url, hook, **settings)
    assert hook.count == 0
    assert caught.value.__context__ is None
    assert "planted" not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


TLS = pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])


@TLS
@in_event_loop
async def test_on_sending_is_awaited_once_when_nothing_but_the_connection_is_there(tls: bool) -> None:
    """TLS included, before the first byte of the request."""
    async with listening(with_head(), tls=tls) as endpoint:
        awaited: list[bytes] = []

        async def on_sending() -> None:
            await endpoint.connected.wait()  # with TLS: after its handshake
            await rounds()
            awaited.append(endpoint.received)

        assert (await send(endpoint.url, on_sending, ssl=TRUSTING)).body == GRANTED
        assert (awaited, endpoint.connections) == ([b""], 1)


@in_event_loop
async def test_on_sending_is_awaited_after_the_proxy_has_answered_its_connect() -> None:
    async with listening(with_head(), tls=True) as endpoint, listening(tunnel(endpoint.port)) as proxy:

        async def on_sending() -> None:
            await endpoint.connected.wait()
            assert endpoint.received == b""

        assert (await send(ID, on_sending, proxy=proxy.url, ssl=TRUSTING)).body == GRANTED
        assert (proxy.connections, endpoint.connections) == (1, 1)


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("The disk is full."),
        TimeoutError("planted"),
        ConnectionResetError("planted"),
        aiohttp.ClientError("planted"),
        aiohttp.ServerDisconnectedError("planted"),
        InvalidTokenResponse("planted"),
        ValueError("planted"),
    ],
    ids=lambda error: type(error).__name__,
)
@TLS
@in_event_loop
async def test_what_on_sending_raises_is_raised_and_nothing_is_sent(tls: bool, error: Exception) -> None:
    """The connection is closed. Whatever it raises: aiohttp would take some of these for its own."""
    async with listening(b"", tls=tls) as endpoint:
        hook = Hook(error)
        with pytest.raises(type(error)) as caught:
            await send(endpoint.url, hook, ssl=TRUSTING)
        assert caught.value is error
        assert error.__context__ is None
        assert error.__cause__ is None
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert frames[-2:] == ["send", "__call__"]  # not aiohttp's, in which the request is
        await endpoint.closed.wait()
        assert (hook.count, endpoint.connections, endpoint.received) == (1, 1, b"")


@in_event_loop
async def test_the_time_that_on_sending_takes_is_not_time_for_connecting() -> None:
    """It writes to a store, which has a time-out of its own."""
    async with listening(with_head()) as endpoint:

        async def on_sending() -> None:
            loop = asyncio.get_running_loop()
            due = [timer.when() for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
            assert all(when > loop.time() + 30 for when in due)

        assert (await send(endpoint.url, on_sending, connect=5)).status == 200


@pytest.mark.parametrize("answer", [b"", with_head()[:-3], b"not HTTP\r\n\r\n"])
@in_event_loop
async def test_whatever_fails_after_on_sending_has_an_unknown_outcome(answer: bytes) -> None:
    async with listening(answer, closes=True) as endpoint:
        hook = Hook()
        with pytest.raises(OutcomeUnknown):
            await send(endpoint.url, hook)
        assert (hook.count, endpoint.connections) == (1, 1)


@in_event_loop
async def test_an_odd_error_is_judged_by_how_far_the_request_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that raises what it likes has sent nothing. The error shows the exception's type only."""

    class Odd(aiohttp.ThreadedResolver):
        async def resolve(self, *_args: Any, **_settings: Any) -> Any:
            raise RuntimeError("planted")

    monkeypatch.setattr("aiohttp.DefaultResolver", Odd)

    async def broken(_response: object) -> bytes:
        raise RuntimeError("planted")

    await was_not_sent(ID, "cannot be reached: RuntimeError")
    monkeypatch.setattr("tokensession.transport._read", broken)
    async with listening(with_head()) as endpoint:
        with pytest.raises(OutcomeUnknown, match="no complete answer: RuntimeError") as caught:
            await send(endpoint.url, Hook())
        assert "planted" not in "".join(traceback.format_exception(caught.value))


@in_event_loop
async def test_a_proxy_that_drops_its_connect_means_not_sent_however_often() -> None:
    """Twice, and then it works (K01)."""
    async with listening(with_head(), tls=True) as endpoint:
        answers = [hang_up, hang_up, tunnel(endpoint.port)]

        async def proxied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await answers.pop(0)(reader, writer)

        async with listening(proxied) as proxy:
            for _ in range(2):
                await was_not_sent(ID, proxy=proxy.url, ssl=TRUSTING)
            assert endpoint.connections == 0
            hook = Hook()
            assert (await send(ID, hook, proxy=proxy.url, ssl=TRUSTING)).body == GRANTED
            assert (hook.count, endpoint.connections) == (1, 1)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "ClientHttpProxyError: status 403."),
        (b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "ClientHttpProxyError: status 407."),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "ClientHttpProxyError: status 502."),
        (b"HTTP/1.1 302 Found\r\nLocation: https://a.example\r\nContent-Length: 0\r\n\r\n", "status 302."),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\n\r\nnot TLS", ""),
        (b"", ""),
    ],
)
@in_event_loop
async def test_whatever_a_proxy_answers_instead_of_a_tunnel_means_not_sent(answer: bytes, says: str) -> None:
    """It sees the CONNECT and nothing of the token request (K01)."""
    async with listening(answer, closes=b"Content-Length" not in answer) as proxy:
        said = await was_not_sent(ID, proxy=proxy.url)
        assert "cannot be reached through the proxy: " in said
        assert says in said
        assert ("user and the password" in said) == (b"407" in answer)
        await proxy.closed.wait()
        assert proxy.received.startswith(b"CONNECT id.example.com:443 ")
        assert b"planted" not in proxy.received
        assert proxy.connections == 1


def over_tls(endpoint: Endpoint) -> str:
    return endpoint.url.replace("http:", "https:")


@in_event_loop
async def test_a_certificate_that_is_not_the_pinned_one_means_not_sent() -> None:
    """It was renewed. The error says what to do (K01)."""
    async with listening(with_head(), tls=True) as endpoint, listening(tunnel(endpoint.port)) as proxy:
        for url, settings in ((endpoint.url, {}), (ID, {"proxy": proxy.url})):
            mismatch = "ServerFingerprintMismatch"
            said = await was_not_sent(url, mismatch, ssl=ANOTHER, **settings)
            assert "pass the fingerprint of that one" in said
            assert (await send(url, Hook(), ssl=FINGERPRINT, **settings)).status == 200


@in_event_loop
async def test_a_tls_handshake_that_fails_means_not_sent() -> None:
    """An untrusted certificate, another host's certificate, a port without TLS, one that hangs up."""
    async with listening(with_head(), tls=True) as endpoint:
        await was_not_sent(endpoint.url, "ClientConnectorCertificateError")
        async with listening(tunnel(endpoint.port)) as proxy:
            for url in ("https://192.0.2.1/token", "https://other.example.com/token"):
                await was_not_sent(url, "CertificateError", ssl=TRUSTING, proxy=proxy.url)
        assert endpoint.received == b""

    async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(with_head(status=b"400 Bad Request"))

    for handler in (hang_up, speak_http):
        async with listening(handler) as plain:
            await was_not_sent(over_tls(plain))


@contextlib.contextmanager
def full() -> Iterator[str]:
    """The URL of a socket that takes no more connections."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/token"


@in_event_loop
async def test_a_host_that_takes_no_connection_means_not_sent() -> None:
    """Its port is closed. Or its backlog is full, and the connect time-out ends the attempt (K02)."""
    async with listening(b"") as endpoint:
        pass
    await was_not_sent(endpoint.url, "ClientConnectorError")
    with full() as url:
        await was_not_sent(url, "ConnectionTimeoutError", connect=0.05)
        await was_not_sent(ID, connect=0.05, proxy=url)


@in_event_loop
async def test_the_connect_time_out_includes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS, the proxy, or the name look-up is silent."""
    async with listening(b"") as endpoint:
        await was_not_sent(over_tls(endpoint), "ConnectionTimeoutError", connect=0.05)
        await was_not_sent(ID, "ConnectionTimeoutError", connect=0.05, proxy=endpoint.url)
    monkeypatch.setattr("aiohttp.DefaultResolver", Silent)
    await was_not_sent(ID, "ConnectionTimeoutError", connect=0.05)


class Silent(aiohttp.ThreadedResolver):
    """A resolver that never answers, and counts."""

    look_ups = 0

    async def resolve(self, *_args: Any, **_settings: Any) -> Any:
        type(self).look_ups += 1
        await asyncio.Event().wait()


@pytest.mark.parametrize("phase", ["look-up", "connect", "TLS", "CONNECT", "on_sending", "head", "body"])
@in_event_loop
async def test_cancelling_ends_a_request_in_every_phase(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before `on_sending` nothing has been sent (K02). The connection is closed each time."""
    hook, reached = Hook(), asyncio.Event()

    async def on_sending() -> None:
        await hook()
        if phase == "on_sending":
            reached.set()
            await asyncio.Event().wait()

    answer = with_head()[:-3] if phase == "body" else b""
    async with listening(answer) as endpoint, contextlib.AsyncExitStack() as stack:
        settings: dict[str, Any] = {}
        url = over_tls(endpoint) if phase == "TLS" else endpoint.url
        if phase == "look-up":
            monkeypatch.setattr("aiohttp.DefaultResolver", Silent)
            url = ID
        elif phase == "CONNECT":
            url, settings = ID, {"proxy": endpoint.url}
        elif phase == "connect":
            url = stack.enter_context(full())
        task = asyncio.create_task(send(url, on_sending, **settings))
        if phase == "on_sending":
            await reached.wait()
        elif phase not in ("look-up", "connect"):
            await endpoint.connected.wait()
        await rounds()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert hook.count == (phase in ("on_sending", "head", "body"))
        if phase not in ("look-up", "connect"):
            await endpoint.closed.wait()
        assert (b"planted" in endpoint.received) <= (phase in ("head", "body"))
        assert endpoint.connections <= 1


@in_event_loop
async def test_requests_that_wait_for_one_name_share_its_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that hangs holds a thread: another name must still get one (rule 31)."""
    monkeypatch.setattr("aiohttp.DefaultResolver", Silent)
    monkeypatch.setattr(Silent, "look_ups", 0)
    tasks = [asyncio.create_task(send("https://a.example.com/token", Hook())) for _ in range(40)]
    await rounds()
    assert Silent.look_ups == 1
    other = asyncio.create_task(send("https://b.example.com/token", Hook()))
    tasks[0].cancel()
    await rounds()
    assert Silent.look_ups == 2
    late = asyncio.create_task(send("https://a.example.com/token", Hook()))
    await rounds()
    assert Silent.look_ups == 3  # the first one has been given up
    for task in (*tasks, other, late):
        task.cancel()
    await asyncio.wait((*tasks, other, late))


@in_event_loop
async def test_a_look_up_serves_all_although_the_first_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails for all of them, too, and asyncio logs nothing."""
    go, outcome = asyncio.Event(), ["127.0.0.1"]

    class Slow(aiohttp.ThreadedResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
            await go.wait()
            if not outcome:
                raise OSError("no such name")
            return await super().resolve(outcome[0], port, family)

    monkeypatch.setattr("aiohttp.DefaultResolver", Slow)
    logged: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: logged.append(context))
    for found, cancelled in ((True, 1), (False, 1), (False, 3)):
        go.clear()
        outcome[:] = ["127.0.0.1"] if found else []
        async with listening(with_head()) as endpoint:
            url = endpoint.url.replace("127.0.0.1", "id.example.com")
            tasks = [asyncio.create_task(send(url, Hook())) for _ in range(3)]
            await rounds()
            for task in tasks[:cancelled]:
                task.cancel()
            await asyncio.wait(tasks[:cancelled])
            go.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            want = [asyncio.CancelledError] * cancelled + [TokenResponse if found else NotSent] * 3
            assert [type(result) for result in results] == want[:3]
            await rounds()
            del tasks, task, results
            gc.collect()
    assert logged == []


@in_event_loop
async def test_a_connection_probes_a_peer_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the wait for a host that is gone ends after 30 s (rule 9)."""
    made: list[socket.socket] = []
    make = transport_module._socket

    def recorded(address: Any) -> socket.socket:
        made.append(make(address))
        return made[-1]

    monkeypatch.setattr(transport_module, "_socket", recorded)
    async with listening(with_head()) as endpoint:

        async def on_sending() -> None:
            (connection,) = made
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                options = (*options, socket.TCP_USER_TIMEOUT)
                seen = [connection.getsockopt(socket.IPPROTO_TCP, option) for option in options]
                assert seen == [15, 5, 3, 30_000]

        await send(endpoint.url, on_sending)


@pytest.mark.parametrize("known", [True, False])
@in_event_loop
async def test_a_platform_without_keepalive_is_served_too(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not know the options, or know them and refuse."""
    if known:
        for name in transport_module._KEEPALIVE:
            monkeypatch.setattr(socket, name, 9_999, raising=False)
    else:
        monkeypatch.setattr(transport_module, "_KEEPALIVE", {"TCP_NO_SUCH_OPTION": 1})
    async with listening(with_head()) as endpoint:
        assert (await send(endpoint.url, Hook())).status == 200
