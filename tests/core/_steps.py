"""Do something at each suspension of some work, without a list of them that would have to be maintained.

A task factory wraps each coroutine that becomes a task. Each time a watched task suspends, it has reached
its next *step*. The test acts at one step, counted over all watched tasks. A test of every step is a loop
over k = 0, 1, 2, ... that ends with the first run that has no step k.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Self
from urllib.parse import parse_qs

from _rig import invalid_grant, run, success

from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.testing import ScriptedTransport

REFRESH = "tokensession refresh"
"""The beginning of the name of a refresh task."""


class Steps:
    """Watches tasks inside a block: `with Steps(REFRESH, at=3, then=caller.cancel) as steps`.

    It watches the tasks whose names begin with `name` and, if `children`, the tasks that they start, to any
    depth. `then` is called at step `at`, in the task that suspends there; with `at=None`, at every step.
    `count` is the number of steps so far, `root` the first watched task.
    """

    def __init__(
        self,
        name: str = REFRESH,
        *,
        at: int | None = None,
        then: Callable[[], object] = lambda: None,
        children: bool = True,
    ) -> None:
        self.name = name
        self.at = at
        self.then = then
        self.children = children
        self.count = 0
        self.root: asyncio.Task[Any] | None = None
        self.failed: BaseException | None = None
        self._watched: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    @property
    def reached(self) -> bool:
        """Whether there has been a step `at`."""
        return self.at is not None and self.count > self.at

    def __enter__(self) -> Self:
        asyncio.get_running_loop().set_task_factory(self._make)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().set_task_factory(None)
        if self.failed is not None:
            raise self.failed

    def _make(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        parent = asyncio.current_task()
        work = _Stepped(coroutine, self)
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        if self.children and parent is not None and self._is_watched(parent):
            self._watched.add(task)
        return task

    def _is_watched(self, task: asyncio.Task[Any]) -> bool:
        if task.get_name().startswith(self.name):  # it has no name yet when it is made
            self._watched.add(task)
            self.root = self.root or task
        return task in self._watched

    def suspended(self) -> None:
        """The running task suspends."""
        task = asyncio.current_task()
        assert task is not None
        if not self._is_watched(task):
            return
        self.count += 1
        if self.at is None or self.count == self.at + 1:
            try:
                self.then()
            except BaseException as error:  # noqa: BLE001 - the test's own error; the work must not see it
                self.failed = self.failed or error


def run_at_every_step(test: Callable[[int], Awaitable[bool]], least: int) -> int:
    """Run it for step k = 0, 1, 2, ... until it returns that there is no step k.

    Returns the number of steps. With fewer than `least`, the test would test nothing.
    """
    for k in itertools.count():
        if not run(partial(test, k)):
            assert k >= least, f"only {k} steps were found"
            return k
    raise AssertionError


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that reports each suspension."""

    def __init__(self, work: Coroutine[Any, Any, Any], steps: Steps) -> None:
        self._work = work
        self._steps = steps

    def send(self, value: Any) -> Any:
        awaited = self._work.send(value)
        self._steps.suspended()
        return awaited

    def throw(self, *error: Any) -> Any:
        awaited = self._work.throw(*error)
        self._steps.suspended()
        return awaited

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()


class Provider:
    """A token endpoint without a network. Refresh tokens rotate, and each works once.

    A request suspends while it connects, and before and after the refresh token is spent, as a real one does.
    `issued` is the number of the last token, `valid` the refresh token that works.
    """

    def __init__(self, configured: str = "configured-token") -> None:
        self.valid = configured
        self.issued = 0
        self.sent: list[str] = []

    @property
    def reused(self) -> int:
        """How many requests brought a refresh token that had been sent before."""
        return len(self.sent) - len(set(self.sent))

    def transport(self) -> ScriptedTransport:
        """A transport that sends to this provider, as often as it is asked to."""
        return _Network(self)

    async def answer(self, request: TokenRequest) -> TokenResponse:
        """Redeem the refresh token in the request."""
        refresh_token = parse_qs(request.body.decode())["refresh_token"][0]
        self.sent.append(refresh_token)
        for _ in range(6):
            await asyncio.sleep(0)
        if refresh_token != self.valid:
            return invalid_grant()
        self.issued += 1
        self.valid = f"refresh-{self.issued}"
        response = success(self.issued)
        await asyncio.sleep(0)
        return response


class _Network(ScriptedTransport):
    def __init__(self, provider: Provider) -> None:
        super().__init__()
        self._provider = provider

    async def send(self, request: TokenRequest, *, on_sending: Any = None, **_times: float) -> TokenResponse:
        self.requests.append(request)
        for _ in range(3):
            await asyncio.sleep(0)  # the connection: nothing has left yet
        await on_sending()
        return await self._provider.answer(request)
