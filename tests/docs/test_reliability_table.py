"""Every failure has a test or a reason, and the page lists the tests that exist."""

from __future__ import annotations

import re

from _store_properties import PROPERTIES
from reliability_table import FAILURES, NOT_COVERED, PAGE, by_failure, every_test, written


def test_the_tables_in_the_docs_are_those_of_the_tests() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), (
        "the tables are stale; run: .venv/bin/python tests/docs/reliability_table.py"
    )


def test_every_failure_has_a_test_or_a_reason_and_no_test_names_another() -> None:
    assert list(FAILURES) == list(range(1, 51))
    found = by_failure()
    assert set(FAILURES) - set(found) == set(NOT_COVERED), "a row has neither, or both"
    assert set(found) <= set(FAILURES)


def test_every_test_of_a_failure_says_in_one_line_what_it_promises() -> None:
    for listed in by_failure().values():
        for path, name, promise in listed:
            assert promise.endswith("."), f"{path}::{name}"
            assert "|" not in promise


def test_every_property_of_a_store_has_a_test_or_a_reason() -> None:
    assert list(PROPERTIES) == list(range(1, 42))
    names = {name for _, name, _ in every_test()}
    for number, (_, shown) in PROPERTIES.items():
        if isinstance(shown, str):
            assert shown.startswith("not covered, because"), number
        else:
            assert shown, number
            assert set(shown) <= names, (number, set(shown) - names)


def test_the_page_names_no_test_that_is_not_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    assert named <= {name for _, name, _ in every_test()}


def test_the_page_has_no_gap_that_was_to_be_filled() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.search(r"(^|\| )[A-Z]{4,}( \||$)", line)]
