"""README and docs, executed: what they print is what happens.

Each Python block of the README is a program: it runs as a file of its own, in an interpreter of its own.
Those of another page run in order and share their names, as a reader would paste them into
`python -m asyncio`: `await` and `async with` may stand at the top level. All run in an empty directory,
with the environment of somebody who has an account at two providers, which are our strict test servers.
A `text` block below a `<!-- prints -->` comment is what the block before it prints, where "…" stands for
anything.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pages import PAGES, ROOT, Block, blocks, named

from tokensession.cli.commands import cli
from tokensession.testing import OtoServer, PriavaServer, TokenServer

LANGUAGES = {"python", "sh", "text", "toml"}
README = ROOT / "README.md"


class Elsewhere:
    """An event loop in a thread of its own, for servers that blocks talk to from theirs."""

    def __enter__(self) -> Elsewhere:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TokenServer, TokenServer]]:
    """Oto and Priava, running; their credentials in the environment; an empty directory to be in."""
    monkeypatch.chdir(tmp_path)
    started: list[TokenServer] = [OtoServer(), PriavaServer()]
    with Elsewhere() as elsewhere:
        try:
            for prefix, server in zip(("OTO", "PRIAVA"), started, strict=True):
                elsewhere.run(server.start())
                for name, value in server.credentials.items():
                    monkeypatch.setenv(f"{prefix}_{name.upper()}", value)
            monkeypatch.setenv("ACME_CLIENT_SECRET", "fake-acme-secret")
            monkeypatch.setenv("ACME_REFRESH_TOKEN", "fake-acme-refresh-token")
            yield started[0], started[1]
        finally:
            for server in started:
                elsewhere.run(server.close())


def run(block: Block, names: dict[str, Any]) -> str:
    """Run a block, and return what it printed."""
    source = "\n" * (block.line - 1) + block.text  # so that a traceback shows the page's own line
    code = compile(source, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, names))
        else:
            exec(code, names)
    return printed.getvalue()


def promised(text: str) -> re.Pattern[str]:
    """The pattern of a printed text, in which "…" stands for anything on its line."""
    return re.compile(".*".join(map(re.escape, text.split("…"))))


def saved(block: Block, directory: Path) -> str:
    """Save a block that says which file it is, as its reader does. The module's name, or ""."""
    name = block.mark.removeprefix("file: ") if block.mark.startswith("file: ") else ""
    if name:
        (directory / name).write_text(block.text, encoding="utf-8")
    return name.removesuffix(".py")


@pytest.fixture
def kept() -> Iterator[list[str]]:
    """The names of modules that blocks were saved as, forgotten at the end."""
    names: list[str] = []
    yield names
    for name in names:
        sys.modules.pop(name, None)


def programs() -> list[tuple[Block, Block | None]]:
    """The Python blocks of the README, each with the block right below it if that is what it prints."""
    found = blocks(README)
    below = [*found[1:], None]
    return [
        (block, after if after is not None and after.mark == "prints" else None)
        for block, after in zip(found, below, strict=True)
        if block.language == "python"
    ]


