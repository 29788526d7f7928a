"""Whether a request that the API has refused can be sent again: its token, its body, its cookies."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Iterator

from aiohttp import ClientRequest, ClientResponse, MultipartWriter, hdrs, payload
from aiohttp.multipart import BodyPartReaderPayload

__all__ = ["bearer_errors", "is_whole", "keep_cookies", "renew_cookies"]

_IN_MEMORY = frozenset(
    {payload.BytesPayload, payload.StringPayload, payload.StringIOPayload}
    | {payload.JsonPayload, payload.JsonBytesPayload}
)
_FILES = frozenset({payload.IOBasePayload, payload.BufferedReaderPayload, payload.TextIOPayload})
_STREAMS = frozenset(
    {payload.AsyncIterablePayload, payload.StreamReaderPayload, BodyPartReaderPayload}
)  # read once, and `consumed` from the first byte on


# -- bodies ---------------------------------------------------------------------------------------


async def is_whole(request: ClientRequest, writer: asyncio.Task[None] | None) -> bool:
    """Whether the body can certainly be sent again, from its first to its last byte.

    `writer`: the task that was writing the body when the response came.
    """
    body = request.body
    if not body:
        return True
    parts = list(_parts(body))
    kinds = {type(part) for part in parts}
    if body.consumed or not kinds <= _IN_MEMORY | _FILES | _STREAMS | {payload.BytesIOPayload}:
        return False  # a class of your own may say that it is not consumed, and be
    if not kinds & _FILES:
        return _rewound(request, parts)
    if writer is not None and (not writer.done() or writer.cancelled()) and not _waits_to_begin(request):
        return False  # a thread may still be reading, and cancelling the writer does not stop it
    return await asyncio.get_running_loop().run_in_executor(None, _rewound, request, parts)


def _parts(body: payload.Payload) -> Iterator[payload.Payload]:
    """The payloads that a body consists of."""
    if type(body) is MultipartWriter:
        for part, _, _ in body:
            yield from _parts(part)
    else:
        yield body


def _waits_to_begin(request: ClientRequest) -> bool:
    """Whether the body was to follow "100 Continue", which has not come."""
    waiting = request._continue
    return waiting is not None and (waiting.cancelled() or not waiting.done())


def _rewound(request: ClientRequest, parts: list[payload.Payload]) -> bool:
    """Whether all files among the parts are back at their beginning, and none has become shorter."""
    try:
        for part in parts:
            if isinstance(part, payload.IOBasePayload):
                part._set_or_restore_start_position()
                if part.consumed or part._value.tell() != part._start_position:
                    return False  # some can tell where they are, and cannot go back
        size = request.body.size if request.body else None
    except Exception:  # noqa: BLE001 - a file of yours may raise anything, and a closed one raises ValueError
        return False
    length = request.headers.get(hdrs.CONTENT_LENGTH, "")
    return size is None or not length.isdecimal() or size >= int(length)


# -- cookies --------------------------------------------------------------------------------------


def keep_cookies(request: ClientRequest, response: ClientResponse) -> set[str] | None:
    """Put the cookies that a 401 sets into the client's jar: aiohttp sees the last response only.

    Returns the `name=value` pairs that the jar has had for this request, or None if the 401 sets no cookie.
    """
    headers = response.headers.getall(hdrs.SET_COOKIE, ())
    if not headers:
        return None
    jar = request.session.cookie_jar
    known = {f"{name}={cookie.coded_value}" for name, cookie in jar.filter_cookies(request.url).items()}
    jar.update_cookies_from_headers(headers, response.url)
    return known


def renew_cookies(request: ClientRequest, stale: Collection[str]) -> None:
    """Send what is in the jar now instead of `stale`. The request's own cookies stay."""
    pairs = [pair.strip() for pair in request.headers.get(hdrs.COOKIE, "").split(";")]
    own = [pair for pair in pairs if pair and pair not in stale]
    names = {pair.partition("=")[0] for pair in own}
    jar = request.session.cookie_jar.filter_cookies(request.url)
    own += [f"{name}={cookie.coded_value}" for name, cookie in jar.items() if name not in names]
    request.headers.popall(hdrs.COOKIE, None)
    if own:
        request.headers[hdrs.COOKIE] = "; ".join(own)


# -- WWW-Authenticate -----------------------------------------------------------------------------

# RFC 9110, 11.6.1. A quoted string that does not end goes to the end of the header. The quantifiers are
# possessive, so the time is proportional to the length, whatever a server sends.
_TOKEN = r"[\w!#$%&'*+.^`|~-]++"  # noqa: S105 - a name for RFC 9110's grammar
_QUOTED = r'"(?:[^"\\]|\\.)*+"'
_ELEMENT = re.compile(r'(?:"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[^",])++', re.ASCII | re.DOTALL)
_PARAMETER = re.compile(
    rf"(?:(?P<scheme>{_TOKEN})(?:[ \t]+|\Z))?"
    rf"(?:(?P<name>{_TOKEN})[ \t]*=[ \t]*(?P<value>{_TOKEN}|{_QUOTED}))?",
    re.ASCII | re.DOTALL,
)
_SCHEME = re.compile(rf"({_TOKEN})[ \t]", re.ASCII)


def bearer_errors(headers: Iterable[str]) -> set[str]:
    """The `error` codes of all Bearer challenges in these `WWW-Authenticate` headers.

    What does not follow the grammar is skipped.
    """
    errors: set[str] = set()
    for header in headers:
        scheme = ""
        for element in _ELEMENT.findall(header):
            text = element.strip(" \t")
            found = _PARAMETER.fullmatch(text)
            if found is None:  # a token68, or not the grammar
                named = _SCHEME.match(text)
                scheme = named[1].lower() if named is not None else scheme
                continue
            scheme = (found["scheme"] or scheme).lower()
            if scheme == "bearer" and (found["name"] or "").lower() == "error":
                errors.add(_unquoted(found["value"]))
    return errors


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL) if value[0] == '"' else value
