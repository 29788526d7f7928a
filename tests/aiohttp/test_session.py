"""`AuthedSession` over real servers: every way to open, use and close it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import tracemalloc
import warnings
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from _api import echo, rounds, session_of, status
from _event_loop import in_event_loop
from yarl import URL

from tokensession import (
    AiohttpTransport,
    AuthedSession,
    ConfigurationError,
    EphemeralStoreWarning,
    ForeignOrigin,
    ManagedSource,
    OutcomeUnknown,
    Policy,
    SignInRequired,
)
from tokensession.origins import origin_of, parse_origins, resolve
from tokensession.providers import OAuth2, Oto, Priava
from tokensession.stores import FileStore, MemoryStore, SQLiteStore, open_store
from tokensession.testing import (
    FakeClock,
    OtoServer,
    PriavaServer,
    Reset,
    ScriptedTransport,
    json_response,
    token_response,
)

STORES = ["sqlite:///{}/tokens.db", "file://{}/tokens"]


@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete", "options"])
@in_event_loop
async def test_each_method_sends_what_aiohttp_would_and_the_token(method: str) -> None:
    async with OtoServer() as server, session_of(server) as session:
        call = getattr(session, method)
        options = {"params": {"q": "a&b c"}, "headers": {"X-Own": "1"}, "data": b"body"}
        seen = await echo(call("/echo", **options))
        assert (seen["method"], seen["body"], seen["authorized"]) == (method.upper(), "body", True)
        assert seen["query"] == "q=a%26b c"
        assert ["X-Own", "1"] in seen["headers"]


@in_event_loop
async def test_head_and_request_and_awaiting_work_as_in_aiohttp() -> None:
    """`await session.request(...)` gives the response; HEAD follows no redirect."""
    async with OtoServer() as server, session_of(server) as session:
        response = await session.request("GET", "/echo")
        assert (await response.json())["authorized"]
        assert await status(session.head("/redirect", params={"to": "/echo"})) == 302


@in_event_loop
async def test_a_websocket_is_opened_with_the_token_and_survives_a_revoked_token() -> None:
    """The handshake is a request like any other: origin check, 401, replay, no secret in its errors."""
    async with OtoServer() as server, session_of(server) as session:
        async with session.ws_connect("/ws") as socket:
            await socket.send_str("hello")
            assert (await socket.receive()).data == "hello"
        server.revoke_access_tokens()
        socket = await session.ws_connect(server.base_url.replace("http", "ws") + "/ws")
        await socket.send_bytes(b"again")
        assert (await socket.receive()).data == b"again"
        await socket.close()
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect("/status/403")
        assert caught.value.request_info.headers["Authorization"] == "Bearer [redacted]"
        with pytest.raises(ForeignOrigin):
            session.ws_connect("wss://elsewhere.example/ws")
        assert server.stats.token_requests == 2


@pytest.mark.parametrize(
    ("relative", "path", "query"),
    [
        ("/rest/x", "/api/rest/x", ""),
        ("rest/x", "/api/rest/x", ""),
        ("/rest/a%2Fb", "/api/rest/a%2Fb", ""),
        ("?q=1", "/api", "q=1"),
        ("", "/api", ""),
        ("/x?to=https://a/b", "/api/x", "to=https://a/b"),
        (URL("/y%20z"), "/api/y%20z", ""),
    ],
)
def test_relative_urls_are_appended_to_the_base_path(relative: str | URL, path: str, query: str) -> None:
    """Joining them would drop `/api`."""
    url = resolve(priava().base_url, parse_origins(priava().origins), relative)
    assert (url.raw_path, url.raw_query_string, str(url.origin())) == (path, query, "https://api.priava.com")


def priava(**options: Any) -> Priava:
    known = {"client_id": "c", "client_secret": "s", "redirect_uri": "https://my.app.com/cb", "code": "x"}
    return Priava(**(known | {"region": "EU"} | options))


@pytest.mark.parametrize(
    "foreign",
    [
        "https://evil.example/x",
        "http://api.priava.com/api/x",
        "https://api.priava.com:444/x",
        "https://api.priava.com.evil.example/x",
        "https://api.priava.com@evil.example/x",
        "//evil.example/x",
        "ftp://api.priava.com/x",
    ],
)
def test_f37_a_foreign_origin_raises_before_anything_is_opened(foreign: str) -> None:
    """A URL of another origin raises before anything is sent, and the error says how to allow it."""
    session = AuthedSession(priava(), store=MemoryStore())
    with pytest.raises(ForeignOrigin, match=r"session\.client"):
        session.get(foreign)
    assert session._client is None


@pytest.mark.parametrize("escape", ["../x", "/a/../../b", "/%2e%2e/b", "/../apix/y", URL("/a/../b")])
def test_a_relative_url_cannot_leave_the_base_path(escape: str | URL) -> None:
    session = AuthedSession(priava(), store=MemoryStore())
    with pytest.raises(ConfigurationError, match="base path"):
        session.get(escape)


@pytest.mark.parametrize(
    "home", ["https://api.priava.com/x", "https://API.priava.com:443/x", "wss://api.priava.com/"]
)
def test_other_spellings_of_the_origin_are_the_same_origin(home: str) -> None:
    """Upper case, the default port, a websocket."""
    url = resolve(priava().base_url, parse_origins(priava().origins), home)
    assert url.host == "api.priava.com"


@pytest.mark.parametrize("relative", ["/x", URL("/x")])
def test_upper_case_in_the_base_url_is_the_same_origin(relative: str | URL) -> None:
    """Otherwise the middleware would not recognize the origin, and the request would have no token."""
    origins = parse_origins(["https://API.example.com"])
    url = resolve("https://API.example.com/api", origins, relative)
    assert origin_of(url) in origins
    assert str(url) == "https://api.example.com/api/x"


@pytest.mark.parametrize("nonsense", [None, 7, b"/x", "https://[", "https://x:y/"])
def test_an_invalid_url_raises_invalidurl(nonsense: Any) -> None:
    with pytest.raises(aiohttp.InvalidURL):
        resolve("https://api.example.com", parse_origins(["https://api.example.com"]), nonsense)


def test_the_cache_of_urls_does_not_mix_sessions() -> None:
    one, other = parse_origins(["https://one.example"]), parse_origins(["https://other.example"])
    for _ in range(2):
        assert resolve("https://one.example", one, "/x") == URL("https://one.example/x")
        assert resolve("https://other.example", other, "/x") == URL("https://other.example/x")
        assert resolve("https://one.example", one, "https://one.example/y").host == "one.example"
        with pytest.raises(ForeignOrigin):
            resolve("https://other.example", other, "https://one.example/y")


@in_event_loop
async def test_another_origin_can_be_allowed() -> None:
    """`origins=` adds to the provider's own."""
    async with OtoServer() as server, OtoServer() as other:
        async with session_of(server, origins=[other.base_url]) as session:
            assert (await echo(session.get(other.base_url + "/open/echo")))["authorized"]


