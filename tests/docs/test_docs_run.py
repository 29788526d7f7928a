"""README and docs, executed: what they print is what happens.

Each Python block of the README is a program: it runs as a file of its own, in an interpreter of its own. The
blocks of another page run in order and share their names, as you would paste them into `python -m asyncio`,
so `await` and `async with` may stand at the top level. All run in an empty directory. Their environment has
the credentials of accounts at Oto, at Priava, and at "Acme", an OAuth 2 server with a path `/orders` and two
clients: ACME_ is a confidential one, APP_ a public one. Our strict test servers play all of them, and a
browser that says yes.

A `text` block below `<!-- prints -->` is the output of the block before it, where "…" stands for anything.
Signatures on the API page are in `py` blocks, which do not run.

The README and the tutorial are also walked through as a reader does: `<!-- file: NAME -->` saves a block,
`<!-- serve: NAME -->` starts a server, `<!-- use: NAME -->` runs a command, `<!-- printed by: NAME -->` is
its output, and `<!-- said by: NAME -->` is what the server prints when it is stopped.

A block below `<!-- needs: PACKAGE -->` uses another library: `test_token_elsewhere.py` runs it.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from _pages import PAGES, ROOT, Block, anchors, blocks, named, unfenced
from aiohttp import web
from anyio.from_thread import start_blocking_portal

from benchmarks.servers import RedisServer, require
from tokensession.cli.commands import cli
from tokensession.testing import OAuth2Server, OtoServer, PriavaServer, TokenServer

LANGUAGES = {"python", "sh", "text", "toml", "yaml"}
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
HOSTS = ROOT / "docs" / "how-to" / "share-between-hosts.md"
TRY_IT = ROOT / "docs" / "how-to" / "try-it-without-an-account.md"
API = ROOT / "docs" / "reference" / "api.md"


class AcmeServer(OAuth2Server):
    """The OAuth 2 server of the examples, with an API that has orders. Its people say yes at once."""

    def approve_all(self) -> None:
        for user_code in self._devices:
            self.approve_device(user_code)

    def _check_device(self, device_code: str) -> None:
        try:
            super()._check_device(device_code)
        finally:
            self.approve_all()

    def routes(self) -> list[web.RouteDef]:
        async def orders(_request: web.Request) -> web.Response:
            return web.json_response([{"order": 1}])

        return [web.get("/orders", orders)]


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TokenServer]]:
    """Three running servers, their credentials in the environment, and an empty working directory."""
    monkeypatch.chdir(tmp_path)
    started: list[TokenServer] = [
        *(OtoServer(), PriavaServer(), AcmeServer(client_id="reports")),
        AcmeServer(client_id="desktop", auth="none", interval=0.05),
    ]
    monkeypatch.setattr("webbrowser.open", visited)
    with start_blocking_portal() as portal, contextlib.ExitStack() as stack:
        for prefix, server in zip(("OTO", "PRIAVA", "ACME", "APP"), started, strict=True):
            stack.enter_context(portal.wrap_async_context_manager(server))
            for name, value in {**server.credentials, "issuer": server.base_url}.items():
                monkeypatch.setenv(f"{prefix}_{name.upper()}", str(value))
        yield started


def visited(url: str) -> bool:
    """What a browser does with this URL, in a thread of its own."""
    threading.Thread(target=lambda: urllib.request.urlopen(url).close()).start()
    return True


def run(block: Block, names: dict[str, Any]) -> str:
    """Run a block, and return what it printed."""
    source = "\n" * (block.line - 1) + block.text  # so a traceback shows the line of the page
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


def started_by(page: Path) -> set[str]:
    """The files that a page starts as servers. Another test follows it from top to bottom."""
    texts = [block.text for block in blocks(page) if block.mark.startswith("serve: ")]
    return {name for text in texts for name in re.findall(r"(\w+)\.py", text)}


def saved(block: Block, directory: Path) -> str:
    """Save a block that says which file it is, as its reader does. The module's name, or ""."""
    name = block.mark.removeprefix("file: ") if block.mark.startswith("file: ") else ""
    if name:
        (directory / name).write_text(block.text, encoding="utf-8")
    return name.removesuffix(".py")


