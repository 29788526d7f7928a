"""What an operator does to a store without a provider: sign a key out, delete what no sign-in needs, move."""

from __future__ import annotations

import contextlib

from ._refresh.next_state import next_number, signed_out
from ._refresh.state import Now, TokenState, decode, encode
from ._validate import describe, implements
from .clock import SystemClock
from .errors import (
    ClaimTimeout,
    ConfigurationError,
    StoreCorrupt,
    StoreInsecure,
    StoreUnavailable,
    Superseded,
)
from .policy import MEMORY_LIFE
from .stores._keys import UnknownKey
from .stores._sweep import Progress, StoreReport, held
from .stores.protocol import Claim, Record, Store
from .token import fingerprint

__all__ = ["copy_store", "prune", "sign_out"]

_CLOCK = SystemClock()
_COPIED = "copied"
_UNREADABLE = (StoreCorrupt, StoreInsecure, UnknownKey)
_ROUNDS = 20  # others may refresh at the same time


async def copy_store(source: Store, target: Store, *, progress: Progress | None = None) -> StoreReport:
    """Copy every record of one store into another, while both are in use. Overwrites nothing newer.

    A record holds durations, and the target counts them from the moment it is written. So each record is
    read, and written with the durations that are left: no token looks younger in the target. What cannot be
    read is not copied.

    While a record is copied, its claim in `source` is held, so that no refresh there is under way. A record
    is `skipped`, with the reason in the report, if it cannot be read, if its refresh takes long, or if a
    process was killed during its token request. It is also skipped if the target has a newer one, one of
    another sign-in, or one of another provider or client. `progress` is called with the report after each
    record.

    From then on, only one of the two stores may refresh. If refresh tokens rotate, the first refresh spends
    the one in the other store. Run this once while your processes use `source`, stop them, run it again, and
    start them with `target`. Raises `StoreError`; what was copied until then counts.
    """
    for store in (source, target):
        _check(store)
    keys = await source.keys()
    report = StoreReport(total=len(keys))
    for key in keys:
        try:
            async with held(source, key) as found:
                reason = None if found is None else await _copied(key, *found, target)
        except (*_UNREADABLE, ClaimTimeout) as error:
            reason = str(error)
        if reason == _COPIED:
            report.done.append(key)
        elif reason is None:
            report.unchanged.append(key)
        else:
            report.skipped[key] = reason
        if progress is not None:
            progress(report)
    return report


async def _copied(key: str, claim: Claim, record: Record, target: Store) -> str | None:
    """`_COPIED`, None if the target has it already, or why it was not copied."""
    if claim.interrupted is not None:
        return (
            "A process was killed while its token request was on the way. Use this key once from the source: "
            "that finds out what has become of it."
        )
    for _ in range(_ROUNDS):
        now = Now(_CLOCK.wall(), _CLOCK.boot())
        state = decode(record.data, now, age=record.age)
        try:
            there = await target.load(key)
            known = None if there is None else decode(there.data, now, age=there.age)
        except _UNREADABLE as error:
            return f"The record in the target is in the way. {error}"
        if known is not None:
            if None not in (known.identity, state.identity) and known.identity != state.identity:
                return "The target has a record of another provider or client under this key."
            if known.order == state.order:
                same = (known.signed_out, _tokens(known)) == (state.signed_out, _tokens(state))
                return None if same else "The target has another sign-in under this key, of the same order."
            if known.order > state.order:
                return "The target has a newer record."
        with contextlib.suppress(Superseded):  # by a process that uses the target: look again
            await target.put(key, encode(state, now), expect=None if there is None else there.version)
            return _COPIED
    return f"The record in the target changed {_ROUNDS} times."


def _tokens(state: TokenState) -> tuple[str | None, str | None] | None:
    return None if state.token is None else (state.token.access_token, state.token.refresh_token)


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
        except (*_UNREADABLE, Superseded):
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
