"""`tokensession serve`: one test server."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable

import click
from anyio import open_signal_receiver

from ..testing.servers import OAuth2Server, OtoServer, PriavaServer, TokenServer
from ..testing.servers.base import REQUEST_LOG
from .run_until_signal import SIGNALS

__all__ = ["run"]


_SERVERS: dict[str, Callable[..., TokenServer]] = {
    "oauth2": OAuth2Server,
    "oto": OtoServer,
    "priava": PriavaServer,
}


async def run(provider: str, port: int, lifetime: int) -> None:
    """Serve until Ctrl-C or another signal. Prints the address, fake credentials, and each request.

    Raises `ClickException` if the port is taken.
    """
    server: TokenServer = _SERVERS[provider](port=port, lifetime=lifetime)
    with open_signal_receiver(*SIGNALS) as signals:
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(server)
            except OSError as error:
                raise click.ClickException(
                    f"Cannot listen on port {port}: {error.strerror or error}."
                ) from None
            click.echo(_introduction(provider, server))
            _print_requests()
            await anext(aiter(signals))
    stats = server.stats
    click.echo(
        f"Stopped after {_count(stats.requests, 'request')} and "
        f"{_count(stats.token_requests, 'token request')} "
        f"({stats.rejections} rejected, {stats.invalid_requests} invalid, "
        f"{stats.reuse_detections} reuse detections)."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _print_requests() -> None:
    logging.raiseExceptions = False  # if no one reads the output any more, go on serving
    printer = logging.StreamHandler(sys.stdout)
    printer.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    REQUEST_LOG.handlers, REQUEST_LOG.propagate = [printer], False
    REQUEST_LOG.setLevel(logging.INFO)


def _introduction(provider: str, server: TokenServer) -> str:
    arguments = ",\n".join(f"    {name}={value!r}" for name, value in server.credentials.items())
    note = (
        "\nThe code works once, so keep the token in a store.\n"
        "After a restart the server knows none of the old tokens: delete that store (tokens.db) then."
    )
    name = type(server).__name__.removesuffix("Server")
    return (
        f"A test server for {name} at {server.base_url}, "
        f"access tokens live {server.lifetime} s. Ctrl-C stops it.\n\n"
        f"from tokensession.providers import {name}\n\n"
        f"provider = {name}(\n{arguments},\n)\n" + (note if provider == "priava" else "")
    )
