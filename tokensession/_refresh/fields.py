"""Reads a map from a store, and checks the type of each value. Pure."""

from __future__ import annotations

import math
from typing import Any

from ..errors import StoreCorrupt

__all__ = ["Fields"]


class Fields:
    """A map that checks the type of each value you read. Raises `StoreCorrupt`.

    `written` is when it was written, on this process's boot clock.
    """

    def __init__(self, document: Any, name: str, written: float) -> None:
        if not isinstance(document, dict):
            raise StoreCorrupt(f"The stored {name} is not a map.")
        self._document = document
        self._name = name
        self._written = written

    def __contains__(self, name: str) -> bool:
        return name in self._document

    def __bool__(self) -> bool:
        return True

    def unknown(self, known: set[str]) -> dict[str, Any]:
        return {name: value for name, value in self._document.items() if name not in known}

    def _wrong(self, name: str) -> StoreCorrupt:
        return StoreCorrupt(f"The stored {self._name} has a {name!r} of the wrong type.")

    def get(self, name: str, kind: type | None = None) -> Any:
        try:
            value = self._document[name]
        except KeyError:
            raise StoreCorrupt(f"The stored {self._name} lacks {name!r}.") from None
        # type(), not isinstance(): to Python, True is an int.
        if kind is not None and type(value) is not kind:
            raise self._wrong(name)
        return value

    def count(self, name: str) -> int:
        value: int = self.get(name, int)
        if not 0 <= value < 1 << 53:
            raise self._wrong(name)
        return value

    def _float(self, name: str, value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise StoreCorrupt(f"The stored {self._name} has a {name!r} that is not a number.")
        return float(value)

    def number(self, name: str) -> float:
        return self._float(name, self.get(name))

    def number_or_none(self, name: str) -> float | None:
        return None if self.get(name) is None else self.number(name)

    def moment(self, name: str) -> float:
        return self._written + self.number(name)

    def text_or_none(self, name: str) -> str | None:
        text: str | None = None if self.get(name) is None else self.get(name, str)
        return text

    def texts(self, name: str) -> list[str]:
        values: list[str] = self.get(name, list)
        if not all(type(value) is str for value in values):
            raise self._wrong(name)
        return values

    def pair(self, name: str) -> tuple[float, float]:
        values = self.get(name, list)
        if len(values) != 2:
            raise self._wrong(name)
        return self._float(name, values[0]), self._written + self._float(name, values[1])

    def pairs(self, name: str) -> list[tuple[str, float]]:
        values = self.get(name, list)
        if not all(type(each) is list and len(each) == 2 and type(each[0]) is str for each in values):
            raise self._wrong(name)
        return [(text, self._written + self._float(name, value)) for text, value in values]

    def plain_values(self, name: str) -> dict[str, Any]:
        """Those of its values that are plain: a later version may store others."""
        values: dict[str, Any] = self.get(name, dict)
        return {key: each for key, each in values.items() if type(each) in (str, int, float, bool)}

    def map(self, name: str) -> Fields | None:
        value = self.get(name)
        return None if value is None else Fields(value, name, self._written)

    def maps(self, name: str) -> list[Fields]:
        return [Fields(value, name, self._written) for value in self.get(name, list)]
