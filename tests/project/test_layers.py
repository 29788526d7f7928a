"""The layers of the architecture: modules import only from their own layer and those below."""

from __future__ import annotations

import ast
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

import tokensession

ROOT = Path(tokensession.__file__).parent

# The diagram in docs/architecture.md. A name that ends with a dot is a package.
LAYERS: list[tuple[str, ...]] = [
    ("_lazy", "_redact", "clock", "errors", "events", "home", "observer", "token"),
    ("_validate", "policy", "snapshot"),
    ("providers.protocol", "stores.protocol"),
    ("providers.", "stores.", "transport"),
    ("_refresh.",),
    ("anywhere", "source", "upkeep"),
    ("grants.", "middleware", "origins", "replay", "session"),
    ("", "__main__", "cli.", "testing."),
]

AIOHTTP = {"aiohttp", "multidict", "yarl"}
THIRD_PARTY_BY_LAYER = {6: AIOHTTP, 7: {*AIOHTTP, "anyio", "click", "joserfc", "msgpack", "pytest", "rich"}}

THIRD_PARTY_BY_MODULE = {
    "_refresh.state": {"msgpack"},
    "grants.loopback": {"aiohttp", "anyio"},
    "providers.client_auth": {"joserfc"},
    "providers.discovery": {"aiohttp"},
    "session": {*AIOHTTP, "anyio"},
    "source": {"anyio"},
    "stores._keys": {"cryptography", "keyring"},
    "stores._redis.failures": {"redis"},
    "stores._redis.hashes": {"redis"},
    "stores._redis.server": {"hiredis", "redis"},
    "stores.encrypted": {"anyio"},
    "stores.file": {"anyio", "msgpack"},
    "stores._postgres.failures": {"asyncpg"},
    "stores._postgres.server": {"asyncpg"},
    "stores.postgres": {"anyio"},
    "stores.redis": {"anyio", "hiredis", "redis"},
    "stores.sqlite": {"anyio", "sqlite_utils"},
    "transport": {"aiohttp", "yarl"},
}

PURE = (
    *("_refresh.decide", "_refresh.outcomes", "_refresh.schedule", "_refresh.next_state"),
    *("_refresh.cache", "_refresh.fields", "_refresh.uses", "policy"),
)
"""They read no clock, await nothing and report nothing."""


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix("__init__").rstrip(".")] = path
    return found


def layer(name: str) -> int:
    for number, members in enumerate(LAYERS):
        if name in members:
            return number
    for number, members in enumerate(LAYERS):
        if any(m.endswith(".") and (name + ".").startswith(m) for m in members):
            return number
    raise AssertionError(f"tokensession.{name} is in no layer: add it to LAYERS and docs/architecture.md")


def imports(name: str, path: Path) -> tuple[set[str], set[str]]:
    """Our modules and the third-party packages that a module imports, anywhere in its text."""
    root = f"tokensession.{name}".rstrip(".")
    package = root if path.name == "__init__.py" else root.rpartition(".")[0]
    targets = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            stem = resolve_name("." * node.level + (node.module or ""), package)
            targets |= {f"{stem}.{alias.name}" for alias in node.names}
    known, tops = modules(), {target.split(".")[0] for target in targets}
    ours = {target.partition(".")[2] for target in targets if target.split(".")[0] == "tokensession"}
    ours = {target if target in known else target.rpartition(".")[0] for target in ours}
    return ours, tops - {"tokensession", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", sorted(modules()))
def test_modules_import_only_from_their_layer_and_below(name: str) -> None:
    ours, third_party = imports(name, modules()[name])
    here = layer(name)
    upward = {other for other in ours if layer(other) > here}
    assert not upward, f"tokensession.{name} (layer {here}) imports upwards: {upward}"
    allowed = THIRD_PARTY_BY_LAYER.get(here, set()) | THIRD_PARTY_BY_MODULE.get(name, set())
    assert third_party <= allowed, f"tokensession.{name} (layer {here}) imports {third_party - allowed}"


def test_stores_and_providers_do_not_import_each_other() -> None:
    """They meet in the refresh transaction."""
    for name, path in modules().items():
        ours, third_party = imports(name, path)
        if name.startswith("stores"):
            assert not any(o.startswith(("providers", "token", "_refresh")) for o in ours), name
        if name.startswith("providers"):
            assert not any(o.startswith(("stores", "_refresh")) for o in ours), name
            assert third_party <= THIRD_PARTY_BY_MODULE.get(name, set()), name


def test_shared_tasks_know_no_tokens_and_pure_modules_do_no_io() -> None:
    """`single_flight` needs errors and the clock. The decisions need no clock, event or store."""
    ours, _ = imports("_refresh.single_flight", modules()["_refresh.single_flight"])
    assert ours == {"errors", "clock"}
    for pure in PURE:
        ours, third_party = imports(pure, modules()[pure])
        assert not third_party
        assert not ours & {"clock", "events", "stores.protocol", "_refresh.store_access"}, pure
        assert "async " not in modules()[pure].read_text(), pure


def test_no_module_is_longer_than_500_lines() -> None:
    """Most have about 250. A longer one probably has a second subject."""
    long = {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > 500}
    assert not long
