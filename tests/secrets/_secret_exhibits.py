"""One object of every public class, with a secret wherever one fits."""

from __future__ import annotations

from pathlib import Path

from _secret_situations import KEY, cut_short, issued, oauth2, token
from _secret_vault import CLIENT_ID, CLIENT_SECRET, CODE, PROXY_PASSWORD, REFRESH_TOKEN, access

import tokensession
from tokensession import AiohttpTransport, AuthedSession, BearerAuth, ManagedSource, Policy, errors
from tokensession._refresh.state import Now, TokenState, encode
from tokensession.events import Event
from tokensession.providers import (
    Credential,
    ErrorKind,
    Fields,
    Health,
    Identity,
    Issued,
    Oto,
    Priava,
    Strategy,
    StrategyProvider,
    TokenRequest,
    encode_form,
)
from tokensession.stores import AnyVersion, FileStore, MemoryStore, Record, SQLiteStore
from tokensession.testing import (
    Backend,
    Drip,
    Edit,
    FakeClock,
    Gate,
    Hang,
    OAuth2Server,
    OtoServer,
    Paused,
    PriavaServer,
    Reset,
    Response,
    ScriptedTransport,
    Seen,
    ServerStats,
    StoreConformance,
    Truncate,
    json_response,
)

RECORD = Record("v", encode(TokenState(token=token()), Now(0.0, 0.0)))


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
    strategy = Strategy(
        name="acme", grants={"refresh_token": ("refresh_token", "client_secret")}, default_lifetime=60
    )
    own = StrategyProvider(
        strategy,
        identity=CLIENT_ID,
        base_url="https://api.example.com",
        token_url="https://api.example.com/token",
        values={"client_secret": CLIENT_SECRET, "client_id": CLIENT_ID},
        credential=Credential("refresh_token", REFRESH_TOKEN),
        api_headers=(("X-Client", CLIENT_ID),),
    )
    priava = Priava(
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uri="https://a.example/cb",
        region="EU",
        code=CODE,
    )
    store, memory = MemoryStore(), MemoryStore()
    memory._records[KEY] = RECORD
    source = ManagedSource(oauth2(), ScriptedTransport(issued(1)), store=store)
    request = TokenRequest(
        "https://id.example.com/token",
        (("Authorization", f"Basic {CLIENT_SECRET}"),),
        encode_form([("refresh_token", REFRESH_TOKEN)]),
        (REFRESH_TOKEN, CLIENT_SECRET),
    )
    transport = ScriptedTransport(issued(1), cut_short())
    transport.requests.append(request)
    servers = [
        OtoServer(refresh_token=REFRESH_TOKEN),
        PriavaServer(code=CODE, client_secret=CLIENT_SECRET),
        OAuth2Server(refresh_token=REFRESH_TOKEN, client_secret=CLIENT_SECRET),
    ]
    servers[0].script(json_response(200, {"access_token": access(1)}))
    return [
        AiohttpTransport(proxy=f"http://user:{PROXY_PASSWORD}@proxy.example:3128"),
        AuthedSession(oauth2(), store=store),
        AuthedSession(own, store=memory),
        BearerAuth(source),
        source,
        source.snapshot(),
        token(),
        *(Policy(), *tokensession.Freshness, Event(KEY)),
        *(own, priava, Oto(refresh_token=REFRESH_TOKEN), oauth2(), oauth2(auth="post"), oauth2(None)),
        *(Credential("refresh_token", REFRESH_TOKEN), Credential("authorization_code", CODE)),
        *(Fields(), *ErrorKind, strategy, own.strategy, priava.strategy, oauth2().strategy),
        *(
            Health(True, 200, "ok"),
            Identity("oauth2", client_id=CLIENT_ID, origin="https://id.example.com"),
            Issued(token(), ("unexpected",)),
            request,
            issued(1),
            own.request(Credential("refresh_token", REFRESH_TOKEN)),
        ),
        *(memory, FileStore(directory / "files"), SQLiteStore(directory / "tokens.db"), *AnyVersion),
        *(RECORD, transport, Paused(issued(1)), FakeClock(), Gate()),
        Backend(open=lambda: memory, url="memory:"),
        StoreConformance(),
        *(
            Drip(),
            Hang(),
            Reset(),
            Truncate(),
            Edit(dict),
            Response(200, access(1).encode(), (("a", access(1)),)),
        ),
        *(Seen("GET", "/", 200, token().fingerprint), ServerStats(*range(8)), *servers),
        *error_objects(),
    ]
