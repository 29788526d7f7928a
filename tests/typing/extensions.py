"""A provider, a store, a source and tests of one's own, as an author writes them."""

from pathlib import Path
from typing import Any, assert_type

from tokensession import AuthedSession, Clock, ManagedSource, Token, TokenSource
from tokensession.providers import (
    RFC6749_ERRORS,
    Credential,
    ErrorKind,
    Fields,
    Issued,
    Provider,
    Strategy,
    StrategyProvider,
    TokenRequest,
    TokenResponse,
    TokenTransport,
    expires_at,
    expires_in,
)
from tokensession.stores import ANY, AnyVersion, Claim, Record, Store
from tokensession.testing import (
    Backend,
    FakeClock,
    OAuth2Server,
    Paused,
    ScriptedTransport,
    StoreConformance,
    token_response,
)

STRATEGY = Strategy(
    name="acme",
    grants={"refresh_token": ("grant_type", "refresh_token")},
    fields=Fields(access_token="data.token"),
    lifetime=expires_at("data.until"),
    errors={**RFC6749_ERRORS, "gone": ErrorKind.REJECTED},
)
other = Strategy(name="acme", grants={}, lifetime=expires_in("ttl"))
provider: Provider = StrategyProvider(
    STRATEGY,
    identity="acme",
    base_url="https://api.example.com",
    token_url="https://id.example.com/token",
    values={},
    credential=Credential("refresh_token", "r"),
)


class FixedToken:
    """A source in four lines."""

    async def token(self) -> Token:
        return Token("t", obtained_at=0.0)


fixed: TokenSource = FixedToken()


class Transport:
    """A transport that answers from memory."""

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        return TokenResponse(200, (), request.body)


transport: TokenTransport = Transport()


class PassesOn:
    """A store around another one."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    async def load(self, key: str) -> Record | None:
        return await self.inner.load(key)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Claim | Record:
        return await self.inner.claim(key, seen=seen, timeout=timeout)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        return await self.inner.put(key, data, expect=expect)

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        return await self.inner.delete(key, expect=expect)

    async def keys(self) -> list[str]:
        return await self.inner.keys()

    async def aclose(self) -> None:
        await self.inner.aclose()


def wrapped(inner: Store) -> Store:
    return PassesOn(inner)


class TestMyStore(StoreConformance):
    def make_backend(self, directory: Path) -> Backend:
        return Backend(open=lambda: self._open(directory))

    def _open(self, directory: Path) -> Store:
        raise NotImplementedError


async def tests() -> None:
    clock = FakeClock()
    as_clock: Clock = clock
    scripted = ScriptedTransport(Paused(token_response({"access_token": "a"})), TimeoutError())
    ManagedSource(provider, scripted, store="memory:", clock=as_clock)
    AuthedSession(provider, clock=clock, transport=scripted)
    async with OAuth2Server(lifetime=60) as server:
        credentials: dict[str, Any] = server.credentials
        assert_type(server.stats.token_requests, int)
        assert_type(server.new_credential(), str)
    assert credentials


def read(provider: Provider, response: TokenResponse, credential: Credential) -> Issued:
    return provider.read(response, credential, sent_at=0.0)
