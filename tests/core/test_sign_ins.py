"""Sign-ins that overlap with each other, with sign-outs, or with a failing store: the last call wins."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from _moments import (
    beside,
    close,
    corrupt,
    held_claim,
    holding,
    killed,
    let_pass,
    refresh_token_in,
    refresh_tokens,
    refused,
    state_in,
    under_way,
    wait_in_vain_for_the_claim,
)
from _rig import LIFETIME, Rig, begun, invalid_grant, let_tasks_run, run, state_of, success
from _scripted_store import Gate, Step, fail, scripted
from _several import Processes, known, signed_in_unsaved

from tokensession import (
    ClaimTimeout,
    GrantRejected,
    SignedOut,
    StoreUnavailable,
    sign_out,
)
from tokensession.events import Saved, SaveFailed, SignedIn, SignInStarted
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import FileStore, MemoryStore, Record, SQLiteStore
from tokensession.testing import FakeClock, Paused, token_response
from tokensession.token import fingerprint


@pytest.mark.parametrize("then", ["sign in", "sign out"])
@pytest.mark.parametrize("damage", [{}, {"load": corrupt}], ids=["sound", "damaged"])
def test_f20_f27_a_sign_in_that_is_stored_late_does_not_replace_a_later_change(
    damage: dict[str, Step], then: str
) -> None:
    """Another process signs in or out before it. A damaged record had no version to compare with."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps |= damage
        await signed_in_unsaved(rig, store)
        other = beside(rig, success(2)).source
        await (other.sign_in(refresh_token="two") if then == "sign in" else other.sign_out())
        await let_pass(clock, 1)
        if then == "sign in":
            assert (await rig.stored_access(), await rig.access()) == ("access-2", "access-2")
        else:
            assert (await state_in(rig)).signed_out
            await refused(SignedOut, rig.access())

    run(main)


def test_f20_f27_a_sign_in_that_is_stored_late_does_not_replace_a_later_one_of_its_own_process() -> None:
    """Its write is running when the second sign-in is stored."""

    async def main() -> None:
        rig, store, _ = scripted(success(1), success(2), success(3))
        await signed_in_unsaved(rig, store)
        gate = store.steps["put"] = Gate()
        caller = await under_way(rig.source.refresh(), gate)  # it saves first
        store.steps.clear()
        await rig.source.sign_in(refresh_token="two")
        assert await rig.stored_access() == "access-2"
        gate.open.set()
        await asyncio.gather(caller, return_exceptions=True)
        await let_tasks_run()
        assert "refresh-1" not in refresh_tokens(rig)

    run(main)


def test_f20_f27_a_sign_in_that_was_stored_despite_an_error_does_not_replace_its_successor() -> None:
    """Another process has rotated its token, and the spent refresh token is not written over that."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        await signed_in_unsaved(rig, store, at="stored")
        assert (await rig.stored_access(), rig.source.snapshot().unsaved) == ("access-1", True)
        other = beside(rig, success(2))
        await other.source.refresh()
        assert refresh_tokens(other) == ["refresh-1"]
        await let_pass(clock, 1)
        assert await rig.stored_access() == "access-2"
        assert (await rig.access(), rig.source.snapshot().unsaved) == ("access-2", False)

    run(main)


def test_f27_a_sign_in_that_was_stored_despite_an_error_is_found_and_not_written_again() -> None:
    """The next try finds its own record, so it is saved, and no other process is disturbed."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        await signed_in_unsaved(rig, store, at="stored")
        record = await store.load("account")
        await let_pass(clock, 1)
        assert await store.load("account") == record
        assert [type(event) for event in rig.events] == [SignInStarted, SaveFailed, SignedIn, Saved]
        assert not rig.source.snapshot().unsaved

    run(main)


@pytest.mark.parametrize("lost", [False, True], ids=["an older sign-in", "nothing"])
def test_f27_f52_a_sign_in_that_is_stored_late_replaces_what_is_older_and_a_loss(lost: bool) -> None:
    """A refresh of the sign-in before is older. A missing record is no sign-out, which leaves a tombstone."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        await rig.access()
        await signed_in_unsaved(rig, store)
        if lost:
            await store.delete("account")
        else:
            await beside(rig, success(3)).source.refresh()
        assert await rig.stored_access() == (None if lost else "access-3")
        await let_pass(clock, 1)
        assert (await rig.stored_access(), await rig.access()) == ("access-2", "access-2")
        assert not rig.source.snapshot().unsaved

    run(main)


def test_f27_of_two_sign_ins_that_are_stored_late_the_second_stays() -> None:
    """Whenever the first one's write ends, the second one replaces it."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        for name in ("one", "two"):
            await signed_in_unsaved(rig, store, name)
        gate = store.steps["put"] = Gate()
        clock.advance(1)
        await gate.arrived.wait()
        gate.open.set()
        await let_pass(clock, 1)
        assert (await rig.stored_access(), await rig.access()) == ("access-2", "access-2")
        assert not rig.source.snapshot().unsaved

    run(main)


