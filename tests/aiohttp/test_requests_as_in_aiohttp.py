"""What aiohttp takes and does, a session takes and does: headers, websockets, cookies, task factories."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import aiohttp
import pytest
from _api import Numbered, api, calling, client_of, echo, has_token, open_websocket, session_of, status
from _event_loop import in_event_loop
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict
from yarl import URL

from tokensession import AuthedSession, BearerAuth, ConfigurationError, ForeignOrigin, ManagedSource
from tokensession.origins import parse_origins, resolve
from tokensession.providers import OAuth2, Oto
from tokensession.stores import MemoryStore
from tokensession.testing import OAuth2Server, OtoServer

HEADERS: dict[str, Callable[[], Any]] = {
    "dict": lambda: {"X-A": "1", "X-B": "2"},
    "pairs": lambda: [("X-A", "1"), ("X-B", "2")],
    "lists": lambda: [["X-A", "1"], ["X-B", "2"]],
    "items": lambda: {"X-A": "1", "X-B": "2"}.items(),
    "zip": lambda: zip(["X-A", "X-B"], ["1", "2"], strict=True),
    "map": lambda: map(tuple, [["X-A", "1"], ["X-B", "2"]]),
    "filter": lambda: filter(None, [("X-A", "1"), ("X-B", "2")]),
    "generator": lambda: (pair for pair in [("X-A", "1"), ("X-B", "2")]),
    "iterator": lambda: iter([("X-A", "1"), ("X-B", "2")]),
    "CIMultiDict": lambda: CIMultiDict({"X-A": "1", "X-B": "2"}),
    "CIMultiDictProxy": lambda: CIMultiDictProxy(CIMultiDict({"X-A": "1", "X-B": "2"})),
    "MultiDict": lambda: MultiDict({"X-A": "1", "X-B": "2"}),
}


@pytest.mark.parametrize("kind", HEADERS)
@in_event_loop
async def test_k40_headers_from_any_iterable_are_sent(kind: str) -> None:
    """Of a request, of a websocket and of the middleware. An iterator can be read once, and aiohttp does."""
    seen: list[tuple[str | None, str | None]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers.get("X-A"), request.headers.get("X-B")))
        return await open_websocket(request) if "Upgrade" in request.headers else web.Response()

    async with api(handle) as base, OtoServer() as server, session_of(server, origins=[base]) as session:
        await session.get(base, headers=HEADERS[kind]())
        await session.ws_connect(base, headers=HEADERS[kind]())
        bearer = BearerAuth(Numbered(), origins=[base], headers=HEADERS[kind]())
        async with aiohttp.ClientSession(base, middlewares=(bearer,)) as client:
            for _ in range(2):
                await client.get("/")
    assert seen == [("1", "2")] * 4


@in_event_loop
async def test_k40_a_header_given_twice_is_sent_twice_as_aiohttp_does() -> None:
    async with OtoServer() as server, session_of(server) as session:
        for client in (session, session.client):
            url = "/open/echo" if client is session else server.base_url + "/open/echo"
            seen = await echo(client.get(url, headers=iter([("X-A", "1"), ("X-A", "2")])))
            assert [value for name, value in seen["headers"] if name == "X-A"] == ["1", "2"]


@pytest.mark.parametrize("kind", HEADERS)
@in_event_loop
async def test_k40_an_authorization_header_in_any_iterable_is_an_error(kind: str) -> None:
    async with AuthedSession(Oto(refresh_token="r")) as session:
        headers = [*CIMultiDict(HEADERS[kind]()).items(), ("authorization", "x")]
        for call in (session.get, session.ws_connect):
            with pytest.raises(ConfigurationError, match=r"session\.client"):
                call("/x", headers=iter(headers))


@pytest.mark.parametrize("wrong", [7, ["secret"], [("a", "secret", "c")], [("a", 7)]])
def test_k40_headers_of_the_middleware_that_are_no_pairs_are_an_error_at_once(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="headers must be a mapping or pairs of strings") as caught:
        BearerAuth(Numbered(), origins=["https://a.example"], headers=wrong)
    assert "secret" not in str(caught.value)


class _Wrapper:
    """A factory that is an object, as some tracing agents install."""

    def __call__(self, loop: asyncio.AbstractEventLoop, coro: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=loop)


FACTORIES: dict[str, Any] = {
    "two arguments": lambda loop, work: asyncio.Task(work, loop=loop),
    "ignores": lambda loop, work, **_: asyncio.Task(work, loop=loop),
    "object": _Wrapper(),
}
if sys.version_info >= (3, 12):
    FACTORIES["eager"] = asyncio.eager_task_factory


@pytest.mark.parametrize("factory", FACTORIES)
@in_event_loop
async def test_k38_any_task_factory_works(factory: str) -> None:
    """Requests, refreshes, sign-ins, websockets and closing."""
    asyncio.get_running_loop().set_task_factory(FACTORIES[factory])
    async with OAuth2Server() as server:
        async with session_of(server, store="memory:") as session:
            assert await status(session.get("/echo")) == 200
            server.revoke_access_tokens()
            requests = (status(session.get("/echo")) for _ in range(10))
            assert set(await asyncio.gather(*requests)) == {200}
            await session.source.sign_in(refresh_token=server.new_credential())
            async with session.ws_connect("/ws"):
                pass


async def _in_a_group(opening: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(opening)
    return task.result()


async def _gathered(opening: Any) -> Any:
    (socket,) = await asyncio.gather(opening)
    return socket


AWAITED: dict[str, Callable[[Any], Any]] = {
    "await": lambda opening: opening,
    "create_task": asyncio.create_task,
    "ensure_future": asyncio.ensure_future,
    "wait_for": lambda opening: asyncio.wait_for(opening, 30),
    "gather": _gathered,
    "TaskGroup": _in_a_group,
    "shield": asyncio.shield,
}


@pytest.mark.parametrize("how", AWAITED)
@in_event_loop
async def test_k46_ws_connect_is_a_coroutine_as_in_aiohttp(how: str) -> None:
    async with OtoServer() as server, session_of(server) as session:
        opening = session.ws_connect("/ws")
        assert asyncio.iscoroutine(opening)
        assert inspect.isawaitable(opening)
        socket = await AWAITED[how](opening)
        await socket.send_str("hello")
        assert (await socket.receive()).data == "hello"
        await socket.close()


@in_event_loop
async def test_k46_a_handshake_that_is_cancelled_or_never_awaited_leaves_nothing_behind() -> None:
    started = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        started.set()
        await asyncio.sleep(60)
        return web.Response()

    async with api(handle) as base, OtoServer() as server:
        async with session_of(server, origins=[base]) as session:
            session.ws_connect(base).close()
            task = asyncio.create_task(session.ws_connect(base))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not session.client.connector._acquired


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # aiohttp's, about every class that inherits

    class Caching(aiohttp.ClientSession):
        """As aiohttp-client-cache's CachedSession: what it answers depends on the URL only."""

        cache: ClassVar[dict[str, Any] | None] = {}

    class NotCaching(aiohttp.ClientSession):
        """A class of a user's own."""


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What has been logged as a warning or worse."""
    caplog.set_level(logging.WARNING, "tokensession")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@in_event_loop
async def test_k41_a_client_with_a_cache_is_warned_of_once_and_works(warned: Callable[[], list[str]]) -> None:
    async with OtoServer() as server, Caching() as client:
        for key in ("alice", "bob"):
            session = session_of(server, client=client, key=key)
            async with session:
                assert await status(session.get("/echo")) == 200
            async with session, session.ws_connect("/ws"):
                pass
    (warning,) = warned()
    assert "another account" in warning
    assert "Make a client with a cache of its own for each account" in warning


@in_event_loop
async def test_k41_the_middleware_warns_of_a_client_with_a_cache_too(warned: Callable[[], list[str]]) -> None:
    async with OtoServer() as server, ManagedSource(Oto(**server.credentials)) as source:
        async with Caching(server.base_url, middlewares=(BearerAuth(source),)) as client:
            for _ in range(3):
                assert await status(client.get("/echo")) == 200
    (warning,) = warned()
    assert "cache" in warning


@in_event_loop
async def test_k41_a_client_without_a_cache_is_not_warned_of(warned: Callable[[], list[str]]) -> None:
    for kind in (NotCaching, aiohttp.ClientSession):
        async with OtoServer() as server, kind() as client, session_of(server, client=client) as session:
            assert await status(session.get("/echo")) == 200
    assert warned() == []


@pytest.mark.parametrize(
    ("set_cookies", "jar", "options", "sent"),
    [
        (["a=1; Path=/"], {}, {}, {"a": "1"}),
        (["a=1", "b=2; HttpOnly"], {}, {}, {"a": "1", "b": "2"}),
        (["a=new"], {"a": "old", "b": "2"}, {}, {"a": "new", "b": "2"}),
        (["a=; Max-Age=0"], {"a": "old", "b": "2"}, {}, {"b": "2"}),
        (["a=; Max-Age=0"], {"a": "old"}, {}, {}),
        (["a=1; Path=/elsewhere"], {"b": "2"}, {}, {"b": "2"}),
        (["a=1; Domain=foreign.example"], {}, {}, {}),
        (["a=theirs"], {"a": "old"}, {"cookies": {"a": "own", "c": "3"}}, {"a": "own", "c": "3"}),
        (["a=1"], {}, {"headers": {"Cookie": "c=3; d=4"}}, {"a": "1", "c": "3", "d": "4"}),
        (['a="x y"'], {}, {}, {"a": "x y"}),
        ([], {"a": "old"}, {}, {"a": "old"}),
    ],
)
@in_event_loop
async def test_k47_cookies_that_a_401_sets_are_kept_and_sent_with_the_replay(
    set_cookies: list[str], jar: dict[str, str], options: dict[str, Any], sent: dict[str, str]
) -> None:
    """As aiohttp's next request does: aiohttp itself sees the last response only."""
    seen: list[dict[str, str]] = []

    async def handle(request: web.Request) -> web.Response:
        if has_token(request, 0):
            return web.Response(status=401, headers=[("Set-Cookie", each) for each in set_cookies])
        seen.append(dict(request.cookies))
        return web.Response()

    async with api(handle) as base:
        async with client_of(base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
            client.cookie_jar.update_cookies(jar, URL(base))
            for _ in range(2):
                async with client.get(base, **options) as response:
                    assert response.status == 200
                    assert not response.cookies  # the last response's own, as in aiohttp
    assert seen == [sent] * 2  # the replay, and the next request


@in_event_loop
async def test_k47_several_requests_with_a_401_are_all_replayed_with_new_cookies() -> None:
    """The first one has put a new cookie into the jar by the time that the others get their 401."""
    waiting, all_there, replayed = [], asyncio.Event(), list[str]()

    async def handle(request: web.Request) -> web.Response:
        if request.cookies["a"] != "old":
            replayed.append(request.cookies["a"])
            return web.Response()
        waiting.append(request)
        if len(waiting) == 3:
            all_there.set()
        await all_there.wait()
        return web.Response(status=401, headers={"Set-Cookie": f"a=new-{waiting.index(request)}"})

    async with api(handle) as base:
        jar = aiohttp.CookieJar(unsafe=True)
        async with client_of(base, cookie_jar=jar) as client:
            jar.update_cookies({"a": "old"}, URL(base))
            answers = await asyncio.gather(*(client.get(base) for _ in range(3)))
            assert [answer.status for answer in answers] == [200] * 3
            assert all(value.startswith("new") for value in replayed)


@in_event_loop
async def test_k47_the_cookies_of_a_401_are_kept_if_the_refresh_fails() -> None:
    class Broken(Numbered):
        async def refresh(self, unauthorized: Any = None) -> Any:
            raise RuntimeError("no token")

    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"Set-Cookie": "a=1"})

    async with calling(handle, Broken(), cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        with pytest.raises(RuntimeError, match="no token"):
            await client.get("/")
        assert [cookie.key for cookie in client.cookie_jar] == ["a"]


ORIGINS = parse_origins(["https://api.example.com"])


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@api.example.com/x",
        "https://user@api.example.com/x",
        "https://:hunter2@api.example.com/x",
        "wss://user:hunter2@api.example.com/x",
        URL("https://user:hunter2@api.example.com/x"),
    ],
)
def test_k47_a_user_or_password_in_a_url_is_an_error_that_does_not_show_it(url: str | URL) -> None:
    """aiohttp would make another Authorization header of it, and ours would silently replace that."""
    session = AuthedSession(Oto(refresh_token="r"), origins=["https://api.example.com"])
    for call in (session.get, session.ws_connect):
        with pytest.raises(ConfigurationError, match=r"user name or password.*session\.client") as caught:
            call(url)
        assert "hunter2" not in str(caught.value)
    assert session._client is None


