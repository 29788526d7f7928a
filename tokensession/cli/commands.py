"""The commands and their options. `demo` and `serve` do the work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import anyio
import click

from ..errors import ConfigurationError, StoreError
from ..stores._sweep import StoreReport
from ..stores.urls import open_store
from ..upkeep import copy_store as copy_store_
from ..upkeep import sign_out as sign_out_
from . import demo as demo_
from . import serve as serve_
from .child_process import ChildFailed
from .display import Display, LiveDisplay, PlainDisplay
from .report import Plan, as_json, problems
from .run_until_signal import until_signal

__all__ = ["cli"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="tokensession")
def cli() -> None:
    """Copies stores, signs keys out, and has a demo and test servers, for the library tokensession."""


def _lifetime(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    shown = "The lifetime of access tokens, in seconds."
    return click.option("--lifetime", type=click.IntRange(1), default=default, help=shown)


@cli.command()
@click.option("--json", "json_", is_flag=True, help="Print one JSON document and nothing else.")
@click.option("--processes", type=click.IntRange(1, 64), default=4, help="Client processes.")
@click.option(
    "--tasks",
    type=click.IntRange(1, 10_000),
    default=100,
    help="Tasks for each provider in each process.",
)
@click.option(
    "--expiries",
    type=click.IntRange(1, 10_000),
    default=6,
    help="How many expiries each provider must see. The first token counts as one.",
)
@_lifetime(2)
def demo(json_: bool, processes: int, tasks: int, expiries: int, lifetime: int) -> None:
    """Show that many processes and tasks need one token request per expiry.

    Starts Oto and Priava test servers whose tokens soon expire, and sends requests to them from many
    processes that share one SQLite store. Then does the same with every task refreshing for itself. Exits
    with status 1 if a request through tokensession failed, or an expiry took more than one token request.
    """
    plan = Plan(processes=processes, tasks=tasks, expiries=expiries, lifetime=lifetime)
    try:
        report = anyio.run(until_signal, demo_.run(plan, _display(json_)))
    except ChildFailed as error:
        raise click.ClickException(str(error)) from None
    if json_:
        click.echo(as_json(report))
    raise SystemExit(1 if problems(report) else 0)


def _display(json_: bool) -> Display:
    if json_:
        return Display()
    return LiveDisplay() if sys.stdout is not None and sys.stdout.isatty() else PlainDisplay()


@cli.command()
@click.argument("provider", type=click.Choice(["oauth2", "oto", "priava"]))
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=False,
    help="0 takes a free port.  [default: 0]",
)
@_lifetime(3600)
def serve(provider: str, port: int, lifetime: int) -> None:
    """Run a test server until Ctrl-C or SIGTERM."""
    anyio.run(serve_.run, provider, port, lifetime)


def _key(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    if not text:  # such as "$KEY", and KEY is not set
        raise click.BadParameter("It is empty.")
    return text


def _store_url(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    # Other users of the machine see the command line, so a URL with a password comes from the environment.
    if not text.startswith("env:"):
        return text
    name = text.removeprefix("env:")
    url = os.environ.get(name)
    if not url:
        raise click.BadParameter(f"The environment variable {name} is not set.")
    return url


@cli.command("sign-out")
@click.argument("key", callback=_key)
@click.option(
    "--store",
    required=True,
    callback=_store_url,
    help="The URL of the store, such as sqlite:///tokens.db. env:NAME takes it from an environment variable.",
)
def sign_out(key: str, store: str) -> None:
    """Sign KEY out, for all processes that share the store.

    They stop at the latest when their access token is due. The provider is not told: revoke the tokens there
    too if they may have leaked. Exits with status 1 if there is nothing to sign out.
    """
    try:
        signed_out = anyio.run(_sign_out, store, key)
    except (ConfigurationError, StoreError) as error:
        raise click.ClickException(str(error)) from None
    if not signed_out:
        raise click.ClickException(f"Nothing is signed in under {key!r} in this store.")
    click.echo(f"{key} is signed out.")


async def _sign_out(url: str, key: str) -> bool:
    store = open_store(url)
    try:
        return await sign_out_(store, key)
    finally:
        await store.aclose()


@cli.command("copy-store")
@click.argument("source", callback=_store_url)
@click.argument("target", callback=_store_url)
def copy_store(source: str, target: str) -> None:
    """Copy every record of the store at the URL SOURCE into the one at TARGET.

    Each is a URL, or env:NAME for an environment variable that has it: other users see the command line.
    Both stores may be in use, and nothing newer is overwritten. Only one of the two may refresh
    afterwards. Exits with status 1 if a record was skipped, or if there is none.
    """
    if source == target:
        raise click.UsageError("SOURCE and TARGET are the same store.")
    try:
        report = anyio.run(_copy_store, source, target)
    except (ConfigurationError, StoreError) as error:
        raise click.ClickException(str(error)) from None
    if not report.total:
        raise click.ClickException("There are no records in SOURCE, so nothing was copied. Check its URL.")
    for key, reason in report.skipped.items():
        click.echo(f"Skipped {key}: {reason}", err=True)
    click.echo(
        f"{report.total} records: {len(report.done)} copied, {len(report.unchanged)} there already, "
        f"{len(report.skipped)} skipped."
    )
    raise SystemExit(1 if report.skipped else 0)


async def _copy_store(source: str, target: str) -> StoreReport:
    stores = [open_store(url) for url in (source, target)]
    try:
        return await copy_store_(*stores)
    finally:
        for store in stores:
            await store.aclose()
