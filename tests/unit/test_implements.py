"""What counts as a store, a provider or a source: the same on every version of Python."""

from __future__ import annotations

from typing import Any

import pytest

from tokensession import ManagedSource
from tokensession._validate import implements
from tokensession.errors import ConfigurationError
from tokensession.providers import Oto
from tokensession.source import RefreshableSource
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import Store
from tokensession.testing import ScriptedTransport


class Delegating:
    """A wrapper that delegates what it does not change, as one that logs or counts often does."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_an_object_that_delegates_every_attribute_implements_the_protocol() -> None:
    """`isinstance` has returned False for it since Python 3.12."""
    store: Any = Delegating(MemoryStore())
    assert implements(Store, store)
    source = ManagedSource(Oto(refresh_token="r"), ScriptedTransport(), store=store)
    assert implements(RefreshableSource, source)


def test_a_method_set_to_none_is_missing() -> None:
    """A class sets it to None to remove what its base has."""

    class FixedSource(Delegating):
        refresh = None

    source: Any = FixedSource(ManagedSource(Oto(refresh_token="r"), ScriptedTransport(), store=MemoryStore()))
    assert not implements(RefreshableSource, source)


@pytest.mark.parametrize("no_store", [MemoryStore, object(), Delegating(7)])
def test_a_class_or_an_object_that_lacks_a_part_does_not_implement_the_protocol(no_store: Any) -> None:
    assert not implements(Store, no_store)
    with pytest.raises(ConfigurationError, match="must be a store"):
        ManagedSource(Oto(refresh_token="r"), ScriptedTransport(), store=no_store)
