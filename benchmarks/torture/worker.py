"""One worker process: `python -m benchmarks.torture.worker`.

It makes API requests through one `AuthedSession`, a few at a time and without end. It reports what it does
before it claims, sends or gives up, so the supervisor knows how far it had come when it was killed. It exits
as soon as its stdin ends. If it is stopped then, the kernel kills it when its supervisor ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio

from tokensession import AuthedSession, ManagedSource, SignInRequired
from tokensession.cli.child_process import messages, say
from tokensession.events import Event, Restored, SaveFailed
from tokensession.providers import OAuth2
from tokensession.stores import open_store

from .clocks import SkewedClock
from .instrumented import InstrumentedStore, InstrumentedTransport
from .plan import KEY, POLICY

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_REPORT_EVERY = 0.25  # seconds


class Load:
    """The tasks of this process, and their counters."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._name: str = settings["name"]
        self._settings = settings
        self._clock = SkewedClock(settings["offset"])
        self._numbers = 0
        self._requests = 0
        self._failures: Counter[str] = Counter()
        self._sign_in_required = False
        self._stopping = False

    async def run(self) -> None:
        """Make requests until `stop`."""
        credentials = self._settings["credentials"]
        async with contextlib.aclosing(open_store(self._settings["store"])) as store:
            source = ManagedSource(
                OAuth2(**credentials),
                InstrumentedTransport(self._name, self._clock),
                store=InstrumentedStore(store),
                key=KEY,
                policy=POLICY,
                clock=self._clock,
                observer=_observe,
            )
            async with source, AuthedSession(source) as session, anyio.create_task_group() as reporting:
                reporting.start_soon(self._report_regularly)
                async with anyio.create_task_group() as tasks:
                    for _ in range(self._settings["tasks"]):
                        tasks.start_soon(self._make_requests, session)
                reporting.cancel_scope.cancel()
        self._report()

    def step(self, offset: float) -> None:
        """Set the wall clock."""
        self._clock.offset = offset

    def stop(self) -> None:
        """Finish the requests that are running."""
        self._stopping = True

    async def _make_requests(self, session: AuthedSession) -> None:
        pause = self._settings["pause"]
        while not self._stopping:
            self._numbers += 1
            await self._request(session, f"{self._name}-{self._numbers}")
            await anyio.sleep(pause * (0.5 + random.random()))

    async def _request(self, session: AuthedSession, name: str) -> None:
        began, offset = self._clock.boot(), self._clock.offset
        failure: str | None = None
        try:
            async with session.get(f"/ping/{name}") as response:
                await response.read()
            if response.status == 401:
                say(unauthorized=name, began=began, offset=offset)
            if response.status != 200:
                failure = f"status {response.status}"
        except SignInRequired as error:
            failure = type(error).__name__
            say(sign_in_required=failure, repeated=self._sign_in_required)
            self._sign_in_required = True
        except Exception as error:  # noqa: BLE001 - every kind is counted
            failure = type(error).__name__
            if not hasattr(error, "todo"):  # not one of the library's own
                traceback.print_exc()
        else:
            if failure is None:
                self._sign_in_required = False
        self._requests += 1
        if failure is not None:
            self._failures[failure] += 1

    async def _report_regularly(self) -> None:
        while True:
            self._report()
            await anyio.sleep(_REPORT_EVERY)

    def _report(self) -> None:
        say(requests=self._requests, failures=self._failures)


def _observe(event: Event) -> None:
    if isinstance(event, SaveFailed):
        say(unsaved=True)
    elif isinstance(event, Restored):
        say(restored=event.found)


async def main() -> None:
    """Work until the supervisor says stop, or has ended."""
    orders = messages()
    settings = await anext(orders)
    random.seed(settings["seed"])
    load = Load(settings)
    async with anyio.create_task_group() as group:
        group.start_soon(_take_orders, orders, load)
        await load.run()
        group.cancel_scope.cancel()


async def _take_orders(orders: AsyncIterator[dict[str, Any]], load: Load) -> None:
    async for order in orders:
        if order["do"] == "step":
            load.step(order["offset"])
        else:
            load.stop()
    os._exit(1)  # the supervisor has ended, so there is nothing to finish


def _end_with_the_supervisor() -> None:
    # A stopped process does not read that its stdin has ended. Linux only: elsewhere, a supervisor that is
    # killed may leave a stopped process behind.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


if __name__ == "__main__":
    _end_with_the_supervisor()
    try:
        anyio.run(main)
    except* BrokenPipeError:
        sys.stderr.close()
        os._exit(1)
