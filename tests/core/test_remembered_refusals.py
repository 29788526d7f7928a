"""Refusals that are remembered: which of them, for which request, for how long, and how to ask again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from _moments import beside, holding, keep_failing, lost, refused, state_in
from _rig import LIFETIME, Rig, invalid_grant, run, success

from tokensession import (
    ClientRejected,
    GrantLost,
    GrantRejected,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    SignedOut,
    SignInRequired,
    TokenSessionError,
    TokenUnavailable,
    UnexplainedRefusal,
)
from tokensession.events import RefreshFailed
from tokensession.providers import ClientAuth, OAuth2
from tokensession.providers.protocol import Credential, TokenRequest, TokenResponse
from tokensession.testing import token_response

MINUTE, HOUR = 60.0, 3600.0
USUAL: dict[str, Any] = {
    "token_url": "https://id.example.com/token",
    "client_id": "client",
    "client_secret": "client-secret",
    "refresh_token": "configured-token",
}


def refusal(code: str, status: int = 400) -> TokenResponse:
    """The provider refuses with this error code."""
    return token_response({"error": code}, status=status)


def unexplained() -> TokenResponse:
    """The provider refuses, and does not say why."""
    return token_response(b"", status=400)


def oauth2(**changed: Any) -> OAuth2:
    """The provider of `Rig`, with something changed in its configuration."""
    return OAuth2(**(USUAL | changed))


def pair(*script: Any, **options: Any) -> tuple[Rig, Rig]:
    """Two processes over one store, with one script for both. The token requests of either are both's."""
    one = Rig(*script, **options)
    return one, beside(one, transport=one.transport, **options)


@pytest.mark.parametrize("code", ["invalid_grant", "bad_refresh_token", "invalid_refresh_token"])
def test_f21_f57_a_rejection_is_remembered_for_good_after_one_request(code: str) -> None:
    """In all processes, after a restart too, and the error says to sign in again."""

    async def main() -> None:
        one, other = pair(refusal(code))
        await keep_failing(GrantRejected, one, other, times=48, pause=HOUR, match="Sign in again")
        await refused(SignInRequired, beside(one).access(), match="Sign in again")
        assert one.token_requests == 1

    run(main)


