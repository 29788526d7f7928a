"""The statements. Each operation of a store is one of them, and all time in them is the server's.

Each is a transaction of its own, and may be run again if its answer got lost, because owners and versions are
drawn before. They are written for READ COMMITTED, where a statement sees a row as it is once it is locked.
(In a database with a stricter default, a race is a serialization failure, and the statement is run again.)

An owner of a claim keeps its row's lease columns until it ends the claim, or until another takes over after
`lease_end`. So `owner` alone decides whether a claim is still held: a lease that has run out, and that no one
has taken over, is still its owner's, and may be renewed.

* `sent`, `listens_until`: when the owner last called `sending`, and how long it listens for the response.
* `interrupted`, `interrupted_until`: the same of an earlier owner that never ended its claim.

No lease lasts longer than its length (`lease`) from now on. If one does, the server's clock was set back. The
first claim that meets it shortens it. For how long an earlier owner listens is bounded in the same way.

How they wait: `lock_timeout` is set for the one statement, so a row that another program keeps locked is an
error of the server, and no statement of a client that has given up is carried out later. It is set in the
source of the rows, because that is evaluated before any row is locked.
"""

from __future__ import annotations

from dataclasses import dataclass

from .schema import quoted

__all__ = ["Statements", "statements"]

_BOUNDED = "(SELECT set_config('lock_timeout', '1500', true)) AS bounded"

# A server that does not wait for its disk loses acknowledged commits in a crash. A stricter setting stays.
_DURABLE = (
    "(SELECT set_config('lock_timeout', '1500', true), CASE current_setting('synchronous_commit')"
    " WHEN 'off' THEN set_config('synchronous_commit', 'local', true) END) AS bounded"
)

# The same for a crowd that races for one row. Who loses has locked it too, and commits. If each of them
# waited for the disk, one after another, the winner could not end its claim in time. So only a winner does.
_RACING = (
    "(SELECT set_config('lock_timeout', '1500', true), set_config('tokensession.commit',"
    " replace(current_setting('synchronous_commit'), 'off', 'local'), true),"
    " set_config('synchronous_commit', 'off', true)) AS bounded"
)
_WON = "set_config('synchronous_commit', current_setting('tokensession.commit'), true)"

# (`greatest` alone would make 0 of NULL.)
_AGE = "CASE WHEN {0} IS NOT NULL THEN greatest(0, extract(epoch FROM clock_timestamp() - {0})) END::float8"
_WRITTEN = _AGE.format("t.written") + " AS age"

# To a channel, if there is one. With half of the hash, and no data: any user of the database may listen.
_NOTIFY = "CASE WHEN {0}::text <> '' THEN pg_notify({0}, left(encode($1, 'hex'), 32)) IS NULL END"

# May $3 have the claim, and is there nothing newer than $5?
_FREE = (
    "(t.version IS NULL OR t.version IS NOT DISTINCT FROM $5)"
    " AND (t.owner IS NULL OR t.owner = $3 OR t.lease_end <= clock_timestamp())"
)

# $1 id, $2 key, $3 owner, $4 seconds, $5 seen. The source of the INSERT is empty while the claim is
# held or a newer record is stored: then waiters lock no row, and write nothing, unless the clock went back.
_CLAIM = f"""
WITH granted AS (
  INSERT INTO {{table}} AS t (id, key, owner, since, lease_end, lease)
  SELECT $1::bytea, $2::bytea, $3::text, clock_timestamp(),
    clock_timestamp() + $4::float8 * interval '1 second', $4 * interval '1 second'
  FROM {_RACING}
  WHERE NOT EXISTS (SELECT FROM {{table}} AS t WHERE t.id = $1 AND NOT ({_FREE}))
  ON CONFLICT (id) DO UPDATE SET
    owner = excluded.owner, since = excluded.since, lease_end = excluded.lease_end, lease = excluded.lease,
    interrupted = coalesce(t.sent, t.interrupted),
    interrupted_until = CASE WHEN t.sent IS NULL THEN t.interrupted_until ELSE t.listens_until END,
    sent = NULL, listens_until = NULL
  WHERE {_FREE}
  RETURNING *
), capped AS (
  UPDATE {{table}} AS t SET lease_end = clock_timestamp() + t.lease
  FROM {_BOUNDED} WHERE t.id = $1 AND t.owner <> $3 AND t.lease_end > clock_timestamp() + t.lease
)
SELECT true AS granted, t.key, t.version, t.data, t.checksum, {_WRITTEN},
  {_AGE.format("t.interrupted")} AS interrupted,
  extract(epoch FROM t.interrupted_until - greatest(clock_timestamp(), t.interrupted))::float8 AS listening,
  t.owner, 0::float8 AS held, 0::float8 AS ends, {_WON} AS durable
FROM granted AS t
UNION ALL
SELECT false, t.key, t.version, CASE WHEN t.version IS DISTINCT FROM $5 THEN t.data END, t.checksum,
  {_WRITTEN}, NULL, NULL, t.owner, {_AGE.format("t.since")},
  extract(epoch FROM least(t.lease_end - clock_timestamp(), t.lease))::float8, NULL
FROM {{table}} AS t WHERE t.id = $1 AND NOT EXISTS (SELECT FROM granted)
"""

