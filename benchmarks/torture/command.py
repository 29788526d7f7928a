"""The command and its options."""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio

from tokensession import ConfigurationError, TokenSessionError
from tokensession.cli.run_until_signal import until_signal
from tokensession.stores import MemoryStore, Record, open_store

from .plan import KEY, LEEWAY, Plan
from .report import Report, as_json, show
from .supervisor import Supervisor

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Exit status 1 if a promise was broken."""
    parser = _parser()
    given = parser.parse_args(arguments)
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tokensession-torture-") as directory:
        plan = Plan(
            seconds=60 * given.minutes,
            processes=given.processes,
            store=given.store or f"sqlite:///{directory}/tokens.db",
            seed=seed,
            rate=given.rate,
            skew=given.skew,
            leeway=0.0 if given.strict else LEEWAY,
        )
        try:
            report = anyio.run(until_signal, _run(plan))
        except TokenSessionError as error:  # about the store in the options
            parser.exit(2, f"{parser.prog}: error: {error}\n")
    found = report.findings()
    show(report, found)
    if given.json is not None:
        given.json.write_text(as_json(report, found) + "\n")
    if given.event_log is not None:
        given.event_log.write_text("\n".join(report.lines) + "\n")
    return 1 if found.broken else 0


async def _run(plan: Plan) -> Report:
    async with contextlib.aclosing(open_store(plan.store)) as store:
        if isinstance(store, MemoryStore):
            raise ConfigurationError("Processes cannot share memory.", todo="Use a file: or sqlite: URL.")
        found = await store.load(KEY)
        claim = await store.claim(KEY, seen=found.version if found else None, timeout=1)
        if not isinstance(claim, Record):  # the store can be written; better to know before workers start
            await claim.abandon()
        return await Supervisor(plan, store).run()


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
    parser.add_argument("--store", help="URL of a store (SQLite in a temporary directory)")
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
