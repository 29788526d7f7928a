"""A machine's token: one after the other, without a refresh token, shared by all processes (K53)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _moments import beside, refused
from _rig import LIFETIME, Rig, invalid_grant, run, success

from tokensession import ConfigurationError, GrantRejected, ManagedSource, SignedOut
from tokensession.providers import (
    OAUTH2,
    Credential,
    Fields,
    OAuth2,
    Strategy,
    StrategyProvider,
    TokenResponse,
)
from tokensession.testing import FakeClock, ScriptedTransport, token_response
from tokensession.token import fingerprint


def machine(**changes: Any) -> OAuth2:
    settings: dict[str, Any] = {
        "token_url": "https://id.example.com/token",
        "client_id": "job",
        "client_secret": "job-secret",
        "grant": "client_credentials",
    }
    return OAuth2(**settings | changes)


def test_a_machine_gets_another_token_after_each_expiry() -> None:
    """A refresh token that comes with one is ignored (RFC 6749, 4.4.3)."""

    async def main() -> None:
        rig = Rig(success(1), success(2), success(3, refresh=None), success(4), provider=machine())
        for number in (1, 2, 3, 4):
            assert await rig.access() == f"access-{number}"
            assert "grant_type=client_credentials" in rig.sent()
            state = await rig.state()
            assert state.token is not None
            assert state.token.refresh_token is None
            rig.clock.advance(LIFETIME)
        assert (await rig.state()).number == 1
        assert (await rig.state()).generation == 3

    run(main)


@pytest.mark.parametrize("ignored", [5, False, [], "\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_refresh_token_that_a_machine_ignores_may_be_anything(ignored: Any) -> None:
    async def main() -> None:
        answer = token_response({"access_token": "access-1", "refresh_token": ignored})
        rig = Rig(answer, provider=machine())
        assert await rig.access() == "access-1"

    run(main)


def test_a_machine_refreshes_ahead_of_time_and_needs_no_store() -> None:
    async def main() -> None:
        clock = FakeClock()
        transport = ScriptedTransport(success(1), success(2))
        source = ManagedSource(machine(), transport, clock=clock)
        await source.token()
        clock.advance(LIFETIME - 200)
        assert (await source.token()).access_token == "access-1"
        await source.aclose()
        assert (await source.token()).access_token == "access-2"

    run(main)


def test_processes_share_one_token_and_a_lost_record_costs_one_request() -> None:
    async def main() -> None:
        one = Rig(success(1), provider=machine())
        other = beside(one, success(2), provider=machine())
        assert await one.access() == await other.access() == "access-1"
        await one.store.delete("account")
        one.clock.advance(LIFETIME)
        assert await other.access() == "access-2"

    run(main)


def test_after_a_sign_out_a_machine_signs_in_without_arguments() -> None:
    async def main() -> None:
        rig = Rig(success(1), success(2), success(3), provider=machine())
        await rig.access()
        await rig.source.sign_out()
        await refused(SignedOut, rig.access())
        await refused(SignedOut, beside(rig, provider=machine()).access())
        assert (await rig.source.sign_in()).access_token == "access-2"
        assert (await rig.source.sign_in()).access_token == "access-3"  # it works as often as you like
        assert await beside(rig, provider=machine()).access() == "access-3"

    run(main)


def test_only_a_machine_signs_in_without_arguments() -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match="needs a code or a refresh_token"):
            await Rig().source.sign_in()

    run(main)


@pytest.mark.parametrize("given", [{"refresh_token": "r"}, {"code": "c"}, {"device_code": "d"}])
def test_a_machine_redeems_nothing_that_works_once(given: dict[str, str]) -> None:
    """As a machine's it would be sent as often as it was brought."""

    async def main() -> None:
        rig = Rig(provider=machine())
        with pytest.raises(ConfigurationError, match=r"signs in with nothing else.*without arguments"):
            await rig.source.sign_in(**given)
        assert (rig.token_requests, await rig.stored()) == (0, None)

    run(main)


def organization(name: str, **changes: Any) -> OAuth2:
    return machine(extra={"organization": name}, **changes)


def subject(name: str) -> StrategyProvider:
    """A machine that acts for this subject, by a strategy of its own."""
    return StrategyProvider(
        Strategy(name="acme", grants={"client_credentials": ("client_id", "client_secret", "subject")}),
        identity="job",
        base_url="https://id.example.com",
        token_url="https://id.example.com/token",
        values={"client_id": "job", "client_secret": "job-secret", "subject": name},
        credential=Credential("client_credentials", ""),
    )


@pytest.mark.parametrize("make", [organization, subject])
def test_machines_that_differ_in_another_field_never_get_each_others_token(make: Any) -> None:
    """Whether they have keys of their own or, by mistake, one that is named."""

    async def main() -> None:
        one = Rig(success(1), provider=make("A"), key=None)
        other = beside(one, success(2), provider=make("B"), key=None)
        assert [await one.access(), await other.access()] == ["access-1", "access-2"]
        named = Rig(success(3), provider=make("A"))
        await named.access()
        with pytest.raises(ConfigurationError, match=r"another scope: 'extra=\w{16}' is stored"):
            await beside(named, provider=make("B")).access()

    run(main)