# $1 id, $2 key, $3 whether any version may be replaced, $4 the one that may, $5 version, $6 data,
# $7 checksum, $8 the owner whose claim ends, $9 channel. After a commit every earlier request has been
# answered or is outdated, so it ends `interrupted`, whichever owner has the claim by now. So does a commit
# that is superseded, if the claim is still its own.
_WRITE = f"""
WITH stored AS (
  INSERT INTO {{table}} AS t (id, key, version, data, checksum, written)
  SELECT $1::bytea, $2::bytea, $5::text, $6::bytea, $7::bytea, clock_timestamp()
  FROM {_DURABLE}
  WHERE $3 OR $4::text IS NULL OR EXISTS (SELECT FROM {{table}} AS t WHERE t.id = $1)
  ON CONFLICT (id) DO UPDATE SET
    key = excluded.key, version = excluded.version, data = excluded.data, checksum = excluded.checksum,
    written = excluded.written,
    owner = CASE WHEN t.owner = $8::text THEN NULL ELSE t.owner END,
    sent = CASE WHEN t.owner = $8 THEN NULL ELSE t.sent END,
    listens_until = CASE WHEN t.owner = $8 THEN NULL ELSE t.listens_until END,
    interrupted = CASE WHEN $8 IS NULL THEN t.interrupted END,
    interrupted_until = CASE WHEN $8 IS NULL THEN t.interrupted_until END
  WHERE $3 OR t.version IS NOT DISTINCT FROM $4
  RETURNING *
), outdated AS (
  UPDATE {{table}} AS t SET interrupted = NULL, interrupted_until = NULL
  WHERE t.id = $1 AND t.owner = $8 AND t.version IS DISTINCT FROM $4 AND NOT EXISTS (SELECT FROM stored)
)
SELECT true AS stored, NULL::bytea AS key, NULL AS version, NULL::bytea AS data, NULL::bytea AS checksum,
  0::float8 AS age, {_NOTIFY.format("$9")} AS told
FROM stored
UNION ALL
SELECT false, t.key, t.version, t.data, t.checksum, {_WRITTEN}, NULL
FROM {{table}} AS t WHERE t.id = $1 AND NOT EXISTS (SELECT FROM stored)
"""

# $1 id, $2 whether any version may be deleted, $3 the one that may, $4 channel. The row stays, because it
# says who has the claim.
_DELETE = f"""
WITH deleted AS (
  UPDATE {{table}} AS t SET version = NULL, data = NULL, checksum = NULL, written = NULL
  FROM {_DURABLE}
  WHERE t.id = $1::bytea AND t.version IS NOT NULL AND ($2 OR t.version = $3::text)
  RETURNING t.id
)
SELECT true AS deleted, NULL::bytea AS key, NULL AS version, NULL::bytea AS data, NULL::bytea AS checksum,
  0::float8 AS age, {_NOTIFY.format("$4")} AS told
FROM deleted
UNION ALL
SELECT false, t.key, t.version, t.data, t.checksum, {_WRITTEN}, NULL
FROM {{table}} AS t WHERE t.id = $1 AND t.version IS NOT NULL AND NOT EXISTS (SELECT FROM deleted)
"""

_LOAD = f"SELECT t.key, t.version, t.data, t.checksum, {_WRITTEN} FROM {{table}} AS t WHERE t.id = $1"

_KEYS = "SELECT key FROM {table} WHERE version IS NOT NULL"

# $1 id, $2 owner, $3 seconds
_RENEW = f"""
UPDATE {{table}} AS t SET lease_end = clock_timestamp() + $3::float8 * interval '1 second'
FROM {_BOUNDED} WHERE t.id = $1::bytea AND t.owner = $2::text RETURNING true
"""

# $1 id, $2 owner, $3 seconds of the lease, $4 seconds of listening
_SENDING = f"""
UPDATE {{table}} AS t SET lease_end = clock_timestamp() + $3::float8 * interval '1 second',
  sent = clock_timestamp(), listens_until = clock_timestamp() + $4::float8 * interval '1 second'
FROM {_DURABLE} WHERE t.id = $1::bytea AND t.owner = $2::text RETURNING true
"""

# $1 id, $2 owner, $3 channel
_ABANDON = f"""
WITH abandoned AS (
  UPDATE {{table}} AS t SET owner = NULL, sent = NULL, listens_until = NULL
  FROM {_BOUNDED} WHERE t.id = $1::bytea AND t.owner = $2::text RETURNING t.id
)
SELECT {_NOTIFY.format("$3")} FROM abandoned
"""


@dataclass(frozen=True, slots=True)
class Statements:
    """All of them, for one table."""

    claim: str
    write: str
    delete: str
    load: str
    keys: str
    renew: str
    sending: str
    abandon: str


def statements(table: str) -> Statements:
    """The statements for this table."""
    texts = (_CLAIM, _WRITE, _DELETE, _LOAD, _KEYS, _RENEW, _SENDING, _ABANDON)
    return Statements(*(text.format(table=quoted(table)) for text in texts))
