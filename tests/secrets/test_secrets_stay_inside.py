"""Secrets stay inside: a search for planted secrets in everything that the library can emit.

Each test runs a real scene with secrets everywhere. A sink collects all output: logs of all loggers at
DEBUG with asyncio in debug mode, warnings, events, the reprs of objects, errors with their causes and
contexts. Then it is searched for each secret in every spelling. What docs/concepts/security.md calls not
protected is shown here too.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import pickle
import re
import traceback
import warnings
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, is_typeddict
from urllib.parse import quote

import aiohttp
import pytest
from _secret_exhibits import exhibits
from _secret_sink import Sink
from _secret_situations import (
    IMPATIENT,
    MISTAKES,
    SITUATIONS,
    Scene,
    Situation,
    cut_short,
    issued,
    oauth2,
    page,
    saved,
    then_no_writes,
    token,
)
from _secret_vault import (
    CLIENT_ID,
    CLIENT_SECRET,
    CODE,
    REFRESH_TOKEN,
    SECOND_REFRESH_TOKEN,
    STORE_PASSWORD,
    Listening,
    Vault,
    access,
    refresh,
)
from _shown import chain

import tokensession
from tokensession import (
    AuthedSession,
    BearerAuth,
    ManagedSource,
    Policy,
    errors,
    events,
    grants,
    providers,
    stores,
    testing,
)
from tokensession.testing import token_response
from tokensession.token import fingerprint

PACKAGE = Path(tokensession.__file__).parent


@pytest.fixture
def sink() -> Sink:
    return Sink(Vault())


def play(sink: Sink, situation: Situation, directory: Path) -> Exception:
    """The error that a situation raises. The sink collects it too."""
    raised: list[Exception] = []

    async def scene() -> None:
        try:
            await situation(Scene(sink, directory))
        except errors.TokenSessionError as error:
            raised.append(error)
            sink.error(error)

    sink.run(scene)
    (error,) = raised
    return error


def public_classes() -> set[type]:
    """But not abstract ones, protocols, and types of dictionaries, which are your own."""
    doors = (tokensession, errors, providers, grants, stores, testing)
    found = [getattr(door, name) for door in doors for name in door.__all__]
    kinds = {kind for kind in found if inspect.isclass(kind) and not inspect.isabstract(kind)}
    return {kind for kind in kinds if not (getattr(kind, "_is_protocol", False) or is_typeddict(kind))}


def test_an_object_of_every_public_class_can_be_logged(sink: Sink, tmp_path: Path) -> None:
    """By repr, str, format, pprint and rich, alone and in containers. Every public class has an exhibit."""
    shown = exhibits(tmp_path)
    assert {kind.__name__ for kind in public_classes()} - {type(thing).__name__ for thing in shown} == set()
    for thing in shown:
        sink.show(thing)
    sink.assert_no_leaks()


def test_every_error_has_a_situation() -> None:
    """All but `StoreError`, which is never raised itself."""
    assert set(errors.__all__) - set(SITUATIONS) == {"StoreError"}


@pytest.mark.parametrize(
    ("name", "situation"),
    [
        pytest.param(name, situation, id=f"{name} {what}")
        for name, several in SITUATIONS.items()
        for what, situation in several.items()
    ],
)
def test_an_error_and_its_log_lines_contain_no_secret(
    name: str, situation: Situation, sink: Sink, tmp_path: Path
) -> None:
    """Causes, suppressed contexts, notes, arguments, attributes, events, and asyncio's debug log."""
    error = play(sink, situation, tmp_path)
    assert type(error).__name__ == name, repr(error)
    sink.assert_no_leaks()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_configuration_error_does_not_repeat_the_wrong_value(mistake: str, sink: Sink) -> None:
    """A wrong value may be a secret in the wrong place."""
    with sink.open(), pytest.raises((errors.ConfigurationError, TypeError)) as caught:
        MISTAKES[mistake]()
    sink.error(caught.value)
    sink.assert_no_leaks()


def cannot_connect(url: str) -> None:
    raise OSError(f"cannot reach {url}")


def test_the_message_of_a_third_party_store_s_error_is_not_shown(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may repeat the URL with its password, so only the error's type is shown."""
    store = EntryPoint("acme", f"{__name__}:cannot_connect", "tokensession.stores")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: EntryPoints([store]))
    with pytest.raises(errors.ConfigurationError, match="OSError") as caught:
        tokensession.open_store(f"acme://user:{STORE_PASSWORD}@db.example/tokens")
    sink.error(caught.value)
    sink.assert_no_leaks()


