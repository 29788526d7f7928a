"""The public doors: what is promised by name, and what importing it costs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

DOORS = ["tokensession", "tokensession.providers", "tokensession.stores", "tokensession.testing"]


@pytest.mark.parametrize("door", [*DOORS, "tokensession.errors", "tokensession.events"])
def test_each_door_lists_what_it_offers_and_offers_what_it_lists(door: str) -> None:
    """`__all__` is sorted, complete and true."""
    module = importlib.import_module(door)
    names = module.__all__
    assert list(names) == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n)) or list(
        names
    ) == sorted(names)
    for name in names:
        assert getattr(module, name) is not None


def loaded_by(statement: str) -> set[str]:
    """Top-level packages outside the standard library that a fresh interpreter has loaded afterwards."""
    program = (
        "import json, sys; before = set(sys.modules); "
        f"{statement}; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    tops = {name.split(".")[0] for name in json.loads(done.stdout)}
    return {top for top in tops if top not in sys.stdlib_module_names and not top.startswith("_")}


def test_importing_tokensession_loads_aiohttp_anyio_and_msgpack_and_nothing_else() -> None:
    """You do not pay for a driver, the command line or a test tool that you do not use."""
    alone = loaded_by("import aiohttp, anyio, msgpack")
    assert loaded_by("import tokensession") - alone == {"tokensession"}


def test_sqlite_is_loaded_when_it_is_mentioned() -> None:
    """Neither sqlite3 nor sqlite-utils is imported before a SQLiteStore is asked for."""
    program = (
        "import sys, tokensession.stores as stores; assert 'sqlite3' not in sys.modules; "
        "stores.SQLiteStore; assert 'sqlite3' in sys.modules; assert 'sqlite_utils' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_test_tools_do_not_need_pytest() -> None:
    """Servers and clocks can be used from any test runner, or from none."""
    assert "pytest" not in loaded_by("import tokensession.testing; tokensession.testing.FakeClock")
