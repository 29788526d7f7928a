"""Makes a server's text safe to show: without secrets, on one line, and short. Pure."""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Collection, Iterable

__all__ = ["excerpt", "redact"]

_TOKEN_LIKE = re.compile(r"[A-Za-z0-9+/=_~.%!$*|:@#^-]{16,}")
_BACKSLASHES = r"\\{0,8}"  # a pattern: text that was escaped several times
_ERROR_CODE = re.compile(r"([a-z]{1,14}(_[a-z]{1,14})+|[A-Z]{1,14}(_[A-Z]{1,14})+)[.:]?")  # not a token
_READ = 4096  # bytes of a body that an excerpt is made from
_SHORT = 4  # characters; a shorter secret is removed where it stands alone, or no word would be left
_BEGINNING = 32  # characters of a secret that are searched for in every spelling
_UTF16 = re.compile(r"(?:[^\0]\0){4,}|(?:\0[^\0]){4,}")


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without these secrets, in any spelling that a server may echo them in.

    Any other long run of token characters is removed too: a server may echo half a secret, or a new one.
    What is left is prose, and error_codes_made_of_words.
    """
    return _redacted(text, secrets, len(text))


def _redacted(text: str, secrets: Iterable[str], end: int) -> str:
    """The text up to `end`, without the secrets, including those that continue after `end`."""
    spans = [run.span() for run in _TOKEN_LIKE.finditer(text) if not _ERROR_CODE.fullmatch(run[0])]
    for secret in set(filter(None, secrets)):
        spans += _found(secret, text)
    shown, done = "", 0
    for start, stop in sorted(spans):  # they may overlap, and no part of either may remain
        if start >= end:
            break
        if start >= done:
            shown += text[done:start] + "[redacted]"
        done = max(done, stop)
    return shown + text[done:end]


def _found(secret: str, text: str) -> Iterable[tuple[int, int]]:
    """Where the secret is in the text.

    Compiling a pattern with all spellings takes up to 0.2 ms for each character, and a server may send a long
    token in its error. So only the beginning of a long secret has such a pattern. Where that is found and the
    whole secret is not, its end is unknown, and the rest of the text is removed with it.
    """
    if len(secret) <= _BEGINNING:
        pattern = _spellings(secret)
        if len(secret) < _SHORT:
            pattern = rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])"
        return [run.span() for run in re.finditer(pattern, text, flags=re.IGNORECASE)]
    whole = re.escape(secret) if len(secret) <= len(text) else r"(?!)"
    pattern = f"({whole})|(?:{_spellings(secret[:_BEGINNING])})"
    found = re.finditer(pattern, text, flags=re.IGNORECASE)
    return [(run.start(), run.end() if run[1] else len(text)) for run in found]


def _spellings(secret: str) -> str:
    """A pattern for a secret as it is, in base64, or with each character escaped.

    The groups are atomic, so that no search takes long.
    """
    encoded = base64.b64encode(secret.encode("utf-8", "surrogatepass")).decode("ascii").rstrip("=")
    escaped = "".join(
        _backslashes(len(part)) if part.startswith("\\") else _escapes(part)
        for part in re.findall(r"\\+|[^\\]", secret)
    )
    if secret.startswith("\\"):
        # Otherwise each backslash of a long run would begin a search of the rest of the run.
        escaped = r"(?<!\\)" + escaped
    return "|".join((re.escape(secret), re.escape(encoded), escaped))


def _backslashes(count: int) -> str:
    """A pattern for a run of backslashes. Each escaping doubles them, so a run of any length matches."""
    ways = r"\\+|u005c|x5c|%(?:25){0,3}5c|&(?:amp;){0,3}(?:#0{0,6}92|#x0{0,6}5c|bsol);"
    return f"(?>(?:{ways}){{1,{4 * count + 16}}})"  # a bound, or many escaped ones would take long


@functools.lru_cache(maxsize=256)
def _escapes(character: str) -> str:
    """A pattern for one character as it is, in a form, a URL, JSON or HTML, or wrongly decoded.

    Not for a backslash. The character may be escaped several times: gateways quote one document in a string
    of another.
    """
    if character.isascii() and character.isalnum():
        return character
    from html import escape  # importing it takes 1.5 ms, and only an error needs it

    utf8 = character.encode("utf-8", "surrogatepass")
    utf16 = character.encode("utf-16-be", "surrogatepass").hex()
    named = re.escape(escape(character).strip("&;"))
    ways = (
        _BACKSLASHES.join("u" + utf16[i : i + 4] for i in range(0, len(utf16), 4)),
        _BACKSLASHES.join(f"x{byte:02x}" for byte in utf8),
        "".join(f"%(?:25){{0,3}}{byte:02x}" for byte in utf8),
        f"&(?:amp;){{0,3}}(?:#0{{0,6}}{ord(character)}|#x0{{0,6}}{ord(character):x}|{named});",
        re.escape(json.dumps(character)[1:-1].lstrip("\\")),  # the n of \n, or the character
        re.escape(character),
        *((r"\+",) if character == " " else ()),
        # Latin-1 decoded as UTF-8, and the other way round:
        *(() if character.isascii() else ("\N{REPLACEMENT CHARACTER}", re.escape(utf8.decode("latin-1")))),
    )
    return f"(?>{_BACKSLASHES}(?:{'|'.join(ways)}))"


def excerpt(body: bytes, secrets: Collection[str], *, longest: int = 120) -> str:
    """The beginning of a body, on one line, printable and redacted."""
    text = body[:_READ].decode("utf-8", errors="replace")
    # UTF-16 has a NUL between two letters, and a divided secret would not be recognized.
    text = _UTF16.sub(lambda run: run[0].replace("\0", ""), text)
    end = len(text)
    if len(body) > _READ:  # the cut may leave half a secret, which would not be recognized
        end -= max(16, 7 * max(map(len, secrets), default=0))  # \\u0041: seven characters for one
    text = _redacted(text, secrets, max(0, end))
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= longest else text[:longest] + "…"
