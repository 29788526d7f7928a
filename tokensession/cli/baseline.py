"""The baseline: what programs commonly do. Each task refreshes for itself, and a file holds the shared token.

It makes no avoidable mistakes: the file is replaced in one step, so no task reads half of it; the newest
refresh token is read right before it is used; a token is refreshed when a tenth of its life is left; a 401
leads to one refresh and one replay. The one thing it lacks is what this library is about: the tasks do not
know of each other's refreshes.
"""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

import aiohttp
from anyio import to_thread

from ..providers import Credential, Oto, Priava, Provider, TokenResponse

__all__ = ["BaselineClient", "provider_for", "sign_in"]


def provider_for(name: str, credentials: dict[str, Any]) -> Provider:
    """The provider for one of our test servers."""
    return Oto(**credentials) if name == "oto" else Priava(**credentials)


async def sign_in(provider: Provider, http: aiohttp.ClientSession, file: Path) -> None:
    """Redeem the provider's configured credential, and write the first token to the file."""
    if provider.credential is None:
        raise ValueError("The provider has no configured credential.")
    await _write(file, await _redeem(provider, http, provider.credential))


class BaselineClient:
    """The client of one task. It starts with the token in the file."""

    def __init__(self, provider: Provider, http: aiohttp.ClientSession, file: Path) -> None:
        self._provider = provider
        self._http = http
        self._file = file
        self._token = _read(file)

    async def get(self, path: str) -> int:
        """Make an API request, and return its status."""
        if time.time() >= self._token["refresh_at"]:
            await self._refresh()
        status = await self._send(path)
        if status == 401:
            await self._refresh()
            status = await self._send(path)
        return status

    async def _send(self, path: str) -> int:
        headers = {"Authorization": f"Bearer {self._token['access_token']}"}
        async with self._http.get(self._provider.base_url + path, headers=headers) as response:
            await response.read()
            return response.status

    async def _refresh(self) -> None:
        credential = Credential("refresh_token", _read(self._file)["refresh_token"])
        self._token = await _redeem(self._provider, self._http, credential)
        await _write(self._file, self._token)

    def __repr__(self) -> str:
        return f"<BaselineClient at {self._provider.base_url}>"


async def _redeem(provider: Provider, http: aiohttp.ClientSession, credential: Credential) -> dict[str, Any]:
    request = provider.request(credential)
    sent_at = time.time()
    async with http.post(request.url, data=request.body, headers=request.headers) as received:
        response = TokenResponse(received.status, tuple(received.headers.items()), await received.read())
    token = provider.read(response, credential, sent_at=sent_at).token
    return {
        "access_token": token.access_token,
        "refresh_token": token.refresh_token,
        "refresh_at": sent_at + 0.9 * (token.lifetime or 0.0),
    }


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


async def _write(file: Path, content: dict[str, Any]) -> None:
    # In a thread: replacing a file may wait for the disk, which would stop every other task.
    await to_thread.run_sync(_replace, file, content)


def _replace(file: Path, content: dict[str, Any]) -> None:
    temporary = file.with_suffix(f".{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(content))
    temporary.replace(file)