def test_plain_http_cannot_be_allowed_as_an_origin() -> None:
    """Except on the loopback interface."""
    with pytest.raises(ConfigurationError, match="http://"):
        AuthedSession(priava(), store=MemoryStore(), origins=["http://api.example.com"])


@in_event_loop
async def test_the_plain_client_sends_no_token() -> None:
    async with OtoServer() as server, session_of(server) as session:
        assert not (await echo(session.client.get(server.base_url + "/open/echo")))["authorized"]


@pytest.mark.parametrize(
    "credentials",
    [
        {"headers": {"authorization": "Basic x"}},
        {"headers": [("Authorization", "x")]},
        {"auth": ("user", "password")},
    ],
)
@in_event_loop
async def test_other_credentials_on_a_request_are_an_error(credentials: dict[str, Any]) -> None:
    """Silently preferring one of the two would be wrong either way."""
    async with AuthedSession(Oto(refresh_token="r")) as session:
        with pytest.raises(ConfigurationError, match=r"session\.client"):
            session.get("/x", **credentials)


@in_event_loop
async def test_your_own_client_stays_open_and_its_middlewares_do_not_see_the_token() -> None:
    """A client that you pass is not closed, changed or bypassed. Our middleware comes last."""
    seen: list[str | None] = []

    async def own(request: Any, handler: Any) -> Any:
        seen.append(request.headers.get("Authorization"))
        return await handler(request)

    async with OtoServer() as server, aiohttp.ClientSession(middlewares=(own,)) as client:
        async with session_of(server, client=client) as session:
            assert (await echo(session.get("/echo")))["authorized"]
            assert await status(session.get("/echo", middlewares=(own, own))) == 200
            async with session.ws_connect("/ws"):
                pass
        assert session.closed
        assert not client.closed
        assert seen == [None] * 4


