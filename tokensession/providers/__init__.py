"""Providers: what each OAuth server expects in a token request, and how it answers.

A provider is imported when you first use its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily
from .protocol import (
    DEVICE_CODE,
    Credential,
    Identity,
    Issued,
    Provider,
    TokenRequest,
    TokenResponse,
    TokenTransport,
)

if TYPE_CHECKING:
    from ._wire import basic_auth, encode_form, encode_json, parse_form, parse_json
    from .client_auth import ClientAuth
    from .discovery import Discovery
    from .oauth2 import OAUTH2, OAuth2, OAuth2Settings
    from .oto import Health, Oto
    from .priava import Priava
    from .secret_values import SecretValue
    from .strategy import RFC6749_ERRORS, ErrorKind, Fields, Strategy, expires_at, expires_in
    from .strategy_provider import StrategyProvider
    from .vendor import Fact, Vendor
    from .vendors import VENDORS

__all__ = [
    "DEVICE_CODE",
    "OAUTH2",
    "RFC6749_ERRORS",
    "VENDORS",
    "ClientAuth",
    "Credential",
    "Discovery",
    "ErrorKind",
    "Fact",
    "Fields",
    "Health",
    "Identity",
    "Issued",
    "OAuth2",
    "OAuth2Settings",
    "Oto",
    "Priava",
    "Provider",
    "SecretValue",
    "Strategy",
    "StrategyProvider",
    "TokenRequest",
    "TokenResponse",
    "TokenTransport",
    "Vendor",
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
            "ClientAuth": ".client_auth",
            "Discovery": ".discovery",
            **dict.fromkeys(("Fact", "Vendor"), ".vendor"),
            "VENDORS": ".vendors",
            "Health": ".oto",
            "OAUTH2": ".oauth2",
            "OAuth2": ".oauth2",
            "OAuth2Settings": ".oauth2",
            "Oto": ".oto",
            "Priava": ".priava",
            "SecretValue": ".secret_values",
            "StrategyProvider": ".strategy_provider",
        },
    )


def __dir__() -> list[str]:
    return __all__
