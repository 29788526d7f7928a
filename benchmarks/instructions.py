"""What a session costs on top of raw aiohttp, in instructions: `python -m benchmarks instructions`.

The same GETs as in `overhead`, by the same three contestants, counted by callgrind: the count hardly
changes, whatever else the machine does. It is not a time: an instruction may take long, and those of the
kernel (sockets, polling) are not counted. So a middleware's share is larger here than on a clock over a real
network.

Each runs in its own process under valgrind, with its server in another process outside of it. Counted are
some hundreds of GETs, after as many that are not, with the garbage collector running as in any program.

Needs valgrind; without it, nothing is measured.

`series`: {"unit": "instructions per GET", "names": [...], "sequential": [...], "100 tasks": [...]}.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from .harness import command
from .harness.results import Goal, Result, progress
from .harness.server import Server
from .overhead import CLOSE
from .peers import Peer, RawAiohttp, Tokensession

__all__ = ["main"]

GOAL = 1.00
_NOISE = 0.003  # of a count that is repeated
_ROOT = Path(__file__).parents[1]
_COLLECTED = re.compile(r"Collected : (\d+)")
_TASKS = {"sequential": 1, "100 tasks": 100}
_GETS = 1200  # of each; as many before them are not counted


def _switch(counting: bool) -> None:
    command = ["callgrind_control", f"--instr={'on' if counting else 'off'}", str(os.getpid())]
    subprocess.run(command, check=True, capture_output=True)


async def _gets(peer: Peer, tasks: int, gets: int) -> None:
    async def some() -> None:
        for _ in range(gets // tasks):
            if await peer.get("/ping") != 200:
                raise RuntimeError(f"{peer.name}: the API did not answer 200.")

    await asyncio.gather(*(some() for _ in range(tasks)))


async def count(name: str, tasks: int, gets: int) -> None:
    """Count this many GETs. Runs in a process under callgrind."""
    make = next(peer for peer in CLOSE if peer.name == name)
    async with Server() as server, AsyncExitStack() as stack:
        peer = await stack.enter_async_context(make(server.credentials))
        await peer.prime()
        await _gets(peer, tasks, gets)
        gc.collect()
        _switch(True)
        await _gets(peer, tasks, gets)
        _switch(False)


def _counted(name: str, tasks: int, gets: int) -> float:
    """Instructions per GET."""
    with tempfile.TemporaryDirectory() as directory:
        out = f"--callgrind-out-file={directory}/callgrind.out"
        program = [sys.executable, "-m", "benchmarks.instructions", name, str(tasks), str(gets)]
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--instr-atstart=no", out, *program],
            cwd=_ROOT,
            env=os.environ | {"PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
    found = _COLLECTED.search(done.stderr)
    if found is None:
        raise RuntimeError(f"callgrind counted nothing: {done.stderr[-500:]}")
    return int(found[1]) / gets


def measure(gets: int, ways: tuple[str, ...]) -> Result:
    """All contestants."""
    result = Result("instructions")
    names = [peer.name for peer in CLOSE]
    result.series = {"unit": "instructions per GET", "names": names}
    show, done = progress("instructions"), 0
    for how in ways:
        counts: dict[str, float] = {}
        for name in names:
            counts[name] = _counted(name, _TASKS[how], gets)
            done += 1
            show(done, len(names) * len(ways))
        raw = counts[RawAiohttp.name]
        rows: list[dict[str, Any]] = [
            {"client": name, "how": how, "instructions per GET": found, "times raw": found / raw}
            for name, found in counts.items()
        ]
        result.rows += rows
        result.series[how] = list(counts.values())
        ours = counts[Tokensession.name] / raw
        must = f"<= {GOAL:.2f} times raw aiohttp's, give or take {_NOISE}"
        result.goals.append(Goal(f"instructions, {how}", must, f"{ours:.3f}", ours <= GOAL + _NOISE))
    result.notes.append(
        f"Of {gets} GETs, after as many that were not counted; without the kernel's instructions."
    )
    return result


def main(arguments: list[str]) -> int:
    """Count, print, save."""
    parser = command.parser("instructions", __doc__)
    parser.add_argument("--gets", type=int, default=_GETS, help="of each (default: %(default)s)")
    options = parser.parse_args(arguments)
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        print("instructions: valgrind is not installed, nothing is counted.")
        return 0
    gets, ways = (20, ("sequential",)) if options.quick else (options.gets, tuple(_TASKS))
    result = measure(gets, ways)
    command.finish(result, arguments, quick=options.quick)
    return 0


if __name__ == "__main__":
    asyncio.run(count(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
