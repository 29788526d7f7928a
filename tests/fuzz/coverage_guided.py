"""Fuzz one target, guided by coverage: `python tests/fuzz/coverage_guided.py TARGET -runs=1000000`.

What follows the target goes to libFuzzer: `-max_total_time=60`, `-max_len=400`, a directory for the corpus.
Atheris is not a dependency of the project. There is a wheel for CPython 3.11.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("Coverage-guided fuzzing needs atheris: python3.11 -m pip install atheris")

sys.path[:0] = map(str, Path(__file__).parents[:2])

with atheris.instrument_imports(
    include=["tokensession", "json", "email._parseaddr", "email.utils", "urllib.parse"]
):
    from _inputs import write_corpus
    from _targets import TARGETS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: coverage_guided.py {{{','.join(TARGETS)}}} [libFuzzer's options]")
    name = sys.argv.pop(1)
    check = TARGETS[name][0]

    def one_input(data: bytes) -> None:
        check(data)

    with tempfile.TemporaryDirectory() as directory:
        write_corpus(name, Path(directory))
        atheris.Setup([*sys.argv, directory], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
