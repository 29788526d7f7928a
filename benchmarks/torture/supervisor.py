"""Puts it all together: the provider, the fleet, the acts of chaos, and a new sign-in when one is lost."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import Any

import anyio
from anyio.abc import TaskGroup

from tokensession import ManagedSource, TokenSessionError
from tokensession.clock import SystemClock
from tokensession.providers import OAuth2
from tokensession.stores import Store

from ..servers import ServerProcess
from . import event_log
from .chaos import AIMED, Act, AimedActs, timetable
from .fleet import Fleet, Worker
from .plan import KEY, POLICY, Plan
from .provider import Issue, Provider
from .report import Report
from .watch import Watch

__all__ = ["Supervisor"]

_POLL = 0.05  # seconds
_SURE = 1.0  # seconds; by then all callers have the error
_START = 60.0  # seconds that the first requests may take, imports included
_boot = SystemClock.boot


class Supervisor:
    """One run over one store, which stays open. `await run()` returns the report.

    `server` is the store's, if it has one that may be killed.
    """

    def __init__(self, plan: Plan, store: Store, server: ServerProcess | None = None) -> None:
        self._plan = plan
        self._store = store
        self._server = server
        self._log = event_log.EventLog()
        self._acts = AimedActs()
        self._watch = Watch(store, self._log, lease=plan.lease)
        self._provider = Provider(plan, self._log, self._acts, self)
        self._sign_in_required = anyio.Event()
        self._put_back: set[int] = set()  # the numbers of access tokens in records that were put back
        self._running: Fleet | None = None

    async def run(self) -> Report:
        """The whole run. If it fails or is cancelled, no worker process stays behind."""
        began = time.monotonic()
        async with self._provider, anyio.create_task_group() as group:
            credentials = self._provider.credentials
            self._running = Fleet(
                self._plan,
                credentials,
                self._log,
                group,
                reaped=self._watch.surely_stored,
                sign_in_required=lambda: self._sign_in_required.set(),
                unauthorized=self._unauthorized,
            )
            own_source = ManagedSource(OAuth2(**credentials), store=self._store, key=KEY, policy=POLICY)
            async with own_source, anyio.create_task_group() as background:
                background.start_soon(self._watch.run)
                background.start_soon(self._sign_in_again, own_source)
                await self._fleet.start()
                await self._all_served(since=1, seconds=_START)
                print(f"{self._plan.processes} processes are at work", flush=True)
                await self._chaos()
                await self._settle()
                background.cancel_scope.cancel()
            await self._fleet.close()
            await self._watch.claim()
            await self._watch.stored()
            group.cancel_scope.cancel()
        return self._report(time.monotonic() - began)

    @property
    def _fleet(self) -> Fleet:
        assert self._running is not None
        return self._running

    # -- chaos ------------------------------------------------------------------------------------

    async def _chaos(self) -> None:
        began = time.monotonic()
        async with anyio.create_task_group() as group:
            for act in timetable(self._plan):
                await anyio.sleep(max(0.0, began + act.at - time.monotonic()))
                await self._do(act, group)
            await anyio.sleep(max(0.0, began + self._plan.seconds - time.monotonic()))

    async def _do(self, act: Act, group: TaskGroup) -> None:
        fleet = self._fleet
        worker = fleet.workers[int(act.which * len(fleet.workers))]
        if act.what in AIMED:
            self._acts.aim(act)
        elif act.what == "kill":
            group.start_soon(fleet.kill, worker, "at random")
        elif act.what == "stop":
            fleet.stop(worker, act.stop_seconds, "at random")
        elif act.what == "step":
            await fleet.step(worker, self._plan.skew * (2 * act.much - 1))
        elif act.what == "revoke":
            self._provider.revoke_access_tokens()
        elif act.what == "outage":
            group.start_soon(self._provider.outage, act.outage, act.outage_seconds)
        elif act.what == "restart store":
            group.start_soon(self._restart_store, act)
        elif act.what == "delete":
            await self._watch.delete()
        elif act.what == "put back" and (access := await self._watch.put_back(act.much)):
            self._put_back.add(self._provider.number(access))

    async def _restart_store(self, act: Act) -> None:
        """Kill the store's server, or end it in order, and start it again."""
        server, began = self._server, _boot()
        if server is None or not server.running:  # the last restart took long
            return
        how = "ended in order" if act.coin < 0.2 else "killed"
        self._log.add(event_log.StoreEnded(how))
        async with anyio.create_task_group() as group:
            group.start_soon(self._lapse_all)
            await anyio.to_thread.run_sync(server.kill if how == "killed" else server.stop)
            await anyio.sleep(act.down_seconds)
            await anyio.to_thread.run_sync(server.start)
            group.cancel_scope.cancel()
        self._log.add(event_log.StoreStarted(_boot() - began))

    async def _lapse_all(self) -> None:
        await anyio.sleep(self._plan.lapse)
        for worker in self._fleet.living:
            self._fleet.lapse(worker)

    async def kill(self, worker: str, aim: str) -> None:
        """See `WorkerControl`."""
        if (found := self._fleet.by_name(worker)) is not None:
            await self._fleet.kill(found, aim)

    def stop(self, worker: str, seconds: float, aim: str) -> None:
        """See `WorkerControl`."""
        if (found := self._fleet.by_name(worker)) is not None:
            self._fleet.stop(found, seconds, aim)

    def killed(self, worker: str) -> bool:
        """See `WorkerControl`."""
        return worker in self._fleet.killed

    # -- signing in again -------------------------------------------------------------------------

    async def _sign_in_again(self, source: ManagedSource) -> None:
        """Sign in whenever a worker reports that it must, and the sign-in is lost indeed.

        A worker may be wrong: it reports late, when there has been a new sign-in already, or the store went
        back. Then it must recover by itself.
        """
        provider = self._provider
        while True:
            await self._sign_in_required.wait()
            self._sign_in_required = anyio.Event()
            await anyio.sleep(_SURE)
            if not (provider.dead or await self._forgotten()):
                continue
            lost, newest = provider.sign_in, provider.newest
            while True:
                with contextlib.suppress(TokenSessionError):
                    await source.sign_in(refresh_token=provider.new_credential())
                    break
            self._log.add(event_log.SignedIn(provider.sign_in, lost, newest))

    async def _forgotten(self) -> bool:
        """Whether no one knows a refresh token that works: not the store, and no living worker."""
        known, living = {await self._watch.surely_stored()}, self._fleet.living
        for worker in living:
            known |= worker.seen
        holds = any(worker.name == self._provider.holder for worker in living)
        return not holds and not self._provider.redeemable & known

    # -- 401s that callers got --------------------------------------------------------------------

    def _unauthorized(self, worker: Worker, message: dict[str, Any]) -> None:
        reason, issue = self._provider.reason(message["unauthorized"])
        if reason == "expired" and issue is not None:
            reason = self._why_expired(worker, issue, message["began"], message["offset"])
        self._log.add(event_log.Unauthorized(worker.name, reason))

    def _why_expired(self, worker: Worker, issue: Issue, began: float, offset: float) -> str:
        """Why a caller sent a token that had expired. By the boot clock."""
        if issue.number in self._put_back:
            return "expired, in a record that was put back"
        stops = self._stops(worker.name)
        if any(until >= began for _, until in stops):
            return "expired while its client was stopped"
        if issue.worker == worker.name and any(since <= issue.expires <= until for since, until in stops):
            return "expired while its refresher was stopped"
        offsets = (offset, worker.offset) if worker.stepped_at >= began else (offset,)
        if any(issue.expires + issue.offset - one > max(began, issue.expires) for one in offsets):
            return "expired, but valid by the client's wrong clock"
        if issue.expires > began:
            return "expired on the way"
        return "expired"

    def _stops(self, worker: str) -> list[tuple[float, float]]:
        """From when to when it was stopped, each time."""
        stops: list[tuple[float, float]] = []
        for entry in self._log.entries:
            if isinstance(entry, event_log.Stopped) and entry.worker == worker:
                stops.append((entry.at, float("inf")))
            elif isinstance(entry, event_log.Continued) and entry.worker == worker:
                stops[-1] = (stops[-1][0], entry.at)
        return stops

    # -- the end ----------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """End chaos, and wait until every worker has got a 200 with a new token."""
        self._acts.clear()
        self._fleet.continue_all()
        since = self._provider.issued + 1
        served = await self._all_served(since=since, seconds=self._plan.settling)
        for worker in self._fleet.workers:
            name = worker.name
            self._log.add(event_log.Recovered(name) if name in served else event_log.NotRecovered(name))

    async def _all_served(self, *, since: int, seconds: float) -> set[str]:
        """Wait until every worker has got a 200 with that issue or a later one. Returns those that have."""
        until = time.monotonic() + seconds
        while True:
            latest = self._provider.latest
            served = {worker.name for worker in self._fleet.workers if latest.get(worker.name, 0) >= since}
            if len(served) == len(self._fleet.workers) or time.monotonic() >= until:
                return served
            await anyio.sleep(_POLL)

    def _report(self, seconds: float) -> Report:
        tallies = self._fleet.tallies.values()
        return Report(
            plan=self._plan,
            seconds=seconds,
            entries=self._log.entries,
            lines=self._log.lines,
            stats=self._provider.stats,
            invalid_requests=list(self._provider.invalid_requests),
            requests=sum(requests for requests, _ in tallies),
            failures=sum((failures for _, failures in tallies), Counter[str]()),
            unauthorized=self._provider.unauthorized_by_reason,
            reads=self._watch.reads,
            failed_reads=self._watch.failed_reads,
        )
