"""The secrets that are planted, and the search for them in any spelling."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_plus

import _shown

from tokensession import AiohttpTransport
from tokensession.providers import TokenResponse, basic_auth

CORE = "zqxv"
"""Part of every planted secret and of no other word, so that half a secret is found too."""

AWKWARD = ' %&+"\\'  # each spelled differently in a form, a URL, JSON and a repr
CLIENT_ID = "client-7"  # not a secret: it is part of keys, and may be shown
CLIENT_SECRET = f"cs{AWKWARD}ZQXV-client-secret/8:y"
REFRESH_TOKEN = f"rt{AWKWARD}ZQXV-refresh-token/7:x"
SECOND_REFRESH_TOKEN = f"rt{AWKWARD}ZQXV-second-token/7:z"
CODE = f"co{AWKWARD}ZQXV-one-time-code/9:z"
PROXY_PASSWORD = "pp-ZQXV-proxy-password-11"
STORE_PASSWORD = "sp-ZQXV-store-password-12"
ENCRYPTION_KEY = "ekZQXVencryptionkey13".ljust(43, "A") + "="  # 32 bytes in base64
CONFIGURED = (
    *(CLIENT_SECRET, REFRESH_TOKEN, SECOND_REFRESH_TOKEN, CODE),
    *(PROXY_PASSWORD, STORE_PASSWORD, ENCRYPTION_KEY),
)


def access(generation: int) -> str:
    return f"at{generation}-ZQXV|access:$!*~token-and-more"


def refresh(generation: int) -> str:
    return f'nr{generation}-ZQXV rotated~token+/=="and\\more'


def spellings(secret: str) -> set[str]:
    """The secret as it may appear in a body, a URL, a log, a header or a dump, also within other bytes."""
    found = {repr(repr(secret))[1:-1], *_shown.spellings(secret)}
    # In base64, three bytes are four letters, so the position of a secret decides how it looks. The letters
    # at both ends depend on the neighbours, and are left out.
    for before in range(3):
        for within in (secret, quote_plus(secret)):  # the second in Basic credentials
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                letters = encode(b"\0" * before + within.encode()).decode().rstrip("=")
                found.add(letters[4 if before else 0 : -3])
    return found


class Vault:
    """All secrets that must not be shown. `find` searches for them."""

    def __init__(self, *secrets: str) -> None:
        self._spellings: dict[str, str] = {CORE: "the core of a planted secret"}
        generations = [name(n) for name in (access, refresh) for n in range(1, 5)]
        for secret in (*CONFIGURED, *generations, *secrets):
            self.add(secret)
        self.add(basic_auth(CLIENT_ID, CLIENT_SECRET).removeprefix("Basic "))

    def add(self, secret: str) -> None:
        """Add a secret, such as a token that a server has issued."""
        for spelling in spellings(secret):
            self._spellings[spelling.casefold()] = secret

    def find(self, text: str) -> Iterator[str]:
        """A description of each secret in the text."""
        folded = text.casefold()
        for spelling, secret in self._spellings.items():
            if (at := folded.find(spelling)) >= 0:
                yield f"{secret!r} in …{text[max(0, at - 60) : at + 60]!r}…"


class Listening(AiohttpTransport):
    """Adds every token in a response to the vault."""

    def __init__(self, vault: Vault) -> None:
        super().__init__()
        self._vault = vault

    async def send(self, *request: Any, **options: Any) -> TokenResponse:
        response = await super().send(*request, **options)
        for found in re.findall(r'"(?:access|refresh)_token": ?("(?:[^"\\]|\\.)*")', response.body.decode()):
            self._vault.add(json.loads(found))
        return response
