"""`tokensession copy-store`: what it prints, and when its status is 1."""

from __future__ import annotations

import asyncio
from pathlib import Path

from click.testing import CliRunner

from tokensession._refresh.state import Now, TokenState, encode
from tokensession.cli.commands import cli
from tokensession.stores import SQLiteStore


def test_copy_store_copies_and_says_what_it_skipped(tmp_path: Path) -> None:
    """A URL that cannot be opened is an error that does not show it."""

    async def fill() -> None:
        async with SQLiteStore(tmp_path / "old.db") as store:
            await store.put("good", encode(TokenState(number=1), Now(0.0, 0.0)))
            await store.put("strange", b"\xc1")

    def run(*arguments: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(cli, ["copy-store", *arguments])
        return done.exit_code, done.stdout, done.stderr

    asyncio.run(fill())
    old, new = (f"sqlite:///{tmp_path}/{name}.db" for name in ("old", "new"))
    status, out, err = run(old, new)
    assert (status, out) == (1, "2 records: 1 copied, 0 there already, 1 skipped.\n")
    assert err.startswith("Skipped strange: The stored record is not msgpack")
    assert run(new, old) == (0, "1 records: 0 copied, 1 there already, 0 skipped.\n", "")
    status, _, err = run(old, "mysql://user:s3cr3t@host")
    assert status == 1
    assert err.startswith("Error: ")
    assert "s3cr3t" not in err


def test_a_variable_keeps_the_password_of_a_store_off_the_command_line(tmp_path: Path) -> None:
    """Other users of the machine can read the arguments of every process."""

    async def fill() -> None:
        async with SQLiteStore(tmp_path / "tokens.db") as store:
            await store.put("shop", encode(TokenState(number=1), Now(0.0, 0.0)))

    def run(*arguments: str) -> tuple[int, str, str]:
        url = f"sqlite:///{tmp_path}/tokens.db"
        done = CliRunner().invoke(cli, arguments, env={"OLD": url, "NEW": url + ".new", "EMPTY": ""})
        return done.exit_code, done.stdout, done.stderr

    asyncio.run(fill())
    copied = run("copy-store", "env:OLD", "env:NEW")
    assert copied == (0, "1 records: 1 copied, 0 there already, 0 skipped.\n", "")
    status, _, err = run("sign-out", "other", "--store", "env:NEW")
    assert status == 1
    assert "Nothing is signed in under 'other'" in err
    for name in ("EMPTY", "NOT_SET"):
        for arguments in (
            ("copy-store", "env:OLD", f"env:{name}"),
            ("sign-out", "shop", "--store", f"env:{name}"),
        ):
            status, _, err = run(*arguments)
            assert status == 2
            assert f"The environment variable {name} is not set." in err


def test_a_misspelled_source_is_an_error_and_makes_no_store(tmp_path: Path) -> None:
    def run(*names: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["copy-store", *(f"sqlite:///{tmp_path}/{name}" for name in names)])
        return done.exit_code, done.stderr

    for source in ("misspelled.db", "misspelled/tokens.db"):
        status, err = run(source, "new.db")
        assert (status, err[:35]) == (1, "Error: There are no records in SOUR")
    status, err = run("tokens.db", "tokens.db")
    assert status == 2
    assert "are the same store" in err
    assert list(tmp_path.iterdir()) == []
