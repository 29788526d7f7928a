"""The contestants of the benchmarks do what they should, and the four experiments with them run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from benchmarks import cancelled, contention, outage, revoked
from benchmarks.harness import results
from benchmarks.harness.server import Server
from benchmarks.peers import PEERS, AiohttpCookbook, Peer, RawAiohttp, Tokensession, excuse
from benchmarks.peers.common import PATH, primed, worst
from tokensession.providers import ClientAuth

INSTALLED = [peer for peer in PEERS if excuse(peer, "import") is None]
REFRESHING = [peer for peer in INSTALLED if peer is not RawAiohttp]
FOREIGN = [peer for peer in PEERS if peer.needs]
FOUR = {"cancelled": cancelled, "contention": contention, "outage": outage, "revoked": revoked}


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run an async test, bounded in case it hangs."""
    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.fixture(autouse=True)
def _saved_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may overwrite the figures in the repository."""
    monkeypatch.setattr(results.Result.save, "__defaults__", (tmp_path,))


@pytest.mark.parametrize("kind", INSTALLED)
def test_a_contestant_gets_a_token_and_makes_a_request_with_it(kind: type[Peer]) -> None:
    """It sends one valid token request, and the API answers 200."""

    async def scene() -> None:
        async with Server(auth="post") as server:
            async with primed(kind, server) as peer:
                assert await peer.get(PATH) == 200
                assert peer.holds()
            stats = await server.stats()
            assert (stats["token_requests"], stats["unauthorized"], stats["invalid_requests"]) == (1, 0, 0)

    run(scene)


@pytest.mark.parametrize("kind", REFRESHING)
def test_expire_makes_a_contestant_refresh_once_and_use_the_new_refresh_token_next(
    kind: type[Peer],
) -> None:
    """Twice, because a clock that can be moved only once would pass the first time."""

    async def scene() -> None:
        async with Server(auth="post") as server, primed(kind, server) as peer:
            refresh_tokens = [peer.holds()]
            for expiries in (1, 2):
                peer.expire()
                assert [await peer.get(PATH) for _ in range(3)] == [200] * 3
                refresh_tokens.append(peer.holds())
                assert (await server.stats())["token_requests"] == 1 + expiries
            assert len(set(refresh_tokens)) == 3, "refresh tokens rotate"

    run(scene)


def test_raw_aiohttp_never_refreshes() -> None:
    """The limit must not spend time on what the others are measured for."""

    async def scene() -> None:
        async with Server(auth="post") as server, primed(RawAiohttp, server) as peer:
            peer.expire()
            assert await peer.get(PATH) == 200
            await server.revoke_access_tokens()
            assert await peer.get(PATH) == 401
            await peer.prime()
            assert await peer.get(PATH) == 200
            assert (await server.stats())["token_requests"] == 2

    run(scene)


def test_the_cookbooks_middleware_refreshes_once_for_many_by_clock_and_by_401() -> None:
    """It is the strongest rival, so it gets a lock, a second check, rotation and one retry."""

    async def scene() -> None:
        async with Server(auth="post") as server, primed(AiohttpCookbook, server) as peer:
            peer.expire()
            assert set(await asyncio.gather(*(peer.get(PATH) for _ in range(20)))) == {200}
            assert (await server.stats())["token_requests"] == 2
            await server.revoke_access_tokens()
            assert set(await asyncio.gather(*(peer.get(PATH) for _ in range(20)))) == {200}
            stats = await server.stats()
            assert (stats["token_requests"], stats["reuse_detections"]) == (3, 0)

    run(scene)


def test_a_token_within_the_margin_counts_as_expired() -> None:
    """With a margin longer than the token's life, each request refreshes."""

    async def scene() -> None:
        async with Server(auth="post", lifetime=60) as server:
            for kind in (Tokensession, AiohttpCookbook):
                for margin, requests in ((10.0, 1), (90.0, 3)):
                    before = (await server.stats())["token_requests"]
                    own = {"refresh_token": await server.new_credential()}
                    async with kind(server.credentials | own, lifetime_margin=margin) as peer:
                        await peer.prime()
                        assert [await peer.get(PATH) for _ in range(2)] == [200, 200]
                    assert (await server.stats())["token_requests"] - before == requests

    run(scene)


