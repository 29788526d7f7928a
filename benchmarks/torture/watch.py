"""Reads the stored record all the time, as one more process would."""

from __future__ import annotations

import anyio

from tokensession._refresh.state import TokenState, decode
from tokensession.errors import ClaimTimeout, StoreCorrupt, StoreError
from tokensession.stores import Record, Store
from tokensession.token import fingerprint

from . import event_log
from .plan import KEY

__all__ = ["Watch", "lost_credential"]

_POLL = 0.02  # seconds


class Watch:
    """Reads and decodes the record again and again, and logs what is new."""

    def __init__(self, store: Store, log: event_log.EventLog) -> None:
        self._store = store
        self._log = log
        self._version: str | None = None
        self.reads = 0
        self.failed_reads = 0
        """How often the store could not be read. The record may be fine."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await anyio.sleep(_POLL)

    async def look(self) -> TokenState | None:
        """The stored state, or None if there is none or it cannot be read."""
        self.reads += 1
        try:
            record = await self._store.load(KEY)
            state = decode(record.data) if record else None
        except StoreCorrupt as error:
            self._log.add(event_log.Corrupt(error.args[0]))
            return None
        except StoreError:
            self.failed_reads += 1
            return None
        if record is not None and record.version != self._version:
            self._version = record.version
            if (stored := redeemable(state)) is not None:
                self._log.add(event_log.Stored(stored))
        return state

    async def stored(self) -> str | None:
        """The fingerprint of the refresh token in the record now."""
        return redeemable(await self.look())

    async def claim(self) -> None:
        """Claim the key without waiting: once all workers have ended, it must be free."""
        try:
            record = await self._store.load(KEY)
            claim = await self._store.claim(KEY, seen=record.version if record else None, timeout=0)
        except ClaimTimeout as error:
            self._log.add(event_log.Leaked(error.args[0]))
        except StoreCorrupt as error:
            self._log.add(event_log.Corrupt(error.args[0]))
        else:
            if not isinstance(claim, Record):
                await claim.abandon()


def redeemable(state: TokenState | None) -> str | None:
    """The fingerprint of the state's refresh token."""
    token = None if state is None else state.token
    return None if token is None or token.refresh_token is None else fingerprint(token.refresh_token)


def lost_credential(state: TokenState | None, configured: str) -> str | None:
    """The fingerprint of the credential, if the record says that it is lost: rejected, or replayed already.

    `configured` is the fingerprint of the configured credential, which counts if the record has no other.
    """
    if state is None:
        return None
    credential = redeemable(state) or configured
    rejected = state.rejection is not None and state.rejection.credential == credential
    replayed = (
        state.attempt is not None and state.attempt.credential == credential and state.attempt.replays > 0
    )
    return credential if rejected or replayed else None
