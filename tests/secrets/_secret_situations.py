"""A real situation for each error that can reach a user, with planted secrets in every part of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
from _secret_sink import Sink
from _secret_vault import (
    CLIENT_ID,
    CLIENT_SECRET,
    CODE,
    ENCRYPTION_KEY,
    PROXY_PASSWORD,
    REFRESH_TOKEN,
    SECOND_REFRESH_TOKEN,
    STORE_PASSWORD,
    access,
    refresh,
    spellings,
)

from tokensession import (
    AiohttpTransport,
    AuthedSession,
    BearerAuth,
    ManagedSource,
    Policy,
    TokenSessionError,
    open_store,
)
from tokensession._refresh.state import Now, TokenState, encode
from tokensession.providers import ClientAuth, OAuth2, Oto, Priava, TokenRequest, TokenResponse
from tokensession.providers.protocol import Credential
from tokensession.stores import EncryptedStore, FileStore, MemoryStore, SQLiteStore
from tokensession.testing import FakeClock, ScriptedTransport, token_response
from tokensession.token import Token

KEY = "account"
IMPATIENT = Policy(retry_within=0)  # the first failure is raised: nobody moves the clock meanwhile


def oauth2(credential: str | None = REFRESH_TOKEN, kind: type[OAuth2] = OAuth2, **options: Any) -> OAuth2:
    known: dict[str, Any] = {
        "token_url": "https://id.example.com/token",
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "refresh_token": credential,
    }
    return kind(**(known | options))


def token(generation: int = 1, obtained_at: float = FakeClock().wall()) -> Token:
    return Token(access(generation), obtained_at, 3600, refresh(generation))


def issued(generation: int) -> TokenResponse:
    return token_response(
        {"access_token": access(generation), "refresh_token": refresh(generation), "expires_in": 3600}
    )


def echoing(error: str, status: int = 400) -> TokenResponse:
    """A hostile error response: it repeats every secret in every spelling, and contains new ones."""
    spelled = [
        way for secret in (REFRESH_TOKEN, CLIENT_SECRET, refresh(1)) for way in sorted(spellings(secret))
    ]
    document = {
        "error": error,
        "error_description": f"no: {REFRESH_TOKEN} of {CLIENT_SECRET}",
        "access_token": access(4),
        "refresh_token": refresh(4),
        "said": spelled,
    }
    headers = (("www-authenticate", f"Basic {REFRESH_TOKEN}"), ("date", f"today {REFRESH_TOKEN}"))
    return token_response(document, status, headers)


def page(status: int) -> TokenResponse:
    body = f"<html><p>We got {REFRESH_TOKEN} and {CLIENT_SECRET} and {access(4)}"
    return token_response(body.encode(), status)


def cut_short() -> TokenResponse:
    return token_response(issued(1).body[:-20])


def then_no_writes(directory: Path, response: TokenResponse) -> Callable[[TokenRequest], TokenResponse]:
    """Answers with this response. From then on, a `FileStore` cannot write its only record."""

    def answer(_request: TokenRequest) -> TokenResponse:
        (record,) = directory.glob("*.token")
        place = record.with_suffix(".tmp")  # where the claim has made room for the next record
        place.unlink(missing_ok=True)
        place.mkdir()
        return response

    return answer


class Scene:
    """What a situation needs."""

    def __init__(self, sink: Sink, directory: Path) -> None:
        self.sink = sink
        self.directory = directory
        self.clock = FakeClock()

    def encoded(self, state: TokenState) -> bytes:
        """A record with this state."""
        return encode(state, Now(self.clock.wall(), self.clock.boot()))

    def source(self, *lines: Any, **options: Any) -> ManagedSource:
        known: dict[str, Any] = {
            "provider": oauth2(),
            "transport": ScriptedTransport(*lines),
            "store": MemoryStore(clock=self.clock),
            "key": KEY,
            "clock": self.clock,
            "observer": self.sink.event,
            "policy": IMPATIENT,
        }
        made = ManagedSource(**(known | options))
        self.sink.show(made)
        return made


Situation = Callable[[Scene], Awaitable[object]]


def token_of(*lines: Any, **options: Any) -> Situation:
    """The token of a source whose transport has these lines."""
    return lambda scene: scene.source(*lines, **options).token()


async def grant_rejected(scene: Scene) -> None:
    await scene.source(issued(1)).sign_in(code=CODE)
    await scene.source(echoing("invalid_grant")).token()


async def one_after_the_other(scene: Scene, *lines: TokenResponse, times: int) -> None:
    """One call, or some, that fail, and then the one whose error counts."""
    source = scene.source(*lines)
    for _ in range(times):
        try:
            await source.token()
        except TokenSessionError as error:
            scene.sink.error(error)
        scene.clock.advance(120)
    await source.token()


async def not_sent(scene: Scene) -> None:
    """The proxy, whose URL contains a password, is down."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        port = closed.getsockname()[1]
        transport = AiohttpTransport(proxy=f"http://user:{PROXY_PASSWORD}@127.0.0.1:{port}")
        scene.sink.show(transport)
        await scene.source(transport=transport).token()


