"""Each test of real processes runs over each store that processes of one machine can share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["file://{}/tokens", "sqlite:///{}/tokens.db"], ids=["file", "sqlite"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of the store."""
    return str(request.param.format(tmp_path))
