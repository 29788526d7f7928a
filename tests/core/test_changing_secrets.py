"""Secrets that change while the program runs: read for each request. A change lifts a refusal (rule 12)."""

from __future__ import annotations

import asyncio
import itertools
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from _moments import beside, refused
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, success
from _scripted_store import Gate, ScriptedStore

from tokensession import (
    ClientRejected,
    ConfigurationError,
    GrantRejected,
    NotSent,
    OutcomeUnknown,
    Policy,
    TokenSessionError,
)
from tokensession.providers import ClientAuth, Credential, OAuth2, TokenRequest
from tokensession.providers.secret_values import read_secret
from tokensession.testing import FakeClock, token_response

INVALID_CLIENT = token_response({"error": "invalid_client"}, 401)


class Vault:
    """Has a secret, and counts how often it is asked."""

    def __init__(self, secret: str = "old") -> None:
        self.secret = secret
        self.asked = 0
        self.fault: Exception | None = None

    async def __call__(self) -> str:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        return self.secret


def asked_before_each_claim(vault: Vault, store: ScriptedStore) -> list[int]:
    """How often the vault had been asked when each claim began. It grows."""
    asked: list[int] = []

    async def claiming() -> None:
        asked.append(vault.asked)

    store.steps["claim"] = claiming
    return asked


def provider(secret: Any, **changes: Any) -> OAuth2:
    settings: dict[str, Any] = {
        "token_url": "https://id.example.com/token",
        "client_id": "client",
        "client_secret": secret,
        "auth": ClientAuth.post(),
        "refresh_token": "configured-token",
    }
    return OAuth2(**settings | changes)


def test_a_secret_in_a_file_is_read_for_each_request(tmp_path: Path) -> None:
    async def main() -> None:
        file = tmp_path / "secret"
        file.write_text("one\n")
        rig = Rig(success(1), success(2), provider=provider(file))
        await rig.access()
        assert "client_secret=one" in rig.sent()
        file.write_text("two\n")
        rig.clock.advance(LIFETIME)
        await rig.access()
        assert "client_secret=two" in rig.sent()

    run(main)


def test_a_fresh_token_asks_for_no_secret() -> None:
    async def main() -> None:
        vault = Vault()
        rig = Rig(success(1), provider=provider(vault))
        await rig.access()
        asked = vault.asked
        for _ in range(10):
            await rig.access()
        assert vault.asked == asked

    run(main)


@pytest.mark.parametrize("kind", ["file", "function", "assertion", "key"])
def test_a_new_secret_lifts_the_pause_after_a_client_fault(kind: str, tmp_path: Path) -> None:
    """Without a restart, ten seconds after the fault. The same secret stays paused."""
    from joserfc.jwk import ECKey

    async def main() -> None:
        old, new = (ECKey.generate_key("P-256").as_pem(private=True).decode() for _ in range(2))
        if kind != "key":
            old, new = "wrong", "right"
        vault, file = Vault(old), tmp_path / "secret"
        file.write_text(old)
        auth = {
            "assertion": ClientAuth.assertion(vault),
            "key": ClientAuth.private_key_jwt(key=vault, algorithm="ES256"),
        }.get(kind)
        made = provider(None, auth=auth) if auth else provider(file if kind == "file" else vault)
        rig = Rig(INVALID_CLIENT, success(1), provider=made)
        await refused(ClientRejected, rig.access())
        rig.clock.advance(12)
        await refused(ClientRejected, rig.access())
        assert rig.token_requests == 1
        vault.secret = new
        file.write_text(new)
        rig.clock.advance(2)
        assert await rig.access() == "access-1"
        assert rig.token_requests == 2

    run(main)


def test_a_changed_file_lifts_a_remembered_rejection_in_every_process(tmp_path: Path) -> None:
    """Of exactly this request. The old secret stays rejected."""

    async def main() -> None:
        file = tmp_path / "secret"
        file.write_text("old")
        rig = Rig(invalid_grant(), success(1), provider=provider(file))
        await refused(GrantRejected, rig.access())
        rig.clock.advance(60)
        old = beside(rig, provider=provider("old"))
        await refused(GrantRejected, old.access())
        file.write_text("new")
        rig.clock.advance(60)
        assert await rig.access() == "access-1"

    run(main)