@pytest.mark.parametrize("first", ["refresh", "sign in"])
def test_f27_an_unsaved_refresh_holds_its_claim_until_the_sign_in_after_it_is_stored(first: str) -> None:
    """The stored refresh token is spent, so no other process may send it."""

    async def main() -> None:
        paused, response = Paused(success(2)), Paused(success(3))
        rig, store, clock = scripted(success(1), paused, response)
        await rig.access()
        caller = await under_way(rig.source.refresh(), paused)
        if first == "refresh":
            store.steps["commit"] = fail
            paused.release()
            await caller
        signing_in = asyncio.create_task(rig.source.sign_in(code="new"))
        if first == "sign in":
            await wait_in_vain_for_the_claim(clock)
        await response.arrived.wait()
        noted = await store.load("account")
        store.steps |= {"put": fail, "commit": fail}
        response.release()
        await signing_in
        paused.release()
        await asyncio.gather(caller, return_exceptions=True)
        assert (await store.load("account"), rig.source.snapshot().unsaved) == (noted, True)
        other = beside(rig, invalid_grant())
        waiting = asyncio.create_task(other.source.refresh())
        await let_tasks_run()
        assert (other.token_requests, waiting.done()) == (0, False)
        store.steps.clear()
        await rig.source.aclose()
        assert (await waiting).access_token in ("access-2", "access-3")  # whichever was stored first
        assert (await rig.stored_access(), other.token_requests, store.has_claims()) == ("access-3", 0, False)

    run(main)


def test_f27_an_unsaved_refresh_of_the_new_sign_in_is_not_given_up() -> None:
    """It began before the sign-in returned, and its token is the only copy."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2, expires_in=1), success(3), rotates=False)
        await rig.access()
        others = await held_claim(store)
        stored = store.steps["stored"] = Gate()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await wait_in_vain_for_the_claim(clock)
        await stored.arrived.wait()  # stored, but the sign-in does not know it yet
        await others.abandon()
        clock.advance(LIFETIME)
        store.steps["commit"] = fail
        assert await rig.access() == "access-3"
        stored.open.set()
        await signing_in
        store.steps.clear()
        await rig.source.aclose()
        assert (await refresh_token_in(rig), store.has_claims()) == ("refresh-3", False)

    run(main)


def test_f63_a_refresh_token_that_works_once_is_not_sent_without_the_claim() -> None:
    """Another process may wait to send the same one. After two minutes the person is told to try again."""

    async def main() -> None:
        rig = await holding(success(2))
        others = await held_claim(rig.store)
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await wait_in_vain_for_the_claim(rig.clock, 120)
        await refused(ClaimTimeout, signing_in)
        await others.abandon()
        assert (await rig.source.sign_in(refresh_token="new")).access_token == "access-2"
        assert rig.token_requests == 2

    run(main)


def test_f41_f52_an_operator_signs_a_key_out_and_no_process_brings_it_back() -> None:
    """Without a provider. The configured credential counts as known, so a restart does not sign in either."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        ours = processes.start(refresh_token="configured")
        assert not await sign_out(processes.store, "account"), "there is nothing yet"
        await ours.access()
        assert await sign_out(processes.store, "account")
        assert not await sign_out(processes.store, "account"), "it is signed out already"
        processes.clock.advance(LIFETIME)
        await refused(SignedOut, ours.access(), processes.start(refresh_token="configured").access())
        await known(ours, refresh_token="configured")
        assert (await ours.source.sign_in(refresh_token="new")).access_token == "access-2"
        assert processes.sent == ["configured", "new"]

    run(main)


@pytest.mark.parametrize("late", [False, True], ids=["the refresh first", "the sign-out first"])
def test_f20_an_operators_sign_out_wins_against_a_refresh_that_is_running(late: bool) -> None:
    """The refresh is stored between its look and its write, or comes after it."""

    async def main() -> None:
        paused = Paused(success(2))
        rig, store, clock = scripted(success(1), paused)
        await rig.access()
        refreshing = await under_way(rig.source.refresh(), paused)
        gate = store.steps["put"] = Gate()
        signing_out = await under_way(sign_out(store, "account"), gate)
        store.steps.clear()
        for step in (gate.open.set, paused.release) if late else (paused.release, gate.open.set):
            step()
            await let_tasks_run()
        assert await signing_out
        await asyncio.wait([refreshing])
        clock.advance(LIFETIME)
        await refused(SignedOut, rig.access())

    run(main)


