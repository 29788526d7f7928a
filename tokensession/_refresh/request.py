"""Sends one token request: one deadline, one connection, and a typed error for everything that goes wrong."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from .._redact import excerpt
from ..clock import Clock, bounded, within
from ..errors import (
    GrantLost,
    GrantRejected,
    NotSent,
    OutcomeUnknown,
    Superseded,
    TokenSessionError,
    TokenUnavailable,
)
from ..policy import Policy
from ..providers.protocol import Credential, Issued, Provider, TokenRequest, TokenResponse, TokenTransport
from ..stores.protocol import ANY, AnyVersion, Claim
from ..token import Token, fingerprint
from .state import Now, TokenState, redeeming
from .store_access import StoreAccess

__all__ = ["Sending", "TokenRequests", "spent_by_a_lost_request"]

_NEW_FOR = 1.0  # seconds for which what was read for a decision is sent without another look


@dataclass(slots=True)
class Sending:
    """Called just before a token request leaves: leaves the marks that must be there before it.

    `sent` is when that was, or None. `request` and `volatile` are what identifies it (see `TokenRequests`):
    its secrets may have changed since it was decided. A code is noted in the state too, because it must not
    be sent again even if this process dies. `noting`: that note may be there, and was not before. `noted`: it
    is there, and `version` is its version. Before, `version` is that of what is stored.
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
    request: str | None = None
    volatile: str = ""

    async def __call__(self) -> None:
        access = self.access
        if self.claim is not None:
            await access.sending(self.claim, self.listening)
        # Each time: the note may have been lost. Not over a record that cannot be read: it stays as it is if
        # there is no token to replace it.
        if self.credential.grant_type == "authorization_code" and self.version is not ANY:
            now = access.now().boot
            note = replace(self.state, redeemed=redeeming(self.state, self.credential.fingerprint, now))
            self.noting = self.noting or not self.state.has_redeemed(self.credential.fingerprint)
            try:
                record = await access.put(note, self.version)
            except Superseded:
                self.noting = False  # a note that is there now is another process's
                raise
            self.state, self.noted, self.version = note, True, record.version
        if self.sent is None:
            self.sent = access.now()


