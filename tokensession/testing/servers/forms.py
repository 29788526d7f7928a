"""Strict reading of form-encoded token requests. Errors say what is wrong, and never what was sent."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from urllib.parse import parse_qsl

from ...providers._wire import encode_form
from .values import InvalidRequest

__all__ = ["fields", "same_bytes"]

_KNOWN = frozenset(
    {"grant_type", "client_id", "client_secret", "code", "refresh_token", "redirect_uri", "scope"}
)


def fields(body: bytes, *, more: Collection[str] = (), several: str = "") -> dict[str, str]:
    """The fields of a form, in order. Each must be known, not empty, and appear once.

    `more` are known too. `several` may appear several times: then its values are joined with blanks.
    """
    try:
        text = body.decode("ascii")
    except UnicodeDecodeError:
        hint = " (it has a no-break space, as copied from the documentation)" if b"\xc2\xa0" in body else ""
        raise InvalidRequest(f"the body has bytes that are not ASCII{hint}") from None
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict") if text else []
    except ValueError:
        raise InvalidRequest("the body is not form-encoded") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found and name != several:
            raise InvalidRequest("the body has the same field twice")
        found[name] = f"{found[name]} {value}" if name in found else value
    if unknown := len(found.keys() - _KNOWN - {*more}):
        raise InvalidRequest(f"the body has {unknown} unknown fields")
    if empty := sorted(name for name, value in found.items() if not value):
        raise InvalidRequest(f"the field {empty[0]} is empty")
    return found


def same_bytes(body: bytes, found: dict[str, str], order: Sequence[str]) -> None:
    """Raise `InvalidRequest` unless the body is exactly these fields in this order, encoded as documented."""
    if list(found) != list(order):
        raise InvalidRequest(
            f"the fields are {', '.join(found)}; they must be {', '.join(order)}, in this order"
        )
    if encode_form(tuple(found.items())) != body:
        raise InvalidRequest("the body is not encoded as in the documentation")