@pytest.mark.parametrize("credential", [{"refresh_token": "new"}, {"code": "new"}], ids=["token", "code"])
def test_f41_f63_a_credential_that_a_sign_out_overtook_is_not_sent_again(credential: dict[str, str]) -> None:
    """It has been redeemed, and the sign-out wins. In another process it would be a reuse."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(paused, success(2))
        ours, other = processes.start(), processes.start()
        signing_in = await under_way(ours.source.sign_in(**credential), paused)
        await other.source.sign_out()
        paused.release()
        await refused(SignedOut, signing_in)
        for rig in (other, ours, processes.start()):
            await known(rig, **credential)
            await refused(SignedOut, rig.access())
        assert processes.sent == ["new"]

    run(main)


def test_f41_f63_a_configured_credential_that_a_sign_out_overtook_is_not_sent_again() -> None:
    """Not even when the sign-in after it dies, and the configured credential is all that is left."""

    async def main() -> None:
        paused = Paused(success(1))
        processes = Processes(paused, success(2), invalid_grant(), success(3))
        ours, other = processes.start(refresh_token="configured"), processes.start()
        caller = await under_way(ours.access(), paused)
        await other.source.sign_out()
        noted = list[bool]()

        async def look() -> None:
            record = await MemoryStore.load(processes.store, "account")
            assert record is not None
            noted.append(state_of(record, processes.clock).has_redeemed(fingerprint("configured")))

        processes.store.steps["abandon"] = look
        paused.release()
        await refused(SignedOut, caller)
        assert noted == [True], "before another process can have the claim"
        processes.store.steps.clear()
        await other.source.sign_in(refresh_token="newer")
        processes.clock.advance(LIFETIME)
        restarted = processes.start(refresh_token="configured")
        await refused(GrantRejected, ours.access(), other.access(), restarted.access())
        assert processes.sent == ["configured", "newer", "refresh-2"]

    run(main)


def test_f42_f63_a_sign_in_that_a_closed_event_loop_has_left_behind_holds_up_no_other() -> None:
    """The same code, in the next event loop, does not wait for the dead task."""
    paused = Paused(success(1))
    rig = Rig(paused, success(2), configured=None)
    killed(rig.source.sign_in(code="once"), paused)

    async def main() -> None:
        await known(rig, code="once")
        assert (await rig.source.sign_in(code="new")).access_token == "access-2"
        assert len(rig.source._coordinator._signing_in) == 0

    run(main)


class Deployment(Processes):
    """Processes of a server whose refresh tokens do not rotate, and can be revoked."""

    def __init__(self, *valid: str) -> None:
        super().__init__(*[self.answer] * 50)
        self.valid = set(valid)

    def answer(self, request: TokenRequest) -> TokenResponse:
        (name,) = parse_qs(request.body.decode())["refresh_token"]
        if name not in self.valid:
            return invalid_grant()
        return token_response({"access_token": f"{name}-{len(self.sent)}", "expires_in": LIFETIME})

    def start_with(self, secret: str) -> Rig:
        """A process that is configured with this refresh token."""
        return self.start(refresh_token=secret, rotates=False)


def test_f49_f63_k15_in_a_rolling_deployment_the_newer_configuration_wins() -> None:
    """A process of the old deployment that starts late uses the new secret's token, and starts nothing."""

    async def main() -> None:
        processes = Deployment("OLD", "NEW")
        old = processes.start_with("OLD")
        assert await old.access() == "OLD-1"
        new = processes.start_with("NEW")
        assert await new.access() == "NEW-2"
        late = processes.start_with("OLD")
        assert await late.access() == "NEW-2"
        for _ in range(3):
            processes.clock.advance(LIFETIME)
            assert {(await rig.access()).split("-")[0] for rig in (new, old, late)} == {"NEW"}
        processes.valid.discard("OLD")
        processes.clock.advance(LIFETIME)
        rigs = late, new, old, processes.start_with("NEW")
        assert {(await rig.access()).split("-")[0] for rig in rigs} == {"NEW"}
        assert processes.sent.count("OLD") == 1

    run(main)


def test_f49_f63_k15_a_configuration_that_was_rolled_back_is_used_if_the_newer_one_is_rejected() -> None:
    """The new secret was wrong, and the operator goes back to the old one."""

    async def main() -> None:
        processes = Deployment("OLD", "NEW")
        old = processes.start_with("OLD")
        await old.access()
        new = processes.start_with("NEW")
        await new.access()
        processes.valid.discard("NEW")
        processes.clock.advance(LIFETIME)
        await refused(GrantRejected, new.access())
        back = processes.start_with("OLD")
        for rig in (back, old, new):
            assert (await rig.access()).startswith("OLD")
            processes.clock.advance(1)
        assert processes.sent.count("NEW") == 2

    run(main)


