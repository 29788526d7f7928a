"""Providers: what each OAuth server expects in a token request, and how it answers."""

from ._wire import basic_auth, encode_form, encode_json, parse_form, parse_json
from .oauth2 import OAuth2
from .oto import Health, Oto
from .priava import Priava
from .protocol import Credential, Identity, Issued, Provider, TokenRequest, TokenResponse, TokenTransport
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
