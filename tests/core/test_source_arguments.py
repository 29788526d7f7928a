"""The arguments of `ManagedSource` and `AuthedSession`: what they open and close, and what they reject."""

from __future__ import annotations

import inspect
import threading
import warnings
from pathlib import Path, PosixPath
from typing import Any

import pytest
from _moments import beside, refused, under_way
from _rig import LIFETIME, Rig, invalid_grant, run, success
from _scripted_store import ScriptedStore, fail, scripted

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
    sign_out,
)
from tokensession._refresh.state import Now, decode
from tokensession.clock import SystemClock
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore, SQLiteStore
from tokensession.testing import FakeClock, OAuth2Server, Paused, ScriptedTransport, token_response

Opens = type[ManagedSource | AuthedSession]
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


@BOTH
@pytest.mark.parametrize("form", ["URL", "Path"])
def test_a_store_given_as_url_or_path_is_opened_and_closed_each_time(
    tmp_path: Path, opens: Opens, form: str
) -> None:
    """Leaving `async with` closes it: its thread has ended and the token is in the database."""

    async def main() -> None:
        path = tmp_path / "tokens.db"
        before = set(threading.enumerate())
        opened = opens(
            provider(),
            transport=ScriptedTransport(success(1), success(2)),
            store=path if form == "Path" else f"sqlite:///{path}",
            key="account",
            clock=FakeClock(),
        )
        for number in (1, 2):
            async with opened as entered:
                assert entered is opened
                assert (await source_of(opened).refresh()).access_token == f"access-{number}"
                assert set(threading.enumerate()) > before
            assert set(threading.enumerate()) == before
            assert await stored_token(path) == f"refresh-{number}"

    run(main)


@BOTH
def test_a_store_that_you_pass_in_stays_open(opens: Opens) -> None:
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
    opens: Opens, credential: dict[str, Any]
) -> None:
    """The configured credential works once, and the next one would end with the program."""
    with pytest.raises(ConfigurationError, match="OAuth2") as caught:
        opens(provider(**credential))
    for way in ('store="sqlite:///tokens.db"', 'store="memory:"', "rotates=False"):
        assert str(caught.value).count(way) == 1, way


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
def test_the_warning_about_a_missing_store_points_at_your_line(opens: Opens) -> None:
    """Without a credential you sign in later. It names this file and the line of the call."""
    line = inspect.currentframe().f_lineno + 2  # type: ignore[union-attr]
    with pytest.warns(EphemeralStoreWarning) as caught:
        opens(provider(refresh_token=None), key="account")
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, line)]


