"""The machine and the versions that a benchmark ran on. Nothing names the machine or its owner."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

__all__ = ["environment"]

_LIBRARIES = (
    "tokensession",
    "aiohttp",
    "msgpack",
    "sqlite-utils",
    "uvloop",
    "aiobotocore",
    "aiohttp-oauth2-client",
    "authlib",
    "botocore",
    "google-auth",
    "httpx",
    "httpx-auth",
    "mcp",
    "singleflight-auth",
)


def environment() -> dict[str, object]:
    """Interpreter, processors, kernel, load, and the versions of the libraries that take part."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "processors": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
        "optimised": not sys.flags.dev_mode and sys.gettrace() is None,
        "versions": versions,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
