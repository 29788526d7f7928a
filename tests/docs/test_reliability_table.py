"""Every failure and input has a test or a reason, and the page lists the tests that exist."""

from __future__ import annotations

import re

from reliability_table import ALSO, EXAMPLES, PAGE, by_label, every_test, failures, labels, table
from reliability_table import promise as promise_of

TEXT = PAGE.read_text(encoding="utf-8")
FAILURES = failures(TEXT)
INPUTS = [label for label, *_ in table("inputs", TEXT)]


def test_every_failure_has_a_test_or_a_reason_and_no_test_names_another() -> None:
    assert list(FAILURES) == [f"F{number:02}" for number in range(1, 76)]
    found = {label for label in by_label() if label.startswith("F")}
    reasons = {row for row, note in FAILURES.items() if note.startswith("not covered, because ")}
    assert set(FAILURES) - found == reasons, "a row has neither, or both"
    assert found <= set(FAILURES)


def test_every_input_has_a_test_and_no_test_names_another() -> None:
    assert sorted(INPUTS) == INPUTS
    assert {label for label in by_label() if label.startswith("K")} == set(INPUTS)
    assert {f"F{row:02}" for row in EXAMPLES} <= set(FAILURES)
    assert {f"K{case:02}" for cases in EXAMPLES.values() for case in cases} <= set(INPUTS)


def test_every_test_of_a_failure_says_in_one_line_what_it_promises() -> None:
    for tests in by_label().values():
        for test in tests:
            assert test.promise.endswith("."), f"{test.path}::{test.name}"
            assert "|" not in test.promise


def test_a_test_belongs_to_what_its_name_and_its_docstring_say() -> None:
    """The tests of an input belong to its failures too."""
    assert labels("test_f03_f10_it_ends", "It ends.") == {"F03", "F10"}
    assert labels("test_k03_it_heals", "In the end (K20).") == {"K03", "F53", "K20", "F66"}
    assert labels("test_a_half03_f3_k123_x", "F1, K123, FF03.") == frozenset()
    assert promise_of("test_f03_k03_it_ends_soon", "(K03).") == "It ends soon."
    assert promise_of("test_x", "K03: it ends (rule 8, K04).\n\nMore.") == "It ends."


def test_every_test_that_is_listed_by_hand_exists_and_does_not_name_its_row_itself() -> None:
    assert set(ALSO) <= {test.name for test in every_test()}
    for name, label in ALSO.items():
        assert f"_{label.lower()}_" not in name, "ALSO is for the others"


def test_every_property_of_a_store_has_a_test_or_a_reason() -> None:
    properties = table("properties", TEXT)
    assert [number for number, *_ in properties] == [str(number) for number in range(1, 47)]
    for number, _, shown in properties:
        assert re.match(r"`test_\w+`(, `test_\w+`)*$|not covered, because ", shown), number


def test_the_page_names_no_test_that_is_not_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert named <= {test.name for test in every_test()}


def test_the_page_has_no_gap_that_was_to_be_filled() -> None:
    assert not [line for line in TEXT.splitlines() if re.search(r"(^|\| )[A-Z]{4,}( \||$)", line)]
