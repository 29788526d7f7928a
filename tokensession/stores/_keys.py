"""Encryption keys: where they come from, and when they are read again.

A key is 32 random bytes, written as base64. Its id is a hash of it, so a record says which key it needs, and
no one has to number keys. What reads keys returns `Key` objects or a problem in words, so that no frame that
an error passes through holds one as text.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import inspect
import math
import os
import re
import stat
import threading
import types
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from .._validate import describe
from ..clock import Clock, SystemClock, bounded
from ..errors import ConfigurationError, StoreInsecure, StoreUnavailable, TokenSessionError

__all__ = ["KEYRING_BACKENDS", "Key", "KeyRing", "Keys", "KeysLike", "UnknownKey", "new_key", "require"]

T = TypeVar("T")
_Text: TypeAlias = str | bytes | Iterable[str | bytes]
_Read: TypeAlias = Callable[[], _Text | Awaitable[_Text]]
Ring: TypeAlias = Mapping[bytes, "Key"]

_SIZE = 32  # bytes: AES-256
_TIMEOUT = 5.0  # seconds to read the keys in: less than `Policy.store_timeout`, so that callers learn why
_RECHECK = 60.0  # seconds between two calls of a function, which may ask a server
_THREADS = 4  # that read keys and hang; more are not begun
_LARGEST = 65_536  # bytes of a key file

KEYRING_BACKENDS = (
    "keyring.backends.SecretService.Keyring",
    "keyring.backends.Windows.WinVaultKeyring",
    "keyring.backends.kwallet.DBusKeyring",
    "keyring.backends.kwallet.DBusKeyringKWallet4",
    "keyring.backends.libsecret.Keyring",
    "keyring.backends.macOS.Keyring",
)
"""The keyrings of operating systems. Other backends of the package `keyring` may store plain text."""


class UnknownKey(StoreUnavailable):
    """A record is encrypted with a key that this store does not have."""

    intact = "The record has not changed."
    todo = (
        "Add that key to the store's keys. If it is lost, delete the record and sign in again: no one can "
        "decrypt it."
    )


class _Problem(Exception):
    """What is wrong with a source of keys, in words without a key. Never leaves this module."""


def require() -> Any:
    """AES-GCM. Raises `ConfigurationError` if the extra is missing."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigurationError(
            "EncryptedStore needs the package cryptography, which is not installed.",
            todo="Run: pip install 'tokensession[encryption]'",
        ) from None
    return AESGCM


def new_key() -> str:
    """A new random key, as text."""
    return base64.b64encode(os.urandom(_SIZE)).decode()


class Key:
    """One key. It shows its id, and never itself."""

    __slots__ = ("_aead", "id")

    def __init__(self, raw: bytes) -> None:
        self.id: bytes = hashlib.blake2b(raw, digest_size=8, person=b"tokensession-key").digest()
        self._aead: Any = require()(raw)

    def encrypt(self, nonce: bytes, data: bytes, bound: bytes) -> bytes:
        """The ciphertext, which can be decrypted only with the same `bound`."""
        encrypted: bytes = self._aead.encrypt(nonce, data, bound)
        return encrypted

    def decrypt(self, nonce: bytes, data: bytes, bound: bytes) -> bytes | None:
        """The plaintext, or None if anything was changed."""
        from cryptography.exceptions import InvalidTag

        with contextlib.suppress(InvalidTag):
            decrypted: bytes = self._aead.decrypt(nonce, data, bound)
            return decrypted
        return None

    def __repr__(self) -> str:
        return f"<Key {self.id.hex()}>"


def parse(text: _Text) -> Ring:
    """The keys in this text, in order. Raises `ConfigurationError`, which never repeats them."""
    found = [_key(each) for each in _each(text)]
    del text
    for number, each in enumerate(found, 1):
        if isinstance(each, str):
            raise ConfigurationError(
                f"Encryption key {number} of {len(found)} {each}.",
                todo="Make one with EncryptedStore.new_key() or `openssl rand -base64 32`.",
            )
    if not found:
        raise ConfigurationError(
            "There is no encryption key.", todo="Make one with EncryptedStore.new_key()."
        )
    return {each.id: each for each in found if isinstance(each, Key)}


def _each(text: _Text) -> Iterator[str | bytes]:
    """Keys are separated by white space or commas. A line that begins with # is a comment.

    Bytes are one raw key only if they can be nothing else: 32 random bytes are no ASCII text.
    """
    if isinstance(text, bytes) and (len(text) != _SIZE or text.isascii()):
        text = text.decode("utf-8", "replace")
    if isinstance(text, bytes):
        yield text
    elif isinstance(text, str):
        yield from filter(None, re.split(r"[\s,]+", re.sub(r"(?m)^\s*#.*$", "", text)))
    elif isinstance(text, Iterable):
        for each in text:
            yield from _each(each)
    else:
        yield b""