def test_f49_f63_a_new_secret_that_was_rejected_at_once_disturbs_no_running_process() -> None:
    """The process with the wrong secret is told, and those with the right one go on."""

    async def main() -> None:
        processes = Deployment("OLD")
        old, wrong = processes.start_with("OLD"), processes.start_with("WRONG")
        for _ in range(3):
            assert (await old.access()).startswith("OLD")
            await refused(GrantRejected, wrong.access())
            processes.clock.advance(LIFETIME)
        assert (await old.access()).startswith("OLD")
        assert processes.sent.count("WRONG") == 1

    run(main)


def test_f49_f63_the_last_sixteen_configurations_are_remembered() -> None:
    """A process of any of them that starts late does not end the newest one's sign-in."""

    async def main() -> None:
        names = [f"secret-{number}" for number in range(17)]
        processes = Deployment(*names)
        for name in names:
            newest = await processes.start_with(name).access()
        for name in names[:-1]:
            assert await processes.start_with(name).access() == newest
        assert processes.sent == names
        assert len((await state_in(processes.start_with(names[0]))).superseded) == 16

    run(main)


def test_f49_k27_a_new_code_under_a_named_key_ends_the_refusal_of_the_running_service() -> None:
    """The worker that was restarted with it signs in, and within a second the others have its token."""

    async def main() -> None:
        processes = Processes(success(1), invalid_grant(), success(2))
        running = processes.start(code="code-1")
        await running.access()
        processes.clock.advance(LIFETIME)
        await refused(GrantRejected, running.access())
        assert await processes.start(code="code-2").access() == "access-2"
        processes.clock.advance(1)
        assert await running.access() == "access-2"
        assert processes.sent == ["code-1", "refresh-1", "code-2"]

    run(main)


@pytest.mark.parametrize("credential", ["code", "refresh_token"])
def test_f40_k27_with_the_default_key_another_credential_is_another_record(credential: str) -> None:
    """The key contains the credential, so the running service does not learn of it: name your keys."""

    async def main() -> None:
        processes = Processes(success(1), success(2))
        for number in (1, 2):
            rig = processes.start(key=None, **{credential: f"credential-{number}"})
            assert await rig.access() == f"access-{number}"
        assert len(await processes.store.keys()) == 2

    run(main)


class HangingRecords:
    """Records whose writes hang until `go` is set, and then fail until `failing` is false."""

    def __init__(self, records: Any) -> None:
        self._records = records
        self.arrived, self.go, self.failing = threading.Event(), threading.Event(), True

    def write(self, key: str, record: Record, expect: str | None) -> Record:
        if self.failing:
            self.arrived.set()
            self.go.wait(30)
            raise StoreUnavailable("The disk is full.")
        written: Record = self._records.write(key, record, expect)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)


@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
def test_f27_a_commit_that_fails_after_its_time_out_keeps_the_claim(
    kind: type[FileStore | SQLiteStore], tmp_path: Path
) -> None:
    """Its refresh token is spent, so no other process may send it."""

    async def main() -> None:
        clock = FakeClock(jitter=1.0)
        ours, theirs = (kind(tmp_path / "tokens", clock=clock) for _ in range(2))
        records = ours._claims._records = HangingRecords(ours._claims._records)
        rig, other = (Rig(success(1), store=store, clock=clock) for store in (ours, theirs))
        caller = asyncio.create_task(rig.access())
        await asyncio.to_thread(records.arrived.wait, 30)
        await let_tasks_run()
        await let_pass(clock, 10)  # store_timeout
        clock.advance(2)
        assert await caller == "access-1"
        records.go.set()
        for _ in range(2):  # runs after the write, and after what follows it
            await ours.load("account")
        waiting = asyncio.create_task(other.access())
        for _ in range(2):
            await theirs.load("account")
        await let_tasks_run()
        assert (other.token_requests, waiting.done()) == (0, False)
        records.failing = False
        await rig.source.aclose()  # this stores it
        while not waiting.done():
            clock.advance(0.01)
            await theirs.load("account")
        assert (await waiting, other.token_requests) == ("access-1", 0)
        await close(rig, other)

    run(main)


def test_a_sign_in_does_not_wait_for_a_token_that_has_just_been_saved() -> None:
    """The unsaved token held the claim when it asked, and does not any more when it looks."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        store.steps |= {"commit": fail, "put": fail}
        assert await rig.access() == "access-1"
        gate, loads = Gate(), 0

        async def second() -> None:
            nonlocal loads
            loads += 1
            if loads == 2:
                await gate()

        store.steps["load"] = second
        signing_in = await begun(rig.source.sign_in(refresh_token="by-a-person"))
        await gate.arrived.wait()
        del store.steps["commit"], store.steps["put"]
        clock.advance(5)
        await let_tasks_run()
        assert not rig.source.snapshot().unsaved
        gate.open.set()
        assert (await signing_in).access_token == "access-2"

    run(main)
