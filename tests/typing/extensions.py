"""A provider, a store, a source and tests of one's own, as an author writes them."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, assert_type

from tokensession import (
    AuthedSession,
    Clock,
    InvalidTokenResponse,
    ManagedSource,
    Policy,
    Token,
    TokenSource,
    blocking_token_callable,
    token_callable,
)
from tokensession.providers import (
    RFC6749_ERRORS,
    Credential,
    ErrorKind,
    Fields,
    Identity,
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
from tokensession.stores import ANY, AnyVersion, Claim, FileStore, Record, Store
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
    fields=Fields(access_token="data.token", refresh_lifetime=("data.refresh_for",)),
    lifetime=expires_at("data.until"),
    errors={**RFC6749_ERRORS, "gone": ErrorKind.REJECTED, "perhaps": ErrorKind.PROBABLY_REJECTED},
    bearer_types=("jwt",),
    idle_lifetime=86400,
    max_requests=1000,
)
other = Strategy(name="acme", grants={}, lifetime=expires_in("ttl"))
strategic = StrategyProvider(
    STRATEGY,
    identity="acme",
    environment="eu",
    base_url="https://api.example.com",
    token_url="https://id.example.com/token",
    values={},
    credential=Credential("refresh_token", "r"),
    insecure_http_hosts=("id",),
)
assert_type(strategic.identity, Identity)
assert_type(strategic.former_keys, tuple[str, ...])
provider: Provider = strategic


class FixedToken:
    """A source in four lines."""

    async def token(self) -> Token:
        return Token("t", obtained_at=0.0)


fixed: TokenSource = FixedToken()
assert_type(blocking_token_callable(fixed, timeout=5)(), str)


async def text_of_a_token() -> None:
    assert_type(await token_callable(fixed)(), str)


class Transport:
    """A transport that answers from memory, with one connection at a time."""

    async def reserve(self, url: str) -> Callable[[], None]:
        return lambda: None

    async def send(
        self,
        request: TokenRequest,
        *,
        connect: float,
        total: float,
        on_sending: Callable[[], Awaitable[None]] | None = None,
    ) -> TokenResponse:
        if on_sending is not None:
            await on_sending()
        return TokenResponse(200, (), request.body)


transport: TokenTransport = Transport()


class Counted:
    """A claim around another one, whose token requests are counted."""

    def __init__(self, inner: Claim) -> None:
        self.inner = inner
        self.sent = 0

    @property
    def current(self) -> Record | None:
        return self.inner.current

    @property
    def interrupted(self) -> float | None:
        return self.inner.interrupted

    @property
    def listening(self) -> float:
        return self.inner.listening

    async def sending(self, *, listening: float = 0.0) -> None:
        self.sent += 1
        await self.inner.sending(listening=listening)

    async def commit(self, data: bytes) -> Record:
        record = await self.inner.commit(data)
        assert_type(record.age, float)
        return record

    async def abandon(self) -> None:
        await self.inner.abandon()


class PassesOn:
    """A store around another one."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    async def load(self, key: str) -> Record | None:
        return await self.inner.load(key)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Claim | Record:
        found = await self.inner.claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Counted(found)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        return await self.inner.put(key, data, expect=expect)

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        return await self.inner.delete(key, expect=expect)

    async def keys(self) -> list[str]:
        return await self.inner.keys()

    async def aclose(self) -> None:
        await self.inner.aclose()


wrap: Callable[[Store], Store] = PassesOn


class TestMyStore(StoreConformance):
    def make_backend(self, directory: Path) -> Backend:
        return Backend(open=lambda: FileStore(directory))


async def tests() -> None:
    clock = FakeClock()
    as_clock: Clock = clock
    scripted = ScriptedTransport(Paused(token_response({"access_token": "a"})), TimeoutError())
    ManagedSource(
        provider, scripted, store="memory:", key="test", clock=as_clock, policy=Policy(retry_within=0)
    )
    assert_type(scripted.sent, int)
    AuthedSession(provider, clock=clock, transport=scripted)
    async with OAuth2Server(lifetime=60) as server:
        credentials: dict[str, Any] = server.credentials
        assert_type(server.stats.token_requests, int)
        assert_type(server.new_credential(), str)
    assert credentials


def read(provider: Provider, response: TokenResponse, credential: Credential) -> Issued:
    issued = provider.read(response, credential, sent_at=0.0)
    assert_type(issued.problem, InvalidTokenResponse | None)
    return issued
