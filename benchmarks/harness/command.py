"""`python -m benchmarks NAME [options]`: what the commands of all benchmarks have in common."""

from __future__ import annotations

from argparse import ArgumentParser

from .results import Result

__all__ = ["finish", "parser"]


def parser(name: str, doc: str | None, *, only: bool = False) -> ArgumentParser:
    """The options that every benchmark has; `only`: its contestants can be chosen."""
    made = ArgumentParser(f"python -m benchmarks {name}", description=(doc or "").partition("\n")[0])
    made.add_argument("--quick", action="store_true", help="a small trial; nothing is saved")
    if only:
        made.add_argument(
            "--only", nargs="+", default=[], metavar="NAME", help="contestants, by parts of names"
        )
    return made


def finish(result: Result, arguments: list[str], *, quick: bool) -> None:
    """Show the result, and save it with what was typed, unless it comes from a trial."""
    result.command = " ".join(["python -m benchmarks", result.name, *arguments])
    result.show()
    if not quick:
        result.save()