async def _events_of_writes(stage: Scene) -> None:
    """Sign-ins and sign-outs, refreshes, and a token that cannot be stored at first."""
    sink, directory = stage.sink, stage.directory / "tokens"
    files = stores.FileStore(directory, clock=stage.clock)
    unexpected = token_response(issued(3).body.replace(b"3600", b'"an hour"'))
    no_more_writes = then_no_writes(directory, issued(4))
    source = stage.source(issued(1), issued(2), unexpected, no_more_writes, issued(1), page(500), store=files)
    other = stage.source(store=files)
    await source.sign_in(code=CODE)  # SignInStarted, SignedIn
    assert (await other.token()).access_token == access(1)  # RefreshStarted, Adopted
    assert (await source.refresh(token(1))).access_token == access(2)  # TokenUnauthorized, Refreshed
    stage.clock.advance(3600)
    await source.token()  # UnexpectedResponse
    assert (await source.refresh()).access_token == access(4)  # SaveFailed
    assert source.snapshot().unsaved
    sink.show([source._record.pending, source._record])
    await saved(stage, source, directory)  # Saved
    sink.show(source.snapshot())
    await source.sign_in(refresh_token=SECOND_REFRESH_TOKEN)
    await source.sign_out()  # SignOutStored
    with pytest.raises(errors.TokenUnavailable) as failed:
        await source.sign_in(refresh_token=REFRESH_TOKEN)  # SignInFailed
    with pytest.raises(errors.SignedOut) as signed_out:
        await source.token()  # RefreshFailed
    for caught in (failed, signed_out):
        sink.error(caught.value)
    sink.show(source)
    await source.aclose()
    await files.aclose()


async def _events_of_trouble(stage: Scene) -> None:
    """A lost record, lost answers, a provider that is down, a sign-in that ends, too many requests."""
    store = stores.MemoryStore(clock=stage.clock)
    source = stage.source(issued(1), issued(2), cut_short(), store=store)
    await source.token()
    await store.delete(source.key)
    await source.refresh()  # Restored
    await source.refresh()  # RefreshHeld
    stage.sink.show([source, source.snapshot()])

    patient = stage.source(page(500), issued(1), policy=Policy())
    waiting = asyncio.ensure_future(patient.token())  # AttemptFailed
    while not waiting.done():
        stage.clock.advance(0.1)
        await asyncio.sleep(0)
    assert waiting.result().access_token == access(1)

    def ending(generation: int, days: int) -> Any:
        document = json.loads(issued(generation).body)
        return token_response(document | {"refresh_token_expires_in": days * 86_400})

    source = stage.source(ending(1, 90), ending(2, 2))
    await source.token()
    await source.refresh()  # SignInEndsSoon

    source = stage.source(*[issued(1), issued(2)] * 5, policy=replace(IMPATIENT, requests_per_hour=10))

    async def refresh_too_often() -> None:
        for _ in range(10):
            await source.refresh()

    own = oauth2(revocation_url="https://id.example.com/revoke")
    for answer in (token_response(b""), token_response(refresh(1).encode(), 503)):
        leaving = stage.source(issued(1), answer, provider=own)
        await leaving.token()
        await leaving.sign_out()  # Revoked, RevocationFailed

    with pytest.raises(errors.RateLimited) as caught:
        await refresh_too_often()  # RequestLimitReached
    stage.sink.error(caught.value)


def test_f45_events_of_every_kind_show_fingerprints_only(sink: Sink, tmp_path: Path) -> None:
    """From sign-in to sign-out, with 401s, failures and late writes, events show no secret."""

    async def scene() -> None:
        stage = Scene(sink, tmp_path)
        await _events_of_writes(stage)
        await _events_of_trouble(stage)

    sink.run(scene)
    named = [getattr(events, name) for name in events.__all__]
    kinds = {kind for kind in named if inspect.isclass(kind) and issubclass(kind, events.Event)}
    assert kinds - {events.Event, events.RefreshEnded} == sink.kinds
    shown = "\n".join(text for _, text in sink.texts)
    assert fingerprint(access(1)) in shown
    assert logging.getLogger("asyncio").name in shown  # the debug mode is on
    sink.assert_no_leaks()


async def _failed(sink: Sink, request: Awaitable[Any]) -> None:
    """Make a request that fails, and collect what its error and its response show."""
    try:
        response = await request
        sink.show(response)
        sink.show([response.request_info, response.history, response.headers, response.url])
        response.raise_for_status()
    except (aiohttp.ClientError, errors.TokenSessionError) as error:
        sink.error(error)
    else:
        pytest.fail(f"{response!r} is not a failure")


