"""Puts it all together: the provider, the fleet, chaos on time, and a new sign-in when one is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from typing import Any

from tokensession import AiohttpTransport, ManagedSource, TokenSessionError
from tokensession.clock import SystemClock
from tokensession.providers import OAuth2
from tokensession.stores import Store
from tokensession.token import fingerprint

from . import event_log
from .chaos import AIMED, Act, Ordeals, timetable
from .fleet import Fleet, Worker
from .plan import KEY, POLICY, Plan
from .provider import Issue, Provider
from .report import Report
from .watch import Watch, gone

__all__ = ["Supervisor"]

_LOOK = 0.05  # seconds between two looks at what is being waited for
_START = 60.0  # seconds that the first requests may take: most of them are Python's imports
_boot = SystemClock.boot


class Supervisor:
    """One run over one store, which stays the caller's. `await run()` gives its report."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan = plan
        self._store = store
        self._log = event_log.EventLog()
        self._ordeals = Ordeals()
        self._watch = Watch(store, self._log)
        self._provider = Provider(plan, self._log, self._ordeals, self)
        self._lost = asyncio.Event()
        self._fleet: Fleet | None = None

    async def run(self) -> Report:
        """The whole run. Cancelled or failing, it leaves no process behind."""
        began = time.monotonic()
        async with self._provider, contextlib.AsyncExitStack() as stack:
            credentials = self._provider.credentials
            fleet = self._fleet = Fleet(
                self._plan,
                credentials,
                self._log,
                rng=random.Random(f"{self._plan.seed} fleet"),
                reaped=self._watch.stored,
                told=self._lost.set,
                surfaced=self._surfaced,
            )
            stack.push_async_callback(fleet.abort)
            keeper = ManagedSource(
                OAuth2(**credentials), AiohttpTransport(), store=self._store, key=KEY, policy=POLICY
            )
            stack.push_async_callback(keeper.aclose)
            errands = [
                asyncio.ensure_future(self._watch.run()),
                asyncio.ensure_future(self._sign_in_again(keeper)),
            ]
            stack.callback(lambda: [errand.cancel() for errand in errands])
            await fleet.start()
            await self._all_served(since=1, seconds=_START)
            print(f"{self._plan.processes} processes are at work", flush=True)
            await self._chaos()
            await self._settle()
            for errand in errands:
                errand.cancel()
            await fleet.close()
            await self._watch.claim()
            await self._watch.look()
        return self._report(time.monotonic() - began)

    # -- chaos ------------------------------------------------------------------------------------

    async def _chaos(self) -> None:
        began = time.monotonic()
        for act in timetable(self._plan):
            await asyncio.sleep(max(0.0, began + act.at - time.monotonic()))
            self._do(act)
        await asyncio.sleep(max(0.0, began + self._plan.seconds - time.monotonic()))

    def _do(self, act: Act) -> None:
        # The place for restarts of a store's server, once there is a store that has one.
        fleet = self._living
        worker = fleet.workers[int(act.who * len(fleet.workers))]
        if act.what in AIMED:
            self._ordeals.aim(act)
        elif act.what == "kill":
            fleet.kill_soon(worker, "at random")
        elif act.what == "stop":
            fleet.stop(worker, act.standing, "at random")
        elif act.what == "step":
            fleet.step(worker, self._plan.skew * (2 * act.much - 1))
        elif act.what == "revoke":
            self._provider.revoke_access_tokens()

    @property
    def _living(self) -> Fleet:
        assert self._fleet is not None
        return self._fleet

    async def kill(self, worker: str, aim: str) -> None:
        """The provider's hands."""
        if (victim := self._living.by_name(worker)) is not None:
            await self._living.kill(victim, aim)

    def stop(self, worker: str, seconds: float, aim: str) -> None:
        """The provider's hands."""
        if (victim := self._living.by_name(worker)) is not None:
            self._living.stop(victim, seconds, aim)

    def killed(self, worker: str) -> bool:
        """The provider's eyes."""
        return worker in self._living.killed

    # -- signing in again -------------------------------------------------------------------------

    async def _sign_in_again(self, keeper: ManagedSource) -> None:
        """Whenever a worker says that the grant is gone, and the record says so too.

        A worker may say it a little late, of a grant that has been replaced since; then there is nothing
        to do. If the record never says so, nobody recovers, and that will show.
        """
        seed = fingerprint(self._provider.refresh_token)
        while True:
            await self._lost.wait()
            self._lost.clear()
            if (credential := gone(await self._watch.look(), seed)) is None:
                continue
            try:
                await keeper.sign_in(refresh_token=self._provider.new_credential())
            except TokenSessionError:
                continue  # the workers will say it again
            self._log.enter(event_log.SignedIn(credential))

    # -- 401s that callers got --------------------------------------------------------------------

    def _surfaced(self, worker: Worker, message: dict[str, Any]) -> None:
        reason, issue = self._provider.reason(message["unauthorized"])
        if reason == "expired" and issue is not None:
            reason = self._why_expired(worker, issue, message["began"], message["offset"])
        self._log.enter(event_log.Surfaced(worker.name, reason))

    def _why_expired(self, worker: Worker, issue: Issue, began: float, offset: float) -> str:
        """Why a caller could not help sending a token that had expired. All by the clock since boot."""
        stops = self._stops(worker.name)
        if any(until >= began for _, until in stops):
            return "expired while its client was stopped"
        if issue.worker == worker.name and any(since <= issue.expires <= until for since, until in stops):
            return "expired while its refresher was stopped"
        offsets = (offset, worker.offset) if worker.stepped_at >= began else (offset,)
        if any(issue.expires + issue.offset - one > max(began, issue.expires) for one in offsets):
            return "expired, but alive by the client's wrong clock"
        if issue.expires > began:
            return "expired on its way"
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
        """No more chaos: every worker has to get a token that is new, and a 200 with it."""
        self._ordeals.clear()
        self._living.calm()
        since = self._provider.issued + 1
        served = await self._all_served(since=since, seconds=self._plan.settling)
        for worker in self._living.workers:
            name = worker.name
            self._log.enter(event_log.Proven(name) if name in served else event_log.Unproven(name))

    async def _all_served(self, *, since: int, seconds: float) -> set[str]:
        """Wait until every worker has had a 200 with that issue or a later one; those that have."""
        until = time.monotonic() + seconds
        while True:
            latest = self._provider.latest
            served = {worker.name for worker in self._living.workers if latest.get(worker.name, 0) >= since}
            if len(served) == len(self._living.workers) or time.monotonic() >= until:
                return served
            await asyncio.sleep(_LOOK)

    def _report(self, seconds: float) -> Report:
        tallies = self._living.tallies.values()
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
            looks=self._watch.looks,
            troubles=self._watch.troubles,
        )
