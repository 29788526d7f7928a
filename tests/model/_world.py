"""A world in which a refresh can go wrong in every way: a provider, a store, processes, and time.

The processes are real sources (`ManagedSource`, with the real `transaction.py` and all that is around it). The
provider and the store are models: each thing that is asked of them waits, as an `Op`, until the test says
what becomes of it. So the test decides the order of everything, and may kill a process between any two
steps. Nothing runs by itself; `World.settle` lets everybody go on until all of them wait.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from tokensession import ClaimTimeout, ManagedSource, NotSent, OutcomeUnknown, Policy, StoreUnavailable
from tokensession._refresh.state import TokenState, decode
from tokensession._refresh.transaction import RefreshTransaction
from tokensession.errors import Superseded
from tokensession.events import Event, SaveFailed
from tokensession.providers import OAuth2
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores.protocol import ANY, AnyVersion, Claim, Record, new_version
from tokensession.testing import FakeClock
from tokensession.token import Token, fingerprint

LIFE = 3600
KEY = "account"
POLICY = Policy()

_TURNS = 30  # of the event loop, until everybody waits for something again
_LAST_LOOK = 16  # more, after a time-out


@dataclass(eq=False)
class Op:
    """Something that a process has asked for and waits for. `fates` are the ways it can end."""

    process: Process
    what: str
    fates: dict[str, Callable[[], Any]]
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def meet(self, fate: str) -> bool:
        """Let it end that way, if it can now. An exception of the fate is what the process gets."""
        try:
            answer = self.fates[fate]()
        except Exception as error:  # noqa: BLE001 - the fate is to fail
            self.process.world.tell(f"{self.what} of {self.process.name}: {type(error).__name__}")
            if not self.done.done():
                self.done.set_exception(error)
            return True
        if answer is WAIT:
            return False
        self.process.world.tell(f"{self.what} of {self.process.name}: {fate}")
        if not self.done.done():
            self.done.set_result(answer)
        return True

    def __repr__(self) -> str:
        return f"<{self.what} of {self.process.name}: {', '.join(self.fates)}>"


WAIT = object()
"""What a fate returns that cannot come true yet."""


@dataclass(eq=False)
class Sent:
    """One token request, and all that became of it. The provider's books, which nobody else sees."""

    process: Process
    credential: str
    recorded: bool
    """Whether the store knew, when it was sent, that this credential had been sent before."""
    signing_in: bool
    arrived: bool = False
    generation: int = 0
    """Of the token that was issued for it, or 0."""
    rejected: bool = False
    delivered: bool = False
    """Whether the answer reached a process that was alive."""
    harmless: bool = False
    """Whether it ended in an answer, or before it left, that says it has spent nothing."""
    lapsed: bool = False
    """Whether its process lost the claim meanwhile."""


class Provider:
    """An authorization server: refresh tokens are good once, and one that comes back ends its grant."""

    def __init__(self) -> None:
        self.generation = 0
        self.grants: dict[str, int] = {}  # refresh token -> its grant
        self.spent: dict[str, Sent] = {}
        self.revoked: set[int] = set()
        self.reused: list[tuple[Sent, Sent]] = []  # what spent it, what presented it again
        self.sent: list[Sent] = []
        self._next = 0

    def new_credential(self) -> str:
        self._next += 1
        seed = f"seed-{self._next}"
        self.grants[seed] = self._next
        return seed

    def redeem(self, sent: Sent) -> TokenResponse:
        """Act on a token request that has arrived."""
        sent.arrived = True
        grant = self.grants.get(sent.credential)
        earlier = self.spent.get(sent.credential)
        if earlier is not None and grant is not None and grant not in self.revoked:
            self.reused.append((earlier, sent))
            self.revoked.add(grant)
        if grant is None or grant in self.revoked:
            sent.rejected = True
            return _response(400, {"error": "invalid_grant"})
        self.spent[sent.credential] = sent
        self.generation += 1
        sent.generation = self.generation
        refresh = f"refresh-{self.generation}"
        self.grants[refresh] = grant
        return _response(
            200,
            {"access_token": f"access-{self.generation}", "refresh_token": refresh, "expires_in": LIFE},
        )

    def grant_of(self, generation: int) -> int:
        """The sign-in that this token comes from."""
        return self.grants[f"refresh-{generation}"]


def _response(status: int, document: object) -> TokenResponse:
    return TokenResponse(status, (), json.dumps(document).encode())


