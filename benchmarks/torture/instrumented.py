"""A worker's transport and store. They report to the supervisor how far a refresh has come.

What was reported before a kill is in the pipe, and is read after the kill.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from tokensession import AiohttpTransport, OutcomeUnknown
from tokensession.cli.child_process import say
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import Record, Store
from tokensession.stores.protocol import ANY, AnyVersion, Claim
from tokensession.token import fingerprint

from ..harness.wrapped import WrappedClaim, WrappedStore
from .clocks import SkewedClock
from .watch import redeemable

__all__ = ["OFFSET", "WORKER", "InstrumentedClaim", "InstrumentedStore", "InstrumentedTransport"]

WORKER = "X-Torture-Worker"
"""The header of a token request that names its worker."""
OFFSET = "X-Torture-Offset"
"""The header with the offset of its wall clock, in seconds."""


class InstrumentedTransport:
    """Sends token requests with the worker's name in a header, and reports the outcome of each."""

    def __init__(self, name: str, clock: SkewedClock) -> None:
        self._name = name
        self._clock = clock
        self._inner = AiohttpTransport()

    async def reserve(self, url: str) -> Callable[[], None]:
        """See `AiohttpTransport.reserve`."""
        return await self._inner.reserve(url)

    async def send(
        self,
        request: TokenRequest,
        *,
        connect: float,
        total: float,
        on_sending: Callable[[], Awaitable[None]] | None = None,
    ) -> TokenResponse:
        """See `TokenTransport`. Reports nothing of a request that never leaves."""
        marks = ((WORKER, self._name), (OFFSET, repr(self._clock.offset)))
        marked = TokenRequest(request.url, (*request.headers, *marks), request.body, request.secrets)
        credential = fingerprint(parse_qs(request.body.decode())["refresh_token"][0])
        outcome: int | str = OutcomeUnknown.__name__  # for a request that a timeout cancels
        sent = False

        async def sending() -> None:
            nonlocal sent
            if on_sending is not None:
                await on_sending()
            sent = True
            say(sent=credential)

        try:
            token_response = await self._inner.send(marked, connect=connect, total=total, on_sending=sending)
            outcome = token_response.status
            return token_response
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            if sent:
                say(outcome=outcome, credential=credential)


class InstrumentedStore(WrappedStore):
    """A store that reports its claims, and which refresh tokens this process has seen."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self._seen: str | None = None

    async def load(self, key: str) -> Record | None:
        """Load, then report what it has seen."""
        record = await self.inner.load(key)
        self.see(record.data if record is not None else None)
        return record

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Claim | Record:
        """Claim, then report it."""
        claim = await self.inner.claim(key, seen=seen, timeout=timeout)
        record = claim if isinstance(claim, Record) else claim.current
        self.see(record.data if record is not None else None)
        if isinstance(claim, Record):
            return claim
        say(claimed=True)
        return InstrumentedClaim(claim, self)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Needs no claim."""
        self.see(data)
        return await self.inner.put(key, data, expect=expect)

    def see(self, data: bytes | None) -> None:
        """Report the refresh token in these bytes, unless it was the last one."""
        seen = redeemable(data)
        if seen is not None and seen != self._seen:
            self._seen = seen
            say(seen=seen)


class InstrumentedClaim(WrappedClaim):
    """A claim that reports its end. (Its `sending` is reported by the transport.)"""

    def __init__(self, inner: Claim, store: InstrumentedStore) -> None:
        super().__init__(inner)
        self._store = store
        self._reported = False

    async def commit(self, data: bytes) -> Record:
        """Commit, then report it."""
        self._store.see(data)
        record = await self.inner.commit(data)
        self._report()
        return record

    async def abandon(self) -> None:
        """Abandon, then report it."""
        await self.inner.abandon()
        self._report()

    def _report(self) -> None:
        if not self._reported:
            self._reported = True
            say(released=True)
