"""One token request: what identifies it, when it counts as sent, and what becomes of each failure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from _loop import run

from tokensession._refresh.request import Sending, TokenRequests
from tokensession._refresh.state import TokenState
from tokensession._refresh.store_access import StoreAccess
from tokensession.errors import GrantLost, NotSent, OutcomeUnknown, StoreUnavailable, TokenSessionError
from tokensession.policy import Policy
from tokensession.providers import OAuth2
from tokensession.providers.protocol import Credential, Provider, TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, ScriptedTransport, token_response

REFRESH = Credential("refresh_token", "rt-1")
CODE = Credential("authorization_code", "co-1")
GOOD = token_response({"access_token": "at-1", "refresh_token": "rt-2", "expires_in": 3600})
DEAD = token_response({"error": "invalid_grant"}, status=400)
BUSY = token_response({}, status=500)
RESET = OutcomeUnknown("It was reset.")
USUAL: dict[str, Any] = {
    "token_url": "https://id.example.com/token",
    "client_id": "client-1",
    "client_secret": "secret-1",
    "redirect_uri": "https://app.example.com/back",
    "scope": "read",
    "auth": "post",
}


def requests(transport: Any = None, provider: Provider | None = None, **changes: Any) -> TokenRequests:
    return TokenRequests(
        provider or OAuth2(**USUAL | changes), transport or ScriptedTransport(), Policy(), FakeClock()
    )


def sending(made: TokenRequests, credential: Credential = REFRESH) -> Sending:
    access = StoreAccess("account", MemoryStore(clock=made.clock), made.policy, made.clock)
    return Sending(access, None, credential, TokenState(), None)


# -- what identifies it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credential", "changes", "same"),
    [
        (REFRESH, {}, True),
        (REFRESH, {"token_url": "https://id.example.com/token/"}, False),
        (REFRESH, {"token_url": "https://id.example.org/token"}, False),
        (REFRESH, {"client_id": "client-2"}, False),
        (REFRESH, {"client_secret": "secret-2"}, False),
        (REFRESH, {"scope": "read write"}, False),
        (REFRESH, {"auth": "basic"}, False),
        (REFRESH, {"redirect_uri": "https://app.example.com/other"}, True),  # it is not in this request
        (REFRESH, {"base_url": "https://api.example.com"}, True),
        (CODE, {"redirect_uri": "https://app.example.com/other"}, False),
        (CODE, {"scope": "read write"}, True),
    ],
)
def test_f21_a_request_is_identified_by_all_that_is_sent_and_nothing_else(
    credential: Credential, changes: dict[str, Any], same: bool
) -> None:
    """If a refusal is remembered and any of it changes, one more request is made."""
    usual, changed = requests().fingerprint(credential), requests(**changes).fingerprint(credential)
    assert (usual == changed) is same


def test_a_changed_secret_in_a_header_counts_too() -> None:
    one, other = (requests(auth="basic", client_secret=secret) for secret in ("secret-1", "secret-2"))
    assert one.fingerprint(REFRESH) != other.fingerprint(REFRESH)


def test_each_credential_has_a_request_of_its_own() -> None:
    made = requests()
    other = Credential("refresh_token", "rt-2")
    assert len({made.fingerprint(each) for each in (REFRESH, other, CODE)}) == 3


def test_f45_the_fingerprint_of_a_request_shows_no_secret() -> None:
    """It is stored, and may appear in logs."""
    shown = requests().fingerprint(REFRESH)
    assert len(shown) == 16
    assert set(shown) <= set("0123456789abcdef")


# -- when it counts as sent -------------------------------------------------------------------------------


class Hanging:
    """A transport that says that the request leaves, or not, and then never answers."""

    def __init__(self, *, leaves: bool) -> None:
        self.leaves = leaves

    async def send(
        self, request: TokenRequest, *, connect: float, total: float, on_sending: Any = None
    ) -> TokenResponse:
        if self.leaves:
            await on_sending()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


class WithoutHook:
    """A transport of your own, which does not say when a request leaves."""

    def __init__(self, outcome: TokenResponse | Exception) -> None:
        self.outcome = outcome

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(("leaves", "error"), [(False, NotSent), (True, OutcomeUnknown)])
@pytest.mark.parametrize(("single", "seconds"), [(True, 120), (False, 20)])
def test_f55_what_has_not_left_when_its_time_is_up_was_not_sent(
    leaves: bool, error: type[TokenSessionError], single: bool, seconds: float
) -> None:
    """A request that spends its credential has longer: its late answer is the only copy of the next one."""

    async def main() -> None:
        made = requests(Hanging(leaves=leaves))
        mark = sending(made)
        task = asyncio.create_task(made.send(REFRESH, single, mark))
        clock = made.clock
        assert isinstance(clock, FakeClock)
        await clock.slept()
        clock.advance(seconds - 0.1)
        await asyncio.sleep(0)
        assert not task.done()
        clock.advance(0.1)
        with pytest.raises(error):
            await task
        assert (mark.sent is not None) is leaves
        assert mark.listening == seconds

    run(main())


def test_a_transport_that_does_not_say_when_a_request_leaves_counts_as_sending_from_the_start() -> None:
    async def main() -> None:
        for outcome, error in (
            (GOOD, None),
            (RESET, OutcomeUnknown),
            (RuntimeError("a bug"), OutcomeUnknown),
        ):
            made = requests(WithoutHook(outcome))
            mark = sending(made)
            if error is None:
                assert (await made.send(REFRESH, True, mark)).token.access_token == "at-1"
            else:
                with pytest.raises(error):
                    await made.send(REFRESH, True, mark)
            assert mark.sent is not None

    run(main())


def test_if_the_mark_cannot_be_left_nothing_is_sent() -> None:
    class Full(MemoryStore):
        async def put(self, *_: Any, **__: Any) -> Any:
            raise StoreUnavailable("The disk is full.")

    async def main() -> None:
        transport = ScriptedTransport(GOOD)
        made = requests(transport)
        access = StoreAccess("account", Full(clock=made.clock), made.policy, made.clock)
        with pytest.raises(StoreUnavailable):
            await made.send(CODE, True, Sending(access, None, CODE, TokenState(), None))
        assert transport.sent == 0

    run(main())


# -- a code -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "sent", "error", "said"),
    [
        ([GOOD], 1, None, ""),
        ([RESET, GOOD], 2, None, ""),
        ([RESET, RESET, GOOD], 2, OutcomeUnknown, "failed too"),
        ([RESET, BUSY, GOOD], 2, OutcomeUnknown, "failed too"),
        ([RESET, NotSent("No connection."), GOOD], 1, OutcomeUnknown, "failed too"),
        ([RESET, DEAD, GOOD], 2, GrantLost, "probably spent it: It was reset."),
        ([BUSY, GOOD], 1, TokenSessionError, "500"),
        ([NotSent("No connection."), GOOD], 0, NotSent, "No connection."),
    ],
)
def test_f63_a_code_whose_answer_was_lost_is_sent_once_more_at_once_and_no_more(
    script: list[Any], sent: int, error: type[TokenSessionError] | None, said: str
) -> None:
    """Whatever the second answer is, the first request may have spent the code."""

    async def main() -> None:
        transport = ScriptedTransport(*script)
        made = requests(transport)
        mark = sending(made, CODE)
        if error is None:
            assert (await made.send(CODE, True, mark)).token.access_token == "at-1"
        else:
            with pytest.raises(error) as caught:
                await made.send(CODE, True, mark)
            assert said in str(caught.value)
        assert transport.sent == sent
        assert mark.noted is (sent > 0), "it is noted before it leaves"

    run(main())


def test_a_refresh_token_whose_answer_was_lost_is_not_repeated_here() -> None:
    """When it is sent again is for `decide` to say."""

    async def main() -> None:
        transport = ScriptedTransport(RESET, GOOD)
        made = requests(transport)
        mark = sending(made)
        with pytest.raises(OutcomeUnknown):
            await made.send(REFRESH, True, mark)
        assert (transport.sent, mark.noted) == (1, False)

    run(main())
