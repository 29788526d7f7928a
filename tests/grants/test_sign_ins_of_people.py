"""A sign-in in a browser or on a device: what is checked before a code is sent, and how often it is asked."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import pickle
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp
import pytest
from _event_loop import in_event_loop

from tokensession import (
    AuthedSession,
    ClientRejected,
    ConfigurationError,
    GrantLost,
    GrantRejected,
    InvalidTokenResponse,
    ManagedSource,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    SignInRequired,
    TokenSessionError,
    TokenUnavailable,
    events,
)
from tokensession.grants import AuthorizationRequest, DeviceSignIn, LoopbackRedirect
from tokensession.providers import OAUTH2, VENDORS, ClientAuth, OAuth2, Oto
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, ScriptedTransport, token_response

BACK = "https://app.example.com/back"


def provider(**changes: Any) -> OAuth2:
    settings: dict[str, Any] = {
        "token_url": "https://id.example.com/token",
        "authorization_url": "https://id.example.com/authorize",
        "device_authorization_url": "https://id.example.com/device",
        "client_id": "app",
        "auth": ClientAuth.none(),
        "redirect_uri": BACK,
        "issuer": "https://id.example.com/",
    }
    return OAuth2(**settings | changes)


def redirect(request: AuthorizationRequest, **query: str) -> str:
    """The URL that the browser is sent to."""
    return f"{BACK}?{urlencode({'state': request.state, **query})}"


@in_event_loop
async def test_a_forgotten_await_or_source_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"not a coroutine.* Await it first"):
        AuthedSession(OAuth2.discover("https://id.example.com", client_id="app"))  # type: ignore[arg-type]
    session = AuthedSession(provider(), store="memory:", key="k")
    request = AuthorizationRequest.begin(provider())
    wrong: Any
    for wrong, todo in ((session, "Pass session.source"), (provider(), r"Pass ManagedSource\(provider")):
        with pytest.raises(ConfigurationError, match=todo):
            await DeviceSignIn.begin(wrong)
        with pytest.raises(ConfigurationError, match=todo):
            await request.sign_in(wrong, redirect(request, code="c"))


def test_each_sign_in_has_a_state_and_a_challenge_of_its_own() -> None:
    """RFC 7636, 4.2."""
    one, other = (AuthorizationRequest.begin(provider()) for _ in range(2))
    assert one.state != other.state
    assert one.code_verifier != other.code_verifier
    query = parse_qs(urlsplit(one.url).query)
    digest = hashlib.sha256(one.code_verifier.encode()).digest()
    assert query["code_challenge"] == [base64.urlsafe_b64encode(digest).decode().rstrip("=")]
    assert query["state"] == [one.state]
    assert 43 <= len(one.code_verifier) <= 128
    assert one.code_verifier not in one.url + repr(one)
    assert one.state not in repr(one)
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    ("query", "error", "says"),
    [
        ({"state": "another", "code": "co-1"}, SignInRequired, "its state is not"),
        ({"state": "", "code": "co-1"}, SignInRequired, "its state is not"),
        ({"code": "co-1", "iss": "https://id.example.com"}, SignInRequired, "its issuer"),
        ({"code": "co-1", "iss": "https://evil.example/"}, SignInRequired, "its issuer"),
        ({}, SignInRequired, "it has no code"),
        ({"code": ""}, SignInRequired, "it has no code"),
        ({"error": "access_denied"}, GrantRejected, "access_denied"),
        ({"error": "access_denied", "error_description": "She said no."}, GrantRejected, "She said no"),
        ({"error": "temporarily_unavailable"}, TokenUnavailable, "temporarily_unavailable"),
        ({"error": "ZQXWsecret-token-4711-4711"}, GrantRejected, "redacted"),
    ],
)
def test_a_redirect_that_does_not_fit_sends_no_code(
    query: dict[str, str], error: type[TokenSessionError], says: str
) -> None:
    async def main() -> None:
        transport = ScriptedTransport()
        request = AuthorizationRequest.begin(provider())
        async with ManagedSource(provider(), transport, store="memory:", key="alice") as source:
            with pytest.raises(error, match=says) as caught:
                await request.sign_in(source, redirect(request, **query))
            assert "ZQXW" not in str(caught.value)
            assert "Start the sign-in again" in str(caught.value)
        assert transport.requests == []

    asyncio.run(main())


def test_a_parameter_that_comes_twice_does_not_count() -> None:
    """RFC 6749, 3.1: one of the two was added by another."""
    request = AuthorizationRequest.begin(provider())
    with pytest.raises(SignInRequired, match="it has no code"):
        request.code(redirect(request, code="co-1") + "&code=co-2")
    with pytest.raises(SignInRequired, match="its state"):
        request.code(redirect(request, code="co-1") + "&state=x")
    with pytest.raises(GrantRejected, match="answered: an error"):
        request.code(redirect(request, code="co-1", error="a") + "&error=b")


@pytest.mark.parametrize("iss", ["https://evil.example/", "https://id.example.com/"])
def test_an_issuer_that_comes_twice_is_not_a_missing_one(iss: str) -> None:
    """RFC 9207, 2.4: what a mix-up attack adds must not switch the check off."""
    request = AuthorizationRequest.begin(provider())
    with pytest.raises(SignInRequired, match="its issuer"):
        request.code(redirect(request, code="co-1", iss=iss) + "&" + urlencode({"iss": iss}))


def test_a_redirect_without_an_issuer_is_refused_where_the_server_promises_one() -> None:
    """RFC 9207, 2.4. Errors have one, too."""
    request = AuthorizationRequest.begin(provider(names_issuer=True))
    rebuilt = AuthorizationRequest(**dataclasses.asdict(request))
    for each in (request, rebuilt):
        for answer in ({"code": "co-1"}, {"code": "co-1", "iss": ""}, {"error": "access_denied"}):
            with pytest.raises(SignInRequired, match=r"its issuer .* is missing"):
                each.code(redirect(each, **answer))
        assert each.code(redirect(each, code="co-1", iss="https://id.example.com/")) == "co-1"
    with pytest.raises(ConfigurationError, match="names_issuer needs the issuer"):
        provider(names_issuer=True, issuer=None)


@pytest.mark.parametrize("lost", ["state", "code_verifier"])
@pytest.mark.parametrize("value", ["", None])
def test_a_sign_in_cannot_be_rebuilt_without_its_secrets(lost: str, value: str | None) -> None:
    """Without a state, a redirect without one would be the right one."""
    kept = dataclasses.asdict(AuthorizationRequest.begin(provider()))
    with pytest.raises(ConfigurationError, match=f"{lost} must"):
        AuthorizationRequest(**kept | {lost: value})


def test_the_code_is_sent_with_what_it_was_asked_for() -> None:
    async def main() -> None:
        transport = ScriptedTransport(token_response({"access_token": "a", "refresh_token": "r"}))
        request = AuthorizationRequest.begin(provider(), redirect_uri="http://127.0.0.1:7/cb")
        async with ManagedSource(provider(), transport, store="memory:", key="alice") as source:
            await request.sign_in(source, redirect(request, code="co-1", iss="https://id.example.com/"))
        sent = parse_qs(transport.requests[0].body.decode())
        assert sent["code"] == ["co-1"]
        assert sent["code_verifier"] == [request.code_verifier]
        assert sent["redirect_uri"] == ["http://127.0.0.1:7/cb"]

    asyncio.run(main())


@pytest.mark.parametrize(
    "made", [Oto(refresh_token="r"), VENDORS["xero"].provider(client_id="c", client_secret="s"), None, OAuth2]
)
def test_a_sign_in_of_a_provider_that_has_none_is_an_error_that_says_what_to_use(made: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"has no authorization_url.*Use OAuth2\(authorization_url"):
        AuthorizationRequest.begin(made)


def test_the_data_of_a_vendor_is_enough_for_a_sign_in() -> None:
    xero = VENDORS["xero"]
    made = provider(auth=xero.auth, client_secret="s", strategy=xero.strategy, token_url=xero.hosts[""][0])
    assert AuthorizationRequest.begin(made).url.startswith("https://id.example.com/authorize?")


@in_event_loop
async def test_a_sign_in_for_a_scope_of_its_own_is_refreshed_with_that() -> None:
    """The refresh leaves the scope out, which means the one that was granted (RFC 6749, 6)."""
    transport = ScriptedTransport(ISSUED, ISSUED)
    request = AuthorizationRequest.begin(provider(), scope="read")
    assert "scope=read" in request.url
    async with ManagedSource(provider(), transport, store="memory:", key="alice") as source:
        await request.sign_in(source, redirect(request, code="co-1"))
        await source.refresh()
    assert "scope" not in parse_qs(transport.requests[1].body.decode())


@in_event_loop
async def test_a_scope_that_each_refresh_would_replace_is_an_error_before_the_sign_in() -> None:
    """A narrower one would make the first refresh fail, and a wider one would be lost with it."""
    own = provider(scope="write read")
    async with ManagedSource(own, ScriptedTransport(), store="memory:", key="tv") as source:
        for scope in ("read", "read write admin"):
            with pytest.raises(ConfigurationError, match=r"another scope.*Leave scope out"):
                AuthorizationRequest.begin(own, scope=scope)
            with pytest.raises(ConfigurationError, match="another scope"):
                await DeviceSignIn.begin(source, scope=scope)
    assert "scope=read+write" in AuthorizationRequest.begin(own, scope="read write").url


@in_event_loop
async def test_the_loopback_redirect_waits_for_the_right_state_and_shows_a_page() -> None:
    async with aiohttp.ClientSession() as browser, LoopbackRedirect(page="Done.") as here:
        request = AuthorizationRequest.begin(provider(), redirect_uri=here.uri)
        host, port = urlsplit(here.uri).hostname, urlsplit(here.uri).port
        assert (host, urlsplit(here.uri).path) == ("127.0.0.1", "/callback")
        assert port

        async def visit(**query: str) -> tuple[int, str]:
            async with browser.get(here.uri, params=query) as response:
                assert response.headers["Cache-Control"] == "no-store"
                return response.status, await response.text()

        waiting = asyncio.create_task(here.receive(request))
        await asyncio.sleep(0)
        assert (await visit(state="another", code="planted"))[0] == 400
        assert not waiting.done()
        assert await visit(state=request.state, code="co-1") == (200, "Done.")
        assert request.code(await waiting) == "co-1"
    with pytest.raises(RuntimeError, match="Enter it first"):
        _ = here.uri
    assert repr(here) == "<LoopbackRedirect closed>"


@in_event_loop
async def test_a_redirect_that_comes_before_anyone_waits_for_it_is_kept() -> None:
    """The browser may be faster than the program. Others may send something first, too."""
    async with aiohttp.ClientSession() as browser, LoopbackRedirect(page="Done.") as here:
        request = AuthorizationRequest.begin(provider(), redirect_uri=here.uri)
        for query in ({"state": "another", "code": "x"}, {"state": request.state, "code": "early"}):
            async with browser.get(here.uri, params=query) as response:
                assert (response.status, await response.text()) == (200, "Done.")
        for query in [{}, {"state": "another"}, {"code": "x"}] * 20:  # nobody's redirect: it takes no place
            async with browser.get(here.uri, params=query) as response:
                assert response.status == 400
        assert request.code(await here.receive(request)) == "early"
        for _ in range(100):  # what comes from elsewhere takes no more than so much memory
            async with browser.get(here.uri, params={"state": "another", "code": "x"}):
                pass
        assert len(here._came) < 50


@in_event_loop
async def test_a_redirect_with_a_long_code_or_long_cookies_is_received() -> None:
    """A code may be a token of its own, and cookies of 127.0.0.1 are those of all its ports."""
    long = "c" * 20_000
    async with aiohttp.ClientSession(max_line_size=1 << 17) as browser, LoopbackRedirect() as here:
        request = AuthorizationRequest.begin(provider(), redirect_uri=here.uri)
        query = {"state": request.state, "code": long}
        async with browser.get(here.uri, params=query, headers={"Cookie": f"others={long}"}) as response:
            assert response.status == 200
        assert request.code(await here.receive(request)) == long


@in_event_loop
async def test_f45_a_redirect_that_cannot_be_read_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Its address has the code."""
    async with LoopbackRedirect() as here:
        for line in (f"GET /callback?code=planted&x={'x' * 200_000}", "GET /callback?code=planted&x=\xff"):
            reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(here.uri).port)
            writer.write(f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode("latin-1"))
            assert (await reader.readline()).split()[1] == b"400"
            writer.close()
    assert caplog.records == []