def generation(token: Token | None) -> int:
    """Which one it is; 0 for none."""
    return int(token.access_token.removeprefix("access-")) if token is not None else 0


class World:
    """All of it. Make it in a running event loop."""

    def __init__(self, *, count: int, flaws: frozenset[str] = frozenset()) -> None:
        self.clock = FakeClock()
        self.provider = Provider()
        self.record: Record | None = None
        self.holder: ModelClaim | None = None
        self.mark: float | None = None  # boot clock: when a holder began that has not ended
        self.ops: list[Op] = []
        self.orphans: list[Callable[[], Any]] = []  # writes whose caller has gone, still under way
        self.wire: list[tuple[float, Callable[[], Any]]] = []  # requests of the dead, and until when
        self.buried: list[Process] = []
        self.interruptions = 0  # claims that ended without a word
        self.ended: set[int] = set()  # the sign-ins that somebody has signed out of
        self.undone = False  # a sign-out, by a token of before
        self.signed_in: set[int] = set()  # the sign-ins that have returned, or were there at first
        self.earlier: dict[int, frozenset[int]] = {}  # those that had, when this one began
        self.outdated: set[int] = set()  # those that are earlier than one that has been stored
        self.brought_back = False  # one of these, over a later one
        self.unsaved = 0  # what was received and could not be stored at once
        self.over = False
        self._timers = False
        self.story: list[str] = []
        self.seed = self.provider.new_credential()
        self.signed_in.add(self.provider.grants[self.seed])
        self.flaws = flaws
        self.processes = [self._started(number) for number in range(count)]

    def _started(self, number: int, offset: float = 0.0) -> Process:
        process = Process(self, f"P{number}", offset)
        process.source = process.make_source()
        return process

    def kill(self, process: Process) -> Process:
        """SIGKILL, and a new process in its place. What it had asked for may still happen, unheard."""
        self.tell(f"{process.name} is killed")
        process.alive = False
        self.buried.append(process)
        number = self.processes.index(process)
        if self.holder is not None and self.holder.store.process is process:
            self.holder = None  # as the kernel does; the mark stays
            self.interruptions += 1
        for op in [op for op in self.ops if op.process is process]:
            self.ops.remove(op)
            if op.what == "send":
                self.wire.append((self.clock.boot() + POLICY.orphan_wait, op.fates["arrives"]))
            elif op.what in ("commit", "put"):
                self.orphans.append(op.fates["works"])
        self.processes[number] = self._started(number, process.clock.offset)
        return self.processes[number]

    def lapse(self) -> None:
        """The holder's lease runs out, although it lives: it was stopped, or cut off."""
        if self.holder is None:
            return
        self.tell(f"the lease of {self.holder.store.process.name} lapses")
        for sent in self.provider.sent:
            if sent.process is self.holder.store.process:
                sent.lapsed = True
        self.holder = None
        self.interruptions += 1

    def advance(self, seconds: float) -> None:
        """Time goes by. What the dead have sent arrives soon or never."""
        self.tell(f"{seconds:g} s go by")
        self.clock.advance(seconds)
        self._timers = True
        self.wire = [(until, arrives) for until, arrives in self.wire if until > self.clock.boot()]

    def tell(self, what: str) -> None:
        """For whoever has to find out how it came to this."""
        grant = self.grant
        stored = "nothing" if grant is None else f"{generation(grant.token)} {grant.attempt or ''}"
        noted = grant is not None and (grant.rejection or grant.signed_out)
        self.story.append(f"{what}  [stored: {stored}{' rejection or sign-out' if noted else ''}]")

    async def settle(self) -> None:
        """Let everybody go on until all of them wait."""
        turns, self._timers = _TURNS + self._timers * _LAST_LOOK, False
        for _ in range(turns):
            await asyncio.sleep(0)
        self.ops = [op for op in self.ops if not op.done.done()]

    async def ask(self, process: Process, what: str, **fates: Callable[[], Any]) -> Any:
        """Wait for the test to say what becomes of it. A dead process waits for ever."""
        if self.over:
            raise asyncio.CancelledError
        op = Op(process, what, fates)
        if process.alive:
            self.ops.append(op)
        try:
            return await op.done
        finally:
            if op in self.ops:
                self.ops.remove(op)

    @property
    def grant(self) -> TokenState | None:
        return decode(self.record.data) if self.record is not None else None

    def write(self, data: bytes) -> Record:
        old, new = self.grant, decode(data)
        if old is not None and old.signed_out and new.token is not None:
            self.undone = self.undone or self.provider.grant_of(generation(new.token)) in self.ended
        if new.token is not None:
            grant = self.provider.grant_of(generation(new.token))
            self.brought_back = self.brought_back or grant in self.outdated
            self.outdated |= self.earlier.get(grant, frozenset())
        self.record = Record(new_version(), data)
        return self.record

    async def sign_in(self, process: Process) -> Token:
        """Somebody signs in anew."""
        seed = self.provider.new_credential()
        grant = self.provider.grants[seed]
        process.signing_in.add(seed)
        self.earlier[grant] = frozenset(self.signed_in)
        token = await process.source.sign_in(refresh_token=seed)
        self.signed_in.add(grant)
        return token


