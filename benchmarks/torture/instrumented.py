"""A worker's endpoint and store, which tell the supervisor how far a refresh has come.

What was said before a kill is in the pipe, and is heard after it.
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

__all__ = ["OFFSET", "WORKER", "MarkedTransport", "ToldClaim", "ToldStore"]

WORKER = "X-Torture-Worker"
"""The header of a token request that says who sends it."""
OFFSET = "X-Torture-Offset"
"""The one that says how wrong its clock is."""


class MarkedTransport:
    """Sends token requests with the worker's name on them, and says what becomes of each."""

    def __init__(self, name: str, clock: SkewedClock) -> None:
        self._name = name
        self._clock = clock
        self._inner = AiohttpTransport()

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        """See `TokenTransport`."""
        marks = ((WORKER, self._name), (OFFSET, repr(self._clock.offset)))
        marked = TokenRequest(request.url, (*request.headers, *marks), request.body, request.secrets)
        outcome: int | str = OutcomeUnknown.__name__  # what it is if we are cut off by a time-out
        say(sent=True)
        try:
            token_response = await self._inner.send(marked, connect=connect, total=total)
            outcome = token_response.status
            return token_response
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            say(heard=outcome)


class ToldStore:
    """A store that tells the supervisor of its claims."""

    def __init__(self, inner: Store, seed: str) -> None:
        self._inner = inner
        self._seed = seed

    async def load(self, key: str) -> Record | None:
        """See `Store.load`, like all of these."""
        return await self._inner.load(key)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Claim | Record:
        """The claim, told."""
        claim = await self._inner.claim(key, seen=seen, timeout=timeout)
        if isinstance(claim, Record):
            return claim
        token = decode(claim.current.data).token if claim.current else None
        secret = token.refresh_token if token and token.refresh_token else self._seed
        say(claimed=fingerprint(secret))
        return ToldClaim(claim)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Not told: it needs no claim."""
        return await self._inner.put(key, data, expect=expect)

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Not told."""
        return await self._inner.delete(key, expect=expect)

    async def keys(self) -> list[str]:
        """Not told."""
        return await self._inner.keys()

    async def aclose(self) -> None:
        """Not told."""
        await self._inner.aclose()


class ToldClaim:
    """A claim that tells of its end."""

    def __init__(self, inner: Claim) -> None:
        self._inner = inner
        self._told = False

    @property
    def current(self) -> Record | None:
        """See `Claim`."""
        return self._inner.current

    @property
    def interrupted(self) -> float | None:
        """See `Claim`."""
        return self._inner.interrupted

    async def commit(self, data: bytes) -> Record:
        """Commit, then tell."""
        record = await self._inner.commit(data)
        self._tell()
        return record

    async def abandon(self) -> None:
        """Abandon, then tell."""
        await self._inner.abandon()
        self._tell()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            say(released=True)