@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
@in_event_loop
async def test_f19_tokens_survive_a_restart_and_the_next_refresh_uses_the_rotated_one(
    tmp_path: Path, kind: type[FileStore] | type[SQLiteStore]
) -> None:
    """With one file or database for three starts, the second and third refresh send the rotated token."""
    async with PriavaServer() as server:
        for number in range(3):
            store = kind(tmp_path / "tokens")
            async with session_of(server, store=store) as session:
                if number:
                    await session.source.refresh()
                assert await status(session.get("/echo")) == 200
            await store.aclose()
            assert server.stats.token_requests == 1 + number
        assert server.stats.reuse_detections == 0


def test_the_error_of_a_missing_store_names_no_argument_that_the_provider_does_not_have() -> None:
    with pytest.raises(ConfigurationError) as caught:
        AuthedSession(priava())
    assert "rotates" not in str(caught.value.todo)


def test_a_rotating_provider_without_a_store_and_a_credential_warns_once() -> None:
    """It starts with a sign-in, which would be lost at exit."""
    with pytest.warns(EphemeralStoreWarning, match="sqlite:///tokens.db") as caught:
        AuthedSession(oauth2(refresh_token=None), key="account")
    assert len(caught) == 1


def oauth2(**options: Any) -> OAuth2:
    known = {"token_url": "https://id.example.com/token", "client_id": "c", "client_secret": "s"}
    return OAuth2(**(known | {"refresh_token": "r"} | options))


@in_event_loop
async def test_it_can_be_opened_in_one_task_and_closed_in_another() -> None:
    """It holds no cancel scope and no task group."""
    async with OtoServer() as server:
        session = session_of(server)
        await asyncio.create_task(session.__aenter__())
        assert await asyncio.create_task(status(session.get("/echo"))) == 200
        await asyncio.create_task(session.close())
        await session.close()
        assert session.closed
        with pytest.raises(RuntimeError, match="closed"):
            session.get("/echo")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("url", ["memory:", *STORES])
