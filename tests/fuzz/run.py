"""Fuzz the parsers: `python tests/fuzz/run.py --inputs 1000000 --seed 1 [--target NAME]`.

Prints for each target the number of inputs, the outcomes, the slowest input, and how to repeat a failure. The
exit status is 1 if there was a failure. `--replay NAME HEX` runs one input.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from _inputs import inputs
from _targets import TARGETS, Check

_MOST_FAILURES = 5  # of one target; then the next one


@dataclass
class Figures:
    """The results of one target."""

    name: str
    inputs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    slowest_input: bytes = b""
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[bytes, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        outcomes = ", ".join(f"{what} {count:,}" for what, count in self.outcomes.most_common())
        return [
            f"{self.name}: {self.inputs:,} inputs in {self.seconds:.1f} s; {outcomes}; "
            f"slowest {self.slowest * 1000:.1f} ms ({len(self.slowest_input)} bytes); "
            f"{len(self.failures)} failures",
            *(f"  --replay {self.name} {data.hex()}\n    {what}" for data, what in self.failures),
        ]


def fuzz(name: str, count: int, seed: int, check: Check | None = None) -> Figures:
    """Run `count` inputs, or fewer if it keeps failing."""
    figures, draw, check = Figures(name), inputs(name, seed), check or TARGETS[name][0]
    clock, outcomes = time.process_time, figures.outcomes  # does not count other processes on this machine
    start = clock()
    for _ in range(count):
        data = draw()
        before = clock()
        try:
            outcomes[check(data)] += 1
        except Exception as error:  # noqa: BLE001 - any exception is a failure
            figures.failures.append((data, f"{type(error).__name__}: {error}"[:500]))
        took = clock() - before
        if took > figures.slowest:
            figures.slowest, figures.slowest_input = took, data
        figures.inputs += 1
        if len(figures.failures) == _MOST_FAILURES:
            break
    figures.seconds = clock() - start
    return figures


def share(name: str, inputs: int) -> int:
    """How many of the inputs a target gets."""
    return inputs * TARGETS[name][1] // 100


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="in all (with --target: for it)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--replay", nargs=2, metavar=("NAME", "HEX"))
    chosen = parser.parse_args(arguments)
    if chosen.replay:
        name, data = chosen.replay
        print(TARGETS[name][0](bytes.fromhex(data)))
        return 0
    counts = (
        {chosen.target: chosen.inputs} if chosen.target else {n: share(n, chosen.inputs) for n in TARGETS}
    )
    all_figures = []
    for name, count in counts.items():
        all_figures.append(fuzz(name, count, chosen.seed))
        print(*all_figures[-1].lines(), sep="\n", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    done, seconds = sum(f.inputs for f in all_figures), sum(f.seconds for f in all_figures)
    failures = sum(len(f.failures) for f in all_figures)
    print(
        f"in all: {done:,} inputs in {seconds:.1f} s, {failures} failures, peak memory of the process "
        f"{peak:.0f} MiB, seed {chosen.seed}, Python {sys.version.split()[0]}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