@pytest.mark.parametrize(
    "url", ["https://user:hunter2@[/", "https://u:hunter2@h:port/", "https://u:hunter2@/"]
)
def test_k47_an_invalid_url_with_a_password_does_not_show_it(url: str) -> None:
    with pytest.raises(aiohttp.InvalidURL) as caught:
        resolve("https://api.example.com", ORIGINS, url)
    shown = [str(caught.value), repr(caught.value), str(caught.value.__cause__), str(caught.value.url)]
    assert not any("hunter2" in text for text in shown)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("https://[2001:db8::1]/x", "https://[2001:db8::1]"),
        ("https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443"),
        ("wss://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443"),
        ("https://bücher.example/x", "https://xn--bcher-kva.example"),
        ("https://xn--bcher-kva.example:444/x", "https://xn--bcher-kva.example:444"),
        ("https://日本.example/", "https://xn--wgv71a.example"),
        ("https://Other.EXAMPLE./", "https://other.example."),
        ("wss://other.example/", "https://other.example"),
        ("//other.example/x", "https://other.example"),
        ("https://user:hunter2@other.example/x", "https://other.example"),
        ("ftp://other.example/x", None),
        ("https://a..example/x", None),
    ],
)
def test_k47_the_advice_of_foreign_origin_is_what_origins_accepts(url: str, advice: str | None) -> None:
    with pytest.raises(ForeignOrigin) as caught:
        resolve("https://api.example.com", ORIGINS, url)
    text = str(caught.value)
    assert "hunter2" not in text
    assert "session.client" in text
    if advice is None:
        assert "origins=" not in text
    else:
        assert f'origins=["{advice}"]' in text
        if not url.startswith("//"):
            clean = url.replace("user:hunter2@", "")
            assert resolve("https://api.example.com", parse_origins([advice]), clean).host


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://other.example", "Use https"),
        ("ws://other.example", "Use wss"),
        ("http://[::1]/", "Use https"),
    ],
)
def test_k47_plain_http_is_not_advised_beside_https(url: str, says: str) -> None:
    with pytest.raises(ForeignOrigin, match=says) as caught:
        resolve("https://api.example.com", ORIGINS, url)
    assert "origins=" not in str(caught.value)


