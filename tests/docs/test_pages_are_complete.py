"""What a page lists is all there is, and all of it is there."""

from __future__ import annotations

import inspect
import re
import runpy
from typing import Any

import pytest
from _pages import ROOT, blocks

import tokensession
from tokensession import errors, events
from tokensession.providers import OAuth2, Oto, Priava

DOCS = ROOT / "docs"


def floors() -> list[tuple[str, ...]]:
    """The list that the house test goes by."""
    found: list[tuple[str, ...]] = runpy.run_path(str(ROOT / "tests/project/test_layers.py"))["LAYERS"]
    return found


def test_the_drawing_of_the_floors_is_the_one_that_is_enforced() -> None:
    (drawing,) = [b for b in blocks(DOCS / "architecture.md") if b.mark == "floors"]
    drawn: dict[int, set[str]] = {}
    for line in drawing.text.splitlines():
        number, _, rest = line.partition(" ")
        names = re.findall(r"(?<!\S)[\w/]+(?:\.py|/\*?)(?!\S)", rest)
        drawn[int(number)] = {
            "" if name == "__init__.py" else name.removesuffix(".py").removesuffix("*").replace("/", ".")
            for name in names
        }
    assert drawn == {number: set(members) for number, members in enumerate(floors())}


def first_column(page: str, heading: str) -> list[str]:
    """The names in the first column of the tables under a heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)`", section, re.MULTILINE)


def test_every_error_is_on_the_page_of_errors() -> None:
    kinds = {name for name in errors.__all__ if name != "TokenSessionError"}
    listed = first_column("errors.md", "Errors")
    assert len(listed) == len(set(listed))
    assert set(listed) == kinds


def test_every_event_is_on_the_page_of_errors_with_its_level() -> None:
    kinds = {
        name: kind
        for name in events.__all__
        if isinstance(kind := getattr(events, name), type) and issubclass(kind, events.Event)
    }
    kinds.pop("Event")
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    for name, kind in kinds.items():
        level = {10: "debug", 20: "info", 30: "warning", 40: "error"}[kind.level]
        assert re.search(rf"^\| `{name}` \| {level} \|", text, re.MULTILINE), f"{name} at level {level}"
    assert set(first_column("errors.md", "Events")) == set(kinds)


def test_every_field_of_a_snapshot_is_on_the_page_of_errors() -> None:
    listed = first_column("errors.md", "State")
    assert listed == list(tokensession.Snapshot.__dataclass_fields__)


@pytest.mark.parametrize("provider", [Oto, Priava, OAuth2])
def test_every_parameter_of_a_provider_is_on_its_page(provider: type[Any]) -> None:
    listed = first_column("providers.md", provider.__name__)
    parameters = [name for name in inspect.signature(provider.__init__).parameters if name != "self"]
    assert listed[: len(parameters)] == parameters


def test_every_door_of_errors_is_open_at_the_top() -> None:
    """An error that a caller is told to catch can be imported from `tokensession`."""
    inside = {"Superseded"}  # between stores and the renewal; no caller of a session sees it
    assert set(errors.__all__) - inside <= set(tokensession.__all__)
