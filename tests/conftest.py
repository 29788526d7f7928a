"""What holds for all tests.

Hypothesis draws the same inputs in every run, so a failure is caused by your change and not by chance. For
fresh inputs: `pytest --hypothesis-profile=default`.

`benchmarks`, which is not installed, is importable. A test whose server is not installed is skipped. With
CI=true it fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.append(str(Path(__file__).parents[1]))  # at the end: an installed tokensession comes first

from benchmarks.servers import NotInstalled

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    return (yield from _skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    return (yield from _skipping())


def _skipping() -> Generator[None, object, object]:
    try:
        return (yield)
    except NotInstalled as missing:
        reason = str(missing)
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
