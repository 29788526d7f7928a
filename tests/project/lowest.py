"""Print the lower bounds of all dependencies as constraints for pip. CI installs and tests them.

python tests/project/lowest.py > lowest.txt && pip install -c lowest.txt '.[test]'
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def declared(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The name and the bound of each requirement, without extras and markers."""
    for line in lines:
        found = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*([^;]*)", line)
        assert found is not None, line
        yield found[1], found[2].strip()


def constraints() -> str:
    """One line `name==lowest` for each dependency."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    del extras["bench"]  # the peers have no bounds
    sections = project["dependencies"], *extras.values()
    bounds = {name: bound for section in sections for name, bound in declared(section)}
    return "".join(f"{name}=={bound.removeprefix('>=')}\n" for name, bound in sorted(bounds.items()) if bound)


if __name__ == "__main__":
    print(constraints(), end="")