@pytest.fixture
def imported() -> Iterator[list[str]]:
    """The names of modules that blocks were saved as. They are removed from sys.modules at the end."""
    names: list[str] = []
    yield names
    for name in names:
        sys.modules.pop(name, None)


def programs() -> list[tuple[Block, Block | None]]:
    """The Python blocks of the README, each with the block right below it if that is its output."""
    return [
        (block, below if below is not None and below.mark == "prints" else None)
        for block, below in itertools.pairwise([*blocks(README), None])
        if block is not None and block.language == "python"
    ]


@pytest.mark.parametrize(("block", "prints"), programs(), ids=lambda b: b.where if b else "")
def test_every_python_block_of_the_readme_is_a_program_of_its_own(
    block: Block, prints: Block | None, servers: list[TokenServer], tmp_path: Path
) -> None:
    """You can save the one you want, without those above it."""
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
    assert sum(server.stats.token_requests for server in servers) >= 1, "it has asked no server for a token"


def test_the_first_program_of_the_readme_is_near_the_top_and_eight_lines_long() -> None:
    """You see what using the library looks like before you scroll."""
    first, _ = programs()[0]
    assert first.line < 30
    body = first.text.partition("async def main() -> None:\n")[2].partition("\n\n")[0]
    assert len(body.splitlines()) <= 8
    assert all(word in body for word in ("OAuth2(", "store=", "session.get("))


def test_every_promise_of_the_readme_stands_below_a_program() -> None:
    """A promise anywhere else would not be compared."""
    compared = [prints for _, prints in programs() if prints is not None]
    assert compared == [block for block in blocks(README) if block.mark == "prints"]


@pytest.fixture
def redis_server(page: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Redis server, with its URL in the environment, for a page that needs one."""
    if "REDIS_URL" not in page.read_text(encoding="utf-8"):
        yield
        return
    with RedisServer("redis") as started:
        monkeypatch.setenv("REDIS_URL", f"redis://{started.address}")
        yield


@pytest.mark.parametrize("page", [page for page in PAGES if page not in (README, HOSTS)], ids=named)
def test_every_python_block_runs(
    page: Path,
    servers: list[TokenServer],
    redis_server: None,
    imported: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        if file := saved(block, Path.cwd()):
            assert file not in sys.modules, f"{block.where} would hide a module"
            imported.append(file)
        if block.mark.startswith("needs: "):  # another library: tests/docs/test_token_elsewhere.py runs it
            continue
        if file in started_by(page):  # it serves until it is stopped
            continue
        if block.language == "python":
            printed = run(block, names)
        elif block.mark == "prints":
            assert promised(block.text).fullmatch(printed), f"{block.where} should read:\n{printed}"
    for server in servers:
        assert server.invalid_requests == []
        assert server.stats.reuse_detections == 0


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_is_of_a_kind_that_is_checked(page: Path) -> None:
    """Python runs, commands are parsed, TOML is read. `text` is for drawings and for output."""
    allowed = LANGUAGES | {"py"} if page == API else LANGUAGES
    for block in blocks(page):
        assert block.language in allowed, block.where
        if block.language not in ("text", "py"):
            assert all(len(line) <= 110 for line in block.text.splitlines()), block.where
        if block.language == "toml":
            tomllib.loads(block.text)


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command in a block of sh, without the variables set in front of it."""
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
                parent = click.Context(cli, **cli.context_settings)
                cli.commands[name].make_context(name, arguments, parent=parent)
            for script in (word for word in words if word.endswith(".py") and "/" in word):
                assert (ROOT / script).is_file(), f"{block.where}: there is no {script}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_between_the_pages_leads_to_a_file_and_a_heading(page: Path) -> None:
    missing = []
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", unfenced(page)):
        found = page.parent / target if target else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            missing.append(f"{target}#{anchor}" if anchor else target)
    assert not missing, f"{named(page)} links to {', '.join(missing)}"


def test_every_page_of_the_docs_can_be_reached_from_the_index() -> None:
    """docs/index.md is the way in: it links to every page."""
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / target).resolve()
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]+)?\)", index.read_text(encoding="utf-8"))
    }
    pages = {page for page in PAGES if page.is_relative_to(index.parent)} - {index}
    assert not [named(page) for page in sorted(pages - linked)]


