"""The page of benchmarks shows what was measured, in full. Nothing is measured here."""

from __future__ import annotations

import re
import sys
from typing import Any
from xml.etree import ElementTree

import pytest
from _pages import ROOT

sys.path.insert(0, str(ROOT))  # the benchmarks are no part of what is installed

from benchmarks.__main__ import BENCHMARKS, MEASURING
from benchmarks.page import PAGE, RESULTS, load, written
from benchmarks.plots import PLOTS, source

TEXT = PAGE.read_text(encoding="utf-8")
IMAGES = re.findall(r"^!\[([^\]]*)\]\(([^)]+)\)$", TEXT, re.MULTILINE)
SVG = "{http://www.w3.org/2000/svg}"


def section(name: str) -> str:
    """What the page has under the heading of this benchmark."""
    return TEXT.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def test_the_figures_on_the_page_are_those_that_were_measured() -> None:
    """The page is what page.py writes from the results that are committed."""
    assert written(TEXT, load()) == TEXT, "the page is stale; run: .venv/bin/python -m benchmarks plots"


def test_every_benchmark_has_its_section_in_the_order_in_which_they_run() -> None:
    """One heading for each name of the registry."""
    headings = re.findall(r"^## (\S+)$", TEXT, re.MULTILINE)
    assert headings == list(BENCHMARKS)


@pytest.mark.parametrize("name", MEASURING)
def test_every_benchmark_has_its_figures_and_their_command_on_the_page(name: str) -> None:
    """Measured by a command that starts with its name, which is shown beside the figures."""
    results = load()
    assert name in results, f"measure it: .venv/bin/python -m benchmarks {name}"
    command = results[name]["command"]
    assert re.match(rf"python -m benchmarks {name}(?: |$)", command)
    assert "--quick" not in command
    assert f"`{command}`, on {results[name]['date']}" in section(name)


def test_every_results_file_is_of_a_benchmark_and_says_so() -> None:
    """There are no figures of a benchmark that no longer exists."""
    results = load()
    assert set(results) <= set(MEASURING)
    assert {name: result["name"] for name, result in results.items()} == {name: name for name in results}


def test_no_results_file_names_the_machine_or_a_path_of_it() -> None:
    """Figures are public: they say what they ran on, and nothing else about the machine."""
    for file in RESULTS.glob("*.json"):
        assert not re.search(r"/(?:home|root|Users|tmp|work)/", file.read_text(encoding="utf-8")), file.name


def test_every_plot_is_on_the_page_with_a_text_for_those_who_cannot_see_it() -> None:
    """The images of the page are the files in docs/plots, each once."""
    plots = sorted(f"plots/{plot.name}" for plot in PLOTS.glob("*.svg"))
    assert sorted(target for _, target in IMAGES) == plots
    for text, target in IMAGES:
        assert len(text) > 40, f"{target} needs a text that says what it shows"


@pytest.mark.parametrize("target", [target for _, target in IMAGES])
def test_every_plot_is_small_sound_titled_and_drawn_from_the_figures_beside_it(target: str) -> None:
    """Well-formed SVG with a title, in the section of its figures, drawn from the very file that is there."""
    file = PAGE.parent / target
    assert target in section(file.stem)
    svg = file.read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.findtext(f"{SVG}title")
    drawn_from = root.findtext(f"{SVG}desc")
    assert drawn_from == source(RESULTS, file.stem), "draw it again: .venv/bin/python -m benchmarks plots"
    assert file.stat().st_size < 40_000
    assert "@media (prefers-color-scheme: dark)" in svg, "it needs a style for readers on dark ground"
    assert not re.search(r"fill: (?:#fff(?:fff)?|white)\b", svg), "its ground must show through"


BLANK = """Written by hand.
<!-- environment: written by benchmarks/page.py -->
old
<!-- end of environment -->
<!-- figures of one: written by benchmarks/page.py -->
old
<!-- end of figures -->
Written by hand, too.
"""


