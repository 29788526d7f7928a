"""The command line as real processes: no secret in its output, or where other users can read."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from _secret_vault import CLIENT_SECRET, CODE, CORE, REFRESH_TOKEN

PLANTED = {
    "OTO_REFRESH_TOKEN": REFRESH_TOKEN,
    "PRIAVA_CLIENT_SECRET": CLIENT_SECRET,
    "PRIAVA_CODE": CODE,
    "TOKENSESSION_TEST": REFRESH_TOKEN,
}
FAKE = re.compile(r"fake-(oto|priava)-[\w-]+")
"""What every credential and token of the bundled servers looks like, except the client id."""
GUARD = 60.0  # seconds; an upper bound for a hang


def start(*arguments: str, tmp: Path) -> subprocess.Popen[str]:
    program = "from tokensession.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | PLANTED | {"TMPDIR": str(tmp), "PYTHONASYNCIODEBUG": "1"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit status, and the rest of its output."""
    assert process.stdout is not None
    guard = threading.Timer(GUARD, process.kill)
    guard.start()
    try:
        with process.stdout:
            output = process.stdout.read()
        return process.wait(), output
    finally:
        guard.cancel()


def family(pid: int) -> list[Path]:
    """The directories under /proc of a process and its children."""
    found = [Path(f"/proc/{pid}")]
    for task in (found[0] / "task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def test_the_demo_passes_secrets_to_its_processes_and_shows_none(tmp_path: Path) -> None:
    """Secrets are not in command lines, environments, file names or output."""
    process = start("demo", "--processes", "2", "--tasks", "2", "--expiries", "1000", tmp=tmp_path)
    output = ""
    try:
        assert process.stdout is not None
        while not re.search(r"priava [1-9]\d* requests", line := process.stdout.readline()):
            assert line, "the demo ended before it began"
            output += line
        processes = family(process.pid)
        assert len(processes) == 4
        for proc in processes:
            command = (proc / "cmdline").read_bytes().decode()
            environment = (proc / "environ").read_bytes().decode()
            assert CORE not in command.casefold()
            assert not FAKE.search(command + environment)
        names = [str(path) for path in tmp_path.rglob("*")]
        assert any(name.endswith("tokens.db") for name in names)
        assert not FAKE.search("\n".join(names))
        os.kill(int(max(processes[1:], key=lambda proc: int(proc.name)).name), signal.SIGKILL)
        status, rest = finish(process)
        assert status == 1
        assert "ended early" in rest
        assert not FAKE.search(output + line + rest)
        assert CORE not in (output + line + rest).casefold()
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("provider", "path", "credentials"),
    [
        ("oto", "/rest/v2/refreshToken", {"fake-oto-refresh-token"}),
        ("priava", "/rest/oauth/token", {"fake-priava-client", "fake-priava-secret", "fake-priava-code"}),
    ],
)
def test_serve_prints_its_fake_credentials_once_and_no_token(
    provider: str, path: str, credentials: set[str], tmp_path: Path
) -> None:
    """It shows neither tokens that it issues nor tokens that it does not accept."""
    process = start("serve", provider, tmp=tmp_path)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        address = re.search(r"http://[^,\s]+", first)
        assert address
        for body in (b'{"refresh_token": "fake-oto-refresh-token"}', REFRESH_TOKEN.encode()):
            headers = {"Content-Type": "application/json", "Authorization": "Bearer fake-oto-access-4711"}
            for one in (headers, {"Content-Type": "application/json"}):
                send(urllib.request.Request(address[0] + path, data=body, headers=one, method="POST"))
            send(urllib.request.Request(address[0] + "/echo", headers=headers))
        process.send_signal(signal.SIGTERM)
        status, rest = finish(process)
        assert status == 0
        assert "Stopped after" in rest
        assert {found[0] for found in FAKE.finditer(first + rest)} == credentials
        assert CORE not in (first + rest).casefold()
    finally:
        process.kill()


def send(request: urllib.request.Request) -> None:
    try:
        with urllib.request.urlopen(request) as response:
            response.read()
    except urllib.error.HTTPError as error:
        error.close()


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["serve", "acme"], ["demo", "--tasks", "0"]])
def test_help_and_usage_errors_show_nothing_of_the_environment(arguments: list[str], tmp_path: Path) -> None:
    """It contains credentials of real providers."""
    status, output = finish(start(*arguments, tmp=tmp_path))
    assert status == (0 if "--help" in arguments else 2)
    assert output
    assert CORE not in output.casefold()
    assert not FAKE.search(output)
