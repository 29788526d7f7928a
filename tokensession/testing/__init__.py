"""For tests, ours and yours: strict token servers, a clock moved by hand, a scripted token endpoint.

Each name loads its module when it is first mentioned, so that importing this package needs neither
pytest nor a server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clock import FakeClock
    from .conformance import Backend, StoreConformance
    from .endpoint import Held, ScriptedEndpoint, reply
    from .servers import (
        Drip,
        Edit,
        Fault,
        Gate,
        Hang,
        OAuth2Server,
        OtoServer,
        PriavaServer,
        Reply,
        Reset,
        Seen,
        ServerStats,
        TokenServer,
        Truncate,
        json_reply,
        redirect,
    )

__all__ = [
    "Backend",
    "Drip",
    "Edit",
    "FakeClock",
    "Fault",
    "Gate",
    "Hang",
    "Held",
    "OAuth2Server",
    "OtoServer",
    "PriavaServer",
    "Reply",
    "Reset",
    "ScriptedEndpoint",
    "Seen",
    "ServerStats",
    "StoreConformance",
    "TokenServer",
    "Truncate",
    "json_reply",
    "redirect",
    "reply",
]

_HOMES = {
    "Backend": ".conformance",
    "FakeClock": ".clock",
    "Held": ".endpoint",
    "ScriptedEndpoint": ".endpoint",
    "StoreConformance": ".conformance",
    "reply": ".endpoint",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(_HOMES.get(name, ".servers"), __name__)
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise ModuleNotFoundError(
            f"{name} needs pytest. Install it: pip install 'tokensession[test]'", name="pytest"
        ) from None
    return getattr(home, name)


def __dir__() -> list[str]:
    return __all__