def changing(kind: str, clock: FakeClock) -> OAuth2:
    """A provider with something that a function makes anew."""
    numbers = itertools.count()

    def new() -> str:
        return f"signed-{next(numbers)}"

    async def later() -> str:
        return new()

    return {
        "one-time value": lambda: provider(new),
        "async": lambda: provider(later),
        "time in seconds": lambda: provider(lambda: f"signed-{int(clock.wall())}"),
        "Basic": lambda: provider(new, auth=ClientAuth.basic()),
        "assertion": lambda: provider(None, auth=ClientAuth.assertion(new)),
        "signing secret": lambda: provider(new, auth=ClientAuth.client_secret_jwt()),
        "extra field": lambda: provider("s", extra={"pin": new}),
    }[kind]()


@pytest.mark.parametrize("answer", ["client fault", "rejected"])
@pytest.mark.parametrize(
    "kind",
    ["one-time value", "async", "time in seconds", "Basic", "assertion", "signing secret", "extra field"],
)
def test_a_secret_that_is_new_each_time_is_no_request_loop(kind: str, answer: str) -> None:
    """Such as Apple's client secret. A rejected refresh token stays rejected, whatever the secret is.

    A fault of the client may be mended by the next value, so that is tried: 10 s later, then 20, up to 300.
    """

    async def main() -> None:
        clock = FakeClock(jitter=0.0)
        rig = Rig(provider=changing(kind, clock), clock=clock)
        rig.transport.script(*[INVALID_CLIENT if answer == "client fault" else invalid_grant()] * 200)
        at: list[float] = []
        while clock.boot() < 2 * 3600:
            before = rig.token_requests
            await refused(TokenSessionError, rig.access())
            at += [clock.boot()] * (rig.token_requests - before)
            clock.advance(5)
        if answer == "rejected":
            assert len(at) == 1
        else:
            pauses = [after - before for before, after in itertools.pairwise(at)]
            assert pauses == [10, 20, 40, 80, 160, *[300] * (len(pauses) - 5)]
            assert len(pauses) > 20

    run(main)


def test_client_faults_count_against_the_limit_of_requests_in_an_hour() -> None:
    """Rule 30: over all processes."""

    async def main() -> None:
        policy, clock = Policy(retry_within=0, requests_per_hour=4), FakeClock(jitter=0.0)
        one = Rig(provider=changing("one-time value", clock), clock=clock, policy=policy)
        assertion = changing("assertion", clock)
        other = beside(one, provider=assertion, policy=policy, transport=one.transport)
        one.transport.script(*[INVALID_CLIENT] * 50)
        for _ in range(3600):
            await refused(TokenSessionError, one.access(), other.access())
            clock.advance(1)
        assert 3 <= one.token_requests <= 4

    run(main)


def test_requests_of_a_provider_that_does_not_say_what_stays_the_same_are_no_loop_either() -> None:
    """Each one looks like another, so nothing that is remembered matches it."""

    class Signed(OAuth2):
        def request(self, credential: Credential) -> TokenRequest:
            request = super().request(credential)
            return replace(request, headers=(*request.headers, ("X-Id", uuid.uuid4().hex)))

        def request_fingerprint(self, credential: Credential) -> str:
            return uuid.uuid4().hex

    async def main() -> None:
        settings = {"token_url": "https://id.example.com/token", "client_id": "c", "client_secret": "s"}
        for answer in (INVALID_CLIENT, invalid_grant()):
            rig = Rig(*[answer] * 100, provider=Signed(**settings, refresh_token="dead"))
            for _ in range(3600):
                await refused(TokenSessionError, rig.access())
                rig.clock.advance(1)
            assert rig.token_requests <= 17

    run(main)


def test_a_fault_is_remembered_for_what_was_sent_and_not_for_what_was_decided() -> None:
    """The secret may change in between: the one that was not sent is not held to be refused."""

    async def main() -> None:
        vault, store = Vault("decided"), ScriptedStore()
        gate = Gate()
        store.steps["claim"] = gate
        rig = Rig(INVALID_CLIENT, success(1), provider=provider(vault), store=store)
        asking = rig.ask()
        await gate.arrived.wait()
        vault.secret = "sent"
        rig.clock.advance(2)
        gate.open.set()
        await refused(ClientRejected, asking)
        rig.clock.advance(30)
        await refused(ClientRejected, rig.access())
        assert rig.token_requests == 1
        vault.secret = "decided"
        rig.clock.advance(2)
        assert await rig.access() == "access-1"

    run(main)


