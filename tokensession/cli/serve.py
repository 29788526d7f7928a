"""`tokensession serve`: one test server."""

from __future__ import annotations

import click
from anyio import open_signal_receiver

from ..testing.servers import OtoServer, PriavaServer, TokenServer
from .run_until_signal import SIGNALS

__all__ = ["run"]


async def run(provider: str, port: int, lifetime: int) -> None:
    """Serve until Ctrl-C or another signal. Prints the address and fake credentials.

    Raises `OSError` if the port is taken.
    """
    server: TokenServer
    if provider == "oto":
        server = OtoServer(port=port, lifetime=lifetime)
    else:
        server = PriavaServer(port=port, lifetime=lifetime)
    with open_signal_receiver(*SIGNALS) as signals:
        async with server:
            click.echo(_introduction(provider, server))
            await anext(aiter(signals))
    stats = server.stats
    click.echo(
        f"Stopped after {stats.requests} requests and {stats.token_requests} token requests "
        f"({stats.invalid_requests} invalid, {stats.reuse_detections} reuse detections)."
    )


def _introduction(provider: str, server: TokenServer) -> str:
    arguments = ",\n".join(f"    {name}={value!r}" for name, value in server.credentials.items())
    note = (
        "\nThe code works once, so keep the token in a store.\n"
        "After a restart the server knows none of the old tokens: delete that store (tokens.db) then."
    )
    return (
        f"A test server for {provider.capitalize()} at {server.base_url}, "
        f"access tokens live {server.lifetime} s. Ctrl-C stops it.\n\n"
        f"from tokensession.providers import {provider.capitalize()}\n\n"
        f"provider = {provider.capitalize()}(\n{arguments},\n)\n" + (note if provider == "priava" else "")
    )
