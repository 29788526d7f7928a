"""How a person signs in: in a browser, or on another device.

Each ends in `source.sign_in(...)`, which stores the token. A machine needs none of this: see
`OAuth2(grant="client_credentials")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .authorization import AuthorizationRequest
    from .device import DeviceSignIn
    from .loopback import LoopbackRedirect

__all__ = ["AuthorizationRequest", "DeviceSignIn", "LoopbackRedirect"]

if not TYPE_CHECKING:  # a type checker knows the names, and finds wrong ones
    __getattr__ = lazily(
        globals(),
        {
            "AuthorizationRequest": ".authorization",
            "DeviceSignIn": ".device",
            "LoopbackRedirect": ".loopback",
        },
    )


def __dir__() -> list[str]:
    return __all__