def test_a_redirect_that_is_not_unicode_is_not_ours() -> None:
    """Some servers pass on the bytes of an address as half characters."""
    request = AuthorizationRequest.begin(provider())
    with pytest.raises(SignInRequired, match="its state"):
        request.code(f"{BACK}?state=\udcff&code=co-1")


@in_event_loop
async def test_a_wait_ends_when_the_redirect_is_closed() -> None:
    async with LoopbackRedirect() as here:
        waiting = asyncio.create_task(here.receive(AuthorizationRequest.begin(provider())))
        await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="closed while it waited"):
        await waiting


@in_event_loop
async def test_a_redirect_that_comes_as_its_wait_is_cancelled_is_kept() -> None:
    async with aiohttp.ClientSession() as browser, LoopbackRedirect() as here:
        request = AuthorizationRequest.begin(provider(), redirect_uri=here.uri)
        waiting = asyncio.create_task(here.receive(request))
        await asyncio.sleep(0)
        async with browser.get(here.uri, params={"state": request.state, "code": "co-1"}):
            waiting.cancel()
        await asyncio.wait([waiting])
        assert request.code(await here.receive(request)) == "co-1"


@in_event_loop
async def test_two_waits_at_the_same_time_are_an_error_and_so_is_one_before_it_is_open() -> None:
    """Otherwise, the first would never end."""
    async with LoopbackRedirect() as here:
        request = AuthorizationRequest.begin(provider(), redirect_uri=here.uri)
        waiting = asyncio.create_task(here.receive(request))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="waiting for a redirect already"):
            await here.receive(request)
        waiting.cancel()
    with pytest.raises(RuntimeError, match="Enter it first"):
        await here.receive(request)


