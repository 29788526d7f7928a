"""Provider strategies: what each OAuth server wants to hear, and how it answers."""

from ..wire import basic_auth, encode_form, encode_json, parse_form, parse_json
from .base import Credential, Issued, Provider, TokenEndpoint, TokenReply, TokenRequest
from .client import StrategyProvider
from .oauth2 import OAuth2
from .oto import Health, Oto
from .priava import Priava
from .strategy import RFC6749_ERRORS, Fields, Meaning, Strategy, seconds, until

__all__ = [
    "RFC6749_ERRORS",
    "Credential",
    "Fields",
    "Health",
    "Issued",
    "Meaning",
    "OAuth2",
    "Oto",
    "Priava",
    "Provider",
    "Strategy",
    "StrategyProvider",
    "TokenEndpoint",
    "TokenReply",
    "TokenRequest",
    "basic_auth",
    "encode_form",
    "encode_json",
    "parse_form",
    "parse_json",
    "seconds",
    "until",
]
