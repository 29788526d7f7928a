"""The stored state: everything known about one key, and the bytes it is stored as.

A store holds these bytes and does not look inside. They are a msgpack map with a format number. Every
field is checked when it is read back, because another version, another program or a bad disk may have
written it. Fields that this version does not know are kept when it writes.

In memory, moments are readings of this process's boot clock. In the store they are seconds before or after
the moment of writing, and the record's age says how long ago that was. So no two hosts compare clocks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import msgpack

from ..errors import StoreCorrupt
from ..policy import CODE_LIFE, SUPERSEDED_LIMIT
from ..providers.protocol import Credential, Identity
from ..stores.protocol import ENCRYPTED
from ..token import Token
from .fields import Fields

__all__ = [
    "FORMAT",
    "MAX_REDEEMED",
    "Failures",
    "Now",
    "Rejection",
    "TokenState",
    "decode",
    "encode",
    "keeping",
    "merged",
    "redeeming",
    "superseding",
]

FORMAT = 2
_MAX_BYTES = 4 * 1024 * 1024  # four times the largest token response that is read
_MAX_REJECTIONS = 8
MAX_REDEEMED = 64
_MAX_FAILURES = 4  # credentials

_T = TypeVar("_T")
_Unknown = Mapping[str, Any]


def _moment(default: float = 0.0) -> Any:
    """A field that is a reading of the boot clock."""
    return field(default=default, metadata={"moment": True})


@dataclass(frozen=True, slots=True)
class Now:
    """What both clocks of this process say."""

    wall: float
    boot: float


@dataclass(frozen=True, slots=True)
class Failures:
    """The token requests with one credential that failed since it last worked.

    `unknown` of them got no answer, so the credential may be spent. `unexplained` counts refusals without an
    error code in a row, from `unexplained_since` on. Nothing is sent before `until`, and nothing that no
    caller waits for before `background_until`; `requested` says that the server asked for that.
    """

    credential: str
    count: int = 0
    unknown: int = 0
    unexplained: int = 0
    requested: bool = False
    reason: str = ""
    since: float = _moment()
    unexplained_since: float = _moment()
    last: float = _moment()
    until: float = _moment()
    background_until: float = _moment()
    more: _Unknown = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rejection:
    """The provider rejected this refresh token or code.

    `request` is the fingerprint of the whole token request. If any of it changes (the client secret, the
    token URL, the scope), one more request is made. "" is unknown: then only the credential counts.
    `lost`: an earlier request with it got no answer. If not `certain`, it is tried again after `until`.
    """

    credential: str
    code: str = ""
    request: str = ""
    certain: bool = True
    lost: bool = False
    reason: str = ""
    tries: int = 1
    until: float = _moment()
    more: _Unknown = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TokenState:
    """What is stored under a key.

    - `number` and `generation` are its order. A sign-in, a sign-out and a newly configured credential raise
      the first, a refresh the second. The higher state counts, wherever it is.
    - `identity`: whose tokens these are. None in a record of an older version.
    - `configured`: the fingerprint of the configured credential that it descends from ("" if there is none),
      and `superseded`: those before it.
    - `redeemed`: the codes, and the refresh tokens of sign-ins, that have been sent, and when. `start` is the
      one that it descends from.
    - `token` was obtained at `obtained` (boot clock). `problem` says why it must not be served, or is "".
      Then `previous` is the refresh token before it, until the new one has worked.
    - `failures`: what has failed last, and `other_failures`: what has with other credentials. Processes
      that are configured differently share a record while a new configuration is deployed.
    - `forced`: how many refreshes in a row were caused by a 401 and did not help. `force_at`: when
      `refresh(force=True)` last made a request. `sign_in_life`: how long the sign-in was to live when its end
      was first stated, or last moved on.
    - `requests`: how many token requests of the last hour count against the limit, at `requests_at`.
    """

    number: int = 0
    generation: int = 0
    identity: Identity | None = None
    configured: str = ""
    superseded: tuple[str, ...] = ()
    start: str = ""
    redeemed: tuple[tuple[str, float], ...] = ()
    signed_out: bool = False
    token: Token | None = None
    obtained: float = 0.0
    problem: str = ""
    previous: str | None = field(default=None, repr=False)
    failures: Failures | None = None
    other_failures: tuple[Failures, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    forced: int = 0
    force_at: float = -math.inf
    sign_in_life: float | None = None
    requests: float = 0.0
    requests_at: float = 0.0
    more: _Unknown = field(default_factory=dict, compare=False, repr=False)

    @property
    def order(self) -> tuple[int, int]:
        """Of two states of one key, the one with the higher order counts."""
        return self.number, self.generation

    @property
    def servable(self) -> Token | None:
        """The token, if it may be used at all."""
        return self.token if self.token is not None and not self.problem and not self.signed_out else None

    @property
    def unanswered(self) -> tuple[str, ...]:
        """The credentials whose last token request got no answer: it may have brought a token."""
        return tuple(failures.credential for failures in self.all_failures if failures.unknown)

    def has_redeemed(self, credential: str) -> bool:
        """Whether the code or refresh token with this fingerprint has been sent by a sign-in."""
        return any(name == credential for name, _ in self.redeemed)

    def requests_used(self, limit: float, now: float) -> float:
        """How much of the hour's limit is used: a request adds one, and time takes away half of it an hour.

        With the other half as the most that may be used at once, no hour has more requests than the limit.
        """
        return max(0.0, self.requests - (now - self.requests_at) * limit / 2 / 3600)

    def rejection_of(self, credential: str, request: str) -> Rejection | None:
        """The rejection of exactly this request, if there is one."""
        for rejection in self.rejections:
            if rejection.credential == credential and rejection.request in ("", request):
                return rejection
        return None

    def with_rejection(self, rejection: Rejection) -> TokenState:
        """This state with one more rejection, or with this one instead of an earlier one."""
        others = tuple(
            known
            for known in self.rejections
            if known.credential != rejection.credential or known.request not in ("", rejection.request)
        )
        return replace(self, rejections=(*others, rejection)[-_MAX_REJECTIONS:])

    def failures_of(self, credential: str) -> Failures | None:
        """What has failed with this credential since it last worked."""
        return next((each for each in self.all_failures if each.credential == credential), None)

    @property
    def all_failures(self) -> tuple[Failures, ...]:
        """What has failed with each credential, the last one first."""
        return self.other_failures if self.failures is None else (self.failures, *self.other_failures)

    def with_failures(self, *failures: Failures) -> TokenState:
        """This state with these, the last one first, in place of what it has of the same credentials."""
        found: dict[str, Failures] = {}
        for each in (*failures, *self.all_failures):
            found.setdefault(each.credential, each)
        kept = tuple(found.values())[:_MAX_FAILURES]
        return replace(self, failures=kept[0] if kept else None, other_failures=kept[1:])

    def without_failures(self, credential: str) -> TokenState:
        """This state after this credential has worked, or was rejected."""
        found = tuple(each for each in self.all_failures if each.credential != credential)
        return replace(self, failures=None, other_failures=()).with_failures(*found)


def merged(stored: TokenState, memory: TokenState | None) -> TokenState:
    """The stored state, with what a process knows of it besides and could not store: its notes."""
    if memory is None or memory.order != stored.order:
        return stored
    ours, theirs = memory.token, stored.token
    if ours is not None and theirs is not None and ours.access_token == theirs.access_token:
        # A store whose clock was set back makes no token younger.
        if memory.obtained < stored.obtained:
            stored = replace(stored, obtained=memory.obtained)
        if ours.obtained_at < theirs.obtained_at:
            stored = replace(stored, token=replace(theirs, obtained_at=ours.obtained_at))
    failures: dict[str, Failures] = {}
    all_noted = (*stored.all_failures, *memory.all_failures)
    for each in sorted(all_noted, key=lambda each: (each.last, each.count, each.until)):
        known = failures.pop(each.credential, each)
        unknown, count = max(known.unknown, each.unknown), max(known.count, each.count)
        failures[each.credential] = replace(each, unknown=unknown, count=count)
    both = replace(
        stored.with_failures(*reversed(failures.values())),
        force_at=max(stored.force_at, memory.force_at),
        requests=max(stored.requests, memory.requests),  # perhaps a few too many, which is harmless
        requests_at=max(stored.requests_at, memory.requests_at),
    )
    for rejection in memory.rejections:
        noted = both.rejection_of(rejection.credential, rejection.request)
        if noted is None or noted.until < rejection.until:
            both = both.with_rejection(rejection)
    return both


def keeping(state: TokenState, *others: TokenState | None) -> TokenState:
    """This state, with what must outlive the others that it replaces: which credentials have been sent,
    which were rejected, and which have to wait. (Not its own refresh token: this state knows more of it.)
    """
    known = [state, *(other for other in others if other is not None)]
    current = state.token.refresh_token if state.token is not None else None
    own = Credential("refresh_token", current).fingerprint if current else ""
    rejections: dict[tuple[str, str], Rejection] = {}
    for rejection in (each for other in reversed(known) for each in other.rejections):
        rejections[rejection.credential, rejection.request] = rejection
    older = [
        each
        for each in rejections.values()
        if each.credential != own and state.rejection_of(each.credential, each.request) is None
    ]
    failures = (each for other in known[1:] for each in other.all_failures if each.credential != own)
    redeemed = dict(pair for each in reversed(known) for pair in each.redeemed)
    superseded = dict.fromkeys(name for each in reversed(known) for name in each.superseded)
    if state.signed_out:
        before = (other for other in known[1:] if other.order < state.order)
        superseded.update(dict.fromkeys(name for other in before for name in other.unanswered))
    return replace(
        state.with_failures(*state.all_failures, *failures),
        rejections=(*older, *state.rejections)[-_MAX_REJECTIONS:],
        redeemed=tuple(redeemed.items())[-MAX_REDEEMED:],
        superseded=tuple(superseded)[-SUPERSEDED_LIMIT:],
    )


def superseding(state: TokenState, configured: str) -> tuple[str, ...]:
    """The superseded credentials of a new lineage that starts with `configured`.

    It comes after every rejection that is noted, so a rejected credential is superseded as well.
    """
    rejected = tuple(rejection.credential for rejection in state.rejections)
    names = (*state.superseded, *rejected, *((state.configured,) if state.configured else ()))
    return tuple(dict.fromkeys(name for name in names if name != configured))[-SUPERSEDED_LIMIT:]


def redeeming(state: TokenState, credential: str, now: float) -> tuple[tuple[str, float], ...]:
    """The redeemed credentials, with this one, without those that are older than a day."""
    recent = tuple((name, at) for name, at in state.redeemed if name != credential and now - at < CODE_LIFE)
    return (*recent, (credential, now))[-MAX_REDEEMED:]


# -- bytes ------------------------------------------------------------------------------------------------


def encode(state: TokenState, now: Now) -> bytes:
    """The state as bytes, in the current format."""
    token, identity, more, others = state.token, state.identity, dict(state.more), state.other_failures
    unknown_token, unknown_identity = more.pop("token", {}), more.pop("identity", {})
    data: bytes = msgpack.packb(
        {
            **more,
            "format": FORMAT,
            "number": state.number,
            "generation": state.generation,
            "identity": None if identity is None else {**unknown_identity, **_packed(identity, now)},
            "configured": state.configured,
            "superseded": list(state.superseded),
            "start": state.start,
            "redeemed": [[name, at - now.boot] for name, at in state.redeemed],
            "signed_out": state.signed_out,
            "token": None
            if token is None
            else {
                **unknown_token,
                "access_token": token.access_token,
                "obtained": state.obtained - now.boot,
                "lifetime": token.lifetime,
                "refresh_token": token.refresh_token,
                "scope": token.scope,
                "token_type": token.token_type,
                "refresh_lifetime": token.refresh_lifetime,
                **({"extra": dict(token.extra)} if token.extra else {}),
            },
            "problem": state.problem,
            "previous": state.previous,
            "failures": None if state.failures is None else _packed(state.failures, now),
            "rejections": [_packed(rejection, now) for rejection in state.rejections],
            "forced": state.forced,
            "force_at": None if math.isinf(state.force_at) else state.force_at - now.boot,
            "sign_in_life": state.sign_in_life,
            "requests": [state.requests, state.requests_at - now.boot],
            **({"other_failures": [_packed(each, now) for each in others]} if others else {}),
        }
    )
    return data


def _packed(part: Any, now: Now) -> dict[str, Any]:
    known = {
        each.name: getattr(part, each.name) - now.boot
        if each.metadata.get("moment")
        else getattr(part, each.name)
        for each in fields(part)
        if each.name != "more"
    }
    return {**getattr(part, "more", {}), **known}


def decode(data: bytes, now: Now, *, age: float = 0.0) -> TokenState:
    """The state in these bytes, which were written `age` seconds ago.

    Raises `StoreCorrupt`, which names the field and never its value.
    """
    try:
        return _decoded(data, now, age)
    except StoreCorrupt as error:
        # Drop the frames that read the record: some programs report the locals of every frame.
        del data
        raise error.with_traceback(None)  # noqa: B904 - the same error, not a new one


def _decoded(data: bytes, now: Now, age: float) -> TokenState:
    if len(data) > _MAX_BYTES:
        raise StoreCorrupt(f"The stored record is {len(data)} bytes long; at most {_MAX_BYTES} are read.")
    if data.startswith(ENCRYPTED):
        raise StoreCorrupt(
            "The stored record is encrypted.",
            todo="Open the store with EncryptedStore and its keys, or with an encrypted+… URL.",
        )
    problem = ""
    try:
        document = msgpack.unpackb(data, strict_map_key=True)
    # msgpack's exceptions share no base class narrower than these two.
    except (ValueError, msgpack.UnpackException) as error:
        problem = type(error).__name__
    if problem:  # outside the handler: some of those exceptions hold what was read, tokens included
        raise StoreCorrupt(f"The stored record is not msgpack ({problem}).")
    read = Fields(document, "record", now.boot - age)
    number = read.get("format", int)
    if number == 1:
        return _decoded_1(read, now)
    if number != FORMAT:
        raise StoreCorrupt(
            f"The stored record has format {number}; this version reads formats 1 and {FORMAT}.",
            todo="Use the version of tokensession that wrote it, or sign in again.",
        )
    token = read.map("token")
    obtained = token.moment("obtained") if token else 0.0
    level, at = read.pair("requests")
    unknown = read.unknown({each.name for each in fields(TokenState)} | {"format"})
    if token and (unknown_token := token.unknown({*_TOKEN, "obtained"})):
        unknown["token"] = unknown_token
    identity, failures = read.map("identity"), read.map("failures")
    if identity and (rest := identity.unknown({each.name for each in fields(Identity)})):
        unknown["identity"] = rest
    return TokenState(
        number=read.count("number"),
        generation=read.count("generation"),
        identity=_part(Identity, identity) if identity else None,
        configured=read.get("configured", str),
        superseded=tuple(read.texts("superseded")),
        start=read.get("start", str),
        redeemed=tuple(read.pairs("redeemed")),
        signed_out=read.get("signed_out", bool),
        token=_token(token, now.wall - max(0.0, now.boot - obtained)) if token else None,
        obtained=obtained,
        problem=read.get("problem", str),
        previous=read.text_or_none("previous"),
        failures=_part(Failures, failures) if failures else None,
        other_failures=tuple(_part(Failures, each) for each in read.maps("other_failures"))
        if "other_failures" in read
        else (),
        rejections=tuple(_part(Rejection, each) for each in read.maps("rejections")),
        forced=read.count("forced"),
        force_at=-math.inf if read.get("force_at") is None else read.moment("force_at"),
        sign_in_life=read.number_or_none("sign_in_life"),
        requests=level,
        requests_at=at,
        more=unknown,
    )


_TOKEN = ("access_token", "lifetime", "refresh_token", "scope", "token_type", "refresh_lifetime", "extra")


def _token(read: Fields, obtained_at: float) -> Token:
    return Token(
        access_token=read.get("access_token", str),
        obtained_at=obtained_at,
        lifetime=read.number_or_none("lifetime"),
        refresh_token=read.text_or_none("refresh_token"),
        scope=read.text_or_none("scope"),
        token_type=read.get("token_type", str),
        refresh_lifetime=read.number_or_none("refresh_lifetime") if "refresh_lifetime" in read else None,
        **({"extra": read.plain_values("extra")} if "extra" in read else {}),
    )


def _part(kind: type[_T], read: Fields) -> _T:
    """A dataclass from its map. Its annotations say what to check; unknown fields go to `more`."""
    checks = {"str": str, "int": int, "bool": bool}
    values: dict[str, Any] = {}
    known = [each for each in fields(kind) if each.name != "more"]  # type: ignore[arg-type]
    for each in known:
        if each.metadata.get("moment"):
            values[each.name] = read.moment(each.name)
        else:
            value = read.get(each.name, checks[str(each.type)])
            values[each.name] = sys.intern(value) if kind is Identity else value  # shared by many accounts
    if hasattr(kind, "more"):
        values["more"] = read.unknown({each.name for each in known})
    return kind(**values)


def _decoded_1(read: Fields, now: Now) -> TokenState:
    """Format 1, which was never published: no order, no identity, and moments of the wall clock."""

    def boot(wall: float) -> float:
        return now.boot - max(0.0, now.wall - wall)

    token, attempt, rejection = read.map("token"), read.map("attempt"), read.map("rejection")
    obtained_at = token.number("obtained_at") if token else 0.0
    failures = None
    if attempt:
        at, count = boot(attempt.number("at")), 1 + attempt.count("replays")
        failures = Failures(
            attempt.get("credential", str), count, count, reason="got no answer", since=at, last=at, until=at
        )
    return TokenState(
        configured=read.get("seed", str),
        signed_out=read.get("signed_out", bool),
        token=_token(token, obtained_at) if token else None,
        obtained=boot(obtained_at),
        failures=failures,
        rejections=(Rejection(rejection.get("credential", str), rejection.get("code", str)),)
        if rejection
        else (),
    )