@in_event_loop
async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open() -> None:
    async with LoopbackRedirect() as here:
        port = urlsplit(here.uri).port
        assert port
        with pytest.raises(OSError, match="address already in use"):
            await LoopbackRedirect(port=port).__aenter__()


# -- devices ------------------------------------------------------------------------------------------

STARTED = {
    "device_code": "device-code-ZQXW",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://id.example.com/device",
    "verification_uri_complete": "https://id.example.com/device?user_code=WDJB-MJHT",
    "expires_in": 120,
}
ISSUED = token_response({"access_token": "a", "refresh_token": "r", "expires_in": 3600})


def refusal(code: str) -> Any:
    return token_response({"error": code}, 400)


class Device:
    """A source whose transport is scripted, and whose time passes by itself."""

    def __init__(self, *script: Any, started: dict[str, Any] | None = None, **changes: Any) -> None:
        self.clock = FakeClock()
        answer = token_response(started or STARTED)
        self.transport = ScriptedTransport(answer, *script)
        self.events: list[events.Event] = []
        self.source = ManagedSource(
            provider(**changes),
            self.transport,
            store=MemoryStore(clock=self.clock),
            key="tv",
            clock=self.clock,
            observer=self.events.append,
        )
        self.polls: list[float] = []

    async def complete(self, device: DeviceSignIn | None = None) -> Any:
        device = device or await DeviceSignIn.begin(self.source)
        began, seen = self.clock.boot(), len(self.transport.requests)
        task = asyncio.create_task(device.complete(self.source))
        while not task.done():
            for _ in range(300):
                await asyncio.sleep(0)
            if len(self.transport.requests) > seen:
                seen = len(self.transport.requests)
                self.polls.append(self.clock.boot() - began)
            if not task.done():
                self.clock.advance(1)
        return await task


