"""Whose tokens a record holds: no provider ever sends another one's, and a scope is part of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from _moments import refused
from _rig import LIFETIME, Rig, begun, invalid_grant, let_tasks_run, run, success

from tokensession import ConfigurationError, GrantRejected, SignedOut, SignInRequired, TokenUnavailable
from tokensession._refresh.state import Now, TokenState, encode
from tokensession.providers import ClientAuth, OAuth2, Oto, Priava, StrategyProvider
from tokensession.providers.protocol import Identity, TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, token_response
from tokensession.token import Token

oauth2 = partial(
    OAuth2,
    token_url="https://id.example.com/token",
    client_id="client",
    client_secret="client-secret",
    refresh_token="configured-token",
)
"""A client of a server that rotates its refresh tokens."""
another = partial(oauth2, client_id="another")
"""Another client of the same server."""
priava = partial(
    Priava,
    client_id="client",
    client_secret="client-secret",
    redirect_uri="https://app.example.com/back",
    region="EU",
    code="code-1",
)
"""A client of Priava's, in the EU."""


def scoped(scope: str | None, *, rotates: bool = False, **changes: Any) -> OAuth2:
    """A client that requests this scope, by default with a refresh token that can be used again."""
    return oauth2(scope=scope, rotates=rotates, **changes)


class World:
    """One store and one clock for several sources."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)

    def rig(self, provider: StrategyProvider, *script: Any, key: str | None = "tenant-42") -> Rig:
        """A source of this provider, under a named key."""
        return Rig(*script, provider=provider, store=self.store, clock=self.clock, key=key)

    async def put(self, key: str, provider: StrategyProvider, token: Token | None) -> None:
        """Store a state of this provider's credential without an identity: one of an older version."""
        now = Now(self.clock.wall(), self.clock.boot())
        assert provider.credential is not None
        state = TokenState(
            configured=provider.credential.fingerprint,
            signed_out=token is None,
            token=token,
            obtained=now.boot,
        )
        await self.store.put(key, encode(state, now))


async def served(*script: Any) -> tuple[World, Rig]:
    """A source whose token is access-1."""
    world = World()
    rig = world.rig(oauth2(), success(1), *script)
    assert await rig.access() == "access-1"
    return world, rig


async def assert_another_client(rig: Rig) -> None:
    """It gets an error that says whose the record is, however often it asks."""
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="another client id"):
            await rig.access()


PAIRS: dict[str, tuple[StrategyProvider, StrategyProvider]] = {
    "provider": (priava(), Oto(refresh_token="oto")),
    "environment": (
        Oto(refresh_token="oto", environment="production"),
        Oto(refresh_token="other", environment="staging"),
    ),
    "environment of a region": (priava(), priava(region="US")),
    "client id": (oauth2(), another()),
    "client id of a code": (oauth2(refresh_token=None, code="code-1"), another()),
    "origin": (oauth2(), oauth2(token_url="https://id.example.org/token")),
    "origin of a port": (oauth2(), oauth2(token_url="https://id.example.com:8443/token")),
    "scope": (oauth2(scope="read"), oauth2(scope="read write")),
}


@pytest.mark.parametrize("difference", PAIRS)
@pytest.mark.parametrize("order", ["one", "other"])
def test_f62_k13_another_identity_under_a_named_key_is_an_error_before_anything_is_sent(
    difference: str, order: str
) -> None:
    """The second source sends and writes nothing, and the first one goes on with its own refresh token."""

    async def main() -> None:
        world = World()
        one, other = PAIRS[difference] if order == "one" else PAIRS[difference][::-1]
        ours = world.rig(one, success(1), success(2))
        theirs = world.rig(other, success(9))
        await ours.access()
        before = await world.store.load("tenant-42")
        for _ in range(3):
            with pytest.raises(ConfigurationError, match=f"another {difference.split(' of ')[0]}"):
                await theirs.source.token()
            with pytest.raises(ConfigurationError, match="Use one key for each"):
                await theirs.source.check()
            world.clock.advance(2)
        assert (theirs.token_requests, theirs.source.snapshot().token) == (0, None)
        assert await world.store.load("tenant-42") == before
        assert not world.store._holders
        world.clock.advance(LIFETIME)
        assert await ours.access() == "access-2"
        assert "refresh-1" in ours.sent()

    run(main)


