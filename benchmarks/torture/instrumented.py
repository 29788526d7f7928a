"""A worker's transport and store. They report to the supervisor how far a refresh has come.

What was reported before a kill is in the pipe, and is read after the kill.
"""

from __future__ import annotations

from tokensession import AiohttpTransport, OutcomeUnknown
from tokensession._refresh.state import decode
from tokensession.cli.child_process import say
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import Record, Store
from tokensession.stores.protocol import ANY, AnyVersion, Claim
from tokensession.token import fingerprint

from .clocks import SkewedClock

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

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        """See `TokenTransport`."""
        marks = ((WORKER, self._name), (OFFSET, repr(self._clock.offset)))
        marked = TokenRequest(request.url, (*request.headers, *marks), request.body, request.secrets)
        outcome: int | str = OutcomeUnknown.__name__  # for a request that a timeout cancels
        say(sent=True)
        try:
            token_response = await self._inner.send(marked, connect=connect, total=total)
            outcome = token_response.status
            return token_response
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            say(outcome=outcome)


class InstrumentedStore:
    """A store that reports its claims."""

    def __init__(self, inner: Store, configured: str) -> None:
        self._inner = inner
        self._configured = configured

    async def load(self, key: str) -> Record | None:
        """See `Store.load`, as for all of these."""
        return await self._inner.load(key)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Claim | Record:
        """Claim, then report it."""
        claim = await self._inner.claim(key, seen=seen, timeout=timeout)
        if isinstance(claim, Record):
            return claim
        token = decode(claim.current.data).token if claim.current else None
        secret = token.refresh_token if token and token.refresh_token else self._configured
        say(claimed=fingerprint(secret))
        return InstrumentedClaim(claim)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Not reported: it needs no claim."""
        return await self._inner.put(key, data, expect=expect)

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Not reported."""
        return await self._inner.delete(key, expect=expect)

    async def keys(self) -> list[str]:
        """Not reported."""
        return await self._inner.keys()

    async def aclose(self) -> None:
        """Not reported."""
        await self._inner.aclose()


class InstrumentedClaim:
    """A claim that reports its end."""

    def __init__(self, inner: Claim) -> None:
        self._inner = inner
        self._reported = False

    @property
    def current(self) -> Record | None:
        """See `Claim`."""
        return self._inner.current

    @property
    def interrupted(self) -> float | None:
        """See `Claim`."""
        return self._inner.interrupted

    async def commit(self, data: bytes) -> Record:
        """Commit, then report it."""
        record = await self._inner.commit(data)
        self._report()
        return record

    async def abandon(self) -> None:
        """Abandon, then report it."""
        await self._inner.abandon()
        self._report()

    def _report(self) -> None:
        if not self._reported:
            self._reported = True
            say(released=True)