def test_the_test_command_of_the_readme_is_one_line_that_needs_nothing_but_python() -> None:
    """`.ci/run` runs it as printed."""
    (block,) = [block for block in blocks(README) if block.mark == "test command"]
    assert block.language == "sh"
    assert block.text.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert block.text.count("\n") == 1


def test_the_environment_of_the_readme_is_made_before_anything_runs_in_it() -> None:
    """By a command that installs all that the page runs. The test command needs no other."""
    found = [block for block in blocks(README) if block.language == "sh" and ".venv/" in block.text]
    assert found[0].mark == "install command"
    assert found[0].text == "python3 -m venv .venv && .venv/bin/pip install '.[cli]'\n"
    test = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest -n auto --cov\n"
    (block,) = [block for block in found if block.mark == "test command"]
    assert block.text == test


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Walk:
    """A page, followed from top to bottom in an empty directory by the commands that are printed.

    Only the ports differ, in case the printed ones are taken. What a block exports stays exported for those
    after it, as in one terminal.
    """

    def __init__(self, page: Path, directory: Path) -> None:
        self.page, self._directory = page, directory
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTO_", "PRIAVA_", "ACME_"))}
        self._place: dict[str, Any] = {"cwd": directory, "env": clean}
        ports = re.findall(r"\b8[0-9]{3}\b", "".join(b.text for b in blocks(page) if b.language == "sh"))
        self._ports = {port: str(free_port()) for port in ports}
        self._exports = ""
        self._stack = contextlib.ExitStack()
        self._servers: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.kill()
        self._stack.close()

    def block(self, mark: str) -> Block:
        (found,) = [block for block in blocks(self.page) if block.mark == mark]
        return found

    def save(self, *chosen: Block) -> None:
        """Save these files of the page, or all."""
        for block in chosen or blocks(self.page):
            saved(replace(block, text=self._freed(block.text)), self._directory)

    def _freed(self, text: str) -> str:
        for port, free in self._ports.items():
            text = text.replace(port, free)
        return text

    def _command(self, block: Block) -> list[str]:
        here = Path(sys.executable).parent
        text = self._exports + block.text.replace(" -m asyncio", " -c 'import tokensession'")  # no prompt
        text = self._freed(text).replace(".venv/bin/", f"{shlex.quote(str(here))}/")
        return ["bash", "-euc", text.replace(f"{here}/tokensession serve", f"exec {here}/tokensession serve")]

    def use(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the commands of this block."""
        block = self.block(f"use: {name}")
        done = subprocess.run(
            self._command(block), capture_output=True, text=True, check=False, timeout=60, **self._place
        )
        self._exports += "".join(re.findall(r"(?m)^export .*\n", block.text))
        return done

    def exported(self, name: str) -> dict[str, str]:
        """What the commands of this block export."""
        _, _, text = self._command(self.block(f"use: {name}"))
        words = [word for line in re.findall(r"(?m)^export (.*)$", text) for word in shlex.split(line)]
        return dict(word.split("=", 1) for word in words)

    def printed(self, name: str) -> re.Pattern[str]:
        return promised(self.block(f"printed by: {name}").text)

    def serve(self, name: str) -> None:
        """Start the server of this block, and wait until it says its address."""
        command = self._command(self.block(f"serve: {name}"))
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **self._place)
        self._stack.enter_context(server)
        self._servers[name] = server
        assert server.stdout is not None
        assert any(port in line for line in server.stdout for port in self._ports.values())

    def stop(self, name: str) -> str:
        """Stop that server, as Ctrl-C does. The last line that it prints."""
        server = self._servers.pop(name)
        server.send_signal(signal.SIGINT)
        assert server.stdout is not None
        return server.stdout.read().splitlines()[-1] + "\n"


@pytest.mark.parametrize("page", [README, TUTORIAL, HOSTS, TRY_IT], ids=named)
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    """Every file, server, command and output, in the order of the page."""
    if page == HOSTS:
        require("redis")
    with Walk(page, tmp_path) as walk:
        done = None
        for block in blocks(page):
            kind, _, name = block.mark.partition(": ")
            if kind == "file":
                walk.save(block)
            elif kind == "serve":
                walk.serve(name)
            elif kind == "use":
                done = walk.use(name)
                assert (done.returncode, done.stderr) == (0, ""), block.where
            elif kind == "printed by":
                assert done is not None
                assert promised(block.text).fullmatch(done.stdout), f"{block.where}:\n{done.stdout}"
            elif kind == "said by":
                said = walk.stop(name)
                assert promised(block.text).fullmatch(said), f"{block.where}:\n{said}"


@pytest.mark.parametrize(
    "page", ["machine-to-machine", "sign-in-in-a-browser", "sign-in-to-a-web-application"]
)
def test_the_servers_to_try_it_with_are_what_the_pages_need(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the reader exports, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", visited)
    with Walk(TRY_IT, tmp_path) as walk:
        walk.save()
        walk.serve("acme")
        for name, value in walk.exported("acme").items():
            monkeypatch.setenv(name, value)
        names: dict[str, Any] = {"__name__": "__main__"}
        printed = ""
        for block in blocks(ROOT / "docs" / "how-to" / f"{page}.md"):
            if block.language == "python":
                printed = run(block, names)
            elif block.mark == "prints":
                assert promised(block.text).fullmatch(printed), f"{block.where} should read:\n{printed}"


@pytest.mark.parametrize("provider", ["oto", "priava"])
def test_the_example_in_the_readme_runs_again_and_again_with_one_token_request(
    provider: str, tmp_path: Path
) -> None:
    with Walk(README, tmp_path) as walk:
        walk.save()
        walk.serve(provider)
        for _ in range(2):
            done = walk.use(provider)
            assert (done.returncode, done.stderr) == (0, "")
            assert walk.printed(provider).fullmatch(done.stdout), done.stdout
        counted = " 1 token request (0 rejected, 0 invalid, 0 reuse detections)"
        assert counted in (said := walk.stop(provider)), said


def test_after_a_restart_of_the_priava_server_you_delete_the_store_as_the_readme_says(tmp_path: Path) -> None:
    with Walk(README, tmp_path) as walk:
        walk.save()
        walk.serve("priava")
        assert walk.use("priava").returncode == 0
        walk.stop("priava")
        walk.serve("priava")
        done = walk.use("priava")
        assert done.returncode != 0
        assert re.search(r"^tokensession\S*\.GrantRejected: ", done.stderr, re.MULTILINE)
        (tmp_path / "tokens.db").unlink()
        assert walk.printed("priava").fullmatch(walk.use("priava").stdout)


def test_the_store_in_the_docs_implements_the_contract(tmp_path: Path) -> None:
    """It passes the tests that are printed below it."""
    files = [saved(block, tmp_path) for block in blocks(ROOT / "docs/how-to/write-a-store.md")]
    assert [name for name in files if name] == ["prefixed", "test_prefixed"]
    options = ["-q", "-W", "error", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "test_prefixed.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
