"""The contestants of the benchmarks are what they are said to be, and the four experiments with them run."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path

import aiohttp
import pytest

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:  # the benchmarks are no part of what is installed
    sys.path.insert(0, ROOT)

from benchmarks import cancelled, contention, outage, revoked  # noqa: E402
from benchmarks.harness import results  # noqa: E402
from benchmarks.harness.server import Server  # noqa: E402
from benchmarks.peers import PEERS, AiohttpCookbook, Peer, RawAiohttp, Tokensession, excuse  # noqa: E402
from benchmarks.peers.common import PATH, primed, worst  # noqa: E402
from benchmarks.peers.failing_server import FailingServer  # noqa: E402

INSTALLED = [peer for peer in PEERS if excuse(peer, "import") is None]
REFRESHING = [peer for peer in INSTALLED if peer is not RawAiohttp]
FOREIGN = [peer for peer in PEERS if peer.needs]
FOUR = {"cancelled": cancelled, "contention": contention, "outage": outage, "revoked": revoked}


def named(peers: list[type[Peer]]) -> list[object]:
    """As parameters that read well."""
    return [pytest.param(peer, id=peer.__name__) for peer in peers]


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run an async test, bounded in case it hangs."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


@pytest.fixture(autouse=True)
def _saved_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may write over the figures of the repository."""
    monkeypatch.setattr(results.Result.save, "__defaults__", (tmp_path,))


# -- the contestants ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", named(INSTALLED))
def test_a_contestant_gets_a_token_and_makes_a_request_with_it(kind: type[Peer]) -> None:
    """One token request to begin with, and the API is content with what it sends."""

    async def scene() -> None:
        async with Server(auth="post") as server:
            async with primed(kind, server) as peer:
                assert await peer.get(PATH) == 200
                assert peer.holds()
            stats = await server.stats()
            assert (stats["token_requests"], stats["unauthorized"], stats["invalid_requests"]) == (1, 0, 0)

    run(scene)


@pytest.mark.parametrize("kind", named(REFRESHING))
def test_expire_makes_a_contestant_refresh_once_and_go_on_with_the_new_refresh_token(
    kind: type[Peer],
) -> None:
    """Twice, for a clock that can be moved only once would look right the first time."""

    async def scene() -> None:
        async with Server(auth="post") as server, primed(kind, server) as peer:
            held = [peer.holds()]
            for expiries in (1, 2):
                peer.expire()
                assert [await peer.get(PATH) for _ in range(3)] == [200] * 3
                held.append(peer.holds())
                assert (await server.stats())["token_requests"] == 1 + expiries
            assert len(set(held)) == 3, "refresh tokens rotate"

    run(scene)


def test_raw_aiohttp_sends_what_it_has_whatever_becomes_of_it() -> None:
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


def test_the_cookbooks_middleware_refreshes_once_for_many_by_the_clock_and_by_a_401() -> None:
    """The pattern is given its best: a lock and a look, rotation, one retry. It is the strongest rival."""

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


def test_a_margin_counts_as_expired_what_is_within_it() -> None:
    """A margin longer than the token's life makes each request refresh, one after another."""

    async def scene() -> None:
        async with Server(auth="post", lifetime=60) as server:
            for kind in (Tokensession, AiohttpCookbook):
                for margin, requests in ((10.0, 1), (90.0, 3)):
                    before = (await server.stats())["token_requests"]
                    seed = {"refresh_token": await server.new_credential()}
                    async with kind(server.credentials | seed, lifetime_margin=margin) as peer:
                        await peer.prime()
                        assert [await peer.get(PATH) for _ in range(2)] == [200, 200]
                    assert (await server.stats())["token_requests"] - before == requests

    run(scene)


def test_who_is_not_installed_cannot_and_says_what_is_missing() -> None:
    """A missing package is a reason in the table, and no traceback; and nothing is imported for it."""

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


def test_a_client_that_authenticates_in_the_header_is_turned_away() -> None:
    """Not every contestant can do that, so none does: it would be another experiment."""
    with pytest.raises(ValueError, match="in the body"):
        RawAiohttp({"auth": "basic"})


