"""One object of every public class, with a secret wherever one fits."""

from __future__ import annotations

from pathlib import Path

from _secret_situations import KEY, PRIAVA, cut_short, issued, oauth2, token
from _secret_vault import (
    CLIENT_ID,
    CLIENT_SECRET,
    CODE,
    ENCRYPTION_KEY,
    PROXY_PASSWORD,
    REFRESH_TOKEN,
    STORE_PASSWORD,
    access,
)

import tokensession
from tokensession import (
    AiohttpTransport,
    AuthedSession,
    BearerAuth,
    ManagedSource,
    errors,
    grants,
    providers,
    testing,
)
from tokensession._refresh.state import Now, TokenState, encode
from tokensession.providers import ClientAuth
from tokensession.stores import (
    AnyVersion,
    EncryptedStore,
    FileStore,
    Keys,
    MemoryStore,
    PostgresStore,
    Record,
    RedisStore,
    SQLiteStore,
    StoreReport,
)

RECORD = Record("v", encode(TokenState(token=token()), Now(0.0, 0.0)))
BY_REFRESH = providers.Credential("refresh_token", REFRESH_TOKEN)


def error_objects() -> list[Exception]:
    """One object of every error, with every argument. Real ones are in `_secret_situations`."""
    made = [getattr(errors, name)("It happened.") for name in errors.__all__]
    made.append(errors.Superseded("A newer record is stored.", record=RECORD))
    made += [error.again() for error in made]
    for error in made:
        error.__cause__ = errors.Superseded("Another.", record=RECORD)
    return [*made, tokensession.EphemeralStoreWarning("Not stored.")]


def exhibits(directory: Path) -> list[object]:
    """One of each kind, and some in another state."""
    by_refresh = {"refresh_token": ("refresh_token", "client_secret")}
    strategy = providers.Strategy(name="acme", grants=by_refresh, default_lifetime=60)
    own = providers.StrategyProvider(
        strategy,
        identity=CLIENT_ID,
        base_url="https://api.example.com",
        token_url="https://api.example.com/token",
        values={"client_secret": CLIENT_SECRET, "client_id": CLIENT_ID},
        credential=BY_REFRESH,
        api_headers=(("X-Client", CLIENT_ID),),
    )
    priava = providers.Priava(**PRIAVA, client_secret=CLIENT_SECRET, code=CODE)
    zoho = providers.VENDORS["zoho"]
    store, memory = MemoryStore(), MemoryStore()
    memory._records[KEY] = RECORD
    source = ManagedSource(oauth2(), testing.ScriptedTransport(issued(1)), store=store)
    request = oauth2().request(BY_REFRESH)
    transport = testing.ScriptedTransport(issued(1), cut_short())
    transport.requests.append(request)
    server = testing.OtoServer(refresh_token=REFRESH_TOKEN)
    server.script(testing.json_response(200, {"access_token": access(1)}))
    return [
        AiohttpTransport(proxy=f"http://user:{PROXY_PASSWORD}@proxy.example:3128"),
        *(AuthedSession(oauth2(), store=store), AuthedSession(own, store=memory), BearerAuth(source)),
        *(source, source.snapshot(), token(), RECORD, request, own.request(BY_REFRESH), issued(1)),
        *(tokensession.Policy(), *tokensession.Freshness, tokensession.Event(KEY)),
        *(own, priava, oauth2(), oauth2(auth=ClientAuth.post()), oauth2(None)),
        providers.Oto(refresh_token=REFRESH_TOKEN),
        *(providers.ClientAuth.assertion(CODE), providers.Discovery()),
        providers.Credential("authorization_code", CODE, (("code_verifier", CLIENT_SECRET),)),
        grants.AuthorizationRequest("https://id.example.com/a", CODE, CLIENT_SECRET),
        *(grants.DeviceSignIn("WDJB", "https://id.example.com/d", CODE), grants.LoopbackRedirect()),
        *(BY_REFRESH, providers.Credential("authorization_code", CODE)),
        *(strategy, own.strategy, priava.strategy, oauth2().strategy),
        *(providers.Fields(), *providers.ErrorKind, providers.Health(True, 200, "ok")),
        providers.Identity("oauth2", client_id=CLIENT_ID, origin="https://id.example.com"),
        providers.Issued(token(), ("unexpected",)),
        *(zoho, zoho.facts[0]),
        zoho.provider(client_id=CLIENT_ID, client_secret=CLIENT_SECRET, refresh_token=REFRESH_TOKEN),
        *(memory, FileStore(directory / "files"), SQLiteStore(directory / "tokens.db"), *AnyVersion),
        RedisStore.connect(f"redis://user:{STORE_PASSWORD}@db.example/0"),
        PostgresStore.connect(f"postgresql://user:{STORE_PASSWORD}@db.example/app"),
        *(EncryptedStore(memory, ENCRYPTION_KEY), Keys("a function", lambda: ENCRYPTION_KEY), StoreReport()),
        *(transport, testing.Paused(issued(1)), testing.FakeClock(), testing.Gate()),
        *(testing.Backend(open=lambda: memory, url="memory:"), testing.StoreConformance()),
        *(testing.Drip(), testing.Hang(), testing.Reset(), testing.Truncate(), testing.Edit(dict)),
        testing.Response(200, access(1).encode(), (("a", access(1)),)),
        *(testing.Seen("GET", "/", 200, token().fingerprint), testing.ServerStats(*range(8)), server),
        testing.PriavaServer(code=CODE, client_secret=CLIENT_SECRET),
        testing.OAuth2Server(refresh_token=REFRESH_TOKEN, client_secret=CLIENT_SECRET),
        *error_objects(),
    ]