class Hanging:
    """A function that blocks its thread until it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = threading.Event()

    def __call__(self) -> str:
        self.calls += 1
        assert self.go.wait(60)
        return "s"


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    while not condition():
        await asyncio.sleep(0)


def test_a_secret_that_hangs_is_read_once_at_a_time_and_holds_no_thread_of_others() -> None:
    """Rule 31. Nothing was sent, so no caller is told that the outcome is unknown."""

    async def main() -> None:
        hanging = Hanging()
        before = threading.active_count()
        rigs = [Rig(success(1), provider=provider(hanging), clock=FakeClock()) for _ in range(3)]
        for _ in range(3):
            for rig in rigs:
                asking = rig.ask()
                while not asking.done():
                    await let_tasks_run()
                    rig.clock.advance(1)
                await refused(NotSent, asking, match="could not be read within 5 s")
        assert (hanging.calls, threading.active_count()) == (1, before + 1)
        assert await Rig(success(1), provider=provider(lambda: "s")).access() == "access-1"
        hanging.go.set()
        await until(lambda: threading.active_count() == before)
        rigs[0].clock.advance(60)
        assert await rigs[0].access() == "access-1"

    run(main)


def test_a_caller_whose_time_ends_while_a_secret_is_read_is_told_that_nothing_was_sent() -> None:
    async def main() -> None:
        hanging, clock = Hanging(), FakeClock()
        policy = Policy(connect_timeout=100)
        rig = Rig(provider=provider(hanging), clock=clock, policy=policy)
        asking = rig.ask()
        await until(lambda: hanging.calls)
        clock.advance(21)
        await refused(NotSent, asking, match="still being read")
        hanging.go.set()
        await rig.source.aclose()

    run(main)


def test_a_secret_that_hangs_hides_no_token_in_the_store() -> None:
    """Rules 19 and 21: not one that is there, and not one that comes while the secret is read."""

    async def main() -> None:
        healthy = Rig(success(1), success(2), provider=provider("s"), clock=FakeClock())
        hanging = Hanging()
        early = beside(healthy, provider=provider(hanging))
        asking = early.ask()
        await until(lambda: hanging.calls)
        await healthy.access()
        healthy.clock.advance(1)
        assert await asking == "access-1"
        assert await beside(healthy, provider=provider(hanging)).access() == "access-1"
        old = await early.source.token()
        await healthy.source.refresh(old)
        assert (await early.source.refresh(old)).access_token == "access-2"
        assert hanging.calls == 1
        hanging.go.set()

    run(main)


def test_each_reason_why_a_secret_cannot_be_used_is_told_and_a_repaired_one_is_used_at_once(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        file = tmp_path / "secret"
        rig = Rig(success(1), provider=provider(file))
        file.write_text("a\x00b")
        await refused(ConfigurationError, rig.access(), match="unprintable")
        rig.clock.advance(2)
        file.write_text("")
        await refused(NotSent, rig.access(), match="is empty")
        rig.clock.advance(2)
        file.write_text("a\x00b")
        await refused(ConfigurationError, rig.access(), match="unprintable")
        rig.clock.advance(2)
        file.write_bytes(b"\xef\xbb\xbfright\r\n")
        assert await rig.access() == "access-1"
        assert "client_secret=right&" in rig.sent() + "&"

    run(main)


@pytest.mark.parametrize("kind", ["file", "function", "hangs"])
def test_a_secret_that_cannot_be_read_sends_nothing_and_is_tried_again(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        vault, file = Vault("s"), tmp_path / "secret"
        vault.fault = RuntimeError("sealed")

        async def hangs() -> str:
            await asyncio.Event().wait()
            return "never"

        value: Any = {"file": file, "function": vault, "hangs": hangs}[kind]
        clock = FakeClock()
        rig = Rig(success(1), provider=provider(value), clock=clock)
        asking = rig.ask()
        while not asking.done():
            await let_tasks_run()
            if kind == "hangs":
                clock.advance(1)
        with pytest.raises(NotSent, match=r"client_secret is not available|could not be read within 5 s"):
            await asking
        assert rig.token_requests == 0
        state = await rig.stored()
        assert state is None or state.failures is None
        if kind != "hangs":
            vault.fault = None
            file.write_text("there")
            clock.advance(5)
            assert await rig.access() == "access-1"

    run(main)


def test_callers_wait_through_a_short_failure_of_the_vault() -> None:
    async def main() -> None:
        vault = Vault("s")
        vault.fault = RuntimeError("sealed")
        rig = Rig(success(1), provider=provider(vault), policy=Policy())
        asking = rig.ask()
        for _ in range(200):
            await asyncio.sleep(0)
        assert not asking.done()
        vault.fault = None
        while not asking.done():
            rig.clock.advance(0.5)
            await let_tasks_run()
        assert await asking == "access-1"

    run(main)


def test_a_token_in_the_store_is_served_although_a_secret_cannot_be_read() -> None:
    """Rule 19: another process has had no such trouble."""

    async def main() -> None:
        rig = Rig(success(1), provider=provider("s"))
        await rig.access()
        vault = Vault("s")
        vault.fault = RuntimeError("sealed")
        assert await beside(rig, provider=provider(vault)).access() == "access-1"

    run(main)


def test_a_function_that_returns_no_text_is_a_mistake_of_the_configuration() -> None:
    async def main() -> None:
        rig = Rig(provider=provider(lambda: 7))
        await refused(ConfigurationError, rig.access(), match="client_secret must be a string, not an int")
        assert rig.token_requests == 0

    run(main)


def test_a_code_is_not_noted_as_sent_if_its_secret_cannot_be_read() -> None:
    async def main() -> None:
        vault = Vault("s")
        vault.fault = RuntimeError("sealed")
        rig = Rig(success(1), provider=provider(vault, refresh_token=None))
        await refused(NotSent, rig.source.sign_in(code="co-1"))
        assert await rig.stored() is None
        vault.fault = None
        assert (await rig.source.sign_in(code="co-1")).access_token == "access-1"

    run(main)


def test_a_new_assertion_does_not_lift_a_rejection_and_a_new_key_does(tmp_path: Path) -> None:
    """Each request has another assertion."""
    from joserfc.jwk import ECKey

    async def main() -> None:
        file = tmp_path / "key.pem"
        file.write_text(ECKey.generate_key("P-256").as_pem(private=True).decode())
        auth = ClientAuth.private_key_jwt(key=file, algorithm="ES256")
        rig = Rig(invalid_grant(), success(1), provider=provider(None, auth=auth))
        for _ in range(3):
            await refused(GrantRejected, rig.access())
            rig.clock.advance(3600)
        assert rig.token_requests == 1
        file.write_text(ECKey.generate_key("P-256").as_pem(private=True).decode())
        assert await rig.access() == "access-1"

    run(main)


def test_check_looks_at_the_secret_as_it_is_now(tmp_path: Path) -> None:
    async def main() -> None:
        file = tmp_path / "secret"
        file.write_text("old")
        rig = Rig(invalid_grant(), provider=provider(file))
        await refused(GrantRejected, rig.access())
        await refused(GrantRejected, rig.source.check())
        file.write_text("new")
        rig.clock.advance(10)
        await rig.source.check()
        file.unlink()
        await refused(NotSent, rig.source.check(), match="FileNotFoundError")

    run(main)


def test_a_secret_that_changes_while_the_claim_is_awaited_is_sent_as_it_is_then() -> None:
    """It is read again right before the request, if another process had the claim for a while."""

    async def main() -> None:
        vault, store = Vault("old"), ScriptedStore()
        gate = Gate()
        store.steps["claim"] = gate
        rig = Rig(success(1), provider=provider(vault), store=store)
        asking = rig.ask()
        await gate.arrived.wait()
        vault.secret = "new"
        rig.clock.advance(2)
        gate.open.set()
        assert await asking == "access-1"
        assert "client_secret=new" in rig.sent()

    run(main)


def test_a_vault_that_fails_at_times_does_not_have_a_wrong_secret_sent_more_often() -> None:
    """In twenty minutes, with a caller every second: no more token requests than if it never fails."""

    async def sent_with(failing: bool) -> int:
        vault = Vault("wrong")
        rig = Rig(*[INVALID_CLIENT] * 200, provider=provider(vault), policy=Policy(retry_within=0))
        for second in range(1200):
            vault.fault = OSError("away") if failing and second % 30 < 2 else None
            with pytest.raises(TokenSessionError):
                await rig.access()
            rig.clock.advance(1)
        return rig.token_requests

    async def main() -> None:
        assert await sent_with(failing=True) <= await sent_with(failing=False) <= 6

    run(main)


def test_a_function_that_returns_something_to_await_serves_all_who_wait() -> None:
    """Each of them needs one of its own: Python awaits a coroutine once."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    async def fetch() -> str:
        return "secret"

    def secret() -> Any:
        begun.release()
        go_on.wait()
        return fetch()

    async def main() -> None:
        waiting = [asyncio.ensure_future(read_secret("client_secret", secret)) for _ in range(5)]
        await asyncio.to_thread(begun.acquire)
        go_on.set()
        assert await asyncio.gather(*waiting) == ["secret"] * 5

    run(main)


