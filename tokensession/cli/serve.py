"""`tokensession serve`: one test server, alone."""

from __future__ import annotations

import asyncio
import contextlib

import click

from ..testing.servers import OtoServer, PriavaServer, TokenServer

__all__ = ["run"]


async def run(provider: str, *, port: int, lifetime: int) -> None:
    """Serve until cancelled. Prints the address and what to sign in with, all of it fake.

    Raises OSError if the port is taken.
    """
    server: TokenServer
    if provider == "oto":
        server = OtoServer(port=port, lifetime=lifetime)
    else:
        server = PriavaServer(port=port, lifetime=lifetime)
    async with server:
        click.echo(_introduction(provider, server))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    counted = server.stats
    click.echo(
        f"Stopped after {counted.requests} requests and {counted.token_requests} token requests "
        f"({counted.invalid_requests} refused, {counted.reuse_detections} reuse detections)."
    )


def _introduction(provider: str, server: TokenServer) -> str:
    arguments = ",\n".join(f"    {name}={value!r}" for name, value in server.credentials.items())
    note = (
        "\nThe code is good once: keep the token in a store.\n"
        "A server that is started anew knows none of the old tokens: delete that store (tokens.db) then."
    )
    return (
        f"A test server for {provider.capitalize()} at {server.base_url}, "
        f"access tokens live {server.lifetime} s. Ctrl-C stops it.\n\n"
        f"from tokensession.providers import {provider.capitalize()}\n\n"
        f"provider = {provider.capitalize()}(\n{arguments},\n)\n" + (note if provider == "priava" else "")
    )
