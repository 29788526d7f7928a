"""One victim: `python -m benchmarks.torture.worker`.

It makes API requests through one `AuthedSession`, a few at a time and without end, and says what it does:
before it claims, sends or gives up, so that the supervisor knows how far it had come when it was killed.
If its stdin ends, so does it, at once; and where it stands still, the kernel ends it with its supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import sys
import traceback
from collections import Counter
from typing import Any

from tokensession import AuthedSession, ManagedSource, SignInRequired
from tokensession.cli.child_process import messages, say
from tokensession.events import Event, SaveFailed
from tokensession.providers import OAuth2
from tokensession.stores import open_store

from .clocks import SkewedClock
from .instrumented import MarkedTransport, ToldStore
from .plan import KEY, POLICY

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_EVERY = 0.25  # seconds between two tallies


class Victim:
    """The tasks of this process, and what they have counted."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._name: str = settings["name"]
        self._settings = settings
        self._clock = SkewedClock(settings["offset"])
        self._numbers = 0
        self._requests = 0
        self._failures: Counter[str] = Counter()
        self._lost: str | None = None
        self._stopping = False

    def step(self, offset: float) -> None:
        """Somebody turns the clock."""
        self._clock.offset = offset

    async def run(self) -> None:
        """Work until `stop`."""
        provider = OAuth2(**self._settings["credentials"])
        async with contextlib.aclosing(open_store(self._settings["store"])) as store:
            source = ManagedSource(
                provider,
                MarkedTransport(self._name, self._clock),
                store=ToldStore(store, self._settings["credentials"]["refresh_token"]),
                key=KEY,
                policy=POLICY,
                clock=self._clock,
                observer=_observe,
            )
            async with contextlib.aclosing(source), AuthedSession(source) as session:
                tally = asyncio.ensure_future(self._tell())
                await asyncio.gather(*(self._work(session) for _ in range(self._settings["tasks"])))
                tally.cancel()
        self._say()

    def stop(self) -> None:
        """Finish what is under way."""
        self._stopping = True

    async def _work(self, session: AuthedSession) -> None:
        pause = self._settings["pause"]
        while not self._stopping:
            self._numbers += 1
            await self._request(session, f"{self._name}-{self._numbers}")
            await asyncio.sleep(pause * (0.5 + random.random()))

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
            if self._lost is None:
                say(told=failure)
            self._lost = failure
        except Exception as error:  # noqa: BLE001 - whatever it is, the books want it
            failure = type(error).__name__
            if not hasattr(error, "todo"):  # none of the library's own
                traceback.print_exc()
        else:
            if failure is None:
                self._lost = None
        self._requests += 1
        if failure is not None:
            self._failures[failure] += 1

    async def _tell(self) -> None:
        while True:
            self._say()
            await asyncio.sleep(_EVERY)

    def _say(self) -> None:
        if self._lost is not None:  # again and again: the supervisor may have been busy signing in
            say(told=self._lost)
        say(requests=self._requests, failures=self._failures)


def _observe(event: Event) -> None:
    if isinstance(event, SaveFailed):
        say(unsaved=True)


async def main() -> None:
    """Take orders until the supervisor says stop, or is gone."""
    orders = messages()
    settings = await anext(orders)
    random.seed(settings["seed"])
    victim = Victim(settings)
    listening = asyncio.ensure_future(_listen(orders, victim))
    await victim.run()
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening


async def _listen(orders: Any, victim: Victim) -> None:
    async for order in orders:
        if order["do"] == "step":
            victim.step(order["offset"])
        else:
            victim.stop()
    # The supervisor is gone: there is nobody to work for, and nothing to finish.
    os._exit(1)


def _end_with_the_supervisor() -> None:
    # A stopped process does not read that its stdin has ended. Linux only: elsewhere a supervisor that is
    # killed, and not told to stop, may leave a stopped process behind.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


if __name__ == "__main__":
    _end_with_the_supervisor()
    try:
        asyncio.run(main())
    except BrokenPipeError:
        sys.stderr.close()
        os._exit(1)
