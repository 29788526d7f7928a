"""Providers pickle with their configuration, secrets included, for new processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from typing import Any

import pytest
from _known_secrets import (
    BY_REFRESH,
    CALLBACK,
    SENT_AT,
    oauth2,
    of_strategy,
    oto,
    priava,
    read,
    token_response,
)

from tokensession.providers import ClientAuth, Strategy, StrategyProvider, expires_at, expires_in


def named_headers(values: Any) -> tuple[tuple[str, str], ...]:
    return (("X-Client", values["client_id"]),)


def custom(**changes: Any) -> StrategyProvider:
    declared: dict[str, Any] = {
        "name": "custom",
        "grants": {"refresh_token": ("refresh_token", "client_id")},
        "headers": named_headers,
        "lifetime": expires_at("until"),
    }
    return of_strategy(Strategy(**declared | changes))


PROVIDERS = {
    "OAuth2, basic": oauth2(scope="a b"),
    "OAuth2, post": oauth2(scope="a b", auth=ClientAuth.none(), client_secret=None),
    "OAuth2, not rotating": oauth2(scope="a b", rotates=False),
    "OAuth2, code": oauth2(scope="a b", code="code", redirect_uri=CALLBACK),
    "OAuth2, no credential": oauth2(scope="a b", refresh_token=None),
    "Oto": oto(environment="staging"),
    "Priava": priava(region_on_requests=True),
    "a strategy with expires_at": custom(),
    "a strategy with expires_in": custom(lifetime=expires_in("lives")),
}
SEEN = ("key", "former_keys", "identity", "base_url", "origins", "api_headers", "rotates", "credential")


def shown(provider: Any) -> dict[str, Any]:
    """Everything that a session sees of a provider."""
    credential = provider.credential or BY_REFRESH
    request = provider.request(credential)
    response = token_response({"access_token": "a", "expires_in": "60", "until": SENT_AT + 60, "lives": 60})
    issued = read(provider, response, credential)
    return {name: getattr(provider, name) for name in SEEN} | {
        "type": type(provider).__name__,
        "leeway": provider.replay_leeway,
        "repr": repr(provider),
        "request": (request.url, request.headers, request.body, request.secrets),
        "token": (issued.token, issued.notes),
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
