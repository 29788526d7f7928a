"""Sessions, requests and sources, as a user writes them."""

from pathlib import Path
from typing import assert_type

import aiohttp

from tokensession import (
    AiohttpTransport,
    AuthedSession,
    BearerAuth,
    Event,
    Freshness,
    ManagedSource,
    Policy,
    RefreshableSource,
    SignInRequired,
    Snapshot,
    Token,
    TokenSource,
    TokenUnavailable,
    events,
    open_store,
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
        AuthedSession(provider, store=store, client=client, key="tenant-42", policy=Policy(due_lead=60))
    AuthedSession(provider, store=Path("tokens.db"))
    AuthedSession(provider, store=42)  # type: ignore[arg-type]
    async with SQLiteStore("tokens.db") as opened:
        assert_type(opened, SQLiteStore)


async def source() -> None:
    def note(event: Event) -> None:
        if isinstance(event, events.RefreshFailed):
            assert_type(event.retry_after, float | None)

    transport = AiohttpTransport(proxy="http://proxy.example.com:3128")
    async with ManagedSource(provider, transport, store="memory:", observer=note) as source:
        assert_type(source, ManagedSource)
        token_source: TokenSource = source
        refreshable: RefreshableSource = source
        token = await token_source.token()
        assert_type(token, Token)
        assert_type(await refreshable.refresh(token), Token)
        assert_type(await source.sign_in(code="c"), Token)
        state = source.snapshot()
        assert_type(state, Snapshot)
        assert_type(state.freshness, Freshness)
        BearerAuth(source, origins=["https://api.example.com"])
        aiohttp.ClientSession(middlewares=(BearerAuth(source),))


async def errors(source: ManagedSource) -> float | None:
    try:
        await source.token()
    except SignInRequired as error:
        assert_type(error.todo, str)
    except TokenUnavailable as error:
        return error.retry_after
    return None
