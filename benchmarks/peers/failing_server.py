"""A server whose token endpoint can be told to fail, in a thread of its own: it counts the token requests.

In a thread, because one of the contestants stops the event loop during its token request.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, Self
from urllib.parse import parse_qsl

__all__ = ["FailingServer"]


class FailingServer:
    """`with FailingServer() as server:`. After `fail()` each token request gets a 500; `posts` counts them."""

    def __init__(self) -> None:
        self.posts = 0
        self._failing = False
        self._lock = threading.Lock()
        self._numbers = count()
        self._bearer: str | None = None

        class Handler(_Handler):
            owner = self

        self._http = _HTTP(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def credentials(self) -> dict[str, Any]:
        """As `harness.Server` has them."""
        origin = f"http://127.0.0.1:{self._http.server_address[1]}"
        return {
            "token_url": f"{origin}/token",
            "client_id": "fake-client",
            "client_secret": "fake-client-secret",
            "auth": "post",
            "refresh_token": "fake-refresh-token",
            "base_url": origin,
        }

    def fail(self) -> None:
        """From now on there are no tokens, and the one that was had has run out."""
        with self._lock:
            self._failing, self._bearer = True, None

    def recover(self) -> None:
        """There are tokens again."""
        with self._lock:
            self._failing = False

    def token(self, grant: str | None) -> dict[str, Any] | None:
        """What a token request brings, or None if it fails. Only refresh tokens are taken."""
        with self._lock:
            self.posts += 1
            if grant != "refresh_token":
                return None
            if self._failing:
                return None
            number = next(self._numbers)
            self._bearer = f"access-{number}"
            return {
                "access_token": self._bearer,
                "token_type": "Bearer",
                "expires_in": 3600,
                "refresh_token": f"refresh-{number}",
            }

    def knows(self, header: str | None) -> bool:
        """Whether this is the newest bearer."""
        return self._bearer is not None and header == f"Bearer {self._bearer}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class _HTTP(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""


class _Handler(BaseHTTPRequestHandler):
    owner: FailingServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.path != "/token":
            self._answer(404, {})
            return
        token = self.owner.token(dict(parse_qsl(body)).get("grant_type"))
        self._answer(500 if token is None else 200, token or {"error": "server_error"})

    def do_GET(self) -> None:
        if self.path != "/ping":
            self._answer(404, {})
        else:
            good = self.owner.knows(self.headers.get("Authorization"))
            self._answer(200 if good else 401, {})

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing is logged."""
