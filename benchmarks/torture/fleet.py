"""The victims, as the supervisor sees them: processes in places, each replaced when it is gone.

Every process leads a group of its own, so that Ctrl-C is the supervisor's, which then ends them in order.
If the supervisor itself is killed, the kernel ends them (see `worker`), or the end of their pipes does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tokensession.clock import SystemClock

from . import event_log
from .plan import Plan

__all__ = ["Fleet", "Worker"]

_ROOT = str(Path(__file__).parents[2])
_GRACE = 15.0  # seconds, from being told to stop to being killed
_boot = SystemClock.boot


class Worker:
    """One incarnation. `name` is "place.number"; `alive` until it was killed or has ended."""

    def __init__(self, name: str, place: int, process: asyncio.subprocess.Process, offset: float) -> None:
        self.name = name
        self.place = place
        self.offset = offset
        self.killed = self.stopped = self.leaving = False
        self.credential = ""
        """Of its claim, while it has one."""
        self.stepped_at = -1.0
        self.process = process
        self.ended = asyncio.Event()
        """It is reaped, and what it said is heard."""

    @property
    def alive(self) -> bool:
        """Whether it can be told, killed and stopped."""
        return not (self.killed or self.leaving or self.ended.is_set())

    def tell(self, **message: Any) -> None:
        """Into its stdin; lost if it is gone."""
        if self.process.stdin is not None:
            with contextlib.suppress(ConnectionError):
                self.process.stdin.write(json.dumps(message).encode() + b"\n")


class Fleet:
    """All of them. What they say is entered into the book; `reaped` is awaited when one is gone."""

    def __init__(
        self,
        plan: Plan,
        credentials: dict[str, Any],
        log: event_log.EventLog,
        *,
        rng: random.Random,
        reaped: Callable[[], Awaitable[str | None]],
        told: Callable[[], None],
        surfaced: Callable[[Worker, dict[str, Any]], None],
    ) -> None:
        self._plan = plan
        self._credentials = credentials
        self._log = log
        self._rng = rng
        self._reaped = reaped
        self._told = told
        self._surfaced = surfaced
        self._numbers = Counter[int]()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.workers: list[Worker] = []
        """The newest of each place."""
        self.killed: set[str] = set()
        """The names of all that were ever killed."""
        self.tallies: dict[str, tuple[int, Counter[str]]] = {}
        """The requests and failures of each worker, as it last told."""

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """One in each place."""
        for place in range(self._plan.processes):
            self.workers.append(await self._spawn(place))

    async def _spawn(self, place: int) -> Worker:
        self._numbers[place] += 1
        name = f"{place + 1}.{self._numbers[place]}"
        offset = self._rng.uniform(-self._plan.skew, self._plan.skew)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.torture.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([_ROOT, os.environ.get("PYTHONPATH", "")])},
            process_group=0,
        )
        worker = Worker(name, place, process, offset)
        worker.tell(
            name=name,
            store=self._plan.store,
            credentials=self._credentials,
            offset=offset,
            tasks=self._plan.tasks,
            pause=self._plan.pause,
            seed=self._rng.getrandbits(32),
        )
        self._later(self._follow(worker))
        return worker

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, worker: Worker) -> None:
        """Hear it to its end; then look at the record, and put another in its place."""
        process, words = worker.process, deque[str](maxlen=15)
        await asyncio.gather(self._hear(worker), _mutter(process, words))
        status = await process.wait()
        if worker.killed:
            self._log.enter(event_log.Reaped(worker.name, await self._reaped()))
        elif not worker.leaving:
            self._log.enter(event_log.Died(worker.name, status, "\n".join(words)))
        worker.ended.set()
        if not self._closing and self.workers[worker.place] is worker:
            self.workers[worker.place] = await self._spawn(worker.place)

    async def _hear(self, worker: Worker) -> None:
        stdout = worker.process.stdout
        assert stdout is not None
        while (line := await stdout.readline()).endswith(b"\n"):
            self._take(worker, json.loads(line))

    def _take(self, worker: Worker, message: dict[str, Any]) -> None:
        name, enter = worker.name, self._log.enter
        match message:
            case {"requests": requests, "failures": failures}:
                self.tallies[name] = requests, Counter(failures)
            case {"claimed": credential}:
                worker.credential = credential
                enter(event_log.Claimed(name, credential))
            case {"released": _}:
                enter(event_log.Released(name))
            case {"sent": _}:
                enter(event_log.Sent(name, worker.credential))
            case {"heard": outcome}:
                enter(event_log.Heard(name, worker.credential, outcome))
            case {"unsaved": _}:
                enter(event_log.Unsaved(name))
            case {"told": error}:
                enter(event_log.Told(name, error))
                self._told()
            case {"unauthorized": _}:
                self._surfaced(worker, message)

    # -- what chaos does to them --------------------------------------------------------------------

    def by_name(self, name: str) -> Worker | None:
        """The worker of that name, if it is still the one in its place."""
        return next((worker for worker in self.workers if worker.name == name and worker.alive), None)

    async def kill(self, worker: Worker, aim: str) -> None:
        """SIGKILL, and wait until it is reaped and the record has been looked at."""
        if worker.alive:
            worker.killed = True
            self.killed.add(worker.name)
            self._log.enter(event_log.Killed(worker.name, aim))
            worker.process.kill()
            await worker.ended.wait()

    def kill_soon(self, worker: Worker, aim: str) -> None:
        """The same, without waiting for it."""
        self._later(self.kill(worker, aim))

    def stop(self, worker: Worker, seconds: float, aim: str) -> None:
        """SIGSTOP now, and SIGCONT later."""
        if worker.alive and not worker.stopped:
            worker.stopped = True
            worker.process.send_signal(signal.SIGSTOP)
            self._log.enter(event_log.Stopped(worker.name, _boot(), aim))
            self._later(self._continue(worker, seconds))

    async def _continue(self, worker: Worker, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(worker.ended.wait(), seconds)
        self._go_on(worker)

    def _go_on(self, worker: Worker) -> None:
        if worker.stopped and worker.process.returncode is None:
            self._log.enter(event_log.Continued(worker.name, _boot()))
            worker.process.send_signal(signal.SIGCONT)
        worker.stopped = False

    def step(self, worker: Worker, offset: float) -> None:
        """Turn its clock."""
        if worker.alive:
            worker.offset, worker.stepped_at = offset, _boot()
            worker.tell(do="step", offset=offset)
            self._log.enter(event_log.Stepped(worker.name))

    # -- the end ----------------------------------------------------------------------------------

    def calm(self) -> None:
        """Nobody stands still any longer."""
        for worker in self.workers:
            self._go_on(worker)

    async def close(self) -> None:
        """Let everybody finish; kill those who do not."""
        self._closing = True
        self.calm()
        until = time.monotonic() + _GRACE
        for worker in self.workers:
            worker.leaving = not worker.killed
            worker.tell(do="stop")
        for worker in self.workers:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.ended.wait(), max(0.1, until - time.monotonic()))
            if not worker.ended.is_set():
                self._log.enter(event_log.Died(worker.name, 0, f"It did not stop within {_GRACE:g} s."))
                worker.process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def abort(self) -> None:
        """End everything now, and wait for it: whatever was broken off leaves no process behind."""
        self._closing = True
        while self._tasks:
            for worker in self.workers:
                worker.leaving = True
                if worker.process.returncode is None:
                    worker.process.kill()
            await asyncio.wait(self._tasks, timeout=0.5)


async def _mutter(process: asyncio.subprocess.Process, words: deque[str]) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        words.append(line.decode(errors="replace").rstrip())
