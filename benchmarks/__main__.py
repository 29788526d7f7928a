"""`python -m benchmarks NAME ...`: runs one benchmark; without a name it lists them.

A benchmark is a module or package of this one with `main(arguments) -> exit status`. It is loaded when it
is named, so that one of them may need what another does without. To add one, add it to the table.
"""

from __future__ import annotations

import sys
from importlib import import_module

BENCHMARKS = {
    "torture": "kill, stop and confuse real processes that share a token, and keep books of it",
}

_USAGE = 2  # exit status: not a command


def main(arguments: list[str]) -> int:
    """The exit status of the benchmark that is named first, or of listing them."""
    if arguments and arguments[0] in BENCHMARKS:
        status: int = import_module(f"{__package__}.{arguments[0]}").main(arguments[1:])
        return status
    print("usage: python -m benchmarks NAME [options], where NAME is one of:\n")
    for name, what in BENCHMARKS.items():
        print(f"  {name:<10}  {what}")
    return 0 if not arguments or arguments[0] in ("-h", "--help") else _USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
