"""The programs of docs/how-to/use-the-token-elsewhere.md, each against a server that takes the token."""

from __future__ import annotations

import asyncio
import imaplib
import importlib
from pathlib import Path
from typing import Any

import pytest
from _pages import ROOT, blocks
from _password_servers import imap, kafka, postgres, speaking

from tokensession import ManagedSource
from tokensession.providers import OAuth2
from tokensession.testing import OAuth2Server

PAGE = ROOT / "docs" / "how-to" / "use-the-token-elsewhere.md"
PROGRAMS = {
    block.mark.removeprefix("needs: "): block for block in blocks(PAGE) if block.mark.startswith("needs: ")
}


def program(name: str) -> dict[str, Any]:
    """The names that a program of the page defines. Skips the test if its package is not installed."""
    pytest.importorskip(name)
    block, names = PROGRAMS[name], dict[str, Any]()
    source = "\n" * (block.line - 1) + block.text
    exec(compile(source, str(block.page), "exec", dont_inherit=True), names)
    return names


def source_of(server: OAuth2Server) -> ManagedSource:
    return ManagedSource(OAuth2(**server.credentials), store="memory:")


def test_every_program_of_the_page_has_a_test() -> None:
    assert set(PROGRAMS) == {"httpx", "asyncpg", "sqlalchemy", "grpc", "aiokafka", "imaplib"}


def test_httpx_sends_the_token_to_the_api_and_once_more_after_a_401() -> None:
    names = program("httpx")
    httpx = importlib.import_module("httpx")

    async def main() -> None:
        async with OAuth2Server() as server, OAuth2Server() as other, source_of(server) as source:
            async with httpx.AsyncClient(auth=names["BearerToken"](source)) as client:
                assert (await client.get(server.base_url + "/echo")).status_code == 200
                server.revoke_access_tokens()
                assert (await client.get(server.base_url + "/echo")).status_code == 200
                assert server.stats.token_requests == 2
                echoed = (await client.get(other.base_url + "/open/echo")).json()
                assert "Authorization" not in echoed["headers"]

    asyncio.run(main())


def test_asyncpg_logs_in_with_the_token_of_the_moment() -> None:
    names = program("asyncpg")

    async def main() -> None:
        async with (
            OAuth2Server() as server,
            source_of(server) as source,
            speaking(postgres) as (port, tokens),
        ):
            first = await source.token()
            for _ in range(2):
                connection = await names["connect"](
                    source, "me", host="127.0.0.1", port=port, database="db", ssl=False
                )
                connection.terminate()
                second = await source.refresh(first)
            assert tokens == [first.access_token, second.access_token]
            assert first.access_token != second.access_token

    asyncio.run(main())


def test_sqlalchemy_connects_with_the_token_in_a_thread_and_in_the_event_loop(tmp_path: Path) -> None:
    names = program("sqlalchemy")
    sqlalchemy = importlib.import_module("sqlalchemy")
    passwords: list[str] = []

    def take(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
        passwords.append(parameters.pop("password"))  # SQLite knows none

    async def main() -> None:
        async with OAuth2Server() as server, source_of(server) as source:
            await source.check()
            engine = names["engine_of"](
                f"sqlite:///{tmp_path}/db", source, poolclass=sqlalchemy.pool.NullPool
            )
            sqlalchemy.event.listen(engine, "do_connect", take)
            with pytest.raises(RuntimeError, match="Await source"):
                engine.connect()  # in the event loop's thread, before there is a token
            (await asyncio.to_thread(engine.connect)).close()
            engine.connect().close()
            assert passwords == [(await source.token()).access_token] * 2
            assert server.stats.token_requests == 1

    asyncio.run(main())


def test_grpc_calls_have_the_token_in_their_metadata(tmp_path: Path) -> None:
    names = program("grpc")
    grpc: Any = importlib.import_module("grpc")
    seen: list[str] = []

    async def echo(request: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata())["authorization"])
        return request

    async def main() -> None:
        service = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(echo)
        service.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("echo.Echo", {"Say": handler}),)
        )
        address = f"unix:{tmp_path}/grpc"
        local = grpc.LocalConnectionType.UDS
        service.add_secure_port(address, grpc.local_server_credentials(local))
        await service.start()
        async with OAuth2Server() as server, source_of(server) as source:
            await source.check()
            plain = grpc.local_channel_credentials(local)
            plugin = grpc.metadata_call_credentials(names["BearerCredentials"](source))
            composed = grpc.composite_channel_credentials(plain, plugin)
            async with grpc.aio.secure_channel(address, composed) as channel:  # asks first, in a thread
                assert await channel.unary_unary("/echo.Echo/Say")(b"hi", timeout=30) == b"hi"
            interceptors = [names["BearerInterceptor"](source)]
            async with grpc.aio.secure_channel(address, plain, interceptors=interceptors) as channel:
                assert await channel.unary_unary("/echo.Echo/Say")(b"hi", timeout=30) == b"hi"
            assert seen == [(await source.token()).authorization] * 2
            assert server.stats.token_requests == 1
        await service.stop(None)

    asyncio.run(main())


def test_aiokafka_logs_in_with_the_token_of_the_moment() -> None:
    names = program("aiokafka")
    create_conn = importlib.import_module("aiokafka.conn").create_conn

    async def main() -> None:
        async with OAuth2Server() as server, source_of(server) as source, speaking(kafka) as (port, tokens):
            for _ in range(2):
                connection = await create_conn(
                    "127.0.0.1",
                    port,
                    security_protocol="SASL_PLAINTEXT",  # the test's broker has no certificate
                    sasl_mechanism="OAUTHBEARER",
                    sasl_oauth_token_provider=names["KafkaTokens"](source),
                )
                connection.close()
            assert tokens == [(await source.token()).access_token] * 2

    asyncio.run(main())


def test_imap_logs_in_with_the_token() -> None:
    names = program("imaplib")

    async def main() -> None:
        async with OAuth2Server() as server, source_of(server) as source, speaking(imap) as (port, tokens):
            await source.check()
            mail = await asyncio.to_thread(imaplib.IMAP4, "127.0.0.1", port)
            await names["log_in"](mail, "me@example.com", source)
            assert tokens == [(await source.token()).access_token]
            await asyncio.to_thread(mail.logout)

    asyncio.run(main())
