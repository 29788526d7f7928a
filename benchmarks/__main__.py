"""`python -m benchmarks`: measures everything that one machine can, then draws the plots and writes the page.

    python -m benchmarks                      run all that measure; the figures go to benchmarks/results
    python -m benchmarks --quick              run all, small: shows that they work, saves nothing
    python -m benchmarks NAME [options]       run one
    python -m benchmarks plots                draw the plots and write the page from the saved figures
    python -m benchmarks versus --base DIR    compare this checkout with another one
    python -m benchmarks --list               list all

A benchmark is a module or package here with `main(arguments) -> exit status`. To add one, add it to the
table. It is imported only when it is named, because each may need different libraries. When all of them run,
each has its own process: none affects the next, and the others go on if one fails.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

__all__ = ["BENCHMARKS", "MEASURING", "main", "module_of", "run_all"]

BENCHMARKS = {
    "hot-path": "what it costs to get a fresh token",
    "import": "how long `import tokensession` takes, next to its dependencies",
    "stores": "load, claim, commit and hand-over in each store, next to what the disk allows",
    "overhead": "requests per second through a session, next to raw aiohttp",
    "instructions": "the same, in counted instructions",
    "contention": "thousands of tasks find the token expired at once",
    "processes": "processes that share a store find the token expired at once",
    "scale": "commands and bytes at a server when a token expires, for up to a thousand clients",
    "steady": "latency under constant load, across fifty expiries",
    "cold-path": "what one refresh does: calls, moves between modules, tasks, threads, fsyncs",
    "cancelled": "the caller that started the refresh is cancelled, others wait",
    "revoked": "the server revokes the token, and a hundred requests get a 401 at once",
    "outage": "the token endpoint is down, and ten thousand callers or sixteen processes ask",
    "tenants": "a hundred thousand tokens in one process: memory and look-up",
    "torture": "kill, stop and confuse real processes that share a token, and log what happens",
}
"""In the order in which they run and are on the page."""

MEASURING = tuple(name for name in BENCHMARKS if name != "torture")
"""Those that run when you give no name. Torture runs as long as you like, so it runs by name only."""

_MODULES = {"import": "imports"}  # `import` cannot be the name of a module
_USAGE = 2  # exit status


def main(arguments: list[str]) -> int:
    """Run what the arguments name, or everything. Returns the exit status."""
    match arguments:
        case [] | ["--quick"]:
            return run_all(quick=bool(arguments))
        case ["-h" | "--help" | "--list"]:
            print(_listing())
            return 0
        case ["plots"]:
            return _draw()
        case [name, *options] if name.replace("_", "-") in (*BENCHMARKS, "versus"):
            try:
                module = import_module(module_of(name))
            except ModuleNotFoundError as missing:
                print(f"{name} needs {missing.name}: pip install -e '.[bench]'", file=sys.stderr)
                return _USAGE
            status: int = module.main(options)
            return status
    print(_listing(), file=sys.stderr)
    return _USAGE


def module_of(name: str) -> str:
    """The module of the benchmark with this name."""
    return f"benchmarks.{_MODULES.get(name, name.replace('-', '_'))}"


def _listing() -> str:
    width = max(map(len, BENCHMARKS))
    lines = [f"  {name:<{width}}  {what}" for name, what in BENCHMARKS.items()]
    return "\n".join(
        [
            "usage: python -m benchmarks [--quick]           all but torture",
            "       python -m benchmarks NAME [options]      one; for its options: NAME --help",
            "       python -m benchmarks plots               plots and page, from the saved figures",
            "       python -m benchmarks versus --base DIR   this checkout next to another one",
            "",
            *lines,
        ]
    )


def _in_own_process(name: str, options: Sequence[str]) -> int:
    command = [sys.executable, "-m", "benchmarks", name, *options]
    return subprocess.run(command, check=False).returncode


def _draw() -> int:
    from .page import write

    _say(f"wrote {write()}")
    try:
        from .plots import draw

        for plot in draw():
            _say(f"drew {plot}")
    except ModuleNotFoundError as missing:
        if missing.name != "matplotlib":
            raise
        _say("matplotlib is not installed (pip install -e '.[bench]'): the plots are not redrawn.")
        return 1
    return 0


def run_all(
    *,
    quick: bool = False,
    run: Callable[[str, Sequence[str]], int] = _in_own_process,
    draw: Callable[[], int] = _draw,
) -> int:
    """Run all that measure, one after the other, and draw. Returns 1 if anything failed."""
    from .harness import environment

    _print_environment(environment.environment())
    if not quick and find_spec("matplotlib") is None:
        _say("matplotlib is not installed (pip install -e '.[bench]'): no plots will be drawn.")
    failed = []
    for number, name in enumerate(MEASURING, 1):
        _say(f"[{number}/{len(MEASURING)}] {name}: {BENCHMARKS[name]}")
        began = time.monotonic()
        status = run(name, ["--quick"] if quick else [])
        took = f"after {time.monotonic() - began:.0f} s"
        _say(f"{name}: done {took}" if status == 0 else f"{name}: FAILED {took}, exit status {status}")
        if status != 0:
            failed.append(name)
    drawn = 0 if quick else draw()
    if failed:
        _say(f"failed: {', '.join(failed)}")
    return 1 if failed or drawn else 0


def _print_environment(found: dict[str, object]) -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{library} {version}" for library, version in value.items())
        print(f"{name}: {value}")
    sys.stdout.flush()  # before the first benchmark prints


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
