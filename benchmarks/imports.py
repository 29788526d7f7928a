"""How long `import tokensession` takes: `python -m benchmarks import`.

Each figure comes from a fresh interpreter, in which the import is timed from inside, so the interpreter's own
start is not included. The base is the import of what tokensession always needs (aiohttp, anyio and msgpack).
They are taken in turn, round by round, with all bytecode in the cache. What a refresh needs is imported when
the first source is made. SQLite's driver, a provider, the servers for tests and the command line are imported
on first use.

The notes have what the modules of tokensession themselves take, by `-X importtime`, and how much of it is
making dataclasses, whose methods the interpreter compiles at each import.

`series`: {"unit": "ms", "names": [...], "median": [...], "q1": [...], "q3": [...], "modules": {name: ms}}.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable

from .harness import command
from .harness.results import Goal, Result, progress, say
from .harness.rounds import interleaved, ratios, spread

__all__ = ["main", "measure"]

OURS, BASE = "tokensession", "aiohttp, anyio, msgpack"
GOAL = 1.10
_STATEMENTS = {
    OURS: "import tokensession",
    BASE: "import aiohttp, anyio, msgpack",
    "aiohttp": "import aiohttp",
    "tokensession with SQLiteStore": "import tokensession\nfrom tokensession.stores import SQLiteStore",
    "tokensession and a first session": """
import tokensession
from tokensession.providers import OAuth2
provider = OAuth2(token_url="https://id.example.com/token", client_id="c", client_secret="s", code="c")
tokensession.AuthedSession(provider, store="memory:")
""",
}
_TIMED = """
import time
start = time.perf_counter()
{statement}
print((time.perf_counter() - start) * 1000)
"""


_DATACLASSES = """
import aiohttp, anyio, msgpack
import dataclasses, time
made, make = [], dataclasses._process_class
def timed(*arguments, **options):
    start = time.perf_counter()
    try:
        return make(*arguments, **options)
    finally:
        made.append((time.perf_counter() - start) * 1000)
dataclasses._process_class = timed
start = time.perf_counter()
import tokensession
print((time.perf_counter() - start) * 1000, sum(made), len(made))
"""


def _run(program: list[str]) -> subprocess.CompletedProcess[str]:
    # Without bytecode files, ours would be compiled at each import; the base's come with its wheels.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(program, check=True, capture_output=True, text=True, env=env)


def _fresh(statement: str) -> Callable[[], Awaitable[float]]:
    """A function for the milliseconds that the statement takes in a new interpreter."""
    program = [sys.executable, "-c", _TIMED.format(statement=statement)]

    async def run() -> float:  # blocks: nothing else runs
        return float(_run(program).stdout)

    return run


def _parts(times: int) -> dict[str, float]:
    """The median time of each of our modules, in milliseconds, without what it imports."""
    found: dict[str, list[float]] = {}
    for _ in range(times):
        program = [sys.executable, "-X", "importtime", "-c", _STATEMENTS[OURS]]
        for line in _run(program).stderr.splitlines():
            own, _, name = (column.strip() for column in line.removeprefix("import time:").split("|"))
            if name.partition(".")[0] == "tokensession":
                found.setdefault(name, []).append(int(own) / 1000)
    return {name: statistics.median(each) for name, each in found.items()}


def _dataclasses(times: int) -> str:
    """How much of the import is making dataclasses."""
    runs = [_run([sys.executable, "-c", _DATACLASSES]).stdout.split() for _ in range(times)]
    whole, made = (statistics.median(float(run[place]) for run in runs) for place in (0, 1))
    return f"Of {whole:.1f} ms after the base, {made:.1f} are spent making {runs[0][2]} dataclasses."


async def measure(rounds: int) -> Result:
    """All imports in turn."""
    result = Result("import")
    contestants = {name: _fresh(statement) for name, statement in _STATEMENTS.items()}
    figures = await interleaved(contestants, rounds, progress=progress("import"))
    series: dict[str, list[float]] = {"median": [], "q1": [], "q3": []}
    for name, times in figures.items():
        took = spread(times)
        ratio = ratios(times, figures[BASE])
        result.rows.append({"import": name, "ms": took.as_json(), "times the base": ratio.as_json()})
        for key in series:
            series[key].append(getattr(took, key))
    found = ratios(figures[OURS], figures[BASE])
    result.goals.append(
        Goal(
            "import tokensession",
            f"at most {GOAL:.2f} times its eager dependencies",
            f"{found.median:.3f} ({found.q1:.3f}-{found.q3:.3f})",
            found.median <= GOAL,
        )
    )
    parts = _parts(max(1, rounds // 5))
    slowest = sorted(parts.items(), key=lambda part: -part[1])
    result.notes.append(
        f"Own modules, by -X importtime (which slows them down): {sum(parts.values()):.1f} ms in total; "
        + ", ".join(f"{name} {took:.2f}" for name, took in slowest[:8])
        + "."
    )
    result.notes.append(_dataclasses(max(1, rounds // 5)))
    result.notes.append(f"Median (quartiles) of {rounds} fresh interpreters each.")
    result.series = {"unit": "ms", "names": list(figures), **series, "modules": dict(sorted(parts.items()))}
    return result


def main(arguments: list[str]) -> int:
    """Measure, print, save."""
    parser = command.parser("import", __doc__)
    parser.add_argument("--rounds", type=int, default=25, help="default: %(default)s")
    options = parser.parse_args(arguments)
    say("import: a new interpreter for each figure")
    rounds = 2 if options.quick else options.rounds
    result = asyncio.run(measure(rounds))
    command.finish(result, arguments, quick=options.quick)
    return 0
