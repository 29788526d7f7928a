"""`open_store`: a store by its URL, for configuration files, environment variables and the command line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from .._validate import implements
from ..clock import Clock
from ..errors import ConfigurationError, TokenSessionError
from .protocol import OpenedStore

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

__all__ = ["ENTRY_POINTS", "open_store"]

ENTRY_POINTS = "tokensession.stores"
"""The entry-point group for third-party stores: name = URL scheme, value = callable(url) -> OpenedStore."""

_ENCRYPTED = "encrypted+"
_KEYS = ("key_env", "key_file", "key_ring")  # options of such a URL; all others are the inner store's

_SLASHES = (
    "Three slashes begin a relative path (sqlite:///tokens.db), four an absolute one "
    "(sqlite:////var/lib/tokens.db)."
)


def open_store(url: str | Path, *, clock: Clock | None = None) -> OpenedStore:
    """The store that a URL names, or the `SQLiteStore` at a `pathlib.Path`. Does no I/O.

    - `memory:` is a new `MemoryStore`.
    - `file:///var/lib/tokens` is the `FileStore` in that directory. The path must be absolute.
    - `sqlite:///tokens.db` is an `SQLiteStore`. Three slashes begin a *relative* path.
    - `sqlite:////var/tokens.db` is an `SQLiteStore`. Four slashes begin an *absolute* path.
    - `postgresql://user@host/database` is a `PostgresStore`. Its query may have options of the store, such as
      `?table=tokens&lease=30`, beside those of the connection.
    - `redis://user:password@host:6379/0`, `valkey://…` and (for TLS) `rediss://…` and `valkeys://…` are a
      `RedisStore`. Its query may hold `prefix`, `lease` and `durability`, and options of the driver.

    - `encrypted+sqlite:///tokens.db?key_env=NAME` is an `EncryptedStore` over that one. So is `encrypted+` in
      front of any other URL. Its keys are in the environment variable of that name; `key_file=/run/keys` and
      `key_ring=service/username` are the other places.

    The slashes of SQLite URLs work as in SQLAlchemy. In a URL's path, write `%20` for a space, `%3F` for a
    question mark and so on. Packages add other schemes by an entry point in the group `tokensession.stores`.
    They cannot replace a built-in scheme. `clock` is for tests.

    Raises `ConfigurationError` for a URL that names no store. The error never repeats the URL, which may
    hold a password.
    """
    if isinstance(url, Path):
        from .sqlite import SQLiteStore

        return SQLiteStore(url, clock=clock)
    scheme = _scheme(url)
    if scheme.startswith(_ENCRYPTED):
        return _encrypted(url, clock)
    if scheme not in _BUILT_IN:
        return _open_foreign(scheme, url)
    parts: SplitResult | None = None
    with contextlib.suppress(ValueError):  # its message repeats the host and the password before it
        parts = urlsplit(url)
    if parts is None:
        raise ConfigurationError(f"This {scheme}: URL is malformed.")
    return _BUILT_IN[scheme](parts, url, clock)


def _scheme(url: str) -> str:
    if not isinstance(url, str):
        raise TypeError(
            "open_store needs a URL such as 'sqlite:///tokens.db', or a pathlib.Path, "
            f"not {type(url).__name__}"
        )
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", url)
    if match is None:
        raise ConfigurationError(
            f"The store's URL ({len(url)} characters) has no scheme.",
            todo=f"Begin it with one of: {', '.join(_known())}; or with {_ENCRYPTED} and one of these. For a "
            "file: sqlite:///tokens.db.",
        )
    return match[1].lower()


def _encrypted(url: str, clock: Clock | None) -> OpenedStore:
    from ._keys import Keys
    from .encrypted import EncryptedStore

    base, _, query = url[len(_ENCRYPTED) :].partition("?")
    found: list[tuple[str, str]] = []
    others: list[str] = []
    for option in query.split("&") if query else []:
        name, _, value = option.partition("=")
        if name in _KEYS:
            found.append((name, unquote(value)))
        else:
            others.append(option)
    if len(found) != 1 or "#" in query:
        raise ConfigurationError(
            f"An {_ENCRYPTED}… URL must say once where the keys are, and this one says it {len(found)} times."
            if len(found) != 1
            else f"An {_ENCRYPTED}… URL must not have a fragment.",
            todo="Add ?key_env=NAME, ?key_file=/run/keys or ?key_ring=service/username.",
        )
    ((name, value),) = found
    if name == "key_ring":
        service, _, username = value.partition("/")
        keys = Keys.keyring(service, username)
    else:
        keys = Keys.file(value) if name == "key_file" else Keys.env(value)
    inner = open_store(f"{base}?{'&'.join(others)}" if others else base, clock=clock)
    return EncryptedStore(inner, keys, clock=clock)


def _memory(parts: SplitResult, url: str, clock: Clock | None) -> OpenedStore:
    from .memory import MemoryStore

    if parts.netloc or parts.path or parts.query or parts.fragment:
        raise ConfigurationError(
            "A memory: URL ends with its colon, and this one goes on.", todo="Write it memory:."
        )
    return MemoryStore(clock=clock)


def _file(parts: SplitResult, url: str, clock: Clock | None) -> OpenedStore:
    from .file import FileStore

    path = _path(parts)
    if parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise ConfigurationError(
            "A file: URL must have an absolute path on this host.", todo="Write it file:///var/lib/tokens."
        )
    return FileStore(path, clock=clock)


def _sqlite(parts: SplitResult, url: str, clock: Clock | None) -> OpenedStore:
    from .sqlite import SQLiteStore

    path = _path(parts).removeprefix("/")
    if parts.netloc or not path or not url.lower().startswith("sqlite:///"):
        raise ConfigurationError(
            "An sqlite: URL must have three or four slashes and then a file.", todo=_SLASHES
        )
    return SQLiteStore(path, clock=clock)


def _postgresql(parts: SplitResult, url: str, clock: Clock | None) -> OpenedStore:
    from .postgres import PostgresStore

    if parts.fragment:
        raise ConfigurationError(
            "A postgresql: URL must not have a fragment.", todo="In a password, write %23 for a number sign."
        )
    url, options = _without(parts, url, table=str, lease=_seconds, listen=_listen)
    return PostgresStore.connect(url, clock=clock, **options)


def _redis(parts: SplitResult, url: str, clock: Clock | None) -> OpenedStore:
    from .redis import RedisStore

    url, options = _without(parts, url, prefix=str, durability=str, lease=_seconds)
    return RedisStore.connect(url, clock=clock, **options)


def _without(parts: SplitResult, url: str, **ours: Callable[[str], Any]) -> tuple[str, dict[str, Any]]:
    """The URL without these options, which are the store's and not the driver's, and their values."""
    found: dict[str, Any] = {}
    others = []
    for option in filter(None, parts.query.split("&")):
        name, _, value = option.partition("=")
        if name in ours:
            found[name] = ours[name](unquote(value))
        else:
            others.append(option)
    base = url.partition("#")[0].partition("?")[0]  # geturl() would drop the slashes of an empty host
    query = "?" + "&".join(others) if others else ""
    return base + query + ("#" + parts.fragment if parts.fragment else ""), found


def _listen(value: str) -> bool | str:
    return {"true": True, "false": False}.get(value, value)


def _seconds(value: str) -> float:
    with contextlib.suppress(ValueError):  # its message repeats the value
        return float(value)
    raise ConfigurationError("lease must be a number of seconds, such as lease=10.")


def _path(parts: SplitResult) -> str:
    if parts.query or parts.fragment:
        raise ConfigurationError(
            f"A {parts.scheme}: URL takes no options, and this one has a query or fragment.",
            todo="In a path, write %3F for a question mark and %23 for a number sign.",
        )
    path = unquote(parts.path)
    if "\0" in path:
        raise ConfigurationError(f"The path of this {parts.scheme}: URL contains a NUL character.")
    return path


_BUILT_IN: dict[str, Callable[[SplitResult, str, Clock | None], OpenedStore]] = {
    "file": _file,
    "memory": _memory,
    "postgres": _postgresql,
    "postgresql": _postgresql,
    "redis": _redis,
    "rediss": _redis,
    "sqlite": _sqlite,
    "valkey": _redis,
    "valkeys": _redis,
}


def _open_foreign(scheme: str, url: str) -> OpenedStore:
    points = _foreign().select(name=scheme)
    if not points:
        raise ConfigurationError(
            f"No store is registered for the scheme {scheme!r}.",
            todo=f"Use one of: {', '.join(_known())}; or {_ENCRYPTED} and one of these; or install the "
            "package that provides it.",
        )
    point = next(iter(points))
    problem = ""
    try:
        store = point.load()(url)
    except TokenSessionError:
        raise
    except Exception as error:  # noqa: BLE001 - third-party code may raise anything
        problem = type(error).__name__
    if problem:  # outside the handler: that error's message may repeat the URL and its password
        raise ConfigurationError(
            f"The store for {scheme!r} ({point.value}) could not be opened: {problem}.",
            todo="Check the URL, and that the package is completely installed.",
        ) from None
    if not (implements(OpenedStore, store) and hasattr(type(store), "__aenter__")):
        raise ConfigurationError(
            f"The entry point {point.value} for {scheme!r} must return a store that `async with` closes, not "
            f"{type(store).__name__}."
        )
    opened: OpenedStore = store
    return opened


def _foreign() -> EntryPoints:
    from importlib.metadata import entry_points  # 20 ms, which the built-in stores do without

    return entry_points(group=ENTRY_POINTS)


def _known() -> list[str]:
    return sorted({*_BUILT_IN, *_foreign().names})
