"""The command and its options."""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import anyio

from tokensession import ConfigurationError, TokenSessionError
from tokensession.cli.run_until_signal import until_signal
from tokensession.stores import MemoryStore, Record, open_store

from ..servers import REMOTE, NotInstalled, ServerProcess, local_url, remote
from .plan import KEY, LEEWAY, Plan
from .report import Report, as_json, show
from .supervisor import Supervisor

__all__ = ["main"]


_LEASE = 3.0
"""Seconds, on servers of ours. The default is longer than most stops and restarts here, so little would be
proved."""
_RESTARTED = ("redis", "valkey", "postgres")
"""Those that `--restart-store` alone means."""


def main(arguments: list[str]) -> int:
    """Exit status 1 if a promise was broken, 2 if a server is not installed."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.restart_store and (given.store or not set(given.stores or ()) <= set(REMOTE)):
        parser.error("--restart-store needs servers of its own: " + ", ".join(REMOTE))
    names = given.stores or (_RESTARTED if given.restart_store else ["sqlite"])
    status = 0
    for name in names:
        if len(names) > 1:
            print(f"\n{name}", flush=True)
        try:
            report = _tortured(name, given)
        except (TokenSessionError, NotInstalled) as error:  # about the store in the options
            parser.exit(2, f"{parser.prog}: error: {error}\n")
        found = report.findings()
        show(report, found)
        if given.json is not None:
            _numbered(given.json, name, names).write_text(as_json(report, found) + "\n")
        if given.event_log is not None:
            _numbered(given.event_log, name, names).write_text("\n".join(report.lines) + "\n")
        if found.broken:
            status = 1
    return status


def _numbered(path: Path, name: str, names: Sequence[str]) -> Path:
    """The file for this store, if there are several."""
    return path if len(names) == 1 else path.with_stem(f"{path.stem}-{name}")


def _tortured(name: str, given: argparse.Namespace) -> Report:
    """One run, over a store of this name unless there is a URL in the options."""
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    with contextlib.ExitStack() as stack:
        url, server = given.store, None
        if url is None and name in REMOTE:
            found = stack.enter_context(remote(name))
            url, server = found.url(lease=_LEASE), found.server
        elif url is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tokensession-torture-"))
            url = local_url(name, directory)
        plan = Plan(
            seconds=60 * given.minutes,
            processes=given.processes,
            store=url,
            seed=seed,
            rate=given.rate,
            skew=given.skew,
            leeway=0.0 if given.strict else LEEWAY,
            lease=_lease(url),
            restart_store=given.restart_store,
        )
        return anyio.run(until_signal, _run(plan, server if given.restart_store else None))


def _lease(url: str) -> float:
    """The length of a claim's lease, or 0 if a claim ends with its process."""
    parts = urlsplit(url)
    if parts.scheme.removeprefix("encrypted+") in ("", "file", "memory", "sqlite"):
        return 0.0
    return float(parse_qs(parts.query).get("lease", ["10"])[0])


async def _run(plan: Plan, server: ServerProcess | None) -> Report:
    async with contextlib.aclosing(open_store(plan.store)) as store:
        if isinstance(store, MemoryStore):
            raise ConfigurationError("Processes cannot share memory.", todo="Use a file: or sqlite: URL.")
        found = await store.load(KEY)
        claim = await store.claim(KEY, seen=found.version if found else None, timeout=1)
        if not isinstance(claim, Record):  # the store can be written; better to know before workers start
            await claim.abandon()
        return await Supervisor(plan, store, server).run()


def _above(least: float, kind: type[float]) -> Callable[[str], float]:
    """A finite number above `least`, for the parser."""

    def number(text: str) -> float:
        value = kind(text)
        if not least < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be a number above {least:g}, not {text!r}")
        return value

    number.__name__ = kind.__name__
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks torture",
        description="Kill, stop and confuse real processes that share a token, and log what happens.",
    )
    parser.add_argument(
        "--minutes", type=_above(0.0, float), default=1.0, help="how long; may be a fraction (1)"
    )
    parser.add_argument("--processes", type=_above(0, int), default=8, help="worker processes (8)")
    parser.add_argument("--store", help="URL of a store")
    parser.add_argument(
        "--stores",
        nargs="+",
        choices=("file", "sqlite", *REMOTE),
        help="one after another, in temporary directories, on servers of their own (sqlite)",
    )
    parser.add_argument(
        "--restart-store",
        action="store_true",
        help="kill the store's server, and start it again (redis, valkey and postgres)",
    )
    parser.add_argument("--seed", type=int, help="of everything that is done to them (drawn, and printed)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts to a file")
    parser.add_argument("--event-log", type=Path, metavar="FILE", help="write all events to a file")
    parser.add_argument(
        "--rate", type=_above(0.0, float), default=240, help="API requests a second, in total (240)"
    )
    parser.add_argument("--skew", type=float, default=3600, help="how wrong the wall clocks are, in s (3600)")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="the provider accepts no refresh token twice: a response that a fault loses costs a sign-in",
    )
    return parser