class Process:
    """One process: a source over the shared store, with a clock of its own, until it is killed."""

    def __init__(self, world: World, name: str, offset: float) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.clock = ProcessClock(self, offset)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.handed_out: list[Token] = []
        self.errors: list[BaseException] = []
        self.source: ManagedSource
        self.signing_in: set[str] = set()

    def make_source(self) -> ManagedSource:
        """The real thing."""
        provider = OAuth2(
            token_url="https://id.example.com/token",
            client_id="client",
            client_secret="client-secret",
            refresh_token=self.world.seed,
            rotates=True,
        )
        source = ManagedSource(
            provider,
            ModelEndpoint(self),
            store=ModelStore(self),
            key=KEY,
            policy=POLICY,
            clock=self.clock,
            observer=self.note,
        )
        for flaw in self.world.flaws & FLAWED.keys():
            kept = {each.name: getattr(source._transaction, each.name) for each in fields(RefreshTransaction)}
            source._coordinator._transaction = FLAWED[flaw](**kept)
        return source

    def note(self, event: Event) -> None:
        """Every event of this process."""
        self.world.unsaved += isinstance(event, SaveFailed)

    async def end(self) -> None:
        """At the end of the world: nobody is left waiting."""
        for task in tuple(self.tasks):
            task.cancel()
        await self.source._coordinator._tasks.cancel()

    def call(self, work: Coroutine[Any, Any, Token | None]) -> None:
        """Start a caller; what it gets is kept."""

        async def caller() -> None:
            try:
                token = await work
            except Exception as error:  # noqa: BLE001 - looked at by the test
                self.errors.append(error)
            else:
                if token is not None:
                    self.handed_out.append(token)

        task = asyncio.get_running_loop().create_task(caller())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def __repr__(self) -> str:
        return f"<{self.name}{'' if self.alive else ' dead'}>"


class ProcessClock:
    """The world's time, with a wall clock that may be wrong."""

    def __init__(self, process: Process, offset: float) -> None:
        self._process = process
        self._clock = process.world.clock
        self.offset = offset

    def wall(self) -> float:
        return self._clock.wall() + self.offset

    def boot(self) -> float:
        return self._clock.boot()

    def jitter(self) -> float:
        return 0.5

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        if not self._process.alive and not self._process.world.over:
            await asyncio.get_running_loop().create_future()  # the dead do not wake


