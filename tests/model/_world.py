"""A world in which a refresh can go wrong in every way: a provider, a store, processes, and time.

The processes are real sources: `ManagedSource` and everything below it. The provider and the store are
models. Each call of them waits, as an `Op`, until the test decides how it ends. So the test decides the
order of everything, and can kill a process between any two steps. Nothing runs by itself: `World.settle`
runs all processes until each of them waits.
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

LIFETIME = 3600
KEY = "account"
POLICY = Policy()

_TURNS = 30  # of the event loop, until every process waits for an Op or a timer
_LAST_LOOK = 16  # more, after a time-out


@dataclass(eq=False)
class Op:
    """A call that a process waits for. `fates` are the ways it can end."""

    process: Process
    what: str
    fates: dict[str, Callable[[], Any]]
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def end(self, fate: str) -> bool:
        """End it this way, if that is possible now. The process gets what the fate returns or raises."""
        try:
            answer = self.fates[fate]()
        except Exception as error:  # noqa: BLE001 - this is how it ends
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
"""A fate returns this if it is not possible yet."""


@dataclass(eq=False)
class Sent:
    """One token request and its outcome, as only the provider knows it."""

    process: Process
    credential: str
    recorded: bool
    """Whether the stored state said, when it was sent, that this credential had been sent before."""
    signing_in: bool
    arrived: bool = False
    generation: int = 0
    """The generation of the token that was issued for it, or 0."""
    rejected: bool = False
    delivered: bool = False
    """Whether the response reached a process that was alive."""
    harmless: bool = False
    """Whether its outcome says that it has spent nothing."""
    lapsed: bool = False
    """Whether its process lost the claim while it was running."""


class Provider:
    """An authorization server. Each refresh token works once, and one that is reused revokes its sign-in."""

    def __init__(self) -> None:
        self.generation = 0
        self.sign_ins: dict[str, int] = {}  # credential -> its sign-in
        self.spent: dict[str, Sent] = {}
        self.revoked: set[int] = set()
        self.reused: list[tuple[Sent, Sent]] = []  # the request that spent it, the request that reused it
        self.sent: list[Sent] = []
        self._next = 0

    def new_credential(self) -> str:
        self._next += 1
        credential = f"credential-{self._next}"
        self.sign_ins[credential] = self._next
        return credential

    def redeem(self, sent: Sent) -> TokenResponse:
        """Handle a token request that has arrived."""
        sent.arrived = True
        sign_in = self.sign_ins.get(sent.credential)
        earlier = self.spent.get(sent.credential)
        if earlier is not None and sign_in is not None and sign_in not in self.revoked:
            self.reused.append((earlier, sent))
            self.revoked.add(sign_in)
        if sign_in is None or sign_in in self.revoked:
            sent.rejected = True
            return _response(400, {"error": "invalid_grant"})
        self.spent[sent.credential] = sent
        self.generation += 1
        sent.generation = self.generation
        refresh = f"refresh-{self.generation}"
        self.sign_ins[refresh] = sign_in
        return _response(
            200,
            {"access_token": f"access-{self.generation}", "refresh_token": refresh, "expires_in": LIFETIME},
        )

    def sign_in_of(self, generation: int) -> int:
        """The sign-in that this token comes from."""
        return self.sign_ins[f"refresh-{generation}"]


def _response(status: int, document: object) -> TokenResponse:
    return TokenResponse(status, (), json.dumps(document).encode())


def generation(token: Token | None) -> int:
    """Its generation; 0 without a token."""
    return int(token.access_token.removeprefix("access-")) if token is not None else 0


class World:
    """Everything. Make it in a running event loop."""

    def __init__(self, *, count: int, flaws: frozenset[str] = frozenset()) -> None:
        self.clock = FakeClock()
        self.provider = Provider()
        self.record: Record | None = None
        self.holder: ModelClaim | None = None
        self.mark: float | None = None  # boot clock: when a holder began that has not ended its claim
        self.ops: list[Op] = []
        self.orphans: list[Callable[[], Any]] = []  # writes whose caller has gone, still running
        self.wire: list[tuple[float, Callable[[], Any]]] = []  # (deadline, request of a killed process)
        self.killed: list[Process] = []
        self.interruptions = 0  # claims that never ended
        self.ended: set[int] = set()  # the sign-ins that have been signed out
        self.undone = False  # whether an older token was stored over a sign-out
        self.signed_in: set[int] = set()  # the sign-ins that have returned, and the first one
        self.earlier: dict[int, frozenset[int]] = {}  # sign-in -> those that had returned when it began
        self.outdated: set[int] = set()  # those earlier than one that has been stored
        self.brought_back = False  # whether one of these was stored over a later one
        self.unsaved = 0  # how many writes failed
        self.over = False
        self._timers = False
        self.story: list[str] = []
        self.configured = self.provider.new_credential()
        self.signed_in.add(self.provider.sign_ins[self.configured])
        self.flaws = flaws
        self.processes = [self._started(number) for number in range(count)]

    def _started(self, number: int, offset: float = 0.0) -> Process:
        process = Process(self, f"P{number}", offset)
        process.source = process.make_source()
        return process

    def kill(self, process: Process) -> Process:
        """Kill a process and start a new one. What the old one had requested may still happen."""
        self.tell(f"{process.name} is killed")
        process.alive = False
        self.killed.append(process)
        number = self.processes.index(process)
        if self.holder is not None and self.holder.store.process is process:
            self.holder = None  # as the kernel does with a lock; the mark stays
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
        """The lease of a live holder runs out: it was stopped, or its connection was lost."""
        if self.holder is None:
            return
        self.tell(f"the lease of {self.holder.store.process.name} lapses")
        for sent in self.provider.sent:
            if sent.process is self.holder.store.process:
                sent.lapsed = True
        self.holder = None
        self.interruptions += 1

    def advance(self, seconds: float) -> None:
        """Time passes. Requests of killed processes arrive soon or never."""
        self.tell(f"{seconds:g} s pass")
        self.clock.advance(seconds)
        self._timers = True
        self.wire = [(until, arrives) for until, arrives in self.wire if until > self.clock.boot()]

    def tell(self, what: str) -> None:
        """Add a line to the story that is printed with a failure."""
        state = self.state
        stored = "nothing" if state is None else f"{generation(state.token)} {state.attempt or ''}"
        noted = state is not None and (state.rejection or state.signed_out)
        self.story.append(f"{what}  [stored: {stored}{' rejection or sign-out' if noted else ''}]")

    async def settle(self) -> None:
        """Run all processes until each of them waits."""
        turns, self._timers = _TURNS + self._timers * _LAST_LOOK, False
        for _ in range(turns):
            await asyncio.sleep(0)
        self.ops = [op for op in self.ops if not op.done.done()]

    async def ask(self, process: Process, what: str, **fates: Callable[[], Any]) -> Any:
        """Wait until the test decides how it ends. A killed process never continues."""
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
    def state(self) -> TokenState | None:
        """The stored state."""
        return decode(self.record.data) if self.record is not None else None

    def write(self, data: bytes) -> Record:
        old, new = self.state, decode(data)
        if old is not None and old.signed_out and new.token is not None:
            self.undone = self.undone or self.provider.sign_in_of(generation(new.token)) in self.ended
        if new.token is not None:
            sign_in = self.provider.sign_in_of(generation(new.token))
            self.brought_back = self.brought_back or sign_in in self.outdated
            self.outdated |= self.earlier.get(sign_in, frozenset())
        self.record = Record(new_version(), data)
        return self.record

    async def sign_in(self, process: Process) -> Token:
        """Sign in with a new credential."""
        credential = self.provider.new_credential()
        sign_in = self.provider.sign_ins[credential]
        process.signing_in.add(credential)
        self.earlier[sign_in] = frozenset(self.signed_in)
        token = await process.source.sign_in(refresh_token=credential)
        self.signed_in.add(sign_in)
        return token


class Process:
    """One process until it is killed: a source over the shared store, with its own wall clock."""

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
        """The real source."""
        provider = OAuth2(
            token_url="https://id.example.com/token",
            client_id="client",
            client_secret="client-secret",
            refresh_token=self.world.configured,
            rotates=True,
        )
        source = ManagedSource(
            provider,
            ModelTransport(self),
            store=ModelStore(self),
            key=KEY,
            policy=POLICY,
            clock=self.clock,
            observer=self.note,
        )
        for flaw in self.world.flaws & FLAWED.keys():
            parts = {
                part.name: getattr(source._transaction, part.name) for part in fields(RefreshTransaction)
            }
            source._coordinator._transaction = FLAWED[flaw](**parts)
        return source

    def note(self, event: Event) -> None:
        """Every event of this process."""
        self.world.unsaved += isinstance(event, SaveFailed)

    async def end(self) -> None:
        """End everything that still waits."""
        for task in tuple(self.tasks):
            task.cancel()
        await self.source._coordinator._tasks.cancel()

    def call(self, work: Coroutine[Any, Any, Token | None]) -> None:
        """Start a caller, and record what it gets."""

        async def caller() -> None:
            try:
                token = await work
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.errors.append(error)
            else:
                if token is not None:
                    self.handed_out.append(token)

        task = asyncio.get_running_loop().create_task(caller())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def __repr__(self) -> str:
        return f"<{self.name}{'' if self.alive else ' killed'}>"


class ProcessClock:
    """The world's clock, with a wall clock that may be wrong."""

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
            await asyncio.get_running_loop().create_future()  # a killed process does not wake


