"""The arguments of `ManagedSource` and `AuthedSession`: what they open and close, and what they reject."""

from __future__ import annotations

import asyncio
import inspect
import threading
import warnings
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import pytest
from _rig import run, success

from tokensession import (
    AiohttpTransport,
    AuthedSession,
    ConfigurationError,
    EphemeralStoreWarning,
    Event,
    ManagedSource,
    Policy,
)
from tokensession._refresh.state import decode
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore, SQLiteStore
from tokensession.testing import FakeClock, OAuth2Server, Paused, ScriptedTransport

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
    token = decode(record.data).token if record else None
    return token.refresh_token if token else None


# -- the store ---------------------------------------------------------------------------------------

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


# -- the transport and the clock ---------------------------------------------------------------------


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


# -- without a store ---------------------------------------------------------------------------------


@BOTH
def test_the_warning_about_a_missing_store_points_at_your_line(
    opens: type[ManagedSource] | type[AuthedSession],
) -> None:
    """It names this file and the line of the call, not a line of the library."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
        opens(provider())
    (warning,) = caught
    assert warning.category is EphemeralStoreWarning
    assert (warning.filename, warning.lineno) == (__file__, line)


@BOTH
def test_no_warning_if_you_ask_for_memory_or_refresh_tokens_do_not_rotate(
    opens: type[ManagedSource] | type[AuthedSession],
) -> None:
    """`store="memory:"` says that you accept losing the tokens."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opens(provider(), store="memory:")
        opens(provider(rotates=False))


# -- a session over a source of your own -------------------------------------------------------------

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
                caller = asyncio.create_task(source.token())
                await paused.arrived.wait()
            assert source.snapshot().refreshing
            paused.release()
            assert (await caller).access_token == "access-1"

    run(main)


# -- settings ----------------------------------------------------------------------------------------


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
