"""Real processes on one store: one token request, however many find that there is no good token."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from _fleet import fleet, run, url
from _ledger import expire

from tokensession.testing import PriavaServer

pytestmark = pytest.mark.parametrize("scheme", ["file", "sqlite"])


def test_f06_sixty_four_processes_that_find_it_expired_make_one_request(tmp_path: Path, scheme: str) -> None:
    """64 processes find the stored token expired at once: one token request, and all get its token."""
    where = url(scheme, tmp_path)

    async def scene() -> None:
        async with PriavaServer() as server:
            async with fleet(1, server.credentials, where) as [first]:
                spent = await first.ask("token")
            await expire(where)
            async with fleet(64, server.credentials, where) as workers, server.hold("before") as gate:
                for worker in workers:
                    await worker.watch("waiting")
                    await worker.tell("token")
                said = [asyncio.ensure_future(worker.said()) for worker in workers]
                holding = set(said)
                while len(holding) > 1:  # all but the one that makes the request wait for its claim
                    done, holding = await asyncio.wait(holding, return_when=asyncio.FIRST_COMPLETED)
                    assert [task.result() for task in done] == [{"at": "waiting"}] * len(done)
                await gate.reached()
                gate.open()
                [holder] = holding
                answers = [await holder]
                answers += [
                    await w.answer() for w, task in zip(workers, said, strict=True) if task is not holder
                ]
                assert answers == [answers[0]] * 64
                assert len(answers[0]) == 1
                assert answers[0] != spent
            assert server.stats.token_requests == 2
            assert (server.stats.rejections, server.stats.reuse_detections) == (0, 0)

    run(scene)


def test_six_processes_that_find_no_token_make_one_request(tmp_path: Path, scheme: str) -> None:
    """All at the same moment, fifty tasks in each."""

    async def scene() -> None:
        async with (
            PriavaServer() as server,
            fleet(6, server.credentials, url(scheme, tmp_path)) as workers,
            server.hold("before") as gate,
        ):
            for worker in workers:
                await worker.tell("token", 50)
            await gate.reached()
            gate.open()
            answers = [await worker.answer() for worker in workers]
            assert len({tuple(answer) for answer in answers}) == 1
            assert len(answers[0]) == 1
            assert server.stats.token_requests == 1

    run(scene)


def test_processes_that_share_a_rotating_token_refresh_it_once(tmp_path: Path, scheme: str) -> None:
    """Revoked under all of them, two hundred requests: one token request, and no spent token is presented."""

    async def scene() -> None:
        async with PriavaServer(lifetime=3600) as server:
            async with fleet(4, server.credentials, url(scheme, tmp_path)) as workers:
                for worker in workers:
                    assert await worker.ask("get") == ["200"]
                server.revoke_access_tokens()
                for worker in workers:
                    await worker.tell("get", 50)
                assert [await worker.answer() for worker in workers] == [["200"]] * 4
                assert server.stats.token_requests == 2
                assert server.stats.concurrent_token_requests_max == 1
                assert server.stats.reuse_detections == 0

    run(scene)


@pytest.mark.parametrize("place", ["load", "claim"])
def test_f08_a_process_that_has_read_an_old_refresh_token_does_not_send_it(
    tmp_path: Path, scheme: str, place: str
) -> None:
    """What was read before the claim is read again under it: a token that was spent meanwhile is not sent."""
    where = url(scheme, tmp_path)

    async def scene() -> None:
        async with PriavaServer() as server, fleet(3, server.credentials, where) as (first, slow, quick):
            await first.ask("token")
            await expire(where)
            await slow.stop(place)
            await slow.tell("token", 10)
            await slow.at(place)
            refreshed = await quick.ask("token")
            await slow.go(place)
            assert await slow.answer() == refreshed
            assert (server.stats.token_requests, server.stats.reuse_detections) == (2, 0)

    run(scene)


@pytest.mark.parametrize("place", ["granted", "send", "before", "after", "received", "commit"])
def test_f09_the_claim_lasts_from_the_reading_to_the_save(tmp_path: Path, scheme: str, place: str) -> None:
    """Wherever a refresh is, from reading the record to saving it, no other process begins a second one."""

    async def scene() -> None:
        async with PriavaServer() as server, contextlib.AsyncExitStack() as stack:
            holder, other = await stack.enter_async_context(
                fleet(2, server.credentials, url(scheme, tmp_path))
            )
            if place in ("before", "after"):  # while the request is at the provider
                gate = await stack.enter_async_context(server.hold(place))  # type: ignore[arg-type]
                await holder.tell("token")
                await gate.reached()
            else:
                await holder.stop(place)
                await holder.tell("token")
                await holder.at(place)
            await other.tell_and_wait("token", 10)
            assert server.stats.token_requests == (0 if place in ("granted", "send") else 1)
            if place in ("before", "after"):
                gate.open()
            else:
                await holder.go(place)
            assert await holder.answer() == await other.answer()
            assert server.stats.token_requests == 1

    run(scene)