def test_a_refresh_reads_a_secret_once_and_before_it_claims_the_key() -> None:
    """One that hangs would hold up all other processes."""

    async def main() -> None:
        vault, store = Vault("s"), ScriptedStore()
        asked = asked_before_each_claim(vault, store)
        rig = Rig(*[success(n) for n in (1, 2, 3)], provider=provider(vault), store=store)
        await rig.access()
        rig.clock.advance(LIFETIME)
        await rig.access()
        assert (asked, vault.asked) == ([1, 2], 2)
        await rig.source.sign_in(refresh_token="another")
        assert vault.asked == 3

    run(main)


def test_a_secret_is_read_before_the_claim_of_a_second_attempt_too() -> None:
    async def main() -> None:
        vault, store = Vault("s"), ScriptedStore()
        asked = asked_before_each_claim(vault, store)
        answers = (token_response(b"", status=500), success(1))
        rig = Rig(*answers, provider=provider(vault), store=store, policy=Policy())
        asking = rig.ask()
        while not asking.done():
            await let_tasks_run()
            rig.clock.advance(0.1)
        assert await asking == "access-1"
        assert (asked, vault.asked) == ([1, 2], 2)

    run(main)


def test_each_request_has_an_assertion_of_its_own() -> None:
    """Of a code that is sent again too, and of a sign-in just after a refresh."""

    async def main() -> None:
        auth = ClientAuth.client_secret_jwt()
        lost = OutcomeUnknown("The answer was lost.")
        rig = Rig(success(1), lost, success(2), provider=provider("s" * 32, auth=auth))
        await rig.access()
        await rig.source.sign_in(code="co-1")
        sent = [parse_qs(request.body.decode())["client_assertion"][0] for request in rig.transport.requests]
        assert len(sent) == len(set(sent)) == 3

    run(main)


def test_probes_take_no_secret_from_a_running_refresh() -> None:
    async def main() -> None:
        store, probes = ScriptedStore(), []

        async def slow() -> str:
            for _ in range(10):
                await asyncio.sleep(0)
            return "s"

        async def probing() -> None:
            probes.append(asyncio.ensure_future(rig.source.check()))
            for _ in range(5):
                await asyncio.sleep(0)

        store.steps["claim"] = probing
        rig = Rig(success(1), provider=provider(slow), store=store)
        assert await rig.access() == "access-1"
        assert len(probes) == 1, "claimed once"
        await asyncio.gather(*probes)

    run(main)


def test_closing_ends_the_wait_for_a_secret_at_once() -> None:
    """Rule 20. Nothing has left."""

    async def main() -> None:
        async def hangs() -> str:
            await asyncio.Event().wait()
            return "never"

        rig = Rig(provider=provider(hangs))
        asking = rig.ask()
        for _ in range(20):
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(rig.source.aclose())
        await refused(NotSent, asking, match="still being read")  # the clock stands still
        await closing

    run(main)