def test_a_contestant_that_is_not_installed_says_what_is_missing() -> None:
    """A missing package is a reason in the table, without a traceback or an import."""

    class Absent(Peer):
        name, transport = "absent", "none"
        needs = ("no-such-distribution-as-this", "aiohttp")

        async def open(self, stack: AsyncExitStack) -> None: ...
        async def prime(self) -> None: ...
        async def get(self, path: str) -> int: ...  # type: ignore[empty-body]
        def expire(self) -> None: ...
        def holds(self) -> str | None: ...

    assert excuse(Absent, "contention") == "not installed: no-such-distribution-as-this"
    for peer in FOREIGN:
        assert (peer in INSTALLED) == ("import" not in peer.cannot)
    assert {Tokensession, RawAiohttp, AiohttpCookbook} <= set(INSTALLED)
    assert PEERS[:2] == (Tokensession, RawAiohttp)


def test_credentials_for_basic_authentication_are_an_error() -> None:
    """Not every contestant can authenticate in the header, so none does."""
    with pytest.raises(ValueError, match="in the body"):
        RawAiohttp({"auth": ClientAuth.basic()})


def test_a_failing_server_counts_token_requests_and_revokes_tokens_until_it_recovers() -> None:
    """A contestant that continues with the expired token must not look as if there were no outage."""

    async def scene() -> None:
        async with Server(auth="post") as server, primed(AiohttpCookbook, server) as peer:
            assert await peer.get(PATH) == 200
            await server.fail()
            with pytest.raises(aiohttp.ClientResponseError):
                await peer.get(PATH)
            assert (await server.stats())["token_requests"] == 2
            await server.recover()
            assert await peer.get(PATH) == 200

    run(scene)


def test_a_count_that_differs_between_rounds_is_shown_as_a_range() -> None:
    """A median would hide one bad round of three."""
    assert worst([1, 1, 1]) == 1
    assert worst([1, 7, 1]) == "1-7"


@pytest.mark.parametrize("name", FOUR)
def test_an_experiment_runs_small_and_saves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--quick` prints every contestant, and the counts that must hold do."""
    status = FOUR[name].main(["--quick", "--only", "tokensession", "cookbook", "authlib"])
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert {"tokensession", "cookbook's", "authlib"} <= set(shown.replace(",", " ").split())
    assert "MISSED" not in shown
    assert not list(tmp_path.iterdir())


def test_a_run_with_a_wrong_count_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few token requests are wrong too: here nothing expires, so there are none."""
    monkeypatch.setattr(Tokensession, "expire", lambda peer: None)
    assert contention.main(["--quick", "--only", "tokensession"]) == 1


def test_cancelling_the_refreshing_caller_fails_no_waiter_here_and_all_with_a_plain_lock() -> None:
    """The experiment tells the two apart."""

    async def scene() -> None:
        async with Server(auth="post") as server:
            ours = await cancelled.cancel_first(Tokensession, server, waiting=5)
            assert (ours.waiting.served, ours.token_requests, ours.after.served) == (5, 1, 1)
            plain = await cancelled.cancel_first(AiohttpCookbook, server, waiting=5)
            assert (plain.waiting.failed, plain.token_requests, plain.after.served) == (5, 6, 0)
            assert (await server.stats())["reuse_detections"] > 0

    run(scene)


def test_recovery_after_an_outage_is_reported() -> None:
    """One token request for a wave of callers, and a 200 when it is over."""

    async def scene() -> None:
        row = await outage.fail_and_recover(Tokensession, waves=1)
        assert (row["callers"], row["token requests"], row["recovers"]) == (outage.PEER_EACH, 1, "yes")

    run(scene)


def test_token_requests_in_an_outage_do_not_grow_with_the_callers() -> None:
    """They stay below what the policy's shortest pauses allow. Naive ones do not."""

    async def scene() -> None:
        for trouble in outage.TROUBLES:
            requests, unavailable = await outage.minute(trouble, seed=1, waves=60, each=5)
            assert unavailable == 300
            assert 3 <= requests <= outage.bound(waves=60) < 60
        assert await outage.naive(waves=6, each=5) == 30

    run(scene)


def test_a_result_survives_json_with_all_its_series() -> None:
    """Every contestant has a figure for every size."""

    async def scene() -> None:
        result = await contention.measure({10: 2}, only=["tokensession"], latency=0.0)
        series = json.loads(json.dumps(result.series))
        assert series["x"] == [10]
        assert set(series["lines"]) == {Tokensession.name, RawAiohttp.name}
        assert all(len(line) == 1 and line[0] > 0 for line in series["lines"].values())
        assert not [goal for goal in result.missed if goal.must == "1, 0"]

    run(scene)
