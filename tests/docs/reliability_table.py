"""Write the tables in docs/reliability.md: failures, inputs and properties of stores, with their tests.

python tests/docs/reliability_table.py

A test belongs to a failure or an input if its name says so (`test_f01_...`, `test_f03_k04_...`) or its
docstring does (F01, K04). A test of an input also belongs to the failures that the input is an example of.
`ALSO` names further tests. What a test promises is the first line of its docstring.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
    51: "The store goes back to an older record: a restored backup, a failover",
    52: "The record disappears, between two refreshes or during one",
    53: "Token requests get no answer, again and again",
    54: "The answer comes after its callers have given up",
    55: "The token request never leaves: no connection, or the process ends while it connects",
    56: "A 429 or 503 has an error code in its body",
    57: "A refresh token is rejected with another code than `invalid_grant`",
    58: "A refusal has no error code",
    59: "A response with a new refresh token cannot be used",
    60: "The server returns the same access token with a later expiry",
    61: "Two sources ask for different scopes with one refresh token",
    62: "Two providers, clients or environments use one key",
    63: "One code, or one configured credential, is brought twice",
    64: "Many processes go through one outage",
    65: "A process remembers a failure, and the store has a good token",
    66: "The token endpoint fails for a moment, and callers wait",
    67: "Closing is cancelled or cut short, and called again",
    68: "Another program keeps the store locked",
    69: "The database has two names, or another database is moved over it",
    70: "The file system cannot sync a directory or reserve space, or has no inodes left",
    71: "The 401 arrives while the body is still being read",
    72: 'The API says "unauthorized" with another status than 401',
    73: "A session is used in a forked child, in a second thread, or under a task factory of another library",
    74: "A chain of redirects leaves the allowed origins and comes back",
    75: "A record is of an older format, or has fields that this version does not know",
}

NOT_COVERED = {
    7: "it needs a store that hosts share, and none ships yet. The model below runs the refresh with claims "
    "that have leases.",
}

PARTS = {
    10: "Leases are not covered, because no store with leases ships yet. In the model below they run out at "
    "any time.",
}


@dataclass(frozen=True)
class Case:
    """An input that a version before this one failed on.

    `now` is what happens today, and `rows` are the failures that it is an example of.
    """

    what: str
    now: str
    rows: tuple[int, ...] = ()


CASES = {
    1: Case(
        "A proxy drops the CONNECT twice, or wants a password; a pinned certificate was renewed",
        "`NotSent` each time. Nothing is noted, and the next request that leaves works",
        (55,),
    ),
    2: Case(
        "The token endpoint's host does not answer, and the process is ended while it connects",
        "nothing was sent, so nothing is noted and no one waits",
        (55,),
    ),
    3: Case(
        "Resets and time-outs, any number of them, that spend nothing",
        "the refresh token is sent until there is an answer",
        (53,),
    ),
    4: Case(
        "The answer comes after half a minute, or in the very step in which the time is up",
        "it is stored and used",
        (54,),
    ),
    5: Case(
        "A 429 or 503 whose body says `invalid_grant` or `access_denied`",
        "a pause, and the refresh token is kept",
        (56,),
    ),
    6: Case("A token response with a header line of more than 8 KiB", "it is read", (59,)),
    7: Case(
        "An unknown `token_type`, or a complaint, beside a new refresh token",
        "the new refresh token is stored, then you get the error",
        (59,),
    ),
    8: Case(
        "The record is replaced by an older one or deleted, also during a token request",
        "the newest state is written back, and nothing spent is sent",
    ),
    9: Case(
        "A session is entered again after closing could not save its token",
        "it goes on with the token in memory",
    ),
    10: Case(
        "Another program locks the database during a refresh, and during closing",
        "found out at the claim. Every wait has its bound, and the error names the file",
        (68,),
    ),
    11: Case(
        "A program ends inside a cancelled anyio scope while a refresh is running",
        "its token is stored first",
        (67,),
    ),
    12: Case("`close()` is cut short and called again", "the second call continues", (67,)),
    13: Case(
        "Two providers or environments under one named key",
        "`ConfigurationError` before anything is sent",
        (62,),
    ),
    14: Case(
        "One code is brought by `token()` and `sign_in()`, or twice by a reloaded page",
        "it is sent once, and both get its token",
        (63,),
    ),
    15: Case(
        "Processes with the old and the new refresh token run side by side, under one key",
        "the newer configuration wins; if it is rejected, the older one is used again",
        (63,),
    ),
    16: Case(
        "Another user creates a `-wal`, `-shm` or `-journal` file beside the database",
        "`StoreInsecure`, and so is a directory that others can write to",
        (69,),
    ),
    17: Case(
        "Two sources with one refresh token and different scopes share a store",
        "neither gets the other's token",
        (61,),
    ),
    18: Case(
        "The server returns the same access token with a later expiry, to eight processes",
        "one token request",
        (60,),
    ),
    19: Case(
        "A dead refresh token is rejected in the words of other servers, or with an empty 400",
        "sign in again: after one request, or after three refusals without a code",
        (57,),
    ),
    20: Case(
        "Two hundred callers without a token, and one 500 or 429",
        "two token requests, and all are served",
        (66,),
    ),
    21: Case(
        "Sixteen processes in an outage of ten seconds, or of five minutes",
        "hardly more token requests than one process sends, and all are back within two seconds",
        (64,),
    ),
    22: Case(
        "The server ends the old access token at each refresh, and four processes use it",
        "after a 401, or a status that you declare, each takes the newer token from the store",
        (32, 72),
    ),
    23: Case(
        "A file that is still being read, or a body of a class of your own, when the 401 comes",
        "you get the 401: a body is never sent short",
        (71,),
    ),
    24: Case(
        "A response without a scope, or with a list of scopes",
        "the scope that was asked for; the list joined with blanks",
    ),
    25: Case("An expiry as a string of digits, in seconds or milliseconds", "it is that moment"),
    26: Case(
        "The error after a lost answer, and the one after a 500 and a rejection",
        "what it says about the refresh token is true",
    ),
    27: Case(
        "A new code is configured after the old sign-in has died",
        "under a named key every process has its token within a second. (With the default key it is another "
        "record.)",
        (49,),
    ),
    28: Case(
        "Events of a refresh that has nothing to do, because an answer was lost",
        "each operation starts once and ends once, with an id, a duration and both pauses by name",
    ),
    29: Case(
        "`Policy(orphan_wait=0)`, and closing during a lost answer",
        "closing has a bound of its own, and the note is stored",
        (18,),
    ),
    30: Case("`case SignedOut()` on an event", "no event has the name of an error"),
    31: Case(
        "A thousand keys are due at once, and the token server takes ten seconds",
        "waiting for a connection is not waiting for a claim, and callers' time stands still",
    ),
    32: Case(
        "A 307 from the API to another host, and from there back to the API",
        "the token does not go to a path that the other host chose",
        (74,),
    ),
    33: Case("A refusal made to cost processor time", "its work has a bound"),
    34: Case(
        "A backup opens and closes the database inside the service; side files are removed",
        "no commit is lost: there is no log, and our processes exclude each other by a lock file",
        (69,),
    ),
    35: Case(
        "One database under two names: a hard link, a single-file mount",
        "`StoreUnavailable`, with the way out",
        (69,),
    ),
    36: Case(
        "A full disk of a copy-on-write file system",
        "nothing is mapped into memory, so nothing can kill the process",
        (70,),
    ),
    37: Case(
        "Another database is moved over this one, beside the log of the old one",
        "the log is refused, and a record that is not whole is not read",
        (69,),
    ),
    38: Case("A task factory that takes no `context`", "the refresh runs", (73,)),
    39: Case(
        "A program forks with an open session; a second thread closes a session",
        "the child goes on by itself, and the parent too; the thread gets an error, and closes nothing",
        (73,),
    ),
    40: Case("Headers as a `zip`, a `map` or a generator", "they are sent"),
    41: Case(
        "Two accounts use one client that caches answers", "one warning for each client; a page says why"
    ),
    42: Case(
        "A file system that cannot sync a directory, reserve space, or lock",
        "the first two are not needed; without locks, an error before anything is sent",
        (70,),
    ),
    43: Case(
        "Inodes that change at every look; no inodes left",
        "an error after some tries, or at the claim",
        (70,),
    ),
    44: Case(
        "The database of another program: a table or view `tokens`, WAL mode; a path that is too long",
        "an error that says so, and nothing is changed",
    ),
    45: Case(
        "Kubernetes' `fsGroup`, WSL and other file systems that keep no modes",
        "the error says what helps there",
    ),
    46: Case(
        "A hung disk under a waiting claim; a store or provider for a spawned process; "
        "`create_task(session.ws_connect(...))`",
        "the event loop never looks at a file; they pickle as configuration; it works as in aiohttp",
    ),
    47: Case(
        "Cookies of a 401, a password in a URL, an IPv6 host that is foreign",
        "kept and sent along; an error before anything is sent; advice that can be followed",
    ),
}
"""In the order of their numbers."""

ALSO = {
    "K16": ("test_a_directory_that_others_may_write_to_is_not_used",),
    "K34": ("test_a_backup_by_the_process_itself_breaks_nothing",),
    "K35": ("test_a_second_name_leads_to_no_second_claim",),
    "K37": ("test_a_record_that_was_moved_to_another_key_is_not_read",),
    "K46": (
        "test_a_pickled_store_is_a_new_one_over_the_same_records",
        "test_no_file_is_touched_in_the_event_loops_thread",
    ),
    "K12": (
        "test_f18_closing_that_was_cut_short_continues_when_it_is_called_again",
        "test_f18_closing_may_be_cancelled_at_any_of_its_steps_and_called_again",
    ),
    "K22": ("test_f32_a_newer_token_is_adopted_although_requests_are_paced",),
    "F58": ("test_a_400_or_401_without_a_readable_code_is_not_explained",),
    "F67": ("test_f18_a_scope_may_be_cancelled_at_any_step_of_closing",),
    "F70": (
        "test_a_file_system_that_can_neither_sync_a_directory_nor_allocate_space_will_do",
        "test_a_disk_without_inodes_fails_the_claim_and_no_commit",
    ),
    "F73": ("test_a_child_forked_during_a_refresh_gets_the_parents_token_and_can_close",),
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
    for path in sorted(
        [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("tokensession/testing/conformance/*.py")]
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                said = ast.get_docstring(node) or ""
                yield Test(
                    str(path.relative_to(ROOT)), node.name, promise(node.name, said), labels(node.name, said)
                )


def labels(name: str, said: str) -> frozenset[str]:
    """What a test with this name and docstring belongs to."""
    of_name = re.findall(r"(?<=_)([fk]\d\d)(?=_)", name)
    also = [label for label, names in ALSO.items() if name in names]
    own = {*(label.upper() for label in of_name), *re.findall(r"\b[FK]\d\d\b", said), *also}
    rows = [
        row for label in own if (case := CASES.get(int(label[1:]))) and label[0] == "K" for row in case.rows
    ]
    return frozenset({*own, *(f"F{row:02}" for row in rows)})


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


def failures() -> str:
    """A line for each failure, and one for each of its tests."""
    found = by_label()
    lines = ["| row | test | what it promises |", "|---|---|---|"]
    for row, what in FAILURES.items():
        lines.append(f"| **F{row:02}** | | **{what}** |")
        if row in NOT_COVERED:
            lines.append(f"| | | not covered, because {NOT_COVERED[row]} |")
        tests = found.get(f"F{row:02}", [])
        lines += [f"| | `{test.name}`, `{test.path}` | {test.promise} |" for test in tests]
        if row in PARTS:
            lines.append(f"| | | {PARTS[row]} |")
    return "\n".join(lines)


def inputs() -> str:
    """A line for each input that failed once."""
    found = by_label()
    lines = ["| | input | what happens now | shown by |", "|---|---|---|---|"]
    for number, case in CASES.items():
        names = ", ".join(f"`{test.name}`" for test in found.get(f"K{number:02}", []))
        lines.append(f"| K{number:02} | {case.what} | {case.now} | {names} |")
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
    for name, table in (("failures", failures()), ("inputs", inputs()), ("properties", properties())):
        begin = f"<!-- {name}: written by tests/docs/reliability_table.py -->"
        end = f"<!-- end of {name} -->"
        assert page.count(begin) == page.count(end) == 1, name
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
