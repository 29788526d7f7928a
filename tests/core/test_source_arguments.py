"""The arguments of `ManagedSource` and `AuthedSession`: what they open and close, and what they reject."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import pytest
from _moments import holding, refused, under_way
from _rig import Rig, invalid_grant, run, success

from tokensession import (
    AiohttpTransport,
    AuthedSession,
    ConfigurationError,
    EphemeralStoreWarning,
    Event,
    GrantRejected,
    ManagedSource,
    Policy,
    RateLimited,
    SignedOut,
    SignInRequired,
    StoreUnavailable,
    TokenSessionError,
)
from tokensession._refresh.state import Now, decode
from tokensession.clock import SystemClock
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore, SQLiteStore
from tokensession.stores.protocol import ANY, Record
from tokensession.testing import FakeClock, OAuth2Server, Paused, ScriptedTransport, token_response

LIFETIME = 3600

BOTH = pytest.mark.parametrize("opens", [ManagedSource, AuthedSession])


def provider(**changes: Any) -> OAuth2:
    """A provider that rotates its refresh tokens."""
    settings: dict[str, Any] = {
        "token_url": "https://id.example.com/token",
        "base_url": "https://api.example.com",
        "client_id": "client",
        "client_secret": "client-secret",
        "refresh_token": "configured-token",
        "rotates": True,
    }
    return OAuth2(**(settings | changes))


def source_of(opened: ManagedSource | AuthedSession) -> ManagedSource:
    return opened.source if isinstance(opened, AuthedSession) else opened


async def stored_token(path: Path) -> str | None:
    """The refresh token in this database, read by a new store object."""
    store = SQLiteStore(path)
    record = await store.load("account")
    await store.aclose()
    now = Now(SystemClock().wall(), SystemClock().boot())
    token = decode(record.data, now, age=record.age).token if record else None
    return token.refresh_token if token else None


STORES: dict[str, Callable[[Path], str | Path]] = {
    "URL": lambda path: f"sqlite:///{path}",
    "Path": lambda path: path,
}


@BOTH
@pytest.mark.parametrize("form", STORES)
def test_a_store_given_as_url_or_path_is_opened_and_closed(
    tmp_path: Path, opens: type[ManagedSource] | type[AuthedSession], form: str
) -> None:
    """Leaving `async with` closes it: its thread has ended and the token is in the database."""

    async def main() -> None:
        path = tmp_path / "tokens.db"
        before = set(threading.enumerate())
        async with opens(
            provider(),
            transport=ScriptedTransport(success(1)),
            store=STORES[form](path),
            key="account",
            clock=FakeClock(),
        ) as opened:
            assert (await source_of(opened).token()).access_token == "access-1"
            assert set(threading.enumerate()) > before
        assert set(threading.enumerate()) == before
        assert await stored_token(path) == "refresh-1"

    run(main)


def test_a_source_can_be_used_again_after_it_was_closed(tmp_path: Path) -> None:
    """It reopens its store, and closes it again."""

    async def main() -> None:
        before = set(threading.enumerate())
        source = ManagedSource(
            provider(),
            ScriptedTransport(success(1), success(2)),
            store=tmp_path / "tokens.db",
            key="account",
            clock=FakeClock(),
        )
        for number in (1, 2):
            async with source as entered:
                assert entered is source
                assert (await source.refresh()).access_token == f"access-{number}"
        assert set(threading.enumerate()) == before
        assert await stored_token(tmp_path / "tokens.db") == "refresh-2"

    run(main)


@BOTH
def test_a_store_that_you_pass_in_stays_open(opens: type[ManagedSource] | type[AuthedSession]) -> None:
    """Several sources may share it; you close it yourself."""

    class Store(MemoryStore):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    async def main() -> None:
        store = Store()
        async with opens(provider(), transport=ScriptedTransport(success(1)), store=store) as opened:
            await source_of(opened).token()
        assert not store.closed

    run(main)


@BOTH
@pytest.mark.parametrize("wrong", [7, b"sqlite:///tokens.db", ["memory:"]])
def test_something_else_than_a_store_is_rejected_by_its_type(
    opens: type[ManagedSource] | type[AuthedSession], wrong: Any
) -> None:
    """The error names the type and the types that are allowed."""
    with pytest.raises(ConfigurationError, match=f"a store, a URL or a Path, not an? {type(wrong).__name__}"):
        opens(provider(), store=wrong)


def test_a_source_needs_no_transport() -> None:
    """The default sends the token request over HTTP."""

    async def main() -> None:
        async with (
            OAuth2Server() as server,
            ManagedSource(OAuth2(**server.credentials), store="memory:") as source,
        ):
            assert (await source.token()).access_token
            assert server.stats.token_requests == 1

    run(main)


def test_a_transport_without_send_is_rejected_by_its_type() -> None:
    """The error names the type that you passed."""
    with pytest.raises(ConfigurationError, match="a PosixPath has none"):
        ManagedSource(provider(), PosixPath("tokens.db"), store="memory:")  # type: ignore[arg-type]


def test_a_clock_for_the_session_lets_your_test_move_time() -> None:
    """With `AuthedSession(clock=FakeClock())`, the next request after an hour has a new token."""

    async def main() -> None:
        clock = FakeClock()
        async with (
            OAuth2Server(lifetime=LIFETIME, clock=clock) as server,
            AuthedSession(OAuth2(**server.credentials), store="memory:", clock=clock) as session,
        ):
            for token_requests in (1, 2):
                for _ in range(2):
                    async with session.get("/echo") as response:
                        assert response.status == 200
                assert server.stats.token_requests == token_requests
                clock.advance(LIFETIME)

    run(main)


@BOTH
@pytest.mark.parametrize("credential", [{"refresh_token": "r"}, {"refresh_token": None, "code": "c"}])
def test_a_rotating_provider_without_a_store_is_an_error_with_three_ways_out(
    opens: type[ManagedSource] | type[AuthedSession], credential: dict[str, Any]
) -> None:
    """The configured credential works once, and the next one would end with the program."""
    with pytest.raises(ConfigurationError) as caught:
        opens(provider(**credential))
    text = str(caught.value)
    for way in ('store="sqlite:///tokens.db"', 'store="memory:"', "rotates=False"):
        assert text.count(way) == 1, way
    assert "OAuth2" in text


@pytest.mark.parametrize("store", ["memory:", MemoryStore(), "sqlite:///tokens.db"])
def test_any_store_that_you_name_is_accepted_for_a_rotating_provider(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making a source touches no file, and `store="memory:"` says that you accept losing the tokens."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ManagedSource(provider(), store=store)
    assert not list(tmp_path.iterdir())


@BOTH
def test_the_warning_about_a_missing_store_points_at_your_line(
    opens: type[ManagedSource] | type[AuthedSession],
) -> None:
    """Without a credential you sign in later. It names this file and the line of the call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
        opens(provider(refresh_token=None), key="account")
    (warning,) = caught
    assert warning.category is EphemeralStoreWarning
    assert (warning.filename, warning.lineno) == (__file__, line)


