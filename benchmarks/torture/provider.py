"""The token server: `OAuth2Server`, which keeps books and does to a token request what chaos has in mind.

All of it is in the supervisor's process and event loop. So the book's order at the provider is the true one,
and a kill that is aimed at a token request is over, the process reaped, before that request goes on.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from tokensession.clock import SystemClock
from tokensession.testing import OAuth2Server, Reset, Response, Seen
from tokensession.testing.servers import api
from tokensession.testing.servers.faults import Genuine
from tokensession.token import fingerprint

from . import event_log
from .chaos import LATEST, Act, Ordeals
from .exchange import Redeem, answered, left, truncated
from .instrumented import WORKER
from .plan import Plan

__all__ = ["Hands", "Issue", "Provider"]

_LOOK = 0.02  # seconds between two looks whether a client that is kept waiting has left
_REMEMBERED = 4096  # refused API requests
_boot = SystemClock.boot


class Hands(Protocol):
    """What the provider needs done to the worker whose request it has before it."""

    async def kill(self, worker: str, aim: str) -> None:
        """Kill it; return when it is reaped."""
        ...

    def stop(self, worker: str, seconds: float, aim: str) -> None:
        """Stop it for so long."""
        ...

    def killed(self, worker: str) -> bool:
        """Whether it has been killed, by whatever act."""
        ...


@dataclass(frozen=True, slots=True)
class Issue:
    """An access token that was issued: its number, for whom, when it expires (boot clock, the earliest
    moment), the sign-in that it descends from, and how wrong that client's clock was."""

    number: int
    worker: str
    expires: float
    signed_in: int
    offset: float