def test_requests_that_fail_in_every_way_show_no_token(sink: Sink, tmp_path: Path) -> None:
    """401, 403, 500, redirects to both origins, websockets, a closed server, failed refreshes."""

    async def first(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> Any:
        try:
            response = await handler(request)
            sink.show([response, response.request_info])
            return response
        finally:
            sink.show([request, request.headers])

    async def scene() -> None:
        transport = Listening(sink.vault)
        async with (
            testing.OAuth2Server(
                refresh_token=REFRESH_TOKEN, client_secret=CLIENT_SECRET, client_id=CLIENT_ID
            ) as server,
            testing.OtoServer(refresh_token=SECOND_REFRESH_TOKEN) as other,
            aiohttp.ClientSession(middlewares=(first,)) as client,
            AuthedSession(
                providers.OAuth2(**server.credentials),
                store=f"sqlite:///{tmp_path}/tokens.db",
                client=client,
                transport=transport,
                observer=sink.event,
            ) as session,
        ):

            def new_credential() -> str:
                credential = server.new_credential()
                sink.vault.add(credential)
                return credential

            for path in ("/status/401", "/status/403", "/status/500"):
                server.revoke_access_tokens()
                await _failed(sink, session.get(path))
                await _failed(sink, session.post(path, data=b"body", raise_for_status=True))
            forbidden = (one.base_url + "/status/403" for one in (other, server))
            for to in (*forbidden, "http://127.0.0.1:9/"):
                await _failed(sink, session.get("/redirect", params={"to": to}))
            here = f"/redirect?to={server.base_url}/redirect%3Fto%3D/echo"
            await _failed(sink, session.get(here, max_redirects=1))
            for path in ("/status/403", "/echo", f"/redirect?to={other.base_url}/ws"):
                await _failed(sink, session.ws_connect(path))
            server.revoke_access_tokens()
            server.script(
                testing.Reset(),
                testing.Truncate(),
                testing.redirect(f"{other.base_url}/?secret={STORE_PASSWORD}"),
                testing.json_response(401, {"error": "invalid_client", "error_description": CLIENT_SECRET}),
                testing.Response(500, f"<html>{CLIENT_SECRET}".encode()),
            )
            # Returns the 401: the last forced refreshes did not help.
            await _failed(sink, session.get("/echo"))
            for _ in range(5):
                await _failed(sink, session.source.sign_in(refresh_token=new_credential()))
                sink.show([session, session.source, session.source.snapshot()])
            await session.source.sign_in(refresh_token=new_credential())
            async with session.get("/echo") as response:
                assert (await response.json())["authorized"]
                sink.show([response, response.request_info])
            assert any(seen.token for seen in server.log)
            await server.close()
            await _failed(sink, session.get("/echo"))

    sink.run(scene)
    sink.assert_no_leaks()
    assert "Bearer [redacted]" in "".join(text for _, text in sink.texts)


def test_tasks_that_are_cancelled_are_reported_without_secrets(sink: Sink, tmp_path: Path) -> None:
    """A refresh and a sign-in that are running: their names, reprs, and what asyncio logs about them."""

    async def scene() -> None:
        stage = Scene(sink, tmp_path)
        async with testing.OAuth2Server(refresh_token=REFRESH_TOKEN, client_secret=CLIENT_SECRET) as server:
            code = server.new_code()
            sink.vault.add(code)
            transport = Listening(sink.vault)
            source = stage.source(transport=transport, provider=providers.OAuth2(**server.credentials))
            async with server.hold("after") as gate:
                waiting = [asyncio.ensure_future(source.token())]
                await gate.reached()
                waiting.append(asyncio.ensure_future(source.sign_in(code=code)))
                while IMPATIENT.sign_in_wait not in stage.clock.sleepers:  # for the claim of the refresh
                    await asyncio.sleep(0)
                stage.clock.advance(IMPATIENT.sign_in_wait)
                await gate.reached(2)
                for task in asyncio.all_tasks():
                    sink.add("task", f"{task!r} {task.get_name()} {task.get_coro()!r}")
                    task.print_stack()
                    if task.get_name().startswith("tokensession"):
                        task.cancel()
                for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                    assert isinstance(outcome, errors.TokenSessionError), outcome
                    sink.error(outcome)
        asyncio.get_running_loop().call_exception_handler({"message": "planted", "future": waiting[0]})

    sink.run(scene)
    sink.assert_no_leaks()


CALLER = "what its caller passed in"
RESPONSE = "the token response being read"
PASSED = {
    "middleware.py": {"allowed", "origins", "source"},
    "transport.py": {"proxy", "ssl"},
    "origins.py": {"path", "raw", "target", "url", "value", "values"},
    "session.py": {"auth", "chosen", "client", "headers", "kwargs", "options", "store", "target", "url"},
    "source.py": {"code", "code_verifier", "device_code", "provider", "refresh_token", "store"},
}
"""In these modules, only these locals, which the caller passed in, may have secrets."""
EXPOSED = {
    **dict.fromkeys((*PASSED, "_validate.py", "stores/memory.py", "stores/urls.py"), CALLER),
    **dict.fromkeys(("stores/_keys.py", "stores/postgres.py", "stores/redis.py"), CALLER),
    **dict.fromkeys(("providers/protocol.py", "providers/strategy_provider.py"), CALLER),
    **dict.fromkeys(("providers/client_auth.py", "providers/secret_values.py"), CALLER),
    **dict.fromkeys(("grants/authorization.py", "grants/device.py"), CALLER),
    **dict.fromkeys(("providers/oauth2.py", "providers/oto.py", "providers/priava.py"), CALLER),
    **dict.fromkeys(("_redact.py", "providers/response.py", "providers/_wire.py"), RESPONSE),
}
"""Modules whose frames in a traceback may have secrets among their locals, and which secrets."""


def exposed(error: BaseException, vault: Vault) -> set[tuple[str, str]]:
    """(module, local) for every local of our frames that contains a secret."""
    found = set()
    for link in chain(error):
        for frame, _ in traceback.walk_tb(link.__traceback__):
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                name = path.relative_to(PACKAGE).as_posix()
                shown = {local: _shown(value) for local, value in frame.f_locals.items()}
                found |= {(name, local) for local, text in shown.items() if any(vault.find(text))}
    return found


def _shown(value: object) -> str:
    try:
        return repr(value)
    except AttributeError:  # an object whose constructor raised an error
        return object.__repr__(value)


def test_locals_of_frames_show_secrets_only_where_the_page_on_security_says_so(
    sink: Sink, tmp_path: Path
) -> None:
    """What an error tracker that captures locals gets with each error."""
    raised: list[BaseException] = []
    situations = [situation for several in SITUATIONS.values() for situation in several.values()]
    for number, situation in enumerate(situations):
        (tmp_path / str(number)).mkdir()
        raised.append(play(sink, situation, tmp_path / str(number)))
    for mistake in MISTAKES.values():
        with pytest.raises((errors.ConfigurationError, TypeError)) as caught:
            mistake()
        raised.append(caught.value)
    found = set().union(*(exposed(error, sink.vault) for error in raised))
    assert found, "the search through locals finds nothing"
    assert {module for module, _ in found} <= set(EXPOSED), found
    for module, allowed in PASSED.items():
        assert {local for name, local in found if name == module} <= allowed
    page = (PACKAGE.parent / "docs" / "concepts" / "security.md").read_text(encoding="utf-8")
    for module, what in EXPOSED.items():
        assert re.search(rf"^\| .*`{re.escape(module)}`.* \| {what}", page, re.MULTILINE), module


@pytest.mark.parametrize("kind", [stores.FileStore, stores.SQLiteStore])
def test_file_names_lock_files_and_keys_contain_no_secret(
    kind: type[stores.FileStore | stores.SQLiteStore], sink: Sink, tmp_path: Path
) -> None:
    """During a claim and after it. (The records themselves are not encrypted.)"""

    def look() -> None:
        for path in tmp_path.rglob("*"):
            sink.add("file name", str(path))
            if path.suffix in (".lock", ".write"):
                sink.add("lock file", path.read_bytes().decode("latin-1"))

    async def scene() -> None:
        async with testing.PriavaServer(
            code=CODE, client_secret=CLIENT_SECRET, client_id=CLIENT_ID
        ) as server:
            store = kind(tmp_path / "tokens")
            transport = Listening(sink.vault)
            provider = providers.Priava(**server.credentials)
            source = ManagedSource(provider, transport, store=store, observer=sink.event)
            async with server.hold("before") as gate:
                waiting = asyncio.ensure_future(source.token())
                await gate.reached()
                look()
            await waiting
            await source.refresh()
            look()
            address = f"EU@{server.base_url}"
            assert await store.keys() == [f"priava/{address}/{CLIENT_ID}/{fingerprint(CODE)}"]
            sink.show([store, await store.keys(), source.key])
            await store.aclose()

    sink.run(scene)
    sink.assert_no_leaks()
    records = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert any(any(sink.vault.find(record)) for record in records)


class Leaky:
    def __init__(self, shown: str) -> None:
        self.shown = shown

    def __repr__(self) -> str:
        return self.shown


def _error(context: str = "", note: str = "") -> Exception:
    error = ValueError("something failed")
    error.__context__, error.__suppress_context__ = LookupError(context), True
    error.add_note(note)
    return error


def _served(sink: Sink) -> None:
    sink.vault.add("issued-4711")
    sink.add("x", "Bearer ISSUED-4711")


def _within(sink: Sink, leak: Callable[[], object]) -> None:
    """In an event loop."""

    async def scene() -> None:
        made = leak()
        if inspect.isawaitable(made):
            await made

    sink.run(scene)


LEAKS: dict[str, Callable[[Sink], object]] = {
    "repr of an object": lambda sink: sink.show(Leaky(REFRESH_TOKEN)),
    "an object within a container": lambda sink: sink.show({"it": [Leaky(CODE)]}),
    "an event": lambda sink: sink.event(events.UnexpectedResponse("key", f"unexpected: {access(1)}")),
    "an event, percent-encoded": lambda sink: sink.event(
        events.UnexpectedResponse(f"key/{quote(REFRESH_TOKEN, safe='')}", "")
    ),
    "an error's suppressed context": lambda sink: sink.error(_error(context=REFRESH_TOKEN)),
    "an error's note": lambda sink: sink.error(_error(note=f"sent {refresh(1)}")),
    "an error's member": lambda sink: sink.error(
        ExceptionGroup("several", [ValueError(SECOND_REFRESH_TOKEN)])
    ),
    "a Basic credential": lambda sink: sink.show(providers.basic_auth("another-client", CLIENT_SECRET)),
    "base64 in the middle of something": lambda sink: sink.add(
        "x", b64encode(f"ab{access(1)}cd".encode()).decode()
    ),
    "JSON": lambda sink: sink.add("x", json.dumps({"refresh_token": refresh(1)})),
    "half a secret": lambda sink: sink.add("x", REFRESH_TOKEN[: len(REFRESH_TOKEN) // 2]),
    "a token that a server issued": _served,
    "a task's name": lambda sink: _within(
        sink, lambda: asyncio.create_task(asyncio.sleep(0), name=f"refresh {REFRESH_TOKEN}")
    ),
    "a warning": lambda sink: _within(
        sink, lambda: warnings.warn(f"unclosed {access(2)}", ResourceWarning, stacklevel=1)
    ),
    "the exception handler": lambda sink: _within(
        sink,
        lambda: asyncio.get_running_loop().call_exception_handler(
            {"message": "lost", "handle": Leaky(REFRESH_TOKEN)}
        ),
    ),
    "something printed": lambda sink: _within(sink, lambda: print(CLIENT_SECRET)),
    "a log line of another library": lambda sink: _within(
        sink, lambda: logging.getLogger("another.library").debug("about %s", Leaky(access(3)))
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_planted_leak_is_found(leak: str, sink: Sink) -> None:
    """Each kind of output is tried with one leak, because the search itself may be wrong."""
    LEAKS[leak](sink)
    with pytest.raises(AssertionError, match=r"\d+ leaks"):
        sink.assert_no_leaks()


def test_what_is_not_protected_is_as_the_page_on_security_says(sink: Sink) -> None:
    """aiohttp's tracing of sent headers, middleware after ours, and state that is taken apart on purpose."""
    seen: list[str] = []

    async def after(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> Any:
        seen.append(str(request.headers))
        return await handler(request)

    async def sent(_session: Any, _context: Any, params: aiohttp.TraceRequestHeadersSentParams) -> None:
        seen.append(repr(params))

    class Fixed:
        async def token(self) -> Any:
            return token()

    async def scene() -> None:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(sent)
        async with testing.OtoServer() as server:
            ours = BearerAuth(Fixed(), origins=[server.base_url])
            async with aiohttp.ClientSession(middlewares=(ours, after), trace_configs=[trace]) as client:
                async with client.get(server.base_url + "/open/echo") as response:
                    assert response.status == 200

    asyncio.run(scene())
    seen += [repr(vars(oauth2())), repr(pickle.dumps(token()))]
    assert [any(sink.vault.find(text)) for text in seen] == [True] * 4
