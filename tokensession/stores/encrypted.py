"""Encryption around any store: AES-256-GCM, bound to the key that a record is stored under.

What the inner store holds is an envelope::

    c1 "TSE" | format: 1 byte | key id: 8 bytes | nonce: 12 bytes | ciphertext and tag

The associated data are the first three of them and the store's key. So a record that was moved to another
key, or whose header was changed, cannot be decrypted. The byte c1 begins no msgpack document, so a record
that is not encrypted is never taken for one that is.

The plaintext is the age that the data had when it was encrypted, and the data. A commit encrypts data of age
0. `rotate` encrypts old data again: the inner store then says that it is new, and the age in the envelope
keeps a token from looking younger than it is.

The claim remembers the key that encrypts, so a commit needs nothing that could fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from anyio import CancelScope

from .._validate import describe, implements
from ..clock import Clock, SystemClock
from ..errors import ClaimTimeout, ConfigurationError, StoreCorrupt, StoreError, StoreInsecure, Superseded
from ._closing import ClosesAtExit
from ._keys import Key, KeyRing, KeysLike, UnknownKey, new_key, require
from ._pickling import check_parts
from ._remote.ending import begin
from ._remote.lease import log_failed_write
from ._sweep import Progress, StoreReport, held
from .protocol import ANY, ENCRYPTED, AnyVersion, Claim, Record, Store, check_key

__all__ = ["EncryptedStore"]

_log = logging.getLogger("tokensession.stores")

_FORMAT = 1
_HEADER = struct.Struct(f">{len(ENCRYPTED)}sB8s")
_NONCE = 12
_TAG = 16
_AGE = struct.Struct(">d")


class EncryptedStore(ClosesAtExit):
    """Another store, with every record encrypted. Closing it closes the inner one.

    `keys` is a `Keys`, a function (sync or async) that returns keys, or the keys themselves: text such as
    `new_key()` returns, or several. The first key encrypts, and all of them decrypt. Functions are called
    again after a minute, and when a record names a key that is not known. A synchronous one is called in a
    thread.

    A record that is not encrypted is refused (`StoreInsecure`): anyone who may write to the inner store could
    have put it there. With `adopt_plaintext=True` it is read, and encrypted when it is next written. Say so
    once, call `rotate`, and leave it out again. `clock` is for tests.

    A wrong, lost or unreadable key is a `StoreUnavailable`, before any token request. What the store key is,
    how long the data is and when it was written is not hidden. Pickles as its configuration, unless you
    passed the keys themselves.
    """

    def __init__(
        self, inner: Store, keys: KeysLike, *, adopt_plaintext: bool = False, clock: Clock | None = None
    ) -> None:
        if not implements(Store, inner):
            raise ConfigurationError(
                f"EncryptedStore needs a store to wrap, not {describe(inner)}.",
                todo="Pass one of tokensession.stores, or open_store('encrypted+sqlite:///…?key_env=NAME').",
            )
        require()
        self._inner = inner
        self._clock = clock or SystemClock()
        problem: ConfigurationError | None = None
        try:
            self._ring = KeyRing(keys, self._clock)
        except ConfigurationError as error:
            problem = error.with_traceback(None)
        del keys  # if a reporter prints this frame's locals, it shows no key
        if problem is not None:
            raise problem
        self._adopts = bool(adopt_plaintext)
        self._warned = False
        self._writes: set[asyncio.Task[Record]] = set()

    @staticmethod
    def new_key() -> str:
        """A new random key, as text: 32 bytes in base64. Store it before you use it."""
        return new_key()

    async def load(self, key: str) -> Record | None:
        """The whole record, decrypted, or None. Never waits for a claim."""
        record = await self._inner.load(check_key(key))
        return None if record is None else await self._decrypted(key, record)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> EncryptedClaim | Record:
        """A newer record than `seen`, or the only claim. `timeout` in seconds. See `Store.claim`.

        Raises `StoreUnavailable` if the keys cannot be read, or the record needs another one.
        """
        check_key(key)
        cipher = await self._ring.to_encrypt()  # before anything is held
        found = await self._inner.claim(key, seen=seen, timeout=timeout)
        if isinstance(found, Record):
            return await self._decrypted(key, found)
        try:
            current = None if found.current is None else await self._decrypted(key, found.current)
        except GeneratorExit:
            raise  # the event loop is gone
        except BaseException:
            with contextlib.suppress(StoreError):
                await found.abandon()
            raise
        return EncryptedClaim(self, key, found, current, cipher)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Store `data` under a new version, whether or not the key is claimed. See `Store.put`."""
        check_key(key)
        plain = Record("", bytes(data))
        del data  # if a reporter prints this frame's locals, a Record shows nothing
        return await self._finished(partial(self._put, key, plain, expect))

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Delete the record. Returns whether there was one. Works without its key. See `Store.delete`."""
        try:
            return await self._inner.delete(check_key(key), expect=expect)
        except Superseded as newer:
            superseded = newer
        raise await self._superseded(key, superseded)

    async def keys(self) -> list[str]:
        """The keys of all records, sorted."""
        return await self._inner.keys()

    def inherited(self, key: str) -> bool:
        """Whether this is a forked child that cannot exclude its parent: what the inner store says."""
        inherited = getattr(self._inner, "inherited", None)
        return inherited is not None and bool(inherited(key))

    async def rotate(self, *, progress: Progress | None = None) -> StoreReport:
        """Encrypt every record with the first key that is not, while others use the store.

        Each record is claimed for that moment, so no refresh is disturbed, and no token looks younger
        afterwards. A record that cannot be decrypted, or whose refresh takes long, is `skipped`: call this
        again. `progress` is called with the report after each record. Raises `StoreError`; what was done
        until then counts.
        """
        report, keys = StoreReport(), await self.keys()
        report.total = len(keys)
        for key in keys:
            try:
                done = await self._rotated(key)
            except (StoreCorrupt, StoreInsecure, UnknownKey, ClaimTimeout, Superseded) as error:
                report.skipped[key] = str(error)
            else:
                (report.done if done else report.unchanged).append(key)
            if progress is not None:
                progress(report)
        return report

    async def aclose(self) -> None:
        """Wait for the writes that have begun, and close the inner store. A later call reopens it.

        A cancelled anyio scope does not cut this short.
        """
        loop = asyncio.get_running_loop()
        with CancelScope(shield=True):
            try:
                if writes := [each for each in self._writes if each.get_loop() is loop]:
                    await asyncio.wait(writes)
                await self._ring.aclose()
            finally:
                await self._inner.aclose()

    # -- inside -------------------------------------------------------------------------------------------

    async def _put(self, key: str, plain: Record, expect: str | AnyVersion | None) -> Record:
        cipher = await self._key_to_write()
        try:
            record = await self._inner.put(key, _sealed(cipher, key, plain), expect=expect)
        except Superseded as newer:
            superseded = newer
        else:
            return Record(record.version, plain.data, record.age)
        raise await self._superseded(key, superseded)

    async def _key_to_write(self) -> Key:
        """The first key. The end of the event loop, which waits for this task, does not end the write."""
        try:
            return await self._ring.to_encrypt()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task not in self._writes:
                raise
            task.uncancel()
            return await self._ring.to_encrypt()

    async def _finished(self, write: Callable[[], Coroutine[Any, Any, Record]]) -> Record:
        """The result of this write. If the caller is cancelled it goes on: it may have to read keys first."""
        task = begin(write)
        self._writes.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(log_failed_write)
            raise

    def _ended(self, task: asyncio.Task[Record]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: the caller may be gone

    async def _decrypted(self, key: str, record: Record) -> Record:
        """The record with its data decrypted, and as old as the data is."""
        if not record.data.startswith(ENCRYPTED):
            return self._adopted(record)
        if len(record.data) < _HEADER.size + _NONCE + _TAG + _AGE.size:
            raise StoreCorrupt("The stored record is too short for an encrypted one.")
        _, number, name = _HEADER.unpack_from(record.data)
        if number != _FORMAT:
            raise StoreCorrupt(
                f"The stored record is encrypted in format {number}; this version reads format {_FORMAT}.",
                todo="Use the version of tokensession that wrote it.",
            )
        cipher = await self._ring.to_decrypt(name)
        header, rest = record.data[: _HEADER.size], record.data[_HEADER.size :]
        plain = cipher.decrypt(rest[:_NONCE], rest[_NONCE:], _bound(header, key))
        if plain is None:
            raise StoreCorrupt(
                "The stored record was changed or moved to another key: it cannot be decrypted."
            )
        return Record(record.version, plain[_AGE.size :], record.age + _AGE.unpack_from(plain)[0])

    def _adopted(self, record: Record) -> Record:
        """A record that is not encrypted, if that was asked for."""
        if not self._adopts:
            raise StoreInsecure(
                "The stored record is not encrypted, and this store reads encrypted ones only.",
                intact="It was not used.",
                todo="If it is from before you encrypted the store, pass adopt_plaintext=True once, and call "
                "rotate(). Otherwise find out who has written it.",
            )
        if not self._warned:
            self._warned = True
            _log.warning("Records that are not encrypted are read from %r (adopt_plaintext=True).", self)
        return record

    async def _superseded(self, key: str, error: Superseded) -> Superseded:
        """The inner store's error, with the record decrypted."""
        record = error.record
        if isinstance(record, Record):
            record = await self._decrypted(key, record)
        return Superseded(error.args[0], record=record)

    async def _rotated(self, key: str) -> bool:
        """Whether the record was encrypted again. False if there was no need."""
        cipher = await self._ring.to_encrypt()
        first = _HEADER.pack(ENCRYPTED, _FORMAT, cipher.id)
        record = await self._inner.load(key)
        if record is None or record.data.startswith(first):
            return False
        async with held(self._inner, key) as found:
            if found is None or found[1].data.startswith(first):
                return False
            plain = await self._decrypted(key, found[1])
            # A put, and no commit: that would end what an interrupted holder has left for the next one.
            await self._finished(partial(self._put_again, key, cipher, plain))
        return True

    async def _put_again(self, key: str, cipher: Key, plain: Record) -> Record:
        return await self._inner.put(key, _sealed(cipher, key, plain), expect=plain.version)

    def __reduce__(self) -> tuple[Any, ...]:
        source = self._ring.source
        if source is None:
            raise TypeError(
                "An EncryptedStore that was given its keys can be neither pickled nor copied, because the "
                "pickle would hold them. Pass Keys.env, Keys.file, Keys.keyring or a function of a module."
            )
        source.check_pickle()
        check_parts(self, keys=source, clock=self._clock)
        return _rebuilt, (type(self), self._inner, source, self._adopts, self._clock)

    def __repr__(self) -> str:
        return f"<EncryptedStore over {self._inner!r}>"


