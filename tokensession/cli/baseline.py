"""How most programs do it: each task looks after its own token, and a file holds what they share.

Nothing in here is made worse than it has to be. The file is replaced in one step, so nobody reads half
of it; the newest refresh token is read right before it is used; a token is renewed a tenth of its life
before its end; a 401 is followed by one refresh and one more try. What is missing is what this library
is about: nobody asks whether somebody else is doing the same.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from pathlib import Path
from typing import Any

import aiohttp

from ..providers import Credential, Oto, Priava, Provider, TokenResponse

__all__ = ["BaselineClient", "provider_for", "sign_in"]


def provider_for(name: str, credentials: dict[str, Any]) -> Provider:
    """The provider of a bundled server."""
    return Oto(**credentials) if name == "oto" else Priava(**credentials)


async def sign_in(provider: Provider, http: aiohttp.ClientSession, file: Path) -> None:
    """Redeem the provider's seed and write the first token into the file."""
    if provider.credential is None:
        raise ValueError("The provider has no seed to sign in with.")
    await _write(file, await _redeem(provider, http, provider.credential))


class BaselineClient:
    """One task's view. It starts with the token that it finds in the file."""

    def __init__(self, provider: Provider, http: aiohttp.ClientSession, file: Path) -> None:
        self._provider = provider
        self._http = http
        self._file = file
        self._mine = _read(file)

    async def get(self, path: str) -> int:
        """One API request; returns its status."""
        if time.time() >= self._mine["renew_at"]:
            await self._refresh()
        status = await self._once(path)
        if status == 401:
            await self._refresh()
            status = await self._once(path)
        return status

    async def _once(self, path: str) -> int:
        headers = {"Authorization": f"Bearer {self._mine['access_token']}"}
        async with self._http.get(self._provider.base_url + path, headers=headers) as response:
            await response.read()
            return response.status

    async def _refresh(self) -> None:
        shared = _read(self._file)
        credential = Credential("refresh_token", shared["refresh_token"])
        self._mine = await _redeem(self._provider, self._http, credential)
        await _write(self._file, self._mine)

    def __repr__(self) -> str:
        return f"<BaselineClient at {self._provider.base_url}>"


async def _redeem(provider: Provider, http: aiohttp.ClientSession, credential: Credential) -> dict[str, Any]:
    request = provider.request(credential)
    sent_at = time.time()
    async with http.post(request.url, data=request.body, headers=request.headers) as response:
        headers = tuple((name.lower(), value) for name, value in response.headers.items())
        answer = TokenResponse(response.status, headers, await response.read())
    token = provider.read(answer, credential, sent_at=sent_at).token
    return {
        "access_token": token.access_token,
        "refresh_token": token.refresh_token,
        "renew_at": sent_at + 0.9 * (token.lifetime or 0.0),
    }


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


async def _write(file: Path, content: dict[str, Any]) -> None:
    # In a thread: replacing a file may wait for the disk, and that would hold up every other task.
    await asyncio.to_thread(_replace, file, content)


def _replace(file: Path, content: dict[str, Any]) -> None:
    temporary = file.with_suffix(f".{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(content))
    temporary.replace(file)
