"""Reads the stored record all the time, as one more process would. And puts older copies of it back."""

from __future__ import annotations

from collections import deque

import anyio

from tokensession._refresh.state import Now, TokenState, decode
from tokensession.clock import SystemClock
from tokensession.errors import ClaimTimeout, StoreCorrupt, StoreError
from tokensession.stores import Record, Store
from tokensession.token import fingerprint

from . import event_log
from .plan import KEY

__all__ = ["Watch", "redeemable"]

_POLL = 0.02  # seconds
_REMEMBERED = 8  # records with different refresh tokens


class Watch:
    """Reads and decodes the record again and again, and logs what is new."""

    def __init__(self, store: Store, log: event_log.EventLog, *, lease: float = 0.0) -> None:
        self._store = store
        self._log = log
        self._lease = lease
        self._record: Record | None = None
        self._earlier: deque[tuple[str, bytes]] = deque(maxlen=_REMEMBERED)
        self.reads = 0
        self.failed_reads = 0
        """How often the store could not be read. The record may be fine."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.stored()
            await anyio.sleep(_POLL)

    async def stored(self) -> str | None:
        """The fingerprint of the refresh token in the record now, or None. Also if it cannot be read."""
        self.reads += 1
        try:
            record = await self._store.load(KEY)
            credential = redeemable(record.data if record is not None else None)
        except StoreCorrupt as error:
            self._log.add(event_log.Corrupt(error.args[0]))
            return None
        except StoreError:
            self.failed_reads += 1
            return None
        before, self._record = self._record, record
        if record is not None and credential is not None and record != before:
            self._log.add(event_log.Stored(credential))
            if all(credential != earlier for earlier, _ in self._earlier):
                self._earlier.append((credential, record.data))
        return credential

    async def surely_stored(self) -> str | None:
        """The same, but it waits for a store that cannot be read now."""
        while True:
            failed = self.failed_reads
            credential = await self.stored()
            if failed == self.failed_reads:
                return credential
            await anyio.sleep(_POLL)

    async def put_back(self, which: float) -> str | None:
        """Put an older copy back. Returns the fingerprint of its access token, or None if there is none."""
        current = await self.stored()
        older = [copy for copy in self._earlier if copy[0] != current]
        if not older:
            return None
        credential, data = older[int(which * len(older))]
        try:
            await self._store.put(
                KEY, data, expect=self._record.version if self._record is not None else None
            )
        except StoreError:  # a worker was faster
            return None
        token = _state(data).token
        access = token.fingerprint if token is not None else ""
        self._log.add(event_log.PutBack(credential, access))
        return access

    async def delete(self) -> None:
        """Delete the record, unless it changes just now: what it was must have been seen."""
        await self.stored()
        try:
            if self._record is not None and await self._store.delete(KEY, expect=self._record.version):
                self._log.add(event_log.Deleted())
        except StoreError:
            pass

    async def claim(self) -> None:
        """Claim the key: once all workers have ended, it must be free.

        Not before the lease of one that was killed has ended.
        """
        try:
            record = await self._store.load(KEY)
            seen = record.version if record else None
            claim = await self._store.claim(KEY, seen=seen, timeout=2 * self._lease)
        except ClaimTimeout as error:
            self._log.add(event_log.Leaked(error.args[0]))
        except StoreCorrupt as error:
            self._log.add(event_log.Corrupt(error.args[0]))
        else:
            if not isinstance(claim, Record):
                await claim.abandon()


def redeemable(data: bytes | None) -> str | None:
    """The fingerprint of the refresh token in a record. Raises `StoreCorrupt`."""
    token = None if data is None else _state(data).token
    return None if token is None or token.refresh_token is None else fingerprint(token.refresh_token)


def _state(data: bytes) -> TokenState:
    """What is in a record. Its moments do not matter here."""
    return decode(data, Now(SystemClock.wall(), SystemClock.boot()))