@in_event_loop
async def test_k47_aiohttp_s_own_second_request_carries_the_token_too() -> None:
    """aiohttp sends an idempotent request again, once, if its connection was closed before an answer came."""
    seen: list[tuple[str, bool]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append((request.method, has_token(request, 0)))
        if len(seen) == 1 or request.method == "POST":
            request.transport.close()
        return web.Response()

    async with calling(handle) as client:
        assert await status(client.get("/")) == 200
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.post("/")
    assert seen == [("GET", True), ("GET", True), ("POST", True)]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (Oto, r"auth must be a provider, not the class Oto\. .*Pass an instance: Oto\("),
        (OAuth2, r"auth must be a provider, not the class OAuth2.*Pass an instance: OAuth2\("),
        (ManagedSource, r"auth must be .* not the class ManagedSource.*instance: ManagedSource\("),
        ("https://api.example.com", "auth must be a provider, not a string of 23 .*tokensession.providers"),
        (None, "auth must be a provider, not None"),
        (MemoryStore(), "auth must be a provider, not a MemoryStore"),
    ],
)
@pytest.mark.parametrize("others", [{}, {"store": 42}, {"client": 42}, {"key": 7}, {"origins": 7}])
def test_what_is_wrong_with_auth_is_said_first(wrong: Any, says: str, others: dict[str, Any]) -> None:
    """Before rotation, stores or clients."""
    with pytest.raises(ConfigurationError, match=says):
        AuthedSession(wrong, **others)
