"""Tests of the conformance suite: it must reject every store that breaks a promise."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from broken import BROKEN_RECORDS, Broken
from broken.claims import BROKEN_CLAIMS
from broken.databases import BROKEN_DATABASES
from broken.files import BROKEN_IN_FILES
from broken.processes import BROKEN_BETWEEN_PROCESSES

from tokensession.errors import TokenSessionError
from tokensession.testing.conformance import StoreConformance
from tokensession.testing.conformance.backend import Backend

BROKEN = [
    *BROKEN_RECORDS,
    *BROKEN_CLAIMS,
    *BROKEN_IN_FILES,
    *BROKEN_DATABASES,
    *BROKEN_BETWEEN_PROCESSES,
]

# How a broken promise shows. Another error, such as AttributeError, would be a mistake in the broken store.
REJECTIONS = (AssertionError, pytest.fail.Exception, TimeoutError, TokenSessionError, RuntimeError)

# One value for each parametrized test.
PARAMETERS = {"stored": True, "umask": 0, "mode": 0o640, "key": "k"}


class Suite(StoreConformance):
    """The suite over a broken store. Not collected, because its name does not begin with Test."""

    def __init__(self, broken: Broken) -> None:
        self._broken = broken

    def make_backend(self, directory: Path) -> Backend:
        return self._broken.make_backend(directory)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [pytest.param(b, p, id=f"{b.name}-{p.removeprefix('test_')}") for b in BROKEN for p in b.promises],
)
def test_the_suite_rejects(broken: Broken, promise: str, tmp_path: Path) -> None:
    """The test of this promise fails on this store."""
    suite = Suite(broken)
    test = getattr(suite, promise)
    arguments = {"backend": suite.make_backend(tmp_path), "tmp_path": tmp_path, **PARAMETERS}
    with pytest.raises(REJECTIONS):
        test(**{name: arguments[name] for name in inspect.signature(test).parameters})


def test_every_promise_is_broken_by_some_store() -> None:
    """A test that no store fails would prove nothing."""
    promises = {name for name in dir(StoreConformance) if name.startswith("test_")}
    broken = {promise for store in BROKEN for promise in store.promises}
    assert broken == promises
