"""What is taken for a store, a provider, a source: the same on every version of Python."""

from __future__ import annotations

from typing import Any

import pytest

from tokensession import ManagedSource
from tokensession.errors import ConfigurationError
from tokensession.protocols import keeps
from tokensession.providers import Oto
from tokensession.stores import MemoryStore
from tokensession.stores.base import Store
from tokensession.testing import ScriptedEndpoint
from tokensession.tokensource import RefreshableSource


class PassesOn:
    """As one that logs or counts is often written: what it does not change, it passes on."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_store_that_passes_everything_on_is_a_store() -> None:
    """isinstance() has not said so since Python 3.12."""
    store: Any = PassesOn(MemoryStore())
    assert keeps(Store, store)
    source = ManagedSource(Oto(refresh_token="r"), ScriptedEndpoint(), store=store)
    assert keeps(RefreshableSource, source)


def test_a_method_that_is_none_is_no_method() -> None:
    """That is how a class says that it has not got what its base has."""

    class FixedSource(PassesOn):
        refresh = None

    source: Any = FixedSource(ManagedSource(Oto(refresh_token="r"), ScriptedEndpoint(), store=MemoryStore()))
    assert not keeps(RefreshableSource, source)


@pytest.mark.parametrize("no_store", [MemoryStore, object(), None, "sqlite:///tokens.db", PassesOn(7)])
def test_what_lacks_a_part_of_it_or_is_a_class_is_none(no_store: Any) -> None:
    assert not keeps(Store, no_store)
    with pytest.raises(ConfigurationError, match="is no store"):
        ManagedSource(Oto(refresh_token="r"), ScriptedEndpoint(), store=no_store)
