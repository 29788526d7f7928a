"""Processes on several hosts that share one sign-in, in network namespaces: see `_hosts.py`."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.servers import require

PATIENCE = 120.0  # seconds until it counts as hung


@functools.cache
def namespaces() -> bool:
    """Whether this user may make network namespaces, with cables and a bridge."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    made = ["unshare", "--net", "ip", "link", "add", "br0", "type", "bridge"]
    return subprocess.run(made, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("store", ["redis", "postgres"])
def test_f07_f11_f12_a_host_that_is_cut_off_during_a_refresh_loses_no_token(store: str) -> None:
    """Three hosts, minutes apart, make one token request for each expiry, and all are served.

    In the second one, the refreshing host is cut off: no packet arrives, and no connection ends. Its lease
    ends, and another host takes over, and waits. The response is delivered after the cut, and is stored.
    """
    require(store)
    if not namespaces():
        pytest.skip("network namespaces are not available here: they need root, and the command ip")
    program = Path(__file__).with_name("_hosts.py")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, str(program), store],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["token requests"] == [1, 2, 3]
    assert (found["reuse"], found["at once"]) == (0, 1)
    assert [len(set(answers)) for answers in found["answers"]] == [1, 1, 1], done.stdout
    assert len({answers[0] for answers in found["answers"]}) == 3
    assert not any(found["served while cut off"])
