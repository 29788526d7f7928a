"""The commands, run as a user runs them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest
from _processes import TIMEOUT, Children, finish, read_until, running

from tokensession import ManagedSource, SignedOut
from tokensession.cli import main
from tokensession.providers import Oto
from tokensession.testing import OtoServer

ROW = {"requests", "failures", "expiries", "token_requests", "reuse_detections", "latency_ms"}
SHORT = ("--processes", "2", "--tasks", "3", "--expiries", "1", "--lifetime", "60")
"""Tokens live a minute, so that none expires a second time on a slow machine."""
ENDLESS = ("demo", "--processes", "2", "--tasks", "3", "--expiries", "1000")


def command(*arguments: str, tmp: Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    return running("-m", "tokensession", *arguments, tmp=tmp)


def completed(*arguments: str, tmp: Path) -> tuple[int, str, str]:
    """The exit status, the output and the stderr of a command that ends by itself."""
    with command(*arguments, tmp=tmp) as process:
        return finish(process)


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extra_the_command_says_how_to_install_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    needs = f"tokensession: the command line needs {missing}."
    assert err == f"{needs} Install it: pip install 'tokensession[cli]'\n"


def test_the_package_can_be_run_as_a_module(tmp_path: Path) -> None:
    said = f"tokensession, version {version('tokensession')}\n"
    assert completed("--version", tmp=tmp_path) == (0, said, "")


def test_a_short_demo_succeeds_and_prints_one_json_document(tmp_path: Path) -> None:
    status, out, err = completed("demo", "--json", *SHORT, tmp=tmp_path)
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["problems"] == []
    assert set(document["oto"]) == set(document["priava"]) == ROW
    assert set(document["baseline"]["oto"]) == set(document["baseline"]["priava"]) == ROW
    for provider in ("oto", "priava"):
        row = document[provider]
        assert row["token_requests"] == row["expiries"] >= 1
        assert (row["failures"], row["reuse_detections"]) == (0, 0)
        assert set(row["latency_ms"]) == {"p50", "p99"}
    assert list(tmp_path.iterdir()) == []


def test_a_demo_without_a_terminal_prints_plain_lines(tmp_path: Path) -> None:
    status, out, err = completed("demo", *SHORT, tmp=tmp_path)
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    assert re.search(r"^tokensession  \d+\.\d s: oto \d+ requests", out, re.MULTILINE)
    assert "Every expiry took one token request, and no request failed." in out


def test_a_demo_whose_output_is_closed_from_the_start_runs_without_a_traceback(tmp_path: Path) -> None:
    """As in `tokensession demo >&-`, or below a supervisor: its exit status is the answer."""
    demo = [sys.executable, "-m", "tokensession", "demo", *SHORT]
    closed = f"import os; os.close(1); os.execv({demo[0]!r}, {demo!r})"
    with running("-c", closed, tmp=tmp_path) as process:
        assert finish(process) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_demo_that_is_ended_leaves_no_process_and_no_file_behind(number: int, tmp_path: Path) -> None:
    with command(*ENDLESS, tmp=tmp_path) as process:
        read_until(process, "requests,")
        with Children(process.pid) as children:
            assert len(children.pids) == 3
            assert len(list(tmp_path.iterdir())) == 1
            assert next(tmp_path.iterdir()).stat().st_mode & 0o777 == 0o700
            process.send_signal(number)
            status, _, err = finish(process)
            assert status == (-9 if number == signal.SIGKILL else 128 + number)
            assert "Traceback" not in err
            assert children.all_gone(timeout=TIMEOUT)
        assert list(tmp_path.iterdir()) == []


def is_client(pid: int) -> bool:
    """Whether it is a client process, not the servers' process."""
    return b"tokensession.cli.load" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_demo_whose_client_process_dies_fails_and_names_it(tmp_path: Path) -> None:
    with command(*ENDLESS, tmp=tmp_path) as process:
        read_until(process, "requests,")
        with Children(process.pid) as children:
            children.send_signal(next(filter(is_client, children.pids)), signal.SIGKILL)
            status, _, err = finish(process)
            assert status == 1
            assert re.match(r"Error: The client [12] process ended early \(status -9\)\.", err)
            assert children.all_gone(timeout=TIMEOUT)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("provider", "path"), [("oto", ""), ("priava", "/api")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_prints_its_address_and_each_request_and_stops_at_a_signal(
    provider: str, path: str, number: int, tmp_path: Path
) -> None:
    with command("serve", provider, "--lifetime", "7", tmp=tmp_path) as process:
        first = read_until(process, "A test server for")
        found = re.search(rf"http://127\.0\.0\.1:\d+{path}(?=,)", first)
        assert found, first
        with pytest.raises(urllib.error.HTTPError) as unauthorized:
            urllib.request.urlopen(found[0] + "/echo")
        assert unauthorized.value.code == 401
        unauthorized.value.close()
        process.send_signal(number)
        status, out, err = finish(process)
        assert (status, err) == (0, "")
        assert f"base_url='{found[0]}'" in out
        assert ("delete that store (tokens.db)" in out) == (provider == "priava")
        assert re.search(r"^[\d:]{8} 401 GET /\S*echo HTTP/1.1$", out, re.MULTILINE), out
        assert "Stopped after 1 request " in out


def test_serve_goes_on_without_a_traceback_when_its_pipe_is_closed(tmp_path: Path) -> None:
    """As in `tokensession serve oto | head -1`."""
    with command("serve", "oto", tmp=tmp_path) as process:
        found = re.search(r"http://\S+?(?=,)", read_until(process, "A test server for"))
        assert found
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        for _ in range(2):
            with pytest.raises(urllib.error.HTTPError, match="401") as unauthorized:
                urllib.request.urlopen(found[0] + "/echo")
            unauthorized.value.close()
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == ""
        process.wait()


def test_serve_says_when_its_port_is_taken(tmp_path: Path) -> None:
    with command("serve", "oto", tmp=tmp_path) as first:
        found = re.search(r":(\d+),", read_until(first, "A test server for"))
        assert found
        status, _, err = completed("serve", "oto", "--port", found[1], tmp=tmp_path)
        assert status == 1
        assert err.startswith(f"Error: Cannot listen on port {found[1]}: ")
        first.send_signal(signal.SIGTERM)
        assert finish(first)[0] == 0


def test_sign_out_signs_a_key_out_for_all_processes(tmp_path: Path) -> None:
    """It names the key, and has status 1 if there is nothing to sign out or no store to open."""
    url = f"sqlite:///{tmp_path / 'tokens.db'}"

    async def use() -> None:
        async with OtoServer() as server:
            async with ManagedSource(Oto(**server.credentials), store=url, key="account") as source:
                await source.token()
                answer = completed("sign-out", "account", "--store", url, tmp=tmp_path)
                assert answer == (0, "account is signed out.\n", "")
                with pytest.raises(SignedOut):
                    await source.refresh(force=True)

    asyncio.run(use())
    for key in ("account", "another"):
        status, out, err = completed("sign-out", key, "--store", url, tmp=tmp_path)
        assert (status, out) == (1, "")
        assert err == f"Error: Nothing is signed in under '{key}' in this store.\n"
    wrong = "mysql://user:s3cr3t@host"
    status, _, err = completed("sign-out", "account", "--store", wrong, tmp=tmp_path)
    assert status == 1
    assert err.startswith("Error: ")
    assert "s3cr3t" not in err


def test_sign_out_of_an_empty_key_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    """As in a script whose variable is not set."""
    status, out, err = completed(
        "sign-out", "", "--store", f"sqlite:///{tmp_path / 'tokens.db'}", tmp=tmp_path
    )
    assert (status, out) == (2, "")
    assert err.endswith("Error: Invalid value for 'KEY': It is empty.\n")
