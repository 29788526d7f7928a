"""The end of a history: the faults stop, and every process must get a token, or a reason why it cannot."""

from __future__ import annotations

from _process import Process
from _world import LIFETIME, World

from tokensession import (
    ConfigurationError,
    GrantLost,
    GrantRejected,
    SignedOut,
    SignInRequired,
    TokenSessionError,
)
from tokensession._refresh.state import TokenState
from tokensession.token import Token

_PAUSES = [61.0] * 4 + [301.0] * 4 + [1000.0] * 4 + [3700.0] * 2 + [6 * 3700.0] * 2
"""How long a patient person waits between two tries: longer and longer, because pauses may be hours."""

Answer = Token | TokenSessionError


class Healing:
    """Runs a world without faults, and asks every process for a token."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self) -> None:
        world = self.world
        world.wire.clear()
        await self._until_idle()
        for process in world.everyone:
            process.clock.offset = 0.0
        # A failure may be remembered for a second. Who knows more than the store looks at it only when its
        # token is due.
        await world.pass_time(LIFETIME + 1 if self._is_behind() else 2.0)
        healthy = self._is_healthy()
        world.tell(f"the faults stop; the sign-in is {'' if healthy else 'not '}healthy")
        world.reached["healthy at the end"] += healthy
        for _ in range(2):
            answers = []
            for process in self._by_knowledge():
                answers.append(await self._answer(process))
                self._judge(process, answers[-1], healthy=healthy)
            await world.pass_time(LIFETIME + 1)
        if not all(isinstance(answer, Token) for answer in answers):
            await self._sign_in_again()
        for process in world.everyone:
            assert not process.running, f"{process.name}: these never end: {process.running}"

    def _by_knowledge(self) -> list[Process]:
        """The processes, and first those that know most."""
        return sorted(
            self.world.processes,
            key=lambda process: process.state.order if process.state is not None else (-1, -1),
            reverse=True,
        )

    def _is_behind(self) -> bool:
        """Whether a process has a higher state in memory than the store."""
        stored = self.world.state
        order = stored.order if stored is not None else (-1, -1)
        return any(
            process.state is not None and process.state.order > order for process in self.world.processes
        )

    def _is_healthy(self) -> bool:
        """Whether the highest state, wherever it is, has a refresh token that works."""
        world, stored = self.world, self.world.state
        if stored is not None and self._is_foreign(stored):
            return False
        known = [stored, *(process.state for process in world.processes)]
        states = [each for each in known if each is not None]
        top = max((each.order for each in states), default=None)
        highest = [each for each in states if each.order == top]
        if stored is not None and stored.order == top:
            highest = [stored]
        if all(each.token is None and not each.signed_out for each in highest):
            configured = {process.configured for process in world.processes}
            return all("-refresh-" in each and world.provider.works(each) for each in configured)
        return all(self._works(each) for each in highest)

    def _works(self, state: TokenState) -> bool:
        provider, token = self.world.provider, state.token
        if state.signed_out or token is None:
            return False
        return provider.works(token.refresh_token) or provider.works(state.previous)

    def _is_foreign(self, state: TokenState) -> bool:
        identity = state.identity
        if identity is None or state.token is None:
            return False
        return identity.client_id != self.world.provider.name

    def _judge(self, process: Process, answer: Answer, *, healthy: bool) -> None:
        """It is a token, or an error with a good reason."""
        world = self.world
        state = world.state
        if isinstance(answer, Token):
            return
        if isinstance(answer, ConfigurationError):
            foreign = state is not None and self._is_foreign(state)
            assert foreign, f"{process.name}: {answer}"
            return
        assert isinstance(answer, SignInRequired), f"{process.name}: {answer!r}"
        # A newly configured credential that is rejected does not end up on the older sign-in.
        rejected = len(world.configured) > 1 and not world.provider.works(process.configured)
        assert rejected or not healthy, f"{process.name} must not ask for a person: {answer}"
        self._check_reason(process, answer)

    def _check_reason(self, process: Process, error: SignInRequired) -> None:
        world = self.world
        if isinstance(error, SignedOut):
            # Or its process still remembers it: the store has another provider's sign-in by now.
            states = [world.state, process.state]
            assert any(state is not None and state.signed_out for state in states), str(error)
        elif isinstance(error, GrantLost):
            lost = any(each.unknown for each in world.sent) or world.interruptions or world.faults
            unreadable = "no token came back" in str(error)  # a code that was sent, and answered in no words
            assert lost or unreadable, "it says that a request was lost"
        elif isinstance(error, GrantRejected):
            assert any(each.rejected for each in world.sent), "it says that the credential was rejected"

    async def _answer(self, process: Process) -> Answer:
        """What a caller gets that keeps trying: a token that the API accepts, or an error that stays."""
        answer: Answer = TokenSessionError("not called")
        for pause in _PAUSES:
            process.answers.clear()
            process.wants_a_token()
            await self._until_idle()
            answer = process.answers[-1]
            if isinstance(answer, Token) and not self.world.provider.accepts(answer):
                process.gets_a_401(answer)
                await self._until_idle()
                answer = process.answers[-1]
            if isinstance(answer, Token) and self.world.provider.accepts(answer):
                return answer
            final = isinstance(answer, SignInRequired | ConfigurationError) and not hasattr(answer, "code")
            if final or (isinstance(answer, GrantRejected) and answer.certain):
                return answer
            await self._pass(pause)
        return answer

    async def _sign_in_again(self) -> None:
        process = self.world.processes[0]
        process.answers.clear()
        process.signs_in(self.world.provider.new_credential("refresh"))
        await self._until_idle()
        self.world.tell("a person has signed in again")
        await self._pass(LIFETIME + 1.0)
        for process in self._by_knowledge():
            answer = await self._answer(process)
            later = isinstance(answer, Token) or (self.world.losses and self.world.clocks_differ)
            assert later, f"{process.name} after a new sign-in: {answer!r}"

    async def _pass(self, seconds: float) -> None:
        self.world.tell(f"{seconds:g} s pass")
        await self.world.pass_time(seconds)
        await self._until_idle()

    async def _until_idle(self) -> None:
        """Let everything that is running succeed."""
        world = self.world
        for _ in range(2000):
            while world.orphans:
                world.write_late()
            await world.settle()
            moved = [op.work() for op in tuple(world.ops)]
            if any(moved):
                continue
            if not world.ops and not any(process.busy for process in world.everyone):
                assert world.holder is None, "an idle process holds the claim"
                return
            await world.pass_time(min(max(next(iter(world.clock.sleepers), 1.0), 0.01), 30.0))
        raise AssertionError(f"these never end: {world.ops}")
