"""Providers pickle with their configuration, secrets included, for processes that start anew."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from typing import Any

import pytest

from tokensession.providers import (
    Credential,
    OAuth2,
    Oto,
    Priava,
    Strategy,
    StrategyProvider,
    expires_at,
    expires_in,
)
from tokensession.testing import token_response

URL = "https://id.example.com/token"


def oauth2(**changes: Any) -> OAuth2:
    configured: dict[str, Any] = {
        "token_url": URL,
        "client_id": "c",
        "client_secret": "s",
        "refresh_token": "r",
        "scope": "a b",
    }
    return OAuth2(**configured | changes)


def named_headers(values: Any) -> tuple[tuple[str, str], ...]:
    return (("X-Client", values["client_id"]),)


def custom(**changes: Any) -> StrategyProvider:
    declared: dict[str, Any] = {
        "name": "custom",
        "grants": {"refresh_token": ("refresh_token", "client_id")},
        "headers": named_headers,
        "lifetime": expires_at("until"),
    }
    strategy = Strategy(**declared | changes)
    return StrategyProvider(
        strategy,
        identity="c",
        base_url="https://api.example.com",
        token_url=URL,
        values={"client_id": "c"},
        credential=Credential("refresh_token", "r"),
    )


PROVIDERS = {
    "OAuth2, basic": oauth2(),
    "OAuth2, post": oauth2(auth="post", client_secret=None),
    "OAuth2, not rotating": oauth2(rotates=False),
    "OAuth2, code": oauth2(refresh_token=None, code="code", redirect_uri="https://app.example.com/back"),
    "OAuth2, no credential": oauth2(refresh_token=None),
    "Oto": Oto(refresh_token="r", environment="staging"),
    "Priava": Priava(
        client_id="c",
        client_secret="s",
        redirect_uri="https://app.example.com/back",
        region="EU",
        refresh_token="r",
        region_on_requests=True,
    ),
    "a strategy with expires_at": custom(),
    "a strategy with expires_in": custom(lifetime=expires_in("lives")),
}


def shown(provider: Any) -> dict[str, Any]:
    """Everything that a session sees of a provider."""
    credential = provider.credential or Credential("refresh_token", "signed in")
    request = provider.request(credential)
    response = token_response({"access_token": "a", "expires_in": "60", "until": 1_750_000_060, "lives": 60})
    issued = provider.read(response, credential, sent_at=1_750_000_000.0)
    names = (
        "key",
        "former_keys",
        "identity",
        "base_url",
        "origins",
        "api_headers",
        "rotates",
        "replay_leeway",
    )
    return {name: getattr(provider, name) for name in names} | {
        "type": type(provider).__name__,
        "repr": repr(provider),
        "credential": provider.credential,
        "request": (request.url, request.headers, request.body, request.secrets),
        "token": (issued.token, issued.notes) if hasattr(issued, "token") else issued,
    }


def pickled(provider: Any) -> Any:
    return pickle.loads(pickle.dumps(provider))


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("copied", [pickled, copy.copy, copy.deepcopy])
def test_k46_a_pickled_or_copied_provider_does_the_same(name: str, copied: Any) -> None:
    """The same key, requests, headers and tokens. Its `repr` shows no secret either."""
    assert shown(copied(PROVIDERS[name])) == shown(PROVIDERS[name])


def test_k46_a_strategy_whose_functions_have_no_name_cannot_be_pickled() -> None:
    """It works all the same, and can be copied."""
    provider = custom(headers=lambda values: (("X-Client", values["client_id"]),))
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(provider)
    assert shown(copy.copy(provider)) == shown(provider)


def answer(providers: dict[str, Any], answers: Any) -> None:
    """In a spawned process."""
    answers.put({name: shown(provider) for name, provider in providers.items()})


def test_k46_a_spawned_process_uses_the_providers_that_it_is_given() -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    worker = context.Process(target=answer, args=(PROVIDERS, answers))
    worker.start()
    found = answers.get(timeout=60)
    worker.join(60)
    assert found == {name: shown(provider) for name, provider in PROVIDERS.items()}
