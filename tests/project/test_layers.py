"""The architecture, read off the imports: they only go down."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import tokensession

ROOT = Path(tokensession.__file__).parent

# The drawing in docs/architecture.md. A name with a dot at the end stands for a package.
LAYERS: list[tuple[str, ...]] = [
    ("_redact", "clock", "errors", "events", "token"),
    ("_validate", "policy"),
    ("providers.protocol", "stores.protocol"),
    ("providers.", "stores.", "transport"),
    ("_refresh.",),
    ("source",),
    ("middleware", "origins", "session"),
    ("", "__main__", "cli.", "testing."),
]

AIOHTTP = {"aiohttp", "multidict", "yarl"}
FOREIGN_BY_LAYER: dict[int, set[str]] = {
    6: {"aiohttp", "multidict", "yarl"},
    7: {*AIOHTTP, "anyio", "click", "msgpack", "pytest", "rich"},
}

FOREIGN_BY_MODULE = {
    "_refresh.state": {"msgpack"},
    "session": {*AIOHTTP, "anyio"},
    "source": {"anyio"},
    "stores.file": {"anyio", "msgpack"},
    "stores.sqlite": {"anyio", "sqlite_utils"},
    "transport": {"aiohttp", "yarl"},
}


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
    """The modules of ours, and the foreign packages, that a module imports anywhere in its text."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    ours, foreign = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            targets = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            package_ = [p for p in package if p]
            base = package_[: len(package_) - (node.level - 1)] if node.level > 1 else package_
            stem = [*base, *(node.module.split(".") if node.module else [])]
            candidates = [".".join([*stem, alias.name]) for alias in node.names]
            known = modules()
            ours |= {c if c in known else ".".join(stem) for c in candidates}
            continue
        else:
            continue
        for target in targets:
            top = target.split(".")[0]
            if top == "tokensession":
                ours.add(target.removeprefix("tokensession").lstrip("."))
            elif top not in sys.stdlib_module_names:
                foreign.add(top)
    return ours, foreign


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down_the_layers_only(name: str) -> None:
    """Each module imports from its own layer and those below it, and foreign packages where they belong."""
    ours, foreign = imports(name, modules()[name])
    here = layer(name)
    upward = {other for other in ours if layer(other) > here}
    assert not upward, f"tokensession.{name} (layer {here}) imports upwards: {upward}"
    allowed = FOREIGN_BY_LAYER.get(here, set()) | FOREIGN_BY_MODULE.get(name, set())
    assert foreign <= allowed, f"tokensession.{name} (layer {here}) imports {foreign - allowed}"


def test_stores_know_no_providers_and_providers_no_stores() -> None:
    """The two families meet in the refresh transaction, and nowhere below it."""
    for name, path in modules().items():
        ours, foreign = imports(name, path)
        if name.startswith("stores"):
            assert not any(o.startswith(("providers", "token", "_refresh")) for o in ours), name
        if name.startswith("providers"):
            assert not any(o.startswith(("stores", "_refresh")) for o in ours), name
            assert not foreign, name


def test_the_single_flight_knows_no_tokens_and_the_decisions_do_no_io() -> None:
    """What is general stays general, and what is pure stays pure."""
    ours, _ = imports("_refresh.single_flight", modules()["_refresh.single_flight"])
    assert ours == {"errors"}
    for pure in ("_refresh.decide", "_refresh.schedule", "_refresh.cache", "policy"):
        ours, foreign = imports(pure, modules()[pure])
        assert not foreign
        assert not ours & {"clock", "events", "stores.protocol", "_refresh.store_access"}, pure
        assert "async " not in modules()[pure].read_text(), pure


def test_every_module_can_be_read_in_one_sitting() -> None:
    """About 250 lines is the measure; beyond 400 a module has grown a second subject."""
    long = {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > 400}
    assert not long