def _key(text: str | bytes) -> Key | str:
    """The key, or what is wrong with it."""
    raw = text if isinstance(text, bytes) else b""
    if isinstance(text, str):
        with contextlib.suppress(binascii.Error, ValueError):
            padded = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
            raw = base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True)
    if len(raw) == _SIZE:
        return Key(raw)
    return f"must be {_SIZE} random bytes in base64, not {describe(text)}"


@dataclass(frozen=True, slots=True)
class Keys:
    """Where an `EncryptedStore` reads its keys: `Keys.env`, `Keys.file` or `Keys.keyring`.

    The text there is one or more keys, separated by white space or commas. The first one encrypts, and all of
    them decrypt. In a file, lines that begin with # are comments.
    """

    source: str
    """What errors call it, such as "environment variable TOKEN_KEYS". Never a key."""
    _read: _Read = field(repr=False)
    _recheck: float = field(default=0.0, repr=False)

    @classmethod
    def env(cls, name: str) -> Keys:
        """The environment variable of this name. It is read again whenever a claim is taken."""
        _no_key("the name of an environment variable", name)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigurationError(f"An environment variable cannot be named by {describe(name)}.")
        return cls(f"environment variable {name}", partial(_from_environment, name))

    @classmethod
    def file(cls, path: str | os.PathLike[str]) -> Keys:
        """The file at this path. It is read again whenever a claim is taken, so you may replace it any time.

        If everyone may write to it, `StoreInsecure` is raised.
        """
        _no_key("a path", os.fspath(path))
        where = Path(path).absolute()
        return cls(f"key file {where}", partial(_from_file, where))

    @classmethod
    def keyring(cls, service: str, username: str, *, backends: Iterable[str] = KEYRING_BACKENDS) -> Keys:
        """The password of this service and user in the keyring of the operating system.

        It is read again after a minute. `backends` are the classes of the package `keyring` that may be used.
        No other one is, because some of them store plain text.
        """
        for each in (service, username):
            _no_key("a name in the keyring", each)
        read = partial(_from_keyring, service, username, tuple(backends))
        return cls(f"keyring entry {service!r} of {username!r}", read, _RECHECK)

    def check_pickle(self) -> None:
        """Raise TypeError if a pickle of this may hold a key."""
        if not isinstance(self._read, types.FunctionType) and not self._ours:
            raise TypeError(
                f"An EncryptedStore whose keys come from {self.source} can be neither pickled nor copied, "
                "because that object may hold a key. Pass a function of a module, or Keys.env, Keys.file or "
                "Keys.keyring."
            )

    @property
    def _ours(self) -> bool:
        return isinstance(self._read, partial) and self._read.func in (
            _from_environment,
            _from_file,
            _from_keyring,
        )


KeysLike: TypeAlias = Keys | str | bytes | Iterable[str | bytes] | _Read


def _no_key(what: str, text: str) -> None:
    """Refuse a key in place of its name: names are shown."""
    if not isinstance(text, str) or not text:
        raise ConfigurationError(f"Pass {what}, not {describe(text)}.")
    if isinstance(_key(text), Key):
        raise ConfigurationError(f"Pass {what} here, not a key itself.", todo="Use another key from now on.")


def _from_environment(name: str) -> str:
    text = os.environ.get(name)
    if not text:
        raise _Problem("it is not set")
    return text


def _from_file(path: Path) -> bytes:
    try:
        # Not blocking, in case it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _Problem("it is not a regular file")
            if os.name == "posix" and status.st_mode & stat.S_IWOTH:
                raise StoreInsecure(
                    f"Everyone may write to the key file {path}.",
                    todo=f"Make new keys, and run: chmod 600 {path}",
                )
            return file.read(_LARGEST)
    except OSError as error:
        raise _Problem(error.strerror or type(error).__name__) from error


def _from_keyring(service: str, username: str, allowed: tuple[str, ...]) -> str:
    try:
        import keyring
        from keyring.backends.chainer import ChainerBackend
    except ImportError:
        raise ConfigurationError(
            "Keys.keyring needs the package keyring, which is not installed.",
            todo="Run: pip install 'tokensession[keyring]'",
        ) from None
    found = keyring.get_keyring()
    backends = found.backends if isinstance(found, ChainerBackend) else [found]
    names = {f"{type(each).__module__}.{type(each).__qualname__}": each for each in backends}
    usable = [each for name, each in names.items() if name in allowed]
    if not usable:
        raise _Problem(
            f"no keyring of the operating system is available (there is {', '.join(names) or 'none'}, which "
            "may store plain text)"
        )
    for each in usable:
        if password := each.get_password(service, username):
            return password
    raise _Problem("there is no such entry")


