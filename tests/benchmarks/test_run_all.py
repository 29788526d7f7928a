"""`python -m benchmarks`: the list, and all benchmarks in one run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from _torture_runs import ROOT, finish, start

from benchmarks.__main__ import BENCHMARKS, MEASURING, main, run_all


class Runs:
    """Notes which benchmarks run, and how often plots are drawn. Those named `broken` fail."""

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
def test_the_list_has_one_line_for_each_benchmark(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, what in BENCHMARKS.items():
        assert sum(line.split(maxsplit=1) == [name, what] for line in lines) == 1


def test_an_unknown_name_is_a_usage_error_and_prints_the_list(tmp_path: Path) -> None:
    """Exit status 2."""
    status, output = finish(start("hotpath", tmp=tmp_path))
    assert status == 2
    assert "hot-path" in output
    assert main(["--slow"]) == main(["plots", "contention"]) == 2


def in_another_process(program: str) -> subprocess.CompletedProcess[str]:
    """So that its imports do not affect this process."""
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_listed_benchmark_has_a_module_with_a_main() -> None:
    """It can be imported with the extra `test` alone."""
    done = in_another_process(
        "from importlib import import_module; from benchmarks.__main__ import BENCHMARKS, module_of\n"
        "for name in [*BENCHMARKS, 'versus']: assert callable(import_module(module_of(name)).main), name"
    )
    assert done.returncode == 0, done.stderr


def test_listing_the_benchmarks_imports_none_of_them() -> None:
    """A missing library of one benchmark does not break the list."""
    done = in_another_process(
        "import sys; from benchmarks.__main__ import BENCHMARKS, main, module_of; main(['--list'])\n"
        "assert not [name for name in BENCHMARKS if module_of(name) in sys.modules]"
    )
    assert done.returncode == 0, done.stderr


def test_without_a_name_all_that_measure_run_in_order_and_then_plots_are_drawn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Torture does not run. The environment is printed first."""
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


def test_if_one_fails_the_others_still_run_and_it_is_named_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The others' figures are drawn, and the exit status is 1."""
    runs = Runs("stores", "steady")
    assert run_all(run=runs.run, draw=runs.draw) == 1
    assert [name for name, _ in runs.ran] == list(MEASURING)
    assert runs.drawn == 1
    assert capsys.readouterr().err.splitlines()[-1] == "failed: stores, steady"


def test_a_quick_run_of_all_passes_the_option_on_and_draws_nothing() -> None:
    runs = Runs()
    assert run_all(quick=True, run=runs.run, draw=runs.draw) == 0
    assert runs.ran == [(name, ["--quick"]) for name in MEASURING]
    assert runs.drawn == 0


def test_plots_that_cannot_be_drawn_are_a_failure() -> None:
    assert run_all(run=lambda name, options: 0, draw=lambda: 1) == 1
