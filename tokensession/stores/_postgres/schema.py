"""The table: how it is made and brought up to date, and how we know that it is ours.

Its comment holds the number of its schema, so there is no second table. If someone has replaced the comment,
the columns decide.

Sixteen connections that run `CREATE TABLE IF NOT EXISTS` at once fail most of the time, so the table is made
under an advisory lock of the transaction. That kind of lock is safe behind a pooler in transaction mode.
(Advisory locks of the session are not: there, several clients get the same one without an error.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigurationError, StoreCorrupt, StoreUnavailable

__all__ = ["LOCK", "LOOK", "check_name", "judge", "migrate", "quoted"]

_MIGRATIONS = (
    # `id` is the SHA-256 of `key`: an index takes no key of 10,000 characters. Both are bytes, because text
    # holds no NUL, and depends on the encoding of the database. No column that is updated is in an index, and
    # half of each page is kept free, so an update stays in its page.
    """\
CREATE TABLE {table} (
  id bytea PRIMARY KEY,
  key bytea NOT NULL,
  version text,
  data bytea,
  checksum bytea,
  written timestamptz,
  owner text,
  since timestamptz,
  lease_end timestamptz,
  lease interval,
  sent timestamptz,
  listens_until timestamptz,
  interrupted timestamptz,
  interrupted_until timestamptz
) WITH (fillfactor = 50);""",
)

_COLUMNS = frozenset(re.findall(r"^  (\w+) ", _MIGRATIONS[0], re.MULTILINE))  # of the first version on
_UNCHANGED = "The table is unchanged."
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")

OLDEST_SERVER = 120_000
"""Version 12: the oldest whose statements we know."""

LOCK = "SELECT pg_advisory_xact_lock(7312841905463210)"
"""Taken while a table is made or changed, whatever its name. The number is random."""

LOOK = """
SELECT current_setting('server_version_num')::int AS server, pg_backend_pid() AS backend,
  kind.relkind::text AS kind, obj_description(kind.oid, 'pg_class') AS comment,
  (SELECT string_agg(attname, ' ') FROM pg_attribute
   WHERE attrelid = kind.oid AND attnum > 0 AND NOT attisdropped) AS columns
FROM (SELECT to_regclass($1) AS oid) AS named LEFT JOIN pg_class AS kind ON kind.oid = named.oid
"""
"""What is there under this name? One row."""


def check_name(table: str) -> str:
    """The table's name, if it is plain: `tokens` or `schema.tokens`."""
    parts = table.split(".") if isinstance(table, str) else []
    if not (1 <= len(parts) <= 2 and all(_NAME.fullmatch(part) for part in parts) and len(table) <= 63):
        raise ConfigurationError(
            f"table must be a name such as 'tokensession' or 'auth.tokensession', not {table!r}.",
            todo="Use letters, digits and underscores, at most 63 characters.",
        )
    return table


def quoted(table: str) -> str:
    """The name as SQL."""
    return ".".join(f'"{part}"' for part in table.split("."))


def migrate(table: str, version: int = 0) -> str:
    """The SQL that brings the table from this version of the schema up to date."""
    steps = [step.format(table=quoted(table)) for step in _MIGRATIONS[version:]]
    comment = f"tokensession {len(_MIGRATIONS)}: OAuth tokens, and who refreshes them"
    return "\n".join((*steps, f"COMMENT ON TABLE {quoted(table)} IS '{comment}';", ""))


def judge(table: str, found: Mapping[str, Any]) -> int | None:
    """From which version to migrate the table, or None if it is up to date. Raises if it is not ours."""
    if found["server"] < OLDEST_SERVER:
        number = found["server"]
        raise StoreUnavailable(
            f"The Postgres server has version {number // 10_000}.{number % 10_000}, which is too old.",
            todo=f"Use version {OLDEST_SERVER // 10_000} or a newer one.",
        )
    if found["kind"] is None:
        return 0
    if found["kind"] not in ("r", "p") or not set((found["columns"] or "").split()) >= _COLUMNS:
        raise StoreUnavailable(
            f"The database has a table or view {table} that is not one of tokensession's.",
            intact=_UNCHANGED,
            todo="Pass another name as table=.",
        )
    number = re.match(r"tokensession (\d+)\b", found["comment"] or "")
    version = int(number[1]) if number else 1
    if version > len(_MIGRATIONS):
        raise StoreCorrupt(
            f"The table {table} was made by a newer version of tokensession.",
            intact=_UNCHANGED,
            todo="Use that version, or another table.",
        )
    return version if version < len(_MIGRATIONS) else None
