"""The workers as the supervisor sees them: one process in each place, replaced when it has ended.

If the supervisor is killed, the kernel kills the workers (see `worker`), or they exit when their stdin ends.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from tokensession.cli.child_process import Child, ChildFailed
from tokensession.clock import SystemClock

from . import event_log
from .plan import Plan

__all__ = ["Fleet", "Worker"]

_GRACE = 15.0  # seconds from the order to stop until it is killed
_boot = SystemClock.boot


class _Process(Child):
    """A child that can get signals."""

    def signal(self, number: signal.Signals) -> None:
        """Send one. A process that has ended ignores it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


class Worker:
    """One worker process. `name` is "place.number"."""

    def __init__(self, name: str, child: _Process, offset: float) -> None:
        self.name = name
        self.child = child
        self.offset = offset
        self.killed = self.stopped = self.leaving = False
        self.seen: set[str] = set()
        """The refresh tokens that it knows, or has known."""
        self.stepped_at = -1.0
        self.ended = anyio.Event()
        """It is reaped, and all its messages are read."""

    @property
    def alive(self) -> bool:
        """Whether it can be killed, stopped and sent orders."""
        return not (self.killed or self.leaving or self.ended.is_set())


class Fleet:
    """All workers. Their messages go into the event log; `reaped` is awaited when a killed one has ended.

    They run in `group`: cancelling it kills them, and waits until they have ended.
    """

    def __init__(
        self,
        plan: Plan,
        credentials: dict[str, Any],
        log: event_log.EventLog,
        group: TaskGroup,
        *,
        reaped: Callable[[], Awaitable[str | None]],
        sign_in_required: Callable[[], None],
        unauthorized: Callable[[Worker, dict[str, Any]], None],
    ) -> None:
        self._plan = plan
        self._credentials = credentials
        self._log = log
        self._group = group
        self._rng = random.Random(f"{plan.seed} fleet")
        self._reaped = reaped
        self._sign_in_required = sign_in_required
        self._unauthorized = unauthorized
        self._closing = False
        self.workers: list[Worker] = []
        """The newest in each place."""
        self.killed: set[str] = set()
        """The names of all that were ever killed."""
        self.tallies: dict[str, tuple[int, Counter[str]]] = {}
        """The requests and failures of each worker, as last reported."""

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start one worker in each place."""
        for place in range(self._plan.processes):
            await self._group.start(self._keep_running, place)

    async def _keep_running(self, place: int, *, task_status: TaskStatus[None]) -> None:
        for number in itertools.count(1):
            worker = await self._spawn(f"{place + 1}.{number}")
            self.workers[place : place + 1] = [worker]
            if number == 1:
                task_status.started()
            await self._follow(worker)
            if self._closing:
                return

    async def _spawn(self, name: str) -> Worker:
        offset = self._rng.uniform(-self._plan.skew, self._plan.skew)
        worker = Worker(name, await _Process.start(name, "benchmarks.torture.worker"), offset)
        await worker.child.tell(
            name=name,
            store=self._plan.store,
            credentials=self._credentials,
            offset=offset,
            tasks=self._plan.tasks,
            pause=self._plan.pause,
            seed=self._rng.getrandbits(32),
        )
        return worker

    async def _follow(self, worker: Worker) -> None:
        """Read its messages to the end, then look at the record."""
        try:
            while True:
                self._take(worker, await worker.child.hear())
        except ChildFailed as end:
            if worker.killed:
                self._log.add(event_log.Reaped(worker.name, await self._reaped()))
            elif not worker.leaving:
                self._log.add(event_log.Exited(worker.name, str(end)))
            worker.ended.set()
        finally:
            with anyio.CancelScope(shield=True):
                worker.child.signal(signal.SIGKILL)
                await worker.child.stop()

    def _take(self, worker: Worker, message: dict[str, Any]) -> None:
        name, add = worker.name, self._log.add
        match message:
            case {"requests": requests, "failures": failures}:
                self.tallies[name] = requests, Counter(failures)
            case {"claimed": _}:
                add(event_log.Claimed(name))
            case {"released": _}:
                add(event_log.Released(name))
            case {"seen": credential}:
                worker.seen.add(credential)
                add(event_log.Seen(name, credential))
            case {"sent": credential}:
                add(event_log.Sent(name, credential))
            case {"outcome": outcome, "credential": credential}:
                add(event_log.Finished(name, credential, outcome))
            case {"unsaved": _}:
                add(event_log.Unsaved(name))
            case {"restored": found}:
                add(event_log.Restored(name, found))
            case {"sign_in_required": error, "repeated": repeated}:
                add(event_log.SignInRequired(name, error, repeated))
                self._sign_in_required()
            case {"unauthorized": _}:
                self._unauthorized(worker, message)

    @property
    def living(self) -> list[Worker]:
        """Those that have not been killed."""
        return [worker for worker in self.workers if worker.alive]

    # -- what chaos does to them ------------------------------------------------------------------

    def by_name(self, name: str) -> Worker | None:
        """The worker with this name, if it is alive."""
        return next((worker for worker in self.workers if worker.name == name and worker.alive), None)

    async def kill(self, worker: Worker, aim: str) -> None:
        """SIGKILL. Returns when it is reaped and the record has been read."""
        if worker.alive:
            worker.killed = True
            self.killed.add(worker.name)
            self._log.add(event_log.Killed(worker.name, aim))
            worker.child.signal(signal.SIGKILL)
            await worker.ended.wait()

    def stop(self, worker: Worker, seconds: float, aim: str) -> None:
        """SIGSTOP now, and SIGCONT later."""
        if worker.alive and not worker.stopped:
            worker.stopped = True
            worker.child.signal(signal.SIGSTOP)
            self._log.add(event_log.Stopped(worker.name, _boot(), aim))
            self._group.start_soon(self._continue_later, worker, seconds)
            if seconds > self._plan.lapse:
                self._group.start_soon(self._lapse_later, worker)

    async def _continue_later(self, worker: Worker, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await worker.ended.wait()
        self._continue(worker)

    async def _lapse_later(self, worker: Worker) -> None:
        with anyio.move_on_after(self._plan.lapse):
            await worker.ended.wait()
        self.lapse(worker)

    def lapse(self, worker: Worker) -> None:
        """It may have lost its lease."""
        if worker.alive:
            self._log.add(event_log.Lapsed(worker.name))

    def _continue(self, worker: Worker) -> None:
        if worker.stopped and not worker.ended.is_set():
            self._log.add(event_log.Continued(worker.name, _boot()))
            worker.child.signal(signal.SIGCONT)
        worker.stopped = False

    async def step(self, worker: Worker, offset: float) -> None:
        """Set its wall clock."""
        if worker.alive:
            worker.offset, worker.stepped_at = offset, _boot()
            await worker.child.tell(do="step", offset=offset)
            self._log.add(event_log.Stepped(worker.name))

    # -- the end ----------------------------------------------------------------------------------

    def continue_all(self) -> None:
        """SIGCONT to all that are stopped."""
        for worker in self.workers:
            self._continue(worker)

    async def close(self) -> None:
        """Let all workers finish, and kill those that do not in time."""
        self._closing = True
        self.continue_all()
        for worker in self.workers:
            worker.leaving = not worker.killed
            await worker.child.tell(do="stop")
        with anyio.move_on_after(_GRACE):
            for worker in self.workers:
                await worker.ended.wait()
        for worker in self.workers:
            if not worker.ended.is_set():
                self._log.add(event_log.Exited(worker.name, f"It did not stop within {_GRACE:g} s."))
                worker.child.signal(signal.SIGKILL)
                await worker.ended.wait()
