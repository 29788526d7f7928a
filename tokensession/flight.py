"""One run of some work, for any number of waiters. Knows no tokens.

Theory of operation
-------------------
A flight runs in a task of its own, in an empty context, held by a strong reference (asyncio's own are
weak). Nobody awaits that task: waiters wait for an event. So no waiter's cancellation can reach the
work, whatever it is done with (`task.cancel()`, `wait_for`, `asyncio.timeout`, an anyio scope, a
dying task group), and no waiter that was cancelled leaves anything behind.

Mutable state: `_result` and `_error`, written once by the flight's task just before it sets the event,
read after it is set. One event loop, no lock. A flight whose event is set has landed, and must not be
joined: `landed` and the result change in the same step, so whoever sees `landed` false still gets in.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Generic, TypeVar, cast

from .errors import TokenSessionError, TokenUnavailable

__all__ = ["Flight", "Flights"]

T = TypeVar("T")


class Flight(Generic[T]):
    """Work under way. Takes off when it is made, in the running event loop.

    `on_landing` is called when it is over, before any waiter runs. Keep a reference: see `Flights`.
    """

    __slots__ = ("_error", "_event", "_loop", "_name", "_on_landing", "_pid", "_result", "_task")

    def __init__(
        self,
        work: Coroutine[Any, Any, T],
        *,
        name: str,
        on_landing: Callable[[Flight[T]], None] | None = None,
    ) -> None:
        self._on_landing = on_landing
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._event = asyncio.Event()
        self._result: T | None = None
        self._error: BaseException | None = None
        # An empty context: else the work would see the first caller's variables, and keep them alive.
        self._name = name
        self._task: asyncio.Task[None] | None = None
        task = self._loop.create_task(self._run(work), name=name, context=Context())
        if not self.landed:
            self._task = task
            # A task that is cancelled before its first step never enters `_run`.
            task.add_done_callback(lambda _: self._stopped_early(work))

    async def _run(self, work: Coroutine[Any, Any, T]) -> None:
        try:
            self._result = await work
        except Exception as error:  # noqa: BLE001 - it is the waiters' to handle, each in its own task
            self._error = error
        except BaseException as error:
            # Only a closing event loop, the interpreter's end, or close() after its grace period comes
            # here: nobody whose cancellation should have spared us.
            self._error = _stopped()
            if not isinstance(error, asyncio.CancelledError):  # whose traceback would keep us alive
                self._error.__cause__ = error
            raise
        finally:
            self._land()

    def _stopped_early(self, work: Coroutine[Any, Any, T]) -> None:
        if not self.landed:
            work.close()
            self._error = _stopped()
            self._land()

    def _land(self) -> None:
        self._task = None
        with contextlib.suppress(RuntimeError):  # its loop is closed, and so are those of its waiters
            self._event.set()
        if self._on_landing is not None:
            self._on_landing(self)

    @property
    def landed(self) -> bool:
        """Whether it is over. A flight that has landed is not joined."""
        return self._event.is_set()

    @property
    def stranded(self) -> bool:
        """Whether it can never land: its event loop is closed, or stayed in the parent of a fork."""
        return self._loop.is_closed() or self._pid != os.getpid()

    @property
    def elsewhere(self) -> bool:
        """Whether it flies in another event loop than the running one."""
        return self._loop is not asyncio.get_running_loop()

    @property
    def current(self) -> bool:
        """Whether this code runs in it."""
        try:
            return self._task is not None and asyncio.current_task() is self._task
        except RuntimeError:  # no event loop: its coroutine is being thrown away
            return False

    async def wait(self) -> T:
        """Its result. Raises a fresh copy of its error, with the original as the cause.

        One exception object raised in a thousand tasks would drag all their tracebacks along.
        """
        await self._event.wait()
        error = self._error
        if error is None:
            return cast(T, self._result)
        if isinstance(error, TokenSessionError):
            raise error.again()
        raise TokenSessionError(f"The refresh failed unexpectedly ({type(error).__name__}).") from error

    async def drain(self) -> None:
        """Wait until it is over, whatever comes of it."""
        await self._event.wait()

    def cancel(self) -> None:
        """Stop it. It puts its things in order, and then it has landed."""
        if self._task is not None:
            self._task.cancel()

    async def abort(self) -> None:
        """Cancel it, and wait until it has landed."""
        self.cancel()
        await self._event.wait()

    def __repr__(self) -> str:
        return f"<Flight {self._name} {'landed' if self.landed else 'under way'}>"


def _stopped() -> TokenUnavailable:
    return TokenUnavailable("The refresh was stopped: its event loop or session is closing.")


class Flights:
    """Keeps flights alive until they land, and lets go of them then: at rest it holds nothing."""

    __slots__ = ("_flights",)

    def __init__(self) -> None:
        self._flights: frozenset[Flight[Any]] = frozenset()

    def take_off(self, work: Coroutine[Any, Any, T], *, name: str) -> Flight[T]:
        """Start this work."""
        flight = Flight(work, name=name, on_landing=self._landed)
        # Those that a closed event loop has left behind go; one that an eager task factory has already
        # run to its end never comes in.
        self._flights = self.under_way if flight.landed else self.under_way | {flight}
        return flight

    def _landed(self, flight: Flight[Any]) -> None:
        self._flights -= {flight}

    @property
    def under_way(self) -> frozenset[Flight[Any]]:
        """Those that can still land."""
        return frozenset(flight for flight in self._flights if not (flight.landed or flight.stranded))

    async def drain(self) -> None:
        """Wait until all are over, and those that they start as well."""
        while flights := self.under_way:
            for flight in flights:
                await flight.drain()

    async def abort(self) -> None:
        """Cancel all of them, and wait until they have put their things in order."""
        flights = self.under_way
        for flight in flights:
            flight.cancel()
        for flight in flights:
            await flight.drain()

    def __repr__(self) -> str:
        return f"<Flights {len(self.under_way)} under way>"