def test_the_faltering_server_counts_token_requests_and_takes_the_token_back_until_it_recovers() -> None:
    """Who goes on with the spent token must not look as if the outage had not touched it."""

    async def scene() -> None:
        with FailingServer() as server:
            async with AiohttpCookbook(server.credentials) as peer:
                await peer.prime()
                assert await peer.get(PATH) == 200
                server.fail()
                with pytest.raises(aiohttp.ClientResponseError):
                    await peer.get(PATH)
                assert server.posts == 2
                server.recover()
                assert await peer.get(PATH) == 200

    run(scene)


def test_a_count_that_differs_between_rounds_is_shown_as_its_range() -> None:
    """One bad round of three is not hidden by a median."""
    assert worst([1, 1, 1]) == 1
    assert worst([1, 7, 1]) == "1-7"


# -- the experiments ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOUR)
def test_an_experiment_runs_small_and_saves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--quick` shows every contestant, or why it cannot take part, and the counts that must hold do."""
    status = FOUR[name].main(["--quick", "--only", "tokensession", "cookbook", "authlib"])
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert {"tokensession", "cookbook's", "authlib"} <= set(shown.replace(",", " ").split())
    assert "MISSED" not in shown
    assert not list(tmp_path.iterdir())


def test_a_run_in_which_a_count_is_broken_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token request too few is as wrong as one too many: here nothing expires, so there is none."""
    monkeypatch.setattr(Tokensession, "expire", lambda peer: None)
    assert contention.main(["--quick", "--only", "tokensession"]) == 1


def test_cancelling_the_caller_that_refreshes_fails_nobody_here_and_everybody_with_a_plain_lock() -> None:
    """The experiment tells the two apart: the same scene, one grant kept and the other lost."""

    async def scene() -> None:
        async with Server(auth="post") as server:
            kept = await cancelled.scene(Tokensession, server, waiting=5)
            assert (kept.waiting.served, kept.token_requests, kept.after.served) == (5, 1, 1)
            lost = await cancelled.scene(AiohttpCookbook, server, waiting=5)
            assert (lost.waiting.failed, lost.token_requests, lost.after.served) == (5, 6, 0)
            assert (await server.stats())["reuse_detections"] > 0

    run(scene)


def test_who_survives_an_outage_is_seen_to_go_on() -> None:
    """One token request for a wave of callers, and service again when it is over."""

    async def scene() -> None:
        row = await outage.scene(Tokensession, waves=1)
        assert (row["callers"], row["token requests"], row["goes on"]) == (outage.PEER_EACH, 1, "yes")

    run(scene)


def test_an_outage_is_counted_by_the_request_and_not_by_the_caller() -> None:
    """A minute's token requests stay below what the policy's shortest pauses allow; the naive ones do not."""

    async def scene() -> None:
        for trouble in outage.TROUBLES:
            requests, told = await outage.minute(trouble, seed=1, waves=60, each=5)
            assert told == 300
            assert (1 if trouble == "503" else 3) <= requests <= outage.bound(trouble, waves=60) < 60
        assert await outage.naive(waves=6, each=5) == 30

    run(scene)


def test_a_result_can_be_written_down_with_all_its_series() -> None:
    """What the plots are drawn from survives JSON, and every contestant has a figure for every size."""

    async def scene() -> None:
        result = await contention.measure({10: 2}, only=["tokensession"], latency=0.0)
        series = json.loads(json.dumps(result.series))
        assert series["x"] == [10]
        assert set(series["lines"]) == {Tokensession.name, RawAiohttp.name}
        assert all(len(line) == 1 and line[0] > 0 for line in series["lines"].values())
        assert not [goal for goal in result.missed if goal.must == "1, 0"]

    run(scene)


def test_every_experiment_can_be_run_by_name() -> None:
    """The module that `python -m benchmarks NAME` looks for has a `main`."""
    for name in FOUR:
        assert callable(import_module(f"benchmarks.{name}").main)
