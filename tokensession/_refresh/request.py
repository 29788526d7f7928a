"""Sends one token request: one deadline, one connection, and a typed error for everything that goes wrong."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..clock import Clock, within
from ..errors import (
    GrantLost,
    GrantRejected,
    NotSent,
    OutcomeUnknown,
    StoreError,
    Superseded,
    TokenSessionError,
)
from ..policy import Policy
from ..providers.protocol import Credential, Issued, Provider, TokenRequest, TokenResponse, TokenTransport
from ..stores.protocol import AnyVersion, Claim
from ..token import fingerprint
from .state import Now, TokenState, redeeming
from .store_access import StoreAccess

__all__ = ["Sending", "TokenRequests"]


@dataclass(slots=True)
class Sending:
    """Called just before a token request leaves: leaves the marks that must be there before it.

    `sent` is when that was, or None. A code is noted in the state too, because it must not be sent again even
    if this process dies: then `noted` is set, and `version` is the note's. `version` is what is stored.
    """

    access: StoreAccess
    claim: Claim | None
    credential: Credential
    state: TokenState
    version: str | AnyVersion | None
    listening: float = 0.0
    sent: Now | None = None
    noting: bool = False
    noted: bool = False

    async def __call__(self) -> None:
        access = self.access
        if self.claim is not None:
            await access.sending(self.claim, self.listening)
        if self.credential.grant_type == "authorization_code":  # each time: the note may have been lost
            now = access.now().boot
            note = replace(self.state, redeemed=redeeming(self.state, self.credential.fingerprint, now))
            self.noting = True
            try:
                record = await access.put(note, self.version)
            except Superseded:
                self.noting = False  # a note that is there now is another process's
                raise
            self.noted, self.version = True, record.version
        if self.sent is None:
            self.sent = access.now()

    async def take_back(self) -> None:
        """If nothing was sent, take the note back: a write that failed or was cancelled may have arrived."""
        if not self.noting or self.sent is not None:
            return
        with contextlib.suppress(StoreError):
            seen = await self.access.load()
            name = self.credential.fingerprint
            if seen is not None and seen.state.order == self.state.order and seen.state.has_redeemed(name):
                await self.access.put(self.state, seen.version)


@dataclass(frozen=True, slots=True)
class TokenRequests:
    """The token requests of one provider, through one transport."""

    provider: Provider
    transport: TokenTransport
    policy: Policy
    clock: Clock

    def fingerprint(self, credential: Credential) -> str:
        """What identifies the token request with this credential: every header and field, if the provider
        does not say what else.
        """
        own = getattr(self.provider, "request_fingerprint", None)
        if own is not None:
            return fingerprint(own(credential))
        request = self.provider.request(credential)
        digest = hashlib.blake2b(digest_size=8, person=b"tokensession")
        for part in (request.url, *(text for header in request.headers for text in header)):
            digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
        digest.update(request.body)
        return digest.hexdigest()

    async def reserve(self, credential: Credential) -> Callable[[], None]:
        """Wait for a connection of the transport's. Returns a function that gives it back."""
        reserve = getattr(self.transport, "reserve", None)
        if reserve is None:
            return _nothing
        release: Callable[[], None] = await reserve(self.provider.request(credential).url)
        return release

    async def send(self, credential: Credential, single: bool, sending: Sending) -> Issued:
        """One token request, a code twice if its answer gets lost: the token, or a typed error."""
        try:
            return await self._send_once(credential, single, sending)
        except OutcomeUnknown as lost:
            if credential.grant_type != "authorization_code":
                raise
            first = lost
        try:
            return await self._send_once(credential, single, sending)
        except GrantRejected as error:
            raise GrantLost(
                f"{error.args[0] if error.args else 'The code was rejected.'} An earlier request with it got "
                f"no answer, and has probably spent it: {first.args[0]}",
                code=error.code,
            ) from error
        except TokenSessionError as error:  # whatever this one says, the first may have spent the code
            raise OutcomeUnknown(f"{first.args[0]} The request was repeated, and failed too.") from error

    async def _send_once(self, credential: Credential, single: bool, sending: Sending) -> Issued:
        policy = self.policy
        request = self.provider.request(credential)
        total = policy.response_timeout if single else policy.request_timeout
        sending.listening = total
        try:
            response = await within(self.clock, total, self._send(request, total, sending))
        except TokenSessionError:
            raise
        except TimeoutError:
            if sending.sent is None:
                raise NotSent(f"The token request could not be sent within {total:g} s.") from None
            raise OutcomeUnknown(f"The token request got no answer within {total:g} s.") from None
        except Exception as error:
            raise OutcomeUnknown(f"The transport failed unexpectedly ({type(error).__name__}).") from error
        sent = sending.sent or Now(self.clock.wall(), self.clock.boot())
        try:
            return self.provider.read(response, credential, sent_at=sent.wall)
        except TokenSessionError:
            raise
        except Exception as error:
            raise OutcomeUnknown(
                f"The provider failed to read the token response ({type(error).__name__})."
            ) from error

    async def _send(self, request: TokenRequest, total: float, sending: Sending) -> TokenResponse:
        connect = self.policy.connect_timeout
        if _has_hook(self.transport):
            return await self.transport.send(request, connect=connect, total=total, on_sending=sending)
        await sending()  # a transport that does not say when: it counts as sent from here on
        return await self.transport.send(request, connect=connect, total=total)


def _has_hook(transport: TokenTransport) -> bool:
    """Whether this transport says when a request leaves."""
    try:
        return "on_sending" in inspect.signature(transport.send).parameters
    except (TypeError, ValueError):
        return False


def _nothing() -> None:
    pass