def test_a_machines_key_tells_apart_all_that_is_fixed_and_its_identity_what_is_no_secret() -> None:
    """A secret or a User-Agent may be replaced under a named key, and the same fields have the same key."""
    variants: list[dict[str, Any]] = [
        {},
        *({"extra": {"organization": name}} for name in "AB"),
        *({"extra": {"organization": "A", "pin": pin}} for pin in ("4711", "4712", lambda: "4713")),
        *({"extra": {"assertion": Path(path)}} for path in ("/a", "/b")),
        *({"headers": {"X-Tenant": name}} for name in "AB"),
        {"extra": {"X-Tenant": "A"}},
    ]
    made = [machine(**each) for each in variants]
    assert len({each.key for each in made}) == len(made)
    assert len({each.identity for each in made}) == 4  # none, A, B, X-Tenant
    pair = {"organization": "A", "team": "7"}
    assert machine(extra=pair).key == machine(extra=dict(reversed(pair.items()))).key
    assert "4711" not in repr([(each.key, each.identity) for each in made])


def test_without_other_fields_a_machines_key_and_identity_stay_as_they_were() -> None:
    """Records of earlier versions are found."""
    plain, scoped = machine(), machine(scope="b a", audience="x")
    assert plain.key == "oauth2/https://id.example.com/token/job/bac12eb8df09f88a"
    assert scoped.key == f"{plain.key}/{fingerprint('a audience=x b')}"
    assert (plain.identity.scope, scoped.identity.scope) == ("", "a audience=x b")


def test_a_reusable_refresh_token_has_a_key_for_each_extra_and_one_that_rotates_has_not() -> None:
    """One that rotates has one holder, whose sign-in outlives a changed field."""

    def person(name: str, *, rotates: bool) -> OAuth2:
        return organization(name, grant=None, refresh_token="r", rotates=rotates)

    assert person("A", rotates=False).key != person("B", rotates=False).key
    assert person("A", rotates=True).key == person("B", rotates=True).key
    assert person("A", rotates=True).identity == machine().identity


def test_a_token_that_the_api_rejects_is_replaced() -> None:
    async def main() -> None:
        rig = Rig(success(1), success(2), provider=machine())
        token = await rig.source.token()
        assert (await rig.source.refresh(token)).access_token == "access-2"

    run(main)


def test_a_rejected_machine_asks_again_when_its_configuration_changes() -> None:
    async def main() -> None:
        rig = Rig(invalid_grant(), provider=machine())
        for _ in range(3):
            with pytest.raises(GrantRejected, match="invalid_grant"):
                await rig.access()
            rig.clock.advance(10)
        assert rig.token_requests == 1
        changed = beside(rig, success(1), provider=machine(client_secret="new"))
        assert await changed.access() == "access-1"

    run(main)


def test_an_unknown_outcome_spends_nothing() -> None:
    """It is a failure like any other, and is not listened to for two minutes."""

    async def main() -> None:
        rig = Rig(token_response(b"", 502), success(1), provider=machine())
        with pytest.raises(Exception, match="502"):
            await rig.access()
        assert rig.transport.timeouts[0][1] == 20
        rig.clock.advance(5)
        assert await rig.access() == "access-1"
        assert await rig.unknown_outcomes() == 0

    run(main)


def test_a_stored_sign_in_of_another_kind_gives_way_to_the_machine() -> None:
    """A key that a person had signed in to is configured for a machine: that is a new lineage."""

    async def main() -> None:
        person = Rig(success(1), provider=machine(grant=None, refresh_token="rt"))
        await person.access()
        assert await beside(person, success(2), provider=machine()).access() == "access-2"

    run(main)


def test_k55_fields_that_a_refresh_does_not_repeat_stay_and_others_are_replaced() -> None:
    """A sign-in begins without them."""

    async def main() -> None:
        def issued(number: int, **extra: str) -> TokenResponse:
            return token_response({"access_token": f"access-{number}", "expires_in": 3600, **extra})

        strategy = replace(OAUTH2, fields=Fields(extra=("url", "team")))
        script = issued(1, url="a", team="x"), issued(2, url="b"), issued(3)
        rig = Rig(*script, provider=machine(strategy=strategy))
        assert (await rig.source.token()).extra == {"url": "a", "team": "x"}
        assert (await rig.source.refresh()).extra == {"url": "b", "team": "x"}
        state = await rig.state()
        assert state.token is not None
        assert state.token.extra == {"url": "b", "team": "x"}
        assert (await rig.source.sign_in()).extra == {}

    run(main)


def test_a_machine_that_was_rejected_once_is_tried_again() -> None:
    """Nothing of it can be spent. Its secret may come from a function, whose changes lift no rejection."""

    async def main() -> None:
        rig = Rig(invalid_grant(), success(1), provider=machine(client_secret=lambda: "job-secret"))
        with pytest.raises(GrantRejected, match="Look at the client at the server") as caught:
            await rig.access()
        assert "refresh token" not in str(caught.value)
        assert not caught.value.certain
        rig.clock.advance(3600)
        assert await rig.access() == "access-1"

    run(main)
