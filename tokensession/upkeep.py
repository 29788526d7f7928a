"""What an operator does to a store without a provider: sign one key out, and delete what no sign-in needs."""

from __future__ import annotations

from ._refresh.next_state import next_number, signed_out
from ._refresh.state import Now, TokenState, decode, encode
from ._validate import describe, implements
from .clock import SystemClock
from .errors import ConfigurationError, StoreCorrupt, StoreUnavailable, Superseded
from .policy import MEMORY_LIFE
from .stores.protocol import Store
from .token import fingerprint

__all__ = ["prune", "sign_out"]

_CLOCK = SystemClock()
_ROUNDS = 20  # others may refresh at the same time


async def prune(store: Store, *, older_than: float = 30 * 86400.0) -> list[str]:
    """Delete tombstones and dead records that have not changed for `older_than` seconds. Returns their keys.

    A tombstone is what a sign-out leaves. A record is dead if its refresh token was rejected for good and its
    access token has expired. Records that cannot be read stay.

    A process that still remembers an older state would write it back where a record is gone. It does so only
    within a week after it last saw the record, so `older_than` must be a week or more. Raises
    `ConfigurationError` if it is less, and `StoreError`.
    """
    _check(store)
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


async def sign_out(store: Store, key: str) -> bool:
    """Sign this key out, as `ManagedSource.sign_out` does. Returns whether there was anything to sign out.

    The processes that use the key stop when they look at the store, at the latest when their token is due.
    The provider is not told. Raises `StoreError`: `StoreCorrupt` for a record that cannot be read, which only
    a new sign-in replaces.
    """
    _check(store)
    for _ in range(_ROUNDS):
        record = await store.load(key)
        if record is None:
            return False
        now = Now(_CLOCK.wall(), _CLOCK.boot())
        before = decode(record.data, now, age=record.age)
        if before.signed_out:
            return False
        tombstone = signed_out(before, next_number(before.number, now.wall), configured=before.configured)
        try:
            await store.put(key, encode(tombstone, now), expect=record.version)
        except Superseded:  # it has just been refreshed
            continue
        return True
    raise StoreUnavailable(f"The record changed {_ROUNDS} times during one sign-out.")


def _check(store: Store) -> None:
    if not implements(Store, store):
        raise ConfigurationError(
            f"store must be a store, not {describe(store)}.",
            todo="Pass one of tokensession.stores, or open_store(url).",
        )


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