@dataclass(slots=True)
class TokenRequests:
    """The token requests of one provider, through one transport.

    `ready` is the provider with its secrets as they were when they were last read. It is None if they could
    not be, and `problem` says why, or if they are to be read again. Until `new_until` it may be sent so.
    """

    provider: Provider
    transport: TokenTransport
    policy: Policy
    clock: Clock
    ready: Provider | None = field(init=False, default=None)
    problem: TokenSessionError | None = field(init=False, default=None)
    new_until: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self.expire()

    def expire(self) -> None:
        """Have the secrets read again, if they may change, before it is decided what to send."""
        self.ready = None if self._changes else self.provider

    @property
    def _changes(self) -> bool:
        return hasattr(self.provider, "resolved") and bool(getattr(self.provider, "changes", True))

    async def resolved(self) -> Provider:
        """The provider with its secrets as they are now. Raises `NotSent` or `ConfigurationError`."""
        if not self._changes:
            return self.provider
        resolve: Callable[..., Coroutine[Any, Any, Provider]] = getattr(self.provider, "resolved")  # noqa: B009
        seconds, what = self.policy.connect_timeout, "The secrets of the token request could not be read"
        try:
            ready = await within(self.clock, seconds, resolve(wall=self.clock.wall()))
        except TokenSessionError as error:
            self.ready, self.problem = None, error
            raise
        except TimeoutError:
            problem = NotSent(f"{what} within {seconds:g} s.")
        except Exception as error:  # noqa: BLE001 - a third-party provider may raise anything
            problem = NotSent(f"{what} ({type(error).__name__}).")
        else:
            self.ready, self.problem, self.new_until = ready, None, float("-inf")
            return ready
        self.ready, self.problem = None, problem
        raise problem  # outside the handler: the other one's message may have a secret

    async def _ahead(self) -> Provider:
        """The same, for a token request that follows: no other request has this assertion."""
        provider = await self.resolved()
        self.new_until = self.clock.boot() + _NEW_FOR
        return provider

    async def _to_send(self) -> Provider:
        """The provider for one request: as just read, so that a secret that hangs holds up no claim, or as it
        is now, if that is a while ago. An assertion is sent once.
        """
        ready = self.ready if self.clock.boot() <= self.new_until else None
        provider = ready or await self.resolved()
        self.new_until = float("-inf")
        return provider

    async def look(self) -> None:
        """Read the secrets, if that is possible. If it is not, `problem` says why."""
        with contextlib.suppress(TokenSessionError):
            await self._ahead()

    @property
    def volatile(self) -> str:
        """What identifies the secrets that functions returned. They are not in the fingerprint."""
        return getattr(self.ready, "volatile", "")

    def fingerprint(self, credential: Credential) -> str:
        """What identifies the token request with this credential: every header and field, if the provider
        does not say what else. Without secrets, it is equal to no request that was ever sent.
        """
        provider = self.ready
        if provider is None:
            return fingerprint(f"unread {self.problem and self.problem.args}")
        own = getattr(provider, "request_fingerprint", None)
        if own is not None:
            return fingerprint(own(credential))
        request = provider.request(credential)
        digest = hashlib.blake2b(digest_size=8, person=b"tokensession")
        for part in (request.url, *(text for header in request.headers for text in header)):
            digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
        digest.update(request.body)
        return digest.hexdigest()

    async def reserve(self, credential: Credential) -> Callable[[], None]:
        """Wait for a connection of the transport's. Returns a function that gives it back.

        Raises `NotSent` or `ConfigurationError` if the secrets cannot be read.
        """
        reserve = getattr(self.transport, "reserve", None)
        if reserve is None:
            return _nothing
        provider = self.ready or await self._ahead()
        release: Callable[[], None] = await reserve(provider.request(credential).url)
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
            raise spent_by_a_lost_request(error, first) from error
        except TokenSessionError as error:  # whatever this one says, the first may have spent the code
            raise OutcomeUnknown(f"{first.args[0]} The request was repeated, and failed too.") from error

    async def _send_once(self, credential: Credential, single: bool, sending: Sending) -> Issued:
        policy = self.policy
        try:
            provider = await self._to_send()
        finally:
            sending.request, sending.volatile = self.fingerprint(credential), self.volatile
        request = provider.request(credential)
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
            return provider.read(response, credential, sent_at=sent.wall)
        except TokenSessionError:
            raise
        except Exception as error:
            raise OutcomeUnknown(
                f"The provider failed to read the token response ({type(error).__name__})."
            ) from error

    @property
    def revokes(self) -> bool:
        """Whether there may be an endpoint that revokes a token."""
        provider = self.provider
        return hasattr(provider, "revocation") and getattr(provider, "revocation_url", "") is not None

    async def revoke(self, token: Token) -> bool:
        """Revoke this token (RFC 7009). Returns whether there is an endpoint for it. Raises a typed error."""
        provider = await self.resolved()
        revocation = getattr(provider, "revocation", None)
        request: TokenRequest | None = revocation(token) if revocation is not None else None
        if request is None:
            return False
        response = await self.post(request)
        if not 200 <= response.status < 300:
            said = excerpt(response.body, request.secrets)
            raise TokenUnavailable(
                f"The revocation endpoint answered {response.status}{': ' + said if said else ''}.",
                todo="Revoke it at the provider, or wait until it expires.",
            )
        return True

    async def post(self, request: TokenRequest) -> TokenResponse:
        """Send a request that spends nothing to another endpoint than the token endpoint.

        Returns the response, whatever its status. Raises a typed error.
        """
        policy = self.policy
        send = self.transport.send(request, connect=policy.connect_timeout, total=policy.request_timeout)
        try:
            return await bounded(self.clock, policy.request_timeout, send)
        except TokenSessionError:
            raise
        except TimeoutError:
            raise TokenUnavailable(f"There was no answer within {policy.request_timeout:g} s.") from None
        except Exception as error:
            raise TokenUnavailable(f"The transport failed unexpectedly ({type(error).__name__}).") from error

    async def _send(self, request: TokenRequest, total: float, sending: Sending) -> TokenResponse:
        connect = self.policy.connect_timeout
        if _has_hook(self.transport):
            return await self.transport.send(request, connect=connect, total=total, on_sending=sending)
        await sending()  # a transport that does not say when: it counts as sent from here on
        return await self.transport.send(request, connect=connect, total=total)


def spent_by_a_lost_request(rejected: GrantRejected, lost: OutcomeUnknown) -> GrantLost:
    """The error for a code that is rejected after a request with it got no answer."""
    return GrantLost(
        f"{rejected.args[0] if rejected.args else 'The code was rejected.'} An earlier request with it got "
        f"no answer, and has probably spent it: {lost.args[0]}",
        code=rejected.code,
        todo=rejected.todo,
    )


def _has_hook(transport: TokenTransport) -> bool:
    """Whether this transport says when a request leaves."""
    try:
        return "on_sending" in inspect.signature(transport.send).parameters
    except (TypeError, ValueError):
        return False


def _nothing() -> None:
    pass
