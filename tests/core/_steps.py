"""Stand at every suspension of a piece of work, found by running it and not by a list that somebody keeps.

A task factory wraps each coroutine that becomes a task. Each time a watched task gives up the processor, it
stands at its next *point*; at one of them, counted over all watched tasks, the test does something. So a
test for every point is a loop over k = 0, 1, 2, ... that ends with the run which never stood at a k-th one.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Self
from urllib.parse import parse_qs

from _rig import success

from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.testing import token_response

REFRESH = "tokensession refresh"
"""How the task of a refresh is named."""


class Steps:
    """Watches tasks while it is entered: `with Steps(REFRESH, at=3, then=caller.cancel) as steps`.

    Watched are the tasks whose names begin with `name`, and, if `children`, those that they start, to
    any depth. `then` is called when they stand at point `at`, by the task that stands there; with
    `at=None`, at every point. `count` is how often they stood, `root` the first of them.
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
        """Whether they have stood at point `at`."""
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
        if self.children and parent in self._watched:
            self._watched.add(task)
        return task

    def stand(self) -> None:
        """The running task has given up the processor."""
        task = asyncio.current_task()
        assert task is not None
        if task.get_name().startswith(self.name):  # it has no name yet when it is made
            self._watched.add(task)
            self.root = self.root or task
        if task not in self._watched:
            return
        self.count += 1
        if self.at is None or self.count == self.at + 1:
            try:
                self.then()
            except BaseException as error:  # noqa: BLE001 - the test's own, and no business of the work
                self.failed = self.failed or error


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that says when it has given up the processor."""

    def __init__(self, work: Coroutine[Any, Any, Any], steps: Steps) -> None:
        self._work = work
        self._steps = steps

    def send(self, value: Any) -> Any:
        waits_for = self._work.send(value)
        self._steps.stand()
        return waits_for

    def throw(self, *error: Any) -> Any:
        waits_for = self._work.throw(*error)
        self._steps.stand()
        return waits_for

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()


class Provider:
    """The honest other side, without a network: refresh tokens rotate, and each is good once.

    `answer` is a line for a `ScriptedTransport`. It gives up the processor before the refresh token is
    spent and after, as a request on the wire does. `issued` is the number of the last token.
    """

    def __init__(self, seed: str = "seed-token") -> None:
        self.good = seed
        self.issued = 0
        self.sent: list[str] = []

    @property
    def reused(self) -> int:
        """How many requests came with a refresh token that had been sent before."""
        return len(self.sent) - len(set(self.sent))

    def answer(self, request: TokenRequest) -> Awaitable[TokenResponse]:
        """Redeem what the request brings."""
        return self._answer(parse_qs(request.body.decode())["refresh_token"][0])

    async def _answer(self, refresh_token: str) -> TokenResponse:
        self.sent.append(refresh_token)
        for _ in range(6):
            await asyncio.sleep(0)
        if refresh_token != self.good:
            return token_response({"error": "invalid_grant"}, status=400)
        self.issued += 1
        self.good = f"refresh-{self.issued}"
        answer = success(self.issued)
        await asyncio.sleep(0)
        return answer
