"""`open_store`: a store by its URL, for configuration files, environment variables and the command line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from .._validate import implements
from ..clock import Clock
from ..errors import ConfigurationError, TokenSessionError
from .protocol import Store

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

__all__ = ["ENTRY_POINTS", "open_store"]

ENTRY_POINTS = "tokensession.stores"
"""The entry-point group for third-party stores: name = URL scheme, value = callable(url) -> Store."""

_SLASHES = (
    "Three slashes begin a relative path (sqlite:///tokens.db), four an absolute one "
    "(sqlite:////var/lib/tokens.db)."
)


def open_store(url: str | Path, *, clock: Clock | None = None) -> Store:
    """The store that a URL names, or the `SQLiteStore` at a `pathlib.Path`. Does no I/O.

    - `memory:` is a new `MemoryStore`.
    - `file:///var/lib/tokens` is the `FileStore` in that directory. The path must be absolute.
    - `sqlite:///tokens.db` is an `SQLiteStore`. Three slashes begin a *relative* path.
    - `sqlite:////var/tokens.db` is an `SQLiteStore`. Four slashes begin an *absolute* path.

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
            todo=f"Begin it with one of: {', '.join(_known())}. For a file: sqlite:///tokens.db.",
        )
    return match[1].lower()


def _memory(parts: SplitResult, url: str, clock: Clock | None) -> Store:
    from .memory import MemoryStore

    if parts.netloc or parts.path or parts.query or parts.fragment:
        raise ConfigurationError(
            "A memory: URL ends with its colon, and this one goes on.", todo="Write it memory:."
        )
    return MemoryStore(clock=clock)


def _file(parts: SplitResult, url: str, clock: Clock | None) -> Store:
    from .file import FileStore

    path = _path(parts)
    if parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise ConfigurationError(
            "A file: URL must have an absolute path on this host.", todo="Write it file:///var/lib/tokens."
        )
    return FileStore(path, clock=clock)


def _sqlite(parts: SplitResult, url: str, clock: Clock | None) -> Store:
    from .sqlite import SQLiteStore

    path = _path(parts).removeprefix("/")
    if parts.netloc or not path or not url.lower().startswith("sqlite:///"):
        raise ConfigurationError(
            "An sqlite: URL must have three or four slashes and then a file.", todo=_SLASHES
        )
    return SQLiteStore(path, clock=clock)


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


_BUILT_IN: dict[str, Callable[[SplitResult, str, Clock | None], Store]] = {
    "file": _file,
    "memory": _memory,
    "sqlite": _sqlite,
}


def _open_foreign(scheme: str, url: str) -> Store:
    points = _foreign().select(name=scheme)
    if not points:
        raise ConfigurationError(
            f"No store is registered for the scheme {scheme!r}.",
            todo=f"Use one of: {', '.join(_known())}; or install the package that provides it.",
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
    if not implements(Store, store):
        raise ConfigurationError(
            f"The entry point {point.value} for {scheme!r} must return a store, not {type(store).__name__}."
        )
    opened: Store = store
    return opened


def _foreign() -> EntryPoints:
    from importlib.metadata import entry_points  # 20 ms, which the built-in stores do without

    return entry_points(group=ENTRY_POINTS)


def _known() -> list[str]:
    return sorted({*_BUILT_IN, *_foreign().names})
