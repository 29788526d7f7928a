"""What has failed, in our words: which errors of the driver and the server mean what, and what to do."""

from __future__ import annotations

import asyncpg

from ...errors import ConfigurationError, StoreUnavailable, TokenSessionError

__all__ = ["Failure", "explain", "is_passing"]

Failure = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, UnicodeError)
"""What a call of the driver raises. (TimeoutError is an OSError, and UnicodeError is about a host name.)"""

_PASSING: tuple[type[BaseException], ...] = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,  # "connection is closed"
    asyncpg.InternalClientError,  # it was idle as the server said that it ends
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,  # it is starting
    asyncpg.TooManyConnectionsError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.UndefinedTableError,  # dropped: it is made again
)

# Of two that match, the first counts.
_MEANINGS: tuple[tuple[type[BaseException], str, str], ...] = (
    (
        TimeoutError,
        "did not answer in time, or its pool had no free connection",
        "Check that the server runs, its load, and the size of the pool.",
    ),
    (
        asyncpg.ReadOnlySQLTransactionError,
        "is read-only, as a standby is",
        "Connect to the primary (in a URL with several hosts: ?target_session_attrs=read-write).",
    ),
    (asyncpg.DiskFullError, "has no space left on its disk", "Make space on the server's disk."),
    (
        asyncpg.LockNotAvailableError,
        "keeps the record locked for another program",
        "End that program's transaction: pg_stat_activity and pg_locks show it.",
    ),
    (asyncpg.QueryCanceledError, "has cancelled the statement", "Check its statement_timeout."),
    (asyncpg.InvalidPasswordError, "rejected the password", "Check the user and the password."),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "rejected this user or host",
        "Check the user, and the server's pg_hba.conf.",
    ),
    (asyncpg.InvalidCatalogNameError, "has no such database", "Create it, or correct the URL."),
    (
        asyncpg.InsufficientPrivilegeError,
        "does not permit this",
        "Grant this user SELECT, INSERT and UPDATE on the table, and CREATE on the schema; or have the table "
        "made by an administrator: PostgresStore.schema() prints the SQL.",
    ),
    (
        asyncpg.TooManyConnectionsError,
        "has no connection left",
        "Raise max_connections, or use a pooler.",
    ),
    (
        asyncpg.InvalidSQLStatementNameError,
        "is behind a pooler, which has mixed up prepared statements",
        "Pass statement_cache_size=0 to your pool.",
    ),
    (
        asyncpg.DuplicatePreparedStatementError,
        "is behind a pooler, which has mixed up prepared statements",
        "Pass statement_cache_size=0 to your pool.",
    ),
    (asyncpg.UndefinedTableError, "has lost the table", "Restore it, or let it be made again."),
    (asyncpg.CannotConnectNowError, "is starting or stopping", "Wait until it runs."),
    (asyncpg.TargetServerAttributeNotMatched, "is not the kind that the URL asks for", "Check its hosts."),
    (UnicodeError, "has an impossible host name", "Correct the URL."),
    (OSError, "cannot be reached", "Check that the server runs, and the host and port."),
)


def is_passing(error: BaseException) -> bool:
    """Whether another try, on a new connection, may succeed."""
    return isinstance(error, _PASSING) and not isinstance(error, ValueError)


def explain(error: BaseException, where: str) -> TokenSessionError:
    """Our error for this one. Raise it `from` that one: it has no value of a row any more."""
    if isinstance(error, asyncpg.ClientConfigurationError):
        return ConfigurationError(f"The URL of the Postgres server is wrong: {type(error).__name__}.")
    if isinstance(error, asyncpg.PostgresError):
        error.detail = None  # for some errors the server puts the row there, with its token
    for kind, happened, todo in _MEANINGS:
        if isinstance(error, kind):
            return StoreUnavailable(f"The Postgres server {where} {happened}{_code(error)}.", todo=todo)
    return StoreUnavailable(
        f"The Postgres server {where} failed ({type(error).__name__}{_code(error)}).",
        todo="See the error's cause, and the server's log.",
    )


def _code(error: BaseException) -> str:
    code = getattr(error, "sqlstate", None)
    return f" (SQLSTATE {code})" if code else ""
