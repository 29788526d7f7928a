"""Providers: what each OAuth server expects in a token request, and how it answers.

A provider is imported when you first use its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily
from .protocol import Credential, Identity, Issued, Provider, TokenRequest, TokenResponse, TokenTransport

if TYPE_CHECKING:
    from ._wire import basic_auth, encode_form, encode_json, parse_form, parse_json
    from .oauth2 import OAuth2
    from .oto import Health, Oto
    from .priava import Priava
    from .strategy import RFC6749_ERRORS, ErrorKind, Fields, Strategy, expires_at, expires_in
    from .strategy_provider import StrategyProvider

__all__ = [
    "RFC6749_ERRORS",
    "Credential",
    "ErrorKind",
    "Fields",
    "Health",
    "Identity",
    "Issued",
    "OAuth2",
    "Oto",
    "Priava",
    "Provider",
    "Strategy",
    "StrategyProvider",
    "TokenRequest",
    "TokenResponse",
    "TokenTransport",
    "basic_auth",
    "encode_form",
    "encode_json",
    "expires_at",
    "expires_in",
    "parse_form",
    "parse_json",
]

_WIRE = ("basic_auth", "encode_form", "encode_json", "parse_form", "parse_json")
_STRATEGY = ("RFC6749_ERRORS", "ErrorKind", "Fields", "Strategy", "expires_at", "expires_in")

if not TYPE_CHECKING:  # a type checker knows the names, and finds wrong ones
    __getattr__ = lazily(
        globals(),
        {
            **dict.fromkeys(_WIRE, "._wire"),
            **dict.fromkeys(_STRATEGY, ".strategy"),
            "Health": ".oto",
            "OAuth2": ".oauth2",
            "Oto": ".oto",
            "Priava": ".priava",
            "StrategyProvider": ".strategy_provider",
        },
    )


def __dir__() -> list[str]:
    return __all__
