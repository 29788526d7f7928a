"""One process of the model: the real source, with clocks and a network that the test controls."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from _provider import Provider, Sent, respond, with_problem
from _store import ModelStore

from tokensession import (
    ConfigurationError,
    GrantLost,
    GrantRejected,
    ManagedSource,
    NotSent,
    OutcomeUnknown,
    Policy,
    SignInRequired,
    StoreUnavailable,
    TokenSessionError,
)
from tokensession._refresh.state import TokenState
from tokensession.events import (
    Event,
    RefreshEnded,
    RefreshStarted,
    SaveFailed,
    SignedIn,
    SignInFailed,
    SignInStarted,
)
from tokensession.providers import OAuth2
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.testing import FakeClock
from tokensession.token import Token

if TYPE_CHECKING:
    from _world import World

KEY = "account"
POLICY = Policy()
ON_ITS_WAY = 1.4  # seconds that a request may still take to arrive after its connection was lost

BOUNDS = {
    "token": POLICY.caller_timeout,
    "401": 3 * POLICY.caller_timeout,
    "force": 3 * POLICY.caller_timeout,
    # A sign-in is not bounded by the caller's time-out: the claim, two requests with a code, and the store.
    "sign in": 3 * POLICY.response_timeout + 20 * POLICY.store_timeout,
    "sign out": 20 * POLICY.store_timeout,
    "close": POLICY.close_timeout + 1,
}
"""For how many seconds each call may last."""


@dataclass(eq=False)
class Call:
    """A caller that waits."""

    what: str
    since: float


class Process:
    """One process until it is killed: a source over the shared store, with its own clocks."""

    def __init__(
        self, world: World, name: str, provider: Provider, configured: str, *, wall: float, boot: float
    ) -> None:
        self.world = world
        self.name = name
        self.provider = provider
        self.configured = configured
        self.alive = True
        self.clock = ProcessClock(self, wall, boot)
        self.tasks: dict[asyncio.Task[Any], None] = {}  # in the order of their start
        self.calls: list[Call] = []
        self.answers: list[Token | TokenSessionError] = []
        self.signing_in: set[str] = set()
        self.bringing: Counter[str] = Counter()  # the credentials with which it is signing in now
        self.stopped_listening = 0  # how often it closed, or a person signed in or out
        self.knows: set[str] = set()  # the refresh tokens that it has seen
        self.served: dict[int, int] = {}  # sign-in -> the highest generation that a caller got
        self.running: dict[str, str] = {}  # refreshes and sign-ins that have started and not ended, and why
        self.source = self._make_source()

    def _make_source(self) -> ManagedSource:
        name, is_code = self.provider.name, "-code-" in self.configured
        provider = OAuth2(
            token_url=f"https://{name}.example.com/token",
            client_id=name,
            client_secret="client-secret",
            code=self.configured if is_code else None,
            refresh_token=None if is_code else self.configured,
            redirect_uri="https://app.example.com/callback",
            rotates=True,
        )
        provider.strategy = replace(provider.strategy, replay_leeway=self.provider.leeway)
        return ManagedSource(
            provider,
            ModelTransport(self),
            store=ModelStore(self),
            key=KEY,
            policy=POLICY,
            clock=self.clock,
            observer=self.note,
        )

    @property
    def state(self) -> TokenState | None:
        """The highest state that it has in memory."""
        coordinator = self.source._coordinator
        known = [coordinator.cache.state, coordinator._pending.pending]
        return max((each for each in known if each is not None), key=lambda each: each.order, default=None)

    @property
    def token(self) -> Token | None:
        """The token that it serves."""
        return self.source._coordinator.cache.token

    @property
    def busy(self) -> bool:
        """Whether anything runs in it."""
        return bool(self.tasks or self.source._coordinator._tasks.running)

    def learn(self, state: TokenState | None) -> None:
        """It has seen this state in the store, or a token of its own."""
        token = state.token if state is not None else None
        if token is not None and token.refresh_token in self.provider.sign_ins:
            self.knows_of(token.refresh_token)

    def knows_of(self, credential: str) -> None:
        """It has seen this refresh token, so it can know that those before it are spent.

        Not if its response had a problem: then the one before it is kept until this one has worked.
        """
        if self.provider.serials[credential] not in self.world.problems:
            self.knows.add(credential)

    def note(self, event: Event) -> None:
        """Every event of this process. What starts has to end, once."""
        match event:
            case RefreshStarted(id=name, reason=reason):
                self.running[name] = reason
            case SignInStarted(id=name):
                self.running[name] = "sign in"
            case RefreshEnded(id=name) | SignedIn(id=name) | SignInFailed(id=name):
                if name not in self.running:
                    self.world.breaks(f"{event} ends what has not started, or has ended")
                self.running.pop(name, None)
            case SaveFailed():
                self.world.reached["writes that failed"] += 1
        self.world.reached[type(event).__name__] += 1

    async def end(self) -> None:
        """End everything that still waits."""
        for task in tuple(self.tasks):
            task.cancel()
        await self.source._coordinator._tasks.cancel()

    def wants_a_token(self) -> None:
        self._call("token", self.source.token())

    def gets_a_401(self, token: Token) -> None:
        self._call("401", self.source.refresh(token))

    def forces_a_refresh(self) -> None:
        self._call("force", self.source.refresh(force=True))

    def signs_in(self, credential: str) -> None:
        self.stopped_listening += 1
        self._call("sign in", self._sign_in(credential))

    async def _sign_in(self, credential: str) -> Token:
        world, sign_in = self.world, self.provider.sign_ins[credential]
        self.signing_in.add(credential)
        world.began[sign_in] = world.now
        world.earlier.setdefault(sign_in, frozenset(world.signed_in))
        self.bringing[credential] += 1
        try:
            if "-code-" in credential:
                token = await self.source.sign_in(code=credential)
            else:
                token = await self.source.sign_in(refresh_token=credential)
        except SignInRequired as error:
            if "redeemed already" in str(error):
                self._told_that_it_is_redeemed(credential)
            raise
        finally:
            self.bringing[credential] -= 1
            self.stopped_listening += 1  # a request that began during the sign-in may be unwanted until now
        world.signed_in.add(sign_in)
        return token

    def _told_that_it_is_redeemed(self, credential: str) -> None:
        """It must have been, or no one may know. A server that has answered 503 has redeemed nothing."""
        world = self.world
        if credential in self.provider.spent:
            return
        sent = [each for each in world.sent if each.credential == credential]
        if any(each.ended is None or each.unknown or each.outcome == "rejected" for each in sent):
            return
        if any(not each.process.alive or each.faults != world.faults for each in sent):
            return  # the note could not be taken back
        if any(each.superseded != world.superseded for each in sent):
            return  # another process has met the note, and may have taken it over
        for other in world.everyone:
            if other.bringing[credential] > (other is self) or (
                other.running and other.configured == credential
            ):
                return  # it is still being taken back
        world.breaks(f"{self.name} is told that {credential} was redeemed, and it was not")

    def signs_out(self) -> None:
        self.stopped_listening += 1
        self._call("sign out", self.source.sign_out())

    def closes(self) -> None:
        """It closes. The model goes on to use it."""
        self.stopped_listening += 1
        self.world.faults += 1
        self._call("close", self._close())

    async def _close(self) -> None:
        try:
            await self.source.aclose()
        except StoreUnavailable:  # it has let go of the claim although its token is not stored, and said so
            for sent in self.world.sent:
                sent.lapsed = sent.lapsed or sent.process is self
            raise

    def _call(self, what: str, work: Coroutine[Any, Any, Token | None]) -> None:
        call = Call(what, self.world.now)
        self.calls.append(call)

        async def caller() -> None:
            try:
                token = await work
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self._got_error(error)
            else:
                if token is not None:
                    self._got(token)
            finally:
                if not self.world.over:
                    self.late(call)
                self.calls.remove(call)

        task = asyncio.get_running_loop().create_task(caller())
        self.tasks[task] = None
        task.add_done_callback(self.tasks.pop)

    def late(self, call: Call) -> None:
        """Nothing waits for longer than its bound."""
        lasted = self.world.now - call.since
        if lasted > BOUNDS[call.what] + 0.5:
            self.world.breaks(f"a {call.what} of {self.name} waits for {lasted:g} s")

    def _got(self, token: Token) -> None:
        self.answers.append(token)
        sign_ins, name = self.provider.sign_ins, token.access_token
        if name not in sign_ins:
            self.world.breaks(f"{self.name} got {name}, of another provider")
            return
        before, generation = self.served.get(sign_ins[name], 0), self.provider.generations[name]
        if generation < before:
            self.world.breaks(f"{self.name} got {name}, of generation {generation}, after {before}")
        self.served[sign_ins[name]] = max(before, generation)

    def _got_error(self, error: Exception) -> None:
        if not isinstance(error, TokenSessionError) or "unexpectedly" in str(error):
            self.world.breaks(f"{self.name} got {error!r}")
            return
        self.answers.append(error)
        if isinstance(error, SignInRequired | ConfigurationError):
            self.world.reached[type(error).__name__] += 1
        if isinstance(error, GrantRejected) and not isinstance(error, GrantLost):
            self.world.no_loss_is_hidden()

    def __repr__(self) -> str:
        return f"<{self.name}{'' if self.alive else ' killed'}>"


class ProcessClock:
    """The world's clock. The wall clock may be wrong, and the boot clock has a zero of its own."""

    def __init__(self, process: Process, wall: float, boot: float) -> None:
        self._process = process
        self._clock: FakeClock = process.world.clock
        self._timers: dict[asyncio.Future[None], None] = {}
        self.offset = wall
        self._boot = boot

    def wall(self) -> float:
        return self._clock.wall() + self.offset

    def boot(self) -> float:
        return self._clock.boot() + self._boot

    def jitter(self) -> float:
        return 0.5

    async def sleep(self, seconds: float) -> None:
        awake = asyncio.Event()
        timer = self.call_later(seconds, awake.set)
        try:
            await awake.wait()
        finally:
            timer.cancel()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.Future[None]:
        timer = self._clock.call_later(seconds, callback)
        if not self._process.alive:
            timer.cancel()
        self._timers[timer] = None
        timer.add_done_callback(self._timers.pop)
        return timer

    def stop(self) -> None:
        """A killed process does not wake."""
        for timer in tuple(self._timers):
            timer.cancel()