@in_event_loop
async def test_a_device_is_polled_every_five_seconds_and_less_often_when_asked() -> None:
    """RFC 8628, 3.5: `slow_down` adds five seconds. Nothing is spent, and it is no failure."""
    pending = refusal("authorization_pending")
    device = Device(pending, pending, refusal("slow_down"), pending, ISSUED)
    assert (await device.complete()).access_token == "a"
    assert device.polls == [5, 10, 15, 25, 35]
    assert [type(each) for each in device.events] == [events.SignInStarted, events.SignedIn]
    sent = parse_qs(device.transport.requests[-1].body.decode())
    assert sent == {
        "grant_type": ["urn:ietf:params:oauth:grant-type:device_code"],
        "device_code": ["device-code-ZQXW"],
        "client_id": ["app"],
    }
    assert await device.source.sign_in(device_code="device-code-ZQXW")  # the same token, and no request
    assert len(device.transport.requests) == 6


@in_event_loop
async def test_a_server_that_cannot_be_reached_is_polled_less_often() -> None:
    device = Device(NotSent("down"), token_response(b"", 503), ISSUED, started={**STARTED, "interval": 2})
    await device.complete()
    assert device.polls == [2, 6, 14]


@in_event_loop
async def test_a_device_is_polled_as_before_once_the_server_answers_again() -> None:
    pending, down = refusal("authorization_pending"), NotSent("down")
    device = Device(down, down, pending, pending, ISSUED)
    await device.complete()
    assert device.polls == [5, 15, 35, 40, 45]
    assert [type(each) for each in device.events] == [
        *[events.SignInStarted, events.SignInFailed] * 2,
        *[events.SignInStarted, events.SignedIn],
    ]