class Provider(OAuth2Server):
    """The server. Nothing goes wrong with the supervisor's own requests, which bear no worker's name."""

    def __init__(self, plan: Plan, log: event_log.EventLog, ordeals: Ordeals, hands: Hands) -> None:
        super().__init__(lifetime=plan.lifetime)
        self.log = _Seen(self._saw)
        self.unauthorized_by_reason: Counter[str] = Counter()
        self._refused_requests: OrderedDict[str, tuple[str, Issue | None]] = OrderedDict()
        self._plan = plan
        self._event_log = log
        self._ordeals = ordeals
        self._hands = hands
        self._rng = random.Random(f"{plan.seed} latency")
        self._numbers = 0
        self._open: dict[int, web.Request] = {}
        self._issues: dict[str, Issue] = {}
        self._used: set[str] = set()
        self._sign_ins = {fingerprint(self.refresh_token): 0}
        self._dead: set[int] = set()
        self._revoked_before = 0
        self.latest: dict[str, int] = {}
        """The newest issue that each worker has had a 200 with."""

    # -- for the supervisor -----------------------------------------------------------------------

    @property
    def issued(self) -> int:
        """How many access tokens there have been."""
        return len(self._issues)

    def new_credential(self) -> str:
        """A refresh token for a new sign-in, which gets the next number."""
        seed = super().new_credential()
        self._sign_ins[fingerprint(seed)] = max(self._sign_ins.values()) + 1
        return seed

    def revoke_access_tokens(self) -> None:
        """All of them, early."""
        super().revoke_access_tokens()
        self._revoked_before = len(self._issues)
        self._event_log.enter(event_log.Revoked())

    def reason(self, request: str) -> tuple[str, Issue | None]:
        """Why the last API request of that name was refused, and what its token was."""
        return self._refused_requests.get(request, ("forgotten", None))

    # -- the API ----------------------------------------------------------------------------------

    def routes(self) -> list[web.RouteDef]:
        """One more path: the name of a request is in it, so that the log shows it."""
        return [*super().routes(), web.get("/ping/{name}", api.ok)]

    def _saw(self, seen: Seen) -> None:
        name = seen.path.rpartition("/")[2]
        issue = None if seen.bearer is None else self._issues.get(seen.bearer)
        if seen.status == 401:
            reason = self._reason(seen.bearer, issue)
            self.unauthorized_by_reason[reason] += 1
            self._refused_requests[name] = reason, issue
            if len(self._refused_requests) > _REMEMBERED:
                self._refused_requests.popitem(last=False)
        elif issue is not None and seen.bearer is not None:
            if seen.bearer not in self._used:
                self._used.add(seen.bearer)
                self._event_log.enter(event_log.Used(seen.bearer))
            worker = name.rpartition("-")[0]
            self.latest[worker] = max(issue.number, self.latest.get(worker, 0))

    def _reason(self, bearer: str | None, issue: Issue | None) -> str:
        if bearer is None:
            return "no bearer"
        if issue is None:
            return "unknown bearer"
        if issue.signed_in in self._dead:
            return "grant revoked"
        if issue.number <= self._revoked_before:
            return "revoked early"
        return "expired" if _boot() >= issue.expires else "none"

    # -- token requests ---------------------------------------------------------------------------

    async def _token(self, request: web.Request) -> web.StreamResponse:
        self.script(_Ordeal(self))  # each is as good as another: it looks at the request that it gets
        return await super()._token(request)

    async def undergo(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """One token request that is in order: into the book, and through what chaos has in mind."""
        credential = self.read(request, await request.read()).fingerprint
        worker = request.headers.get(WORKER)
        number = self._numbers = self._numbers + 1
        redeem = Redeem(self, number, worker or "supervisor", credential, request, genuine)
        if worker is None:
            return await answered(request, await redeem())
        for other, earlier in list(self._open.items()):
            if left(earlier):
                self._event_log.enter(event_log.Gone(other))
                del self._open[other]
        self._event_log.enter(event_log.Arrived(number, worker, credential))
        self._open[number] = request
        try:
            return await self._perform(request, worker, redeem, self._ordeals.next())
        finally:
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        if self._open.pop(number, None) is not None:
            self._event_log.enter(event_log.Answered(number))

    async def _perform(
        self, request: web.Request, worker: str, redeem: Redeem, act: Act | None
    ) -> web.StreamResponse:
        match act.what if act is not None else "":
            case "kill arriving" as aim:
                await self._hands.kill(worker, aim)
                return web.Response()
            case "kill late" as aim:
                until = _boot() + (LATEST * act.much if act else 0)
                await self._hands.kill(worker, aim)
                await asyncio.sleep(max(0.0, until - _boot()))
                if _boot() < until + LATEST / 2:  # or this machine stood still: dropped, nothing spent
                    await redeem()
                return web.Response()
            case "kill rotated" as aim:
                await redeem()
                await self._hands.kill(worker, aim)
                return web.Response()
            case "kill answered" as aim:
                response = await self._answer(request, redeem, held_up=False)
                await self._hands.kill(worker, aim)
                return response
            case "stop refreshing" as aim:
                self._hands.stop(worker, act.standing if act else 0, aim)
            case "":
                pass
            case fault:
                return await self._spoil(request, redeem, fault, lose=bool(act and act.coin < 0.5))
        return await self._answer(request, redeem)

    async def _answer(
        self, request: web.Request, redeem: Redeem, *, held_up: bool = True
    ) -> web.StreamResponse:
        """The genuine answer, in the provider's time. The request of a killed client is carried out too."""
        worker = redeem.worker
        if held_up:
            await asyncio.sleep(self._rng.random() * self._plan.latency / 2)
        if left(request) and not self._hands.killed(worker):
            return web.Response()  # it ran into its own time-out, on a slow machine: dropped, nothing spent
        answer = await redeem()
        if held_up:
            await asyncio.sleep(self._rng.random() * self._plan.latency / 2)
        if left(request) and not self._hands.killed(worker):
            self._event_log.enter(event_log.Unread(redeem.number))
        self._let_go(redeem.number)  # before it is written: the client may send the next at once
        return await answered(request, answer)

    async def _spoil(
        self, request: web.Request, redeem: Redeem, fault: str, *, lose: bool
    ) -> web.StreamResponse:
        """Before the grant is spent; where replies may be lost, sometimes after."""
        self._event_log.enter(event_log.Fault(fault))
        if fault == "500":
            return Response(500, b"<h1>Internal Server Error</h1>").response()
        if fault == "429":
            return Response(429, b"", (("Retry-After", "1"),)).response()
        if lose and self._plan.lose_replies:
            await redeem(withheld=True)
        if fault == "hang":
            while not left(request):  # noqa: ASYNC110 - aiohttp has no event for it
                await asyncio.sleep(_LOOK)
            return web.Response()
        if fault == "reset":
            return await Reset(spent=False).perform(request, redeem)
        return await truncated(request)

    def enter_redeemed(self, redeem: Redeem, answer: Response, *, before: float, withheld: bool) -> None:
        """A token pair was issued at `before` or a little later."""
        document: dict[str, Any] = json.loads(answer.body)
        access, successor = fingerprint(document["access_token"]), fingerprint(document["refresh_token"])
        signed_in = self._sign_ins[successor] = self._sign_ins[redeem.credential]
        self._issues[access] = Issue(
            len(self._issues) + 1, redeem.worker, before + self.lifetime, signed_in, redeem.offset
        )
        self._event_log.enter(
            event_log.Redeemed(redeem.number, redeem.worker, redeem.credential, successor, access, withheld)
        )

    def enter_reused(self, redeem: Redeem) -> None:
        """A spent refresh token has come again."""
        self._dead.add(self._sign_ins[redeem.credential])
        self._event_log.enter(event_log.Reused(redeem.number, redeem.worker, redeem.credential))


class _Ordeal:
    """A fault that asks the provider what kind of fault it is."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """See `Fault`."""
        return await self._provider.undergo(request, genuine)


class _Seen(deque[Seen]):
    """The server's log of API requests, read as it is written."""

    def __init__(self, saw: Callable[[Seen], None]) -> None:
        super().__init__(maxlen=1)
        self._tell = saw

    def append(self, seen: Seen) -> None:
        """One API request."""
        self._tell(seen)
