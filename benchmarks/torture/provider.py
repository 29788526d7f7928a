"""The token server: `OAuth2Server`, which logs what happens and injects what chaos has aimed at a request.

It runs in the supervisor's process and event loop. So the event log has the true order at the provider, and
a kill aimed at a token request is over, and the process reaped, before that request continues.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiohttp import web

from tokensession.clock import SystemClock
from tokensession.providers.protocol import Credential
from tokensession.testing import OAuth2Server, Reset, Response, Seen
from tokensession.testing.servers import api
from tokensession.testing.servers.faults import Genuine
from tokensession.token import fingerprint

from . import event_log
from .chaos import LATEST, Act, AimedActs
from .exchange import Redemption, disconnected, hold, truncated, written
from .instrumented import WORKER
from .plan import Plan

__all__ = ["Issue", "Provider", "WorkerControl"]

_REMEMBERED = 4096  # API requests that got a 401
_ERRORS: Final = {
    "429": Response(429, b"", (("Retry-After", "1"),)),
    "500": Response(500, b"<h1>Internal Server Error</h1>"),
    "502": Response(502, b"<h1>Bad Gateway</h1>"),
    "503": Response(503),
}
_boot = SystemClock.boot


class WorkerControl(Protocol):
    """What the provider can do to the worker that has sent a request."""

    async def kill(self, worker: str, aim: str) -> None:
        """Kill it, and return when it is reaped."""
        ...

    def stop(self, worker: str, seconds: float, aim: str) -> None:
        """Stop it for this long."""
        ...

    def killed(self, worker: str) -> bool:
        """Whether any act has killed it."""
        ...


@dataclass(frozen=True, slots=True)
class Issue:
    """An access token that was issued: its number, the worker, when it expires (boot clock, the earliest
    moment), the number of the sign-in it descends from, and the offset of the worker's clock."""

    number: int
    worker: str
    expires: float
    signed_in: int
    offset: float