@pytest.mark.parametrize(("block", "prints"), programs(), ids=lambda b: b.where if b else "")
def test_every_python_block_of_the_readme_is_a_program_of_its_own(
    block: Block, prints: Block | None, servers: tuple[TokenServer, TokenServer], tmp_path: Path
) -> None:
    """A reader saves the one that is wanted, not those above it."""
    (tmp_path / "program.py").write_text(block.text, encoding="utf-8")
    command = [sys.executable, "-W", "error", "program.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"Traceback|Warning|never ", done.stderr), done.stderr  # events may be logged
    if prints is not None:
        assert promised(prints.text).fullmatch(done.stdout), f"{prints.where} should read:\n{done.stdout}"
    for server in servers:
        assert server.invalid_requests == []


def test_every_promise_of_the_readme_stands_below_a_program() -> None:
    """Else nothing would compare it."""
    compared = [prints for _, prints in programs() if prints is not None]
    assert compared == [block for block in blocks(README) if block.mark == "prints"]


@pytest.mark.parametrize("page", [page for page in PAGES if page != README], ids=named)
def test_every_python_block_runs(
    page: Path,
    servers: tuple[TokenServer, TokenServer],
    kept: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        if file := saved(block, Path.cwd()):
            assert file not in sys.modules, f"{block.where} would hide a module"
            kept.append(file)
        if block.language == "python":
            printed = run(block, names)
        elif block.mark == "prints":
            assert promised(block.text).fullmatch(printed), f"{block.where} should read:\n{printed}"
    for server in servers:
        assert server.invalid_requests == []
        assert server.stats.reuse_detections == 0


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_is_of_a_kind_that_is_checked(page: Path) -> None:
    """Python runs, commands are parsed, TOML is read; `text` is for drawings and for what is printed."""
    for block in blocks(page):
        assert block.language in LANGUAGES, block.where
        if block.language != "text":
            assert all(len(line) <= 110 for line in block.text.splitlines()), block.where
        if block.language == "toml":
            tomllib.loads(block.text)


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command in a block of sh, without what is set in front of it."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word in ("&&", "||", "|", "&", ";"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_of_ours_has_the_options_it_is_shown_with(page: Path) -> None:
    for block in blocks(page):
        if block.language != "sh":
            continue
        for words in commands(block):
            if Path(words[0]).name == "tokensession":
                name, *arguments = words[1:]
                cli.commands[name].make_context(name, arguments)
            for script in (word for word in words if word.endswith(".py") and "/" in word):
                assert (ROOT / script).is_file(), f"{block.where}: there is no {script}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_between_the_pages_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        found = page.parent / target if target else page
        assert found.exists(), f"{named(page)} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{named(page)} links to {target}#{anchor}"


def test_the_test_command_of_the_readme_is_one_line_that_needs_nothing_but_python() -> None:
    """`.ci/run` takes it from there."""
    (block,) = [block for block in blocks(README) if block.mark == "test command"]
    assert block.language == "sh"
    assert block.text.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert block.text.count("\n") == 1


def test_the_environment_of_the_readme_is_made_before_anything_runs_in_it() -> None:
    """By a command that installs all of ours that the page runs; the demo and the tests need no other."""
    found = [block for block in blocks(README) if block.language == "sh" and ".venv/" in block.text]
    make = r"python3 -m venv \.venv && \.venv/bin/pip install (?:-e )?'\.\[(cli|test)\]'(?: && .+)?\n"
    made = {block.mark: re.fullmatch(make, block.text) for block in found}
    assert found[0].mark == "install command"
    assert found[0].text == "python3 -m venv .venv && .venv/bin/pip install '.[cli]'\n"
    alone = [block for block in found if "tokensession demo" in block.text or block.mark == "test command"]
    assert len(alone) == 2
    assert all(made[block.mark] for block in alone)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Example:
    """An example of the README: its file saved, its server and itself run by the very commands printed.

    Only the port is another, in case somebody uses that one.
    """

    def __init__(self, provider: str, directory: Path) -> None:
        by_mark = {block.mark: block for block in blocks(README)}
        self.printed = promised(by_mark[f"printed by: {provider}"].text)
        self._serve, self._use = by_mark[f"serve: {provider}"], by_mark[f"use: {provider}"]
        (self._port,) = set(re.findall(r"\b8[0-9]{3}\b", self._serve.text + self._use.text))
        self._free, self._directory = str(free_port()), directory
        self._clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTO_", "PRIAVA_"))}
        saved(by_mark[f"file: {provider}.py"], directory)

    def _command(self, block: Block) -> list[str]:
        here = Path(sys.executable).parent
        text = block.text.replace(self._port, self._free).replace(".venv/bin/", f"{shlex.quote(str(here))}/")
        return ["bash", "-euc", text.replace(f"{here}/tokensession serve", f"exec {here}/tokensession serve")]

    def use(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(self._use),
            cwd=self._directory,
            env=self._clean,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @contextlib.contextmanager
    def served(self) -> Iterator[list[str]]:
        """The server, started anew. What it says at its end is in the list afterwards."""
        said: list[str] = []
        server = subprocess.Popen(
            self._command(self._serve),
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._directory,
            env=self._clean,
        )
        with server:
            try:
                assert server.stdout is not None
                assert self._free in server.stdout.readline()
                yield said
                server.send_signal(signal.SIGTERM)
                said.append(server.stdout.read())
            finally:
                server.kill()


@pytest.mark.parametrize("provider", ["oto", "priava"])
def test_the_example_in_the_readme_runs_as_printed_again_and_again(provider: str, tmp_path: Path) -> None:
    example = Example(provider, tmp_path)
    with example.served() as said:
        for _ in range(2):
            done = example.use()
            assert (done.returncode, done.stderr) == (0, "")
            assert example.printed.fullmatch(done.stdout), done.stdout
    assert "1 token requests (0 refused, 0 reuse detections)" in said[0], said


def test_a_priava_server_that_is_started_anew_wants_a_new_store_as_the_readme_says(tmp_path: Path) -> None:
    example = Example("priava", tmp_path)
    with example.served():
        assert example.use().returncode == 0
    with example.served():
        done = example.use()
        assert done.returncode != 0
        assert "tokensession.errors.GrantRejected: " in done.stderr
        (tmp_path / "tokens.db").unlink()
        assert example.printed.fullmatch(example.use().stdout)


def test_the_store_in_the_docs_keeps_the_contract(tmp_path: Path) -> None:
    """By the tests that are printed below it."""
    files = [name for block in blocks(ROOT / "docs/stores.md") if (name := saved(block, tmp_path))]
    assert files == ["prefixed", "test_prefixed"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "test_prefixed.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
