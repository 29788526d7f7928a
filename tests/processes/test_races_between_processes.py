"""A refresh that is paused, rejected or overtaken by a sign-in or sign-out in another process."""

from __future__ import annotations

from pathlib import Path

import pytest
from _event_loop import in_event_loop
from _fleet import fleet, ready
from _stored import only_record, stored_record, stored_state, stored_token

from tokensession.stores import open_store
from tokensession.testing import PriavaServer, json_response
from tokensession.testing.conformance.backend import claimed


@in_event_loop
async def test_f11_a_paused_holder_gives_way_to_a_newer_generation(where: str) -> None:
    """After SIGSTOP, a sign-in elsewhere and SIGCONT, all processes get the token of the sign-in."""
    async with PriavaServer() as server, fleet(3, server.credentials, where) as (paused, other, third):
        await ready(paused, other, third)
        async with server.hold("after") as gate:
            await paused.begin("refresh")
            await gate.reached()  # the refresh token is spent; the new one is on its way
            paused.pause()
        signed_in = await other.ask("sign_in", code=server.new_credential())
        paused.resume()
        assert await paused.answer() == signed_in
        assert await paused.ask("token") == await other.ask("token") == signed_in
        assert await stored_token(where) == signed_in
        assert await third.ask("refresh") == signed_in  # newer than its own
        assert await paused.ask("refresh") != signed_in  # by the newer generation's refresh token
        await ready(third, other, paused)
        assert (server.stats.rejections, server.stats.reuse_detections) == (0, 0)


@in_event_loop
async def test_f11_a_paused_holders_token_is_saved_if_nothing_newer_is_stored(where: str) -> None:
    """After SIGSTOP and SIGCONT, the new token is saved, and the waiters get it."""
    async with PriavaServer() as server, fleet(2, server.credentials, where) as (paused, other):
        async with server.hold("after") as gate:
            await paused.begin("token")
            await gate.reached()
            paused.pause()
            await other.begin_and_wait("token", 10)
        paused.resume()
        saved = await paused.answer()
        assert await other.answer() == saved
        assert await stored_token(where) == saved
        assert server.stats.token_requests == 1


@in_event_loop
async def test_f12_a_rotated_token_is_saved_although_the_lock_was_lost(tmp_path: Path, where: str) -> None:
    """If another holder gets the lock after the rotation, the save compares versions and succeeds."""
    async with PriavaServer() as server, fleet(2, server.credentials, where) as (paused, other):
        await ready(paused, other)
        async with server.hold("after") as gate:
            await paused.begin("refresh")
            await gate.reached()
            paused.pause()
            async with open_store(where) as store:
                key, record = await only_record(store)
                for lock in tmp_path.rglob("*.lock"):
                    lock.unlink()
                second = await claimed(store, key, record.version)
                paused.resume()
                gate.open()
                rotated = await paused.answer()
                assert await stored_token(where) == rotated
                await second.abandon()
        assert await other.ask("refresh") == rotated  # newer than its own
        assert await paused.ask("refresh") != rotated  # by the rotated refresh token
        await ready(other, paused)
        assert (server.stats.token_requests, server.stats.reuse_detections) == (3, 0)


@in_event_loop
async def test_f20_the_loser_of_a_race_deletes_nothing_of_the_winner(where: str) -> None:
    """If a refresh token is rejected after it was replaced, nothing that is stored changes."""
    async with PriavaServer() as server, fleet(3, server.credentials, where) as (loser, winner, third):
        await ready(loser, winner, third)
        server.revoke_access_tokens()
        server.script(json_response(400, {"error": "invalid_grant"}))
        await loser.stop("commit")
        await loser.begin("get", 10)
        await loser.at("commit")  # it knows of the rejection, and is about to store it
        signed_in = await winner.ask("sign_in", code=server.new_credential())
        stored = await stored_record(where)
        await loser.go("commit")
        assert await loser.answer() == ["200"]
        assert await stored_record(where) == stored
        assert await loser.ask("token") == signed_in
        await ready(third, winner)
        assert server.stats.token_requests == 3


@in_event_loop
async def test_f21_a_rejected_refresh_token_is_never_sent_again_by_any_process(where: str) -> None:
    """All processes know of one rejection, later ones too; a new sign-in clears it for all."""
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
        for worker in workers:
            await worker.served_after("GrantRejected")
        assert [await worker.ask("token") for worker in workers] == [signed_in] * 3
        assert server.stats.token_requests == 3


@pytest.mark.parametrize("stage", ["on the wire", "commit"])
@in_event_loop
async def test_f41_a_late_refresh_does_not_undo_a_sign_out_in_another_process(where: str, stage: str) -> None:
    """After a sign-out between the rotation and its save, the new token is neither saved nor served."""
    async with PriavaServer() as server, fleet(3, server.credentials, where) as (late, other, third):
        await ready(late, other, third)
        if stage == "commit":
            await late.stop("commit")
            await late.begin("refresh", 10)
            await late.at("commit")
            assert await other.ask("sign_out") == ["signed out"]
            await late.go("commit")
        else:
            async with server.hold("after") as gate:
                await late.begin("refresh", 10)
                await gate.reached()
                late.pause()
                assert await other.ask("sign_out") == ["signed out"]
            late.resume()
        assert await late.answer() == ["SignedOut"]
        state = await stored_state(where)
        assert (state.signed_out, state.token) == (True, None)
        requests = server.stats.token_requests
        assert await late.ask("get", 5) == ["SignedOut"]
        assert await other.ask("get", 5) == ["SignedOut"]
        async with fleet(1, server.credentials, where) as [later]:
            assert await later.ask("get", 5) == ["SignedOut"]
        assert server.stats.token_requests == requests
        signed_in = await third.ask("sign_in", code=server.new_credential())
        for worker in (late, other, third):
            await worker.served_after("SignedOut")
        assert await late.ask("token") == signed_in
