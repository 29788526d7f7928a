"""A hypothesis state machine: what may happen to a refresh, in any order, and what must always hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from _heal import Healing
from _world import LIFETIME, Op, Process, World
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

HITS = st.sampled_from(
    [
        *[("response", fault) for fault in ("lost", "problem", "killed", "502", "late", "500", "empty 400")],
        *[("send", fault) for fault in ("killed", "lost", "late", "503", "429, 30 s", "empty 400", "lapse")],
        *[("send", fault) for fault in ("lost_and_arrives_later", "killed", "invalid_client")],
        *[("commit", fault) for fault in ("killed", "fails", "works_unconfirmed", "lapse", "late")],
        *[("connect", fault) for fault in ("no_connection", "killed")],
        *[("sending", fault) for fault in ("fails", "killed", "works_unconfirmed")],
        *[("claim", "fails"), ("abandon", "killed"), ("abandon", "late")],
    ]
)
"""How far a refresh gets, and what happens there."""
SPENT = st.sampled_from([True, True, True, False])
KIND = st.sampled_from(["refresh", "code"])
WHICH = st.integers(0, 11)
SURE = st.integers(0, 2)
STRETCHES = [0.5, 2.0, 11.0, 21.0, 31.0, 61.0, 118.0, 125.0, 600.0, LIFETIME - 200.0, LIFETIME + 1.0]
DISASTERS: list[set[str]] = [
    set(),
    {"record lost"},
    {"record put back"},
    {"revoked"},
    {"other provider"},
    {"deployed"},
    {"record lost", "record put back"},
    {"record lost", "other provider"},
    {"record put back", "deployed"},
]


class RefreshMachine(RuleBasedStateMachine):
    """What may happen, and what must always hold. `reached` counts what has happened in all histories."""

    reached: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._unhandled)
        self.unhandled: list[str] = []
        self.disasters: set[str] = set()
        self.world: World = self._made()

    def _made(self, **settings: Any) -> World:
        async def make() -> World:
            return World(**settings)

        return self.loop.run_until_complete(make())

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.unhandled.append(f"{context.get('message')}: {context.get('exception')!r}")

    @initialize(
        leases=st.booleans(),
        kind=st.sampled_from(["refresh", "refresh", "code"]),
        leeway=st.sampled_from([0.0, 0.0, 30.0]),
        walls=st.sampled_from([(0.0, 0.0, 0.0), (0.0, 180.0, -240.0)]),
        disasters=st.sampled_from(DISASTERS),
        used=st.booleans(),
    )
    def begins(
        self,
        leases: bool,
        kind: str,
        leeway: float,
        walls: tuple[float, ...],
        disasters: set[str],
        used: bool,
    ) -> None:
        """`used`: every process has had a token."""
        self.disasters = disasters
        self.world = self._made(leases=leases, kind=kind, leeway=leeway, walls=walls)
        if used:
            self.everyone_wants_a_token(False, 8)

    def _do(self, act: Callable[[], Any]) -> None:
        async def step() -> None:
            act()
            await self.world.settle()

        self.loop.run_until_complete(step())

    def _process(self, which: int) -> Process:
        return self.world.processes[which % len(self.world.processes)]

    @rule(which=WHICH)
    def a_caller_wants_a_token(self, which: int) -> None:
        self._do(self._process(which).wants_a_token)

    @rule(which=WHICH)
    def the_api_answers_401(self, which: int) -> None:
        process = self._process(which)
        token = process.token
        if token is not None:
            self._do(lambda: process.gets_a_401(token))

    @rule(which=WHICH)
    def a_caller_forces_a_refresh(self, which: int) -> None:
        self._do(self._process(which).forces_a_refresh)

    @rule(which=WHICH, kind=st.sampled_from(["refresh", "code"]), again=st.integers(0, 3))
    def a_person_signs_in(self, which: int, kind: str, again: int) -> None:
        """With a new credential, or with one that was used before."""
        process, used = self._process(which), sorted(self.world.brought)
        if self._signing_in() >= 3:
            return
        credential = used[which % len(used)] if used and not again else self._new_credential(kind)
        self._do(lambda: process.signs_in(credential))

    def _signing_in(self) -> int:
        return sum(call.what == "sign in" for process in self.world.everyone for call in process.calls)

    def _new_credential(self, kind: str) -> str:
        credential = self.world.provider.new_credential(kind)
        self.world.brought.add(credential)
        return credential

    @rule(which=WHICH, sure=SURE)
    def a_person_signs_out(self, which: int, sure: int) -> None:
        if sure == 2:
            self._do(self._process(which).signs_out)

    @rule(which=WHICH, sure=SURE)
    def a_process_closes_and_goes_on(self, which: int, sure: int) -> None:
        if sure == 2:
            self._do(self._process(which).closes)

    @precondition(lambda self: self.world.ops)
    @rule(which=WHICH)
    def a_step_works(self, which: int) -> None:
        self._do(self.world.ops[which % len(self.world.ops)].work)

    @precondition(lambda self: self.world.ops)
    @rule(which=WHICH, how=WHICH)
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
            for process in self.world.everyone:
                self._do(partial(_continue, self.world, process))

    @rule(which=WHICH, sure=SURE)
    def a_process_is_killed(self, which: int, sure: int) -> None:
        if sure == 2:
            self._do(lambda: self.world.kill(self._process(which)))

    @precondition(lambda self: self.world.wire or self.world.orphans)
    @rule()
    def a_request_or_write_arrives_late(self) -> None:
        """A token request whose sender has gone, or a write whose caller has gone."""
        world = self.world
        self._do(world.arrive_late if world.wire else world.write_late)

    @precondition(lambda self: self.world.holder is not None and self.world.leases)
    @rule()
    def a_lease_lapses(self) -> None:
        self._do(self.world.lapse)

    @rule(seconds=st.sampled_from(STRETCHES))
    def time_passes(self, seconds: float) -> None:
        self.world.tell(f"{seconds:g} s pass")
        self.loop.run_until_complete(self.world.pass_time(seconds))

    @rule(seconds=st.sampled_from(STRETCHES), which=WHICH, then=st.booleans())
    def the_machines_are_suspended(self, seconds: float, which: int, then: bool) -> None:
        """All timers are late. `then`: something has arrived meanwhile."""
        world = self.world

        def wake() -> None:
            world.tell(f"the machines sleep for {seconds:g} s")
            world.jump(seconds)
            if then and world.ops:
                world.ops[which % len(world.ops)].work()

        self._do(wake)

    @rule(which=WHICH, offset=st.sampled_from([0.0, -LIFETIME, LIFETIME, -10.0, 10.0, -240.0, 1e6, -1e6]))
    def a_wall_clock_steps(self, which: int, offset: float) -> None:
        self._process(which).clock.offset = offset
        self.world.clocks_differ = True

    @precondition(lambda self: "record lost" in self.disasters)
    @rule()
    def the_record_is_lost(self) -> None:
        self._do(self.world.lose_record)

    @precondition(lambda self: "record put back" in self.disasters)
    @rule(which=WHICH)
    def an_older_record_is_put_back(self, which: int) -> None:
        self._do(lambda: self.world.put_back(which))

    @precondition(lambda self: "revoked" in self.disasters)
    @rule(sure=SURE)
    def the_provider_revokes_the_sign_ins(self, sure: int) -> None:
        if sure < 2:
            return
        self.world.tell("the provider revokes all sign-ins")
        self.world.provider.revoked.update(self.world.provider.sign_ins.values())

    @precondition(lambda self: "other provider" in self.disasters)
    @rule(how=st.sampled_from(["token", "token", "token", "sign in", "restart"]))
    def another_provider_uses_the_same_key(self, how: str) -> None:
        world = self.world
        if how == "token":
            self._do(world.intruder.wants_a_token)
        elif how == "restart":
            self._do(lambda: world.kill(world.intruder))
        else:
            credential = world.other.new_credential("refresh")
            self._do(lambda: world.intruder.signs_in(credential))

    @precondition(lambda self: "deployed" in self.disasters)
    @rule(which=WHICH, kind=st.sampled_from(["refresh", "code", "before"]))
    def another_credential_is_deployed(self, which: int, kind: str) -> None:
        """A process is restarted with another configured credential, a new one or one from before."""
        world = self.world
        known = world.configured[which % len(world.configured)]
        configured = known if kind == "before" else world.provider.new_credential(kind)
        self._do(lambda: world.kill(self._process(which), configured))

    @rule(which=WHICH, hits=st.lists(HITS, min_size=1, max_size=3), how=WHICH, spent=SPENT, then=SURE)
    def faults_hit_refreshes(
        self, which: int, hits: list[tuple[str, str]], how: int, spent: bool, then: int
    ) -> None:
        """A refresh runs to a point, and something goes wrong; and again. `then` all others want a token."""
        for number, (point, fault) in enumerate(hits):
            op = self.refreshes_up_to(which + number, point, spent=spent)
            if op is not None:
                self._hit(op, fault, how)
            if then:
                self.everyone_wants_a_token(False, 8)
            if then and (self.world.wire or self.world.orphans):
                self.a_request_or_write_arrives_late()

    def refreshes_up_to(self, which: int, point: str, *, spent: bool = False) -> Op | None:
        """A process refreshes until it waits at this point. None if it does not get there."""
        process = self._process(which)
        if spent:
            self._do(lambda: self.world.jump(LIFETIME))
        self._do(process.wants_a_token)
        return self._reach(process, point)

    @rule(which=WHICH, kind=KIND, hit=HITS, how=WHICH, again=st.booleans())
    def a_fault_hits_a_sign_in(
        self, which: int, kind: str, hit: tuple[str, str], how: int, again: bool
    ) -> None:
        """Something goes wrong at a sign-in. `again`: the same credential is brought to the next process."""
        if self._signing_in() >= 3:
            return
        point, fault = hit
        process, credential = self._process(which), self._new_credential(kind)
        self._do(lambda: process.signs_in(credential))
        op = self._reach(process, "put" if point == "commit" else point)
        if op is not None:
            self._hit(op, fault, how)
        if again:
            self.all_processes_continue(6)
            other = self._process(which + 1)
            self._do(lambda: other.signs_in(credential))
            self.all_processes_continue(10)

    @rule(spent=SPENT, steps=st.integers(2, 12))
    def everyone_wants_a_token(self, spent: bool, steps: int) -> None:
        if spent:
            self._do(lambda: self.world.jump(LIFETIME))
        for process in self.world.processes:
            self._do(process.wants_a_token)
        self.all_processes_continue(steps)

    @rule(which=WHICH, spent=SPENT)
    def a_refresh_works(self, which: int, spent: bool) -> None:
        self.refreshes_up_to(which, "none", spent=spent)

    def _reach(self, process: Process, point: str) -> Op | None:
        for _ in range(12):
            for op in self.world.ops:
                if op.process is process and op.what == point:
                    return op
            self._do(lambda: _continue(self.world, process))
        return None

    def _hit(self, op: Op, fault: str, how: int) -> None:
        world, wrong = self.world, list(op.fates)[1:]
        if fault in op.fates:
            self._do(lambda: op.end(fault))
        elif fault == "late":
            self.loop.run_until_complete(world.pass_time(31.0))
            self._do(op.work)
        elif fault == "lapse" and world.leases:
            self._do(world.lapse)
        elif fault == "killed" or not wrong:
            self._do(lambda: world.kill(op.process))
        else:
            self._do(lambda: op.end(wrong[how % len(wrong)]))

    @invariant()
    def what_must_hold(self) -> None:
        with self._with_story():
            self.world.check()
            assert not self.unhandled, self.unhandled

    @contextlib.contextmanager
    def _with_story(self) -> Iterator[None]:
        """Add the story so far to a failure."""
        try:
            yield
        except AssertionError as error:
            error.add_note("\n".join(["", "The events that led to this:", *self.world.story]))
            raise

    def teardown(self) -> None:
        try:
            if not self.world.broken:
                self.world.tell("-- the end --")
                with self._with_story():
                    self.loop.run_until_complete(Healing(self.world).run())
                self.what_must_hold()
        finally:
            self.loop.run_until_complete(self.world.end())
            self.reached.update(self.world.reached)
            self.loop.close()


def _continue(world: World, process: Process) -> None:
    for op in world.ops:
        if op.process is process and op.work():
            return