REFUSALS: dict[str, tuple[int, Any, float]] = {
    "500": (500, {}, 0.5),
    "503": (503, {}, 0.5),
    "429": (429, {}, 0.5),
    "429, 30 s": (429, {}, 30.0),
    "empty 400": (400, None, 30.0),
    "502": (502, {}, 1.5),
    "invalid_client": (401, {"error": "invalid_client"}, 0.0),
}
"""Name -> status, body, the shortest pause that has to follow."""


@dataclass(eq=False)
class ModelTransport:
    """The network between a process and its provider."""

    process: Process

    async def send(
        self,
        request: TokenRequest,
        *,
        connect: float,
        total: float,
        on_sending: Callable[[], Awaitable[None]] | None = None,
    ) -> TokenResponse:
        assert on_sending is not None
        process, world = self.process, self.process.world
        fields = parse_qs(request.body.decode())
        credential = (fields.get("refresh_token") or fields["code"])[0]
        sent = Sent(process, credential, world.now, world.faults, world.losses, "code" in fields)
        sent.signs_in = credential in process.signing_in
        sent.forced = "forced" in process.running.values()
        listened = process.stopped_listening
        world.begins(sent)
        try:
            await world.ask(process, "connect", works=lambda: None, no_connection=_no_connection)
            await on_sending()
            world.leaves(sent)
            return await self._answered(sent)
        except (NotSent, StoreUnavailable):  # the latter from `on_sending`
            sent.outcome = "not sent"
            raise
        except asyncio.CancelledError:
            sent.outcome = "cut short" if sent.left is not None else "not sent"
            sent.pause = 1.5
            if process.alive and not world.over and sent.left is not None:
                self._may_arrive_later(sent)
                early = world.now - sent.began < total - 0.1
                stopped = any(call.what in ("close", "sign in", "sign out") for call in process.calls)
                known = process.source._coordinator.cache.state
                stopped = stopped or (known is not None and known.signed_out)
                if early and not stopped and listened == process.stopped_listening:
                    world.breaks(f"{process.name} does not wait for the answer to {credential}")
            raise
        finally:
            if process.alive and not world.over:
                sent.ended, sent.faults_when_ended, sent.losses = world.now, world.faults, world.losses

    async def _answered(self, sent: Sent) -> TokenResponse:
        process, world = self.process, self.process.world
        refused: dict[str, Any] = {name: partial(self._refuses, sent, name) for name in REFUSALS}
        response: TokenResponse = await world.ask(
            process,
            "send",
            arrives=lambda: process.provider.redeem(sent, world.now),
            lost=lambda: self._lost(sent),
            lost_and_arrives_later=lambda: self._lost_for_now(sent),
            **refused,
        )
        if not sent.arrived:
            return response
        wrong: dict[str, Any] = {"lost": lambda: self._lost(sent)}
        if sent.rejected:
            wrong["empty 400"] = refused["empty 400"]
        else:
            wrong["problem"] = lambda: self._has_problem(sent, response)
        wrong |= {name: refused[name] for name in ("502", "500")}
        delivered = partial(self._delivered, sent, response)
        answer: TokenResponse = await world.ask(process, "response", delivered=delivered, **wrong)
        return answer

    def _delivered(self, sent: Sent, response: TokenResponse) -> TokenResponse:
        sent.outcome = "rejected" if sent.rejected else "token"
        if sent.serial:
            self.process.knows_of(f"{self.process.provider.name}-refresh-{sent.serial}")
        return response

    def _has_problem(self, sent: Sent, response: TokenResponse) -> TokenResponse:
        sent.problem = True
        self.process.world.problems.add(sent.serial)
        self._delivered(sent, response)
        return with_problem(response)

    def _refuses(self, sent: Sent, name: str) -> TokenResponse:
        status, document, sent.pause = REFUSALS[name]
        sent.outcome = name
        headers = (("retry-after", "30"),) if name.endswith("30 s") else ()
        return respond(status, document, *headers)

    def _lost(self, sent: Sent) -> None:
        sent.outcome, sent.pause = "lost", 1.5
        raise OutcomeUnknown("reset")

    def _lost_for_now(self, sent: Sent) -> None:
        self._may_arrive_later(sent)
        self._lost(sent)

    def _may_arrive_later(self, sent: Sent) -> None:
        if not sent.arrived:
            self.process.world.on_the_wire(sent, ON_ITS_WAY)


def _no_connection() -> None:
    raise NotSent("no route")
