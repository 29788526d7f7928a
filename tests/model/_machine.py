"""A hypothesis state machine: what may happen to a refresh, in any order, and what must always hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from _world import LIFETIME, Op, Process, Sent, World, generation
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokensession import GrantLost, GrantRejected, SignedOut, SignInRequired, TokenSessionError
from tokensession.token import Token

PROCESSES = 3
POINTS = ["claim", "send", "response", "commit", "abandon"]
WHICH = st.integers(0, 11)


class RefreshMachine(RuleBasedStateMachine):
    """What may happen, and what must always hold.

    `flaws` are deliberate errors, to show that they are found. `reached` counts what has happened.
    """

    flaws: ClassVar[frozenset[str]] = frozenset()
    reached: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world: World = self.loop.run_until_complete(self._begin())

    async def _begin(self) -> World:
        return World(count=PROCESSES, flaws=self.flaws)

    def _do(self, act: Callable[[], Any]) -> None:
        async def step() -> None:
            act()
            await self.world.settle()

        self.loop.run_until_complete(step())

    def _process(self, which: int) -> Process:
        return self.world.processes[which % PROCESSES]

    # -- what callers do --------------------------------------------------------------------------

    @rule(which=WHICH)
    def a_caller_wants_a_token(self, which: int) -> None:
        process = self._process(which)
        self._do(lambda: process.call(process.source.token()))

    @rule(which=WHICH)
    def the_api_answers_401(self, which: int) -> None:
        process = self._process(which)
        token = process.source._coordinator.cache.token
        if token is not None:
            self._do(lambda: process.call(process.source.refresh(token)))

    @rule(which=WHICH, what=st.sampled_from(["in", "in", "out"]))
    def a_person_signs(self, what: str, which: int) -> None:
        process = self._process(which)
        if what == "in":
            self._do(lambda: process.call(self.world.sign_in(process)))
        else:
            self._do(lambda: process.call(process.source.sign_out()))

    # -- what happens to them ----------------------------------------------------------------------

    @precondition(lambda self: self.world.ops)
    @rule(which=WHICH)
    def a_step_works(self, which: int) -> None:
        op = self.world.ops[which % len(self.world.ops)]
        self._do(lambda: op.end(next(iter(op.fates))))

    @precondition(lambda self: self.world.ops)
    @rule(which=WHICH, how=st.integers(0, 5))
    def a_step_goes_wrong(self, which: int, how: int) -> None:
        op = self.world.ops[which % len(self.world.ops)]
        wrong = list(op.fates)[1:]
        if wrong:
            self._do(lambda: op.end(wrong[how % len(wrong)]))

    @precondition(lambda self: self.world.ops)
    @rule(which=WHICH, steps=st.integers(2, 12))
    def a_process_continues(self, which: int, steps: int) -> None:
        for _ in range(steps):
            self._do(lambda: _continue(self.world, self._process(which)))

    @rule(steps=st.integers(2, 12))
    def all_processes_continue(self, steps: int) -> None:
        for _ in range(steps):
            for process in self.world.processes:
                self._do(lambda process=process: _continue(self.world, process))

    @rule(sure=st.integers(0, 4))
    def the_provider_revokes_the_sign_in(self, sure: int) -> None:
        if sure == 4:
            self.world.provider.revoked.update(self.world.provider.sign_ins.values())

    @rule(which=WHICH)
    def a_process_is_killed(self, which: int) -> None:
        self._do(lambda: self.world.kill(self._process(which)))

    @precondition(lambda self: self.world.wire or self.world.orphans)
    @rule()
    def a_request_or_write_arrives_late(self) -> None:
        """A token request of a killed process, or a write whose caller has gone."""
        world = self.world
        act = world.wire.pop(0)[1] if world.wire else world.orphans.pop(0)
        self._do(lambda: _ignore_errors(act))

    @precondition(lambda self: self.world.holder is not None)
    @rule()
    def a_lease_lapses(self) -> None:
        self._do(self.world.lapse)

    @rule(seconds=st.sampled_from([0.5, 2.0, 11.0, 21.0, 31.0, 600.0, LIFETIME - 200.0, LIFETIME + 1.0]))
    def time_passes(self, seconds: float) -> None:
        self._do(lambda: self.world.advance(seconds))

    @rule(which=WHICH, offset=st.sampled_from([0.0, -LIFETIME, LIFETIME, -10.0, 10.0, -1e6, 1e6]))
    def a_wall_clock_steps(self, which: int, offset: float) -> None:
        self._process(which).clock.offset = offset

    @rule(which=WHICH, point=st.sampled_from(POINTS), how=st.integers(0, 6), spent=st.booleans())
    def a_fault_hits_a_refresh(self, which: int, point: str, how: int, spent: bool) -> None:
        """A refresh runs to this point, and then something goes wrong."""
        op = self.refreshes_up_to(which, point, spent=spent)
        if op is not None:
            self._hit(op, how)

    def refreshes_up_to(self, which: int, point: str, *, spent: bool = False) -> Op | None:
        """A process refreshes until it waits at this point. None if it does not get there."""
        process = self._process(which)
        if spent:
            self._do(lambda: self.world.advance(LIFETIME))
        self._do(lambda: process.call(process.source.token()))
        return self._reach(process, point)

    @rule(which=WHICH, how=st.integers(0, 6), other=WHICH, then=st.sampled_from(["refresh", "sign in"]))
    def a_fault_hits_a_sign_in(self, which: int, how: int, other: int, then: str) -> None:
        """Before its next try another process refreshes or signs in."""
        process, world = self._process(which), self.world
        self._do(lambda: process.call(world.sign_in(process)))
        op = self._reach(process, "put")
        if op is None:
            return
        self._hit(op, how)
        other_process = self._process(other)
        work = world.sign_in(other_process) if then == "sign in" else other_process.source.refresh()
        self._do(lambda: other_process.call(work))
        for _ in range(8):
            self._do(lambda: _continue(world, other_process))

    def _reach(self, process: Process, point: str) -> Op | None:
        for _ in range(8):
            for op in self.world.ops:
                if op.process is process and op.what == point:
                    return op
            self._do(lambda: _continue(self.world, process))
        return None

    def _hit(self, op: Op, how: int) -> None:
        wrong = list(op.fates)[1:]
        if how < len(wrong):
            self._do(lambda: op.end(wrong[how]))
        elif how == 5:
            self._do(self.world.lapse)
        else:
            self._do(lambda: self.world.kill(op.process))

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def what_must_hold(self) -> None:
        with self._with_story():
            self.a_refresh_token_is_sent_once_and_replayed_once_at_most()
            self.a_token_that_was_received_is_not_requested_again()
            self.a_rejected_refresh_token_is_never_sent_again()
            self.what_was_received_is_stored_or_being_written()
            self.nothing_older_is_stored_than_was_handed_out()
            self.a_sign_out_is_not_undone()
            self.a_sign_in_is_not_replaced_by_an_earlier_one()
            self.every_error_is_typed()

    @contextlib.contextmanager
    def _with_story(self) -> Iterator[None]:
        """Add the story so far to a failure."""
        try:
            yield
        except AssertionError as error:
            error.add_note("\n".join(["", "The events that led to this:", *self.world.story]))
            raise

    def a_refresh_token_is_sent_once_and_replayed_once_at_most(self) -> None:
        for credential, sends in self._sends().items():
            if not sends[0].signing_in:
                counted = [sent for sent in sends if not sent.harmless]
                assert len(counted) <= 2, f"{credential} was sent {len(counted)} times"
                assert all(sent.recorded for sent in counted[1:]), f"{credential} was replayed, unrecorded"

    def a_token_that_was_received_is_not_requested_again(self) -> None:
        """The server detects reuse only if no process has the token that the first use returned."""
        for spent, _again in self.world.provider.reused:
            received = spent.delivered and spent.process.alive and not spent.lapsed
            assert not received, f"{spent.credential} was sent again although its successor had arrived"

    def a_rejected_refresh_token_is_never_sent_again(self) -> None:
        for credential, sends in self._sends().items():
            known = [n for n, sent in enumerate(sends) if sent.rejected and sent.delivered]
            if known and sends[known[0]].process.alive and not sends[known[0]].lapsed:
                later = [sent for sent in sends[known[0] + 1 :] if sent.process is not None]
                assert not later, f"{credential} was rejected, and sent again"

    def what_was_received_is_stored_or_being_written(self) -> None:
        stored = self._stored()
        for sent in self.world.provider.sent:
            if stored and sent.delivered and sent.process.alive and self._newer(sent.generation, stored):
                writes = [op for op in self.world.ops if op.what in ("commit", "put")]
                busy = any(op.process is sent.process for op in writes)
                saving = sent.process.source.snapshot().unsaved
                assert busy or saving, f"generation {sent.generation} is lost; {stored} is stored"

    def nothing_older_is_stored_than_was_handed_out(self) -> None:
        stored = self._stored()
        for process in self.world.processes:
            for handed_out in map(generation, process.handed_out):
                if stored and self._newer(handed_out, stored):
                    saving = process.source.snapshot().unsaved
                    assert saving, f"generation {handed_out} was handed out; {stored} is stored"

    def _stored(self) -> int:
        """The generation of the stored token. 0 without one, or after a sign-out."""
        state = self.world.state
        return 0 if state is None or state.signed_out else generation(state.token)

    def _newer(self, one: int, other: int) -> bool:
        """Whether it is a later generation of the same sign-in."""
        return one > other and self.world.provider.sign_in_of(one) == self.world.provider.sign_in_of(other)

    def a_sign_out_is_not_undone(self) -> None:
        assert not self.world.undone, "after a sign-out, an older token was stored over it"

    def a_sign_in_is_not_replaced_by_an_earlier_one(self) -> None:
        """One sign-in is earlier than another if it had returned when the other one began."""
        assert not self.world.brought_back, "after a new sign-in, an earlier one was stored over it"

    def every_error_is_typed(self) -> None:
        for process in self.world.processes:
            for error in process.errors:
                assert isinstance(error, TokenSessionError), repr(error)
                assert "unexpectedly" not in str(error), str(error)

    def _sends(self) -> dict[str, list[Sent]]:
        sends: dict[str, list[Sent]] = {}
        for sent in self.world.provider.sent:
            sends.setdefault(sent.credential, []).append(sent)
        return sends

    # -- at the end ----------------------------------------------------------------------------

    def teardown(self) -> None:
        self._count()
        try:
            with self._with_story():
                self.loop.run_until_complete(self._heal())
        finally:
            self.loop.run_until_complete(self._end())
            self.loop.close()

    def _count(self) -> None:
        sent = self.world.provider.sent
        self.reached.update(
            {
                "token requests": len(sent),
                "replays": sum(each.recorded for each in sent),
                "rejections": sum(each.rejected and each.delivered for each in sent),
                "reuse detected": len(self.world.provider.reused),
                "claims that never ended": self.world.interruptions,
                "claims that lapsed during a request": sum(each.lapsed for each in sent),
                "sign-ins": sum(each.signing_in for each in sent),
                "writes that failed": self.world.unsaved,
            }
        )

    async def _heal(self) -> None:
        """The faults stop. Every process gets a token, or an error that says to sign in."""
        world = self.world
        await self._finish_all()
        world.advance(61)  # longer than any failure is remembered
        for process in world.processes:
            process.clock.offset = 0.0
        answers = [await self._answer(process) for process in world.processes]
        for process, answer in zip(world.processes, answers, strict=True):
            if isinstance(answer, SignInRequired):
                self._check_reason(answer)
            else:
                assert isinstance(answer, Token), f"{process.name}: {answer!r}"
        if not all(isinstance(answer, Token) for answer in answers):
            await self._sign_in_again()

    async def _sign_in_again(self) -> None:
        process = self.world.processes[0]
        process.call(self.world.sign_in(process))
        await self._finish_all()
        self.world.advance(LIFETIME)
        for process in self.world.processes:
            answer = await self._answer(process)
            assert isinstance(answer, Token), f"{process.name} after a new sign-in: {answer!r}"

    def _check_reason(self, error: SignInRequired) -> None:
        """An error that says to sign in must have a reason."""
        world, provider = self.world, self.world.provider
        if isinstance(error, SignedOut):
            assert world.state is not None
            assert world.state.signed_out
        elif isinstance(error, GrantLost):
            unknown = [sent for sent in provider.sent if not (sent.harmless or sent.delivered)]
            assert len(unknown) + world.interruptions >= 2, "it says that two attempts were lost"
        else:
            assert isinstance(error, GrantRejected), repr(error)
            assert any(sent.rejected for sent in provider.sent), "it says that the refresh token was rejected"

    async def _answer(self, process: Process) -> Token | BaseException:
        """What a caller gets that keeps trying: a token that the API accepts, or an error."""
        answer: Token | BaseException = TokenSessionError("not called")
        for _ in range(12):
            process.handed_out.clear()
            process.errors.clear()
            process.call(process.source.token())
            await self._finish_all()
            answer = [*process.handed_out, *process.errors][-1]
            if isinstance(answer, Token) and not self._accepted(answer):
                process.call(process.source.refresh(answer))
                await self._finish_all()
                answer = [*process.handed_out, *process.errors][-1]
            if isinstance(answer, SignInRequired) or (isinstance(answer, Token) and self._accepted(answer)):
                return answer
            self.world.advance(61)
        return answer

    def _accepted(self, token: Token) -> bool:
        """Whether the API accepts it."""
        provider = self.world.provider
        return provider.sign_in_of(generation(token)) not in provider.revoked

    async def _finish_all(self) -> None:
        """Let everything that is running succeed."""
        world = self.world
        world.wire.clear()
        for _ in range(400):
            while world.orphans:
                _ignore_errors(world.orphans.pop(0))
            await world.settle()
            moved = [op.end(next(iter(op.fates))) for op in world.ops]
            if any(moved):
                continue
            busy = [each for each in world.processes if each.tasks or each.source._coordinator._tasks.running]
            if not busy and not world.ops:
                return
            world.advance(1.0)
        raise AssertionError(f"these never end: {world.ops}")

    async def _end(self) -> None:
        self.world.over = True
        for process in [*self.world.processes, *self.world.killed]:
            await process.end()


def _continue(world: World, process: Process) -> None:
    for op in world.ops:
        if op.process is process and op.end(next(iter(op.fates))):
            return


def _ignore_errors(write: Callable[[], Any]) -> None:
    with contextlib.suppress(TokenSessionError):  # superseded, and its caller has gone
        write()
