"""A page lists everything that exists, and nothing else."""

from __future__ import annotations

import inspect
import logging
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from _pages import PAGES, ROOT, blocks, named, prose

import tokensession
from tokensession import errors, events
from tokensession.providers import OAuth2, Oto, Priava

DOCS = ROOT / "docs"
REASONS = {"due", "expired", "unauthorized", "forced"}  # of a refresh: the second table under "Events"


def layers() -> list[tuple[str, ...]]:
    """The list that tests/project enforces."""
    found: list[tuple[str, ...]] = runpy.run_path(str(ROOT / "tests/project/test_layers.py"))["LAYERS"]
    return found


def test_the_drawing_of_the_layers_is_the_one_that_is_enforced() -> None:
    (drawing,) = [b for b in blocks(DOCS / "architecture.md") if b.mark == "layers"]
    drawn: dict[int, set[str]] = {}
    for line in drawing.text.splitlines():
        number, _, rest = line.partition(" ")
        names = re.findall(r"(?<!\S)[\w/]+(?:\.py|/)(?!\S)", rest)
        drawn[int(number)] = {
            "" if name == "__init__.py" else name.removesuffix(".py").replace("/", ".") for name in names
        }
    assert drawn == {number: set(members) for number, members in enumerate(layers())}


def first_column(page: str, heading: str) -> list[str]:
    """The names in the first column of the tables under a heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)`", section, re.MULTILINE)


def test_every_error_is_on_the_page_of_errors() -> None:
    kinds = {name for name in errors.__all__ if name != "TokenSessionError"}
    listed = first_column("reference/errors.md", "Errors")
    assert len(listed) == len(set(listed))
    assert set(listed) == kinds


def test_every_event_is_on_the_page_of_errors_with_its_level() -> None:
    kinds = {
        name: kind
        for name in events.__all__
        if isinstance(kind := getattr(events, name), type) and issubclass(kind, events.Event)
    }
    for base in ("Event", "RefreshEnded"):  # of the others
        kinds.pop(base)
    text = (DOCS / "reference/errors.md").read_text(encoding="utf-8")
    for name, kind in kinds.items():
        loudest = kind.level if isinstance(kind.level, int) else logging.WARNING  # less, if it is repeated
        level = logging.getLevelName(loudest).lower()
        assert re.search(rf"^\| `{name}` \| {level} \|", text, re.MULTILINE), f"{name} at level {level}"
    assert set(first_column("reference/errors.md", "Events")) - REASONS == set(kinds)


def test_every_field_of_a_snapshot_is_on_the_page_of_errors() -> None:
    listed = first_column("reference/errors.md", "State")
    assert listed == list(tokensession.Snapshot.__dataclass_fields__)


@pytest.mark.parametrize(
    ("provider", "page", "heading"),
    [
        (Oto, "reference/providers.md", "Oto"),
        (Priava, "reference/providers.md", "Priava"),
        (OAuth2, "reference/oauth2.md", "Parameters"),
    ],
)
def test_every_parameter_of_a_provider_is_on_its_page(provider: type[Any], page: str, heading: str) -> None:
    listed = first_column(page, heading)
    parameters = [name for name in inspect.signature(provider.__init__).parameters if name != "self"]
    assert listed[: len(parameters)] == parameters


def test_the_page_of_oauth2_fits_on_two_screens() -> None:
    """Of 55 lines each, with a line for each 130 characters of a row."""
    lines = (DOCS / "reference/oauth2.md").read_text(encoding="utf-8").splitlines()
    assert sum(-(-max(len(line), 1) // 130) for line in lines) <= 110


def test_every_error_can_be_imported_from_tokensession() -> None:
    """You catch them by names of `tokensession`."""
    inside = {"Superseded"}  # between stores and the refresh transaction; callers of a session never see it
    assert set(errors.__all__) - inside <= set(tokensession.__all__)


def test_every_page_is_in_plain_words() -> None:
    """The words that the house style rules out are on no page. Generated tables are left out."""
    words = ["somebody", "nobody", "whoever", "anybody", "anew", "mend", "mended", "he", "him", "his"]
    ruled_out = re.compile(
        rf"\b({'|'.join([*words, 'meanwhile', 'for ever', 'is none of', 'goes along'])})\b", re.IGNORECASE
    )
    found = [
        f"{named(page)}: {hit[0]}"
        for page in PAGES
        if page.name not in {"CHANGELOG.md", "api.md"}
        for hit in ruled_out.finditer(prose(page))
    ]
    assert not found


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """In the repository, in the package, or in `_refresh/` where the page has said so."""
    homes = [ROOT, ROOT / "tokensession", ROOT / "tokensession" / "_refresh"]
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    files = {
        name for span in spans for name in re.findall(r"(?<!\S)[\w./-]+\.(?:py|toml|md|svg)(?!\S)", span)
    }
    examples = {block.mark.removeprefix("file: ") for block in blocks(page)}
    missing = {name for name in files - examples if not any((home / name).exists() for home in homes)}
    assert not {name for name in missing if not name.startswith(".venv/")}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_page_names_a_path_of_a_machine_or_a_package_registry(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(?:home|root|Users|work)/|pypi\.org|pythonhosted", text)
