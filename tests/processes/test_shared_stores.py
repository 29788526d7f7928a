"""Real processes on one store: one token request, however many find that there is no valid token."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from _event_loop import in_event_loop
from _fleet import fleet, ready
from _stored import expire

from tokensession.testing import PriavaServer


@in_event_loop
async def test_f06_sixty_four_processes_that_find_the_token_expired_make_one_request(where: str) -> None:
    """64 processes find the stored token expired at once: one token request, and all get its token."""
    async with PriavaServer() as server:
        async with fleet(1, server.credentials, where) as [first]:
            expired = await first.ask("token")
        await expire(where)
        async with fleet(64, server.credentials, where) as workers, server.hold("before") as gate:
            for worker in workers:
                await worker.watch("waiting")
                await worker.begin("token")
            reached = [asyncio.ensure_future(worker.read()) for worker in workers]
            not_waiting = set(reached)
            while len(not_waiting) > 1:  # all except one wait: for its claim, or for it to be free at all
                done, not_waiting = await asyncio.wait(not_waiting, return_when=asyncio.FIRST_COMPLETED)
                assert [task.result() for task in done] == [{"at": "waiting"}] * len(done)
            await gate.reached()
            gate.open()
            answers = []
            for worker, task in zip(workers, reached, strict=True):
                said = await task  # the holder may have waited first, while another one let go again
                answers.append(await worker.answer() if said == {"at": "waiting"} else said)
            assert answers == [answers[0]] * 64
            assert len(answers[0]) == 1
            assert answers[0] != expired
        assert server.stats.token_requests == 2
        assert (server.stats.rejections, server.stats.reuse_detections) == (0, 0)


@in_event_loop
async def test_six_processes_that_find_no_token_make_one_request(where: str) -> None:
    """Fifty tasks in each of them ask at the same moment."""
    async with PriavaServer() as server, fleet(6, server.credentials, where) as workers:
        async with server.hold("before") as gate:
            for worker in workers:
                await worker.begin("token", 50)
            await gate.reached()
        answers = [await worker.answer() for worker in workers]
        assert answers == [answers[0]] * 6
        assert len(answers[0]) == 1
        assert server.stats.token_requests == 1


@in_event_loop
async def test_processes_that_share_a_rotating_token_refresh_it_once(where: str) -> None:
    """After a revocation, 200 requests lead to one token request, and no spent token is presented."""
    async with PriavaServer() as server, fleet(4, server.credentials, where) as workers:
        await ready(*workers)
        server.revoke_access_tokens()
        for worker in workers:
            await worker.begin("get", 50)
        assert [await worker.answer() for worker in workers] == [["200"]] * 4
        assert (server.stats.token_requests, server.stats.concurrent_token_requests_max) == (2, 1)
        assert server.stats.reuse_detections == 0


@pytest.mark.parametrize("stage", ["found", "claim"])
@in_event_loop
async def test_f08_a_process_that_has_read_an_old_refresh_token_does_not_send_it(
    where: str, stage: str
) -> None:
    """The record is read again under the claim, so a token that was spent in between is not sent."""
    async with PriavaServer() as server, fleet(3, server.credentials, where) as (first, slow, quick):
        await first.ask("token")
        await expire(where)
        await slow.stop("found")
        await slow.begin("token", 10)
        await slow.at("found")
        if stage == "claim":
            await slow.stop("claim")
            await slow.go("found")
            await slow.at("claim")
        refreshed = await quick.ask("token")
        await slow.go(stage)
        assert await slow.answer() == refreshed
        assert (server.stats.token_requests, server.stats.reuse_detections) == (2, 0)


@pytest.mark.parametrize("stage", ["granted", "send", "sending", "before", "after", "received", "commit"])
@in_event_loop
async def test_f09_the_claim_lasts_from_the_reading_to_the_save(where: str, stage: str) -> None:
    """At every stage of a refresh, from reading the record to saving it, no other process begins one."""
    async with PriavaServer() as server, contextlib.AsyncExitStack() as stack:
        holder, other = await stack.enter_async_context(fleet(2, server.credentials, where))
        at_the_provider = stage in ("before", "after")
        if at_the_provider:
            gate = await stack.enter_async_context(server.hold(stage))  # type: ignore[arg-type]
            await holder.begin("token")
            await gate.reached()
        else:
            await holder.stop(stage)
            await holder.begin("token")
            await holder.at(stage)
        await other.begin_and_wait("token", 10)
        assert server.stats.token_requests == (0 if stage in ("granted", "send", "sending") else 1)
        if at_the_provider:
            gate.open()
        else:
            await holder.go(stage)
        assert await holder.answer() == await other.answer()
        assert server.stats.token_requests == 1