async def signed_out(scene: Scene) -> None:
    source = scene.source(issued(1))
    await source.token()
    await source.sign_out()
    await source.token()


async def claim_timeout(scene: Scene) -> None:
    store = MemoryStore(clock=scene.clock)
    await store.put(KEY, scene.encoded(TokenState(token=token(), obtained=-86_400)))
    record = await store.load(KEY)
    assert record
    scene.sink.show(await store.claim(KEY, seen=record.version, timeout=1))
    policy = replace(IMPATIENT, claim_timeout=10, caller_timeout=30)  # it waits for the end of the time-out
    waiting = asyncio.ensure_future(scene.source(store=store, policy=policy).token())
    while policy.claim_timeout not in scene.clock.sleepers:
        await asyncio.sleep(0)
    scene.clock.advance(policy.claim_timeout)
    await waiting


async def superseded(scene: Scene) -> None:
    store = MemoryStore()
    await store.put(KEY, scene.encoded(TokenState(token=token())))
    await store.put(KEY, scene.encoded(TokenState(token=token(2))), expect="an older version")


async def saved(scene: Scene, source: ManagedSource, directory: Path) -> None:
    """The store can write again, and the source's token is stored."""
    for blocked in directory.glob("*.tmp"):
        blocked.rmdir()
    scene.clock.advance(60)
    while source.snapshot().unsaved:
        await asyncio.sleep(0)


async def cannot_be_saved(scene: Scene) -> None:
    """A refresh while a token is still unsaved."""
    directory = scene.directory / "unsaved"
    async with FileStore(directory, clock=scene.clock) as store:
        source = scene.source(issued(1), then_no_writes(directory, issued(2)), store=store)
        await source.token()
        await source.refresh()
        assert source.snapshot().unsaved
        try:
            await source.refresh()
        finally:
            scene.sink.show([source._record.pending, source._record])
            await saved(scene, source, directory)
            await source.aclose()


async def _touched(scene: Scene, touch: Callable[[Path], object]) -> None:
    """The files of a store are touched between two of its sources."""
    directory = scene.directory / "tokens"
    async with FileStore(directory) as store:
        await scene.source(issued(1), store=store).token()
        for file in directory.iterdir():
            touch(file)
        await scene.source(store=store).token()


def damaged(damage: Callable[[bytes], bytes]) -> Situation:
    def touch(file: Path) -> None:
        if file.suffix == ".token":
            file.write_bytes(damage(file.read_bytes()))

    return lambda scene: _touched(scene, touch)


def another_format(content: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.unpackb(content) | {"format": access(1)})
    return packed


async def text_in_the_database(scene: Scene) -> None:
    """After a dump and restore that treated the record as text."""
    database = scene.directory / "tokens.db"
    async with SQLiteStore(database) as store:
        await scene.source(issued(1), store=store).token()
        await store.aclose()
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("UPDATE tokens SET data = CAST(data AS TEXT)")
        await scene.source(store=store).token()


async def another_record(scene: Scene, damage: Callable[[bytes], bytes]) -> None:
    """Bytes of another program under our key."""
    store = MemoryStore(clock=scene.clock)
    await store.put(KEY, damage(scene.encoded(TokenState(token=token()))))
    await scene.source(store=store).token()


class BrokenProvider(OAuth2):
    """A third-party provider with a bug."""

    def request(self, credential: Credential) -> TokenRequest:
        raise LookupError


async def called(scene: Scene, call: Callable[[AuthedSession], object]) -> None:
    async with AuthedSession(oauth2(), store=MemoryStore()) as session:
        call(session)


