"""Looks at the stored record all the time, as a process with nothing else to do."""

from __future__ import annotations

import asyncio

from tokensession._refresh.state import TokenState, decode
from tokensession.errors import ClaimTimeout, StoreCorrupt, StoreError
from tokensession.stores import Record, Store
from tokensession.token import fingerprint

from . import event_log
from .plan import KEY

__all__ = ["Watch", "gone"]

_LOOK = 0.02  # seconds


class Watch:
    """Reads and decodes the record again and again, and enters what it has not seen before."""

    def __init__(self, store: Store, log: event_log.EventLog) -> None:
        self._store = store
        self._log = log
        self._version: str | None = None
        self.looks = 0
        self.troubles = 0
        """How often the store could not be read, though what it holds may be sound."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK)

    async def look(self) -> TokenState | None:
        """What is stored now; None if nothing is, or it cannot be read."""
        self.looks += 1
        try:
            record = await self._store.load(KEY)
            grant = decode(record.data) if record else None
        except StoreCorrupt as error:
            self._log.enter(event_log.Corrupt(error.args[0]))
            return None
        except StoreError:
            self.troubles += 1
            return None
        if record is not None and record.version != self._version:
            self._version = record.version
            if (stored := redeemable(grant)) is not None:
                self._log.enter(event_log.Stored(stored))
        return grant

    async def stored(self) -> str | None:
        """The fingerprint of the refresh token in the record now."""
        return redeemable(await self.look())

    async def claim(self) -> None:
        """When everybody has gone, the key is free: claim it without waiting."""
        try:
            record = await self._store.load(KEY)
            claim = await self._store.claim(KEY, seen=record.version if record else None, timeout=0)
        except ClaimTimeout as error:
            self._log.enter(event_log.Leaked(error.args[0]))
        except StoreCorrupt as error:
            self._log.enter(event_log.Corrupt(error.args[0]))
        else:
            if not isinstance(claim, Record):
                await claim.abandon()


def redeemable(grant: TokenState | None) -> str | None:
    """The fingerprint of the grant's refresh token."""
    token = None if grant is None else grant.token
    return None if token is None or token.refresh_token is None else fingerprint(token.refresh_token)


def gone(grant: TokenState | None, seed: str) -> str | None:
    """The fingerprint of the credential, if the record says that it is lost: refused, or replayed in vain.

    `seed` is what was configured: with nothing else in the record, that is the credential.
    """
    if grant is None:
        return None
    credential = redeemable(grant) or seed
    error_response = grant.rejection is not None and grant.rejection.credential == credential
    lost = grant.attempt is not None and grant.attempt.credential == credential and grant.attempt.replays > 0
    return credential if error_response or lost else None
