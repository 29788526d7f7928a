"""Wakes the waiters of one event loop when a record or a claim changes.

With `LISTEN` they are woken by a notification. One may get lost, so they also look again every half second
(`_remote/lease.py`). Without it all of them are woken every 50 ms.

`LISTEN` needs a connection of its own that leads to the server itself. Behind a pooler in transaction mode it
succeeds and stays silent, so it is tried: a notification that is sent over *another* connection must arrive.
(Over the same connection it would arrive in any case.) If it does not, there is one WARNING, and the waiters
go on as without it.

A connection can die without a sign (a firewall forgets it, a host loses its network). So a statement is sent
over it from time to time, and if no answer comes, it is made again.

The connection is made when someone waits for the first time. A notification carries the first half of the
hash of the key, and nothing else: every user of the database may listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from ...clock import Clock, Timer, bounded
from ...errors import TokenSessionError
from .._remote.operations import NoAnswer
from .failures import Failure

__all__ = ["Listener", "topic"]

_log = logging.getLogger("tokensession.stores")

# All in seconds.
_POLL = 0.05
_TRIAL = 1.0
_SILENCE = 15.0  # between two looks whether the connection is alive
_RETRY = (0.1, 5.0)  # between two attempts to connect: at first, and at most


def topic(identity: bytes) -> str:
    """What a notification about the key with this hash says."""
    return identity.hex()[:32]


class Listener:
    """`connect` makes the connection that listens, or is None. `send` notifies over another one.

    `notify(key)` wakes the waiters for this key, or all of them if it is None.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Any]] | None,
        *,
        send: Callable[[str, str], Awaitable[None]],
        notify: Callable[[str | None], None],
        channel: str,
        clock: Clock,
    ) -> None:
        self._connect = connect
        self._send = send
        self._notify = notify
        self._channel = channel
        self._clock = clock
        self._topics: dict[str, list[str]] = {}  # topic -> its key, once for each waiter
        self._task: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._heard = asyncio.Event()
        self._lost = asyncio.Event()

    @property
    def live(self) -> bool:
        """Whether notifications arrive."""
        return self._heard.is_set() and not self._lost.is_set()

    @contextlib.contextmanager
    def interested(self, key: str, identity: bytes) -> Iterator[None]:
        """Hear of this key, whose hash is `identity`."""
        keys = self._topics.setdefault(topic(identity), [])
        keys.append(key)
        try:
            yield
        finally:
            keys.pop()
            if not keys:
                del self._topics[topic(identity)]

    def wait(self) -> None:
        """A caller begins to wait: see to it that it is woken."""
        if self._task is None and self._connect is not None:
            self._task = asyncio.ensure_future(self._listen(self._connect))
        if self._timer is None and not self.live:
            self._timer = Timer(self._clock, _POLL, self._poll)

    def _poll(self) -> None:
        self._timer = None
        self._notify(None)

    async def aclose(self) -> None:
        """End the connection."""
        task, self._task = self._task, None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        while task is not None and not task.done():
            task.cancel()  # again, if the driver has swallowed it
            await asyncio.wait([task], timeout=_TRIAL)

    async def _listen(self, connect: Callable[[], Awaitable[Any]]) -> None:
        pause = _RETRY[0]
        while True:
            with contextlib.suppress(*Failure, NoAnswer, TokenSessionError):
                connection = await connect()
                try:
                    if not await self._is_heard(connection):
                        _log.warning(
                            "Notifications of Postgres do not arrive, as behind a pooler in transaction "
                            "mode. Waiters look every %g s instead. Pass the URL of the server itself as "
                            "listen=, or listen=False.",
                            _POLL,
                        )
                        return
                    pause = _RETRY[0]
                    self._notify(None)  # of what was said before
                    await self._until_lost(connection)
                finally:
                    self._lost.set()
                    self._notify(None)  # so that they begin to look more often
                    connection.terminate()
                    await asyncio.sleep(0)  # for its socket to be closed
            await self._clock.sleep(pause)
            pause = min(2 * pause, _RETRY[1])

    async def _is_heard(self, connection: Any) -> bool:
        """Listen, and send a notification to see whether it arrives."""
        self._heard, self._lost = asyncio.Event(), asyncio.Event()
        connection.add_termination_listener(lambda _: self._lost.set())
        # The driver listens under the quoted name of the channel.
        # (`asyncio.wait_for` would swallow a cancellation that comes together with the result.)
        await bounded(self._clock, _TRIAL, connection.add_listener(self._channel, self._arrived))
        # On a channel of its own: a thousand processes that start would send a million messages on that one.
        trial = f"trial_{secrets.token_hex(16)}"
        await bounded(self._clock, _TRIAL, connection.add_listener(trial, lambda *_: self._heard.set()))
        await self._send(trial, "")
        with contextlib.suppress(TimeoutError):
            await bounded(self._clock, _TRIAL, self._heard.wait())
        return self._heard.is_set()

    async def _until_lost(self, connection: Any) -> None:
        """Wait until the connection is lost. Raises one of `Failure` if it no longer answers."""
        while True:
            with contextlib.suppress(TimeoutError):
                await bounded(self._clock, _SILENCE, self._lost.wait())
                return
            await bounded(self._clock, _TRIAL, connection.execute("SELECT 1"))

    def _arrived(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        if keys := self._topics.get(payload):
            self._notify(keys[0])