def test_f42_the_same_objects_work_in_two_event_loops_one_after_the_other(
    tmp_path: Path, url: str, loop: str
) -> None:
    """A session, store and provider made outside any event loop work in one and then another, also uvloop."""
    factory = __import__("uvloop").new_event_loop if loop == "uvloop" else None
    server, store = OtoServer(), open_store(url.format(tmp_path))
    sessions: list[AuthedSession] = []

    async def use() -> str:
        async with server:
            if not sessions:
                sessions.append(session_of(server, store=store))
            async with sessions[0] as session:
                assert await status(session.get("/echo")) == 200
                await session.source.refresh()
                return (await session.source.token()).fingerprint

    def in_a_new_loop(work: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(work)

    assert in_a_new_loop(use()) != in_a_new_loop(use())
    in_a_new_loop(store.aclose())


def test_f42_a_session_left_open_by_one_loop_can_be_used_in_the_next() -> None:
    """A session that was not closed before its loop ended opens a new client in the next loop."""
    server = OtoServer()

    async def first() -> AuthedSession:
        async with server:
            session = session_of(server)
            await echo(session.get("/echo", headers={"Connection": "close"}))
        return session

    async def second(session: AuthedSession) -> int:
        async with server, session:
            return await status(session.get("/echo"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        session = asyncio.run(first())
        assert asyncio.run(second(session)) == 200
        gc.collect()


@in_event_loop
async def test_f32_a_hundred_requests_after_a_revocation_cause_one_refresh_and_all_succeed() -> None:
    """A hundred requests with a revoked token cause one token request, and all hundred succeed."""
    async with OtoServer() as server, session_of(server) as session:
        await session.get("/echo")
        server.revoke_access_tokens()
        posts = (echo(session.post("/echo", json={"n": 1})) for _ in range(100))
        assert {seen["body"] for seen in await asyncio.gather(*posts)} == {'{"n": 1}'}
        assert server.stats.token_requests == 2


@in_event_loop
async def test_without_a_token_no_request_is_sent() -> None:
    """The request raises the error of the token request."""
    async with PriavaServer() as server:
        server.script(json_response(400, {"error": "invalid_grant"}))
        async with session_of(server, store=MemoryStore()) as session:
            with pytest.raises(SignInRequired):
                await session.get("/open/echo")
        assert server.stats.requests == 0


@pytest.mark.parametrize("url", ["", *STORES], ids=["your own", "sqlite", "file"])
@in_event_loop
async def test_f18_closing_waits_for_the_refresh_before_it_closes_the_store(tmp_path: Path, url: str) -> None:
    """The rotated token is stored and comes to those who wait, although the first caller is cancelled."""
    where = url.format(tmp_path) or MemoryStore()
    async with PriavaServer() as server:
        session = session_of(server, store=where)
        async with server.hold("after") as gate:
            first, other = (asyncio.create_task(session.source.token()) for _ in range(2))
            await gate.reached()
            first.cancel()
            closing = asyncio.create_task(session.close())
            await rounds()
            assert not closing.done()
        await closing
        token = await other
        async with session_of(server, store=where) as again:
            assert (await again.source.token()).fingerprint == token.fingerprint
            assert await status(again.get("/echo")) == 200
            assert server.stats.token_requests == 1
            assert (await again.source.refresh()).fingerprint != token.fingerprint
        assert (server.stats.token_requests, server.stats.reuse_detections) == (2, 0)


@in_event_loop
async def test_f18_mutant_15_closing_ends_the_refresh_first_then_the_store_then_the_client(
    tmp_path: Path,
) -> None:
    """The refresh needs the store, and the requests that wait for its token need the client."""
    seen: list[tuple[bool, bool, bool]] = []
    async with PriavaServer() as server:
        session = session_of(server, store=tmp_path / "tokens.db")
        client, store = session.client, session.source._owned_store
        assert isinstance(store, SQLiteStore)
        async with server.hold("after") as gate:
            request = asyncio.create_task(session.source.token())
            await gate.reached()
            closing = asyncio.create_task(session.close())
            while not closing.done():
                await asyncio.sleep(0)
                open_now = (session.source.snapshot().refreshing, store._worker.open, not client.closed)
                if open_now not in seen:
                    seen.append(open_now)
                gate.open()
        await request
    assert (seen[0], seen[-1]) == ((True, True, True), (False, False, False))
    assert sorted(seen, reverse=True) == seen
    assert not {(True, True, False), (False, True, False)} & set(seen)


SPENT = pytest.mark.parametrize("spent", [False, True], ids=["before it is spent", "after"])


@SPENT
@in_event_loop
async def test_f39_a_reset_connection_causes_one_token_request_for_all_waiting_requests(spent: bool) -> None:
    """If the connection is reset after sending, there is one token request, and no API request is sent."""
    clock, policy = FakeClock(), Policy(retry_within=0)
    async with PriavaServer(clock=clock) as server:
        async with session_of(server, store="memory:", clock=clock, policy=policy) as session:
            await session.source.token()
            clock.advance(server.lifetime)
            server.script(*[Reset(spent=spent)] * 3)
            found = await asyncio.gather(*(session.get("/echo") for _ in range(20)), return_exceptions=True)
            assert {type(error) for error in found} == {OutcomeUnknown}
        assert (server.stats.token_requests, server.stats.requests) == (2, 0)


@in_event_loop
async def test_f53_f66_requests_wait_through_reset_connections_and_succeed() -> None:
    """However many there are while the requests wait: it heals by itself."""
    clock = FakeClock()
    async with PriavaServer(clock=clock) as server:
        async with session_of(server, store="memory:", clock=clock) as session:
            await session.source.token()
            clock.advance(server.lifetime)
            server.script(*[Reset(spent=False)] * 4)
            requests = asyncio.gather(*(session.get("/echo") for _ in range(20)))
            while not requests.done():
                await asyncio.sleep(0)
                if clock.sleepers and clock.sleepers[0] <= 2:  # a pause, and no time-out
                    clock.advance(clock.sleepers[0])
            assert {response.status for response in await requests} == {200}
        assert (server.stats.token_requests, server.stats.reuse_detections) == (6, 0)


@pytest.mark.parametrize("store", [None, "memory:", *STORES])
@in_event_loop
async def test_f34_a_store_that_is_opened_here_has_the_clock_of_the_session(
    tmp_path: Path, store: str | None
) -> None:
    """Otherwise the age of its records says that no time has passed, and an expired token looks new."""
    clock = FakeClock()
    async with OtoServer(clock=clock) as server:
        for _ in range(2):
            async with session_of(server, store=store and store.format(tmp_path), clock=clock) as session:
                await session.source.token()
                opened, key = session.source._owned_store, session.source.key
                before: Any = await opened.load(key)
                clock.advance(1000)
                after: Any = await opened.load(key)
                assert after.age - before.age == 1000


@SPENT
@in_event_loop
async def test_f39_f63_a_code_is_sent_twice_at_most_if_its_connection_is_reset(spent: bool) -> None:
    """Once more, at once. Then the requests say to sign in again."""
    async with PriavaServer() as server:
        server.script(*[Reset(spent=spent)] * 3)
        async with session_of(server, store="memory:") as session:
            found = await asyncio.gather(*(session.get("/echo") for _ in range(20)), return_exceptions=True)
            assert all(isinstance(error, SignInRequired) for error in found)
        assert (server.stats.token_requests, server.stats.requests) == (2, 0)


@contextlib.contextmanager
def costs_at_most(bound: int) -> Iterator[None]:
    """What is made inside of it, and kept, takes no more bytes."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    yield
    gc.collect()
    cost = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert cost <= bound


@in_event_loop
async def test_f44_an_idle_session_costs_at_most_two_kibibytes_and_no_task() -> None:
    """Ten thousand idle sessions over one store and one client cost at most 2 KiB each, and no task."""
    store = MemoryStore()
    async with OtoServer() as server, aiohttp.ClientSession() as client:
        provider = Oto(**server.credentials)

        def make(number: int) -> AuthedSession:
            return AuthedSession(provider, store=store, client=client, key=f"tenant-{number}")

        warm = [make(-1 - number) for number in range(100)]
        keys = [f"tenant-{number}" for number in range(10_000)]
        with costs_at_most(2048 * len(keys)):
            sessions = [AuthedSession(provider, store=store, client=client, key=key) for key in keys]
        assert len(asyncio.all_tasks()) == 1
        for session in sessions[:50] + warm[:50]:
            assert await status(session.get("/echo")) == 200
        ours = [task for task in asyncio.all_tasks() if "tokensession" in task.get_name()]
        assert ours == []


@in_event_loop
async def test_a_source_with_a_token_costs_at_most_two_kibibytes() -> None:
    """Not counting the token's own characters."""
    store = MemoryStore()
    async with OtoServer() as server:
        provider = Oto(**server.credentials)
        keys = [f"tenant-{number}" for number in range(300)]
        sources = [ManagedSource(provider, AiohttpTransport(), store=store, key=key) for key in keys]
        await sources.pop().token()
        record: Any = await store.load(keys[-1])
        for key in keys:
            await store.put(key, record.data)
        with costs_at_most(2048 * len(sources)):
            for source in sources:
                await source.token()


def test_f45_repr_shows_state_and_no_secret() -> None:
    """The reprs of session, source, provider and store show state, and no secret."""
    provider = oauth2(client_secret="planted-s", refresh_token="planted-r")
    session = AuthedSession(provider, store=MemoryStore())
    shown = repr(session) + repr(session.source) + repr(provider) + repr(vars(provider).keys()) + str(session)
    assert "planted" not in shown
    assert "open" in repr(session)
    assert sys.getsizeof(session) < 300


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"store": MemoryStore}, "store must be .* not the class MemoryStore"),
        ({"transport": "https://id.example.com"}, "transport must have a send method"),
        ({"client": "https://api.example.com"}, "ClientSession"),
    ],
)
def test_invalid_arguments_are_an_error_at_once(wrong: dict[str, Any], says: str) -> None:
    """Not an AttributeError at the first request."""
    with pytest.raises(ConfigurationError, match=says):
        AuthedSession(Oto(refresh_token="r"), **wrong)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@in_event_loop
async def test_eager_tasks_change_nothing_and_leave_nothing_behind() -> None:
    """A refresh may be over before its starter continues."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    answers = (token_response({"access_token": f"a{n}", "expires_in": 60}) for n in range(50))
    transport = ScriptedTransport(*answers)
    source = ManagedSource(Oto(refresh_token="r"), transport, store=MemoryStore())
    for _ in range(50):
        await source.refresh()
    assert repr(source._coordinator._tasks) == "<SharedTasks 0 running>"
    assert source._coordinator._current is None
    assert not source._coordinator._tasks._tasks
