"""`python -m benchmarks`: what there is, and all of it in one go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from _torture_runs import finish, start

from benchmarks.__main__ import BENCHMARKS, MEASURING, main, run_all

ROOT = Path(__file__).parents[2]


class Runs:
    """Notes which benchmarks are run, and how often all is drawn; those named `broken` fail."""

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.ran: list[tuple[str, Sequence[str]]] = []
        self.drawn = 0

    def run(self, name: str, options: Sequence[str]) -> int:
        self.ran.append((name, options))
        return 3 if name in self.broken else 0

    def draw(self) -> int:
        self.drawn += 1
        return 0


@pytest.mark.parametrize("option", ["--list", "-h", "--help"])
def test_the_list_names_every_benchmark_in_a_line_of_its_own(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([option]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, what in BENCHMARKS.items():
        assert sum(line.split(maxsplit=1) == [name, what] for line in lines) == 1


def test_an_unknown_name_is_a_mistake_in_usage_and_is_answered_with_the_list(tmp_path: Path) -> None:
    """Exit status 2, as for any command line that cannot be understood."""
    status, said = finish(start("hotpath", tmp=tmp_path))
    assert status == 2
    assert "hot-path" in said
    assert main(["--slow"]) == main(["plots", "contention"]) == 2


def in_another_process(program: str) -> subprocess.CompletedProcess[str]:
    """So that what it loads does not stay behind here."""
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_benchmark_of_the_list_can_be_run_by_its_name() -> None:
    """Its module is there, can be loaded with what the tests need, and has a main."""
    done = in_another_process(
        "from importlib import import_module; from benchmarks.__main__ import BENCHMARKS, module_of\n"
        "for name in BENCHMARKS: assert callable(import_module(module_of(name)).main), name"
    )
    assert done.returncode == 0, done.stderr


def test_listing_the_benchmarks_loads_none_of_them() -> None:
    """One of them may need what is not installed; the list is there all the same."""
    done = in_another_process(
        "import sys; from benchmarks.__main__ import BENCHMARKS, main, module_of; main(['--list'])\n"
        "assert not [name for name in BENCHMARKS if module_of(name) in sys.modules]"
    )
    assert done.returncode == 0, done.stderr


def test_without_a_name_all_that_measure_run_in_order_and_then_the_plots_are_drawn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Torture is not among them. The environment is printed before anything runs."""
    runs = Runs()
    assert run_all(run=runs.run, draw=runs.draw) == 0
    assert runs.ran == [(name, []) for name in MEASURING]
    assert "torture" not in dict(runs.ran)
    assert set(BENCHMARKS) - set(MEASURING) == {"torture"}
    assert runs.drawn == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("python: ")
    assert "tokensession 0." in printed.out
    assert [line.partition("]")[0] for line in printed.err.splitlines() if line.startswith("[")] == [
        f"[{number}/{len(MEASURING)}" for number in range(1, len(MEASURING) + 1)
    ]


def test_one_that_fails_does_not_keep_the_others_from_running_and_is_named_in_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The figures of the others are drawn, and the exit status is 1."""
    runs = Runs("stores", "steady")
    assert run_all(run=runs.run, draw=runs.draw) == 1
    assert [name for name, _ in runs.ran] == list(MEASURING)
    assert runs.drawn == 1
    assert capsys.readouterr().err.splitlines()[-1] == "failed: stores, steady"


def test_a_quick_run_is_quick_for_each_of_them_and_draws_nothing() -> None:
    """Its figures mean nothing, so that they are not to be seen anywhere."""
    runs = Runs()
    assert run_all(quick=True, run=runs.run, draw=runs.draw) == 0
    assert runs.ran == [(name, ["--quick"]) for name in MEASURING]
    assert runs.drawn == 0


def test_plots_that_cannot_be_drawn_are_a_failure() -> None:
    assert run_all(run=lambda name, options: 0, draw=lambda: 1) == 1
