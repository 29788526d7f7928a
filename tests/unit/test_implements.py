"""What is taken for a store, a provider, a source: the same on every version of Python."""

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


class PassesOn:
    """As one that logs or counts is often written: what it does not change, it passes on."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_store_that_passes_everything_on_is_a_store() -> None:
    """isinstance() has not said so since Python 3.12."""
    store: Any = PassesOn(MemoryStore())
    assert implements(Store, store)
    source = ManagedSource(Oto(refresh_token="r"), ScriptedTransport(), store=store)
    assert implements(RefreshableSource, source)


def test_a_method_that_is_none_is_no_method() -> None:
    """That is how a class says that it has not got what its base has."""

    class FixedSource(PassesOn):
        refresh = None

    source: Any = FixedSource(ManagedSource(Oto(refresh_token="r"), ScriptedTransport(), store=MemoryStore()))
    assert not implements(RefreshableSource, source)


@pytest.mark.parametrize("no_store", [MemoryStore, object(), PassesOn(7)])
def test_what_lacks_a_part_of_it_or_is_a_class_is_none(no_store: Any) -> None:
    assert not implements(Store, no_store)
    with pytest.raises(ConfigurationError, match="must be a store"):
        ManagedSource(Oto(refresh_token="r"), ScriptedTransport(), store=no_store)
