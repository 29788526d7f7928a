"""One record after another, while others use the store: for `EncryptedStore.rotate` and `copy_store`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from ..errors import ClaimTimeout, StoreError
from .protocol import Claim, Record, Store

__all__ = ["Progress", "StoreReport", "held"]

_WAIT = 30.0  # seconds for a refresh to end; almost all take less than one


@dataclass(slots=True)
class StoreReport:
    """What has become of each record. `progress=` gets this object after each record."""

    total: int = 0
    """How many keys there were at the start."""
    done: list[str] = field(default_factory=list)
    """The keys of the records that were copied or encrypted again."""
    unchanged: list[str] = field(default_factory=list)
    """The keys for which there was nothing to do: it was done before, or the record is gone."""
    skipped: dict[str, str] = field(default_factory=dict)
    """The keys of the records that were left alone, and why."""

    @property
    def seen(self) -> int:
        """How many of the keys have been dealt with."""
        return len(self.done) + len(self.unchanged) + len(self.skipped)


Progress: TypeAlias = Callable[[StoreReport], object]


@contextlib.asynccontextmanager
async def held(store: Store, key: str) -> AsyncIterator[tuple[Claim, Record] | None]:
    """The claim and the record under it, so that no token request with it is under way. None if it is gone.

    The claim is abandoned at the end and never committed, so what an interrupted holder has left stays for
    the next one. Raises `ClaimTimeout` if a refresh takes long.
    """
    seen: str | None = None
    while True:
        found = await store.claim(key, seen=seen, timeout=_WAIT)
        if not isinstance(found, Record):
            break
        seen = found.version
    try:
        yield (found, found.current) if found.current is not None else None
    finally:
        with contextlib.suppress(StoreError, ClaimTimeout):
            await found.abandon()
