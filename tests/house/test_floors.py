"""The architecture, read off the imports: they go down the floors only."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import tokensession

ROOT = Path(tokensession.__file__).parent

# The drawing in docs/architecture.md. A name with a dot at the end stands for a package.
FLOORS: list[tuple[str, ...]] = [
    ("errors", "token", "record", "clock", "protocols"),
    ("freshness", "held", "wire", "events"),
    ("stores.base", "providers.base", "tokensource"),
    ("flight", "stores.", "providers."),
    ("plan", "renewal", "refreshes", "saving", "source", "storage"),
    ("endpoint", "middleware", "origins", "session"),
    ("", "__main__", "cli.", "testing."),
]

FOREIGN_BY_FLOOR: dict[int, set[str]] = {
    0: {"msgpack"},
    1: set(),
    2: set(),
    3: set(),
    4: set(),
    5: {"aiohttp", "yarl", "multidict"},
    6: {"aiohttp", "yarl", "multidict", "click", "rich", "pytest", "msgpack"},
}

FOREIGN_BY_MODULE = {"stores.file": {"msgpack"}, "stores.sqlite": {"sqlite_utils"}}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix("__init__").rstrip(".")] = path
    return found


def floor(name: str) -> int:
    for number, members in enumerate(FLOORS):
        if name in members:
            return number
    for number, members in enumerate(FLOORS):
        if any(m.endswith(".") and (name + ".").startswith(m) for m in members):
            return number
    raise AssertionError(
        f"tokensession.{name} stands on no floor: draw it into FLOORS and docs/architecture.md"
    )


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
def test_imports_go_down_the_floors_only(name: str) -> None:
    """Each module imports from its own floor and those below it, and foreign packages where they belong."""
    ours, foreign = imports(name, modules()[name])
    here = floor(name)
    upward = {other for other in ours if floor(other) > here}
    assert not upward, f"tokensession.{name} (floor {here}) imports upwards: {upward}"
    allowed = FOREIGN_BY_FLOOR[here] | FOREIGN_BY_MODULE.get(name, set())
    assert foreign <= allowed, f"tokensession.{name} (floor {here}) imports {foreign - allowed}"


def test_stores_know_no_providers_and_providers_no_stores() -> None:
    """The two families meet in the renewal, and nowhere below it."""
    for name, path in modules().items():
        ours, foreign = imports(name, path)
        if name.startswith("stores"):
            assert not any(o.startswith(("providers", "token", "record", "wire")) for o in ours), name
        if name.startswith("providers"):
            assert not any(o.startswith("stores") for o in ours), name
            assert not foreign, name


def test_a_flight_knows_no_tokens_and_the_middleware_only_the_seam() -> None:
    """What is general stays general."""
    flight, _ = imports("flight", modules()["flight"])
    assert flight == {"errors"}
    middleware, _ = imports("middleware", modules()["middleware"])
    assert not middleware & {"source", "renewal", "flight"}


def test_every_module_can_be_read_in_one_sitting() -> None:
    """About 250 lines is the measure; beyond 400 a module has grown a second subject."""
    long = {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > 400}
    assert not long
