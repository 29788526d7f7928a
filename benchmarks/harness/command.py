"""`python -m benchmarks NAME [options]`: what all these commands share."""

from __future__ import annotations

from argparse import ArgumentParser

from .results import Result

__all__ = ["finish", "parser"]


def parser(name: str, doc: str | None, *, only: bool = False) -> ArgumentParser:
    """A parser with the options that every benchmark has. `only`: contestants can be chosen."""
    made = ArgumentParser(f"python -m benchmarks {name}", description=(doc or "").partition("\n")[0])
    made.add_argument("--quick", action="store_true", help="a small trial, not saved")
    if only:
        made.add_argument(
            "--only",
            nargs="+",
            default=[],
            metavar="NAME",
            help="contestants whose names contain one of these",
        )
    return made


def finish(result: Result, arguments: list[str], *, quick: bool) -> None:
    """Print the result, and save it with its command line, unless it is a trial."""
    result.command = " ".join(["python -m benchmarks", result.name, *arguments])
    result.show()
    if not quick:
        result.save()