def test_f62_a_source_that_signs_in_later_does_not_serve_another_identitys_token() -> None:
    """It has no credential of its own to compare with, and gets the same error."""

    async def main() -> None:
        world, _ = await served()
        later = world.rig(another(refresh_token=None))
        await assert_another_client(later)
        assert later.source.snapshot().token is None

    run(main)


def test_f62_an_explicit_sign_in_replaces_another_identitys_state() -> None:
    """You say that this key is yours now, so it is; the other source gets the error from its next look on."""

    async def main() -> None:
        world, before = await served()
        ours = world.rig(another(), success(2), success(3))
        await ours.source.sign_in(refresh_token="new")
        assert (await ours.state()).identity == ours.provider.identity
        world.clock.advance(LIFETIME)
        assert await ours.access() == "access-3"
        await assert_another_client(before)
        assert before.token_requests == 1
        assert "refresh_token=refresh-2" in ours.sent()

    run(main)


def test_f62_a_code_is_not_sent_again_after_sign_ins_of_two_identities() -> None:
    """Each replaces the other's state, but not what is known of codes: the note of a code outlives both."""

    async def main() -> None:
        world = World()
        first = world.rig(oauth2(refresh_token=None), success(1))
        await first.source.sign_in(code="once")
        await world.rig(another(refresh_token=None), success(2)).source.sign_in(code="theirs")
        ours = world.rig(oauth2(refresh_token=None), success(3))
        await ours.source.sign_in(refresh_token="ours")
        with pytest.raises(SignInRequired, match="redeemed already"):
            await ours.source.sign_in(code="once")

    run(main)


def test_f62_a_sign_in_that_is_rejected_over_another_clients_record_learns_nothing_of_it() -> None:
    """Its note that the code was sent is stored in their record. Their token is not ours to serve."""

    async def main() -> None:
        world = World()
        theirs = world.rig(another(), success(1))
        await theirs.access()
        ours = world.rig(oauth2(refresh_token=None), invalid_grant(), success(2))
        await refused(GrantRejected, ours.source.sign_in(code="bad"))
        for _ in range(3):
            world.clock.advance(5)
            await refused(ConfigurationError, ours.access())
        await refused(SignInRequired, ours.source.sign_in(code="bad"), match="redeemed already")
        assert ours.token_requests == 1
        assert await theirs.access() == "access-1"

    run(main)


def test_f62_a_source_whose_record_another_identity_has_replaced_never_serves_its_token() -> None:
    """Its own token is still valid, so it is served to its end, and then comes the error."""

    async def main() -> None:
        world, ours = await served()
        await world.rig(another(), success(9)).source.sign_in(refresh_token="new")
        for advanced in (LIFETIME - 299, 250, 30):  # due, ending, and once more
            world.clock.advance(advanced)
            for _ in range(3):
                assert await ours.access() == "access-1"
                await let_tasks_run()
        world.clock.advance(30)
        await assert_another_client(ours)
        assert ours.token_requests == 1

    run(main)


def test_f52_f62_a_source_goes_on_when_another_identitys_record_is_gone() -> None:
    """It says what it waits for, and not what was there before."""

    async def main() -> None:
        world, ours = await served(success(2))
        await world.rig(Oto(refresh_token="oto"), success(9)).source.sign_in(refresh_token="theirs")
        world.clock.advance(LIFETIME)
        with pytest.raises(ConfigurationError):
            await ours.access()
        world.clock.advance(1)
        await world.store.delete("tenant-42")
        with pytest.raises(TokenUnavailable, match="record is gone"):
            await ours.access()
        world.clock.advance(61)
        assert await ours.access() == "access-2"

    run(main)


