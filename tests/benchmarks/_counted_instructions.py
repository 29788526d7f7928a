"""Awaits an empty coroutine function and `source.token()` a thousand times each, for callgrind to count.

`os.getloadavg` separates the parts: callgrind writes its counts before each of its calls. The package is
imported without its `__init__`, which would import aiohttp: that takes ten seconds under valgrind.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import types
from collections.abc import Awaitable, Callable
from itertools import repeat
from typing import Any

package = types.ModuleType("tokensession")
package.__path__ = [sys.argv[1]]
sys.modules["tokensession"] = package

from tokensession.providers.oauth2 import OAuth2  # noqa: E402
from tokensession.source import ManagedSource  # noqa: E402
from tokensession.stores.memory import MemoryStore  # noqa: E402
from tokensession.testing.transport import ScriptedTransport, token_response  # noqa: E402

TIMES = 1000


async def empty() -> None:
    pass


async def awaits(call: Callable[[], Awaitable[Any]]) -> None:
    for _ in repeat(None, TIMES):
        await call()


async def main() -> None:
    provider = OAuth2(
        token_url="https://id.example.com/token", client_id="c", client_secret="s", refresh_token="r"
    )
    response = token_response({"access_token": "access", "expires_in": 36_000})
    source = ManagedSource(provider, ScriptedTransport(response), store=MemoryStore())
    for call in (source.token, empty):
        await awaits(call)
    gc.disable()
    subprocess.run(["callgrind_control", "--instr=on", str(os.getpid())], check=True, capture_output=True)
    for call in (empty, source.token):
        os.getloadavg()
        await awaits(call)
    os.getloadavg()
    sys.stdout.flush()
    os._exit(0)


asyncio.run(main())
