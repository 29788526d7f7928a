"""Tests of the conformance suite: it must reject every store that breaks a promise."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from broken import BROKEN, claims, databases, files, processes  # noqa: F401 - each adds its stores

from tokensession.errors import TokenSessionError
from tokensession.testing.conformance import StoreConformance

# How a broken promise shows. Another error, such as AttributeError, would be a mistake in the broken store.
REJECTIONS = (AssertionError, pytest.fail.Exception, TimeoutError, TokenSessionError, RuntimeError)

# One value for each parametrized test.
PARAMETERS = {"stored": True, "umask": 0, "mode": 0o640, "key": "k"}


class Suite(StoreConformance):
    """The suite over a broken store. Not collected, because its name does not begin with Test."""

    def __init__(self, broken: Any) -> None:
        self.make_backend = broken.make_backend


@pytest.mark.parametrize(
    ("broken", "promise"),
    [pytest.param(b, p, id=f"{b.__name__}-{p.removeprefix('test_')}") for b, p in BROKEN],
)
def test_the_suite_rejects(broken: Any, promise: str, tmp_path: Path) -> None:
    """The test of this promise fails on this store."""
    suite = Suite(broken)
    test = getattr(suite, promise)
    arguments = {"backend": suite.make_backend(tmp_path), "tmp_path": tmp_path, **PARAMETERS}
    with pytest.raises(REJECTIONS):
        test(**{name: arguments[name] for name in inspect.signature(test).parameters})


def test_every_promise_is_broken_by_some_store() -> None:
    """A test that no store fails would prove nothing."""
    promises = {name for name in dir(StoreConformance) if name.startswith("test_")}
    assert {promise for _, promise in BROKEN} == promises
