"""What can be seen of an error, and how a secret may be spelled in it."""

from __future__ import annotations

import base64
import functools
import html
import json
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus


@functools.cache
def spellings(secret: str) -> frozenset[str]:
    """The secret as it may appear in a body, a URL, a log, a header or a dump."""
    utf8, escaped = secret.encode(), json.dumps(secret)[1:-1]
    found = {
        *(secret, quote(secret), quote(secret, safe=""), quote_plus(secret), quote_plus(secret, safe=":/")),
        *(escaped, json.dumps(secret, ensure_ascii=False)[1:-1], escaped.replace("/", "\\/")),
        *(html.escape(secret), repr(secret)[1:-1], utf8.hex()),
        *(encode(utf8).decode().rstrip("=") for encode in (base64.b64encode, base64.urlsafe_b64encode)),
        *(utf8.decode("latin-1"), secret.encode("cp1252").decode("utf-8", "replace")),
    }
    return frozenset(found)


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes, contexts (suppressed ones too) and the members of groups."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            pending += [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]


def attributes(link: BaseException) -> list[Any]:
    """Its arguments, notes and attributes, with those of parsers' errors that `vars` leaves out."""
    hidden = [getattr(link, name, "") for name in ("doc", "object", "unpacked", "extra")]
    return [*link.args, *vars(link).values(), *hidden]


def shown(error: BaseException, *, thorough: bool = True) -> str:
    """Everything that can be seen of an error. `thorough`: also as `repr` and a traceback show it."""
    text = ""
    for link in chain(error):
        for value in (str(link), *attributes(link)):
            part = value if isinstance(value, str) else repr(value)
            if part not in text:
                text += part + "\n"
        text += repr(link) if thorough else ""
    return text + "".join(traceback.format_exception(error) if thorough else ())
