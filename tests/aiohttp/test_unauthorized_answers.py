"""Which answers of an API mean that the token is not valid: statuses, and RFC 6750's header."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from _api import Numbered, api, calling, has_token, open_websocket, scripted_session, status
from _event_loop import in_event_loop
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tokensession import AuthedSession, BearerAuth, ConfigurationError
from tokensession.providers import Oto
from tokensession.replay import bearer_errors
from tokensession.testing import OAuth2Server

INVALID = 'Bearer realm="api", error="invalid_token", error_description="The token expired"'


async def answer_to(code: int, *challenges: str, statuses: tuple[int, ...] = (401,)) -> tuple[int, int]:
    """The status that a caller gets if the API gives this answer to the first token; and the refreshes."""
    source = Numbered()

    async def handle(request: web.Request) -> web.Response:
        if has_token(request, 1):
            return web.Response()
        return web.Response(status=code, headers=[("WWW-Authenticate", each) for each in challenges])

    async with api(handle) as base:
        bearer = BearerAuth(source, origins=[base], unauthorized_statuses=statuses)
        async with aiohttp.ClientSession(base, middlewares=(bearer,)) as client:
            return await status(client.get("/")), source.refreshes


@pytest.mark.parametrize("code", [400, 401, 403, 404, 419, 440, 498, 499])
@in_event_loop
async def test_f72_any_4xx_whose_bearer_challenge_says_invalid_token_is_refreshed_and_replayed(
    code: int,
) -> None:
    """RFC 6750, 3.1. Some APIs answer 400 or 403 with it."""
    assert await answer_to(code, INVALID) == (200, 1)
    assert await answer_to(code, INVALID, statuses=(400,)) == (200, 1)


@pytest.mark.parametrize("code", [200, 301, 304, 500, 503])
@in_event_loop
async def test_f72_invalid_token_in_an_answer_other_than_a_4xx_changes_nothing(code: int) -> None:
    assert await answer_to(code, INVALID) == (code, 0)


@pytest.mark.parametrize("error", ["insufficient_scope", "invalid_request"])
@pytest.mark.parametrize("code", [400, 401, 403, 498])
@in_event_loop
async def test_f72_insufficient_scope_and_invalid_request_never_refresh(error: str, code: int) -> None:
    """Another token would have the same scope, and the same request would be wrong again."""
    challenge = f'Bearer error="{error}", scope="read"'
    assert await answer_to(code, challenge) == (code, 0)
    assert await answer_to(code, challenge, statuses=(401, code)) == (code, 0)
    assert await answer_to(code, f'Basic realm="x", {challenge}') == (code, 0)


@pytest.mark.parametrize("code", [403, 498, 419])
@in_event_loop
async def test_k22_a_status_that_is_declared_as_unauthorized_is_refreshed_and_replayed(code: int) -> None:
    """One popular API answers 403 to an expired token, another 498."""
    assert await answer_to(code) == (code, 0)
    assert await answer_to(code, statuses=(401, code)) == (200, 1)
    assert await answer_to(401, statuses=(code,)) == (401, 0)  # exactly what is declared
    assert await answer_to(401, 'Bearer realm="x"', statuses=(code,)) == (401, 0)


@in_event_loop
async def test_k22_a_session_takes_the_statuses_and_a_bare_403_costs_no_call() -> None:
    """The server ends the old access token at each refresh, and the API answers 403 to it."""
    valid = "a1"

    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.headers["Authorization"] == f"Bearer {valid}" else 403)

    async with api(handle) as base:
        async with scripted_session(base, "a1", "a2", unauthorized_statuses=(401, 403)) as session:
            assert await status(session.get("/x")) == 200
            valid = "a2"
            assert await status(session.get("/x")) == 200


@in_event_loop
async def test_f72_a_handshake_that_says_invalid_token_with_another_status_is_made_again() -> None:
    source = Numbered()

    async def handle(request: web.Request) -> web.StreamResponse:
        if not has_token(request, 1):
            return web.Response(status=403, headers={"WWW-Authenticate": INVALID})
        return await open_websocket(request)

    async with calling(handle, source) as client:
        async with client.ws_connect("/"):
            assert source.refreshes == 1


@pytest.mark.parametrize(
    ("statuses", "says"),
    [
        (401, "must be numbers, not an int"),
        ("401", "must be numbers, not a string"),
        ((), "at least one"),
        ([True], "whole numbers from 400 to 499, not a bool"),
        ([401.0], "whole numbers from 400 to 499, not a float"),
        (["401"], "whole numbers from 400 to 499, not a string of 3"),
        ([200], "whole numbers from 400 to 499, not 200"),
        ([399, 401], "not 399"),
        ([401, 500], "not 500"),
        ([[401]], "whole numbers from 400 to 499, not a list"),
    ],
)
def test_k22_statuses_that_cannot_mean_unauthorized_are_an_error_at_once(statuses: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        BearerAuth(Numbered(), origins=["https://a.example"], unauthorized_statuses=statuses)
    with pytest.raises(ConfigurationError, match=says):
        AuthedSession(Oto(refresh_token="r"), unauthorized_statuses=statuses)


@in_event_loop
async def test_f72_the_servers_for_tests_challenge_as_rfc_6750_does() -> None:
    """So a test of yours sees what an API would send."""
    async with OAuth2Server() as server, aiohttp.ClientSession() as client:
        async with client.get(server.base_url + "/echo") as response:
            assert response.status == 401
            assert "Bearer" in response.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("headers", "errors"),
    [
        ([], set()),
        ([""], set()),
        (["Bearer"], set()),
        ([INVALID], {"invalid_token"}),
        (["bearer ERROR=invalid_token"], {"invalid_token"}),
        (["BEARER\terror = \t invalid_token"], {"invalid_token"}),
        (['Bearer realm="a, error=\\"insufficient_scope\\"", error="invalid_token"'], {"invalid_token"}),
        (['Bearer error="inval\\id_token"'], {"invalid_token"}),
        (['Basic realm="x", Bearer realm="y", error="invalid_token"'], {"invalid_token"}),
        (['Bearer realm="y", error="invalid_token", Basic realm="x"'], {"invalid_token"}),
        (["Basic realm=x", "Negotiate", 'Bearer error="invalid_token"'], {"invalid_token"}),
        (["Negotiate YWJjZA==, Bearer error=invalid_token"], {"invalid_token"}),
        (["Bearer, Basic error=invalid_token"], set()),
        (["Bearer YWJjZA==, error=invalid_token"], {"invalid_token"}),
        ([", ,Bearer ,,error=invalid_token, ,"], {"invalid_token"}),
        (["Bearer error=invalid_token", "Bearer error=a"], {"invalid_token", "a"}),
        (['DPoP error="invalid_token"'], set()),
        (['Digest realm="Bearer error=invalid_token"'], set()),
        (['Digest realm="x", error="invalid_token"'], set()),
        (['Digest realm="Bearer, error=invalid_token"'], set()),
        (['Bearer realm="error=invalid_token"'], set()),
        (['Bearer error_description="invalid_token"'], set()),
        (['Bearer x-error="invalid_token"'], set()),
        (['error="invalid_token"'], set()),
        (['Bearer error="invalid_token'], set()),
        (['Bearer realm="never ends, error="invalid_token"'], set()),
        (['Bearer error="invalid_token" junk'], set()),
        (["Bearer error=invalid token"], set()),
        (["Bearer error="], set()),
        (["Bearer =invalid_token"], set()),
        (["Bearer error='invalid_token'"], {"'invalid_token'"}),
        (['Bearer error=""'], {""}),
        (["Bearér error=invalid_token"], set()),
    ],
)  # fmt: skip
def test_f72_challenges_are_read_as_rfc_9110_writes_them(headers: list[str], errors: set[str]) -> None:
    """11.6.1: several challenges in one header, several headers, quoted strings, blanks, upper case."""
    assert bearer_errors(headers) == errors


@given(st.lists(st.text(alphabet='Bearer error=invalid_token,"\\ \t\r\né;', max_size=60), max_size=3))
def test_f72_no_header_makes_the_parser_raise(headers: list[str]) -> None:
    assert isinstance(bearer_errors(headers), set)


@pytest.mark.parametrize(
    "header",
    [part * 50_000 for part in ('"\\', '"\\"', "a", "a ", "a=", "a \t", '"', ",", "\\", "a,")]
    + ['Bearer error="' + '\\"' * 50_000, "a" + " " * 100_000 + "="],
)
def test_f72_a_hostile_header_takes_no_time_out(header: str) -> None:
    """The time is proportional to the length: with its square, one of these would take minutes."""
    assert "invalid_token" not in bearer_errors([header] * 3)