@BOTH
def test_no_warning_if_you_ask_for_memory_or_refresh_tokens_do_not_rotate(
    opens: type[ManagedSource] | type[AuthedSession],
) -> None:
    """Then losing the store loses nothing, or you have said that you accept it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opens(provider(refresh_token=None), store="memory:", key="account")
        opens(provider(rotates=False))
        opens(provider(rotates=False, refresh_token=None), key="account")


class WatchedStore(MemoryStore):
    """Notes what is done with it, beyond reading."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.done: list[str] = []

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        self.done.append("claim")
        return await super().claim(key, seen=seen, timeout=timeout)

    async def put(self, key: str, data: bytes, *, expect: Any = ANY) -> Record:
        self.done.append("put")
        return await super().put(key, data, expect=expect)


def checked(*script: Any, **options: Any) -> tuple[Rig, WatchedStore]:
    """A process over a watched store."""
    clock = FakeClock()
    store = WatchedStore(clock=clock)
    return Rig(*script, store=store, clock=clock, **options), store


async def assert_check(rig: Rig, kind: type[TokenSessionError] | None) -> None:
    """`check` raises this, and it claims, writes, sends and reports nothing. `token` would raise the same."""
    store, requests, events = rig.store, rig.token_requests, list(rig.events)
    assert isinstance(store, WatchedStore)
    store.done.clear()
    if kind is None:
        assert (await rig.source.check()) == rig.source.snapshot()
    else:
        await refused(kind, rig.source.check())
    assert (store.done, rig.token_requests, rig.events) == ([], requests, events)


def test_check_is_content_with_a_token_or_a_way_to_get_one() -> None:
    """Before the first token, while one is valid, and after its end."""

    async def main() -> None:
        rig, store = checked(success(1))
        await assert_check(rig, None)
        await rig.access()
        await assert_check(rig, None)
        rig.clock.advance(LIFETIME)
        await assert_check(rig, None)
        fresh = Rig(store=store, clock=rig.clock)
        await assert_check(fresh, None)

    run(main)


def test_check_finds_the_token_that_is_stored() -> None:
    """Its snapshot is that of a process that could serve requests now."""

    async def main() -> None:
        rig, store = checked(success(1))
        await rig.access()
        fresh = Rig(store=store, clock=rig.clock)
        assert (await fresh.source.check()).token == rig.source.snapshot().token
        assert await fresh.access() == "access-1"

    run(main)