TWICE = json.dumps({"access_token": access(1)}).encode()[:-1]
BAD_TOKEN = {"access_token": access(1) + "\n", "refresh_token": refresh(1), "id": REFRESH_TOKEN}
TO = (("location", f"https://x.example/?{REFRESH_TOKEN}"),)
HERE = f"https://user:{STORE_PASSWORD}@evil.example/?token={STORE_PASSWORD}#{STORE_PASSWORD}"
BASIC = {"Authorization": f"Basic {STORE_PASSWORD}"}

SITUATIONS: dict[str, dict[str, Situation]] = {
    "GrantRejected": {
        "of a refresh token": grant_rejected,
        "again": lambda scene: one_after_the_other(scene, echoing("invalid_grant"), times=2),
        "of a code": lambda scene: scene.source(echoing("invalid_grant")).sign_in(code=CODE),
    },
    "ClientRejected": {
        "of a client": token_of(echoing("invalid_client", 401)),
        "of something unknown": token_of(echoing(REFRESH_TOKEN, 403)),
    },
    "UnexplainedRefusal": {"": token_of(echoing(REFRESH_TOKEN, 400))},
    "AuthorizationPending": {
        "": lambda scene: scene.source(echoing("authorization_pending")).sign_in(device_code=CODE)
    },
    "RateLimited": {"": token_of(echoing("slow_down", 429))},
    "TokenUnavailable": {"": token_of(page(500))},
    "InvalidTokenResponse": {
        "page of HTML": token_of(page(200)),
        "no usable token": token_of(token_response(BAD_TOKEN)),
        "twice the same key": token_of(token_response(TWICE + b", " + TWICE[1:] + b"}")),
        "redirect": token_of(token_response(b"", 307, TO)),
    },
    "OutcomeUnknown": {"cut short": token_of(cut_short()), "transport with a bug": token_of()},
    "GrantLost": {
        "": lambda scene: one_after_the_other(scene, cut_short(), echoing("invalid_grant"), times=1)
    },
    "NotSent": {"": not_sent},
    "SignedOut": {"": signed_out},
    "SignInRequired": {"nothing configured": token_of(provider=oauth2(None))},
    "ClaimTimeout": {"": claim_timeout},
    "Superseded": {"": superseded},
    "StoreUnavailable": {"": cannot_be_saved},
    "StoreInsecure": {"": lambda scene: _touched(scene, lambda file: file.chmod(0o644))},
    "StoreCorrupt": {
        "bytes after the record": damaged(lambda content: content + b"\0"),
        "wrong checksum": damaged(lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        "another format": damaged(another_format),
        "text in the database": text_in_the_database,
        "another record": lambda scene: another_record(
            scene, lambda state: msgpack.packb(msgpack.unpackb(state) | {"failures": REFRESH_TOKEN})
        ),
        "bytes after the state": lambda scene: another_record(scene, lambda state: state + b"\0"),
    },
    "TokenSessionError": {"provider with a bug": token_of(provider=oauth2(kind=BrokenProvider))},
    "ForeignOrigin": {"": lambda scene: called(scene, lambda session: session.get(HERE))},
    "ConfigurationError": {
        "credentials of a request": lambda scene: called(
            scene, lambda session: session.get("/x", headers=BASIC)
        )
    },
}
"""By the name of the error that is raised."""


def _bearer(origins: Any) -> BearerAuth:
    return BearerAuth(ManagedSource(oauth2(), store=MemoryStore()), origins=origins)


_STRAY = f" {STORE_PASSWORD}\n"
PRIAVA: dict[str, Any] = {"client_id": CLIENT_ID, "redirect_uri": "https://my.app.com/cb", "region": "EU"}
MISTAKES: dict[str, Callable[[], object]] = {
    "a secret with white space": lambda: oauth2(_STRAY),
    "a client secret with white space": lambda: oauth2(client_secret=_STRAY),
    "a code with white space": lambda: Priava(**PRIAVA, client_secret="s", code=_STRAY),
    "a secret that is not text": lambda: Oto(refresh_token=REFRESH_TOKEN.encode()),
    "a secret with surrogates": lambda: Oto(refresh_token=REFRESH_TOKEN + "\udcff"),
    "two credentials": lambda: oauth2(REFRESH_TOKEN, code=CODE),
    "a refresh token for a provider": lambda: AuthedSession(REFRESH_TOKEN),
    "a dictionary for a provider": lambda: AuthedSession({"refresh_token": REFRESH_TOKEN}),
    "a token for a source": lambda: ManagedSource(REFRESH_TOKEN, AiohttpTransport(), store=MemoryStore()),
    "a path with a secret for a store": lambda: AuthedSession(oauth2(), store=REFRESH_TOKEN.encode()),
    "a secret for a client": lambda: AuthedSession(oauth2(), client=REFRESH_TOKEN),
    "credentials in a URL": lambda: oauth2(
        token_url=f"https://user:{SECOND_REFRESH_TOKEN}@id.example.com/token"
    ),
    "a query in a URL": lambda: oauth2(base_url=f"https://api.example.com/?secret={STORE_PASSWORD}"),
    "a fragment in a URL": lambda: oauth2(token_url=f"https://id.example.com/t#{STORE_PASSWORD}"),
    "a verifier without a code": lambda: oauth2(code_verifier=STORE_PASSWORD),
    "a verifier that is too short": lambda: oauth2(None, code=CODE, code_verifier=STORE_PASSWORD),
    "a public client with a secret": lambda: oauth2(auth=ClientAuth.none()),
    "a key with white space for an assertion": lambda: ClientAuth.assertion(_STRAY),
    "a secret for an algorithm": lambda: ClientAuth.private_key_jwt(key="k", algorithm=STORE_PASSWORD),
    "a secret for a grant": lambda: oauth2(None, grant=STORE_PASSWORD),
    "a secret for a resource": lambda: oauth2(resource=STORE_PASSWORD),
    "a secret with white space in extra": lambda: oauth2(extra={"pin": _STRAY}),
    "a store that is not registered": lambda: open_store(f"acme://user:{STORE_PASSWORD}@db.example/tokens"),
    "a store URL that cannot be read": lambda: open_store(f"sqlite://user:{STORE_PASSWORD}@[db/tokens"),
    "a store URL with odd letters": lambda: open_store(f"file://user:{STORE_PASSWORD}@h\u2100/tokens"),
    "a password in a local store's URL": lambda: open_store(f"sqlite://user:{STORE_PASSWORD}@host/tokens.db"),
    "a password in a wrong Redis URL": lambda: open_store(
        f"redis://user:{STORE_PASSWORD}@host/{STORE_PASSWORD}"
    ),
    "a secret for a lease in Redis": lambda: open_store(
        f"redis://:{STORE_PASSWORD}@host?lease={STORE_PASSWORD}"
    ),
    "a password in a wrong Postgres URL": lambda: open_store(
        f"postgresql://user:{STORE_PASSWORD}@host:port/app"
    ),
    "a slash in a password for Postgres": lambda: open_store(
        f"postgresql://user:1/{STORE_PASSWORD}@host/app"
    ),
    "a question mark in a password for Postgres": lambda: open_store(
        f"postgresql://user:1?{STORE_PASSWORD}@host/app"
    ),
    "a slash in a password for Redis": lambda: open_store(f"redis://user:1/{STORE_PASSWORD}@host"),
    "a number sign in a password for Redis": lambda: open_store(f"redis://user:1#{STORE_PASSWORD}@host"),
    "a question mark in a password for Redis": lambda: open_store(f"redis://user:1?{STORE_PASSWORD}@host"),
    "half an encryption key": lambda: EncryptedStore(MemoryStore(), f"{ENCRYPTION_KEY[:-8]}="),
    "a pair of credentials for auth": lambda: oauth2(auth=(CLIENT_ID, STORE_PASSWORD)),
    "a secret for auth": lambda: oauth2(auth=STORE_PASSWORD),
    "a secret for an environment": lambda: Oto(refresh_token="r", environment=REFRESH_TOKEN),
    "a secret for a region": lambda: Priava(**(PRIAVA | {"region": CODE}), client_secret="s"),
    "a secret for a URL": lambda: oauth2(token_url=STORE_PASSWORD),
    "a secret in a path of a URL that is not https": lambda: oauth2(
        base_url=f"http://x.example/{STORE_PASSWORD}"
    ),
    "a secret for a source of BearerAuth": lambda: BearerAuth(REFRESH_TOKEN),
    "a secret for an origin": lambda: _bearer(STORE_PASSWORD),
    "a secret in an origin": lambda: _bearer([f"https://user:{STORE_PASSWORD}@x.example"]),
    "a password in the URL of a proxy that is not http": lambda: AiohttpTransport(
        proxy=f"socks5://user:{PROXY_PASSWORD}@proxy.example"
    ),
    "a secret for ssl": lambda: AiohttpTransport(ssl=CLIENT_SECRET),
}
"""Wrong arguments for constructors. Each raises an error that must not repeat them."""
