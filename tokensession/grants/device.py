"""A sign-in on a device without a browser: the device authorization grant (RFC 8628)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from .._refresh.request import spent_by_a_lost_request
from ..errors import (
    AuthorizationPending,
    ConfigurationError,
    GrantRejected,
    InvalidTokenResponse,
    OutcomeUnknown,
    TokenUnavailable,
)
from ..providers import _wire
from ..providers.oauth2 import OAuth2
from ..providers.response import refusal
from ..source import ManagedSource
from ..token import Token, fingerprint
from ._source import check_source

__all__ = ["DeviceSignIn"]

_INTERVAL = 5.0  # seconds, if the server does not say (RFC 8628, 3.2); and how much slow_down adds (3.5)
_DENIED = ("access_denied", "authorization_declined")  # by the person; the second is Microsoft Entra's
_LONGEST_PAUSE = 60.0  # seconds, after failures, unless the server asks for more


@dataclass(slots=True, repr=False)
class DeviceSignIn:
    """A sign-in that a person approves on another device. Make one with `begin`, then call `complete`.

    Show the person `verification_uri` and `user_code`, or `verification_uri_complete` as a QR code.
    """

    user_code: str
    """What the person types."""
    verification_uri: str
    """Where."""
    device_code: str
    """The secret that is redeemed for the token. Not for people."""
    verification_uri_complete: str | None = None
    """The same address with the code in it, if the server has one."""
    expires_in: float = 600.0
    """Seconds until the codes end."""
    interval: float = _INTERVAL
    """Seconds between two requests. `complete` makes it longer when the server asks for that."""

    @classmethod
    async def begin(cls, source: ManagedSource, *, scope: str | None = None) -> Self:
        """Ask the server for the codes (RFC 8628, 3.1). `scope` is by default the provider's.

        Raises `ConfigurationError` if the provider has no `device_authorization_url` or another scope, or the
        server rejects the client, `TokenUnavailable` if it cannot be reached, and `InvalidTokenResponse`.
        """
        check_source(source)
        requests, clock = source._record.requests, source._clock
        provider = await requests.resolved()
        if not isinstance(provider, OAuth2):
            raise ConfigurationError(
                f"{type(provider).__name__} has no device_authorization_url.",
                intact="Nothing was sent.",
                todo="Use OAuth2(device_authorization_url=...).",
            )
        request = provider.device_authorization(scope)
        response = await requests.post(request)
        success = 200 <= response.status < 300
        found = _wire.parse_json(response.body) if success else {}
        if not success or found.get("error"):  # some servers refuse with a 200
            raise refusal(
                provider.strategy,
                response,
                "device authorization endpoint",
                now=clock.wall(),
                secrets=request.secrets,
            )
        address = found.get("verification_uri", found.get("verification_url"))  # seen at one large provider
        texts = (found.get("user_code"), address, found.get("device_code"))
        user_code, uri, device_code = (each if isinstance(each, str) else "" for each in texts)
        expires_in = _wire.lifetime_seconds(found.get("expires_in"))
        if not (user_code.isprintable() and uri.isprintable() and user_code and uri and device_code):
            raise InvalidTokenResponse(
                "The response has no user_code, no verification_uri or no device_code.",
                todo="Check device_authorization_url.",
            )
        complete = found.get("verification_uri_complete")
        interval = _wire.lifetime_seconds(found.get("interval"))
        return cls(
            user_code,
            uri,
            device_code,
            complete if isinstance(complete, str) and complete.isprintable() else None,
            600.0 if expires_in is None or expires_in <= 0 else expires_in,
            _INTERVAL if interval is None or interval <= 0 else interval,
        )

    async def complete(self, source: ManagedSource) -> Token:
        """Wait until the person has approved, and store the token.

        Asks the server every `interval` seconds, and less often while it cannot be reached. Raises
        `GrantRejected` if the person refuses or the codes end, `GrantLost` if they end after a request whose
        answer was lost, and what `ManagedSource.sign_in` raises.
        """
        clock, pause = source._clock, self.interval
        end = clock.boot() + self.expires_in
        lost: OutcomeUnknown | None = None
        while True:
            await clock.sleep(min(pause, max(0.0, end - clock.boot())))
            try:
                if clock.boot() >= end:
                    raise GrantRejected(
                        "The codes have ended, and no token has come.",
                        code="expired_token",
                        todo="Start the sign-in again.",
                    )
                return await source.sign_in(device_code=self.device_code)
            except AuthorizationPending as pending:
                self.interval += _INTERVAL if pending.slow_down else 0.0
                pause = max(self.interval, pending.retry_after or 0.0)
                lost = None  # so no request has spent the code
            except TokenUnavailable as error:  # RFC 8628, 3.5: ask less often
                longer = max(min(pause * 2, _LONGEST_PAUSE), self.interval)
                pause = max(longer, error.retry_after or 0.0)
                lost = error if isinstance(error, OutcomeUnknown) else lost
            except GrantRejected as error:
                if lost is None or error.code in _DENIED:
                    raise
                raise spent_by_a_lost_request(error, lost) from error

    def __repr__(self) -> str:
        return f"<DeviceSignIn {fingerprint(self.device_code)} at {self.verification_uri}>"