def test_f52_f62_a_token_that_another_identitys_sign_in_has_overtaken_is_not_lost() -> None:
    """The other record stays as it is. Ours is served to its end, and goes on if the other record goes."""

    async def main() -> None:
        world, ours = await served()
        world.clock.advance(LIFETIME)
        paused, caller = await ours.in_flight(success(2))
        theirs = world.rig(another(), success(9))
        signing_in = await begun(theirs.source.sign_in(code="new"))
        world.clock.advance(5)  # sign_in_wait: it does without the claim
        await signing_in
        record = await world.store.load("tenant-42")
        paused.release()
        await asyncio.gather(caller, return_exceptions=True)
        assert await ours.access() == "access-2"
        world.clock.advance(LIFETIME)
        await assert_another_client(ours)
        assert await world.store.load("tenant-42") == record
        await world.store.delete("tenant-42")
        world.clock.advance(1)
        with pytest.raises(TokenUnavailable, match="record is gone"):
            await ours.access()
        world.clock.advance(61)
        ours.transport.script(success(3))
        assert await ours.access() == "access-3"
        assert "refresh_token=refresh-2" in ours.sent()

    run(main)


def test_a_signed_out_key_is_free_for_another_identity() -> None:
    """A tombstone holds no token, so a credential that is configured for another client starts there."""

    async def main() -> None:
        world, before = await served()
        await before.source.sign_out()
        assert await world.rig(another(refresh_token="other"), success(2)).access() == "access-2"

    run(main)