class ModelTransport:
    """The network between a process and the provider."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._provider = process.world.provider

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        process, world = self._process, self._process.world
        credential = parse_qs(request.body.decode())["refresh_token"][0]
        state = world.state
        attempt = state.attempt if state is not None else None
        sent = Sent(
            process,
            credential,
            recorded=attempt is not None and attempt.credential == fingerprint(credential),
            signing_in=credential in process.signing_in,
        )
        self._provider.sent.append(sent)

        def no_connection() -> None:
            sent.harmless = True
            raise NotSent("no route")

        def fails(status: int) -> Callable[[], TokenResponse]:
            def respond() -> TokenResponse:
                sent.harmless = True
                return _response(status, {})

            return respond

        def lost() -> None:
            raise OutcomeUnknown("reset")

        response: TokenResponse = await world.ask(
            process,
            "send",
            arrives=lambda: self._provider.redeem(sent),
            no_connection=no_connection,
            status_500=fails(500),
            status_503=fails(503),
            lost=lost,
        )
        if not sent.arrived:
            return response

        def delivered() -> TokenResponse:
            sent.delivered = True
            return response

        answer: TokenResponse = await world.ask(process, "response", delivered=delivered, lost=lost)
        return answer


class ModelStore:
    """One process's store object over the shared record. Claims are leases, which may lapse."""

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
            free = world.holder is None or "claims are not exclusive" in world.flaws
            if not free:
                if world.clock.boot() >= until:
                    raise ClaimTimeout("another process holds it")
                return WAIT
            unmarked = world.mark is None or world.holder is not None
            unmarked = unmarked or "a killed holder leaves no mark" in world.flaws
            interrupted = None if unmarked else world.clock.boot() - world.mark
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
                world.ended.update(world.provider.sign_ins[credential] for credential in arrived)
            return world.write(data)

        return await self._written("put", write)

    async def _written(self, what: str, write: Callable[[], Record]) -> Record:
        """A write, which finishes even if its caller has gone."""

        def unconfirmed() -> None:
            write()
            _unavailable()

        try:
            record: Record = await self.world.ask(
                self.process, what, works=write, fails=_unavailable, works_unconfirmed=unconfirmed
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
        """Nothing to close."""


def _unavailable() -> None:
    raise StoreUnavailable("no answer")


class ModelClaim:
    """A lease. It may lapse; a commit compares versions, whether it has or not."""

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
        # The mark of an earlier holder comes back, because its outcome is still unknown.
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


class NotesNothing(RefreshTransaction):
    """Does not store the outcome of a token request."""

    async def _note(self, claim: Claim, step: Any, note: Any, error: BaseException) -> Record:
        await claim.abandon()
        raise error


class YieldsToNotes(RefreshTransaction):
    """Treats any newer record as a newer generation."""

    def _before(self, step: Any) -> Callable[[TokenState | None], bool]:
        return lambda _stored: False


class DoesNotWait(RefreshTransaction):
    """Does not wait for the last request of a killed holder."""

    def _orphan_wait(self, began: float) -> float:
        return 0.0


FLAWED: dict[str, type[RefreshTransaction]] = {
    "a note is not stored": NotesNothing,
    "a late token gives way to a note": YieldsToNotes,
    "no wait for requests of killed processes": DoesNotWait,
}