@pytest.mark.parametrize(
    "changed",
    [
        {"client_secret": "the-new-secret"},
        {"auth": ClientAuth.post()},
        {"token_url": "https://id.example.com/oauth/token"},
        {"refresh_token": "another-token"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_f57_a_remembered_rejection_is_bound_to_what_was_sent(changed: dict[str, str]) -> None:
    """When the configuration changes, one more request is made: the old one may have been the mistake."""

    async def main() -> None:
        old = Rig(invalid_grant(), provider=oauth2())
        await refused(GrantRejected, old.access())
        new = beside(old, invalid_grant(), provider=oauth2(**changed))
        await keep_failing(GrantRejected, new, times=3, pause=HOUR)
        await refused(GrantRejected, old.access())  # and the old configuration is still remembered
        assert (old.token_requests, new.token_requests) == (1, 1)
        corrected = beside(old, success(1), provider=oauth2(client_secret="the-right-one"))
        assert await corrected.access() == "access-1"

    run(main)


class Signing(OAuth2):
    """A provider whose requests differ each time, as those with a signed assertion do."""

    signed = 0

    def request(self, credential: Credential) -> TokenRequest:
        self.signed += 1
        request = super().request(credential)
        return replace(request, body=request.body + f"&client_assertion={self.signed}".encode())

    def request_fingerprint(self, credential: Credential) -> str:
        return f"client {credential.fingerprint}"


def test_a_rejection_is_remembered_though_each_request_is_signed_anew() -> None:
    """The provider says what stays the same until its configuration changes."""

    async def main() -> None:
        rig = Rig(invalid_grant(), provider=Signing(**USUAL))
        await keep_failing(GrantRejected, rig, times=3, pause=HOUR)
        assert rig.token_requests == 1

    run(main)


@pytest.mark.parametrize("rotates", [True, False], ids=["rotates", "does not rotate"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scope", "read"),
        ("client_id", "the-right-client"),
        ("token_url", "https://login.example.com/token"),
    ],
)
def test_f57_a_configuration_that_never_got_a_token_can_be_corrected(
    name: str, value: str, rotates: bool
) -> None:
    """A first sign-in with a wrong scope, client or server: the corrected one is not another identity's."""

    async def main() -> None:
        wrong = {"scope": "raed", "rotates": rotates}
        old = Rig(invalid_grant(), provider=oauth2(**wrong))
        await refused(GrantRejected, old.access())
        assert await beside(old, success(1), provider=oauth2(**wrong | {name: value})).access() == "access-1"

    run(main)


@pytest.mark.parametrize("changed", ["redirect_uri", "client_secret"])
def test_f57_a_code_that_was_rejected_is_sent_once_more_with_a_corrected_configuration(changed: str) -> None:
    """It was answered, so nothing came of it. With the same configuration it is never sent again."""

    async def main() -> None:
        wrong = {"code": "a-code", "refresh_token": None, "redirect_uri": "https://app.example.com/wrong"}
        old = Rig(invalid_grant(), provider=oauth2(**wrong))
        await keep_failing(GrantRejected, old, times=3, pause=MINUTE)
        assert old.token_requests == 1
        new = beside(old, success(1), provider=oauth2(**wrong | {changed: "https://right"}))
        assert await new.access() == "access-1"

    run(main)


def test_f57_a_rotated_refresh_token_that_is_rejected_is_tried_once_with_a_new_client_secret() -> None:
    """The secret was changed at the provider: after the deployment of the new one all is well."""

    async def main() -> None:
        old = await holding(invalid_grant(), provider=oauth2(), age=LIFETIME)
        await refused(GrantRejected, old.access())
        new = beside(old, success(2), provider=oauth2(client_secret="the-new-secret"))
        assert await new.access() == "access-2"
        assert "refresh_token=refresh-1" in new.sent()

    run(main)


@pytest.mark.parametrize(
    "code", ["invalid_token", "interaction_required", "login_required", "consent_required", "invalid_code"]
)
def test_f57_a_probable_rejection_is_tried_every_15_minutes_and_later_every_6_hours(code: str) -> None:
    """Callers are told to sign in at once. All processes together make one request per pause."""

    async def main() -> None:
        one, other = pair(*[refusal(code)] * 100)
        caught = await refused(SignInRequired, one.access(), match="Sign in again")
        assert isinstance(caught, GrantRejected)
        assert (caught.code, caught.certain) == (code, False)
        await keep_failing(GrantRejected, one, other, times=119, pause=MINUTE)
        assert one.token_requests == 8  # at 0, 15, ... 105 minutes
        await keep_failing(GrantRejected, one, other, times=61, pause=MINUTE)
        assert one.token_requests == 9  # at 120 minutes, and then after 6 hours
        await keep_failing(GrantRejected, one, other, times=72, pause=20 * MINUTE)
        assert one.token_requests == 9 + 4

    run(main)


def test_f57_a_probable_rejection_ends_with_the_first_success() -> None:
    """It is never final. Afterwards it counts from the beginning."""

    async def main() -> None:
        rejected = refusal("login_required")
        one, other = pair(rejected, rejected, success(1), *[rejected] * 9)
        await keep_failing(GrantRejected, one, other, times=2, pause=15 * MINUTE)
        assert [await one.access(), await other.access()] == ["access-1", "access-1"]
        assert one.token_requests == 3
        state = await state_in(one)
        assert (state.rejections, state.failures) == ((), None)
        one.clock.advance(LIFETIME)
        await keep_failing(GrantRejected, one, other, times=46, pause=MINUTE)
        assert one.token_requests == 3 + 4

    run(main)


def test_f57_a_probable_rejection_leaves_the_access_token_in_use() -> None:
    """The background refresh finds it, and callers get the valid token to its end."""

    async def main() -> None:
        rig = await holding(refusal("consent_required"), success(2), age=LIFETIME - 299)
        for _ in range(290):
            assert await rig.access() == "access-1"
            await rig.refreshed()
            rig.clock.advance(1)
        assert rig.token_requests == 2
        rig.clock.advance(610)
        assert await rig.access() == "access-2"

    run(main)


@pytest.mark.parametrize("rotates", [True, False], ids=["rotates", "does not rotate"])
def test_f57_one_that_is_probably_rejected_can_turn_out_to_be_rejected(rotates: bool) -> None:
    async def main() -> None:
        one, other = pair(refusal("invalid_token"), invalid_grant(), rotates=rotates)
        await keep_failing(GrantRejected, one, other, pause=15 * MINUTE)
        await keep_failing(GrantRejected, one, other, times=100, pause=HOUR)
        caught = await refused(GrantRejected, one.access(), match="invalid_grant")
        assert caught.certain
        assert one.token_requests == 2

    run(main)


@pytest.mark.parametrize(
    "answer",
    [
        token_response(b"", status=400),
        token_response(b"", status=401),
        token_response(b"<html>Bad request</html>", status=400),
        token_response({"message": "no"}, status=400),
    ],
    ids=["empty 400", "empty 401", "a page", "no code that we know"],
)
def test_f58_three_refusals_without_a_word_over_a_minute_are_probably_a_rejection(
    answer: TokenResponse,
) -> None:
    """The count and the pauses are in the store: 30 s for all processes, and then one in 15 minutes."""

    async def main() -> None:
        one, other = pair(*[answer] * 3, success(1))
        await refused(UnexplainedRefusal, one.access())
        for requests in (1, 2):
            await keep_failing(TokenUnavailable, one, other, times=30, pause=1)
            assert one.token_requests == requests
        error = await refused(GrantRejected, one.access())
        assert (error.code, error.certain) == ("", False)
        await keep_failing(GrantRejected, one, other, times=15, pause=MINUTE)
        assert one.token_requests == 3
        assert [await one.access(), await other.access()] == ["access-1", "access-1"]

    run(main)


def test_f58_refusals_without_a_word_count_only_in_a_row() -> None:
    """A gateway in trouble answers in many ways."""

    async def main() -> None:
        down = token_response(b"", status=503)
        one, other = pair(*[unexplained(), unexplained(), down] * 5, success(1))
        await keep_failing(TokenUnavailable, one, other, times=15, pause=40)
        assert [await one.access(), await other.access()] == ["access-1", "access-1"]

    run(main)


def test_f58_a_refusal_without_a_word_is_never_final() -> None:
    async def main() -> None:
        rig = await holding(*[unexplained()] * 30, success(2), age=LIFETIME)
        while rig.transport.left > 1:
            await refused(TokenSessionError, rig.access())
            rig.clock.advance(HOUR)
        rig.clock.advance(6 * HOUR)
        assert await rig.access() == "access-2"

    run(main)


def test_f58_a_refusal_without_a_word_after_a_lost_answer_is_probably_a_rejection() -> None:
    """Reuse may be answered so. The error says that the answer before got lost, and it is tried on."""

    async def main() -> None:
        one, other = pair(lost, unexplained(), unexplained(), success(1))
        await keep_failing(OutcomeUnknown, one, other, pause=2)
        caught = await refused(GrantLost, one.access(), match="no whole answer")
        assert not caught.certain
        await keep_failing(GrantLost, one, other, times=15, pause=MINUTE)
        assert one.token_requests == 2
        await keep_failing(GrantLost, one, other, times=15, pause=MINUTE)  # the second one, too
        assert one.token_requests == 3
        assert [await one.access(), await other.access()] == ["access-1", "access-1"]

    run(main)


def test_a_fault_of_the_client_says_when_the_next_token_request_may_be_made() -> None:
    async def main() -> None:
        rig = Rig(*[refusal("invalid_client", 401)] * 2)
        for pause in (60, 120):
            await refused(ClientRejected, rig.access())
            failed = [event for event in rig.events if isinstance(event, RefreshFailed)][-1]
            told = failed.next_attempt, rig.source.snapshot().retry_after
            assert told == (pytest.approx(pause), pytest.approx(pause))
            assert failed.ask_again < 2  # until then, callers look at the store now and then
            rig.clock.advance(pause - 1)
            assert rig.source.snapshot().retry_after == pytest.approx(1)
            await refused(ClientRejected, rig.access())
            rig.clock.advance(1)
        assert rig.token_requests == 2

    run(main)


@pytest.mark.parametrize("code", ["invalid_client", "unauthorized_client", "access_denied"])
def test_f57_a_fault_of_the_client_pauses_longer_each_time_and_silences_no_other_process(code: str) -> None:
    """The pause grows from a minute up to an hour. A process with the right configuration is not delayed."""

    async def main() -> None:
        wrong = Rig(*[refusal(code, 401)] * 50)
        await keep_failing(ClientRejected, wrong, times=30, pause=1, match="Check the client")
        assert wrong.token_requests == 1
        await keep_failing(ClientRejected, wrong, times=6 * 60, pause=MINUTE, match="Check the client")
        assert 5 <= wrong.token_requests <= 12
        assert await beside(wrong, success(1)).access() == "access-1"
        wrong.clock.advance(1)
        assert await wrong.access() == "access-1"

    run(main)


@pytest.mark.parametrize("code", ["invalid_grant", "access_denied", "invalid_client", "whatever"])
@pytest.mark.parametrize("status", [429, 503])
def test_f56_k05_a_wait_counts_whatever_the_body_says(status: int, code: str) -> None:
    """The credential is only asked to wait, in all processes, and then it works."""

    async def main() -> None:
        busy = token_response({"error": code}, status=status, headers=(("retry-after", "30"),))
        one, other = pair(busy, success(1))
        await keep_failing(RateLimited, one, other, times=30, pause=1)
        assert one.token_requests == 1
        assert [await one.access(), await other.access()] == ["access-1", "access-1"]

    run(main)


@pytest.mark.parametrize(
    ("transient", "expected"),
    [
        (token_response(b"", status=500), TokenUnavailable),
        (token_response({}, status=429), RateLimited),
        (lost, OutcomeUnknown),
        (unexplained(), TokenSessionError),
    ],
    ids=["500", "429", "lost", "unexplained"],
)
def test_a_forced_refresh_that_fails_leaves_the_rejection_in_place(
    transient: Any, expected: type[TokenSessionError]
) -> None:
    """Only a success, or a sign-in, ends it."""

    async def main() -> None:
        one, other = pair(invalid_grant(), transient, success(1))
        await keep_failing(GrantRejected, one, other)
        error = await refused(TokenSessionError, one.source.refresh(force=True))
        assert isinstance(error, expected | GrantRejected)
        one.clock.advance(MINUTE)
        await keep_failing(GrantRejected, one, other, times=5, pause=MINUTE)
        assert one.token_requests == 2
        assert (await one.source.sign_in(refresh_token="of-a-person")).access_token == "access-1"

    run(main)


def test_forced_refreshes_make_one_request_a_minute_over_all_processes() -> None:
    """A button that people press, in every process."""

    async def main() -> None:
        one, other = pair(*[invalid_grant()] * 20)
        await keep_failing(GrantRejected, one, other)
        for _ in range(5 * 12):
            await refused(GrantRejected, *(rig.source.refresh(force=True) for rig in (one, other)))
            one.clock.advance(5)
        assert one.token_requests == 1 + 5

    run(main)


def test_the_first_refresh_of_a_source_makes_one_request_if_it_is_forced() -> None:
    async def main() -> None:
        rejected = token_response({"error": "invalid_client"}, 401)
        rig = Rig(*[rejected] * 2)
        await refused(ClientRejected, rig.source.refresh(force=True))
        assert rig.token_requests == 1
        one = Rig(success(1), success(2))
        await one.access()
        other = beside(one, success(2))
        assert (await other.source.refresh(force=True)).access_token == "access-2"

    run(main)


def test_a_forced_refresh_ignores_a_pause_of_our_own() -> None:
    """A person who knows that the server is back need not wait for the end of a back-off."""

    async def main() -> None:
        one, other = pair(*[token_response(b"", status=500)] * 6, success(1))
        await keep_failing(TokenUnavailable, one, other, times=6, pause=30)
        one.clock.advance(30)
        await one.source.refresh(force=True)
        assert await one.access() == "access-1"

    run(main)


def test_a_forced_refresh_does_not_ignore_a_pause_that_the_server_asked_for() -> None:
    """Retry-After counts."""

    async def main() -> None:
        limited = token_response({}, status=429, headers=(("retry-after", "600"),))
        one, other = pair(limited, success(1))
        await keep_failing(RateLimited, one, other)
        for _ in range(9):
            one.clock.advance(MINUTE)
            await refused(RateLimited, other.source.refresh(force=True))
        assert one.token_requests == 1
        one.clock.advance(MINUTE)
        assert (await other.source.refresh(force=True)).access_token == "access-1"

    run(main)


def test_f41_a_forced_refresh_does_not_undo_a_sign_out() -> None:
    async def main() -> None:
        rig = await holding()
        await rig.source.sign_out()
        await refused(SignedOut, rig.source.refresh(force=True))
        assert rig.token_requests == 1

    run(main)


def test_forced_refreshes_make_one_request_although_a_rejection_is_remembered() -> None:
    """Ten buttons pressed at the same moment, in two processes. The refusal may have been a mistake."""

    async def main() -> None:
        one, other = pair(invalid_grant(), success(1))
        await keep_failing(GrantRejected, one, other)
        presses = [rig.source.refresh(force=True) for rig in (one, other) for _ in range(5)]
        tokens = await asyncio.gather(*presses)
        assert {token.access_token for token in tokens} == {"access-1"}
        assert [await one.access(), await other.access()] == ["access-1", "access-1"]
        assert one.token_requests == 2

    run(main)


def test_a_forced_refresh_that_is_never_sent_leaves_everything_as_it_was() -> None:
    """No connection: the rejection stays, and the next one may be made at once."""

    async def main() -> None:
        rig = Rig(invalid_grant(), NotSent("no route"), success(1))
        await refused(GrantRejected, rig.access())
        await refused((NotSent, GrantRejected), rig.source.refresh(force=True))
        rig.clock.advance(5)
        await refused(GrantRejected, rig.access())
        assert (await rig.source.refresh(force=True)).access_token == "access-1"

    run(main)