@in_event_loop
async def test_a_device_waits_as_long_as_the_server_asks_for() -> None:
    busy = token_response({}, 429, (("retry-after", "90"),))
    slower = token_response({"error": "slow_down"}, 429, (("retry-after", "100"),))
    pending = token_response({"error": "authorization_pending"}, 400, (("retry-after", "30"),))
    answers = (busy, slower, pending, refusal("authorization_pending"), ISSUED)
    device = Device(*answers, started={**STARTED, "expires_in": 600})
    await device.complete()
    assert device.polls == [5, 95, 195, 225, 235]


@in_event_loop
async def test_a_device_that_is_completed_again_still_polls_as_slowly_as_it_was_told() -> None:
    device = Device(refusal("slow_down"), ClientRejected("a proxy"), ISSUED)
    started = await DeviceSignIn.begin(device.source)
    with pytest.raises(ClientRejected):
        await device.complete(started)
    assert device.polls == [5, 15]
    device.polls.clear()
    await device.complete(started)
    assert device.polls == [10]


LOST = OutcomeUnknown("The connection was cut.")


@pytest.mark.parametrize("code", ["invalid_grant", "expired_token"])
@in_event_loop
async def test_a_code_that_is_rejected_after_a_lost_answer_was_probably_spent_by_it(code: str) -> None:
    device = Device(LOST, NotSent("down"), refusal(code))
    with pytest.raises(GrantLost, match=r"has probably spent it: The connection was cut\.") as caught:
        await device.complete()
    assert caught.value.code == code


@in_event_loop
async def test_codes_that_end_after_a_lost_answer_may_have_been_spent_by_it() -> None:
    device = Device(LOST, *[NotSent("down")] * 3, started={**STARTED, "expires_in": 20})
    with pytest.raises(GrantLost, match=r"The codes have ended.*has probably spent it") as caught:
        await device.complete()
    assert (caught.value.code, caught.value.todo) == ("expired_token", "Start the sign-in again.")


@pytest.mark.parametrize(
    "answers",
    [
        ["access_denied"],
        ["authorization_declined"],
        ["authorization_pending", "invalid_grant"],
        ["slow_down", "expired_token"],
    ],
)
@in_event_loop
async def test_a_lost_answer_is_not_blamed_for_what_it_did_not_do(answers: list[str]) -> None:
    """The person refused, or the server still waited for the person after it."""
    device = Device(LOST, *map(refusal, answers))
    with pytest.raises(GrantRejected) as caught:
        await device.complete()
    assert type(caught.value) is GrantRejected


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *[("access_denied", 400), ("expired_token", 400), ("invalid_grant", 400)],
        *[("authorization_declined", 400), ("bad_verification_code", 400)],  # Microsoft Entra
        ("incorrect_device_code", 200),  # GitHub
    ],
)
@in_event_loop
async def test_a_refusal_ends_the_polling(code: str, status: int) -> None:
    """In the words of RFC 8628 (3.5), or in those of a large provider."""
    device = Device(refusal("authorization_pending"), token_response({"error": code}, status))
    with pytest.raises(GrantRejected) as caught:
        await device.complete()
    assert caught.value.code == code
    assert device.polls == [5, 10]


