"""What may happen to a refresh, in any order, and what must hold whatever does: a machine for hypothesis."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from _world import LIFE, Op, Process, Sent, World, generation
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokensession import GrantLost, GrantRejected, SignedOut, SignInRequired, TokenSessionError
from tokensession.token import Token

PROCESSES = 3
PLACES = ["claim", "send", "reply", "commit", "abandon"]
WHICH = st.integers(0, 11)


class RefreshMachine(RuleBasedStateMachine):
    """What may happen, and what must hold.

    `flaws` are what is wrong on purpose, to see that it is noticed. `reached` counts what came up.
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
    def the_api_refuses_the_token(self, which: int) -> None:
        process = self._process(which)
        token = process.source._coordinator.cache.token
        if token is not None:
            self._do(lambda: process.call(process.source.refresh(token)))

    @rule(which=WHICH, what=st.sampled_from(["in", "in", "out"]))
    def somebody_signs(self, what: str, which: int) -> None:
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
        self._do(lambda: op.meet(next(iter(op.fates))))

    @precondition(lambda self: self.world.ops)
    @rule(which=WHICH, how=st.integers(0, 5))
    def a_step_goes_wrong(self, which: int, how: int) -> None:
        op = self.world.ops[which % len(self.world.ops)]
        wrong = list(op.fates)[1:]
        if wrong:
            self._do(lambda: op.meet(wrong[how % len(wrong)]))

    @precondition(lambda self: self.world.ops)
    @rule(which=WHICH, steps=st.integers(2, 12))
    def a_process_goes_on(self, which: int, steps: int) -> None:
        for _ in range(steps):
            self._do(lambda: _go_on(self.world, self._process(which)))

    @rule(steps=st.integers(2, 12))
    def everybody_goes_on(self, steps: int) -> None:
        for _ in range(steps):
            for process in self.world.processes:
                self._do(lambda process=process: _go_on(self.world, process))

    @rule(sure=st.integers(0, 4))
    def the_provider_revokes_the_sign_in(self, sure: int) -> None:
        if sure == 4:
            self.world.provider.revoked.update(self.world.provider.grants.values())

    @rule(which=WHICH)
    def a_process_is_killed(self, which: int) -> None:
        self._do(lambda: self.world.kill(self._process(which)))

    @precondition(lambda self: self.world.wire or self.world.orphans)
    @rule()
    def something_lands_late(self) -> None:
        """A request of the dead, or a write whose caller has gone."""
        world = self.world
        act = world.wire.pop(0)[1] if world.wire else world.orphans.pop(0)
        self._do(lambda: _quietly(act))

    @precondition(lambda self: self.world.holder is not None)
    @rule()
    def a_lease_lapses(self) -> None:
        self._do(self.world.lapse)

    @rule(seconds=st.sampled_from([0.5, 2.0, 11.0, 21.0, 31.0, 600.0, LIFE - 200.0, LIFE + 1.0]))
    def time_goes_by(self, seconds: float) -> None:
        self._do(lambda: self.world.advance(seconds))

    @rule(which=WHICH, offset=st.sampled_from([0.0, -LIFE, LIFE, -10.0, 10.0, -1e6, 1e6]))
    def a_wall_clock_steps(self, which: int, offset: float) -> None:
        self._process(which).clock.offset = offset

    @rule(which=WHICH, place=st.sampled_from(PLACES), how=st.integers(0, 6), spent=st.booleans())
    def trouble_comes_in_mid_refresh(self, which: int, place: str, how: int, spent: bool) -> None:
        """Straight to where it hurts: a refresh gets as far as this, and then something happens."""
        op = self.gets_as_far_as(which, place, spent=spent)
        if op is not None:
            self._hit(op, how)

    def gets_as_far_as(self, which: int, place: str, *, spent: bool = False) -> Op | None:
        """A process refreshes until it waits at this place. None if it does not come there."""
        process = self._process(which)
        if spent:
            self._do(lambda: self.world.advance(LIFE))
        self._do(lambda: process.call(process.source.token()))
        return self._reach(process, place)

    @rule(which=WHICH, how=st.integers(0, 6), other=WHICH, then=st.sampled_from(["refresh", "sign in"]))
    def trouble_comes_as_a_sign_in_is_stored(self, which: int, how: int, other: int, then: str) -> None:
        """And before its next try somebody else goes on: with what is stored, or anew."""
        process, world = self._process(which), self.world
        self._do(lambda: process.call(world.sign_in(process)))
        op = self._reach(process, "put")
        if op is None:
            return
        self._hit(op, how)
        going_on = self._process(other)
        work = world.sign_in(going_on) if then == "sign in" else going_on.source.refresh()
        self._do(lambda: going_on.call(work))
        for _ in range(8):
            self._do(lambda: _go_on(world, going_on))

    def _reach(self, process: Process, place: str) -> Op | None:
        for _ in range(8):
            for op in self.world.ops:
                if op.process is process and op.what == place:
                    return op
            self._do(lambda: _go_on(self.world, process))
        return None

    def _hit(self, op: Op, how: int) -> None:
        wrong = list(op.fates)[1:]
        if how < len(wrong):
            self._do(lambda: op.meet(wrong[how]))
        elif how == 5:
            self._do(self.world.lapse)
        else:
            self._do(lambda: self.world.kill(op.process))

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def what_must_hold(self) -> None:
        with self._told():
            self.a_refresh_token_is_sent_once_and_replayed_once_at_most()
            self.a_token_that_was_received_is_not_asked_for_again()
            self.a_refused_refresh_token_is_never_sent_again()
            self.what_was_received_is_stored_or_on_its_way()
            self.nothing_older_is_stored_than_was_handed_out()
            self.a_sign_out_is_not_undone()
            self.a_sign_in_is_not_replaced_by_an_earlier_one()
            self.every_error_is_a_typed_one()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong, with the whole story."""
        try:
            yield
        except AssertionError as error:
            error.add_note("\n".join(["", "This is how it came to it:", *self.world.story]))
            raise

    def a_refresh_token_is_sent_once_and_replayed_once_at_most(self) -> None:
        for credential, sends in self._sends().items():
            if not sends[0].signing_in:
                counted = [sent for sent in sends if not sent.harmless]
                assert len(counted) <= 2, f"{credential} was sent {len(counted)} times"
                assert all(sent.recorded for sent in counted[1:]), f"{credential} was replayed, unrecorded"

    def a_token_that_was_received_is_not_asked_for_again(self) -> None:
        """Reuse is detected only where nobody has, or could keep, what the first use brought."""
        for spent, _again in self.world.provider.reused:
            kept = spent.delivered and spent.process.alive and not spent.lapsed
            assert not kept, f"{spent.credential} was sent again although its successor was here"

    def a_refused_refresh_token_is_never_sent_again(self) -> None:
        for credential, sends in self._sends().items():
            heard = [n for n, sent in enumerate(sends) if sent.rejected and sent.delivered]
            if heard and sends[heard[0]].process.alive and not sends[heard[0]].lapsed:
                later = [sent for sent in sends[heard[0] + 1 :] if sent.process is not None]
                assert not later, f"{credential} was refused, and sent again"

    def what_was_received_is_stored_or_on_its_way(self) -> None:
        stored = self._stored()
        for sent in self.world.provider.sent:
            if stored and sent.delivered and sent.process.alive and self._newer(sent.generation, stored):
                writes = [op for op in self.world.ops if op.what in ("commit", "put")]
                busy = any(op.process is sent.process for op in writes)
                saving = sent.process.source.snapshot().unsaved
                assert busy or saving, f"generation {sent.generation} is gone; {stored} is stored"

    def nothing_older_is_stored_than_was_handed_out(self) -> None:
        stored = self._stored()
        for process in self.world.processes:
            for handed_out in map(generation, process.handed_out):
                if stored and self._newer(handed_out, stored):
                    saving = process.source.snapshot().unsaved
                    assert saving, f"generation {handed_out} was handed out; {stored} is stored"

    def _stored(self) -> int:
        """The generation of the stored token; 0 if there is none, or if somebody has signed out."""
        grant = self.world.grant
        return 0 if grant is None or grant.signed_out else generation(grant.token)

    def _newer(self, one: int, other: int) -> bool:
        """Whether it is the later one of the same sign-in. Of two sign-ins, the one stored last counts."""
        return one > other and self.world.provider.grant_of(one) == self.world.provider.grant_of(other)

    def a_sign_out_is_not_undone(self) -> None:
        assert not self.world.undone, "somebody signed out, and a token of before was stored over it"

    def a_sign_in_is_not_replaced_by_an_earlier_one(self) -> None:
        """Earlier: it had returned when the other one began."""
        assert not self.world.brought_back, (
            "somebody signed in anew, and an earlier sign-in was stored over it"
        )

    def every_error_is_a_typed_one(self) -> None:
        for process in self.world.processes:
            for error in process.errors:
                assert isinstance(error, TokenSessionError), repr(error)
                assert "unexpectedly" not in str(error), str(error)

    def _sends(self) -> dict[str, list[Sent]]:
        sends: dict[str, list[Sent]] = {}
        for sent in self.world.provider.sent:
            sends.setdefault(sent.credential, []).append(sent)
        return sends

    # -- and in the end ----------------------------------------------------------------------------

    def teardown(self) -> None:
        self._count()
        try:
            with self._told():
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
                "claims that ended without a word": self.world.interruptions,
                "claims that lapsed in mid-request": sum(each.lapsed for each in sent),
                "sign-ins": sum(each.signing_in for each in sent),
                "writes that failed": self.world.unsaved,
            }
        )

    async def _heal(self) -> None:
        """The faults stop. Everybody gets a token, or a clear request to sign in."""
        world = self.world
        await self._calm()
        world.advance(61)  # what is remembered of failures is forgotten
        for process in world.processes:
            process.clock.offset = 0.0
        answers = [await self._answer(process) for process in world.processes]
        for process, answer in zip(world.processes, answers, strict=True):
            if isinstance(answer, SignInRequired):
                self._is_due(answer)
            else:
                assert isinstance(answer, Token), f"{process.name}: {answer!r}"
        if not all(isinstance(answer, Token) for answer in answers):
            await self._sign_in_again()

    async def _sign_in_again(self) -> None:
        process = self.world.processes[0]
        process.call(self.world.sign_in(process))
        await self._calm()
        self.world.advance(LIFE)
        for process in self.world.processes:
            answer = await self._answer(process)
            assert isinstance(answer, Token), f"{process.name} after a new sign-in: {answer!r}"

    def _is_due(self, error: SignInRequired) -> None:
        """Nobody is asked to sign in without a reason."""
        world, provider = self.world, self.world.provider
        if isinstance(error, SignedOut):
            assert world.grant is not None
            assert world.grant.signed_out
        elif isinstance(error, GrantLost):
            unknown = [sent for sent in provider.sent if not (sent.harmless or sent.delivered)]
            assert len(unknown) + world.interruptions >= 2, "two attempts were lost, it says"
        else:
            assert isinstance(error, GrantRejected), repr(error)
            assert any(sent.rejected for sent in provider.sent), "it was refused, it says"

    async def _answer(self, process: Process) -> Token | BaseException:
        """What a caller gets who goes on trying: the API accepts the token, or it is an error."""
        answer: Token | BaseException = TokenSessionError("not asked")
        for _ in range(12):
            process.handed_out.clear()
            process.errors.clear()
            process.call(process.source.token())
            await self._calm()
            answer = [*process.handed_out, *process.errors][-1]
            if isinstance(answer, Token) and not self._accepted(answer):
                process.call(process.source.refresh(answer))
                await self._calm()
                answer = [*process.handed_out, *process.errors][-1]
            if isinstance(answer, SignInRequired) or (isinstance(answer, Token) and self._accepted(answer)):
                return answer
            self.world.advance(61)
        return answer

    def _accepted(self, token: Token) -> bool:
        """What the API says to it."""
        provider = self.world.provider
        return provider.grant_of(generation(token)) not in provider.revoked

    async def _calm(self) -> None:
        """Let everything that is under way end well."""
        world = self.world
        world.wire.clear()
        for _ in range(400):
            while world.orphans:
                _quietly(world.orphans.pop(0))
            await world.settle()
            moved = [op.meet(next(iter(op.fates))) for op in world.ops]
            if any(moved):
                continue
            busy = [each for each in world.processes if each.tasks or each.source._coordinator._tasks.running]
            if not busy and not world.ops:
                return
            world.advance(1.0)
        raise AssertionError(f"it does not come to rest: {world.ops}")

    async def _end(self) -> None:
        self.world.over = True
        for process in [*self.world.processes, *self.world.buried]:
            await process.end()


def _go_on(world: World, process: Process) -> None:
    for op in world.ops:
        if op.process is process and op.meet(next(iter(op.fates))):
            return


def _quietly(write: Callable[[], Any]) -> None:
    with contextlib.suppress(TokenSessionError):  # superseded: nobody is there to hear of it
        write()
