"""Write the tables in docs/reliability.md: failures, inputs and properties of stores, with their tests.

python tests/docs/reliability_table.py

The words of each row are on the page. This script keeps them, and puts the tests of today beside them. The
tests of a property are written by hand: most are promises of the conformance suite, so they run for every
store.

A test belongs to a failure or an input if its name says so (`test_f01_...`, `test_f03_k04_...`) or its
docstring does (F01, K04). A test of an input also belongs to the failures that the input is an example of.
`ALSO` names further tests. What a test promises is the first line of its docstring.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from _pages import ROOT

PAGE = ROOT / "docs" / "reliability.md"

EXAMPLES = {
    18: (29,),
    32: (22,),
    49: (27,),
    53: (3,),
    54: (4,),
    55: (1, 2),
    56: (5,),
    57: (19,),
    59: (6, 7),
    60: (18,),
    61: (17,),
    62: (13,),
    63: (14, 15),
    64: (21,),
    66: (20,),
    67: (11, 12),
    68: (10,),
    69: (16, 34, 35, 37),
    70: (36, 42, 43),
    71: (23,),
    72: (22,),
    73: (38, 39),
    74: (32,),
}
"""Failure -> the inputs that are examples of it."""

ALSO = {
    "test_a_directory_that_others_may_write_to_is_not_used": "K16",
    "test_a_backup_by_the_process_itself_breaks_nothing": "K34",
    "test_a_second_name_leads_to_no_second_claim": "K35",
    "test_a_record_that_was_moved_to_another_key_is_not_read": "K37",
    "test_a_pickled_store_is_a_new_one_over_the_same_records": "K46",
    "test_no_file_is_touched_in_the_event_loops_thread": "K46",
    "test_f18_closing_may_be_cancelled_at_any_of_its_steps_and_called_again": "K12",
    "test_f32_a_newer_token_is_adopted_although_requests_are_paced": "K22",
    "test_a_400_or_401_without_a_readable_code_is_not_explained": "F58",
    "test_a_file_system_that_can_neither_sync_a_directory_nor_allocate_space_will_do": "F70",
    "test_a_disk_without_inodes_fails_the_claim_and_no_commit": "F70",
    "test_a_child_forked_during_a_refresh_gets_the_parents_token_and_can_close": "F73",
    "test_a_held_claim_is_renewed": "F10",
    "test_a_claim_is_renewed_as_long_as_its_holder_runs": "F10",
    "test_a_process_stopped_past_its_lease_overwrites_nothing": "F11",
    "test_a_holder_stopped_past_its_lease_is_taken_over_and_superseded": "F11",
    "test_a_holder_stopped_past_its_lease_commits_if_nothing_newer_is_stored": "F12",
    "test_a_holder_whose_event_loop_was_blocked_past_its_lease_sends_nothing": "F11",
    "test_a_holder_whose_event_loop_is_blocked_past_its_lease_is_taken_over": "F11",
    "test_a_killed_holder_loses_its_claim_and_the_next_one_learns_of_it": "F14",
    "test_a_frozen_server_is_an_error_and_not_a_hang": "F03",
    "test_a_frozen_server_is_an_error_and_nothing_is_lost": "F03",
    "test_a_commit_to_a_server_that_is_down_is_stored_when_it_is_back": "F27",
    "test_a_commit_that_begins_while_the_server_is_down_is_stored_when_it_is_back": "F27",
    "test_a_full_server_fails_the_claim_and_no_commit": "F27",
    "test_an_unreachable_server_fails_the_claim": "F28",
    "test_an_unreachable_server_is_named": "F28",
    "test_a_failover_that_lost_a_commit_is_repaired_by_the_process_that_knows_it": "F51",
    "test_an_evicted_record_is_as_good_as_a_deleted_one": "F52",
    "test_a_row_that_another_program_locks_is_an_error": "F68",
    "test_waiting_changes_and_locks_nothing": "F30",
}
"""Tests that show something which neither their name nor their docstring says."""


@dataclass(frozen=True)
class Test:
    """A test function. `labels` are the rows and inputs that it names, such as "F03" and "K04"."""

    path: str
    name: str
    promise: str
    labels: frozenset[str]


def every_test() -> Iterator[Test]:
    """Every test function of the project."""
    paths = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("tokensession/testing/conformance/*.py")]
    for path in sorted(paths):
        where = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                said = ast.get_docstring(node) or ""
                yield Test(where, node.name, promise(node.name, said), labels(node.name, said))


def labels(name: str, said: str) -> frozenset[str]:
    """What a test with this name and docstring belongs to."""
    of_name = re.findall(r"(?<=_)([fk]\d\d)(?=_)", name)
    own = {*map(str.upper, of_name), *re.findall(r"\b[FK]\d\d\b", said)} | {ALSO.get(name, "")} - {""}
    rows = {f"F{row:02}" for row, cases in EXAMPLES.items() for case in cases if f"K{case:02}" in own}
    return frozenset(own | rows)


def promise(name: str, said: str) -> str:
    """The first line of the docstring, without the labels; the name, if there is nothing else."""
    line = re.sub(r" ?\((?:rule \d+|[FK]\d\d|, )+\)|^[FK]\d\d: ", "", said.partition("\n")[0])
    if len(line) > 1:
        return line[0].upper() + line[1:]
    words = re.sub(r"^test_(?:[fk]\d\d_)*", "", name).replace("_", " ")
    return f"{words[0].upper()}{words[1:]}."


def by_label() -> dict[str, list[Test]]:
    """The tests of each row and input."""
    found: dict[str, list[Test]] = {}
    for test in every_test():
        for label in test.labels:
            found.setdefault(label, []).append(test)
    return found


def table(name: str, page: str) -> list[list[str]]:
    """The cells of each row of a table on the page."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in _parts(name, page)[1].splitlines()]


def _parts(name: str, page: str) -> tuple[str, str, str]:
    """The page up to the rows of a table, the rows, and what is below them."""
    head = rf"^<!-- {name}: written by tests/docs/reliability_table\.py -->\n\|.*\n\|.*\n"
    (begin,) = re.finditer(head, page, re.MULTILINE)
    (end,) = re.finditer(f"^<!-- end of {name} -->$", page, re.MULTILINE)
    return page[: begin.end()], page[begin.end() : end.start()], page[end.start() :]


def failures(page: str) -> dict[str, str]:
    """Each failure, such as "F01", and the note on what no test shows."""
    notes: dict[str, str] = {}
    for row, test, text in table("failures", page):
        if row:
            label = row.strip("*")
            notes[label] = ""
        elif not test:
            notes[label] = text
    return notes


def written(page: str) -> str:
    """The page with the tests of today."""
    tests, notes, rows = by_label(), failures(page), []
    for row in table("failures", page):
        if row[0]:
            label = row[0].strip("*")
            shown = [["", f"`{test.name}`, `{test.path}`", test.promise] for test in tests.get(label, [])]
            rows += [row, *shown, *([["", "", notes[label]]] if notes[label] else [])]
    page = with_rows("failures", rows, page)
    rows = [
        [label, what, now, ", ".join(f"`{test.name}`" for test in tests.get(label, []))]
        for label, what, now, _ in table("inputs", page)
    ]
    return with_rows("inputs", rows, page)


def with_rows(name: str, rows: list[list[str]], page: str) -> str:
    """The page with these rows in a table."""
    before, _, after = _parts(name, page)
    lines = ("|" + "".join(f" {cell} |" if cell else " |" for cell in row) + "\n" for row in rows)
    return before + "".join(lines) + after


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
