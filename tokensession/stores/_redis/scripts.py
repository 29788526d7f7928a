"""What happens at the server, in Lua: each script is one step there, and may be repeated.

One hash for each key. Its fields:

    v d w c    the record: version, data, when it was written, checksum of key, version and data
    o e n b    the claim: owner, when its lease ends, the lease's length, when the claim began
    s l        the owner's `sending`: when, and how long it listens for the response
    p q        the same of an earlier owner whose lease ended without a commit: the interruption

All times are in microseconds, by the server's `TIME`. No field or key expires.

Arguments: an expected version is "=" and the version, "-" for "nothing is stored", or "*" for whatever is.
`channel` is that of the wake-ups. A message is the new version (nothing if a claim has been abandoned), a
space, and the name of the hash.

A server that is full refuses the first write of a script, but no later one. So `CLAIM` and `SENDING` begin
with a write that needs memory: they fail, and nothing is sent. `WRITE` and `RENEW` begin with one that needs
none, because there is a token that is stored nowhere else, or will be.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = ["ABANDON", "CLAIM", "DELETE", "LOAD", "RENEW", "SENDING", "WRITE", "Script"]


@dataclass(frozen=True, slots=True)
class Script:
    """A script and its name at the server."""

    source: str
    sha: str


def _script(source: str) -> Script:
    source = _PRELUDE + source
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


_PRELUDE = """
local key, call = KEYS[1], redis.call
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local function expected(version, expect)
  return expect == '*' or (version and '=' .. version or '-') == expect
end
local function publish(channel, version)
  redis.pcall('PUBLISH', channel, version .. ' ' .. key)  -- a user may lack the right to: waiters look anyway
end
"""

# -> now, v, d, w, c
LOAD = _script("""
local r = call('HMGET', key, 'v', 'd', 'w', 'c')
return {now, r[1], r[2], r[3], r[4]}
""")

# seen, owner, lease -> 'newer', now, v, d, w, c
#                     | 'held', owner, since, until
#                     | 'granted', now, v, d, w, c, interrupted or -1, listening
CLAIM = _script("""
local r = call('HMGET', key, 'v', 'd', 'w', 'c', 'o', 'e', 'n', 'b', 's', 'l', 'p', 'q')
if r[1] and not expected(r[1], ARGV[1]) then return {'newer', now, r[1], r[2], r[3], r[4]} end
local owner, ends, length = r[5], tonumber(r[6]) or 0, tonumber(r[7]) or 0
local sent, listening = tonumber(r[11]), tonumber(r[12]) or 0
if owner and owner ~= ARGV[2] then
  if ends > now + length then  -- the server's clock was set back, or this is another server
    ends = now + length
    call('HSET', key, 'e', ends)
  end
  if ends > now then return {'held', owner, now - (tonumber(r[8]) or now), ends - now} end
  if r[9] then sent, listening = tonumber(r[9]), tonumber(r[10]) or 0 end
end
local began = owner == ARGV[2] and r[8] or now
call('HSET', key, 'o', ARGV[2], 'e', now + ARGV[3], 'n', ARGV[3], 'b', began)
if owner ~= ARGV[2] and r[9] then
  call('HDEL', key, 's', 'l')
  call('HSET', key, 'p', sent, 'q', listening)
end
if not sent then return {'granted', now, r[1], r[2], r[3], r[4], -1, 0} end
local ago = math.max(now - sent, 0)
return {'granted', now, r[1], r[2], r[3], r[4], ago, math.max(listening - ago, 0)}
""")

# owner, seconds -> whether it is still this owner's
RENEW = _script("""
if call('HGET', key, 'o') ~= ARGV[1] then return 0 end
call('HDEL', key, '-')
call('HSET', key, 'e', now + ARGV[2])
return 1
""")

# owner, listening, lease -> whether it is still this owner's
SENDING = _script("""
if call('HGET', key, 'o') ~= ARGV[1] then return 0 end
call('HSET', key, 's', now, 'l', ARGV[2], 'e', now + ARGV[3], 'n', ARGV[3])
return 1
""")

# owner or '', expect, version, data, checksum, channel -> 1, now, w | 0, now, v, d, w, c (another record)
# A record that is stored already is written again all the same, so that there is something to wait for: see
# `durability`.
WRITE = _script("""
local r = call('HMGET', key, 'v', 'd', 'w', 'c', 'o')
local mine, same = r[5] and r[5] == ARGV[1], r[1] == ARGV[3] and r[2] == ARGV[4]
if not same and not expected(r[1], ARGV[2]) then
  if mine then call('HDEL', key, 'p', 'q') end  -- what is stored is newer than that request
  return {0, now, r[1], r[2], r[3], r[4]}
end
if mine then
  call('HDEL', key, 'o', 'e', 'n', 'b', 's', 'l', 'p', 'q')
elseif ARGV[1] ~= '' then
  call('HDEL', key, 'p', 'q')
else
  call('HDEL', key, '-')
end
local written = same and r[3] or now
call('HSET', key, 'v', ARGV[3], 'd', ARGV[4], 'w', written, 'c', ARGV[5])
publish(ARGV[6], ARGV[3])
return {1, now, written}
""")

# expect -> whether there was one, or 'superseded', now, v, d, w, c
DELETE = _script("""
local r = call('HMGET', key, 'v', 'd', 'w', 'c')
if not r[1] then return {0} end
if not expected(r[1], ARGV[1]) then return {'superseded', now, r[1], r[2], r[3], r[4]} end
call('HDEL', key, 'v', 'd', 'w', 'c')
return {1}
""")

# owner, channel
ABANDON = _script("""
if call('HGET', key, 'o') ~= ARGV[1] then return 0 end
call('HDEL', key, 'o', 'e', 'n', 'b', 's', 'l')
publish(ARGV[2], '')
return 1
""")
