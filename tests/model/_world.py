"""A world in which a refresh can go wrong in every way: providers, a store, processes, and time.

The processes are real sources: `ManagedSource` and everything below it. The providers and the store are
models. Each call of them waits, as an `Op`, until the test decides how it ends. So the test decides the
order of everything, and can kill a process between any two steps. Nothing runs by itself: `World.settle`
runs all processes until each of them waits.

What only the model knows is written down here as it happens, and each promise that is broken, in `broken`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from _process import POLICY, Process
from _provider import LIFETIME, Provider, Sent
from _store import WAIT, Mark, ModelClaim

from tokensession import TokenSessionError
from tokensession._refresh.state import Now, TokenState, decode
from tokensession.policy import CODE_LIFE
from tokensession.stores.protocol import Record, new_version
from tokensession.testing import FakeClock
from tokensession.token import fingerprint

__all__ = ["LIFETIME", "POLICY", "Op", "Process", "Provider", "Sent", "World"]

_SPINS = 2000  # turns of the event loop without a rest: something runs without end
_TIMERS = 5000  # timers in one stretch of time
_STORE_CALLS = ("load", "claim", "put", "commit", "abandon", "sending")


@dataclass(eq=False)
class Op:
    """A call that a process waits for. `fates` are the ways it can end."""

    process: Process
    what: str
    fates: dict[str, Callable[[], Any]]
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def end(self, fate: str) -> bool:
        """End it this way, if that is possible now. The process gets what the fate returns or raises."""
        world, name = self.process.world, self.process.name
        if self.done.done():
            return False
        try:
            answer = self.fates[fate]()
        except Exception as error:  # noqa: BLE001 - this is how it ends
            world.tell(f"{self.what} of {name}: {fate} ({type(error).__name__})")
            self.done.set_exception(error)
            return True
        if answer is WAIT:
            return False
        held = ", and holds it" if isinstance(answer, ModelClaim) else ""
        world.tell(f"{self.what} of {name}: {fate}{held}")
        self.done.set_result(answer)
        return True

    def work(self) -> bool:
        """End it well, if that is possible now."""
        return self.end(next(iter(self.fates)))

    def __repr__(self) -> str:
        return f"<{self.what} of {self.process.name}: {', '.join(self.fates)}>"


class World:
    """Everything. Make it in a running event loop.

    `leases`: claims are leases, so a holder may lose one and go on. `kind` is that of the configured
    credential. The wall clocks are `walls` seconds wrong.
    """

    def __init__(
        self,
        *,
        leases: bool = False,
        kind: str = "refresh",
        leeway: float = 0.0,
        walls: tuple[float, ...] = (0.0,) * 3,
    ) -> None:
        self.clock = FakeClock()
        self.clocks_differ = any(walls)
        self.leases = leases
        serials = itertools.count(1)
        self.provider = Provider("main", serials, leeway=leeway)
        self.other = Provider("other", serials)
        # The store
        self.record: Record | None = None
        self.past: list[tuple[Record, float]] = []  # every record, and when it was written
        self.written = 0.0
        self.holder: ModelClaim | None = None
        self.mark: Mark | None = None
        # What is under way
        self.ops: list[Op] = []
        self.orphans: list[Callable[[], Any]] = []  # writes whose caller has gone, still running
        self.wire: list[tuple[float, Sent]] = []  # requests whose sender has gone: until when they may arrive
        self.killed: list[Process] = []
        self.over = False
        # What has happened
        self.sent: list[Sent] = []
        self.problems: set[int] = set()  # serial numbers of tokens that came with a problem
        self.faults = 0  # calls of the store that failed, kills, losses
        self.interruptions = 0  # claims that never ended
        self.losses = 0  # how often the store lost data or went back
        self.superseded = 0  # writes that met another version
        self.ended: dict[int, float] = {}  # number of a sign-out -> when it was stored
        self.began: dict[int, float] = {}  # sign-in -> when a person brought its credential
        self.signed_in: set[int] = set()  # the sign-ins that have returned
        self.earlier: dict[int, frozenset[int]] = {}  # sign-in -> those that had returned when it began
        self.outdated: set[int] = set()  # those earlier than one that has been stored
        self.signed_out: set[int] = set()  # those that a sign-out has ended
        self.tombstones: dict[int, set[int]] = {}  # the number of a sign-out -> what it has ended
        self.brought: set[str] = set()  # the credentials that people have brought
        self.configured: list[str] = []  # the credentials that have been configured
        self.broken: list[str] = []
        self.story: list[str] = []
        self.reached: Counter[str] = Counter()
        self._starts = itertools.count()
        first = self.provider.new_credential(kind)
        self.processes = [self._start(n, self.provider, first, wall) for n, wall in enumerate(walls)]
        self.intruder = self._start(9, self.other, self.other.new_credential("refresh"), 0.0)

    def _start(self, number: int, provider: Provider, configured: str, wall: float) -> Process:
        if provider is self.provider and configured not in self.configured:
            self.configured.append(configured)
        boot = 10_000.0 * next(self._starts)
        return Process(self, f"P{number}", provider, configured, wall=wall, boot=boot)

    @property
    def everyone(self) -> list[Process]:
        """The processes that are alive."""
        return [*self.processes, self.intruder]

    @property
    def now(self) -> float:
        return self.clock.boot()

    async def settle(self) -> None:
        """Run all processes until each of them waits."""
        ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
        for _ in range(_SPINS):
            await asyncio.sleep(0)
            if not ready:
                return
        self.breaks("something runs without end")

    async def ask(
        self,
        process: Process,
        what: str,
        *,
        expires: float | None = None,
        **fates: Callable[[], Any],
    ) -> Any:
        """Wait until the test decides how it ends. A killed process never continues.

        After `expires` seconds it is tried once more, and ends, however.
        """
        if self.over:
            raise asyncio.CancelledError
        op = Op(process, what, fates)
        if process.alive:
            self.ops.append(op)
        timer = process.clock.call_later(expires, op.work) if expires is not None else None
        try:
            return await op.done
        except asyncio.CancelledError:
            if process.alive and not self.over:
                self.tell(f"{what} of {process.name} is cut short")
                self.faults += what in _STORE_CALLS
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if op in self.ops:
                self.ops.remove(op)

    async def pass_time(self, seconds: float) -> None:
        """Time passes evenly: every timer runs when it is due."""
        end = self.now + seconds
        for _ in range(_TIMERS):
            left = end - self.now
            if left <= 1e-6:
                return
            self.advance(min(max(next(iter(self.clock.sleepers), left), 1e-3), left))
            await self.settle()
        self.breaks(f"{_TIMERS} timers within {seconds:g} s")

    def jump(self, seconds: float) -> None:
        """The machines were suspended: all timers are late. No one's wait counts."""
        self.advance(seconds)
        for process in self.everyone:
            for call in process.calls:
                call.since = self.now

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.wire = [(until, sent) for until, sent in self.wire if until > self.now]

    def breaks(self, promise: str) -> None:
        """A promise is broken."""
        self.broken.append(promise)

    def tell(self, what: str) -> None:
        """Add a line to the story that is printed with a failure."""
        self.story.append(f"{self.now - 1000:8.1f}  {what}  [{described(self.state)}]")

    async def end(self) -> None:
        """End everything, and count what has happened."""
        answers = [(sent.ended or 0.0) - sent.began for sent in self.sent if sent.outcome == "token"]
        self.reached += Counter(
            {
                "unknown outcomes": sum(sent.unknown for sent in self.sent),
                "rejections": sum(sent.outcome == "rejected" for sent in self.sent),
                "reuse detected": len(self.provider.reused),
                "late answers": sum(seconds > POLICY.caller_timeout for seconds in answers),
                "claims that never ended": self.interruptions,
                "losses of data": self.losses,
                "tokens with a problem": len(self.problems),
            }
        )
        self.over = True
        for process in [*self.everyone, *self.killed]:
            await process.end()

    def check(self) -> None:
        """What must hold at every moment."""
        for process in self.everyone:
            for call in process.calls:
                process.late(call)
        self._nothing_received_is_lost()
        assert not self.broken, self.broken

    def _nothing_received_is_lost(self) -> None:
        """A token that was received is stored, or being stored, or there is a later one."""
        state = self.state
        if state is not None and state.signed_out:
            return
        for sent in self.sent:
            if sent.outcome != "token" or not sent.process.alive or sent.losses != self.losses:
                continue
            sign_in = sent.process.provider.sign_ins[sent.credential]
            if state is not None and self.sign_in_of(state) not in (None, sign_in):
                continue
            if self._is_two(sign_in):
                continue
            kept = any(op.what in ("commit", "put") and op.process is sent.process for op in self.ops)
            kept = kept or sent.process.source.snapshot().unsaved
            stored, token = secret_of(state), f"{sent.process.provider.name}-refresh-{sent.serial}"
            older = stored is None or sent.process.provider.succeeds(token, stored)
            if older and not kept:
                self.breaks(f"token {sent.serial} is lost; {described(state)} is stored")
        for spent, again in self.provider.reused:
            if spent.outcome == "token" and spent.process.alive and not self._may_be_reused(spent, again):
                self.breaks(f"{spent.credential} was sent again although its successor had arrived")

    def _may_be_reused(self, spent: Sent, again: Sent) -> bool:
        """Whether no one could know, or a rule says so."""
        lost = spent.losses != self.losses
        ended = self._has_ended(spent.process.provider.sign_ins[spent.credential])
        # A person who brings it to two processes while the store fails, or one is killed.
        brought = spent.signs_in and again.signs_in and (spent.faults != self.faults or again.unknown)
        # Its sender was stopped for longer than its lease, or closes and cannot store it.
        lapsed = spent.lapsed or again.lapsed or any(call.what == "close" for call in spent.process.calls)
        # It arrives late, and perhaps the note of it could not be stored.
        unnoted = again.unknown and again.ended is not None and again.faults_when_ended != self.faults
        return lost or ended or brought or lapsed or unnoted or spent.problem or again.is_code

    def no_loss_is_hidden(self) -> None:
        """A credential is not called rejected if a request with it was lost, and nothing else went wrong."""
        rejected = [sent for sent in self.sent if sent.outcome == "rejected"]
        if len(rejected) != 1 or rejected[0].signs_in:
            return
        last = rejected[0]
        for sent in self.sent[: self.sent.index(last)]:
            same = sent.credential == last.credential and sent.faults == last.faults_when_ended
            if same and sent.unknown and not sent.signs_in:
                self.breaks(f"a request with {last.credential} got no answer, and no one is told")

    def kill(self, process: Process, configured: str | None = None) -> Process:
        """Kill a process and start a new one. What the old one had requested may still happen."""
        self.tell(f"{process.name} is killed")
        process.alive = False
        process.clock.stop()
        self.killed.append(process)
        self.faults += 1
        held = self.holder is not None and self.holder.store.process is process
        if held:
            self._lose_claim()
        for op in [op for op in self.ops if op.process is process]:
            self.ops.remove(op)
            if op.what in ("commit", "put", "sending"):
                self.orphans.append(op.fates["works"])
        for sent in self.sent:
            if sent.process is process and sent.left is not None and sent.ended is None and not sent.arrived:
                sent.orphaned = held
                self.on_the_wire(sent, POLICY.orphan_wait)
        number = int(process.name[1:])
        new = self._start(number, process.provider, configured or process.configured, process.clock.offset)
        if process is self.intruder:
            self.intruder = new
        else:
            self.processes[number] = new
        return new

    def on_the_wire(self, sent: Sent, seconds: float) -> None:
        """Its sender has gone, but the request may still arrive."""
        self.wire.append((self.now + seconds, sent))

    def arrive_late(self) -> None:
        """A request whose sender has gone arrives."""
        _, sent = self.wire.pop(0)
        self.tell(f"a request of {sent.process.name} arrives late")
        self.reached["requests that arrived late"] += 1
        sent.process.provider.redeem(sent, self.now)

    def write_late(self) -> None:
        """A write whose caller has gone ends. A sign-out that is so late may be older than what it ends."""
        self.tell("a write of a caller that has gone ends")
        self.faults += 1
        signed_out, known = set(self.signed_out), set(self.tombstones)
        with contextlib.suppress(TokenSessionError):  # superseded, and its caller has gone
            self.orphans.pop(0)()
        self.signed_out = signed_out
        self.tombstones.update((number, set()) for number in set(self.tombstones) - known)

    def lapse(self) -> None:
        """The lease of a live holder runs out: it was stopped, or its connection was lost."""
        if self.holder is not None and self.leases:
            self.tell(f"the lease of {self.holder.store.process.name} lapses")
            self.faults += 1
            self._lose_claim()

    def _lose_claim(self) -> None:
        assert self.holder is not None
        self.interruptions += 1
        for sent in self.sent[::-1]:
            if sent.process is self.holder.store.process:
                sent.lapsed = True
                if not sent.signs_in:  # a sign-in may have come after the claim's request
                    break
        self.holder = None  # the mark stays

    def read(self) -> Record | None:
        """The record, as a store returns it."""
        record = self.record
        return record and Record(record.version, record.data, self.now - self.written)

    @property
    def state(self) -> TokenState | None:
        """The stored state."""
        return self.decoded(self.read())

    def decoded(self, record: Record | None) -> TokenState | None:
        """The state in a record."""
        if record is None:
            return None
        return decode(record.data, Now(self.clock.wall(), self.now), age=record.age)

    def write(self, data: bytes, process: Process) -> Record:
        """Store this, and note what that does to the sign-ins."""
        old, self.record, self.written = self.state, Record(new_version(), data), self.now
        self.past.append((self.record, self.now))
        new = self.state
        assert new is not None
        if process.alive:
            process.learn(new)
        if new.signed_out:
            arrived = [sent for sent in self.sent if sent.arrived]
            ended = {sent.process.provider.sign_ins[sent.credential] for sent in arrived}
            self.signed_out |= self.tombstones.setdefault(new.number, ended)
            self.ended.setdefault(new.number, self.now)
        sign_in = self.sign_in_of(new)
        if sign_in is None:
            return self.record
        if self.losses and (self.clocks_differ or self._at_once(sign_in, old)):
            return self.record  # after a loss of data, the clocks say which sign-in is the later one
        if old is not None and old.signed_out and sign_in in self.signed_out:
            self.breaks("after a sign-out, an older token was stored over it")
        if sign_in in self.outdated and not self._gone_back_to(old, new):
            self.breaks(f"after a later sign-in, sign-in {sign_in} was stored over it")
        # After a loss of data, a process that has just started cannot know how high its number must be.
        # Its write may come late: what has been signed in since it began is no earlier sign-in.
        earlier = (each for each in self.signed_in if self._begun(each) <= self._begun(sign_in))
        known = frozenset() if self.losses else frozenset(earlier)
        self.outdated |= self.earlier.setdefault(sign_in, known)
        self.outdated.discard(sign_in)
        return self.record

    def _begun(self, sign_in: int) -> float:
        """When a person brought its credential, or a process first sent it."""
        sent = (each for each in self.sent if each.process.provider.sign_ins.get(each.credential) == sign_in)
        return min([self.began.get(sign_in, float("inf")), *(each.began for each in sent)])

    def _at_once(self, sign_in: int, old: TokenState | None) -> bool:
        """Whether this sign-in and what is stored, another one or a sign-out, came in the same moment.

        Then no clock says which is the later one.
        """
        other = self.sign_in_of(old) if old is not None else None
        first, second = self.began.get(sign_in), self.began.get(other or -1)
        if old is not None and old.signed_out:
            second = self.ended.get(old.number)
        return first is not None and second is not None and abs(first - second) <= 2

    def _gone_back_to(self, old: TokenState | None, new: TokenState) -> bool:
        """Whether it is the configured credential, used again because the later lineage is rejected."""
        return old is not None and is_rejected(old) and new.start == new.configured

    def lose_record(self) -> None:
        """Someone deletes the record, or the disk loses it."""
        self.tell("the record is deleted")
        self.record = None
        self._lost_data()

    def put_back(self, which: int) -> None:
        """An older record is restored from a backup."""
        if self.past:
            self.record, self.written = self.past[which % len(self.past)]
            self.tell("an older record is put back")
            self._lost_data()

    def _lost_data(self) -> None:
        self.faults += 1
        self.losses += 1
        self.outdated.clear()
        self.signed_out.clear()

    def of(self, credential: str) -> Provider:
        """Whose token or credential this is."""
        return self.provider if credential in self.provider.sign_ins else self.other

    def sign_in_of(self, state: TokenState | None) -> int | None:
        """The sign-in that a state's token comes from."""
        secret = secret_of(state)
        return None if secret is None else self.of(secret).sign_ins[secret]

    def _is_two(self, sign_in: int) -> bool:
        """Whether two processes have brought its refresh token within the leeway, before a loss of data.

        Each has a sign-in of its own then, and their clocks say which is the later one.
        """
        brought = [sent for sent in self.sent if sent.signs_in and sent.serial]
        same = [sent for sent in brought if sent.process.provider.sign_ins[sent.credential] == sign_in]
        return len(same) > 1 and self.losses > 0 and self.clocks_differ

    def _has_ended(self, sign_in: int) -> bool:
        """Whether someone signed out while it was there."""
        return any(sign_in in each for each in self.tombstones.values())

    def serial_of(self, state: TokenState | None) -> int:
        """The serial number of a state's token, or 0."""
        secret = secret_of(state)
        return 0 if secret is None else self.of(secret).serials[secret]

    def begins(self, sent: Sent) -> None:
        """A token request begins: is it one that may be made?"""
        sent.superseded = self.superseded
        self.tell(f"{sent.process.name} begins to send {sent.credential}")
        provider, state = sent.process.provider, self._read_by(sent.process)
        self.sent.append(sent)
        if sent.credential not in provider.sign_ins:
            self.breaks(f"{sent.process.name} sends {sent.credential}, of another provider")
            return
        if sent.signs_in:  # a person signs in again, by intention
            self.signed_out.discard(provider.sign_ins[sent.credential])
            self.outdated.discard(provider.sign_ins[sent.credential])
        identity = state.identity if state is not None and state.token is not None else None
        if identity is not None and identity.client_id != provider.name and not sent.signs_in:
            self.breaks(f"{sent.process.name} sends something, and the record is another provider's")
        self._is_not_spent(sent, state)

    def _read_by(self, process: Process) -> TokenState | None:
        """What the process has read under its claim. What is written after that it cannot know.

        After an interrupted claim it looks again.
        """
        holder = self.holder
        if holder is not None and holder.store.process is process and holder.earlier is None:
            return self.decoded(holder.current)
        return self.state

    def _is_not_spent(self, sent: Sent, state: TokenState | None) -> None:
        """No process sends what it could know to be spent, from its memory or the store."""
        provider, process = sent.process.provider, sent.process
        sign_in = provider.sign_ins[sent.credential]
        known, stored = set(process.knows), secret_of(state)
        if stored is not None and self.serial_of(state) not in self.problems:
            known.add(stored)
        spent = sorted(each for each in known if provider.succeeds(each, sent.credential))
        ended = sent.signs_in and self._has_ended(sign_in)  # brought again after a sign-out: it costs nothing
        if spent and not ended and not self._is_two(sign_in):
            self.breaks(f"{process.name} sends {sent.credential}, and could know its successors {spent}")

    def _is_sent_once(self, sent: Sent) -> None:
        """A code is sent once in a day, or twice by one process if the first time got no answer."""
        before = [
            each
            for each in self.sent
            if each is not sent
            and each.credential == sent.credential
            and each.left is not None
            and self.now - each.left < CODE_LIFE
            and (each.ended is None or each.delivered or each.unknown)
            and (each.losses_when_left == self.losses or each.process is sent.process)  # or it lost the note
        ]
        again = len(before) == 1 and before[0].unknown and before[0].process is sent.process
        if before and not (again and sent.began == before[0].ended):
            self.breaks(f"{sent.process.name} sends {sent.credential} once more")

    def leaves(self, sent: Sent) -> None:
        """The first byte leaves. Is it the only request with this credential, and not too early?"""
        sent.left, sent.losses_when_left = self.now, self.losses
        if sent.is_code:
            self._is_sent_once(sent)
        self.reached["token requests"] += 1
        others = [each for each in self.sent if each.credential == sent.credential and each is not sent]
        for other in others:
            brought = sent.signs_in and other.signs_in and other.lapsed
            if other.left is not None and other.ended is None and other.process.alive and not brought:
                self.breaks(f"{sent.process.name} sends {sent.credential}, and {other.process.name} does too")
        if not sent.signs_in and any(other.orphaned for _, other in self.wire if other in others):
            self.breaks(f"{sent.process.name} sends {sent.credential}, and a killed process's may arrive")
        before = [each for each in others if each.left is not None and each.ended is not None]
        if not before or sent.signs_in or before[-1].signs_in or before[-1].faults != self.faults:
            return
        last = before[-1]
        assert last.ended is not None
        if last.outcome == "rejected" and not sent.forced:
            self.breaks(f"{sent.process.name} sends {sent.credential}, which was rejected")
        ignored = (sent.forced and last.outcome != "429, 30 s") or (sent.is_code and last.unknown)
        if self.now - last.ended < last.pause - 0.01 and not ignored:
            self.breaks(
                f"{sent.process.name} sends {sent.credential} "
                f"{self.now - last.ended:g} s after {last.outcome}"
            )


def is_rejected(state: TokenState) -> bool:
    """Whether its refresh token was rejected."""
    secret = secret_of(state)
    return any(secret is None or each.credential == fingerprint(secret) for each in state.rejections)


def secret_of(state: TokenState | None) -> str | None:
    """Its refresh token."""
    return state.token.refresh_token if state is not None and state.token is not None else None


def described(state: TokenState | None) -> str:
    """A stored state, for people."""
    if state is None:
        return "nothing"
    order = f"({state.number % 1_750_000_000}, {state.generation})"
    notes = [
        "signed out" if state.signed_out else "",
        f"problem, before it {state.previous}" if state.problem else "",
        f"{state.failures.count} failed, {state.failures.unknown} unknown" if state.failures else "",
        f"{len(state.rejections)} rejected" if state.rejections else "",
    ]
    return ", ".join([f"{order} {secret_of(state)}", *filter(None, notes)])
