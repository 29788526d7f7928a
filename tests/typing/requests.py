"""Sessions, requests and sources, as a user writes them."""

from pathlib import Path
from typing import assert_type

import aiohttp

import tokensession.providers
import tokensession.stores
from tokensession import (
    AiohttpTransport,
    AuthedSession,
    BearerAuth,
    Event,
    Freshness,
    GrantRejected,
    ManagedSource,
    Policy,
    RefreshableSource,
    SignInRequired,
    Snapshot,
    Token,
    TokenSource,
    TokenUnavailable,
    UnexplainedRefusal,
    events,
    open_store,
    prune,
)
from tokensession.providers import OAuth2, Oto, Priava, Provider
from tokensession.stores import FileStore, MemoryStore, SQLiteStore, Store

provider = OAuth2(
    token_url="https://id.example.com/oauth2/token",
    client_id="reports",
    client_secret="s",
    refresh_token="r",
    base_url="https://api.example.com",
)
as_protocol: Provider = provider
also: tuple[Provider, Provider] = (
    Oto(refresh_token="r", environment="staging"),
    Priava(client_id="c", client_secret="s", redirect_uri="https://a.example/cb", region="EU"),
)


async def session() -> None:
    async with AuthedSession(provider, store="sqlite:///tokens.db") as session:
        assert_type(session, AuthedSession)
        async with session.get(
            "/reports", params={"page": "1"}, timeout=aiohttp.ClientTimeout(5)
        ) as response:
            assert_type(response, aiohttp.ClientResponse)
        response = await session.post("/reports", json={"a": 1})
        assert_type(response, aiohttp.ClientResponse)
        async with session.ws_connect("/live") as socket:
            assert_type(socket, aiohttp.ClientWebSocketResponse)
        assert_type(session.client, aiohttp.ClientSession)
        assert_type(session.source, ManagedSource)
        session.get("/reports", no_such_option=1)  # type: ignore[call-arg]


async def stores(client: aiohttp.ClientSession) -> None:
    store: Store
    for store in (MemoryStore(), FileStore("tokens"), SQLiteStore(Path("tokens.db")), open_store("memory:")):
        policy = Policy(
            due_lead=60, caller_timeout=10, retry_within=0, response_timeout=60, requests_per_hour=60
        )
        AuthedSession(provider, store=store, client=client, key="tenant-42", policy=policy)
    AuthedSession(provider, store=Path("tokens.db"))
    AuthedSession(provider, store=42)  # type: ignore[arg-type]
    async with SQLiteStore("tokens.db") as opened:
        assert_type(opened, SQLiteStore)
        assert_type(await prune(opened, older_than=30 * 86400), list[str])
        await prune("sqlite:///tokens.db")  # type: ignore[arg-type]


async def source() -> None:
    def note(event: Event) -> None:
        match event:
            case events.RefreshStarted(key=key, id=name, reason=reason):
                assert_type((key, name, reason), tuple[str, str, str])
            case events.RefreshFailed():
                assert_type(event.error, str)
                assert_type(event.still_usable + event.ask_again, float)
                assert_type(event.next_attempt, float | None)
                assert_type(event.repeated, bool)
                assert_type(event.level, int)
            case events.RefreshEnded(id=name, duration=seconds):
                assert_type((name, seconds), tuple[str, float])
            case events.SignInEndsSoon() | events.RequestLimitReached():
                assert_type(event.seconds, float)
            case _:
                assert_type(event.key, str)

    transport = AiohttpTransport(proxy="http://proxy.example.com:3128")
    async with ManagedSource(provider, transport, store="memory:", observer=note) as source:
        assert_type(source, ManagedSource)
        token_source: TokenSource = source
        refreshable: RefreshableSource = source
        token = await token_source.token()
        assert_type(token, Token)
        assert_type(await refreshable.refresh(token), Token)
        assert_type(await source.refresh(force=True), Token)
        assert_type(await source.sign_in(code="c"), Token)
        assert_type(await source.check(), Snapshot)
        assert_type(token.refresh_lifetime, float | None)
        state = source.snapshot()
        assert_type(state, Snapshot)
        assert_type(state.sign_in_ends, float | None)
        assert_type(state.freshness, Freshness)
        BearerAuth(source, origins=["https://api.example.com"])
        aiohttp.ClientSession(middlewares=(BearerAuth(source),))


async def errors(source: ManagedSource) -> float | None:
    try:
        await source.token()
    except GrantRejected as rejection:
        assert_type((rejection.code, rejection.certain), tuple[str, bool])
    except SignInRequired as error:
        assert_type(error.todo, str)
    except UnexplainedRefusal as refusal:
        return refusal.retry_after
    except TokenUnavailable as error:
        return error.retry_after
    return None


def names_that_do_not_exist() -> None:
    """A type checker finds them, although some modules are imported on first use."""
    print(tokensession.AuthSession)  # type: ignore[attr-defined]
    print(tokensession.providers.OAuth3)  # type: ignore[attr-defined]
    print(tokensession.stores.RedisStorage)  # type: ignore[attr-defined]