class EncryptedClaim:
    """A claim on a key of an `EncryptedStore`. See `tokensession.stores.Claim`."""

    def __init__(
        self, store: EncryptedStore, key: str, inner: Claim, current: Record | None, cipher: Key
    ) -> None:
        self._store = store
        self._key = key
        self._inner = inner
        self._current = current
        self._cipher = cipher
        self._committed: tuple[bytes, bytes] | None = None  # data, and that encrypted

    @property
    def current(self) -> Record | None:
        """The stored record when the claim was granted, decrypted."""
        return self._current

    @property
    def interrupted(self) -> float | None:
        """What the inner claim says."""
        return self._inner.interrupted

    @property
    def listening(self) -> float:
        """What the inner claim says."""
        return self._inner.listening

    async def sending(self, *, listening: float = 0.0) -> None:
        """Leave the mark: see `Claim.sending`."""
        await self._inner.sending(listening=listening)

    async def commit(self, data: bytes) -> Record:
        """Store `data` and release: see `Claim.commit`.

        The same data is encrypted once, so that the inner store recognizes a repeated commit.
        """
        plain = Record("", bytes(data))
        del data
        if self._committed is None or self._committed[0] != plain.data:
            self._committed = plain.data, _sealed(self._cipher, self._key, plain)
        try:
            record = await self._inner.commit(self._committed[1])
        except Superseded as newer:
            superseded = newer
        else:
            return Record(record.version, plain.data, record.age)
        raise await self._store._superseded(self._key, superseded)

    async def abandon(self) -> None:
        """Release the claim and store nothing."""
        await self._inner.abandon()

    def __repr__(self) -> str:
        return f"<EncryptedClaim over {self._inner!r}>"


def _sealed(cipher: Key, key: str, plain: Record) -> bytes:
    """The envelope with this data, which is as old as the record."""
    header, nonce = _HEADER.pack(ENCRYPTED, _FORMAT, cipher.id), os.urandom(_NONCE)
    return header + nonce + cipher.encrypt(nonce, _AGE.pack(plain.age) + plain.data, _bound(header, key))


def _bound(header: bytes, key: str) -> bytes:
    """The associated data. The header always has the same length, so no two pairs give the same bytes."""
    return header + key.encode()


def _rebuilt(
    kind: type[EncryptedStore], inner: Store, keys: Any, adopts: bool, clock: Clock
) -> EncryptedStore:
    return kind(inner, keys, adopt_plaintext=adopts, clock=clock)
