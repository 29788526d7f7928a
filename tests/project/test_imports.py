"""The public modules: what they export, and what importing them loads."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

PUBLIC = ["", ".providers", ".stores", ".testing", ".testing.servers", ".errors", ".events"]


@pytest.mark.parametrize("public", PUBLIC)
def test_all_is_sorted_and_every_name_in_it_exists(public: str) -> None:
    module = importlib.import_module(f"tokensession{public}")
    names = list(module.__all__)
    assert names in (sorted(names), sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n)))
    for name in names:
        assert getattr(module, name) is not None


def loaded_by(statement: str) -> set[str]:
    """The third-party packages that a new interpreter has loaded after this statement."""
    program = (
        "import json, sys; before = set(sys.modules); "
        f"{statement}; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    tops = {
        name.split(".")[0] for name in json.loads(subprocess.check_output([sys.executable, "-c", program]))
    }
    return {top for top in tops if top not in sys.stdlib_module_names and not top.startswith("_")}


def test_importing_tokensession_loads_only_its_dependencies() -> None:
    """These are aiohttp, anyio and msgpack: no driver, command line or test tool."""
    alone = loaded_by("import aiohttp, anyio, msgpack")
    assert loaded_by("import tokensession") - alone == {"tokensession"}