@pytest.mark.parametrize(
    "changes",
    [
        {"client_secret": "rotated"},
        {"token_url": "https://id.example.com/v2/token"},
        {"auth": ClientAuth.post()},
        {"base_url": "https://api.example.com"},
        {"refresh_token": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_an_operator_may_change_is_no_other_identity(changes: dict[str, Any]) -> None:
    """A rotated secret, another path of the same server or no credential at all: the sign-in goes on."""

    async def main() -> None:
        world, _ = await served()
        after = world.rig(oauth2(**changes), success(2))
        assert await after.access() == "access-1"
        world.clock.advance(LIFETIME)
        assert await after.access() == "access-2"
        assert "refresh_token=refresh-1" in after.sent()

    run(main)


def test_f75_a_record_without_an_identity_gets_one_with_the_next_write() -> None:
    """It is from an older version. From then on, another client gets the error."""

    async def main() -> None:
        world = World()
        ours = world.rig(oauth2(), success(2))
        token = Token("access-1", world.clock.wall(), LIFETIME, "refresh-1")
        await world.put("tenant-42", ours.provider, token)
        assert await ours.access() == "access-1"
        world.clock.advance(LIFETIME)
        assert await ours.access() == "access-2"
        identity = Identity("oauth2", "", "client", "https://id.example.com")
        assert (await ours.state()).identity == identity
        await assert_another_client(world.rig(another()))

    run(main)


def by_scope(request: TokenRequest) -> TokenResponse:
    """A token that is named for the scope that was requested."""
    body = request.body.decode()
    scope = "full" if "scope=full" in body else "read" if "scope=read" in body else "default"
    return token_response({"access_token": f"access-{scope}", "expires_in": LIFETIME})


@pytest.mark.parametrize("scopes", [("full", "read"), ("read", "full"), (None, "read"), ("read", None)])
def test_f61_k17_two_scopes_of_one_refresh_token_never_get_each_others_token(
    scopes: tuple[str | None, str | None],
) -> None:
    """Over one store with default keys: each source gets a token of its own scope, now and later."""

    async def main() -> None:
        world = World()
        rigs = [world.rig(scoped(scope), *[by_scope] * 2, key=None) for scope in scopes]
        for _ in range(2):
            for rig, scope in zip(rigs, scopes, strict=True):
                assert await rig.access() == f"access-{scope or 'default'}"
            world.clock.advance(LIFETIME)
        assert [rig.token_requests for rig in rigs] == [2, 2]
        assert len(await world.store.keys()) == 2

    run(main)


@pytest.mark.parametrize("rotates", [False, True])
@pytest.mark.parametrize("words", ["write read", "read  write", "read write read"])
def test_f61_the_same_scope_in_other_words_shares_one_token(words: str, rotates: bool) -> None:
    """Scopes are sets (RFC 6749, 3.3): the order, the spaces and a repetition mean nothing."""

    async def main() -> None:
        world = World()
        one = world.rig(scoped("read write", rotates=rotates), success(1), key=None)
        other = world.rig(scoped(words, rotates=rotates), key=None)
        assert [await one.access(), await other.access()] == ["access-1"] * 2
        assert other.token_requests == 0

    run(main)


@pytest.mark.parametrize(
    ("made", "key"),
    [
        (lambda scope: scoped(scope, rotates=True), None),
        (lambda scope: scoped(scope, refresh_token=None, code="code-1"), None),
        (scoped, "tenant-42"),
    ],
    ids=["it rotates", "a code", "a named key"],
)
def test_f61_where_two_scopes_would_share_a_sign_in_the_second_one_is_an_error(
    made: Callable[[str], OAuth2], key: str | None
) -> None:
    """A rotating refresh token has one holder, and a code is redeemed once: sign in once for each scope."""

    async def main() -> None:
        world = World()
        wide = world.rig(made("read write"), success(1), success(2), key=key)
        narrow = world.rig(made("read"), success(9), key=key)
        await wide.access()
        with pytest.raises(ConfigurationError, match="one key for each scope, and sign in once for each"):
            await narrow.access()
        world.clock.advance(LIFETIME)
        assert await wide.access() == "access-2"
        assert narrow.token_requests == 0

    run(main)


async def stored_formerly(world: World, refresh_token: str, *, signed_out: bool = False) -> str:
    """A record of the version whose default key had no scope. Returns that key."""
    provider = scoped("read")
    (key,) = provider.former_keys
    token = None if signed_out else Token("access-0", world.clock.wall(), LIFETIME, refresh_token)
    await world.put(key, provider, token)
    return key


def test_f61_f75_the_refresh_token_under_the_former_default_key_is_used_and_its_access_token_is_not() -> None:
    """Nothing says which scope that access token has, so each source gets one of its own."""

    async def main() -> None:
        world = World()
        former = await stored_formerly(world, "replaced-by-the-server")
        before = await world.store.load(former)
        rigs = [world.rig(scoped(scope), by_scope, key=None) for scope in ("read", "full")]
        for rig in rigs:
            assert await rig.access() != "access-0"
            assert "refresh_token=replaced-by-the-server" in rig.sent()
        assert await world.store.load(former) == before, "an older version may still use it"

    run(main)


def test_f75_processes_that_find_the_former_key_at_once_make_one_request() -> None:
    """One of them copies it, and the others find the copy."""

    async def main() -> None:
        world = World()
        await stored_formerly(world, "refresh-0")
        rigs = [world.rig(scoped("read"), by_scope, key=None) for _ in range(8)]
        assert set(await asyncio.gather(*(rig.access() for rig in rigs))) == {"access-read"}
        assert sum(rig.token_requests for rig in rigs) == 1

    run(main)


def test_f41_f75_a_sign_out_under_the_former_default_key_still_holds() -> None:
    """An upgrade does not sign anyone in again."""

    async def main() -> None:
        world = World()
        await stored_formerly(world, "refresh-0", signed_out=True)
        rig = world.rig(scoped("read"), key=None)
        with pytest.raises(SignedOut):
            await rig.access()
        assert rig.token_requests == 0

    run(main)


def test_a_named_key_has_no_former_key() -> None:
    """What is stored under a default key belongs to the sources that use it."""

    async def main() -> None:
        world = World()
        await stored_formerly(world, "refresh-0")
        rig = world.rig(scoped("read"), by_scope)
        assert await rig.access() == "access-read"
        assert "refresh_token=configured-token" in rig.sent()

    run(main)