def result(**changes: Any) -> dict[str, Any]:
    """The figures of a benchmark called "one"."""
    environment = {
        "python": "CPython 3.11.7",
        "processors": 2,
        "processor": "a processor",
        "system": "Linux 6",
        "load": 1.0,
        "versions": {"aiohttp": "3.14.4", "mcp": "not installed"},
    }
    environment |= changes.pop("environment", {})
    return {
        "name": "one",
        "command": "python -m benchmarks one",
        "date": "2026-01-02",
        "environment": environment,
        "rows": [{"who": "tokensession", "ms": 1.5}],
        "goals": [],
        "series": {},
        "notes": [],
    } | changes


def test_what_is_written_by_hand_stays_and_figures_are_replaced() -> None:
    """Also when they are written a second time."""
    page = written(BLANK, {"one": result()})
    assert page == written(page, {"one": result()})
    assert page.startswith("Written by hand.\n")
    assert page.endswith("<!-- end of figures -->\nWritten by hand, too.\n")
    assert "old" not in page
    assert "| who | ms |\n| --- | ---: |\n| tokensession | 1.5 |\n" in page
    assert "not installed: mcp" in page


def test_what_was_not_measured_says_so_with_the_command() -> None:
    assert "Not measured yet: `python -m benchmarks one`." in written(BLANK, {})


def test_a_goal_that_was_missed_is_on_the_page_as_missed_with_the_reason() -> None:
    goals = [
        {"what": "time", "must": "1 ms", "found": "2 ms", "met": False, "why": "the disk."},
        {"what": "requests", "must": "1", "found": "1", "met": True, "why": ""},
        {"what": "peers", "must": "0", "found": "-", "met": None, "why": "none is installed"},
    ]
    page = written(BLANK, {"one": result(goals=goals)})
    assert "- Goal **missed**: time: 2 ms (must: 1 ms). the disk.\n" in page
    assert "- Goal **met**: requests: 1 (must: 1).\n" in page
    assert "- Goal **not judged**: peers: - (must: 0). none is installed.\n" in page


@pytest.mark.parametrize(
    "row", [{"who": "mcp", "cannot": "it has none."}, {"who": "mcp", "ms": "cannot: it has none"}]
)
def test_a_contestant_that_cannot_take_part_is_named_with_the_reason_and_has_no_row(
    row: dict[str, Any],
) -> None:
    page = written(BLANK, {"one": result(rows=[{"who": "tokensession", "ms": 1.5}, row])})
    assert "Cannot take part:\n\n- mcp: it has none.\n" in page
    assert "| mcp |" not in page


def test_a_figure_stands_with_its_spread_and_three_digits() -> None:
    figure = {"median": 1234.5, "q1": 999.6, "q3": 0.01234}
    page = written(BLANK, {"one": result(rows=[{"who": "a|b", "ns": figure, "count": 12345, "no": None}])})
    assert "| who | ns | count |\n| --- | ---: | ---: |\n" in page
    assert "| a\\|b | 1,234 (1,000 to 0.0123) | 12,345 |\n" in page


def test_rows_of_another_kind_are_a_table_of_their_own() -> None:
    rows = [{"who": "a", "ms": 1}, {"who": "b"}, {"what": "c", "bytes": 2}]
    page = written(BLANK, {"one": result(rows=rows)})
    assert "| a | 1 |\n| b |  |\n\n| what | bytes |\n| --- | ---: |\n| c | 2 |\n" in page


def test_figures_that_come_from_another_machine_or_version_say_so() -> None:
    """The environment on the page is that of most of them."""
    results = {"two": result(), "three": result()}
    results["one"] = result(environment={"processor": "a fast one", "versions": {"aiohttp": "3.15"}})
    page = written(BLANK, results)
    assert "on 2026-01-02 (unlike the others with a fast one, aiohttp 3.15):" in page
    assert "- 2 virtual processors: a processor\n" in page