class KeyRing:
    """The keys of one store, as they were last read.

    Mutable state: the keys and when they were read; the numbers of the last reading that has begun and of the
    last one that succeeded; a lock of the running event loop, so that a crowd of callers reads them once; and
    the threads that read them.
    """

    def __init__(self, keys: KeysLike, clock: Clock) -> None:
        self.source: Keys | None = None
        self._clock = clock
        self._ring: Ring = {}
        self._read_at = -math.inf
        self._begun = self._done = 0
        self._threads: set[threading.Thread] = set()
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        if isinstance(keys, Keys):
            self.source = keys
        elif callable(keys):
            name = getattr(keys, "__qualname__", type(keys).__qualname__)
            self.source = Keys(f"function {name}", keys, _RECHECK)
        else:
            self._ring = parse(keys)

    async def to_encrypt(self) -> Key:
        """The first key, as it is now."""
        ring = await self._within(self.source._recheck if self.source is not None else 0.0)
        return next(iter(ring.values()))

    async def to_decrypt(self, name: bytes) -> Key:
        """The key with this id. If it is not among those that were read before, they are read again."""
        if (found := self._ring.get(name)) is not None:
            return found
        ring = await self._within(min(1.0, self.source._recheck) if self.source is not None else 0.0)
        if (found := ring.get(name)) is not None:
            return found
        have = ", ".join(each.hex() for each in ring)
        raise UnknownKey(
            f"The stored record is encrypted with the key {name.hex()}, and this store has {have}."
        )

    async def _within(self, seconds: float) -> Ring:
        """The keys, read at most so many seconds ago. 0: read after this call began."""
        if self.source is None or self._is_recent(seconds):
            return self._ring
        failed = f"The encryption keys cannot be read ({self.source.source})"
        intact = "Nothing was read or written, and no token request was sent."
        try:
            return await bounded(self._clock, _TIMEOUT, self._read(self.source, self._begun, seconds))
        except TimeoutError:
            raise StoreUnavailable(f"{failed} within {_TIMEOUT:g} s.", intact=intact) from None
        except _Problem as problem:
            raise StoreUnavailable(f"{failed}: {problem}.", intact=intact) from problem.__cause__
        except ConfigurationError as error:
            raise StoreUnavailable(f"{failed}: {error.args[0]}", intact=intact, todo=error.todo) from None
        except TokenSessionError:
            raise
        except Exception as error:  # a function of the user's, or a keyring, may raise anything
            raise StoreUnavailable(f"{failed}: {type(error).__name__}.", intact=intact) from error

    def _is_recent(self, seconds: float) -> bool:
        return self._clock.boot() - self._read_at < seconds

    async def _read(self, source: Keys, begun: int, seconds: float) -> Ring:
        async with self._lock():
            if self._done > begun or self._is_recent(seconds):  # another caller has read them since
                return self._ring
            self._begun = reading = self._begun + 1
            began = self._clock.boot()
            self._ring = parse(await self._called(source._read))
            self._read_at, self._done = began, reading
            return self._ring

    async def _called(self, read: _Read) -> _Text:
        """What it returns. A function that may block is called in a thread."""
        if isinstance(read, partial) and read.func is _from_environment:
            return _from_environment(*read.args)
        call = getattr(read, "__call__", None)  # noqa: B004 - of an object with an async one
        if inspect.iscoroutinefunction(read) or inspect.iscoroutinefunction(call):
            found = read()
        else:
            found = await self._in_thread(read)
        return await found if inspect.isawaitable(found) else found

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """The result of this work, done in a daemon thread of its own.

        A thread that hangs (on a dead mount, say) keeps neither the event loop nor the interpreter. If
        several do, this waits for one of them to end.
        """
        await self._ended(_THREADS - 1)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            if future.done():  # its caller is gone
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def run() -> None:
            result, problem = None, None
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - raised again in the caller
                problem = error
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                loop.call_soon_threadsafe(settle, result, problem)

        thread = threading.Thread(target=run, name="tokensession-keys", daemon=True)
        self._threads = {each for each in self._threads if each.is_alive()} | {thread}
        thread.start()
        return await future

    async def aclose(self) -> None:
        """Wait until no thread reads keys any more, but not for long."""
        with contextlib.suppress(TimeoutError):
            await bounded(self._clock, _TIMEOUT, self._ended())

    async def _ended(self, but: int = 0) -> None:
        """Wait until all of the threads have ended, but so many."""
        # A join would block the event loop, and the end of a thread sets no event.
        while sum(each.is_alive() for each in self._threads) > but:
            await SystemClock.sleep(0.001)

    def _lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn[0] is not loop:
            self._turn = loop, asyncio.Lock()
        return self._turn[1]
