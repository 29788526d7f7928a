"""Ends a command in an orderly way when it gets a signal."""

from __future__ import annotations

import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from anyio import create_task_group, open_signal_receiver

__all__ = ["SIGNALS", "until_signal"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a request to end, and a closed terminal."""

T = TypeVar("T")


async def until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or raise its error. A signal cancels it, so that it can clean up.

    The process then exits with status 128 + the signal's number, as in a shell. What `work` awaits to clean
    up must be shielded (`anyio.CancelScope(shield=True)`). An error is raised without the exception groups
    that task groups put around it.
    """
    caught: list[int] = []

    async def cancel_at_signal() -> None:
        async for number in signals:
            caught.append(number)
            group.cancel_scope.cancel()

    try:
        with open_signal_receiver(*SIGNALS) as signals:
            async with create_task_group() as group:
                group.start_soon(cancel_at_signal)
                result = await work
                group.cancel_scope.cancel()
                return result
    except BaseExceptionGroup as failed:  # a closed pipe ends what rich prints by SystemExit
        error: BaseException = failed
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
    raise SystemExit(128 + caught[0])
