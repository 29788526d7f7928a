"""A refresh that is paused, refused or overtaken, while somebody signs in or out in another process."""

from __future__ import annotations

from pathlib import Path

import pytest
from _fleet import Worker, fleet, run, url
from _ledger import opened, the_grant

from tokensession.stores import Record
from tokensession.testing import PriavaServer, json_response
from tokensession.testing.conformance.backend import claimed

pytestmark = pytest.mark.parametrize("scheme", ["file", "sqlite"])


async def ready(*workers: Worker) -> None:
    for worker in workers:
        assert await worker.ask("get") == ["200"]


def test_f11_a_paused_holder_gives_way_to_a_newer_generation(tmp_path: Path, scheme: str) -> None:
    """SIGSTOP after the rotation, a sign-in elsewhere, SIGCONT: the sign-in stays, and is served to all."""
    where = url(scheme, tmp_path)

    async def scene() -> None:
        async with PriavaServer() as server, fleet(3, server.credentials, where) as (sleeper, other, third):
            await ready(sleeper, other, third)
            async with server.hold("after") as gate:
                await sleeper.tell("refresh")
                await gate.reached()  # the grant is spent; its successor is on the way
                sleeper.freeze()
            signed_in = await other.ask("sign_in", code=server.new_credential())
            sleeper.thaw()
            assert await sleeper.answer() == signed_in
            assert await sleeper.ask("token") == await other.ask("token") == signed_in
            grant = await the_grant(where)
            assert grant.token is not None
            assert [grant.token.fingerprint] == signed_in
            assert await third.ask("refresh") == signed_in  # newer than its own
            assert await sleeper.ask("refresh") != signed_in  # by the newer generation's refresh token
            await ready(third, other, sleeper)
            assert (server.stats.rejections, server.stats.reuse_detections) == (0, 0)

    run(scene)


def test_f11_a_paused_holders_result_is_kept_if_there_is_nothing_newer(tmp_path: Path, scheme: str) -> None:
    """SIGSTOP after the rotation, SIGCONT: the new token is saved, and who waited meanwhile is served it."""
    where = url(scheme, tmp_path)

    async def scene() -> None:
        async with PriavaServer() as server, fleet(2, server.credentials, where) as (sleeper, other):
            async with server.hold("after") as gate:
                await sleeper.tell("token")
                await gate.reached()
                sleeper.freeze()
                await other.tell_and_wait("token", 10)
            sleeper.thaw()
            kept = await sleeper.answer()
            assert await other.answer() == kept
            grant = await the_grant(where)
            assert grant.token is not None
            assert [grant.token.fingerprint] == kept
            assert server.stats.token_requests == 1

    run(scene)


def test_f12_a_rotated_token_is_saved_although_the_lock_was_lost(tmp_path: Path, scheme: str) -> None:
    """The lock is lost to another holder after the rotation: the save compares versions, and is kept."""
    where = url(scheme, tmp_path)

    async def scene() -> None:
        async with PriavaServer() as server, fleet(2, server.credentials, where) as (sleeper, other):
            await ready(sleeper, other)
            async with server.hold("after") as gate:
                await sleeper.tell("refresh")
                await gate.reached()
                sleeper.freeze()
                async with opened(where) as store:
                    [key] = await store.keys()
                    record = await store.load(key)
                    assert isinstance(record, Record)
                    for lock in tmp_path.rglob("*.lock"):
                        lock.unlink()  # somebody tidies up
                    usurper = await claimed(store, key, record.version)
                    sleeper.thaw()
                    gate.open()
                    rotated = await sleeper.answer()
                    grant = await the_grant(where)
                    assert grant.token is not None
                    assert [grant.token.fingerprint] == rotated
                    await usurper.abandon()
            assert await other.ask("refresh") == rotated  # newer than its own
            assert await sleeper.ask("refresh") != rotated  # by the rotated refresh token
            await ready(other, sleeper)
            assert (server.stats.token_requests, server.stats.reuse_detections) == (3, 0)

    run(scene)


def test_f20_the_loser_of_a_race_deletes_nothing_of_the_winners(tmp_path: Path, scheme: str) -> None:
    """The refusal of a refresh token that was replaced meanwhile changes nothing that is stored."""
    where = url(scheme, tmp_path)

    async def scene() -> None:
        async with PriavaServer() as server, fleet(3, server.credentials, where) as (loser, winner, third):
            await ready(loser, winner, third)
            server.revoke_access_tokens()
            server.script(json_response(400, {"error": "invalid_grant"}))
            await loser.stop("commit")
            await loser.tell("get", 10)
            await loser.at("commit")  # it knows of the refusal, and is about to write it down
            signed_in = await winner.ask("sign_in", code=server.new_credential())
            stored = await the_grant(where)
            await loser.go("commit")
            assert await loser.answer() == ["200"]
            assert await the_grant(where) == stored
            assert await loser.ask("token") == signed_in
            await ready(third, winner)
            assert server.stats.token_requests == 3

    run(scene)


def test_f21_a_refused_refresh_token_is_never_sent_again_by_any_process(tmp_path: Path, scheme: str) -> None:
    """One refusal is remembered for all processes, later ones too; a new sign-in clears it for all."""
    where = url(scheme, tmp_path)

    async def scene() -> None:
        async with PriavaServer() as server, fleet(3, server.credentials, where) as workers:
            await ready(*workers)
            server.revoke_grants()
            for _ in range(3):
                for worker in workers:
                    assert await worker.ask("get", 10) == ["GrantRejected"]
            async with fleet(1, server.credentials, where) as [later]:
                assert await later.ask("get", 10) == ["GrantRejected"]
                assert "Sign in again" in (await later.ask("why"))[0]
                assert server.stats.token_requests == 2
                signed_in = await later.ask("sign_in", code=server.new_credential())
            await ready(*workers)
            assert [await worker.ask("token") for worker in workers] == [signed_in] * 3
            assert server.stats.token_requests == 3

    run(scene)


@pytest.mark.parametrize("place", ["on the wire", "commit"])
def test_f41_a_late_refresh_does_not_undo_a_sign_out_in_another_process(
    tmp_path: Path, scheme: str, place: str
) -> None:
    """A sign-out elsewhere between the rotation and its save: the new token is saved and served nowhere."""
    where = url(scheme, tmp_path)

    async def scene() -> None:
        async with PriavaServer() as server, fleet(3, server.credentials, where) as (late, other, third):
            await ready(late, other, third)
            if place == "commit":
                await late.stop("commit")
                await late.tell("refresh", 10)
                await late.at("commit")
                assert await other.ask("sign_out") == ["signed out"]
                await late.go("commit")
            else:
                async with server.hold("after") as gate:
                    await late.tell("refresh", 10)
                    await gate.reached()
                    late.freeze()
                    assert await other.ask("sign_out") == ["signed out"]
                late.thaw()
            assert await late.answer() == ["SignedOut"]
            grant = await the_grant(where)
            assert (grant.signed_out, grant.token) == (True, None)
            requests = server.stats.token_requests
            assert await late.ask("get", 5) == ["SignedOut"]
            assert await other.ask("get", 5) == ["SignedOut"]
            async with fleet(1, server.credentials, where) as [later]:
                assert await later.ask("get", 5) == ["SignedOut"]
            assert server.stats.token_requests == requests
            signed_in = await third.ask("sign_in", code=server.new_credential())
            await ready(late, other, third)
            assert await late.ask("token") == signed_in

    run(scene)
