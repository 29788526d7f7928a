"""Deletes what no sign-in needs any more: tombstones, and records whose credential is dead."""

from __future__ import annotations

from ._refresh.state import Now, TokenState, decode
from ._validate import describe, implements
from .clock import SystemClock
from .errors import ConfigurationError, StoreCorrupt, Superseded
from .policy import MEMORY_LIFE
from .stores.protocol import Store
from .token import fingerprint

__all__ = ["prune"]

_CLOCK = SystemClock()


async def prune(store: Store, *, older_than: float = 30 * 86400.0) -> list[str]:
    """Delete tombstones and dead records that have not changed for `older_than` seconds. Returns their keys.

    A tombstone is what a sign-out leaves. A record is dead if its refresh token was rejected for good and its
    access token has expired. Records that cannot be read stay.

    A process that still remembers an older state would write it back where a record is gone. It does so only
    within a week after it last saw the record, so `older_than` must be a week or more. Raises
    `ConfigurationError` if it is less, and `StoreError`.
    """
    if not implements(Store, store):
        raise ConfigurationError(
            f"store must be a store, not {describe(store)}.",
            todo="Pass one of tokensession.stores, or open_store(url).",
        )
    if (
        isinstance(older_than, bool)
        or not isinstance(older_than, int | float)
        or not older_than >= MEMORY_LIFE
    ):
        raise ConfigurationError(
            f"older_than must be at least {MEMORY_LIFE:g} s (a week), not {older_than!r}: a process may "
            "still remember what is deleted, and would write it back."
        )
    pruned = []
    for key in await store.keys():
        try:
            record = await store.load(key)
            if record is None or record.age < older_than:
                continue
            now = Now(_CLOCK.wall(), _CLOCK.boot())
            state = decode(record.data, now, age=record.age)
            if _is_dead(state, now) and await store.delete(key, expect=record.version):
                pruned.append(key)
        except (StoreCorrupt, Superseded):
            continue
    return pruned


def _is_dead(state: TokenState, now: Now) -> bool:
    if state.signed_out:
        return True
    token = state.token
    if token is not None and (token.lifetime is None or now.boot < state.obtained + token.lifetime):
        return False
    if token is None:
        current = [state.configured or state.start]
    else:
        left = (token.refresh_token, state.previous)
        current = [fingerprint(refresh_token) for refresh_token in left if refresh_token]
    rejected = {rejection.credential for rejection in state.rejections if rejection.certain}
    return bool(current) and rejected.issuperset(current)
