"""Tools for your tests: strict token servers, a clock you move by hand, a scripted transport.

Each name loads its module on first use. Only `StoreConformance` and `Backend` need pytest, which is in the
extra `testing`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clock import FakeClock
    from .conformance import Backend, StoreConformance
    from .servers import (
        Drip,
        Edit,
        Fault,
        Gate,
        Hang,
        OAuth2Server,
        OtoServer,
        PriavaServer,
        Reset,
        Response,
        Seen,
        ServerStats,
        TokenServer,
        Truncate,
        json_response,
        redirect,
    )
    from .transport import Paused, ScriptedTransport, token_response

__all__ = [
    "Backend",
    "Drip",
    "Edit",
    "FakeClock",
    "Fault",
    "Gate",
    "Hang",
    "OAuth2Server",
    "OtoServer",
    "Paused",
    "PriavaServer",
    "Reset",
    "Response",
    "ScriptedTransport",
    "Seen",
    "ServerStats",
    "StoreConformance",
    "TokenServer",
    "Truncate",
    "json_response",
    "redirect",
    "token_response",
]

_MODULES = {
    "Backend": ".conformance",
    "FakeClock": ".clock",
    "Paused": ".transport",
    "ScriptedTransport": ".transport",
    "StoreConformance": ".conformance",
    "token_response": ".transport",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_MODULES.get(name, ".servers"), __name__)
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise ModuleNotFoundError(
            f"{name} needs pytest. Install it: pip install 'tokensession[testing]'", name="pytest"
        ) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
