"""Whether an object keeps one of our protocols: a store, a provider, a source that can refresh."""

from __future__ import annotations

__all__ = ["keeps"]


def keeps(protocol: type, value: object) -> bool:
    """Whether it is an object (and not a class) that has all that the protocol names.

    Not by isinstance(): from Python 3.12 on that overlooks what an object passes on by `__getattr__`,
    and a store that wraps another, to log or to count, is often made so.
    """
    names = [name for name in dir(protocol) if not name.startswith("_")]
    return not isinstance(value, type) and all(_has(value, name, protocol) for name in names)


def _has(value: object, name: str, protocol: type) -> bool:
    """Whether it is there. `refresh = None` is how a class says that it has no such method."""
    return callable(getattr(value, name, None)) if callable(getattr(protocol, name)) else hasattr(value, name)
