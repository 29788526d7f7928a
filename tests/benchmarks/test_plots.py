"""The plots: drawn from saved figures only, the same each time, readable on light and dark backgrounds."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="the plots need the extra `bench`")

from benchmarks.page import RESULTS
from benchmarks.plots import PLOTS, draw, figures, style

SVG = "{http://www.w3.org/2000/svg}"
PEERS = ("tokensession", "raw aiohttp", "a library", "another library")


def spread(median: float) -> dict[str, float]:
    return {"median": median, "q1": 0.9 * median, "q3": 1.2 * median}


def contention(tasks: list[int], lines: dict[str, list[float | None]]) -> dict[str, Any]:
    quartiles = {name: [None if y is None else [y, y] for y in ys] for name, ys in lines.items()}
    return {"series": {"x": tasks, "lines": lines, "spread": quartiles, "unit": "x the limit"}}


CROWDED = contention(
    [10, 100, 1000],
    {"tokensession": [1.0, 1.0, 1.01], "raw aiohttp": [1, 1, 1], "a library": [2.5, 60.0, None]}
    | {f"library {number}": [1.0, 1.0, 1.0 + number / 1000] for number in range(4)},
)


def drawn(result: dict[str, Any], name: str, directory: Path) -> str:
    """The SVG of this result."""
    results, plots = directory / "results", directory / "plots"
    results.mkdir(exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(result))
    (file,) = draw(results, plots)
    assert file == plots / f"{name}.svg"
    return file.read_text(encoding="utf-8")


def texts(svg: str) -> list[str]:
    return [str(element.text) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_plot_changes_only_with_its_figures(tmp_path: Path) -> None:
    """It has no date and no random id."""
    once, again = (drawn(CROWDED, "contention", tmp_path) for _ in range(2))
    assert once == again
    other = contention([10, 100], {"tokensession": [1.0, 1.2], "raw aiohttp": [1, 1]})
    assert drawn(other, "contention", tmp_path) != once
    assert not re.search(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", once)


def test_every_line_has_its_name_next_to_it_and_no_two_names_overlap(tmp_path: Path) -> None:
    """Also if many lines end at nearly the same height."""
    svg = drawn(CROWDED, "contention", tmp_path)
    heights: dict[str, list[float]] = {}
    for element in ElementTree.fromstring(svg).iter(f"{SVG}text"):
        if element.text in CROWDED["series"]["lines"]:
            heights.setdefault(element.text, []).append(float(element.attrib["y"]))
    assert {name: len(found) for name, found in heights.items()} == {
        name: 2 if name == "tokensession" else 1 for name in CROWDED["series"]["lines"]
    }
    below = sorted(found[-1] for name, found in heights.items() if name != "a library")
    assert all(one + 10 < next_ for one, next_ in itertools.pairwise(below))


def test_every_colour_has_one_for_dark_mode_and_the_background_is_transparent(tmp_path: Path) -> None:
    svg = drawn(CROWDED, "contention", tmp_path)
    before, _, rest = svg.partition("@media (prefers-color-scheme: dark) {")
    rules, _, drawing = rest.partition("</style>")
    colours = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", before + drawing))
    assert {style.OURS, style.INK, style.LIMIT, style.OTHER} <= colours
    for colour in colours:
        assert f'"fill: {colour}"' in rules.replace("style*=", "")
        assert f'"stroke: {colour}"' in rules.replace("style*=", "")
    assert "#ffffff" not in drawing


def test_tokensession_is_blue_and_bold_and_others_are_grey(tmp_path: Path) -> None:
    names = {"names": list(PEERS), "median": [3.0, 2, 4, 5], "q1": [3.0, 2, 4, 5], "q3": [3.0, 2, 4, 5]}
    names["names"][1] = "empty async def"
    svg = drawn({"series": {"unit": "ns", **names}}, "hot-path", tmp_path)
    styles = {e.text: e.attrib["style"] for e in ElementTree.fromstring(svg).iter(f"{SVG}text")}
    assert "bold" in styles["tokensession"] or "700" in styles["tokensession"]
    assert style.OURS in styles["tokensession"]
    assert style.OURS not in styles["a library"]


def test_a_contestant_that_could_not_take_part_is_not_in_the_plot(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"client": name, "how": how, "of raw": spread(1.0)}
        for how in ("sequential", "100 tasks")
        for name in PEERS
    ]
    rows.append({"client": "httpx-auth", "how": "cannot: it is not installed"})
    found = texts(drawn({"rows": rows, "series": {}}, "overhead", tmp_path))
    assert set(PEERS) < set(found)
    assert "httpx-auth" not in found


def test_a_contestant_in_one_of_two_panels_has_an_empty_place_in_the_other(tmp_path: Path) -> None:
    """Both panels share the names at the left, so a missing one must not move the others up."""
    rows: list[dict[str, Any]] = [{"client": name, "how": "one", "of raw": spread(0.5)} for name in PEERS]
    rows += [{"client": name, "how": "two", "of raw": spread(0.25)} for name in PEERS if name != "a library"]
    svg = drawn({"rows": rows, "series": {}}, "overhead", tmp_path)
    found = texts(svg)
    assert [found.count(text) for text in (*PEERS, "0.50", "0.25", "-")] == [1, 1, 1, 1, 4, 3, 1]
    at = {e.text: float(e.attrib["y"]) for e in ElementTree.fromstring(svg).iter(f"{SVG}text")}
    assert at["-"] == pytest.approx(at["a library"], abs=2)


def test_names_at_the_ends_of_lines_are_moved_apart_only_as_far_as_needed() -> None:
    """Each group stays around its middle, and names with room stay in place."""
    assert style._dodged([0, 100, 200], 12) == [0, 100, 200]
    assert style._dodged([100, 100], 12) == [94, 106]
    assert style._dodged([0, 10, 21], 12) == pytest.approx([-5 / 3, 31 / 3, 67 / 3])
    crowded = style._dodged([float(number) for number in range(20)], 12)
    assert all(b - a == pytest.approx(12) for a, b in itertools.pairwise(crowded))
    assert sum(crowded) / 20 == pytest.approx(9.5)


def test_numbers_have_three_digits_and_thousands_separators() -> None:
    found = [style.rounded(value) for value in (0.0412, 1, 2.345, 99.96, 123.4, 15000)]
    assert found == ["0.0412", "1", "2.35", "100", "123", "15,000"]


def test_every_plot_has_its_own_title() -> None:
    titles = [str(plot.__doc__).splitlines()[0] for plot in figures.FIGURES.values()]
    assert len(set(titles)) == len(titles)
    assert all(title.endswith(".") for title in titles)


def test_all_saved_figures_can_be_drawn_and_their_plots_are_in_the_docs(tmp_path: Path) -> None:
    """Each plot is under 40 kB: the page has ten of them."""
    for file in draw(RESULTS, tmp_path):
        assert file.stat().st_size < 40_000
        assert texts(file.read_text(encoding="utf-8"))
        assert (PLOTS / file.name).is_file(), "draw it: .venv/bin/python -m benchmarks plots"