class ModelEndpoint:
    """The network between a process and the provider."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._provider = process.world.provider

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        process, world = self._process, self._process.world
        credential = parse_qs(request.body.decode())["refresh_token"][0]
        grant = world.grant
        attempt = grant.attempt if grant is not None else None
        sent = Sent(
            process,
            credential,
            recorded=attempt is not None and attempt.credential == fingerprint(credential),
            signing_in=credential in process.signing_in,
        )
        self._provider.sent.append(sent)

        def refuses_connection() -> None:
            sent.harmless = True
            raise NotSent("no route")

        def fails(status: int) -> Callable[[], TokenResponse]:
            def answer() -> TokenResponse:
                sent.harmless = True
                return _response(status, {})

            return answer

        def lost_on_the_way() -> None:
            raise OutcomeUnknown("reset")

        response: TokenResponse = await world.ask(
            process,
            "send",
            arrives=lambda: self._provider.redeem(sent),
            no_connection=refuses_connection,
            answers_500=fails(500),
            answers_503=fails(503),
            lost=lost_on_the_way,
        )
        if not sent.arrived:
            return response

        def delivered() -> TokenResponse:
            sent.delivered = True
            return response

        answer: TokenResponse = await world.ask(process, "reply", delivered=delivered, lost=lost_on_the_way)
        return answer


class ModelStore:
    """One process's handle on the shared record. Leases, so a claim may lapse under its holder."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.world = process.world

    async def load(self, key: str) -> Record | None:
        found: Record | None = await self.world.ask(
            self.process, "load", works=lambda: self.world.record, fails=_unavailable
        )
        return found

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Claim | Record:
        world = self.world
        until = world.clock.boot() + timeout

        def granted() -> Any:
            record = world.record
            if record is not None and record.version != seen:
                return record
            free = world.holder is None or "claims exclude nobody" in world.flaws
            if not free:
                if world.clock.boot() >= until:
                    raise ClaimTimeout("somebody else holds it")
                return WAIT
            silent = world.mark is None or world.holder is not None
            silent = silent or "a killed holder is not told of" in world.flaws
            interrupted = None if silent else world.clock.boot() - world.mark
            world.holder = ModelClaim(self, record, interrupted)
            world.mark = world.clock.boot()
            return world.holder

        found: Claim | Record = await world.ask(self.process, "claim", works=granted, fails=_unavailable)
        return found

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        world = self.world

        def write() -> Record:
            if expect is not ANY and (world.record.version if world.record else None) != expect:
                raise Superseded("another version", record=world.record)
            if decode(data).signed_out:
                arrived = [sent.credential for sent in world.provider.sent if sent.arrived]
                world.ended.update(world.provider.grants[credential] for credential in arrived)
            return world.write(data)

        return await self._written("put", write)

    async def _written(self, what: str, write: Callable[[], Record]) -> Record:
        """A write that is finished although its caller has gone, sooner or later."""

        def unheard() -> None:
            write()
            _unavailable()

        try:
            record: Record = await self.world.ask(
                self.process, what, works=write, fails=_unavailable, works_unheard=unheard
            )
        except asyncio.CancelledError:
            if self.process.alive and not self.world.over:
                self.world.orphans.append(write)
            raise
        return record

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        raise NotImplementedError

    async def keys(self) -> list[str]:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Nothing is held."""


def _unavailable() -> None:
    raise StoreUnavailable("no answer")


class ModelClaim:
    """A lease. It may lapse; what is committed then is judged by its version alone."""

    def __init__(self, store: ModelStore, current: Record | None, interrupted: float | None) -> None:
        self.store = store
        self._current = current
        self._interrupted = interrupted
        self._earlier = store.world.mark
        self._written: Record | None = None

    @property
    def current(self) -> Record | None:
        return self._current

    @property
    def interrupted(self) -> float | None:
        return self._interrupted

    async def commit(self, data: bytes) -> Record:
        return await self.store._written("commit", lambda: self._commit(data))

    def _commit(self, data: bytes) -> Record:
        world = self.store.world
        if self._written is None or world.record is not self._written or self._written.data != data:
            version = self._current.version if self._current else None
            stored = world.record.version if world.record else None
            if stored != version and "commits compare nothing" not in world.flaws:
                self._release(None)
                raise Superseded("another version", record=world.record)
            self._written = world.write(data)
        self._release(None)
        return self._written

    async def abandon(self) -> None:
        # The mark of an earlier holder comes back: what that one did is not known any better now.
        world, process = self.store.world, self.store.process
        release = partial(self._release, self._earlier)
        try:
            await world.ask(process, "abandon", works=release)
        except asyncio.CancelledError:
            if process.alive and not world.over:
                world.orphans.append(release)
            raise

    def _release(self, mark: float | None) -> None:
        world = self.store.world
        if world.holder is self:
            world.holder, world.mark = None, mark


class Forgetful(RefreshTransaction):
    """Does not write down what became of a token request."""

    async def _note(self, claim: Claim, step: Any, note: Any, error: BaseException) -> Record:
        await claim.abandon()
        raise error


class Yielding(RefreshTransaction):
    """Takes any newer record for a newer generation."""

    def _before(self, step: Any) -> Callable[[TokenState | None], bool]:
        return lambda _stored: False


class Hasty(RefreshTransaction):
    """Does not wait for what a dead holder may have sent."""

    def _orphan_wait(self, began: float) -> float:
        return 0.0


FLAWED: dict[str, type[RefreshTransaction]] = {
    "a note is not stored": Forgetful,
    "a late token gives way to a note": Yielding,
    "nobody waits for the requests of the dead": Hasty,
}