@in_event_loop
async def test_the_polling_ends_with_the_codes() -> None:
    pending = refusal("authorization_pending")
    device = Device(*[pending] * 30, started={**STARTED, "expires_in": 20})
    with pytest.raises(GrantRejected, match="The codes have ended") as caught:
        await device.complete()
    assert caught.value.code == "expired_token"
    assert device.polls == [5, 10, 15]


@pytest.mark.parametrize("odd", [0, -5, "-1", None, "soon", True])
@in_event_loop
async def test_a_device_whose_times_make_no_sense_is_polled_as_if_none_were_named(odd: Any) -> None:
    device = Device(ISSUED, started={**STARTED, "expires_in": odd, "interval": odd})
    started = await DeviceSignIn.begin(device.source)
    assert (started.expires_in, started.interval) == (600, 5)
    assert (await device.complete(started)).access_token == "a"
    assert device.polls == [5]


@in_event_loop
async def test_the_codes_are_shown_and_the_device_code_is_not() -> None:
    device = Device()
    started = await DeviceSignIn.begin(device.source, scope="watch")
    assert (started.user_code, started.verification_uri) == ("WDJB-MJHT", "https://id.example.com/device")
    assert (started.expires_in, started.interval) == (120, 5)
    assert "ZQXW" not in repr(started)
    assert device.transport.requests[0].url == "https://id.example.com/device"
    assert parse_qs(device.transport.requests[0].body.decode()) == {"client_id": ["app"], "scope": ["watch"]}


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (refusal("invalid_client"), ClientRejected, "device authorization endpoint answered 400"),
        (token_response(b"", 503), TokenUnavailable, "answered 503"),
        (token_response({}, 429, (("retry-after", "7"),)), RateLimited, "429"),
        (NotSent("down"), NotSent, "down"),
        (token_response(b"<html>"), InvalidTokenResponse, "not JSON"),
        # Some servers refuse with a 200.
        (
            token_response({"error": "unauthorized_client"}),
            ClientRejected,
            "answered 200: unauthorized_client",
        ),
        (token_response({"error": "device_flow_disabled"}), InvalidTokenResponse, ": device_flow_disabled"),
        (token_response({**STARTED, "user_code": ""}), InvalidTokenResponse, "has no user_code"),
        (token_response({**STARTED, "verification_uri": "a\nb"}), InvalidTokenResponse, "has no user_code"),
        (token_response({**STARTED, "device_code": 7}), InvalidTokenResponse, "has no user_code"),
    ],
)
@in_event_loop
async def test_a_start_that_fails_is_a_typed_error(
    answer: Any, error: type[TokenSessionError], says: str
) -> None:
    transport = ScriptedTransport(answer)
    async with ManagedSource(provider(), transport, store="memory:", key="tv") as source:
        with pytest.raises(error, match=says):
            await DeviceSignIn.begin(source)


@in_event_loop
async def test_a_sign_in_whose_code_could_not_be_redeemed_does_not_start() -> None:
    """The strategies of vendors have two grants. A person would approve, and get an error."""
    transport, made = ScriptedTransport(), provider(strategy=VENDORS["github"].strategy)
    async with ManagedSource(made, transport, store="memory:", key="tv") as source:
        with pytest.raises(ConfigurationError, match=r"github does not support .*:device_code grant"):
            await DeviceSignIn.begin(source)
    assert transport.requests == []
    machine = dataclasses.replace(OAUTH2, grants={"client_credentials": OAUTH2.grants["client_credentials"]})
    with pytest.raises(ConfigurationError, match="does not support the authorization_code grant"):
        AuthorizationRequest.begin(provider(strategy=machine))
    with pytest.raises(ConfigurationError, match="does not support the refresh_token grant"):
        provider(strategy=machine, refresh_token="r")


@in_event_loop
async def test_a_provider_without_the_endpoint_is_an_error_before_any_request() -> None:
    for made in (provider(device_authorization_url=None), Oto(refresh_token="r")):
        transport = ScriptedTransport()
        async with ManagedSource(made, transport, store="memory:", key="tv") as source:
            with pytest.raises(ConfigurationError, match="device_authorization_url"):
                await DeviceSignIn.begin(source)
        assert transport.requests == []
