"""One file per key, in a directory of its own.

File names are the SHA-256 of the key, because no file system accepts every text as a name::

    <sha>.token   the record (msgpack), replaced by rename: old or new, never half
    <sha>.lock    the claim, see `_local/lock.py`
    <sha>.write   a lock that is held while the record is compared and replaced
    <sha>.tmp     a record that is being written. A claim makes it, empty, and its commit uses it
    store         the store's own name and inode, see `_local/place.py`

There are two locks because a sign-in must not wait for a running refresh. `put` takes the second one only,
and so the refresh's commit finds a newer version. The temporary name is always the same and is only touched
under the write lock, so the next writer removes what a killed one left.

A claim makes the temporary file because a file system can have space and no inodes left. That must be known
before a refresh token is spent.

There is one file per key because a single file costs 21 ms a write at 10,000 keys. Not for several hosts:
flock is not reliable on NFS.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
from anyio import CancelScope

from ..clock import Clock, SystemClock
from ..errors import StoreCorrupt, StoreError, Superseded
from ._closing import ClosesAtExit
from ._local.checksum import checksum
from ._local.claims import Claims, LocalClaim, log_failed_write
from ._local.files import (
    absolute,
    check_directory,
    check_writable,
    make_directory,
    map_os_errors,
    open_private,
    read_private,
    require_posix,
    sync_directory,
)
from ._local.lock import exclusive, lock_name
from ._local.moment import Moment
from ._local.place import Note, Place
from ._local.worker import Busy, Worker
from ._pickling import as_configuration
from .protocol import ANY, AnyVersion, Record, check_key, new_version

__all__ = ["FileStore"]

_FORMAT = 2
_FIRST_FORMAT = 1  # did not say when a record was written


class FileStore(ClosesAtExit):
    """Keeps each record in a file of its own, in `directory`.

    The store creates the directory with mode 0700; its parent must exist. If other users have access to the
    directory or its files, nothing is read and you get `StoreInsecure`. `clock` dates records and claims,
    and times waiting. Use `async with`, or call `aclose` at the end. Raises `ConfigurationError` if the
    platform has no POSIX file locks, or if the path cannot name a directory.

    A pickle or a copy of a store is a new, closed store over the same directory.
    """

    def __init__(self, directory: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        require_posix("FileStore")
        self._clock = clock = clock or SystemClock()
        self._files = _Files(absolute("FileStore", directory), clock)
        self._worker = Worker("tokensession-file", clock=clock)
        self._claims = Claims(self._files, self._worker, clock)

    async def load(self, key: str) -> Record | None:
        """The whole record, or None. Never waits for a claim."""
        return await self._worker.run(partial(self._files.read, check_key(key)), droppable=True)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        """A newer record than `seen`, or the only claim. `timeout` in seconds. See `Store.claim`."""
        return await self._claims.claim(check_key(key), seen=seen, timeout=timeout)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Store `data` under a new version, whether or not the key is claimed. See `Store.put`."""
        record = Record(new_version(), bytes(data))
        del data  # if a reporter prints this frame's locals, a Record shows nothing
        write = partial(self._files.write, check_key(key), record, expect)
        return await self._worker.run(write, on_abandoned=log_failed_write)

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Delete the record. Returns whether there was one. See `Store.delete`."""
        delete = partial(self._files.delete, check_key(key), expect)
        return await self._worker.run(delete, on_abandoned=log_failed_write)

    async def keys(self) -> list[str]:
        """The keys of all records, sorted. Reads every file."""
        return await self._worker.run(self._files.keys, droppable=True)

    async def aclose(self) -> None:
        """End the worker thread, after its last job. A later call starts a new one.

        A cancelled anyio scope does not cut this short. If `task.cancel()` does, call it again: it
        continues.
        """
        with CancelScope(shield=True):
            await self._worker.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        return as_configuration(self, self._files.directory, self._clock)

    def __repr__(self) -> str:
        return f"<FileStore {self._files.directory} {'open' if self._worker.open else 'closed'}>"


class _Files:
    """What runs in the worker thread. Implements `claims.Records`."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.directory = directory
        self._clock = clock
        self._place: Place | None = Place(directory)  # until it has been compared

    def _path(self, key: str, suffix: str) -> Path:
        return self.directory / lock_name(key, suffix)

    def prepare(self, key: str) -> Path:
        with map_os_errors("prepared", self.directory):
            make_directory(self.directory)
            check_writable(self.directory)
            self._compare_place()
        return self._path(key, ".lock")

    def reserve(self, key: str) -> None:
        with self._locked(key) as path:
            os.close(_open_temporary(path))

    def unreserve(self, key: str) -> None:
        # If another writer is busy now, it uses the file, or the next claim does.
        with contextlib.suppress(StoreError, Busy), self._locked(key) as path:
            path.with_suffix(".tmp").unlink(missing_ok=True)

    def read(self, key: str) -> Record | None:
        stored = self._read(self._path(key, ".token"))
        if stored is None:
            return None
        if stored[0] != key:
            raise StoreCorrupt(f"{self._path(key, '.token')} holds the record of another key.")
        return stored[1]

    def keys(self) -> list[str]:
        with map_os_errors("listed", self.directory):
            if not check_directory(self.directory):
                return []
            paths = list(self.directory.glob("*.token"))
        # A file may have been deleted since it was listed.
        return sorted(stored[0] for stored in map(self._read, paths) if stored is not None)

    def _read(self, path: Path) -> tuple[str, Record] | None:
        found = self._found(path)
        if isinstance(found, StoreCorrupt):
            raise found
        return found

    def _found(self, path: Path) -> tuple[str, Record] | StoreCorrupt | None:
        with map_os_errors("read", path):
            if not check_directory(self.directory):
                return None
            self._compare_place()
            content = read_private(path)
        return None if content is None else _decode(path, content, self._clock)

    def write(self, key: str, record: Record, expect: str | AnyVersion | None) -> Record:
        content = memoryview(
            _encode(key, record, Moment.now(self._clock))
        )  # its repr shows nothing if this frame's locals are printed
        self.prepare(key)
        with self._locked(key) as path:
            if expect is not ANY:
                stored = self.read(key)
                if stored == record:  # the same write, repeated because its result got lost
                    sync_directory(self.directory)
                    return record
                if (stored.version if stored else None) != expect:
                    raise Superseded("A newer record is stored.", record=stored)
            _save(path, content)
        return record

    def delete(self, key: str, expect: str | AnyVersion) -> bool:
        self.prepare(key)
        with self._locked(key) as path:
            if expect is not ANY:
                stored = self.read(key)
                if stored is not None and stored.version != expect:
                    raise Superseded("A newer record is stored.", record=stored)
            path.with_suffix(".tmp").unlink(missing_ok=True)
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            sync_directory(self.directory)
            return True

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[Path]:
        """The path of the key's record, locked against other writers. Raises `Busy`."""
        path = self._path(key, ".token")
        with map_os_errors("written", path), exclusive(path.with_suffix(".write")):
            yield path

    def _compare_place(self) -> None:
        """Warn if the directory is a copy. Once, with the first use of the store."""
        place, self._place = self._place, None
        if place is None:
            return
        path, noted = self.directory / "store", None
        with contextlib.suppress(OSError, StoreError, ValueError):  # then it is written again
            name, inode = (read_private(path) or b"").decode("ascii").split()
            noted = Note(name, int(inode))
        note = place.compare(noted)
        if note is not None:
            with contextlib.suppress(OSError, StoreError):  # a read-only directory can be read all the same
                fd = open_private(path, os.O_WRONLY | os.O_CREAT)
                with open(fd, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
                    file.write(f"{note.id} {note.inode:20}\n".encode())

    def __repr__(self) -> str:
        return f"<_Files {self.directory}>"


def _save(path: Path, content: bytes | memoryview) -> None:
    """Replace the file, durably. This needs two syncs: one for the content, one for the name."""
    temporary = path.with_suffix(".tmp")
    try:
        fd = _open_temporary(path)
        with open(fd, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor, which Path cannot open
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def _open_temporary(path: Path) -> int:
    """A descriptor of the empty temporary file: the one that a claim has made, or a new one.

    One that is not empty was left by a killed writer. Or its writer is still at work, because someone has
    removed the lock: so no one else writes into it.
    """
    temporary, create = path.with_suffix(".tmp"), os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with contextlib.suppress(FileExistsError):
        return open_private(temporary, create)
    with contextlib.suppress(OSError, StoreError):
        fd = open_private(temporary, os.O_WRONLY)
        if os.fstat(fd).st_size == 0:
            return fd
        os.close(fd)
    temporary.unlink(missing_ok=True)
    return open_private(temporary, create)


def _encode(key: str, record: Record, written: Moment) -> bytes:
    name, data = key.encode(), bytes(record.data)
    content: bytes = msgpack.packb(
        {
            "format": _FORMAT,
            "key": name,
            "version": record.version,
            "data": data,
            "wall": written.wall,
            "boot": written.boot,
            "check": checksum(name, record.version.encode(), data, written.packed()),
        }
    )
    return content


def _decode(path: Path, content: bytes, clock: Clock) -> tuple[str, Record] | StoreCorrupt:
    """The key and its record, or the error that says what is wrong with them.

    The caller raises the error. msgpack's exceptions contain what was read, and so do the locals here,
    which some programs report along with a traceback.
    """
    try:
        document: Any = msgpack.unpackb(content)
        number, key, version, data, check = (
            document[field] for field in ("format", "key", "version", "data", "check")
        )
        if type(number) is int and number not in (_FIRST_FORMAT, _FORMAT):
            return StoreCorrupt(
                f"{path} has format {number}; this version of tokensession reads format {_FORMAT} and older.",
                todo="Use the version of tokensession that wrote it, or sign in again.",
            )
        if type(number) is int:
            covered, age = [key, version.encode(), data], 0.0
            if number == _FORMAT:
                written = Moment(document["wall"], document["boot"])
                covered.append(written.packed())
                age = written.age(clock)
            if check != checksum(*covered):
                return StoreCorrupt(f"{path} is damaged: its checksum is wrong.")
            return key.decode(), Record(version, data, age)
    # msgpack's exceptions have no common base class. The other types mean a wrong shape or type.
    except (
        ValueError,
        msgpack.UnpackException,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        struct.error,
    ):
        pass
    return StoreCorrupt(f"{path} is not a record of tokensession.")
