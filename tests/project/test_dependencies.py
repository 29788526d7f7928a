"""What is imported is declared, with a lower bound that CI installs; what is declared is used."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from lowest import constraints, declared

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SECTIONS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
TOOLS = {"build", "coverage", "hatchling", "mypy", "pytest-cov", "ruff"}  # run, and not imported


HOMES = {"google": "google-auth"}  # the others are called like their modules


def imported(folder: str) -> set[str]:
    """The distributions whose modules a folder imports, wherever in a file that is.

    One that is not installed is taken to be called like its module.
    """
    homes, found = packages_distributions(), set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names):
                places = f"{name}.py", f"{name}/__init__.py"
                local = any(list((ROOT / folder).rglob(place)) for place in places) or (ROOT / name).is_dir()
                if not local:
                    guess = [HOMES.get(name, name.replace("_", "-"))]
                    found |= {home.lower().replace("_", "-") for home in homes.get(name, guess)}
    return found - {"tokensession"}


def names(section: str) -> set[str]:
    return {name.lower() for name, _ in declared(SECTIONS[section])}


def test_what_the_library_imports_is_declared_and_nothing_else_is() -> None:
    """Not by way of another dependency, which may drop it: each import has a line of its own."""
    optional = names("cli") | {"pytest"}  # of tokensession.cli, and of the conformance suite
    assert imported("tokensession") == names("") | optional


def test_what_the_tests_and_benchmarks_import_is_declared() -> None:
    known = names("") | names("cli") | names("test")
    atheris = {"atheris"}  # for those who fuzz: its runner says how to get it
    assert imported("tests") <= known | names("bench") | atheris
    assert (
        names("test") - TOOLS - names("") - {"tokensession", "anyio", "hypothesis", "pytest", "uvloop"}
        == set()
    )
    assert imported("benchmarks") <= names("") | names("cli") | names("bench")


def test_every_dependency_has_a_lower_bound_and_no_upper_one() -> None:
    """An upper bound of a library is a conflict for its users on the day of somebody's release."""
    for section, lines in SECTIONS.items():
        for name, bound in declared(lines):
            if name != "tokensession":
                assert re.fullmatch(r">=\d+(\.\d+)+", bound), f"{name} in [{section}]: {bound or 'no bound'}"


def test_the_lower_bounds_can_be_asked_for_as_constraints() -> None:
    asked = constraints().split()
    assert "aiohttp==3.14.4" in asked
    assert len(asked) == len({line.partition("==")[0] for line in asked}), "one bound for each"