@BOTH
def test_no_warning_if_you_ask_for_memory_or_refresh_tokens_do_not_rotate(opens: Opens) -> None:
    """Then losing the store loses nothing, or you have said that you accept it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opens(provider(refresh_token=None), store="memory:", key="account")
        opens(provider(rotates=False))
        opens(provider(rotates=False, refresh_token=None), key="account")


async def assert_check(rig: Rig, kind: type[TokenSessionError] | None) -> None:
    """`check` raises this, and it claims, writes, sends and reports nothing. `token` would raise the same."""
    store, requests, events, touched = rig.store, rig.token_requests, list(rig.events), list[bool]()
    assert isinstance(store, ScriptedStore)

    async def touch() -> None:
        touched.append(True)

    store.steps |= {"claim": touch, "put": touch}
    if kind is None:
        assert (await rig.source.check()) == rig.source.snapshot()
    else:
        await refused(kind, rig.source.check())
    del store.steps["claim"], store.steps["put"]
    assert (touched, rig.token_requests, rig.events) == ([], requests, events)


def test_check_is_content_with_a_token_or_a_way_to_get_one() -> None:
    """Before the first token, while one is valid, and after its end. A new process finds what is stored."""

    async def main() -> None:
        rig, _, _ = scripted(success(1))
        await assert_check(rig, None)
        await rig.access()
        await assert_check(rig, None)
        restarted = beside(rig)
        await assert_check(restarted, None)
        assert restarted.source.snapshot().token == rig.source.snapshot().token
        assert await restarted.access() == "access-1"
        rig.clock.advance(LIFETIME)
        await assert_check(rig, None)
        await assert_check(beside(rig), None)

    run(main)


LIMITED = token_response({}, 429, (("retry-after", "600"),))


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(
    ("end", "kind"),
    [([], SignedOut), ([invalid_grant()], GrantRejected), ([LIMITED], RateLimited)],
    ids=["signed out", "rejected", "limited"],
)
def test_check_raises_what_callers_would_get(
    end: list[Any], kind: type[TokenSessionError], restarted: bool
) -> None:
    """Signed out, rejected or paused: the error says who has to act."""

    async def main() -> None:
        rig, _, clock = scripted(success(1), *end)
        await rig.access()
        clock.advance(LIFETIME)
        if not end:
            await rig.source.sign_out()
        await refused(kind, rig.access())
        await assert_check(beside(rig) if restarted else rig, kind)

    run(main)


def test_a_token_is_not_served_after_check_has_found_that_its_key_was_signed_out() -> None:
    """Another process or an operator has done it. The token would be FRESH for an hour."""

    async def main() -> None:
        rig, store, _ = scripted(success(1), success(2))
        await rig.access()
        assert await sign_out(store, "account")
        await refused(SignedOut, rig.source.check(), rig.access())
        assert rig.source.snapshot().token is None
        await rig.source.sign_in(refresh_token="new")
        await rig.source.check()
        assert await rig.access() == "access-2"

    run(main)


def test_check_says_if_no_one_has_signed_in() -> None:
    async def main() -> None:
        await assert_check(scripted(configured=None)[0], SignInRequired)

    run(main)


def test_check_is_content_while_the_token_is_valid_although_requests_are_paused() -> None:
    """A failed background refresh makes no service unready; a sign-out does, at once."""

    async def main() -> None:
        rig, _, clock = scripted(success(1), LIMITED)
        await rig.access()
        clock.advance(LIFETIME - 299)
        await rig.access()
        await rig.refreshed()
        await assert_check(rig, None)
        await beside(rig).source.sign_out()
        await assert_check(rig, SignedOut)

    run(main)


def test_check_raises_the_error_of_a_store_that_is_down() -> None:
    """The service could not save its next token."""

    async def main() -> None:
        rig, store, _ = scripted(success(1))
        store.steps["load"] = fail
        await assert_check(rig, StoreUnavailable)

    run(main)


def test_check_does_not_disturb_a_running_refresh() -> None:
    async def main() -> None:
        paused = Paused(success(1))
        rig = Rig(paused)
        caller = await under_way(rig.access(), paused)
        assert (await rig.source.check()).refreshing
        paused.release()
        assert await caller == "access-1"

    run(main)


def test_check_copies_nothing_from_a_former_default_key() -> None:
    """The first refresh does that."""

    async def main() -> None:
        plain, store, _ = scripted(success(1), provider=provider(rotates=False), key=None)
        await plain.access()
        await assert_check(beside(plain, provider=provider(rotates=False, scope="read"), key=None), None)
        assert await store.keys() == [plain.source.key]

    run(main)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"store": MemoryStore()}, "store"),
        ({"key": "account"}, "key"),
        ({"policy": Policy()}, "policy"),
        ({"clock": FakeClock()}, "clock"),
        ({"observer": print}, "observer"),
        ({"transport": AiohttpTransport()}, "transport"),
        ({"clock": FakeClock(), "key": "account", "store": "memory:"}, "store, key, clock"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_belong_to_your_source_are_named_in_the_error(settings: Any, named: str) -> None:
    """The session cannot change a `ManagedSource` that you pass in. You see everything that has to move."""
    source = ManagedSource(provider(), store="memory:")
    with pytest.raises(ConfigurationError, match=f"^{named} cannot be set here.*your ManagedSource"):
        AuthedSession(source, **settings)


def test_a_session_leaves_your_source_open() -> None:
    """Closing the session does not wait for a refresh of a source that you passed in."""

    async def main() -> None:
        paused = Paused(success(1))
        source = Rig(paused, provider=provider()).source
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
        ({"store": 7}, "a store, a URL or a Path, not an int"),
        ({"store": b"sqlite:///tokens.db"}, "a store, a URL or a Path, not a bytes"),
        ({"store": ["memory:"]}, "a store, a URL or a Path, not a list"),
        ({"transport": PosixPath("tokens.db")}, "a PosixPath has none"),
        ({"key": 42}, "key must be a string, not an int"),
        ({"policy": {"request_timeout": 60}}, "policy must be a Policy, not a dict"),
        ({"clock": 1}, "clock must be a Clock, not an int"),
        ({"observer": 1}, "observer must be a callable that returns at once, not an int"),
        ({"observer": slow_observer}, "observer must be .*, not a coroutine function"),
    ],
)
def test_wrong_settings_are_an_error_at_once(opens: Opens, wrong: dict[str, Any], said: str) -> None:
    """Not at the first refresh, where they would hide an error of your own. It names the type."""
    with pytest.raises(ConfigurationError, match=said):
        opens(provider(), **{"store": "memory:"} | wrong)
