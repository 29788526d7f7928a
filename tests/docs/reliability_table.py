"""Write the tables in docs/reliability.md: failures and their tests, properties of stores and theirs.

python tests/docs/reliability_table.py

A test belongs to a failure if its name says so (`test_f01_...`, `test_f03_f10_...`). What it promises is the
first line of its docstring.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from _store_properties import PROPERTIES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"

FAILURES = {
    1: "The caller that started the refresh is cancelled or times out",
    2: "A waiter is cancelled, even while the store's thread works for it",
    3: "The refresh never ends",
    4: "A caller arrives just as the refresh is ending",
    5: "Ten thousand tasks find the token expired",
    6: "Sixty-four processes of one host find the token expired",
    7: "Several hosts find the token expired",
    8: "The refresh token was read before the claim was granted, and is old",
    9: "The claim covers less than reading, redeeming and storing",
    10: "The token request takes longer than the claim lasts",
    11: "The holder is stopped: SIGSTOP, a paused machine, a closed lid",
    12: "The claim was lost although the rotation succeeded",
    13: "A holder releases a claim that is not its own",
    14: "The holder is killed",
    15: "A lock or mark has a time in the future",
    16: "Two processes hold one claim, because a lock file was removed",
    17: "The process crashes after the provider has rotated the token and before it is saved",
    18: "Closing takes the store away from a running refresh",
    19: "The rotated refresh token is not written where it is read from",
    20: "The loser of a race deletes what the winner has stored",
    21: "A rejected refresh token is sent again and again",
    22: "The token endpoint is down, and every caller sends a request to it",
    23: "A 429 is answered with more requests",
    24: "A 5xx or a time-out signs people out",
    25: "A refresh ahead of time fails while the token is still valid",
    26: "The store cannot be read",
    27: "The store cannot be written after a rotation",
    28: "An outage of the store is mistaken for contention",
    29: "A file is torn or half written",
    30: "Waiters use up connections or file descriptors",
    31: "Waiters queue one behind another",
    32: "The API answers 401 to a token that looks valid",
    33: "The API answers 401 to every token",
    34: "The machine was suspended, and a clock did not notice",
    35: "The wall clock is wrong, or steps",
    36: "The token lives shorter than the refresh window",
    37: "The API redirects to another origin",
    38: "The token endpoint redirects",
    39: "Some layer sends the token request twice",
    40: "Two accounts share a refresh or a record",
    41: "A user signs out during a refresh",
    42: "One object is used in two event loops, one after the other",
    43: "A background refresh fails unnoticed",
    44: "There are a hundred thousand keys",
    45: "A secret appears in a repr, a log, a traceback or an exception",
    46: "The 401 arrives when the body was a stream that has been read",
    47: "The 401 has a large body, and the pool has one connection",
    48: "The token request goes through the session that waits for it",
    49: "An operator replaces the configured refresh token",
    50: "The response has no refresh token",
}

NOT_COVERED = {
    7: "it needs a store that hosts share, and none ships yet. The model below runs the refresh with claims "
    "that have leases.",
}

PARTS = {
    10: "Leases are not covered, because no store with leases ships yet. In the model below they run out at "
    "any time.",
}

Test = tuple[str, str, str]  # file, name, promise


def every_test() -> Iterator[Test]:
    """Every test function of the project."""
    for path in sorted(
        [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("tokensession/testing/conformance/*.py")]
    ):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                promise = (ast.get_docstring(node) or "").partition("\n")[0]
                yield str(path.relative_to(ROOT)), node.name, promise


def by_failure() -> dict[int, list[Test]]:
    """The tests whose names say a row, by row."""
    found: dict[int, list[Test]] = {}
    for test in every_test():
        rows = re.match(r"test_((?:f\d\d_)*)", test[1])
        assert rows is not None
        for row in re.findall(r"f(\d\d)_", rows[1]):
            found.setdefault(int(row), []).append(test)
    return found


def failures() -> str:
    """A line for each failure, and one for each of its tests."""
    found = by_failure()
    lines = ["| row | test | what it promises |", "|---|---|---|"]
    for row, what in FAILURES.items():
        lines.append(f"| **F{row:02}** | | **{what}** |")
        if row in NOT_COVERED:
            lines.append(f"| | | not covered, because {NOT_COVERED[row]} |")
        lines += [f"| | `{name}`, `{path}` | {promise} |" for path, name, promise in found.get(row, [])]
        if row in PARTS:
            lines.append(f"| | | {PARTS[row]} |")
    return "\n".join(lines)


def properties() -> str:
    """A line for each property of a store."""
    lines = ["| | property | shown by |", "|---|---|---|"]
    for number, (what, shown) in PROPERTIES.items():
        names = shown if isinstance(shown, str) else ", ".join(f"`{name}`" for name in shown)
        lines.append(f"| {number} | {what} | {names} |")
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with the tables in it."""
    for name, table in (("failures", failures()), ("properties", properties())):
        begin = f"<!-- {name}: written by tests/docs/reliability_table.py -->"
        end = f"<!-- end of {name} -->"
        assert page.count(begin) == page.count(end) == 1, name
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
