"""Names that a package imports on first use, so that importing it takes little (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazily"]


def lazily(package: dict[str, Any], homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for the package with these globals: the module of each name, such as `".file"`.

    A module of the name itself is the value.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        found: Any = import_module(homes[name], package["__name__"])
        if homes[name] != f".{name}":
            found = getattr(found, name)
        package[name] = found
        return found

    return find