class Provider(OAuth2Server):
    """The server. The supervisor's own requests name no worker, and get no faults."""

    def __init__(self, plan: Plan, log: event_log.EventLog, acts: AimedActs, control: WorkerControl) -> None:
        super().__init__(lifetime=plan.lifetime)
        self.log = _RequestLog(self._seen)
        self.unauthorized_by_reason: Counter[str] = Counter()
        self._unauthorized_requests: OrderedDict[str, tuple[str, Issue | None]] = OrderedDict()
        self._plan = plan
        self._event_log = log
        self._acts = acts
        self._control = control
        self._rng = random.Random(f"{plan.seed} latency")
        self._numbers = 0
        self._open: dict[int, web.Request] = {}
        self._issues: dict[str, Issue] = {}
        self._used: set[str] = set()
        self._sign_ins = {fingerprint(self.refresh_token): 0}
        self._newest = {0: fingerprint(self.refresh_token)}
        self.holder = ""
        """The worker that got the newest refresh token. It may not have read the response yet."""
        self._repeatable: dict[Credential, tuple[Credential, float]] = {}
        self._dead: set[int] = set()
        self._outage = ""
        self._revoked_before = 0
        self.latest: dict[str, int] = {}
        """The newest issue that each worker got a 200 with."""

    # -- for the supervisor -----------------------------------------------------------------------

    @property
    def issued(self) -> int:
        """How many access tokens were issued."""
        return len(self._issues)

    def new_credential(self) -> str:
        """A refresh token for a new sign-in, which gets the next number."""
        refresh_token, number = super().new_credential(), self.sign_in + 1
        self._sign_ins[fingerprint(refresh_token)] = number
        self._newest[number] = fingerprint(refresh_token)
        return refresh_token

    @property
    def sign_in(self) -> int:
        """The number of the latest sign-in."""
        return len(self._newest) - 1

    @property
    def dead(self) -> bool:
        """Whether the latest sign-in is revoked."""
        return self.sign_in in self._dead

    @property
    def newest(self) -> str:
        """The fingerprint of the newest refresh token of the latest sign-in."""
        return self._newest[self.sign_in]

    @property
    def redeemable(self) -> set[str]:
        """Those of the refresh tokens that it accepts now: the newest one, and others in their leeway."""
        repeatable = {one.fingerprint for one in self._repeatable if self._accepted(one) != one}
        return {self.newest, *repeatable}

    def number(self, access: str) -> int:
        """The number of the issue with this access token."""
        return self._issues[access].number

    async def outage(self, kind: str, seconds: float) -> None:
        """Give every token request the same answer for some time, unless that goes on already."""
        if not self._outage:
            began, self._outage = _boot(), kind
            self._event_log.add(event_log.OutageBegan(kind))
            try:
                await asyncio.sleep(seconds)
            finally:
                self._outage, lasted = "", _boot() - began
                self._event_log.add(event_log.OutageEnded(lasted, self._plan.allowed(lasted)))

    def revoke_access_tokens(self) -> None:
        """Revoke all of them early."""
        super().revoke_access_tokens()
        self._revoked_before = len(self._issues)
        self._event_log.add(event_log.Revoked())

    def reason(self, request: str) -> tuple[str, Issue | None]:
        """Why the API request with this name got a 401, and the issue of its token."""
        return self._unauthorized_requests.get(request, ("forgotten", None))

    # -- the API ----------------------------------------------------------------------------------

    def routes(self) -> list[web.RouteDef]:
        """One more path, with the name of the request in it, so that the log shows it."""
        return [*super().routes(), web.get("/ping/{name}", api.ok)]

    def _seen(self, seen: Seen) -> None:
        name = seen.path.rpartition("/")[2]
        issue = None if seen.token is None else self._issues.get(seen.token)
        if seen.status == 401:
            reason = self._reason(seen.token, issue)
            self.unauthorized_by_reason[reason] += 1
            self._unauthorized_requests[name] = reason, issue
            if len(self._unauthorized_requests) > _REMEMBERED:
                self._unauthorized_requests.popitem(last=False)
        elif issue is not None and seen.token is not None:
            if seen.token not in self._used:
                self._used.add(seen.token)
                self._event_log.add(event_log.Used(seen.token))
            worker = name.rpartition("-")[0]
            self.latest[worker] = max(issue.number, self.latest.get(worker, 0))

    def _reason(self, token: str | None, issue: Issue | None) -> str:
        if token is None:
            return "no token"
        if issue is None:
            return "unknown token"
        if issue.signed_in in self._dead:
            return "grant revoked"
        if issue.number <= self._revoked_before:
            return "revoked early"
        return "expired" if _boot() >= issue.expires else "valid token"

    # -- token requests ---------------------------------------------------------------------------

    def read(self, request: web.Request, body: bytes) -> Credential:
        """The credential to carry out: a repeated one counts as the one that its lost response had."""
        return self._accepted(super().read(request, body))

    def _accepted(self, credential: Credential) -> Credential:
        while (found := self._repeatable.get(credential)) is not None and _boot() < found[1]:
            credential = found[0]
        return credential

    def _lose(self, redemption: Redemption) -> None:
        """The client does not get the response to this request, which has spent its grant."""
        if redemption.successor is not None:
            until = _boot() + self._plan.leeway
            self._repeatable[redemption.credential] = redemption.successor, until
            self._event_log.add(event_log.Lost(redemption.number, self._plan.leeway > 0))

    async def _token(self, request: web.Request) -> web.StreamResponse:
        self.script(_ChaosFault(self))
        return await super()._token(request)

    async def respond(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Log a valid token request, and respond to it as chaos wants."""
        credential = super().read(request, await request.read())
        worker = request.headers.get(WORKER)
        number = self._numbers = self._numbers + 1
        redemption = Redemption(self, number, worker or "supervisor", credential, request, genuine)
        if worker is None:
            return await written(request, await redemption())
        for other, earlier in list(self._open.items()):
            if disconnected(earlier):
                self._event_log.add(event_log.Disconnected(other))
                del self._open[other]
        self._event_log.add(event_log.Arrived(number, worker, credential.fingerprint))
        self._open[number] = request
        try:
            if self._outage:
                return await self._spoil(request, redemption, self._outage, "outage: ")
            return await self._perform(request, worker, redemption, self._acts.next())
        finally:
            self._done(number)

    def _done(self, number: int) -> None:
        if self._open.pop(number, None) is not None:
            self._event_log.add(event_log.Answered(number))

    async def _perform(
        self, request: web.Request, worker: str, redemption: Redemption, act: Act | None
    ) -> web.StreamResponse:
        match act.what if act is not None else "":
            case "kill arriving" as aim:
                await self._control.kill(worker, aim)
                return web.Response()
            case "kill late" as aim:
                until = _boot() + (LATEST * act.much if act else 0)
                await self._control.kill(worker, aim)
                await asyncio.sleep(max(0.0, until - _boot()))
                if _boot() < until + LATEST / 2:  # otherwise this machine stood still: dropped, nothing spent
                    await redemption()
                return web.Response()
            case "kill rotated" as aim:
                await redemption()
                await self._control.kill(worker, aim)
                return web.Response()
            case "kill answered" as aim:
                response = await self._answer(request, redemption, delayed=False)
                await self._control.kill(worker, aim)
                return response
            case "stop refreshing" as aim:
                self._control.stop(worker, act.stop_seconds if act else 0, aim)
            case "":
                pass
            case "freeze" if act is not None:
                return await self._freeze(request, redemption, act)
            case fault:
                if act is not None and act.spends and fault not in ("500", "429"):
                    spent = await redemption()
                    if redemption.successor is None:  # rejected: the client has to know
                        return await self._write(request, redemption, spent)
                    self._lose(redemption)
                return await self._spoil(request, redemption, fault)
        return await self._answer(request, redemption)

    async def _answer(
        self, request: web.Request, redemption: Redemption, *, delayed: bool = True
    ) -> web.StreamResponse:
        """The genuine response, with the provider's latency. A killed client's request is carried out too."""
        worker = redemption.worker
        if delayed:
            await asyncio.sleep(self._rng.random() * self._plan.latency / 2)
        if disconnected(request) and not self._control.killed(worker):
            return web.Response()  # timed out on a slow machine: dropped, nothing spent
        response = await redemption()
        if delayed:
            await asyncio.sleep(self._rng.random() * self._plan.latency / 2)
        return await self._write(request, redemption, response)

    async def _write(
        self, request: web.Request, redemption: Redemption, response: Response
    ) -> web.StreamResponse:
        if disconnected(request) and not self._control.killed(redemption.worker):
            self._lose(redemption)
        self._done(redemption.number)  # before it is written: the client may send the next at once
        return await written(request, response)

    async def _freeze(self, request: web.Request, redemption: Redemption, act: Act) -> web.StreamResponse:
        """Answer late. If the client has given up by then, the grant is spent only if it was before."""
        response = await redemption() if act.spends else None
        waits = await hold(request, act.freeze_seconds)
        self._event_log.add(event_log.Fault("freeze, answered late" if waits else "freeze, client gone"))
        if response is None and not waits:
            return web.Response()
        return await self._write(request, redemption, response or await redemption())

    async def _spoil(
        self, request: web.Request, redemption: Redemption, fault: str, during: str = ""
    ) -> web.StreamResponse:
        """A fault instead of the response. It does not spend the grant."""
        self._event_log.add(event_log.Fault(during + fault))
        match fault:
            case "hang":
                await hold(request)
                return web.Response()
            case "reset":
                return await Reset(spent=False).perform(request, redemption)
            case "truncate":
                return await truncated(request)
        return _ERRORS[fault].to_web()

    def add_redeemed(self, redemption: Redemption, document: dict[str, Any], *, before: float) -> None:
        """A token pair was issued at `before` or a little later."""
        number, worker, credential = redemption.number, redemption.worker, redemption.credential.fingerprint
        access, successor = fingerprint(document["access_token"]), fingerprint(document["refresh_token"])
        sign_in = self._sign_ins[successor] = self._sign_ins[credential]
        self._newest[sign_in], self.holder = successor, worker
        self._issues[access] = Issue(
            len(self._issues) + 1, worker, before + self.lifetime, sign_in, redemption.offset
        )
        self._event_log.add(event_log.Redeemed(number, worker, credential, successor, access, sign_in))

    def add_reused(self, redemption: Redemption) -> None:
        """A spent refresh token has come again."""
        credential = redemption.credential.fingerprint
        sign_in = self._sign_ins[credential]
        self._dead.add(sign_in)
        self._event_log.add(event_log.Reused(redemption.number, redemption.worker, credential, sign_in))


class _ChaosFault:
    """A fault that lets the provider choose what to do."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """See `Fault`."""
        return await self._provider.respond(request, genuine)


class _RequestLog(deque[Seen]):
    """The server's log of API requests. It passes each one on as it is written."""

    def __init__(self, callback: Callable[[Seen], None]) -> None:
        super().__init__(maxlen=1)
        self._callback = callback

    def append(self, seen: Seen) -> None:
        """One API request."""
        self._callback(seen)
