"""Checks the source that a sign-in is for."""

from __future__ import annotations

from .._validate import describe
from ..errors import ConfigurationError
from ..source import ManagedSource

__all__ = ["check_source"]


def check_source(source: object) -> None:
    """Raise `ConfigurationError` if this is not a `ManagedSource`."""
    if isinstance(source, ManagedSource):
        return
    todo = "Pass session.source." if hasattr(source, "source") else "Pass ManagedSource(provider, store=...)."
    raise ConfigurationError(f"source must be a ManagedSource, not {describe(source)}.", todo=todo)