@pytest.mark.parametrize("process", ["the same", "another"])
def test_check_raises_what_callers_would_get(process: str) -> None:
    """Signed out, rejected, paused, never signed in: the error says who has to act."""

    async def main() -> None:
        limited = token_response({}, 429, (("retry-after", "600"),))
        ends = [("sign out", SignedOut), (invalid_grant(), GrantRejected), (limited, RateLimited)]
        for end, kind in ends:
            rig, store = checked(success(1), *([] if end == "sign out" else [end]))
            await rig.access()
            rig.clock.advance(LIFETIME)
            if end == "sign out":
                await rig.source.sign_out()
            await refused(kind, rig.access())
            await assert_check(rig if process == "the same" else Rig(store=store, clock=rig.clock), kind)
        nothing, _ = checked(configured=None)
        await assert_check(nothing, SignInRequired)

    run(main)


def test_check_is_content_while_the_token_is_valid_although_requests_are_paused() -> None:
    """A failed background refresh makes no service unready; a sign-out does, at once."""

    async def main() -> None:
        rig, store = checked(success(1), token_response({}, 429, (("retry-after", "600"),)))
        await rig.access()
        rig.clock.advance(LIFETIME - 299)
        await rig.access()
        await rig.refreshed()
        await assert_check(rig, None)
        await Rig(store=store, clock=rig.clock).source.sign_out()
        await assert_check(rig, SignedOut)

    run(main)


def test_check_raises_the_error_of_a_store_that_is_down() -> None:
    """The service could not save its next token."""

    async def main() -> None:
        rig, store = checked(success(1))

        async def down(key: str) -> None:
            raise StoreUnavailable("The disk is gone.")

        store.load = down  # type: ignore[method-assign]
        await assert_check(rig, StoreUnavailable)

    run(main)


def test_check_does_not_disturb_a_running_refresh() -> None:
    """It looks at the store beside it."""

    async def main() -> None:
        paused = Paused(success(1))
        rig, _ = checked(paused)
        caller = await under_way(rig.access(), paused)
        snapshot = await rig.source.check()
        assert snapshot.refreshing
        paused.release()
        assert await caller == "access-1"

    run(main)


def test_check_copies_nothing_from_a_former_default_key() -> None:
    """The first refresh does that."""

    async def main() -> None:
        clock = FakeClock()
        store = WatchedStore(clock=clock)
        plain = await holding(provider=provider(rotates=False), store=store, clock=clock, key=None)
        scoped = Rig(provider=provider(rotates=False, scope="read"), store=store, clock=clock, key=None)
        await assert_check(scoped, None)
        assert await store.keys() == [plain.source.key]

    run(main)


SETTINGS: dict[str, Callable[[], Any]] = {
    "store": MemoryStore,
    "key": lambda: "account",
    "policy": Policy,
    "clock": FakeClock,
    "observer": lambda: print,
    "transport": AiohttpTransport,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_belongs_to_your_source_is_named_in_the_error(name: str) -> None:
    """The session cannot change a `ManagedSource` that you pass in."""
    source = ManagedSource(provider(), store="memory:")
    with pytest.raises(ConfigurationError, match=f"^{name} cannot be set here.*your ManagedSource"):
        AuthedSession(source, **{name: SETTINGS[name]()})


def test_all_settings_that_belong_to_your_source_are_named_at_once() -> None:
    """You see everything that has to move."""
    source = ManagedSource(provider(), store="memory:")
    with pytest.raises(ConfigurationError, match=r"^store, key, clock cannot be set here"):
        AuthedSession(source, clock=FakeClock(), key="account", store="memory:")


def test_a_session_leaves_your_source_open() -> None:
    """Closing the session does not wait for a refresh of a source that you passed in."""

    async def main() -> None:
        paused = Paused(success(1))
        async with ManagedSource(
            provider(), ScriptedTransport(paused), store="memory:", clock=FakeClock()
        ) as source:
            async with AuthedSession(source):
                caller = await under_way(source.token(), paused)
            assert source.snapshot().refreshing
            paused.release()
            assert (await caller).access_token == "access-1"

    run(main)


async def slow_observer(event: Event) -> None:
    raise AssertionError("it is never awaited")


@BOTH
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"key": 42}, "key must be a string, not an int"),
        ({"policy": {"request_timeout": 60}}, "policy must be a Policy, not a dict"),
        ({"clock": 1}, "clock must be a Clock, not an int"),
        ({"observer": 1}, "observer must be a callable that returns at once, not an int"),
        ({"observer": slow_observer}, "observer must be .*, not a coroutine function"),
    ],
)
def test_wrong_settings_are_an_error_at_once(
    opens: type[ManagedSource] | type[AuthedSession], wrong: Any, said: str
) -> None:
    """Not at the first refresh, where they would hide an error of your own."""
    with pytest.raises(ConfigurationError, match=said):
        opens(provider(), store="memory:", **wrong)
